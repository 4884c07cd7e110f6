// Byte buffers and little-endian fields.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fermata {

static_assert(std::endian::native == std::endian::little,
              "on-disk and wire formats are little-endian");

using Bytes = std::vector<std::byte>;
using ByteView = std::span<const std::byte>;
using MutableByteView = std::span<std::byte>;

inline ByteView as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view as_text(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline Bytes to_bytes(std::string_view text) {
  const auto view = as_bytes(text);
  return {view.begin(), view.end()};
}

/// Appends the object representation of an integer or a packed trivially copyable struct.
template <class T>
void append_le(std::string& out, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}
template <class T>
T load_le(const void* at) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
/// Big-endian, so that keys sort as numbers do.
inline void append_be64(std::string& out, std::uint64_t value) {
  append_le(out, __builtin_bswap64(value));
}
inline std::uint64_t load_be64(const void* at) {
  return __builtin_bswap64(load_le<std::uint64_t>(at));
}

}  // namespace fermata
