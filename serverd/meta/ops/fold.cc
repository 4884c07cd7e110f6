// Patches become part of their chunks.
//
// The primary has read a chunk and the patches over it and has stored what they make as a new
// chunk; here that takes their place. What it has seen may have changed since, so each chunk is
// taken only if its base and its patches are still those. Nothing else needs to be compared: a
// commit that replaces a chunk, or cuts the file within it, drops or rewrites its patches, and
// patches that came later lie over the new chunk as over the old one.
#include "common/base/limits.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {
namespace {

using Folded = FoldPatchesCommand::Chunk;

/// The bytes in the patches that `folded` names, none if the file is no longer what was folded.
Result<std::optional<std::uint64_t>> patch_bytes_of(Txn& txn, InodeId inode, const Folded& folded) {
  constexpr std::optional<std::uint64_t> kChanged;
  FM_TRY(const auto base, txn.chunk(inode, folded.index));
  if (base.value_or(ChunkId{}) != folded.from || folded.patches.empty()) return kChanged;
  std::uint64_t bytes = 0;
  for (const auto& name : folded.patches) {
    FM_TRY(const auto value, txn.get(Family::kPatches, patch_key(inode, name.index, name.number)));
    if (!value) return kChanged;
    FM_TRY(const LogIndex since, since_of(*value));
    FM_TRY(const PatchRecord patch, decode_patch(*value));
    if (since != name.since || patch.offset_bytes / kChunkSizeBytes != folded.index)
      return kChanged;
    bytes += patch.bytes.size();
  }
  return std::optional(bytes);
}

}  // namespace

Outcome apply_fold_patches(Txn& txn, const FoldPatchesCommand& body) {
  CommandResult result;
  result.inode = body.inode;
  FM_TRY(auto record, txn.inode(body.inode));
  if (!record || record->content != ContentKind::kChunks) return result;
  for (const Folded& folded : body.chunks) {
    FM_TRY(const auto bytes, patch_bytes_of(txn, body.inode, folded));
    if (!bytes) continue;
    for (const auto& name : folded.patches) {
      FM_CHECK(txn.replace(Family::kPatches, patch_key(body.inode, name.index, name.number),
                           std::nullopt));
    }
    record->patches -= static_cast<std::uint32_t>(folded.patches.size());
    record->patch_bytes -= static_cast<std::uint32_t>(*bytes);
    if (folded.to != folded.from) FM_CHECK(txn.put_chunk(body.inode, folded.index, folded.to));
    if (!folded.from) ++record->chunks;
    ++result.count;
  }
  // Neither attributes nor content are news, and nobody was called back: so the record is not one
  // of a new moment, and the old one is not history.
  if (result.count != 0) txn.put(Family::kInodes, key_of(body.inode), encode_inode(*record));
  return result;
}

}  // namespace fermata::serverd
