#include "serverd/service/lock_service.h"

#include <algorithm>
#include <utility>

#include "common/wire/message_codec.h"
#include "serverd/service/callbacks.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kWaitersMax = 100'000;
constexpr Duration kAnswerAfter = 3s;  // below what clients wait for one answer
constexpr Duration kForgetAfter = 20s;
constexpr Duration kYieldMax = 1s;
constexpr Duration kTick = 250ms;
constexpr Duration kCoolDown = 1s;
/// A return takes its way through the log, which may be slow; the holder may have given it up.
constexpr Duration kRecallAgainAfter = 3s;
/// A mount that has answered may have requests of its own before the return.
constexpr double kLeasesToReturn = 3;

HeldLock wanted_by(SessionId session, const LockOp& op) {
  return {{session, op.owner}, op.range, op.type, op.pid};
}

Response answer(bool free) {
  Response response;
  response.body = encode(WaitLockReply{free});
  return response;
}

}  // namespace

asio::awaitable<Response> LockService::find(Request request) {
  auto message = decode<LockQuery>(request.body);
  if (!message) co_return failed(message.error());
  if (auto status = co_await readable(node_); !status) {
    co_return status.error() == Errc::kNotPrimary ? not_primary(node_) : failed(status.error());
  }
  const auto returned = co_await recall(message->lock.inode, message->lock.space, SessionId());
  if (!returned) {
    const auto error = returned.error();
    co_return error == Errc::kNotPrimary ? not_primary(node_) : failed(error);
  }
  const auto held = node_.ns->locks(message->lock.inode, message->lock.space);
  if (!held) co_return failed(held.error());
  FindLockReply reply;
  reply.held = find_conflict(*held, wanted_by(message->header.session, message->lock));
  Response response;
  response.body = encode(reply);
  co_return response;
}

asio::awaitable<Response> LockService::wait(Request request) {
  auto message = decode<LockQuery>(request.body);
  if (!message) co_return failed(message.error());
  const LockOp& op = message->lock;
  if (op.type == LockType::kUnlock || op.ticket == 0) co_return failed(Errc::kBadMessage);
  if (auto status = co_await readable(node_); !status) {
    co_return status.error() == Errc::kNotPrimary ? not_primary(node_) : failed(status.error());
  }
  const SessionId session = message->header.session;
  if (auto status = check_session(node_, session, message->header.epoch); !status) {
    co_return failed(status.error());
  }
  tidy();
  const Key key{op.inode, op.space};
  const std::shared_ptr<Queue> queue = queue_of(key);
  std::shared_ptr<Waiter> waiter = waiter_of(*queue, {session, op.owner}, op.ticket);
  if (message->give_up) {
    if (waiter) leave(key, *queue, waiter);
    co_return answer(false);
  }
  const HeldLock wanted = wanted_by(session, op);
  if (!waiter) {
    if (waiting_ >= kWaitersMax) co_return failed(std::errc::no_lock_available);
    waiter = std::make_shared<Waiter>();
    waiter->wanted = wanted;
    waiter->ticket = op.ticket;
    queue->waiters.push_back(waiter);
    ++waiting_;
    node_.count("lock_waits");
  }
  begin_ticking();
  note_contended(key);
  const Term term = node_.term;
  const TimePoint until = node_.env.now() + kAnswerAfter;
  ++waiter->asking;
  // From here on it is not delegated. What the waiter may be waiting for has to be in the state.
  const auto returned = co_await recall(op.inode, op.space, SessionId(), until);
  std::error_code error;
  if (!returned) error = returned.error();
  if (!error && message->detect_deadlock && !waiter->gone) {
    const auto deadlock = would_deadlock(key, wanted);
    if (!deadlock) error = deadlock.error();
    if (deadlock && *deadlock) {
      leave(key, *queue, waiter);
      node_.count("lock_deadlocks");
      co_return failed(std::errc::resource_deadlock_would_occur);
    }
  }
  // Before that it is in no circle that another one would close: one of them goes on.
  waiter->detect_deadlock = message->detect_deadlock;
  bool free = false;
  while (!waiter->gone && !free && !error && node_.env.now() < until) {
    const auto held = node_.ns->locks(op.inode, op.space);
    if (held && delegate_of(*held)) {
      const auto again = co_await recall(op.inode, op.space, SessionId(), until);
      if (!again) error = again.error();
      continue;
    }
    const auto turn = is_turn(key, *queue, *waiter);
    if (!turn) {
      error = turn.error();
    } else if (*turn) {
      free = true;
    } else {
      error = co_await queue->changed.wait();
      if (!error && !node_.serves(term)) error = make_error_code(Errc::kNotPrimary);
    }
  }
  --waiter->asking;
  waiter->asked = node_.env.now();
  if (error == Errc::kNotPrimary) co_return not_primary(node_);
  if (error && error != Errc::kDeadlineExceeded) co_return failed(error);
  co_return answer(free);
}

bool LockService::is_turn_of(SessionId session, const LockOp& op) {
  if (op.ticket == 0 || op.type == LockType::kUnlock) return true;
  tidy();
  const Key key{op.inode, op.space};
  const auto found = queues_.find(key);
  if (found == queues_.end()) return true;
  const auto held = node_.ns->locks(op.inode, op.space);
  if (held && delegate_of(*held) == session) return true;
  Waiter newcomer;
  newcomer.wanted = wanted_by(session, op);
  const auto waiter = waiter_of(*found->second, newcomer.wanted.owner, op.ticket);
  const auto turn = is_turn(key, *found->second, waiter ? *waiter : newcomer);
  return !turn || *turn;  // an unreadable state is the command's to report
}

void LockService::on_answered(SessionId session, const LockOp& op, bool granted) {
  const Key key{op.inode, op.space};
  const auto found = queues_.find(key);
  if (found == queues_.end()) return;
  const std::shared_ptr<Queue> queue = found->second;
  if (granted && op.ticket != 0) {
    if (const auto waiter = waiter_of(*queue, {session, op.owner}, op.ticket)) {
      leave(key, *queue, waiter);
    }
  }
  queue->changed.notify_all();
}

void LockService::on_sessions_ended(std::span<const SessionId> sessions) {
  for (auto at = queues_.begin(); at != queues_.end();) {
    const auto here = at++;
    const Key key = here->first;
    const std::shared_ptr<Queue> queue = here->second;
    const auto waiters = queue->waiters;  // leave() changes the list
    for (const auto& waiter : waiters) {
      const SessionId session = waiter->wanted.owner.session;
      if (std::ranges::find(sessions, session) != sessions.end()) leave(key, *queue, waiter);
    }
    queue->changed.notify_all();
  }
  for (const auto& [key, over] : recalls_) over->notify_all();
}

void LockService::tidy() {
  if (term_ != node_.term) {
    for (auto& [key, queue] : queues_) {
      for (const auto& waiter : queue->waiters) waiter->gone = true;
      queue->changed.notify_all();
    }
    queues_.clear();
    waiting_ = 0;
    for (const auto& [key, over] : recalls_) over->notify_all();
    recalls_.clear();
    contended_.clear();
    term_ = node_.term;
    return;
  }
  const TimePoint now = node_.env.now();
  if (now < next_tidy_) return;  // it walks over all files
  next_tidy_ = now + kTick;
  std::erase_if(contended_, [&](const auto& each) { return now - each.second >= kCoolDown; });
  for (auto at = queues_.begin(); at != queues_.end();) {
    const auto here = at++;
    const Key key = here->first;
    const std::shared_ptr<Queue> queue = here->second;
    const auto waiters = queue->waiters;
    for (const auto& waiter : waiters) {
      if (waiter->asking == 0 && now - waiter->asked > kForgetAfter) leave(key, *queue, waiter);
    }
    if (queue->waiters.empty()) queues_.erase(key);
  }
}

std::shared_ptr<LockService::Queue> LockService::queue_of(const Key& key) {
  auto& queue = queues_[key];
  if (!queue) queue = std::make_shared<Queue>(node_.env.executor());
  return queue;
}

std::shared_ptr<LockService::Waiter> LockService::waiter_of(const Queue& queue,
                                                            const LockOwner& owner,
                                                            std::uint64_t ticket) const {
  for (const auto& waiter : queue.waiters) {
    if (waiter->ticket == ticket && waiter->wanted.owner == owner) return waiter;
  }
  return nullptr;
}

Result<bool> LockService::is_turn(const Key& key, const Queue& queue, Waiter& waiter) {
  FM_TRY(const LockList held, node_.ns->locks(key.first, key.second));
  if (find_conflict(held, waiter.wanted)) {
    waiter.since = {};
    return false;
  }
  const bool holds = std::ranges::any_of(
      held, [&](const HeldLock& lock) { return lock.owner == waiter.wanted.owner; });
  if (holds) return true;
  bool behind = false;
  for (const auto& earlier : queue.waiters) {
    if (earlier.get() == &waiter) break;
    behind = behind || conflicts(earlier->wanted, waiter.wanted);
  }
  if (!behind) return true;
  const TimePoint now = node_.env.now();
  if (waiter.since == TimePoint{}) waiter.since = now;
  return now - waiter.since >= kYieldMax;
}

Result<bool> LockService::would_deadlock(const Key& key, const HeldLock& wanted) const {
  if (key.second != LockSpace::kPosix) return false;
  std::multimap<LockOwner, std::pair<Key, HeldLock>> waits;
  for (const auto& [file, queue] : queues_) {
    for (const auto& waiter : queue->waiters) {
      if (waiter->detect_deadlock) {
        waits.emplace(waiter->wanted.owner, std::pair(file, waiter->wanted));
      }
    }
  }
  std::set<LockOwner> seen;
  std::vector<LockOwner> unvisited;
  const auto add_holders = [&](const Key& file, const HeldLock& lock) -> Status {
    FM_TRY(const LockList held, node_.ns->locks(file.first, file.second));
    for (const HeldLock& other : held) {
      if (conflicts(other, lock) && seen.insert(other.owner).second)
        unvisited.push_back(other.owner);
    }
    return {};
  };
  FM_CHECK(add_holders(key, wanted));
  while (!unvisited.empty()) {
    const LockOwner owner = unvisited.back();
    unvisited.pop_back();
    const auto [first, last] = waits.equal_range(owner);
    for (auto wait = first; wait != last; ++wait) {
      const auto& [file, lock] = wait->second;
      FM_TRY(const LockList held, node_.ns->locks(file.first, file.second));
      for (const HeldLock& other : held) {
        if (other.owner == wanted.owner && conflicts(other, lock)) return true;
      }
      FM_CHECK(add_holders(file, lock));
    }
  }
  return false;
}

void LockService::leave(const Key& key, Queue& queue, const std::shared_ptr<Waiter>& waiter) {
  if (waiter->gone) return;
  waiter->gone = true;
  queue.waiters.remove(waiter);
  --waiting_;
  queue.changed.notify_all();
  if (queue.waiters.empty()) queues_.erase(key);
}

// --- delegations

Task<void> LockService::recall(InodeId inode, LockSpace space, SessionId except,
                               std::optional<TimePoint> until) {
  const Key key{inode, space};
  const Term term = node_.term;
  while (true) {
    FM_CO_TRY(const LockList held, node_.ns->locks(inode, space));
    const SessionId holder = delegate_of(held);
    if (!holder || holder == except) co_return Status();
    tidy();
    const auto under_way = recalls_.find(key);
    std::shared_ptr<Signal> over;
    if (under_way != recalls_.end()) {
      over = under_way->second;
    } else {
      over = std::make_shared<Signal>(node_.env.executor());
      recalls_.emplace(key, over);
      begin_ticking();
      note_contended(key);
      node_.count("lock_recalls");
      node_.tasks.spawn("recall locks", call_back(key, holder, over));
    }
    if (const auto error = co_await over->wait()) co_return error;
    if (!node_.serves(term)) co_return Errc::kNotPrimary;
    if (until && node_.env.now() >= *until) co_return Errc::kDeadlineExceeded;
  }
}

asio::awaitable<void> LockService::call_back(Key key, SessionId holder,
                                             std::shared_ptr<Signal> over) {
  const Term term = node_.term;
  const auto has_it = [&] {
    const auto held = node_.ns->locks(key.first, key.second);
    return node_.serves(term) && held && delegate_of(*held) == holder;
  };
  Patience patience(node_, holder, kLeasesToReturn);
  std::error_code stop;
  while (!stop && has_it()) {
    CallbackRequest request;
    request.stamp = node_.leases.next_stamp();
    request.recalls.push_back({key.first, key.second});
    std::map<SessionId, CallbackRequest> requests;
    requests.emplace(holder, std::move(request));
    (void)co_await node_.callbacks->break_leases(std::move(requests), InodeId());
    // It has begun to return the list: until that is applied, or the session is over.
    const TimePoint again_at = node_.env.now() + kRecallAgainAfter;
    while (!stop && node_.env.now() < again_at && has_it()) {
      if (patience.is_over())
        node_.callbacks->give_up(holder, "does not return the locks it was asked for");
      stop = co_await over->wait();
    }
  }
  const auto found = recalls_.find(key);
  if (found != recalls_.end() && found->second == over) recalls_.erase(found);
  over->notify_all();
}

bool LockService::may_delegate(SessionId session, const LockOp& op) {
  if (!node_.all_know(kLevelLockDelegation)) return false;
  tidy();
  const Key key{op.inode, op.space};
  const auto contended = contended_.find(key);
  const bool lately =
      contended != contended_.end() && node_.env.now() - contended->second < kCoolDown;
  if (lately || recalls_.contains(key)) return false;
  const auto found = queues_.find(key);
  if (found == queues_.end()) return true;
  const LockOwner owner{session, op.owner};
  return std::ranges::all_of(found->second->waiters, [&](const auto& waiter) {
    return waiter->wanted.owner == owner && waiter->ticket == op.ticket;
  });
}

bool LockService::may_be_delegated(SessionId session, const ReturnLocksOp& op) const {
  if (node_.all_know(kLevelLockDelegation)) return true;
  const auto held = node_.ns->locks(op.inode, op.space);
  return !held || delegate_of(*held) == session;
}

// Whoever waits for it goes on at once.
void LockService::on_returned(InodeId inode, LockSpace space) {
  const Key key{inode, space};
  if (const auto found = recalls_.find(key); found != recalls_.end()) found->second->notify_all();
  if (const auto found = queues_.find(key); found != queues_.end())
    found->second->changed.notify_all();
}

void LockService::note_contended(const Key& key) { contended_[key] = node_.env.now(); }

void LockService::begin_ticking() {
  if (std::exchange(ticking_, true)) return;
  node_.tasks.spawn("lock queues", tick());
}

// Whoever waits looks again now and then: its time may be over, or its patience with the queue.
asio::awaitable<void> LockService::tick() {
  while (!queues_.empty() || !recalls_.empty()) {
    const auto stop = co_await node_.env.sleep_for(kTick);
    if (stop) break;
    tidy();
    for (const auto& [key, queue] : queues_) queue->changed.notify_all();
    for (const auto& [key, over] : recalls_) over->notify_all();
  }
  ticking_ = false;
}

}  // namespace fermata::serverd
