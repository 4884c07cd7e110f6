#include "common/base/range_locks.h"

#include <catch2/catch_test_macros.hpp>
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

}  // namespace
}  // namespace fermata
