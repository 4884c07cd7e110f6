#include "mountd/fs/held_locks.h"

#include <algorithm>

namespace fermata::mountd {

void HeldLocks::apply(InodeId inode, LockSpace space, const HeldLock& lock) {
  MutexLock guard(mutex_);
  LockList& held = locks_[{inode, space}];
  set_lock(held, lock);
  if (held.empty()) locks_.erase({inode, space});
}

LockList HeldLocks::of_owner(InodeId inode, LockSpace space, std::uint64_t owner) const {
  LockList out;
  MutexLock guard(mutex_);
  const auto found = locks_.find({inode, space});
  if (found == locks_.end()) return out;
  std::ranges::copy_if(found->second, std::back_inserter(out),
                       [&](const HeldLock& lock) { return lock.owner.number == owner; });
  return out;
}

bool HeldLocks::lost_exclusive(InodeId inode, SessionId now) const {
  MutexLock guard(mutex_);
  for (const LockSpace space : {LockSpace::kPosix, LockSpace::kFlock}) {
    const auto found = locks_.find({inode, space});
    if (found == locks_.end()) continue;
    const bool lost = std::ranges::any_of(found->second, [&](const HeldLock& lock) {
      return lock.type == LockType::kExclusive && lock.owner.session != now;
    });
    if (lost) return true;
  }
  return false;
}

void HeldLocks::lose_all() {
  MutexLock guard(mutex_);
  locks_.clear();
}

}  // namespace fermata::mountd
