#include "mountd/cache/copy_meta.h"

#include <cstring>

#include "common/base/assert.h"
#include "common/base/checksum.h"

namespace fermata::mountd {
namespace {

constexpr std::uint32_t kMagic = 0x4d434d46;      // "FMCM"
constexpr std::uint16_t kFormatVersion = 3;       // 1 had no steps, 2 no padding
constexpr std::uint32_t kStepMagic = 0x53434d46;  // "FMCS"

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

// Followed by `block_count` x u32. The checksum covers both with this field as zero.
struct StepHeader {
  std::uint32_t magic;
  std::uint32_t checksum;
  std::uint64_t base_version;
  std::uint64_t size_bytes;
  std::int64_t ctime_ns;
  std::int64_t taken_ns;
  std::uint32_t block_count;
  std::uint32_t reserved;
};
static_assert(sizeof(StepHeader) == 48 && std::is_trivially_copyable_v<StepHeader>);

bool all_zero(ByteView bytes) {
  if (bytes.empty()) return true;
  return bytes[0] == std::byte{0} &&
         std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

template <class Head>
std::uint32_t checksum_of(Head header, ByteView rest) {
  header.checksum = 0;
  return crc32c(rest, crc32c({reinterpret_cast<const std::byte*>(&header), sizeof header}));
}

}  // namespace

std::uint64_t block_digest(ByteView bytes) {
  if (all_zero(bytes)) return kHoleDigest;
  const std::uint64_t digest = xxh3(bytes);
  return digest == kHoleDigest || digest == kStaleDigest ? 1 : digest;
}

void apply_step(CommitStep step, Version& base, Fingerprint& clean, std::vector<ChunkId>& chunks) {
  base = step.base;
  // A block that ended early ends later now.
  if (step.size_bytes > clean.size_bytes && clean.size_bytes % kBlockSizeBytes != 0)
    step.blocks.push_back(static_cast<std::uint32_t>(clean.size_bytes / kBlockSizeBytes));
  clean.size_bytes = step.size_bytes;
  clean.ctime_ns = step.ctime_ns;
  clean.taken_ns = step.taken_ns;
  clean.digests.resize(block_count_of(step.size_bytes), kHoleDigest);
  if (!chunks.empty()) chunks.resize(clean.digests.size());
  for (const std::uint32_t block : step.blocks) {
    if (block < clean.digests.size()) clean.digests[block] = kStaleDigest;
    if (block < chunks.size()) chunks[block] = kPatchedChunk;
  }
}

std::string encode_step(const CommitStep& step) {
  std::string rest;
  for (const std::uint32_t block : step.blocks) append_le(rest, block);
  StepHeader header{};
  header.magic = kStepMagic;
  header.base_version = step.base.value();
  header.size_bytes = step.size_bytes;
  header.ctime_ns = step.ctime_ns;
  header.taken_ns = step.taken_ns;
  header.block_count = static_cast<std::uint32_t>(step.blocks.size());
  header.checksum = checksum_of(header, as_bytes(rest));
  std::string out;
  append_le(out, header);
  return out + rest;
}

namespace {
/// Takes one from the front of `bytes`; none if it is not whole.
std::optional<CommitStep> take_step(ByteView& bytes) {
  if (bytes.size() < sizeof(StepHeader)) return std::nullopt;
  const auto header = load_le<StepHeader>(bytes.data());
  const ByteView after = bytes.subspan(sizeof header);
  const std::uint64_t size = std::uint64_t{header.block_count} * sizeof(std::uint32_t);
  if (header.magic != kStepMagic || size > after.size() ||
      header.checksum != checksum_of(header, after.first(size)))
    return std::nullopt;
  CommitStep step{
      Version(header.base_version), header.size_bytes, header.ctime_ns, header.taken_ns, {}};
  for (std::uint64_t at = 0; at < size; at += sizeof(std::uint32_t))
    step.blocks.push_back(load_le<std::uint32_t>(after.data() + at));
  bytes = after.subspan(size);
  return step;
}
}  // namespace

std::string encode_copy_meta(const CopyMeta& meta) {
  std::string rest;
  for (const std::uint64_t digest : meta.clean.digests) append_le(rest, digest);
  for (const ChunkId& chunk : meta.chunks) {
    append_le(rest, chunk.algorithm);
    append_le(rest, chunk.digest);
  }
  const std::string_view path = std::string_view(meta.path_hint).substr(0, kPathMax);
  rest += path;
  if (sizeof(Header) + rest.size() < kSectorBytes) rest.resize(kSectorBytes - sizeof(Header));

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
  if (header.magic != kMagic) return Errc::kBadMessage;
  if (header.format_version > kFormatVersion) return Errc::kVersionMismatch;
  if (header.format_version == 0 || header.file_size_bytes < sizeof header ||
      header.file_size_bytes > bytes.size()) {
    return Errc::kBadMessage;
  }
  const ByteView rest = bytes.subspan(sizeof header, header.file_size_bytes - sizeof header);
  ByteView steps = bytes.subspan(header.file_size_bytes);
  if (header.checksum != checksum_of(header, rest)) return Errc::kBadMessage;
  const std::uint64_t digests_size = std::uint64_t{header.digest_count} * sizeof(std::uint64_t);
  const std::uint64_t chunks_size = std::uint64_t{header.chunk_count} * ChunkId::kSizeBytes;
  const std::uint64_t used = digests_size + chunks_size + header.path_size_bytes;
  const bool padded = header.format_version > 2 && header.file_size_bytes == kSectorBytes;
  if (used > rest.size() || (used != rest.size() && !padded) ||
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
  while (auto step = take_step(steps)) {
    if (step->size_bytes > kFileSizeMax) return Errc::kBadMessage;
    apply_step(std::move(*step), meta.base, meta.clean, meta.chunks);
  }
  return meta;
}

}  // namespace fermata::mountd
