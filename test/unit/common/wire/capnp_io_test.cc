#include "common/wire/capnp_io.h"

#include <capnp/any.h>

#include <catch2/catch_test_macros.hpp>

#include "common/env/random.h"
#include "test/support/print.h"

namespace fermata {
namespace {

std::string encoded_text(std::size_t size, unsigned first_segment_words = 64) {
  capnp::MallocMessageBuilder message(first_segment_words);
  const std::string text(size, 't');
  message.getRoot<capnp::AnyPointer>().setAs<capnp::Text>(
      capnp::Text::Reader(text.c_str(), text.size()));
  return encode_message(message);
}
Result<std::size_t> text_size(ByteView bytes) {
  return decode_message(bytes, [](capnp::MessageReader& message) -> Result<std::size_t> {
    return message.getRoot<capnp::AnyPointer>().getAs<capnp::Text>().size();
  });
}
std::string table(std::vector<std::uint32_t> fields, std::size_t content_words) {
  std::string bytes;
  for (const std::uint32_t field : fields) append_le(bytes, field);
  bytes.append(content_words * 8, '\0');
  return bytes;
}

TEST_CASE("capnp_io: messages come back, aligned or not, in one segment or more", "[wire]") {
  for (const std::size_t size : {0UL, 7UL, 1000UL, 60000UL}) {
    for (const unsigned first : {1U, 64U, 8192U}) {
      const std::string bytes = encoded_text(size, first);
      CHECK(text_size(as_bytes(bytes)) == size);
      const std::string shifted = "x" + bytes;
      CHECK(text_size(as_bytes(shifted).subspan(1)) == size);
    }
  }
}

TEST_CASE("capnp_io: bad segment tables never reach the library", "[wire]") {
  CHECK(check_segment_table(as_bytes(table({0, 2}, 2))));
  CHECK(check_segment_table(as_bytes(table({1, 1, 1, 0}, 2))));
  CHECK(!check_segment_table({}));
  CHECK(!check_segment_table(as_bytes(table({0}, 0))));
  CHECK(!check_segment_table(as_bytes(table({0, 2}, 1))));           // one missing
  CHECK(!check_segment_table(as_bytes(table({0, 2}, 3))));           // one too many
  CHECK(!check_segment_table(as_bytes(table({0, 0}, 0))));           // nothing in it
  CHECK(!check_segment_table(as_bytes(table({0, 2}, 2) + "x")));     // not whole words
  CHECK(!check_segment_table(as_bytes(table({0xffffffff, 0}, 4))));  // count wraps to 0
  CHECK(!check_segment_table(as_bytes(table({0xfffffffe, 1}, 4))));
  CHECK(!check_segment_table(as_bytes(table({16, 1}, 40))));
  CHECK(!check_segment_table(as_bytes(table({1, 0xffffffff, 3, 0}, 2))));  // sum wraps in 32 bits
}

TEST_CASE("capnp_io: bad pointers and amplification end as kBadMessage", "[wire]") {
  std::string bytes = encoded_text(100);
  bytes[12] = '\x7f';  // the root pointer leads out of the segment
  CHECK(text_size(as_bytes(bytes)).error() == make_error_code(Errc::kBadMessage));
  // Reading the same 60000 bytes 100 times is over 8 times their size.
  const std::string big = encoded_text(60000);
  const auto again = decode_message(as_bytes(big), [](capnp::MessageReader& m) -> Result<int> {
    std::size_t sum = 0;
    for (int i = 0; i < 100; ++i) sum += m.getRoot<capnp::AnyPointer>().getAs<capnp::Text>().size();
    return static_cast<int>(sum);
  });
  CHECK(again.error() == make_error_code(Errc::kBadMessage));
}

TEST_CASE("capnp_io: mutated messages are read or refused, nothing else", "[wire]") {
  SeededRandom random(7);
  const std::string good = encoded_text(200, 4);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = good;
    for (std::uint64_t m = 0; m <= random.below(3); ++m) {
      bytes[random.below(std::min<std::size_t>(bytes.size(), 40))] =
          static_cast<char>(random.next());
    }
    if (!text_size(as_bytes(bytes))) ++refused;
  }
  CHECK(refused > 1000);
}

}  // namespace
}  // namespace fermata
