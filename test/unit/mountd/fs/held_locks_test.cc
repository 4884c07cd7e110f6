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

}  // namespace
}  // namespace fermata::mountd
