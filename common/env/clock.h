// Time as the program sees it: one interface, so that a simulation owns it.
#pragma once

#include <chrono>
#include <cstdint>

namespace fermata {

using Duration = std::chrono::nanoseconds;
/// Monotonic time; comparable only within one process (or one simulation).
using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

class Clock {
 public:
  virtual ~Clock() = default;
  /// Monotonic; never goes back.
  virtual TimePoint now() const = 0;
  /// Nanoseconds since 1970 UTC, for timestamps that users see. May jump: never compare for
  /// ordering.
  virtual std::int64_t wall_ns() const = 0;
};

}  // namespace fermata
