#include "common/wire/frame.h"

#include <catch2/catch_test_macros.hpp>

#include "test/support/print.h"

namespace fermata {
namespace {

FrameHeader request_header() {
  FrameHeader header;
  header.kind = FrameKind::kRequest;
  header.group = GroupId(3);
  header.volume = VolumeId(4);
  header.method = 12;
  header.request_id = 0x0102030405060708;
  header.deadline_ms = 1500;
  return header;
}
Result<FrameHeader> decode(const std::string& bytes, FrameLimits limits = {}) {
  return decode_header(as_bytes(bytes).first<kFrameHeaderSize>(), limits);
}

TEST_CASE("frame: a header comes back as it was", "[wire]") {
  const std::string bytes = encode_frame(request_header(), "body", as_bytes("payload"));
  REQUIRE(bytes.size() == kFrameHeaderSize + 11);
  CHECK(bytes.substr(0, 4) == "FMT1");
  const auto header = decode(bytes);
  REQUIRE(header);
  CHECK(header->kind == FrameKind::kRequest);
  CHECK(header->group == GroupId(3));
  CHECK(header->volume == VolumeId(4));
  CHECK(header->method == 12);
  CHECK(header->request_id == 0x0102030405060708);
  CHECK(header->deadline_ms == 1500);
  CHECK(header->body_size == 4);
  CHECK(header->payload_size == 7);
  CHECK(check_content(*header, as_bytes("body"), as_bytes("payload")));
  CHECK(!check_content(*header, as_bytes("bodY"), as_bytes("payload")));
  CHECK(!check_content(*header, as_bytes("body"), as_bytes("payloae")));
  CHECK(!check_content(*header, as_bytes("bod"), as_bytes("ypayload")));
}

TEST_CASE("frame: any flipped bit of a header is seen", "[wire]") {
  const std::string good = encode_frame(request_header(), "");
  for (std::size_t bit = 0; bit < 8 * kFrameHeaderSize; ++bit) {
    CAPTURE(bit);
    std::string bytes = good;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    const bool is_version = bit / 8 == 4 || bit / 8 == 5;
    CHECK(decode(bytes).error() ==
          make_error_code(is_version ? Errc::kVersionMismatch : Errc::kBadMessage));
  }
}

TEST_CASE("frame: checksums are there exactly where they are expected", "[wire]") {
  FrameHeader header = request_header();
  CHECK(!decode(encode_frame(header, ""), {.checksums = false}));
  header.flags = 0;
  CHECK(!decode(encode_frame(header, "")));
  const auto plain = decode(encode_frame(header, "x"), {.checksums = false});
  REQUIRE(plain);
  CHECK(plain->content_crc == 0);
  CHECK(check_content(*plain, as_bytes("y"), {}));
}

TEST_CASE("frame: sizes have limits by kind and by method", "[wire]") {
  FrameHeader header = request_header();
  const auto sized = [&](std::uint32_t body, std::uint32_t payload, FrameLimits limits = {}) {
    header.body_size = body;
    header.payload_size = payload;
    const EncodedHeader bytes = encode_header(header);
    const auto got = decode_header(bytes, limits);
    return got ? std::error_code() : got.error();
  };
  const std::error_code too_large = Errc::kTooLarge;
  CHECK(sized(kBodySizeDefaultMax, kPayloadSizeMax) == std::error_code());
  CHECK(sized(kBodySizeDefaultMax + 1, 0) == too_large);
  CHECK(sized(0, kPayloadSizeMax + 1) == too_large);
  const FrameLimits wide{
      .body_size_max = [](std::uint16_t method) { return method == 12 ? UINT32_MAX : 10U; }};
  CHECK(sized(kBodySizeMax, 0, wide) == std::error_code());
  CHECK(sized(kBodySizeMax + 1, 0, wide) == too_large);
  header.method = 13;
  CHECK(sized(11, 0, wide) == too_large);
  header = FrameHeader();
  header.kind = FrameKind::kPing;
  CHECK(sized(1, 0) == too_large);
  CHECK(sized(0, 1) == too_large);
  header = FrameHeader();
  header.kind = FrameKind::kHello;
  CHECK(sized(kHelloBodySizeMax, 0) == std::error_code());
  CHECK(sized(kHelloBodySizeMax + 1, 0) == too_large);
}

TEST_CASE("frame: what a kind does not use must be zero", "[wire]") {
  const auto accepted = [](FrameHeader header) {
    return decode(encode_frame(header, "")).has_value();
  };
  FrameHeader request;
  request.kind = FrameKind::kRequest;
  CHECK(!accepted(request));  // a request without an id
  request.request_id = 1;
  CHECK(accepted(request));
  request.error = 5;
  CHECK(!accepted(request));
  FrameHeader one_way;
  one_way.kind = FrameKind::kOneWay;
  CHECK(accepted(one_way));
  one_way.request_id = 1;
  CHECK(!accepted(one_way));
  FrameHeader cancel;
  cancel.kind = FrameKind::kCancel;
  cancel.request_id = 1;
  CHECK(accepted(cancel));
  cancel.method = 1;
  CHECK(!accepted(cancel));
  FrameHeader response;
  response.kind = FrameKind::kResponse;
  response.request_id = 1;
  response.deadline_ms = 1;
  CHECK(!accepted(response));
  for (const int kind : {0, 9, 255}) {
    FrameHeader unknown;
    unknown.kind = static_cast<FrameKind>(kind);
    CHECK(!accepted(unknown));
  }
}

HelloBody sample_hello() {
  HelloBody hello;
  hello.hello.kind = Hello::Kind::kNode;
  hello.hello.cluster.bytes.fill(9);
  hello.hello.node = NodeId(5);
  hello.hello.session = SessionId(6);
  hello.hello.name = "host/process";
  return hello;
}

TEST_CASE("hello: comes back as it was; a later version may add to it", "[wire]") {
  const std::string body = encode_hello(sample_hello());
  for (const std::string& bytes : {body, body + "later"}) {
    const auto hello = decode_hello(as_bytes(bytes));
    REQUIRE(hello);
    CHECK(hello->version_min == kProtocolVersionMin);
    CHECK(hello->version_max == kProtocolVersion);
    CHECK(hello->hello.kind == Hello::Kind::kNode);
    CHECK(hello->hello.cluster == sample_hello().hello.cluster);
    CHECK(hello->hello.node == NodeId(5));
    CHECK(hello->hello.session == SessionId(6));
    CHECK(hello->hello.name == "host/process");
  }
  HelloBody long_name = sample_hello();
  long_name.hello.name = std::string(300, 'n');
  CHECK(decode_hello(as_bytes(encode_hello(long_name)))->hello.name == std::string(255, 'n'));
}

TEST_CASE("hello: short, odd and unprintable ones are refused", "[wire]") {
  const std::string body = encode_hello(sample_hello());
  for (std::size_t size = 0; size < body.size(); ++size) {
    CHECK(!decode_hello(as_bytes(body).first(size)));
  }
  HelloBody bad = sample_hello();
  bad.hello.name = "two\nlines";
  CHECK(!decode_hello(as_bytes(encode_hello(bad))));
  bad = sample_hello();
  bad.version_min = 0;
  CHECK(!decode_hello(as_bytes(encode_hello(bad))));
  bad.version_min = 3;
  bad.version_max = 2;
  CHECK(!decode_hello(as_bytes(encode_hello(bad))));
  bad = sample_hello();
  bad.hello.kind = static_cast<Hello::Kind>(4);
  CHECK(!decode_hello(as_bytes(encode_hello(bad))));
}

TEST_CASE("hello: both ends agree on the newest version they share", "[wire]") {
  const auto agree = [](std::uint16_t a, std::uint16_t b, std::uint16_t c, std::uint16_t d) {
    const auto got = agree_version({.version_min = a, .version_max = b, .hello = {}},
                                   {.version_min = c, .version_max = d, .hello = {}});
    return got ? int{*got} : 0;
  };
  CHECK(agree(1, 1, 1, 1) == 1);
  CHECK(agree(1, 3, 2, 5) == 3);
  CHECK(agree(2, 5, 1, 3) == 3);
  CHECK(agree(1, 2, 3, 4) == 0);
}

}  // namespace
}  // namespace fermata
