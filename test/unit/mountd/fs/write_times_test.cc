#include "mountd/fs/write_times.h"

#include <catch2/catch_test_macros.hpp>

using fermata::mountd::WriteTimes;

namespace {
constexpr std::int64_t kSecond = 1'000'000'000;
}

TEST_CASE("WriteTimes: a write is newer than what was seen before it", "[mountd][fs]") {
  WriteTimes times;
  times.settle(500);
  CHECK(!times.moved(500));
  SECTION("its own time, when the clocks agree") {
    CHECK(times.moved(2000));
    CHECK(times.look(2000, 1000) == 2000);
  }
  SECTION("not older than the file, whatever this machine's clock says") {
    times.follow(100 * kSecond);
    CHECK(times.look(2000, 100 * kSecond) == 100 * kSecond + 1);
  }
  SECTION("a coarse clock does not hide a write after a chmod") {
    CHECK(times.look(2000, 1000) == 2000);
    CHECK(times.look(2000, 3000) == 2000);  // a chmod; nothing written since
    CHECK(times.look(2500, 3000) == 3001);  // written after it, within the same tick
    CHECK(times.look(2500, 3001) == 3001);  // and that stays
  }
  SECTION("every write since a look shows, also under a clock that lags") {
    times.follow(kSecond);
    CHECK(times.look(2000, 1000) == kSecond + 1);
    CHECK(times.look(2500, 1000) == kSecond + 2);
    CHECK(times.look(2500, 1000) == kSecond + 2);
  }
  SECTION("a chmod long after a write does not make the write newer") {
    CHECK(times.look(2000, 5 * kSecond) == 2000);
  }
  SECTION("a commit is where it starts anew") {
    times.settle(2000);
    CHECK(!times.moved(2000));
    CHECK(times.moved(2001));
  }
}
