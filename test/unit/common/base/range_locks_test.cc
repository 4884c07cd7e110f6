#include "common/base/range_locks.h"

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <ctime>
#include <map>
#include <random>

namespace fermata {
namespace {

HeldLock lock(std::uint64_t owner, std::uint64_t first, std::uint64_t last, LockType type) {
  return {{SessionId(1), owner}, {first, last}, type, 0};
}

TEST_CASE("locks: an unlock in the middle cuts a range in two", "[locks]") {
  LockList held;
  set_lock(held, lock(1, 0, 99, LockType::kExclusive));
  set_lock(held, lock(1, 40, 59, LockType::kUnlock));
  REQUIRE(held.size() == 2);
  CHECK(held[0].range == LockRange{0, 39});
  CHECK(held[1].range == LockRange{60, 99});
  set_lock(held, lock(1, 40, 59, LockType::kExclusive));
  REQUIRE(held.size() == 1);
  CHECK(held[0].range == LockRange{0, 99});
}

TEST_CASE("locks: other kinds do not merge, other owners conflict", "[locks]") {
  LockList held;
  set_lock(held, lock(1, 0, 9, LockType::kShared));
  set_lock(held, lock(1, 10, 19, LockType::kExclusive));
  CHECK(held.size() == 2);
  CHECK_FALSE(find_conflict(held, lock(2, 0, 9, LockType::kShared)));
  CHECK(find_conflict(held, lock(2, 0, 9, LockType::kExclusive)));
  const auto found = find_conflict(held, lock(2, 5, kLockEnd, LockType::kShared));
  REQUIRE(found);
  CHECK(found->range == LockRange{10, 19});
  CHECK_FALSE(find_conflict(held, lock(1, 0, kLockEnd, LockType::kExclusive)));
  CHECK_FALSE(find_conflict(held, lock(2, 0, kLockEnd, LockType::kUnlock)));
}

// The oracle holds one state per byte and owner.
TEST_CASE("locks: random requests agree with one state per byte", "[locks]") {
  constexpr std::uint64_t kBytes = 24;
  constexpr std::uint64_t kOwners = 3;
  std::mt19937_64 random(7);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  for (int round = 0; round < 50; ++round) {
    LockList held;
    std::map<std::pair<std::uint64_t, std::uint64_t>, LockType> bytes;
    for (int step = 0; step < 200; ++step) {
      const std::uint64_t first = below(kBytes);
      const HeldLock wanted = lock(1 + below(kOwners), first, first + below(kBytes - first),
                                   static_cast<LockType>(below(3)));
      bool blocked = false;
      for (std::uint64_t at = wanted.range.first; at <= wanted.range.last; ++at) {
        for (std::uint64_t owner = 1; owner <= kOwners; ++owner) {
          const auto state = bytes.find({owner, at});
          if (owner == wanted.owner.number || state == bytes.end()) continue;
          blocked |= wanted.type == LockType::kExclusive ||
                     (wanted.type == LockType::kShared && state->second == LockType::kExclusive);
        }
      }
      REQUIRE(find_conflict(held, wanted).has_value() == blocked);
      if (blocked) continue;
      set_lock(held, wanted);
      for (std::uint64_t at = wanted.range.first; at <= wanted.range.last; ++at) {
        if (wanted.type == LockType::kUnlock) {
          bytes.erase({wanted.owner.number, at});
        } else {
          bytes[{wanted.owner.number, at}] = wanted.type;
        }
      }
      std::map<std::pair<std::uint64_t, std::uint64_t>, LockType> seen;
      for (std::size_t i = 0; i < held.size(); ++i) {
        for (std::uint64_t at = held[i].range.first; at <= held[i].range.last; ++at)
          REQUIRE(seen.emplace(std::pair(held[i].owner.number, at), held[i].type).second);
        if (i == 0) continue;
        REQUIRE(held[i - 1].owner <= held[i].owner);
        const bool mergeable = held[i - 1].owner == held[i].owner &&
                               held[i - 1].type == held[i].type &&
                               held[i - 1].range.last + 1 == held[i].range.first;
        REQUIRE_FALSE(mergeable);
      }
      REQUIRE(seen == bytes);
    }
  }
}

TEST_CASE("locks: a list is consistent if it is in order and no two conflict", "[locks]") {
  constexpr std::uint64_t kBytes = 40;
  std::mt19937_64 random(8);
  const auto below = [&](std::uint64_t n) { return random() % n; };
  int consistent = 0;
  constexpr int kRounds = 3000;
  for (int round = 0; round < kRounds; ++round) {
    LockList held;
    for (std::uint64_t left = below(8); left > 0; --left) {
      const std::uint64_t first = below(kBytes);
      const std::uint64_t last = below(20) == 0 ? kLockEnd : first + below(6);
      set_lock(held, lock(1 + below(3), first, last, static_cast<LockType>(below(3))));
    }
    const bool expected =
        std::ranges::all_of(held, [&](const HeldLock& each) { return !find_conflict(held, each); });
    REQUIRE(is_consistent(held) == expected);
    consistent += expected ? 1 : 0;
    for (std::size_t i = 1; i < held.size(); ++i) {
      LockList disordered = held;
      std::swap(disordered[i - 1], disordered[i]);
      REQUIRE_FALSE(is_consistent(disordered));
      disordered[i - 1] = disordered[i];
      REQUIRE_FALSE(is_consistent(disordered));
    }
  }
  CHECK(consistent > kRounds / 10);
  CHECK(consistent < kRounds * 9 / 10);
  CHECK_FALSE(is_consistent({lock(1, 0, 9, LockType::kUnlock)}));
  CHECK_FALSE(is_consistent({lock(1, 9, 0, LockType::kShared)}));
}

TEST_CASE("locks: whether many are consistent costs as much as a few grants beside them",
          "[locks]") {
  const auto cpu_time = [](const auto& work) {
    const std::clock_t begin = std::clock();
    work();
    return std::clock() - begin;
  };
  LockList held;
  for (std::uint64_t i = 0; i < 10'000; ++i)
    held.push_back(lock(1, 2 * i, 2 * i, LockType::kExclusive));
  bool consistent = true;
  const auto whole = cpu_time([&] {
    for (int i = 0; i < 10; ++i) consistent &= is_consistent(held);
  });
  LockList grown = held;
  const auto grants = cpu_time([&] {
    for (std::uint64_t i = 0; i < 1000; ++i)
      set_lock(grown, lock(2, 20'000 + 2 * i, 20'000 + 2 * i, LockType::kExclusive));
  });
  CHECK(consistent);
  CHECK(whole < grants);  // a hundred grants each
}

}  // namespace
}  // namespace fermata
