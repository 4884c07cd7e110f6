#include "mountd/fs/fetch.h"

#include <algorithm>

#include "common/base/checksum.h"
#include "common/io/task_group.h"
#include "mountd/fs/signal.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {

constexpr std::size_t kFetchesParallel = 4;  // each holds one chunk in memory

struct Fetch {
  CachePin copy;
  std::shared_ptr<const FileContent> content;
  std::shared_ptr<FillJob> job;
  std::uint64_t size_bytes = 0;
  std::vector<ChunkId> ids;   // per block; none is a hole
  std::vector<bool> patched;  // per block: patches lie over it
  std::vector<bool> taken;    // per block: fetched or being so
  std::size_t next = 0;
  std::size_t running = 0;
  std::error_code error;
  std::shared_ptr<Signal> finished;

  // The next block to fetch; none when all are taken.
  std::optional<std::uint32_t> take() {
    {
      MutexLock lock(job->mutex);
      while (!job->urgent.empty()) {
        const std::uint32_t index = job->urgent.back();
        job->urgent.pop_back();
        if (index < taken.size() && !taken[index]) {
          taken[index] = true;
          return index;
        }
      }
    }
    while (next < taken.size() && taken[next]) ++next;
    if (next == taken.size()) return std::nullopt;
    taken[next] = true;
    return static_cast<std::uint32_t>(next++);
  }
};

using Patches = std::vector<std::pair<Patch, Buffer>>;

/// True for the blocks that patches lie over.
void mark_patched(std::vector<bool>& blocks, const Patches& patches) {
  for (const auto& [patch, bytes] : patches) {
    if (patch.size_bytes == 0) continue;
    const std::uint64_t last = (patch.offset_bytes + patch.size_bytes - 1) / kBlockSizeBytes;
    for (auto i = patch.offset_bytes / kBlockSizeBytes; i <= last && i < blocks.size(); ++i) {
      blocks[i] = true;
    }
  }
}

/// What a copy of a version with these `ids` and `patches` is to remember of them.
PatchedBlocks patched_blocks_of(const std::vector<ChunkId>& ids, const Patches& patches) {
  PatchedBlocks blocks;
  for (const auto& [patch, bytes] : patches) {
    const auto index = static_cast<std::uint32_t>(patch.offset_bytes / kBlockSizeBytes);
    if (index >= ids.size()) continue;
    PatchedBlock& block = blocks.try_emplace(index, PatchedBlock{ids[index], 0}).first->second;
    block.patches = with_patch(block.patches, patch.offset_bytes, bytes.view());
  }
  return blocks;
}

/// Block `index` of a version that was said to be chunk `id`. Should that be gone, patches have
/// been folded into another since, which reads the same with them laid over it once more.
Task<Buffer> get_block(ClusterClient& client, InodeId inode, Version version, std::uint32_t index,
                       ChunkId id) {
  auto bytes = co_await client.get_chunk(id);
  if (bytes || bytes.error() != make_error_code(Errc::kCorruptChunk)) co_return bytes;
  const Credentials nobody;
  const auto now = co_await client.open(nobody, inode, Version{});
  if (!now || now->attr.version != version) co_return bytes;
  for (const ChunkRef& ref : now->content.chunks) {
    if (ref.index == index && ref.id != id) co_return co_await client.get_chunk(ref.id);
  }
  co_return bytes;
}

Task<void> fetch_block(Env& env, ClusterClient& client, std::shared_ptr<Fetch> fetch,
                       std::uint32_t index) {
  const std::uint64_t offset = std::uint64_t{index} * kBlockSizeBytes;
  const std::uint64_t size = std::min<std::uint64_t>(kBlockSizeBytes, fetch->size_bytes - offset);
  const CachePin copy = fetch->copy;
  const ChunkId id = fetch->ids[index];
  if (!id && !fetch->patched[index]) co_return copy->fill_hole(offset, size);
  Buffer bytes;
  if (id) {
    FM_CO_TRY(bytes, co_await get_block(client, copy->inode(), copy->base(), index, id));
  }
  if (bytes.size() != size || fetch->patched[index]) {
    // A chunk of a file that was cut or grew since it was written; patches need bytes of our own.
    Buffer whole = Buffer::allocate(size);
    const auto to = whole.mutable_view();
    const std::size_t have = std::min<std::size_t>(bytes.size(), size);
    if (have != 0) std::memcpy(to.data(), bytes.view().data(), have);
    std::memset(to.data() + have, 0, size - have);
    apply_patches(to, offset, fetch->content->patches);
    bytes = std::move(whole);
  }
  const auto job = [copy, offset, bytes] { return copy->write_fill(offset, bytes.view()); };
  co_return co_await blocking<void>(env, job);
}

asio::awaitable<void> fetch_worker(Env& env, ClusterClient& client, std::shared_ptr<Fetch> fetch) {
  while (!fetch->error) {
    const auto index = fetch->take();
    if (!index) break;
    auto status = co_await fetch_block(env, client, fetch, *index);
    if (!status && !fetch->error) fetch->error = status.error();
  }
  if (--fetch->running == 0) fetch->finished->set(fetch->error);
}

Task<void> fetch_chunks(Env& env, ClusterClient& client, CachePin copy,
                        std::shared_ptr<const FileContent> content, std::uint64_t size_bytes,
                        std::shared_ptr<FillJob> job) {
  auto fetch = std::make_shared<Fetch>();
  const std::uint64_t count = block_count_of(size_bytes);
  fetch->copy = std::move(copy);
  fetch->content = content;
  fetch->job = std::move(job);
  fetch->size_bytes = size_bytes;
  fetch->ids.resize(count);
  fetch->patched.resize(count);
  fetch->taken.resize(count);
  for (const auto& ref : content->chunks) {
    if (ref.index < count) fetch->ids[ref.index] = ref.id;
  }
  mark_patched(fetch->patched, content->patches);
  const auto executor = co_await asio::this_coro::executor;
  fetch->running = std::min<std::size_t>(kFetchesParallel, count);
  fetch->finished = std::make_shared<Signal>(executor);
  TaskGroup workers(executor);
  for (std::size_t i = fetch->running; i > 0; --i) {
    workers.spawn("fetch", fetch_worker(env, client, fetch));
  }
  if (count == 0) fetch->finished->set({});
  const auto error = co_await fetch->finished->wait();
  if (error) workers.cancel_all();
  co_await workers.join();
  if (error) co_return error;
  const CachePin filled = fetch->copy;
  filled->set_patched_blocks(patched_blocks_of(fetch->ids, content->patches));
  auto chunks = fetch->ids;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    if (fetch->patched[i]) chunks[i] = kPatchedChunk;
  }
  const auto finish = [filled, chunks = std::move(chunks)] { return filled->finish_fill(chunks); };
  co_return co_await blocking<void>(env, finish);
}

}  // namespace

void apply_patches(MutableByteView block, std::uint64_t block_offset_bytes,
                   const Patches& patches) {
  const std::uint64_t block_end = block_offset_bytes + block.size();
  for (const auto& [patch, bytes] : patches) {
    const std::uint64_t begin = std::max(patch.offset_bytes, block_offset_bytes);
    const std::uint64_t end = std::min(patch.offset_bytes + bytes.size(), block_end);
    if (begin >= end) continue;
    std::memcpy(block.data() + (begin - block_offset_bytes),
                bytes.view().data() + (begin - patch.offset_bytes), end - begin);
  }
}

Task<void> fetch_content(Env& env, ClusterClient& client, CachePin copy,
                         std::shared_ptr<const FileContent> content, std::uint64_t size_bytes,
                         std::shared_ptr<FillJob> job) {
  Status status;
  if (content->kind == fermata::OpenReply::Content::kInline) {
    const auto fill = [copy, content]() -> Status {
      if (!content->inline_bytes.empty()) {
        FM_CHECK(copy->write_fill(0, content->inline_bytes.view()));
      }
      return copy->finish_fill({});
    };
    status = co_await blocking<void>(env, fill);
  } else {
    status = co_await fetch_chunks(env, client, copy, content, size_bytes, job);
  }
  if (!status) copy->fail_fill(status.error());
  std::vector<std::shared_ptr<Signal>> waiters;
  {
    MutexLock lock(job->mutex);
    job->done = true;
    job->result = status ? std::error_code{} : status.error();
    waiters.swap(job->waiters);
  }
  for (const auto& waiter : waiters) waiter->set(status ? std::error_code{} : status.error());
  co_return status;
}

namespace {

/// What an update in place writes, and what the copy's blocks must then be.
struct Update {
  Version version;
  std::vector<ChunkId> ids;  // per block; none is a hole
  std::vector<std::uint64_t> digests;
  std::vector<bool> patched;  // per block: patches lie over it
};

/// Of a file of `size_bytes`: only the last block is shorter.
std::uint64_t size_of_block(std::uint64_t size_bytes, std::uint64_t index) {
  return std::min<std::uint64_t>(kBlockSizeBytes, size_bytes - index * kBlockSizeBytes);
}

/// Per block; none is a hole, or inline.
std::vector<ChunkId> chunk_ids_of(const FileContent& content, std::uint64_t count) {
  std::vector<ChunkId> ids;
  if (content.kind != fermata::OpenReply::Content::kChunks) return ids;
  ids.resize(count);
  for (const auto& ref : content.chunks) {
    if (ref.index < count) ids[ref.index] = ref.id;
  }
  return ids;
}

/// How many of the patches over block `index` are in it already, if it was `before` and what is to
/// come begins with just that.
std::optional<std::size_t> patches_in(const PatchedBlock& before, ChunkId id, std::uint64_t index,
                                      const Patches& patches) {
  if (before.base != id) return std::nullopt;
  std::uint64_t so_far = 0;
  std::size_t count = 0;
  if (so_far == before.patches) return count;
  for (const auto& [patch, bytes] : patches) {
    if (patch.offset_bytes / kBlockSizeBytes != index) continue;
    so_far = with_patch(so_far, patch.offset_bytes, bytes.view());
    ++count;
    if (so_far == before.patches) return count;
  }
  return std::nullopt;
}

/// What the copy has of block `index`, if that only lacks patches.
struct Start {
  Buffer bytes;
  std::size_t patches = 0;  ///< that are in it
};
Result<std::optional<Start>> start_of(CachedCopy& copy, const Update& update, std::uint32_t index,
                                      std::optional<PatchedBlock> before, const Patches& patches) {
  const std::optional<Start> none;
  FM_TRY(auto bytes, copy.clean_block(index));
  if (!bytes) return none;
  const ChunkId id = update.ids[index];
  if (before) {
    const auto count = patches_in(*before, id, index, patches);
    if (count) return std::optional(Start{std::move(*bytes), *count});
  }
  // Folded meanwhile.
  if (!id || chunk_id_of(bytes->view()) != id) return none;
  return std::optional(Start{std::move(*bytes), 0});
}

/// Without its chunk, where the copy has all but some patches: writes those. False where it lacks
/// more.
Task<bool> patch_block(Env& env, CachePin copy, std::shared_ptr<const FileContent> content,
                       std::shared_ptr<Update> update, std::uint64_t index,
                       std::optional<PatchedBlock> before) {
  const auto job = [=]() -> Result<bool> {
    const auto block = static_cast<std::uint32_t>(index);
    FM_TRY(auto start, start_of(*copy, *update, block, before, content->patches));
    if (!start) return false;
    const std::uint64_t offset = index * kBlockSizeBytes;
    const MutableByteView to = start->bytes.mutable_view();
    std::size_t skip = start->patches;
    for (const auto& [patch, bytes] : content->patches) {
      if (patch.offset_bytes / kBlockSizeBytes != index) continue;
      if (skip > 0) {
        --skip;
        continue;
      }
      if (patch.offset_bytes - offset + bytes.size() > to.size()) return Errc::kBadMessage;
      FM_CHECK(copy->write_at(patch.offset_bytes, bytes.view()));
      std::memcpy(to.data() + (patch.offset_bytes - offset), bytes.view().data(), bytes.size());
    }
    update->digests[index] = block_digest(to);
    return true;
  };
  co_return co_await blocking<bool>(env, job);
}

/// The bytes of block `index` of a version, put together; `id` as chunk_ids_of() has it.
Task<Buffer> block_of(ClusterClient& client, InodeId inode, Version version,
                      std::shared_ptr<const FileContent> content, ChunkId id, std::uint64_t index,
                      std::uint64_t size) {
  const std::uint64_t offset = index * kBlockSizeBytes;
  Buffer whole = Buffer::allocate(size);
  const auto to = whole.mutable_view();
  std::memset(to.data(), 0, size);
  if (content->kind == fermata::OpenReply::Content::kInline) {
    const auto bytes = content->inline_bytes.view();
    std::memcpy(to.data(), bytes.data() + offset,
                std::min<std::size_t>(size, bytes.size() - offset));
  } else if (id) {
    const auto block = static_cast<std::uint32_t>(index);
    FM_CO_TRY(const Buffer bytes, co_await get_block(client, inode, version, block, id));
    std::memcpy(to.data(), bytes.view().data(), std::min<std::size_t>(size, bytes.size()));
  }
  apply_patches(to, offset, content->patches);
  co_return whole;
}

Task<void> update_block(Env& env, ClusterClient& client, CachePin copy,
                        std::shared_ptr<const FileContent> content, std::shared_ptr<Update> update,
                        std::uint64_t index, std::uint64_t size) {
  const std::uint64_t offset = index * kBlockSizeBytes;
  const ChunkId id = update->ids.empty() ? ChunkId{} : update->ids[index];
  const InodeId inode = copy->inode();
  FM_CO_TRY(const Buffer whole,
            co_await block_of(client, inode, update->version, content, id, index, size));
  update->digests[index] = block_digest(whole.view());
  const bool hole = update->digests[index] == kHoleDigest;
  const auto write = [copy, offset, size, whole, hole]() -> fermata::Status {
    return hole ? copy->punch(offset, size) : copy->write_at(offset, whole.view());
  };
  co_return co_await blocking<void>(env, write);
}

fermata::Status finish_update(CachedCopy& copy, const Attr& attr, Update& update,
                              const Patches& patches) {
  FM_TRY(auto scan, copy.changed_blocks());
  for (std::size_t i = 0; i < std::min(scan.digests.size(), update.digests.size()); ++i) {
    // Nobody has written there, or it would have been looked at.
    if (scan.digests[i] == kStaleDigest) scan.digests[i] = update.digests[i];
  }
  const bool as_written = scan.size_bytes == attr.size_bytes && scan.digests == update.digests;
  if (!as_written) {
    // Somebody wrote meanwhile, without the lock. What the version is stays the measure.
    FM_CHECK(copy.mark_maybe_dirty(CachedCopy::Writes::kUntracked));
    scan.size_bytes = attr.size_bytes;
    scan.digests = update.digests;
    scan.ctime_ns = 0;
  }
  copy.set_patched_blocks(patched_blocks_of(update.ids, patches));
  auto chunks = std::move(update.ids);
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    if (update.patched[i]) chunks[i] = kPatchedChunk;
  }
  return copy.note_clean(attr.version, scan, std::move(chunks), CachedCopy::After::kStillWritable);
}

}  // namespace

Task<void> update_copy(Env& env, ClusterClient& client, CachePin copy, Attr attr,
                       std::shared_ptr<const FileContent> content) {
  const CopyMeta before = copy->meta();
  const PatchedBlocks patched_before = copy->patched_blocks();
  const bool known = !copy->updating();  // an update that was cut short left anything
  const auto begin = [copy, attr]() -> fermata::Status {
    FM_CHECK(copy->begin_update());
    FM_TRY(const auto backing, copy->stat());
    if (backing.size_bytes == attr.size_bytes) return {};
    return copy->truncate(attr.size_bytes);
  };
  FM_CO_CHECK(co_await blocking<void>(env, begin));
  const std::uint64_t count = block_count_of(attr.size_bytes);
  const auto update = std::make_shared<Update>();
  update->version = attr.version;
  update->patched.resize(count);
  mark_patched(update->patched, content->patches);
  update->digests.assign(count, kHoleDigest);
  update->ids = chunk_ids_of(*content, count);
  for (std::uint64_t index = 0; index < count; ++index) {
    const std::uint64_t size = size_of_block(attr.size_bytes, index);
    const bool comparable = known && index < before.chunks.size() && index < update->ids.size() &&
                            index < before.clean.digests.size() &&
                            size_of_block(before.clean.size_bytes, index) == size;
    if (comparable && !update->patched[index] && before.chunks[index] == update->ids[index]) {
      update->digests[index] = before.clean.digests[index];
      continue;
    }
    if (comparable) {
      std::optional<PatchedBlock> was;
      const auto found = patched_before.find(static_cast<std::uint32_t>(index));
      if (before.chunks[index] != kPatchedChunk) {
        was = PatchedBlock{before.chunks[index], 0};
      } else if (found != patched_before.end()) {
        was = found->second;
      }
      const bool worth = before.chunks[index] == kPatchedChunk || update->patched[index];
      if (worth) {
        FM_CO_TRY(const bool patched, co_await patch_block(env, copy, content, update, index, was));
        if (patched) continue;
      }
    }
    FM_CO_CHECK(co_await update_block(env, client, copy, content, update, index, size));
  }
  const auto finish = [copy, attr, update, content] {
    return finish_update(*copy, attr, *update, content->patches);
  };
  co_return co_await blocking<void>(env, finish);
}

Task<bool> holds_content(Env& env, ClusterClient& client, CachePin copy, Attr attr,
                         std::shared_ptr<const FileContent> content) {
  FM_CO_TRY(const auto backing, copy->stat());
  if (backing.size_bytes != attr.size_bytes) co_return false;
  const std::uint64_t count = block_count_of(attr.size_bytes);
  const auto ids = chunk_ids_of(*content, count);
  std::vector<bool> patched(count);
  mark_patched(patched, content->patches);
  for (std::uint64_t index = 0; index < count; ++index) {
    const std::uint64_t offset = index * kBlockSizeBytes;
    const std::uint64_t size = size_of_block(attr.size_bytes, index);
    const auto read = [copy, offset, size]() -> Result<Buffer> {
      Buffer bytes = Buffer::allocate(size);
      FM_TRY(const std::size_t got, copy->read_at(offset, bytes.mutable_view()));
      return bytes.slice(0, got);
    };
    FM_CO_TRY(const Buffer here, co_await blocking<Buffer>(env, read));
    if (here.size() != size) co_return false;
    const ChunkId id = ids.empty() ? ChunkId{} : ids[index];
    if (id && !patched[index] && chunk_id_of(here.view()) == id) continue;
    FM_CO_TRY(const Buffer there,
              co_await block_of(client, attr.inode, attr.version, content, id, index, size));
    if (std::memcmp(here.view().data(), there.view().data(), size) != 0) co_return false;
  }
  co_return true;
}

}  // namespace fermata::mountd
