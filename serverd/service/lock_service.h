// Who waits for which lock: the primary's queues, the question who holds one, and delegations
// called back.
//
// Held locks are replicated state (meta/ops/lock.cc); waiting is not. A client that wants to wait
// tries the lock with a ticket, is refused, asks WaitLock until it is its turn, and tries again. A
// new primary starts with empty queues, which the clients' next questions fill.
//
// Fairness: first come, first served among conflicting waiters of a file. Waiting for a waiter is
// no wait for a lock, so it must not make deadlocks of its own: an owner that holds a lock on the
// file passes the queue, and after kYieldMax everybody does.
//
// A delegated list of locks (docs/PROTOCOL.md) is called back before anything is decided on it. It
// is delegated only while nobody waits here, so what a deadlock is made of is always in the state;
// and not again for kCoolDown after more than one wanted it.
//
// Thread-safety: the node's executor.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>

#include "common/base/range_locks.h"
#include "serverd/service/node_context.h"

namespace fermata::serverd {

class LockService {
 public:
  explicit LockService(NodeContext& node) : node_(node) {}

  boost::asio::awaitable<Response> find(Request request);
  boost::asio::awaitable<Response> wait(Request request);

  /// False: others wait for it, and it is not the turn of this request.
  bool is_turn_of(SessionId session, const LockOp& op);
  /// A lock request was carried out (or refused for good): its waiter leaves, others may go on.
  void on_answered(SessionId session, const LockOp& op, bool granted);
  void on_sessions_ended(std::span<const SessionId> sessions);

  /// Resumes when the list is delegated to nobody, or to `except`. Its holder has returned it then,
  /// or its session is over. Errors: kNotPrimary; operation_canceled; soon after `until`,
  /// kDeadlineExceeded.
  Task<void> recall(InodeId inode, LockSpace space, SessionId except,
                    std::optional<TimePoint> until = {});
  /// Nobody else is known to want the list that `op` locks in, and every member knows what a
  /// delegation is.
  bool may_delegate(SessionId session, const LockOp& op);
  /// What the session returns may be delegated to it.
  bool may_be_delegated(SessionId session, const ReturnLocksOp& op) const;
  /// Its holder has given it back.
  void on_returned(InodeId inode, LockSpace space);

 private:
  struct Waiter {
    HeldLock wanted;
    std::uint64_t ticket = 0;
    bool detect_deadlock = false;
    int asking = 0;     // requests under way
    TimePoint since{};  // that it could have had the lock but for earlier waiters; 0: it could not
    TimePoint asked{};  // last
    bool gone = false;  // left the queue
  };
  using Key = std::pair<InodeId, LockSpace>;
  struct Queue {
    explicit Queue(const boost::asio::any_io_executor& executor) : changed(executor) {}
    std::list<std::shared_ptr<Waiter>> waiters;
    Signal changed;
  };

  /// Forgets the queues of an older term; now and then, who has stopped asking.
  void tidy();
  std::shared_ptr<Queue> queue_of(const Key& key);
  std::shared_ptr<Waiter> waiter_of(const Queue& queue, const LockOwner& owner,
                                    std::uint64_t ticket) const;
  void note_contended(const Key& key);
  Result<bool> is_turn(const Key& key, const Queue& queue, Waiter& waiter);
  /// Whether `wanted` waits, through others that wait, for itself.
  Result<bool> would_deadlock(const Key& key, const HeldLock& wanted) const;
  void leave(const Key& key, Queue& queue, const std::shared_ptr<Waiter>& waiter);
  void begin_ticking();
  boost::asio::awaitable<void> tick();
  boost::asio::awaitable<void> call_back(Key key, SessionId holder, std::shared_ptr<Signal> over);

  NodeContext& node_;
  Term term_;
  std::map<Key, std::shared_ptr<Queue>> queues_;
  std::size_t waiting_ = 0;
  bool ticking_ = false;
  TimePoint next_tidy_{};
  std::map<Key, std::shared_ptr<Signal>> recalls_;  // under way
  std::map<Key, TimePoint> contended_;              // when more than one wanted it last
};

}  // namespace fermata::serverd
