// The frame that every message between Fermata's programs travels in, and the hello that opens a
// connection. docs/PROTOCOL.md has the tables. Pure functions on bytes; nothing here does I/O.
//
// A frame is a header of kFrameHeaderSize bytes, then the body (one encoded message, opaque here),
// then the payload (raw bytes). Integers are little-endian.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "common/base/bytes.h"
#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/net/rpc.h"

namespace fermata {

/// The newest protocol this program speaks, and the oldest.
inline constexpr std::uint16_t kProtocolVersion = 1;
inline constexpr std::uint16_t kProtocolVersionMin = 1;

inline constexpr std::size_t kFrameHeaderSize = 48;
inline constexpr std::uint32_t kBodySizeDefaultMax = 64 * 1024;  ///< unless the method has more
inline constexpr std::uint32_t kBodySizeMax = 4 * 1024 * 1024;   ///< whatever the method
inline constexpr std::uint32_t kPayloadSizeMax = 8 * 1024 * 1024;
inline constexpr std::uint32_t kHelloBodySizeMax = 4096;  ///< a later version may say more
inline constexpr std::size_t kHelloNameSizeMax = 255;

/// Numbers travel: never reuse or renumber one.
enum class FrameKind : std::uint8_t {
  kHello = 1,       ///< first frame of who connected
  kHelloReply = 2,  ///< first frame of who accepted; with an error it is also the last
  kRequest = 3,     ///< wants one response with its request id
  kOneWay = 4,      ///< wants none; request id 0
  kResponse = 5,
  kCancel = 6,   ///< the caller of this request id no longer wants the response
  kGoodbye = 7,  ///< the sender closes; nothing follows
  kPing = 8,     ///< "I live", sent after silence; wants no answer
};

/// FrameHeader::flags
inline constexpr std::uint8_t kFrameChecksummed = 1;  ///< both CRC fields are there; off inside TLS

/// A header, decoded. What a kind does not use is zero, and is checked to be.
struct FrameHeader {
  std::uint16_t version = kProtocolVersion;  ///< of the frame's layout
  FrameKind kind = FrameKind::kRequest;
  std::uint8_t flags = kFrameChecksummed;
  GroupId group;                  ///< requests and one-way messages
  VolumeId volume;                ///< the same
  std::uint16_t method = 0;       ///< the same, and in a response the request's
  std::uint64_t request_id = 0;   ///< chosen by the caller, rising from 1 on each connection
  std::uint32_t error = 0;        ///< to_wire(); responses and hello replies
  std::uint32_t deadline_ms = 0;  ///< requests: time left when it was sent; 0: none
  std::uint32_t body_size = 0;
  std::uint32_t payload_size = 0;
  std::uint32_t content_crc = 0;  ///< CRC-32C of body, then payload
};

using EncodedHeader = std::array<std::byte, kFrameHeaderSize>;

/// Fills in the header's own checksum if the flag says so. content_crc is taken as it stands.
EncodedHeader encode_header(const FrameHeader& header);

/// What a receiver accepts.
struct FrameLimits {
  bool checksums = true;  ///< the flag must be set; false: it must not be
  /// The largest body for a method; null: kBodySizeDefaultMax for all. At most kBodySizeMax counts.
  std::uint32_t (*body_size_max)(std::uint16_t method) = nullptr;
  std::uint32_t payload_size_max = kPayloadSizeMax;
  std::uint32_t body_limit(std::uint16_t method) const;
};

/// False once the first bytes, however few, cannot begin a frame: no need to wait for more.
bool may_begin_frame(ByteView bytes);

/// Checks everything that a header alone can show: magic, version, checksum, kind, flags, sizes,
/// unused fields. Errors: kBadMessage; kTooLarge; kVersionMismatch (right magic, other version;
/// then nothing else was looked at).
Result<FrameHeader> decode_header(std::span<const std::byte, kFrameHeaderSize> bytes,
                                  const FrameLimits& limits);

/// kBadMessage if the content does not fit the header's checksum. A frame without checksums passes.
Status check_content(const FrameHeader& header, ByteView body, ByteView payload);
std::uint32_t content_crc(ByteView body, ByteView payload);

/// A hello with what surrounds it on the wire.
struct HelloBody {
  std::uint16_t version_min = kProtocolVersionMin;
  std::uint16_t version_max = kProtocolVersion;
  Hello hello;
};

/// `hello.name` is cut to kHelloNameSizeMax.
std::string encode_hello(const HelloBody& hello);
/// Bytes after the name are left to later versions. A name with control characters is kBadMessage:
/// it goes into logs.
Result<HelloBody> decode_hello(ByteView body);

/// The newest version both ends speak. kVersionMismatch if there is none.
Result<std::uint16_t> agree_version(const HelloBody& ours, const HelloBody& theirs);

/// A whole frame's bytes, in one piece; for tests and for the hello.
std::string encode_frame(FrameHeader header, std::string_view body, ByteView payload = {});

}  // namespace fermata
