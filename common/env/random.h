// Random numbers as the program sees them: seeded in a simulation, from the kernel otherwise.
#pragma once

#include <cstdint>

namespace fermata {

class Random {
 public:
  virtual ~Random() = default;
  virtual std::uint64_t next() = 0;
  /// Uniform in [0, bound); 0 for bound 0. The same on every platform for the same seed.
  std::uint64_t below(std::uint64_t bound) {
    return bound == 0
               ? 0
               : static_cast<std::uint64_t>((static_cast<unsigned __int128>(next()) * bound) >> 64);
  }
  bool chance(std::uint64_t numerator, std::uint64_t denominator) {
    return below(denominator) < numerator;
  }
};

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): small, fast, good enough for tests and timers.
class SeededRandom final : public Random {
 public:
  explicit SeededRandom(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() override {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }

 private:
  std::uint64_t state_;
};

}  // namespace fermata
