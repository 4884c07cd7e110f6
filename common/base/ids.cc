#include "common/base/ids.h"

namespace fermata {

std::string to_hex(const std::uint8_t* data, std::size_t size) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out(size * 2, '0');
  for (std::size_t i = 0; i < size; ++i) {
    out[2 * i] = kDigits[data[i] >> 4];
    out[2 * i + 1] = kDigits[data[i] & 15];
  }
  return out;
}

std::string ChunkId::hex() const { return to_hex(digest.data(), digest.size()); }
std::string ClusterId::hex() const { return to_hex(bytes.data(), bytes.size()); }

}  // namespace fermata
