// The advisory locks that programs of this mount hold: what must be released with a close, what a
// release must commit first, what a lost session takes away. The cluster has the same, but for
// files whose locks are delegated to this mount's session: there this is what decides.
//
// Thread-safety: any thread.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "common/base/mutex.h"
#include "common/base/range_locks.h"
#include "common/wire/messages.h"

namespace fermata::mountd {

class HeldLocks {
 public:
  /// The cluster granted (or released) it in the owner's session. A grant ends what contradicts it
  /// in that session: a release of that has been carried out, though nobody heard of it. A release
  /// also ends what the owner held under sessions that are over. `through`: the handle that a lock
  /// was asked for through; 0 leaves what last_through() says.
  void apply(InodeId inode, LockSpace space, const HeldLock& lock, std::uint64_t through = 0);
  /// Through which handle the owner got its latest lock of the file; 0 if it holds none.
  std::uint64_t last_through(InodeId inode, LockSpace space, std::uint64_t owner) const;
  /// What the owner holds on the file.
  LockList of_owner(InodeId inode, LockSpace space, std::uint64_t owner) const;
  bool holds(InodeId inode, LockSpace space, std::uint64_t owner) const {
    return !of_owner(inode, space, owner).empty();
  }
  /// It is locked for writing by the grant of a session other than `now`: others may have it.
  bool lost_exclusive(InodeId inode, SessionId now) const;
  /// The owner holds a lock here that was granted in another session: the cluster has released it,
  /// and others may have changed what the owner thinks it protects.
  bool lost_any(InodeId inode, LockSpace space, std::uint64_t owner, SessionId now) const;

  /// Whether another owner of this mount is in the way of `wanted`.
  bool in_the_way(InodeId inode, LockSpace space, const HeldLock& wanted) const;

  // --- delegations: of one session, inside the file's gate for locks
  enum class Delegation {
    kNone,
    kHeld,
    kUnsure,  ///< a request about it has not been answered: it is returned before anything else
  };
  void set_delegation(InodeId inode, LockSpace space, SessionId session, Delegation now);
  /// Those of other sessions are over.
  void forget_delegations_but_of(SessionId session);
  Delegation delegation(InodeId inode, LockSpace space, SessionId session) const;
  /// What is held under grants of the session.
  LockList of_session(InodeId inode, LockSpace space, SessionId session) const;

 private:
  struct Held {
    LockList locks;
    std::map<std::uint64_t, std::uint64_t> last_through;  // by owner
  };
  using Key = std::pair<InodeId, LockSpace>;
  const LockList* find(const Key& key) const FM_REQUIRES(mutex_);
  static void make_room(Held& held, const HeldLock& lock);

  mutable Mutex mutex_;
  std::map<Key, Held> held_ FM_GUARDED_BY(mutex_);
  std::map<Key, std::pair<SessionId, Delegation>> delegations_ FM_GUARDED_BY(mutex_);
};

/// The requests that make an owner's locks in op.range what they were `before` it was granted.
std::vector<LockOp> undo_of(const LockOp& op, const LockList& before);

}  // namespace fermata::mountd
