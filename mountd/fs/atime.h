// Which reads count as access times.
#pragma once

#include <cstdint>

namespace fermata::mountd {

enum class AtimeRule : std::uint8_t {
  kNever,
  kRelative,  ///< if the last one is not newer than the last change, or a day old
  kAlways,
};

}  // namespace fermata::mountd
