#include "mountd/fs/second_tries.h"

#include <catch2/catch_test_macros.hpp>

namespace fermata::mountd {
namespace {

constexpr pid_t kCaller = 7;
constexpr pid_t kOther = 8;
constexpr NodeHandle kOld{10};
constexpr NodeHandle kNew{11};
const TimePoint kThen{std::chrono::seconds(100)};

}  // namespace

TEST_CASE("SecondTries: an open after ESTALE and a lookup is one, once", "[mountd][fs]") {
  SecondTries tries;
  CHECK_FALSE(tries.take(kCaller, kNew, kThen));
  tries.refused(kCaller, kThen);
  tries.looked_up(kOther, kOld);
  tries.looked_up(kCaller, kNew);
  CHECK_FALSE(tries.take(kOther, kNew, kThen));
  CHECK(tries.take(kCaller, kNew, kThen + std::chrono::seconds(1)));
  CHECK_FALSE(tries.take(kCaller, kNew, kThen + std::chrono::seconds(1)));
}

TEST_CASE("SecondTries: what was not looked up since, or long ago, is none", "[mountd][fs]") {
  SecondTries tries;
  tries.refused(kCaller, kThen);
  CHECK_FALSE(tries.take(kCaller, kNew, kThen));  // an open of a name that the kernel knew
  tries.refused(kCaller, kThen);
  tries.looked_up(kCaller, kOld);
  CHECK_FALSE(tries.take(kCaller, kNew, kThen));
  tries.refused(kCaller, kThen);
  tries.looked_up(kCaller, kNew);
  CHECK_FALSE(tries.take(kCaller, kNew, kThen + std::chrono::seconds(3)));
}

}  // namespace fermata::mountd
