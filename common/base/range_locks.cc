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
