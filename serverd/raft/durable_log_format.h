// The bytes of the durable log; docs/format/log.md is the same in words. Little-endian; every
// structure is checked by a CRC-32C.
//
//   DIR/state                    two copies of StateBlock, at 0 and at kStateCopyBytes
//   DIR/00000000000000000001.log segments, by the index of their first entry (20 digits)
//
// A segment is a SegmentHeader and records; a record is a RecordHeader, its data and zeros up to a
// multiple of kRecordAlign. Newer versions are refused. Version 1 of the state had no `flags` and
// `silence_ms`; it is read, and version 2 is written.
#pragma once

#include <optional>
#include <string>

#include "common/base/bytes.h"
#include "common/base/checksum.h"
#include "common/wire/raft.h"

namespace fermata::serverd::log_format {

inline constexpr std::uint64_t kStateMagic = 0x4554415453524d46;    // "FMRSTATE"
inline constexpr std::uint64_t kSegmentMagic = 0x474f4c5441524d46;  // "FMRATLOG"
inline constexpr std::uint32_t kRecordMagic = 0x4345524d;           // "MREC"
inline constexpr std::uint32_t kVersion = 1;                        // of segments
inline constexpr std::uint32_t kStateVersion = 2;                   // of the state
inline constexpr std::size_t kStateCopyBytes = 16384;
inline constexpr std::size_t kRecordAlign = 8;

struct StateBlock {
  std::uint64_t magic = kStateMagic;
  std::uint32_t version = kStateVersion;
  std::uint32_t crc = 0;  ///< of the block after this field and the membership
  std::array<std::uint8_t, 16> cluster{};
  std::uint32_t group = 0;
  std::uint32_t node = 0;
  std::uint64_t sequence = 0;  ///< the greater of two valid copies counts
  std::uint64_t term = 0;
  std::uint64_t durable_index = 0;  ///< the log was durable up to here when this was written
  std::uint64_t base_index = 0;     ///< entries up to here are in the snapshot
  std::uint64_t base_term = 0;
  std::uint32_t voted_for = 0;
  std::uint32_t membership_size =
      0;                         ///< bytes after the block: the membership in force at the base
  std::uint32_t flags = 0;       ///< kRejoining
  std::uint32_t silence_ms = 0;  ///< HardState::silence_ms
};
static_assert(sizeof(StateBlock) == 96);
inline constexpr std::size_t kStateBlockBytesV1 = 88;
inline constexpr std::uint32_t kRejoining = 1;  ///< HardState::rejoining

struct SegmentHeader {
  std::uint64_t magic = kSegmentMagic;
  std::uint32_t version = kVersion;
  std::uint32_t crc = 0;  ///< of the header after this field
  std::array<std::uint8_t, 16> cluster{};
  std::uint32_t group = 0;
  std::uint32_t node = 0;
  std::uint64_t first_index = 0;
  std::uint64_t prev_term = 0;  ///< of the entry before
  std::uint32_t prev_crc = 0;   ///< of the record before; 0 if none
  std::uint32_t reserved = 0;
};
static_assert(sizeof(SegmentHeader) == 64);

struct RecordHeader {
  std::uint32_t magic = kRecordMagic;
  std::uint32_t crc = 0;  ///< of the header after this field and the data, seeded by prev_crc
  std::uint32_t prev_crc = 0;
  std::uint32_t size = 0;  ///< of the data
  std::uint64_t index = 0;
  std::uint64_t term = 0;
  /// Where in this segment the batch begins that this record was written with: everything before
  /// that place was durable before the record was written.
  std::uint32_t batch_start = 0;
  std::uint8_t kind = 0;  ///< EntryKind
  std::array<std::uint8_t, 3> reserved{};
};
static_assert(sizeof(RecordHeader) == 40);

template <class Header>
std::uint32_t header_crc(const Header& header, ByteView data, std::uint32_t seed) {
  constexpr std::size_t kFrom = offsetof(Header, crc) + sizeof header.crc;
  const auto bytes = std::as_bytes(std::span(&header, 1)).subspan(kFrom);
  return crc32c(data, crc32c(bytes, seed));
}

inline std::size_t record_bytes(std::size_t data_size) {
  return (sizeof(RecordHeader) + data_size + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
}

/// The header of a valid record at `offset` of a segment's bytes.
inline std::optional<RecordHeader> record_at(ByteView segment, std::size_t offset) {
  if (offset > segment.size() || segment.size() - offset < sizeof(RecordHeader))
    return std::nullopt;
  const auto header = load_le<RecordHeader>(segment.data() + offset);
  if (header.magic != kRecordMagic || header.batch_start > offset) return std::nullopt;
  if (segment.size() - offset < record_bytes(header.size)) return std::nullopt;
  if (header.crc !=
      header_crc(header, segment.subspan(offset + sizeof header, header.size), header.prev_crc)) {
    return std::nullopt;
  }
  return header;
}

inline std::string segment_name(LogIndex first) {
  const std::string digits = std::to_string(first.value());
  return std::string(20 - digits.size(), '0') + digits + ".log";
}
inline std::optional<LogIndex> segment_index(const std::string& name) {
  if (name.size() != 24 || !name.ends_with(".log")) return std::nullopt;
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < 20; ++i) {
    if (name[i] < '0' || name[i] > '9') return std::nullopt;
    value = value * 10 + static_cast<std::uint64_t>(name[i] - '0');
  }
  if (value == 0) return std::nullopt;
  return LogIndex(value);
}

}  // namespace fermata::serverd::log_format
