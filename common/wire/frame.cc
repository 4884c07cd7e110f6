#include "common/wire/frame.h"

#include <algorithm>
#include <cstring>

#include "common/base/assert.h"
#include "common/base/checksum.h"

namespace fermata {

namespace {

constexpr std::uint32_t kMagic = 0x31544d46;  // "FMT1"

struct RawHeader {
  std::uint32_t magic;
  std::uint16_t version;
  std::uint8_t kind;
  std::uint8_t flags;
  std::uint32_t group;
  std::uint16_t volume;
  std::uint16_t method;
  std::uint64_t request_id;
  std::uint32_t error;
  std::uint32_t deadline_ms;
  std::uint32_t body_size;
  std::uint32_t payload_size;
  std::uint32_t content_crc;
  std::uint32_t header_crc;  // of the bytes before it
};
static_assert(sizeof(RawHeader) == kFrameHeaderSize);
static_assert(offsetof(RawHeader, request_id) == 16);
static_assert(offsetof(RawHeader, header_crc) == 44);
static_assert(std::is_trivially_copyable_v<RawHeader>);

struct RawHello {
  std::uint16_t version_min;
  std::uint16_t version_max;
  std::uint8_t kind;
  std::uint8_t name_size;
  std::uint16_t reserved;
  std::uint8_t cluster[16];
  std::uint64_t session;
  std::uint32_t node;
  std::uint32_t reserved2;
};
static_assert(sizeof(RawHello) == 40);
static_assert(offsetof(RawHello, session) == 24);

bool is_call(FrameKind kind) { return kind == FrameKind::kRequest || kind == FrameKind::kOneWay; }
bool has_id(FrameKind kind) {
  return kind == FrameKind::kRequest || kind == FrameKind::kResponse || kind == FrameKind::kCancel;
}
bool has_error(FrameKind kind) {
  return kind == FrameKind::kResponse || kind == FrameKind::kHelloReply;
}

/// What its kind does not use is zero, so that it can get a meaning later.
bool unused_are_zero(const FrameHeader& h) {
  if (has_id(h.kind) != (h.request_id != 0)) return false;
  if (!is_call(h.kind) && (h.group || h.volume)) return false;
  if (!is_call(h.kind) && h.kind != FrameKind::kResponse && h.method != 0) return false;
  if (!has_error(h.kind) && h.error != 0) return false;
  if (h.kind != FrameKind::kRequest && h.deadline_ms != 0) return false;
  return true;
}

Status check_sizes(const FrameHeader& h, const FrameLimits& limits) {
  std::uint32_t body_max = 0;
  std::uint32_t payload_max = 0;
  switch (h.kind) {
    case FrameKind::kHello:
    case FrameKind::kHelloReply:
      body_max = kHelloBodySizeMax;
      break;
    case FrameKind::kRequest:
    case FrameKind::kOneWay:
    case FrameKind::kResponse:
      body_max = limits.body_limit(h.method);
      payload_max = limits.payload_size_max;
      break;
    case FrameKind::kCancel:
    case FrameKind::kGoodbye:
    case FrameKind::kPing:
      break;
  }
  if (h.body_size > body_max || h.payload_size > payload_max) return Errc::kTooLarge;
  return {};
}

}  // namespace

std::uint32_t FrameLimits::body_limit(std::uint16_t method) const {
  return body_size_max == nullptr ? kBodySizeDefaultMax
                                  : std::min(body_size_max(method), kBodySizeMax);
}

EncodedHeader encode_header(const FrameHeader& header) {
  RawHeader raw{};
  raw.magic = kMagic;
  raw.version = header.version;
  raw.kind = static_cast<std::uint8_t>(header.kind);
  raw.flags = header.flags;
  raw.group = header.group.value();
  raw.volume = header.volume.value();
  raw.method = header.method;
  raw.request_id = header.request_id;
  raw.error = header.error;
  raw.deadline_ms = header.deadline_ms;
  raw.body_size = header.body_size;
  raw.payload_size = header.payload_size;
  EncodedHeader bytes;
  if ((header.flags & kFrameChecksummed) != 0) {
    raw.content_crc = header.content_crc;
    std::memcpy(bytes.data(), &raw, sizeof raw);
    raw.header_crc = crc32c(ByteView(bytes).first(offsetof(RawHeader, header_crc)));
  }
  std::memcpy(bytes.data(), &raw, sizeof raw);
  return bytes;
}

bool may_begin_frame(ByteView bytes) {
  const std::size_t size = std::min(bytes.size(), sizeof kMagic);
  return size == 0 || std::memcmp(bytes.data(), &kMagic, size) == 0;
}

Result<FrameHeader> decode_header(std::span<const std::byte, kFrameHeaderSize> bytes,
                                  const FrameLimits& limits) {
  const auto raw = load_le<RawHeader>(bytes.data());
  if (raw.magic != kMagic) return Errc::kBadMessage;
  if (raw.version != kProtocolVersion) return Errc::kVersionMismatch;
  if (raw.flags != (limits.checksums ? kFrameChecksummed : 0)) return Errc::kBadMessage;
  const std::uint32_t crc =
      limits.checksums ? crc32c(bytes.first<offsetof(RawHeader, header_crc)>()) : 0;
  if (raw.header_crc != crc) return Errc::kBadMessage;
  if (!limits.checksums && raw.content_crc != 0) return Errc::kBadMessage;
  if (raw.kind < static_cast<std::uint8_t>(FrameKind::kHello) ||
      raw.kind > static_cast<std::uint8_t>(FrameKind::kPing)) {
    return Errc::kBadMessage;
  }
  FrameHeader header;
  header.version = raw.version;
  header.kind = static_cast<FrameKind>(raw.kind);
  header.flags = raw.flags;
  header.group = GroupId(raw.group);
  header.volume = VolumeId(raw.volume);
  header.method = raw.method;
  header.request_id = raw.request_id;
  header.error = raw.error;
  header.deadline_ms = raw.deadline_ms;
  header.body_size = raw.body_size;
  header.payload_size = raw.payload_size;
  header.content_crc = raw.content_crc;
  if (!unused_are_zero(header)) return Errc::kBadMessage;
  FM_CHECK(check_sizes(header, limits));
  return header;
}

std::uint32_t content_crc(ByteView body, ByteView payload) {
  const std::uint32_t crc = crc32c(body);
  return payload.empty() ? crc : crc32c(payload, crc);
}

Status check_content(const FrameHeader& header, ByteView body, ByteView payload) {
  if (body.size() != header.body_size || payload.size() != header.payload_size) {
    return Errc::kBadMessage;
  }
  if ((header.flags & kFrameChecksummed) == 0) return {};
  if (content_crc(body, payload) != header.content_crc) return Errc::kBadMessage;
  return {};
}

std::string encode_hello(const HelloBody& hello) {
  const std::string_view name = std::string_view(hello.hello.name).substr(0, kHelloNameSizeMax);
  RawHello raw{};
  raw.version_min = hello.version_min;
  raw.version_max = hello.version_max;
  raw.kind = static_cast<std::uint8_t>(hello.hello.kind);
  raw.name_size = static_cast<std::uint8_t>(name.size());
  std::memcpy(raw.cluster, hello.hello.cluster.bytes.data(), sizeof raw.cluster);
  raw.session = hello.hello.session.value();
  raw.node = hello.hello.node.value();
  std::string body;
  body.reserve(sizeof raw + name.size());
  append_le(body, raw);
  body.append(name);
  return body;
}

Result<HelloBody> decode_hello(ByteView body) {
  if (body.size() < sizeof(RawHello) || body.size() > kHelloBodySizeMax) return Errc::kBadMessage;
  const auto raw = load_le<RawHello>(body.data());
  if (body.size() - sizeof raw < raw.name_size) return Errc::kBadMessage;
  if (raw.version_min == 0 || raw.version_min > raw.version_max) return Errc::kBadMessage;
  if (raw.kind < static_cast<std::uint8_t>(Hello::Kind::kClient) ||
      raw.kind > static_cast<std::uint8_t>(Hello::Kind::kAdmin)) {
    return Errc::kBadMessage;
  }
  HelloBody hello;
  hello.version_min = raw.version_min;
  hello.version_max = raw.version_max;
  hello.hello.kind = static_cast<Hello::Kind>(raw.kind);
  std::memcpy(hello.hello.cluster.bytes.data(), raw.cluster, sizeof raw.cluster);
  hello.hello.session = SessionId(raw.session);
  hello.hello.node = NodeId(raw.node);
  hello.hello.name = as_text(body.subspan(sizeof raw, raw.name_size));
  for (const char c : hello.hello.name) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) return Errc::kBadMessage;
  }
  return hello;
}

Result<std::uint16_t> agree_version(const HelloBody& ours, const HelloBody& theirs) {
  const std::uint16_t newest = std::min(ours.version_max, theirs.version_max);
  if (newest < std::max(ours.version_min, theirs.version_min)) return Errc::kVersionMismatch;
  return newest;
}

std::string encode_frame(FrameHeader header, std::string_view body, ByteView payload) {
  FM_ASSERT(body.size() <= kBodySizeMax);
  FM_ASSERT(payload.size() <= kPayloadSizeMax);
  header.body_size = static_cast<std::uint32_t>(body.size());
  header.payload_size = static_cast<std::uint32_t>(payload.size());
  if ((header.flags & kFrameChecksummed) != 0)
    header.content_crc = content_crc(as_bytes(body), payload);
  const EncodedHeader head = encode_header(header);
  std::string bytes(as_text(head));
  bytes.append(body);
  bytes.append(as_text(payload));
  return bytes;
}

}  // namespace fermata
