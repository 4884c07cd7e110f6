#include "test/fuzz/fuzz_frame.h"

#include "common/base/assert.h"
#include "common/wire/frame.h"

namespace fermata::fuzz {

namespace {

/// Encoding what was decoded gives the bytes it came from.
void check_round_trip(const FrameHeader& header, ByteView bytes) {
  const EncodedHeader again = encode_header(header);
  FM_ASSERT(as_text(again) == as_text(bytes.first(kFrameHeaderSize)));
}

int read_frames(ByteView bytes, const FrameLimits& limits) {
  int accepted = 0;
  while (bytes.size() >= kFrameHeaderSize) {
    const auto header = decode_header(bytes.first<kFrameHeaderSize>(), limits);
    if (!header) break;
    FM_ASSERT(may_begin_frame(bytes));
    FM_ASSERT(header->body_size <= kBodySizeMax);
    FM_ASSERT(header->payload_size <= kPayloadSizeMax);
    check_round_trip(*header, bytes);
    ByteView rest = bytes.subspan(kFrameHeaderSize);
    if (rest.size() < std::size_t{header->body_size} + header->payload_size) break;
    const ByteView body = rest.first(header->body_size);
    const ByteView payload = rest.subspan(header->body_size, header->payload_size);
    if (!check_content(*header, body, payload)) break;
    ++accepted;
    bytes = rest.subspan(body.size() + payload.size());
  }
  return accepted;
}

}  // namespace

int fuzz_frame(const std::uint8_t* data, std::size_t size) {
  const ByteView bytes(reinterpret_cast<const std::byte*>(data), size);
  (void)may_begin_frame(bytes);
  const int accepted = read_frames(bytes, {}) + read_frames(bytes, {.checksums = false});
  if (const auto hello = decode_hello(bytes)) {
    const std::string again = encode_hello(*hello);
    const auto twice = decode_hello(as_bytes(again));
    FM_ASSERT(twice.has_value());
    FM_ASSERT(twice->hello.name == hello->hello.name);
    FM_ASSERT(twice->hello.cluster == hello->hello.cluster);
  }
  return accepted;
}

}  // namespace fermata::fuzz

#ifdef FERMATA_LIBFUZZER
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fermata::fuzz::fuzz_frame(data, size);
  return 0;
}
#endif
