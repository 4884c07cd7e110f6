#include "mountd/cache/copy_meta.h"

#include <cstring>

#include "common/base/assert.h"
#include "common/base/checksum.h"

namespace fermata::mountd {
namespace {

constexpr std::uint32_t kMagic = 0x4d434d46;  // "FMCM"
constexpr std::uint16_t kFormatVersion = 1;

enum Flag : std::uint16_t {
  kComplete = 1,
  kMaybeDirty = 2,
  kConflict = 4,
  kUpdating = 8,
  kCleanKnown = 16
};

// docs/format/cache.md. The checksum covers the whole file with this field as zero.
struct Header {
  std::uint32_t magic;
  std::uint16_t format_version;
  std::uint16_t flags;
  std::uint32_t checksum;
  std::uint32_t file_size_bytes;
  std::uint64_t inode;
  std::uint64_t base_version;
  std::uint64_t serial;
  std::uint64_t size_bytes;
  std::int64_t last_use_ns;
  std::int64_t clean_ctime_ns;
  std::int64_t clean_taken_ns;
  std::uint64_t clean_size_bytes;
  std::uint32_t mode;
  std::uint32_t digest_count;
  std::uint32_t chunk_count;
  std::uint32_t path_size_bytes;
};
static_assert(sizeof(Header) == 96 && std::is_trivially_copyable_v<Header>);

bool all_zero(ByteView bytes) {
  if (bytes.empty()) return true;
  return bytes[0] == std::byte{0} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

std::uint32_t checksum_of(Header header, ByteView rest) {
  header.checksum = 0;
  return crc32c(rest, crc32c({reinterpret_cast<const std::byte*>(&header), sizeof header}));
}

}  // namespace

std::uint64_t block_digest(ByteView bytes) {
  if (all_zero(bytes)) return kHoleDigest;
  const std::uint64_t digest = xxh3(bytes);
  return digest == kHoleDigest ? 1 : digest;
}

std::string encode_copy_meta(const CopyMeta& meta) {
  std::string rest;
  for (const std::uint64_t digest : meta.clean.digests) append_le(rest, digest);
  for (const ChunkId& chunk : meta.chunks) {
    append_le(rest, chunk.algorithm);
    append_le(rest, chunk.digest);
  }
  const std::string_view path = std::string_view(meta.path_hint).substr(0, kPathMax);
  rest += path;

  Header header{};
  header.magic = kMagic;
  header.format_version = kFormatVersion;
  header.flags = static_cast<std::uint16_t>(
      (meta.complete ? kComplete : 0) | (meta.maybe_dirty ? kMaybeDirty : 0) |
      (meta.conflict ? kConflict : 0) | (meta.updating ? kUpdating : 0) |
      (meta.clean_known ? kCleanKnown : 0));
  header.file_size_bytes = static_cast<std::uint32_t>(sizeof header + rest.size());
  header.inode = meta.inode.value();
  header.base_version = meta.base.value();
  header.serial = meta.serial;
  header.size_bytes = meta.size_bytes;
  header.last_use_ns = meta.last_use_ns;
  header.clean_ctime_ns = meta.clean.ctime_ns;
  header.clean_taken_ns = meta.clean.taken_ns;
  header.clean_size_bytes = meta.clean.size_bytes;
  header.mode = meta.mode;
  header.digest_count = static_cast<std::uint32_t>(meta.clean.digests.size());
  header.chunk_count = static_cast<std::uint32_t>(meta.chunks.size());
  header.path_size_bytes = static_cast<std::uint32_t>(path.size());
  header.checksum = checksum_of(header, as_bytes(rest));
  std::string out;
  append_le(out, header);
  return out + rest;
}

Result<CopyMeta> decode_copy_meta(ByteView bytes) {
  if (bytes.size() < sizeof(Header)) return Errc::kBadMessage;
  const auto header = load_le<Header>(bytes.data());
  const ByteView rest = bytes.subspan(sizeof header);
  if (header.magic != kMagic) return Errc::kBadMessage;
  if (header.format_version > kFormatVersion) return Errc::kVersionMismatch;
  if (header.format_version == 0 || header.file_size_bytes != bytes.size() ||
      header.checksum != checksum_of(header, rest)) {
    return Errc::kBadMessage;
  }
  const std::uint64_t digests_size = std::uint64_t{header.digest_count} * sizeof(std::uint64_t);
  const std::uint64_t chunks_size = std::uint64_t{header.chunk_count} * ChunkId::kSizeBytes;
  if (digests_size + chunks_size + header.path_size_bytes != rest.size() ||
      header.digest_count != block_count_of(header.clean_size_bytes) || header.serial == 0) {
    return Errc::kBadMessage;
  }
  CopyMeta meta;
  meta.inode = InodeId(header.inode);
  meta.base = Version(header.base_version);
  meta.serial = header.serial;
  meta.size_bytes = header.size_bytes;
  meta.mode = header.mode;
  meta.complete = (header.flags & kComplete) != 0;
  meta.maybe_dirty = (header.flags & kMaybeDirty) != 0;
  meta.conflict = (header.flags & kConflict) != 0;
  meta.updating = (header.flags & kUpdating) != 0;
  meta.clean_known = (header.flags & kCleanKnown) != 0;
  meta.last_use_ns = header.last_use_ns;
  meta.clean.ctime_ns = header.clean_ctime_ns;
  meta.clean.taken_ns = header.clean_taken_ns;
  meta.clean.size_bytes = header.clean_size_bytes;
  const std::byte* at = rest.data();
  meta.clean.digests.resize(header.digest_count);
  if (digests_size != 0) std::memcpy(meta.clean.digests.data(), at, digests_size);
  at += digests_size;
  meta.chunks.resize(header.chunk_count);
  for (ChunkId& chunk : meta.chunks) {
    chunk.algorithm = load_le<std::uint8_t>(at);
    std::memcpy(chunk.digest.data(), at + 1, chunk.digest.size());
    at += ChunkId::kSizeBytes;
  }
  meta.path_hint = as_text({at, header.path_size_bytes});
  return meta;
}

}  // namespace fermata::mountd
