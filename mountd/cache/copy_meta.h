// What the cache remembers of one copy besides its bytes: the sidecar file (docs/format/cache.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/base/result.h"

namespace fermata::mountd {

/// Digests are taken per block; a block is where a chunk would be.
inline constexpr std::uint64_t kBlockSizeBytes = kChunkSizeBytes;
/// The digest of a block that holds only zeros, on disk or as a hole.
inline constexpr std::uint64_t kHoleDigest = 0;
/// Stands for the digest of a block that was committed without being read: no block has it, so one
/// that is compared with it counts as changed.
inline constexpr std::uint64_t kStaleDigest = UINT64_MAX;
/// Stands for the chunk of a block whose content no chunk is: patches lie over one. No chunk has
/// it.
inline constexpr ChunkId kPatchedChunk{0xff, {}};

/// XXH3 of a block's bytes (fewer than kBlockSizeBytes at the end of a file), or kHoleDigest.
std::uint64_t block_digest(ByteView bytes);

constexpr std::uint64_t block_count_of(std::uint64_t size_bytes) {
  return (size_bytes + kBlockSizeBytes - 1) / kBlockSizeBytes;
}

/// The state of a backing file in which it equalled a version of the cluster.
struct Fingerprint {
  std::int64_t ctime_ns = 0;  ///< of the backing file
  std::int64_t taken_ns = 0;  ///< the wall clock when ctime was read
  std::uint64_t size_bytes = 0;
  std::vector<std::uint64_t> digests;  ///< one per block
  bool operator==(const Fingerprint&) const = default;
};

struct CopyMeta {
  InodeId inode;
  Version base;  ///< the version it was fetched as, or last committed as; 0: never committed
  std::uint64_t serial = 0;      ///< of the copy, unique in its cache
  std::uint64_t size_bytes = 0;  ///< of the content when the sidecar was written
  std::uint32_t mode = 0;        ///< st_mode, for people who look into a cache
  bool complete = false;
  bool maybe_dirty = false;  ///< a writer was let in: compare with `clean` to know
  bool conflict = false;     ///< set aside: its commit was refused for good
  bool updating = false;     ///< a newer version was being written over a clean copy
  bool clean_known = true;   ///< false: `clean` was never a version; the copy counts as modified
  std::int64_t last_use_ns = 0;  ///< wall clock
  Fingerprint clean;
  /// Of version `base`, one per block (or kPatchedChunk); empty: inline or unknown.
  std::vector<ChunkId> chunks;
  std::string path_hint;  ///< the last known name, for people
  bool operator==(const CopyMeta&) const = default;
};

/// A commit that changed few bytes, appended to the sidecar instead of a new one.
struct CommitStep {
  Version base;                  ///< that it became
  std::uint64_t size_bytes = 0;  ///< of that version
  std::int64_t ctime_ns = 0;
  std::int64_t taken_ns = 0;
  std::vector<std::uint32_t> blocks;  ///< whose digests and chunks are not known any more
};
void apply_step(CommitStep step, Version& base, Fingerprint& clean, std::vector<ChunkId>& chunks);
std::string encode_step(const CommitStep& step);

/// A small sidecar is padded to a sector, which a disk writes whole or not at all.
inline constexpr std::size_t kSectorBytes = 512;
std::string encode_copy_meta(const CopyMeta& meta);
/// With the steps that follow it; a last one that is cut off is left out, as it would be had the
/// writer died a moment earlier. Errors: Errc::kBadMessage (damaged); Errc::kVersionMismatch
/// (written by a newer mountd).
Result<CopyMeta> decode_copy_meta(ByteView bytes);

}  // namespace fermata::mountd
