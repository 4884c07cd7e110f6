#include "test/fuzz/fuzz_frame.h"

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>

#include "common/base/checksum.h"
#include "common/env/random.h"
#include "common/wire/frame.h"

namespace fermata::fuzz {
namespace {

std::string seed_bytes(SeededRandom& random) {
  FrameHeader header;
  header.kind = static_cast<FrameKind>(1 + random.below(8));
  header.flags = random.chance(1, 2) ? kFrameChecksummed : 0;
  const bool is_call = header.kind == FrameKind::kRequest || header.kind == FrameKind::kOneWay;
  const bool is_hello = header.kind == FrameKind::kHello || header.kind == FrameKind::kHelloReply;
  if (is_call) header.method = static_cast<std::uint16_t>(random.below(64));
  if (header.kind == FrameKind::kRequest || header.kind == FrameKind::kResponse ||
      header.kind == FrameKind::kCancel) {
    header.request_id = 1 + random.below(1000);
  }
  std::string body;
  if (is_hello) {
    HelloBody hello;
    hello.hello.name = std::string(random.below(40), 'h');
    body = encode_hello(hello);
  } else if (is_call || header.kind == FrameKind::kResponse) {
    body = std::string(random.below(100), 'b');
  }
  return random.chance(1, 4) && is_hello ? body : encode_frame(header, body);
}

void mutate(std::string& bytes, SeededRandom& random) {
  if (bytes.empty()) return;
  const std::size_t at = random.below(bytes.size());
  switch (random.below(6)) {
    case 0:
      bytes[at] = static_cast<char>(bytes[at] ^ (1 << random.below(8)));
      break;
    case 1:
      bytes[at] = static_cast<char>(random.next());
      break;
    case 2:
      bytes.resize(at);
      break;
    case 3:
      bytes.insert(at, std::string(1 + random.below(16), static_cast<char>(random.next())));
      break;
    case 4:
      bytes.append(bytes.substr(at));
      break;
    default:  // a lie with a right checksum gets past the first door
      if (bytes.size() >= kFrameHeaderSize) {
        bytes[random.below(44)] = static_cast<char>(random.next());
        const std::uint32_t crc = crc32c(as_bytes(bytes).first(44));
        std::memcpy(bytes.data() + 44, &crc, sizeof crc);
      }
  }
}

TEST_CASE("fuzz_frame: random mutations are refused or read, never worse", "[fuzz]") {
  const char* rounds_text = std::getenv("FERMATA_FUZZ_ROUNDS");
  const int rounds = rounds_text == nullptr ? 200'000 : std::atoi(rounds_text);
  const std::uint64_t seed = 1;
  CAPTURE(seed, rounds);
  SeededRandom random(seed);
  int accepted = 0;
  for (int i = 0; i < rounds; ++i) {
    std::string bytes = seed_bytes(random);
    for (std::uint64_t m = random.below(4); m != 0; --m) mutate(bytes, random);
    accepted += fuzz_frame(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  }
  CHECK(accepted > rounds / 10);  // else the mutations only knock at the first door
  CHECK(accepted < rounds * 2);
}

}  // namespace
}  // namespace fermata::fuzz
