#include "mountd/fs/held_locks.h"

#include <catch2/catch_test_macros.hpp>

namespace fermata::mountd {
namespace {

constexpr InodeId kFile{7};
constexpr SessionId kSession{3};

HeldLock lock_of(std::uint64_t owner, LockType type, std::uint64_t first, std::uint64_t last) {
  return {{kSession, owner}, {first, last}, type, 0};
}

TEST_CASE("HeldLocks: undoing a request leaves what its owner held before", "[mountd][locks]") {
  LockOp op;
  op.inode = kFile;
  op.owner = 1;
  op.type = LockType::kExclusive;
  op.ticket = 9;
  for (const LockRange range : {LockRange{10, 99}, LockRange{0, kLockEnd}, LockRange{50, 50}}) {
    CAPTURE(range.first, range.last);
    op.range = range;
    LockList before;
    for (const HeldLock& lock :
         {lock_of(1, LockType::kShared, 0, 19), lock_of(1, LockType::kExclusive, 40, 49),
          lock_of(1, LockType::kShared, 90, kLockEnd)}) {
      set_lock(before, lock);
    }
    LockList now = before;
    set_lock(now, {{kSession, op.owner}, op.range, op.type, 0});
    CHECK(now != before);
    for (const LockOp& back : undo_of(op, before)) {
      CHECK(back.ticket == 0);
      CHECK(back.range.first >= range.first);
      CHECK(back.range.last <= range.last);
      set_lock(now, {{kSession, back.owner}, back.range, back.type, 0});
    }
    CHECK(now == before);
  }
}

TEST_CASE("HeldLocks: the handle of an owner's latest lock is known while it holds one",
          "[mountd][locks]") {
  HeldLocks held;
  const auto through = [&] { return held.last_through(kFile, LockSpace::kPosix, 1); };
  CHECK(through() == 0);
  held.apply(kFile, LockSpace::kPosix, lock_of(1, LockType::kShared, 0, 9), 21);
  held.apply(kFile, LockSpace::kPosix, lock_of(2, LockType::kShared, 0, 9), 23);
  CHECK(through() == 21);
  held.apply(kFile, LockSpace::kPosix, lock_of(1, LockType::kExclusive, 20, 29), 22);
  CHECK(through() == 22);
  held.apply(kFile, LockSpace::kPosix, lock_of(1, LockType::kUnlock, 20, 29));
  CHECK(through() == 22);  // it has the other one still
  held.apply(kFile, LockSpace::kPosix, lock_of(1, LockType::kUnlock, 0, kLockEnd));
  CHECK(through() == 0);
  CHECK(held.last_through(kFile, LockSpace::kPosix, 2) == 23);
}

TEST_CASE("HeldLocks: a delegation, and what is held under it, is of one session",
          "[mountd][locks]") {
  using Delegation = HeldLocks::Delegation;
  constexpr SessionId kNext{4};
  HeldLocks held;
  held.set_delegation(kFile, LockSpace::kPosix, kSession, Delegation::kHeld);
  CHECK(held.delegation(kFile, LockSpace::kPosix, kSession) == Delegation::kHeld);
  CHECK(held.delegation(kFile, LockSpace::kFlock, kSession) == Delegation::kNone);
  CHECK(held.delegation(kFile, LockSpace::kPosix, kNext) == Delegation::kNone);
  const HeldLock old = lock_of(1, LockType::kExclusive, 0, 9);
  const HeldLock fresh{{kNext, 1}, {20, 29}, LockType::kShared, 0};
  held.apply(kFile, LockSpace::kPosix, old);
  held.apply(kFile, LockSpace::kPosix, fresh);
  CHECK(held.of_session(kFile, LockSpace::kPosix, kSession) == LockList{old});
  CHECK(held.of_session(kFile, LockSpace::kPosix, kNext) == LockList{fresh});
  held.set_delegation(kFile, LockSpace::kFlock, kNext, Delegation::kUnsure);
  held.forget_delegations_but_of(kNext);
  CHECK(held.delegation(kFile, LockSpace::kFlock, kNext) == Delegation::kUnsure);
  CHECK(held.delegation(kFile, LockSpace::kPosix, kSession) == Delegation::kNone);
}

TEST_CASE("HeldLocks: a grant ends what it contradicts", "[mountd][locks]") {
  // The cluster has carried out the others' releases, although their answers were given up.
  constexpr SessionId kOld{2};
  HeldLocks held;
  const auto apply = [&](const HeldLock& lock, std::uint64_t through) {
    held.apply(kFile, LockSpace::kPosix, lock, through);
  };
  const HeldLock lost{{kOld, 9}, {0, 99}, LockType::kExclusive, 0};
  apply(lost, 20);
  apply(lock_of(1, LockType::kExclusive, 0, 9), 21);
  apply(lock_of(1, LockType::kShared, 20, 29), 21);
  apply(lock_of(2, LockType::kExclusive, 30, 39), 22);
  apply(lock_of(3, LockType::kShared, 5, 35), 23);
  CHECK(held.of_session(kFile, LockSpace::kPosix, kSession) ==
        LockList{lock_of(1, LockType::kExclusive, 0, 4), lock_of(1, LockType::kShared, 20, 29),
                 lock_of(2, LockType::kExclusive, 36, 39), lock_of(3, LockType::kShared, 5, 35)});
  apply(lock_of(3, LockType::kExclusive, 0, 50), 23);
  CHECK(is_consistent(held.of_session(kFile, LockSpace::kPosix, kSession)));
  CHECK_FALSE(held.holds(kFile, LockSpace::kPosix, 2));
  CHECK(held.last_through(kFile, LockSpace::kPosix, 2) == 0);
  CHECK(held.lost_any(kFile, LockSpace::kPosix, 9, kSession));  // its owner has not let go of it
}

}  // namespace
}  // namespace fermata::mountd
