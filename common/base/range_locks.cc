#include "common/base/range_locks.h"

#include <algorithm>

namespace fermata {

bool conflicts(const HeldLock& held, const HeldLock& wanted) {
  return held.owner != wanted.owner && held.range.overlaps(wanted.range) &&
         (held.type == LockType::kExclusive || wanted.type == LockType::kExclusive);
}

HeldLock delegation_to(SessionId session) {
  return {{session, kDelegate}, kWholeFile, LockType::kExclusive, 0};
}

SessionId delegate_of(const LockList& held) {
  const bool delegated = held.size() == 1 && held.front().owner.number == kDelegate;
  return delegated ? held.front().owner.session : SessionId();
}

std::optional<HeldLock> find_conflict(const LockList& held, const HeldLock& wanted) {
  if (wanted.type == LockType::kUnlock) return std::nullopt;
  const auto found =
      std::ranges::find_if(held, [&](const HeldLock& lock) { return conflicts(lock, wanted); });
  if (found == held.end()) return std::nullopt;
  return *found;
}

bool is_consistent(const LockList& held) {
  for (std::size_t i = 0; i < held.size(); ++i) {
    if (held[i].type == LockType::kUnlock || held[i].range.first > held[i].range.last) return false;
    if (i == 0 || held[i - 1].owner < held[i].owner) continue;
    const bool apart = held[i - 1].range.last < held[i].range.first;
    if (held[i - 1].owner != held[i].owner || !apart) return false;
  }
  // Each reaches into the next ones of the sweep only if it is another owner's.
  std::vector<const HeldLock*> sweep;
  sweep.reserve(held.size());
  for (const HeldLock& lock : held) sweep.push_back(&lock);
  std::ranges::sort(sweep, {}, [](const HeldLock* lock) { return lock->range.first; });
  std::uint64_t shared_below = 0, exclusive_below = 0;
  for (const HeldLock* lock : sweep) {
    const bool exclusive = lock->type == LockType::kExclusive;
    if (lock->range.first < exclusive_below) return false;
    if (exclusive && lock->range.first < shared_below) return false;
    std::uint64_t& below = exclusive ? exclusive_below : shared_below;
    below = std::max(below, lock->range.last + 1);  // kLockEnd is less than the type's end
  }
  return true;
}

void set_lock(LockList& held, const HeldLock& wanted) {
  LockList out;
  out.reserve(held.size() + 2);
  LockList own;  // of the owner, in order
  for (const HeldLock& lock : held) {
    if (lock.owner != wanted.owner) {
      out.push_back(lock);
      continue;
    }
    if (!lock.range.overlaps(wanted.range)) {
      own.push_back(lock);
      continue;
    }
    HeldLock rest = lock;
    if (lock.range.first < wanted.range.first) {
      rest.range = {lock.range.first, wanted.range.first - 1};
      own.push_back(rest);
    }
    if (lock.range.last > wanted.range.last) {
      rest.range = {wanted.range.last + 1, lock.range.last};
      own.push_back(rest);
    }
  }
  if (wanted.type != LockType::kUnlock) own.push_back(wanted);
  std::ranges::sort(own, {}, [](const HeldLock& lock) { return lock.range.first; });
  LockList merged;
  for (const HeldLock& lock : own) {
    const bool joins = !merged.empty() && merged.back().type == lock.type &&
                       merged.back().range.last + 1 == lock.range.first;
    if (joins) {
      merged.back().range.last = lock.range.last;
      merged.back().pid = wanted.pid != 0 ? wanted.pid : lock.pid;
    } else {
      merged.push_back(lock);
    }
  }
  const auto at =
      std::ranges::find_if(out, [&](const HeldLock& lock) { return lock.owner > wanted.owner; });
  out.insert(at, merged.begin(), merged.end());
  held = std::move(out);
}

}  // namespace fermata
