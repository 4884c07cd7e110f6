// close and fsync: a file's new version.
//
// Content is empty, inline, or chunks with patches over them. A stored patch lies within one chunk,
// so a chunk that is replaced drops it whole. A chunk's bytes may end before its MiB does (the
// file's end, once): zeros follow, so a file that grows needs no new chunk. One that shrinks into
// the middle of a chunk must send that chunk anew, or old bytes would come back when it grows.
#include <algorithm>

#include "common/base/limits.h"
#include "common/wire/chunk_records.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {
namespace {

constexpr std::uint64_t kChunk = kChunkSizeBytes;

std::uint32_t chunk_of(std::uint64_t offset_bytes) {
  return static_cast<std::uint32_t>(offset_bytes / kChunk);
}
std::uint32_t chunk_count(std::uint64_t size_bytes) {
  return static_cast<std::uint32_t>((size_bytes + kChunk - 1) / kChunk);
}

struct Verdict {
  std::error_code refusal;
};

/// A file being committed: its record so far, and the shape of the request.
struct Commit {
  Txn& txn;
  const CommitOp& op;
  const std::string& payload;
  InodeRecord& record;

  Status drop_inline() {
    if (record.content == ContentKind::kInline) FM_CHECK(txn.erase_inline(op.inode));
    return {};
  }

  Status put_chunk(std::uint32_t index, const ChunkId& id) {
    FM_TRY(const auto old, txn.chunk(op.inode, index));
    if (old && *old == id) return {};
    if (!old && !id) return {};
    if (!id) {
      --record.chunks;
      return txn.erase_chunk(op.inode, index);
    }
    if (!old) ++record.chunks;
    return txn.put_chunk(op.inode, index, id);
  }

  /// Removes chunks from `first` on, except those in `keep` (sorted).
  Status drop_chunks(std::uint32_t first, const std::vector<ChunkRef>& keep) {
    if (record.chunks == 0) return {};
    const std::string end = prefix_end(key_of(op.inode));
    FM_TRY(const auto chunks, txn.scan(Family::kChunks, chunk_key(op.inode, first), end));
    auto kept = keep.begin();
    for (const auto& chunk : chunks) {
      const std::uint32_t index = chunk_index_in(chunk.key);
      while (kept != keep.end() && kept->index < index) ++kept;
      if (kept != keep.end() && kept->index == index) continue;
      FM_CHECK(txn.erase_chunk(op.inode, index));
      --record.chunks;
    }
    return {};
  }

  /// Drops patches in the chunks of `replaced` (sorted) or all of them, and what lies beyond the
  /// size.
  Status drop_patches(const std::vector<ChunkRef>& replaced, bool all) {
    // A patch lies within the size: only a smaller one cuts some.
    const bool cuts = op.size_bytes < record.size_bytes;
    if (record.patches == 0 || (replaced.empty() && !all && !cuts)) return {};
    FM_TRY(const auto patches, txn.scan_prefix(Family::kPatches, key_of(op.inode)));
    for (const auto& stored : patches) {
      FM_TRY(const PatchRecord patch, decode_patch(stored.value));
      const std::uint32_t index = chunk_of(patch.offset_bytes);
      const auto at =
          std::lower_bound(replaced.begin(), replaced.end(), index,
                           [](const ChunkRef& ref, std::uint32_t i) { return ref.index < i; });
      const auto size = static_cast<std::uint32_t>(patch.bytes.size());
      if (all || patch.offset_bytes >= op.size_bytes ||
          (at != replaced.end() && at->index == index)) {
        FM_CHECK(txn.replace(Family::kPatches, stored.key, std::nullopt));
        --record.patches;
        record.patch_bytes -= size;
      } else if (patch.offset_bytes + size > op.size_bytes) {
        const auto left = static_cast<std::uint32_t>(op.size_bytes - patch.offset_bytes);
        FM_CHECK(txn.replace(Family::kPatches, stored.key,
                             encode_patch(txn.index(), patch.offset_bytes,
                                          std::string_view(patch.bytes).substr(0, left))));
        record.patch_bytes -= size - left;
      }
    }
    return {};
  }

  /// True if the size cuts through a stored chunk that keeps its bytes.
  Result<bool> cuts_chunk(const std::vector<ChunkRef>& replaced) {
    if (op.size_bytes >= record.size_bytes || op.size_bytes % kChunk == 0) return false;
    const std::uint32_t last = chunk_of(op.size_bytes);
    if (!replaced.empty() && replaced.back().index == last) return false;
    FM_TRY(const auto chunk, txn.chunk(op.inode, last));
    return chunk.has_value();
  }

  Status count_allocated() {
    if (record.content == ContentKind::kInline) {
      record.allocated_bytes = op.size_bytes;
      return {};
    }
    std::uint64_t bytes = record.chunks * kChunk;
    if (op.size_bytes % kChunk != 0 && record.chunks > 0) {
      FM_TRY(const auto last, txn.chunk(op.inode, chunk_of(op.size_bytes)));
      if (last) bytes -= kChunk - op.size_bytes % kChunk;
    }
    record.allocated_bytes = std::min(bytes + record.patch_bytes, op.size_bytes);
    return {};
  }

  Result<Verdict> put_inline();
  Result<Verdict> put_chunks();
  Result<Verdict> put_patches();
  Result<Verdict> patch_inline();
};

Result<Verdict> refused(std::errc code) { return Verdict{std::make_error_code(code)}; }
Result<Verdict> refused(Errc code) { return Verdict{fermata::make_error_code(code)}; }
Result<Verdict> accepted() { return Verdict{}; }

Result<Verdict> Commit::put_inline() {
  if (op.size_bytes > kInlineBytesMax) return refused(Errc::kTooLarge);
  if (payload.size() != op.size_bytes) return refused(Errc::kBadMessage);
  FM_CHECK(drop_chunks(0, {}));
  FM_CHECK(drop_patches({}, true));
  if (payload.empty()) {
    FM_CHECK(drop_inline());
    record.content = ContentKind::kEmpty;
  } else {
    FM_CHECK(txn.put_inline(op.inode, payload));
    record.content = ContentKind::kInline;
  }
  return accepted();
}

Result<Verdict> Commit::put_chunks() {
  const auto parsed = parse_chunk_records(as_bytes(payload));
  if (!parsed) return refused(Errc::kBadMessage);
  const std::vector<ChunkRef>& refs = *parsed;
  if (!refs.empty() && refs.back().index >= chunk_count(op.size_bytes))
    return refused(Errc::kBadMessage);
  if (!op.whole) {
    const bool replaces_first = !refs.empty() && refs.front().index == 0;
    if (record.content == ContentKind::kInline && op.size_bytes > 0 && !replaces_first)
      return refused(std::errc::invalid_argument);
    FM_TRY(const bool cuts, cuts_chunk(refs));
    if (cuts) return refused(std::errc::invalid_argument);
  }
  FM_CHECK(drop_inline());
  if (op.whole) {
    FM_CHECK(drop_chunks(0, refs));
  } else {
    FM_CHECK(drop_chunks(chunk_count(op.size_bytes), {}));
  }
  for (const ChunkRef& ref : refs) FM_CHECK(put_chunk(ref.index, ref.id));
  FM_CHECK(drop_patches(refs, op.whole));
  record.content = op.size_bytes == 0 ? ContentKind::kEmpty : ContentKind::kChunks;
  return accepted();
}

Result<Verdict> Commit::patch_inline() {
  std::string bytes;
  if (record.content == ContentKind::kInline) {
    FM_TRY(bytes, txn.inline_content(op.inode));
  }
  bytes.resize(op.size_bytes);
  std::size_t at = 0;
  for (const Patch& patch : op.patches) {
    bytes.replace(patch.offset_bytes, patch.size_bytes, payload, at, patch.size_bytes);
    at += patch.size_bytes;
  }
  if (bytes.empty()) {
    FM_CHECK(drop_inline());
    record.content = ContentKind::kEmpty;
  } else {
    FM_CHECK(txn.put_inline(op.inode, bytes));
    record.content = ContentKind::kInline;
  }
  return accepted();
}

Result<Verdict> Commit::put_patches() {
  std::uint64_t total = 0;
  for (const Patch& patch : op.patches) {
    if (patch.size_bytes == 0 || patch.offset_bytes > op.size_bytes ||
        op.size_bytes - patch.offset_bytes < patch.size_bytes)
      return refused(Errc::kBadMessage);
    total += patch.size_bytes;
  }
  if (total != payload.size()) return refused(Errc::kBadMessage);
  if (op.whole) return refused(std::errc::invalid_argument);
  if (record.content != ContentKind::kChunks && op.size_bytes <= kInlineBytesMax)
    return patch_inline();
  if (record.content == ContentKind::kInline) return refused(Errc::kTooLarge);
  FM_TRY(const bool cuts, cuts_chunk({}));
  if (cuts) return refused(Errc::kTooLarge);
  if (op.size_bytes < record.size_bytes) FM_CHECK(drop_chunks(chunk_count(op.size_bytes), {}));
  FM_CHECK(drop_patches({}, false));
  if (total > kPatchBytesMax || record.patch_bytes + total > kPatchBytesMax)
    return refused(Errc::kTooLarge);
  std::uint32_t number = 0;
  std::size_t at = 0;
  for (const Patch& patch : op.patches) {
    for (std::uint64_t begin = patch.offset_bytes, end = begin + patch.size_bytes; begin < end;) {
      const std::uint64_t piece = std::min(end, (chunk_of(begin) + 1) * kChunk) - begin;
      if (record.patches == kPatchesMax) return refused(Errc::kTooLarge);
      FM_CHECK(
          txn.put_patch(op.inode, number++, begin, std::string_view(payload).substr(at, piece)));
      ++record.patches;
      record.patch_bytes += static_cast<std::uint32_t>(piece);
      begin += piece;
      at += piece;
    }
  }
  record.content = op.size_bytes == 0 ? ContentKind::kEmpty : ContentKind::kChunks;
  return accepted();
}

/// The name of a session's host, also of one that has ended.
Result<std::string> host_of(Txn& txn, SessionId session) {
  FM_TRY(const auto value, txn.get(Family::kHosts, key_of(session)));
  if (!value) return std::string();
  return decode_text(*value);
}

Status list_conflict(OpContext& context, const CommitOp& op, const InodeRecord& replaced) {
  Txn& txn = context.txn;
  Conflict conflict;
  conflict.inode = op.inode;
  conflict.index = txn.index();
  conflict.base = op.base;
  conflict.replaced = replaced.version;
  conflict.writer = context.command.session;
  conflict.replaced_writer = replaced.writer;
  FM_TRY(conflict.writer_host, host_of(txn, conflict.writer));
  FM_TRY(conflict.replaced_host, host_of(txn, conflict.replaced_writer));
  conflict.path_hint = op.path_hint;
  conflict.time = context.now();
  txn.put(Family::kConflicts, key_of(op.inode, txn.index()), encode_conflict(conflict));
  ++txn.state().conflicts;
  return {};
}

}  // namespace

Outcome apply_op(OpContext& context, const CommitOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto found, txn.inode(op.inode));
  if (!found) return refuse(std::errc::no_such_file_or_directory);
  InodeRecord& record = *found;
  if (record.is_directory()) return refuse(std::errc::is_a_directory);
  if (record.type != FileType::kRegular) return refuse(std::errc::invalid_argument);
  if (op.size_bytes > kFileSizeMax) return refuse(std::errc::file_too_large);
  FM_TRY(const auto denied, check_write(context, op.inode, record, op.opened));
  if (denied) return refuse(denied);
  if (op.base != record.version) {
    const bool whole = op.whole || op.kind == CommitOp::Kind::kInline;
    if (!whole || !op.replace_newer) return refuse(Errc::kStaleBase);
    FM_CHECK(list_conflict(context, op, record));
  }
  Commit commit{txn, op, context.mutate.payload, record};
  Result<Verdict> put = refused(Errc::kUnsupported);
  switch (op.kind) {
    case CommitOp::Kind::kInline:
      put = commit.put_inline();
      break;
    case CommitOp::Kind::kChunks:
      put = commit.put_chunks();
      break;
    case CommitOp::Kind::kPatches:
      put = commit.put_patches();
      break;
  }
  if (!put) return put.error();
  if (put->refusal) return refuse(put->refusal);
  FM_CHECK(commit.count_allocated());
  record.size_bytes = op.size_bytes;
  record.version = Version(txn.index().value());
  record.writer = context.command.session;
  record.ctime = changed_at(record, op.mtime, context.now());
  record.mtime = op.mtime;
  if (op.atime) record.atime = *op.atime;
  if (op.clear_suid_sgid) clear_suid_sgid(record);
  CommandResult result;
  result.inode = op.inode;
  result.version = record.version;
  FM_CHECK(txn.put_inode(op.inode, std::move(record)));
  return result;
}

}  // namespace fermata::serverd
