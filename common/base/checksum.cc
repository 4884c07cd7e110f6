#include "common/base/checksum.h"

#include <openssl/evp.h>
#include <xxhash.h>

#include "common/base/assert.h"

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace fermata {
namespace {

consteval std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0x82f63b78U : 0U);
    table[i] = c;
  }
  return table;
}
constexpr auto kTable = make_table();

std::uint32_t crc_table(const std::uint8_t* p, std::size_t n, std::uint32_t c) {
  for (; n != 0; --n) c = (c >> 8) ^ kTable[(c ^ *p++) & 255];
  return c;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) std::uint32_t crc_sse42(const std::uint8_t* p, std::size_t n,
                                                          std::uint32_t c) {
  std::uint64_t wide = c;
  for (; n >= 8; n -= 8, p += 8) wide = _mm_crc32_u64(wide, load_le<std::uint64_t>(p));
  auto narrow = static_cast<std::uint32_t>(wide);
  for (; n != 0; --n) narrow = _mm_crc32_u8(narrow, *p++);
  return narrow;
}
#endif

}  // namespace

std::uint32_t crc32c(ByteView bytes, std::uint32_t seed) {
  const auto* p = reinterpret_cast<const std::uint8_t*>(bytes.data());
  const std::uint32_t c = ~seed;
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("sse4.2");
  if (fast) return ~crc_sse42(p, bytes.size(), c);
#endif
  return ~crc_table(p, bytes.size(), c);
}

std::uint64_t xxh3(ByteView bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

ChunkId chunk_id_of(ByteView bytes) {
  ChunkId id;
  id.algorithm = ChunkId::kSha256;
  unsigned size = 0;
  // One fetched method for the process: EVP_sha256() alone is looked up anew at each call in
  // OpenSSL 3.
  static EVP_MD* const method = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  FM_ASSERT(method != nullptr);
  FM_ASSERT(EVP_Digest(bytes.data(), bytes.size(), id.digest.data(), &size, method, nullptr) == 1);
  FM_ASSERT(size == id.digest.size());
  return id;
}

}  // namespace fermata
