// Entry points that take any bytes, for libFuzzer and for the mutation driver beside them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fermata::fuzz {

/// Reads the bytes as a stream of frames and as a hello. Aborts if what is accepted does not encode
/// to the same bytes. Returns the number of frames accepted.
int fuzz_frame(const std::uint8_t* data, std::size_t size);

}  // namespace fermata::fuzz
