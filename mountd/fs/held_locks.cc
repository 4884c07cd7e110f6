#include "mountd/fs/held_locks.h"

#include <algorithm>
#include <set>

namespace fermata::mountd {

const LockList* HeldLocks::find(const Key& key) const {
  const auto found = held_.find(key);
  return found == held_.end() ? nullptr : &found->second.locks;
}

void HeldLocks::make_room(Held& held, const HeldLock& lock) {
  const LockList before = held.locks;
  for (const HeldLock& other : before) {
    if (other.owner.session != lock.owner.session || !conflicts(other, lock)) continue;
    const LockRange both{std::max(other.range.first, lock.range.first),
                         std::min(other.range.last, lock.range.last)};
    set_lock(held.locks, {other.owner, both, LockType::kUnlock, 0});
    const auto owns = [&](const HeldLock& each) { return each.owner.number == other.owner.number; };
    if (std::ranges::none_of(held.locks, owns)) held.last_through.erase(other.owner.number);
  }
}

void HeldLocks::apply(InodeId inode, LockSpace space, const HeldLock& lock, std::uint64_t through) {
  MutexLock guard(mutex_);
  Held& held = held_[{inode, space}];
  const std::uint64_t number = lock.owner.number;
  const auto owns = [number](const HeldLock& other) { return other.owner.number == number; };
  if (lock.type == LockType::kUnlock) {
    std::set<LockOwner> owners;
    for (const HeldLock& other : held.locks) {
      if (owns(other)) owners.insert(other.owner);
    }
    for (const LockOwner& owner : owners) {
      set_lock(held.locks, {owner, lock.range, LockType::kUnlock, lock.pid});
    }
    if (std::ranges::none_of(held.locks, owns)) held.last_through.erase(number);
  } else {
    if (find_conflict(held.locks, lock)) make_room(held, lock);
    set_lock(held.locks, lock);
    if (through != 0) held.last_through[number] = through;
  }
  if (held.locks.empty()) held_.erase({inode, space});
}

std::uint64_t HeldLocks::last_through(InodeId inode, LockSpace space, std::uint64_t owner) const {
  MutexLock guard(mutex_);
  const auto held = held_.find({inode, space});
  if (held == held_.end()) return 0;
  const auto found = held->second.last_through.find(owner);
  return found == held->second.last_through.end() ? 0 : found->second;
}

LockList HeldLocks::of_owner(InodeId inode, LockSpace space, std::uint64_t owner) const {
  LockList out;
  MutexLock guard(mutex_);
  const LockList* held = find({inode, space});
  if (held == nullptr) return out;
  std::ranges::copy_if(*held, std::back_inserter(out),
                       [&](const HeldLock& lock) { return lock.owner.number == owner; });
  return out;
}

bool HeldLocks::lost_exclusive(InodeId inode, SessionId now) const {
  MutexLock guard(mutex_);
  for (const LockSpace space : {LockSpace::kPosix, LockSpace::kFlock}) {
    const LockList* held = find({inode, space});
    if (held == nullptr) continue;
    const bool lost = std::ranges::any_of(*held, [&](const HeldLock& lock) {
      return lock.type == LockType::kExclusive && lock.owner.session != now;
    });
    if (lost) return true;
  }
  return false;
}

bool HeldLocks::lost_any(InodeId inode, LockSpace space, std::uint64_t owner, SessionId now) const {
  return std::ranges::any_of(of_owner(inode, space, owner),
                             [&](const HeldLock& lock) { return lock.owner.session != now; });
}

bool HeldLocks::in_the_way(InodeId inode, LockSpace space, const HeldLock& wanted) const {
  MutexLock guard(mutex_);
  const LockList* held = find({inode, space});
  return held != nullptr && find_conflict(*held, wanted).has_value();
}

void HeldLocks::set_delegation(InodeId inode, LockSpace space, SessionId session, Delegation now) {
  MutexLock guard(mutex_);
  if (now == Delegation::kNone) {
    delegations_.erase({inode, space});
  } else {
    delegations_[{inode, space}] = {session, now};
  }
}

void HeldLocks::forget_delegations_but_of(SessionId session) {
  MutexLock guard(mutex_);
  std::erase_if(delegations_, [&](const auto& each) { return each.second.first != session; });
}

HeldLocks::Delegation HeldLocks::delegation(InodeId inode, LockSpace space,
                                            SessionId session) const {
  MutexLock guard(mutex_);
  const auto found = delegations_.find({inode, space});
  const bool known = found != delegations_.end() && found->second.first == session;
  return known ? found->second.second : Delegation::kNone;
}

LockList HeldLocks::of_session(InodeId inode, LockSpace space, SessionId session) const {
  LockList out;
  MutexLock guard(mutex_);
  const LockList* held = find({inode, space});
  if (held == nullptr) return out;
  std::ranges::copy_if(*held, std::back_inserter(out),
                       [&](const HeldLock& lock) { return lock.owner.session == session; });
  return out;
}

std::vector<LockOp> undo_of(const LockOp& op, const LockList& before) {
  std::vector<LockOp> out;
  const auto add = [&](LockType type, std::uint64_t first, std::uint64_t last) {
    LockOp piece = op;
    piece.ticket = 0;
    piece.type = type;
    piece.range = {first, last};
    out.push_back(std::move(piece));
  };
  std::uint64_t done_below = op.range.first;
  for (const HeldLock& lock : before) {
    if (!lock.range.overlaps(op.range)) continue;
    const std::uint64_t first = std::max(lock.range.first, op.range.first);
    const std::uint64_t last = std::min(lock.range.last, op.range.last);
    if (first > done_below) add(LockType::kUnlock, done_below, first - 1);
    add(lock.type, first, last);
    done_below = last + 1;  // kLockEnd is less than the type's end
  }
  if (done_below <= op.range.last) add(LockType::kUnlock, done_below, op.range.last);
  return out;
}

}  // namespace fermata::mountd
