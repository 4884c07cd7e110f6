// Advisory byte-range locks of one file: who conflicts with whom, and what a lock or unlock makes
// of an owner's ranges.
//
// The rules are fcntl(2)'s: an owner's new lock replaces what it held in the range, which may cut
// its ranges in two, and neighbours of the same kind become one. flock(2) locks are ranges over the
// whole file in a list of their own: the two kinds do not see each other, as on Linux.
//
// Pure functions on a sorted list; the state machine and the clients' mirrors share them.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "common/base/ids.h"

namespace fermata {

/// Which of a file's two lock lists.
enum class LockSpace : std::uint8_t { kPosix = 1, kFlock = 2 };
enum class LockType : std::uint8_t { kUnlock = 0, kShared = 1, kExclusive = 2 };

/// A lock's owner: one process' file table, whose number is the kernel's (lock_owner of the FUSE
/// requests), or one open file description of one mount: flock's and OFD locks', with its handle.
struct LockOwner {
  SessionId session;
  std::uint64_t number = 0;
  auto operator<=>(const LockOwner&) const = default;
};

/// Bytes first..last, both included; up to the end of any file is kLockEnd.
struct LockRange {
  std::uint64_t first = 0;
  std::uint64_t last = 0;
  bool overlaps(const LockRange& other) const { return first <= other.last && other.first <= last; }
  bool operator==(const LockRange&) const = default;
};
inline constexpr std::uint64_t kLockEnd = INT64_MAX;  ///< as OFFSET_MAX of the kernel
inline constexpr LockRange kWholeFile{0, kLockEnd};

struct HeldLock {
  LockOwner owner;
  LockRange range;
  LockType type = LockType::kShared;  ///< never kUnlock
  std::uint32_t pid = 0;              ///< for F_GETLK, in the mount's pid namespace
  bool operator==(const HeldLock&) const = default;
};

/// Ordered by owner, then range; an owner's ranges do not overlap.
using LockList = std::vector<HeldLock>;

/// A file's lock list may be delegated to a session: then that session's mount answers for it, and
/// the list that the cluster keeps holds nothing but one lock of the whole file, of this owner.
inline constexpr std::uint64_t kDelegate = UINT64_MAX;
HeldLock delegation_to(SessionId session);
/// The session that the list is delegated to; none.
SessionId delegate_of(const LockList& held);

/// The first lock of another owner that keeps `wanted` from being granted; none if nothing does.
std::optional<HeldLock> find_conflict(const LockList& held, const HeldLock& wanted);
bool conflicts(const HeldLock& held, const HeldLock& wanted);
/// Grants one after the other may have made this list: it is in order, and nothing in it conflicts.
bool is_consistent(const LockList& held);
/// Grants `wanted` (nothing conflicts with it) or, as kUnlock, releases the range.
void set_lock(LockList& held, const HeldLock& wanted);

}  // namespace fermata
