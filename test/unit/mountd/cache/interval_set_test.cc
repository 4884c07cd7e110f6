#include "mountd/cache/interval_set.h"

#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "common/env/random.h"

namespace fermata::mountd {
namespace {

TEST_CASE("IntervalSet: agrees with a set of single positions", "[mountd][cache]") {
  constexpr std::uint64_t kSize = 64;
  SeededRandom random(7);
  IntervalSet set;
  std::vector<bool> model(kSize, false);
  for (int round = 0; round < 20'000; ++round) {
    const std::uint64_t begin = random.below(kSize);
    const std::uint64_t end = begin + random.below(kSize - begin + 1);
    const bool add = random.chance(1, 2);
    if (add) {
      set.add(begin, end);
    } else {
      set.remove(begin, end);
    }
    for (std::uint64_t i = begin; i < end; ++i) model[i] = add;

    const std::uint64_t from = random.below(kSize);
    const std::uint64_t to = from + random.below(kSize - from + 1);
    bool all = true;
    bool any = false;
    for (std::uint64_t i = from; i < to; ++i) {
      all = all && model[i];
      any = any || model[i];
    }
    REQUIRE(set.contains(from, to) == all);
    REQUIRE(set.intersects(from, to) == any);
    std::vector<bool> missing(kSize, false);
    for (const ByteRange& gap : set.gaps(from, to)) {
      REQUIRE(gap.begin_bytes < gap.end_bytes);
      for (std::uint64_t i = gap.begin_bytes; i < gap.end_bytes; ++i) missing[i] = true;
    }
    for (std::uint64_t i = 0; i < kSize; ++i) {
      REQUIRE(missing[i] == (i >= from && i < to && !model[i]));
    }
  }
}

}  // namespace
}  // namespace fermata::mountd
