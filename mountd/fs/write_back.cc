#include "mountd/fs/write_back.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>

#include "common/base/checksum.h"
#include "common/base/limits.h"
#include "common/io/task_group.h"
#include "common/wire/chunk_records.h"
#include "mountd/fs/attributes.h"
#include "mountd/fs/signal.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {

constexpr std::size_t kUploadsParallel = 4;  // each holds one chunk in memory
constexpr int kAttemptsMax = 4;              // of a commit whose chunks were collected meanwhile

// One commit's upload, shared by its workers; all on one loop.
struct Upload {
  CachePin copy;
  std::vector<CommitPlan::Block> blocks;
  std::vector<ChunkRef> refs;          // one per block when done
  std::vector<std::uint64_t> digests;  // of what was really read, by block index
  std::size_t next = 0;
  std::size_t running = 0;
  std::error_code error;
  std::shared_ptr<Signal> finished;
};

struct HashedBlock {
  Buffer bytes;
  ChunkId id;
  std::uint64_t digest = 0;
};

Result<HashedBlock> read_and_hash(CachedCopy& copy, std::uint32_t index) {
  HashedBlock out;
  Buffer bytes = Buffer::allocate(kBlockSizeBytes);
  FM_TRY(const std::size_t size,
         copy.read_at(std::uint64_t{index} * kBlockSizeBytes, bytes.mutable_view()));
  out.bytes = bytes.slice(0, size);
  out.digest = block_digest(out.bytes.view());
  if (size != 0 && out.digest != kHoleDigest) out.id = chunk_id_of(out.bytes.view());
  return out;
}

Task<ChunkRef> upload_block(Env& env, ClusterClient& client, std::shared_ptr<Upload> upload,
                            CommitPlan::Block block) {
  ChunkRef ref{block.index, {}};
  if (block.source == CommitPlan::Block::Source::kHole) co_return ref;
  if (block.source == CommitPlan::Block::Source::kKnown) {
    std::vector<ChunkId> ids{block.known};
    FM_CO_TRY(const auto there, co_await client.query_chunks(std::move(ids)));
    ref.id = block.known;
    if (!there.empty() && there.front()) co_return ref;
  }
  const CachePin copy = upload->copy;
  const std::uint32_t index = block.index;
  const auto job = [copy, index] { return read_and_hash(*copy, index); };
  FM_CO_TRY(auto hashed, co_await blocking<HashedBlock>(env, job));
  upload->digests[index] = hashed.digest;
  ref.id = hashed.id;
  if (!ref.id) co_return ref;
  std::vector<ChunkId> ids{ref.id};
  FM_CO_TRY(const auto there, co_await client.query_chunks(std::move(ids)));
  if (there.empty() || !there.front()) {
    FM_CO_CHECK(co_await client.put_chunk(ref.id, std::move(hashed.bytes)));
  }
  co_return ref;
}

asio::awaitable<void> upload_worker(Env& env, ClusterClient& client,
                                    std::shared_ptr<Upload> upload) {
  while (!upload->error && upload->next < upload->blocks.size()) {
    const std::size_t at = upload->next++;
    auto ref = co_await upload_block(env, client, upload, upload->blocks[at]);
    if (ref) {
      upload->refs[at] = *ref;
    } else if (!upload->error) {
      upload->error = ref.error();
    }
  }
  if (--upload->running == 0) upload->finished->set(upload->error);
}

Task<std::vector<ChunkRef>> upload_blocks(Env& env, ClusterClient& client, CachePin copy,
                                          const CommitPlan& plan,
                                          std::vector<std::uint64_t>& digests) {
  auto upload = std::make_shared<Upload>();
  upload->copy = std::move(copy);
  upload->blocks = plan.blocks;
  upload->refs.resize(plan.blocks.size());
  upload->digests = digests;
  upload->running = std::min(kUploadsParallel, plan.blocks.size());
  if (upload->running == 0) co_return std::vector<ChunkRef>{};
  const auto executor = co_await asio::this_coro::executor;
  upload->finished = std::make_shared<Signal>(executor);
  TaskGroup workers(executor);
  for (std::size_t i = upload->running; i > 0; --i) {
    workers.spawn("upload", upload_worker(env, client, upload));
  }
  const auto error = co_await upload->finished->wait();
  if (error) {
    workers.cancel_all();
    co_await workers.join();
    co_return error;
  }
  co_await workers.join();
  digests = std::move(upload->digests);
  co_return std::move(upload->refs);
}

// The inline form: reads all, and makes the scan say what was really read. Content that outgrew the
// inline limit since the scan is kRetry.
Result<Buffer> read_inline(CachedCopy& copy, ChangeScan& scan) {
  auto bytes = copy.read_all(kInlineBytesMax);
  if (!bytes)
    return bytes.error() == make_error_code(Errc::kTooLarge) ? Result<Buffer>(Errc::kRetry) : bytes;
  scan.size_bytes = bytes->size();
  scan.digests.clear();
  if (!bytes->empty()) scan.digests.push_back(block_digest(bytes->view()));
  return bytes;
}

std::vector<ChunkId> chunks_after(const std::vector<ChunkId>& base, const CommitPlan& plan,
                                  const std::vector<ChunkRef>& refs, std::uint64_t size_bytes) {
  std::vector<ChunkId> out;
  if (!plan.whole) out = base;
  out.resize(block_count_of(size_bytes));
  for (const auto& ref : refs) {
    if (ref.index < out.size()) out[ref.index] = ref.id;
  }
  return out;
}

CommitOp op_of(const CommitInput& input) {
  CommitOp op;
  op.inode = input.copy->inode();
  op.base = input.copy->base();
  op.mtime = input.mtime;
  op.atime = input.atime;
  op.clear_suid_sgid = input.clear_suid_sgid;
  op.opened = input.opened;
  // For people: of a path that no open(2) would take, the end.
  const auto& hint = input.path_hint;
  op.path_hint = hint.size() <= kPathMax ? hint : hint.substr(hint.size() - kPathMax);
  return op;
}

Task<MutationReply> send_patches(ClusterClient& client, const CommitInput& input,
                                 const DirtyBytes& dirty) {
  CommitOp op = op_of(input);
  op.kind = CommitOp::Kind::kPatches;
  op.size_bytes = dirty.size_bytes;
  for (const ByteRange& range : dirty.ranges) {
    op.patches.push_back(
        {range.begin_bytes, static_cast<std::uint32_t>(range.end_bytes - range.begin_bytes)});
  }
  co_return co_await client.mutate(input.cred, std::move(op), dirty.bytes, input.under);
}

/// The commit of a few written bytes; none if it is one for chunks. A stale base is the caller's to
/// meet, with the whole content.
Task<std::optional<MutationReply>> commit_patches(ClusterClient& client, const CommitInput& input) {
  const CachePin copy = input.copy;
  std::optional<MutationReply> none;
  FM_CO_TRY(const auto dirty, copy->dirty_bytes(kPatchLimits));
  if (!dirty) co_return none;
  auto sent = co_await send_patches(client, input, *dirty);
  // Too large: the file has as many patches as it may have, until they are folded. A patch counts
  // as if it filled a hole: a full quota takes the chunk that it changes.
  const bool by_chunks = !sent && (sent.error() == make_error_code(Errc::kTooLarge) ||
                                   sent.error() == make_error_code(Errc::kRetry) ||
                                   sent.error() == from_errno(EDQUOT));
  if (by_chunks) co_return none;
  if (!sent) co_return sent.error();
  FM_CO_CHECK(copy->note_patched(sent->version, *dirty));
  co_return std::optional(std::move(*sent));
}

/// Of the nodes' chunks (serverd/meta/ops/commit.cc): whole ones but for the end of the file, no
/// holes.
std::uint64_t allocated_after(const ChangeScan& scan) {
  std::uint64_t bytes = 0;
  for (std::size_t block = 0; block < scan.digests.size(); ++block)
    if (scan.digests[block] != kHoleDigest)
      bytes += std::min(kBlockSizeBytes, scan.size_bytes - block * kBlockSizeBytes);
  return bytes;
}

/// EDQUOT before the nodes have stored what no quota leaves room for.
Task<void> check_room(const CommitInput& input, const CommitPlan& plan, const ChangeScan& scan) {
  constexpr std::size_t kBlocksUnasked = 4;
  if (!input.allocated_max || plan.blocks.size() <= kBlocksUnasked) co_return fermata::Status{};
  FM_CO_TRY(const std::uint64_t max, co_await input.allocated_max());
  if (allocated_after(scan) > max) co_return from_errno(EDQUOT);
  co_return fermata::Status{};
}

struct Attempt {
  MutationReply reply;
  std::vector<ChunkId> chunks;
};

Task<Attempt> send(Env& env, ClusterClient& client, const CommitInput& input, ChangeScan& scan,
                   bool replace) {
  const CachePin copy = input.copy;
  const auto base_chunks = copy->chunks();
  const CommitPlan plan = plan_commit(scan, base_chunks, replace);
  CommitOp op = op_of(input);
  op.whole = plan.whole;
  op.replace_newer = replace;
  Attempt out;
  Buffer payload;
  if (plan.kind == CommitPlan::Kind::kInline) {
    op.kind = CommitOp::Kind::kInline;
    auto shared_scan = std::make_shared<ChangeScan>(scan);
    const auto job = [copy, shared_scan] { return read_inline(*copy, *shared_scan); };
    FM_CO_TRY(payload, co_await blocking<Buffer>(env, job));
    scan = std::move(*shared_scan);
  } else if (input.make) {
    co_return Errc::kTooLarge;
  } else {
    op.kind = CommitOp::Kind::kChunks;
    FM_CO_CHECK(co_await check_room(input, plan, scan));
    FM_CO_TRY(auto refs, co_await upload_blocks(env, client, copy, plan, scan.digests));
    out.chunks = chunks_after(base_chunks, plan, refs, scan.size_bytes);
    if (plan.whole) std::erase_if(refs, [](const ChunkRef& ref) { return !ref.id; });
    std::string records;
    append_chunk_records(records, refs);
    payload = Buffer::copy_of(as_bytes(records));
  }
  op.size_bytes = scan.size_bytes;
  if (input.make) {
    Mutation both = MakeFileOp{*input.make, op};
    FM_CO_TRY(out.reply,
              co_await client.mutate(input.cred, std::move(both), std::move(payload), input.under));
    co_return out;
  }
  FM_CO_TRY(out.reply,
            co_await client.mutate(input.cred, std::move(op), std::move(payload), input.under));
  co_return out;
}

}  // namespace

CommitPlan plan_commit(const ChangeScan& scan, const std::vector<ChunkId>& base_chunks,
                       bool force_whole) {
  CommitPlan plan;
  if (!scan.modified() && !force_whole) return plan;
  if (scan.size_bytes <= kInlineBytesMax) {
    plan.kind = CommitPlan::Kind::kInline;
    plan.whole = true;
    return plan;
  }
  plan.kind = CommitPlan::Kind::kChunks;
  plan.whole = force_whole || base_chunks.empty();
  const std::uint64_t count = block_count_of(scan.size_bytes);
  std::vector<bool> changed(count, false);
  for (const auto index : scan.changed) {
    if (index < count) changed[index] = true;
  }
  using Block = CommitPlan::Block;
  for (std::uint64_t i = 0; i < count; ++i) {
    Block block{static_cast<std::uint32_t>(i), Block::Source::kRead, {}};
    const bool hole = i < scan.digests.size() && scan.digests[i] == kHoleDigest;
    if (!plan.whole) {
      if (!changed[i]) continue;
      if (hole) block.source = Block::Source::kHole;
    } else if (hole) {
      continue;
    } else if (!changed[i] && i < base_chunks.size() && base_chunks[i] &&
               base_chunks[i] != kPatchedChunk) {
      block.source = Block::Source::kKnown;
      block.known = base_chunks[i];
    }
    plan.blocks.push_back(block);
  }
  return plan;
}

Task<CommitOutcome> commit_copy(Env& env, ClusterClient& client, CommitInput input) {
  const CachePin copy = input.copy;
  CommitOutcome out;
  bool replace = false;
  Result<std::optional<MutationReply>> patched = std::optional<MutationReply>();
  if (!input.make) patched = co_await commit_patches(client, input);
  if (patched && *patched) {
    out.changed = true;
    out.reply = std::move(**patched);
    co_return out;
  }
  if (!patched) {
    const auto error = patched.error();
    const bool stale = error == make_error_code(Errc::kStaleBase);
    if (!stale || !input.may_replace) co_return error;
    replace = true;
  }
  for (int attempt = 1;; ++attempt) {
    const auto look = [copy] { return copy->changed_blocks(); };
    FM_CO_TRY(auto scan, co_await blocking<ChangeScan>(env, look));
    const auto after = input.after;
    if (!scan.modified() && !replace) {
      const Version base = copy->base();
      const auto keep = [copy, base, scan, after] {
        return copy->note_clean(base, scan, copy->chunks(), after);
      };
      FM_CO_CHECK(co_await blocking<void>(env, keep));
      co_return out;
    }
    auto sent = co_await send(env, client, input, scan, replace);
    if (!sent) {
      const auto error = sent.error();
      const bool again = attempt < kAttemptsMax && (error == make_error_code(Errc::kMissingChunk) ||
                                                    error == make_error_code(Errc::kRetry));
      if (again) continue;
      if (error == make_error_code(Errc::kStaleBase) && input.may_replace && !replace) {
        replace = true;
        continue;
      }
      co_return error;
    }
    out.changed = true;
    out.replaced = replace;
    out.reply = std::move(sent->reply);
    const Version version = out.reply.version;
    auto chunks = std::move(sent->chunks);
    const auto job = [copy, version, scan, chunks, after] {
      return copy->note_clean(version, scan, chunks, after);
    };
    FM_CO_CHECK(co_await blocking<void>(env, job));
    co_return out;
  }
}

}  // namespace fermata::mountd
