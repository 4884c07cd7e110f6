#include "serverd/service/lock_service.h"

#include <algorithm>
#include <utility>

#include "common/wire/message_codec.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr std::size_t kWaitersMax = 100'000;
constexpr Duration kAnswerAfter = 3s;  // below what clients wait for one answer
constexpr Duration kForgetAfter = 20s;
constexpr Duration kYieldMax = 1s;
constexpr Duration kTick = 250ms;

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
  if (message->detect_deadlock) {
    const auto deadlock = would_deadlock(key, wanted);
    if (!deadlock) co_return failed(deadlock.error());
    if (*deadlock) {
      if (waiter) leave(key, *queue, waiter);
      node_.count("lock_deadlocks");
      co_return failed(std::errc::resource_deadlock_would_occur);
    }
  }
  if (!waiter) {
    if (waiting_ >= kWaitersMax) co_return failed(std::errc::no_lock_available);
    waiter = std::make_shared<Waiter>();
    waiter->wanted = wanted;
    waiter->ticket = op.ticket;
    waiter->detect_deadlock = message->detect_deadlock;
    queue->waiters.push_back(waiter);
    ++waiting_;
    node_.count("lock_waits");
  }
  if (!ticking_) {
    ticking_ = true;
    node_.tasks.spawn("lock queues", tick());
  }
  const Term term = node_.term;
  const TimePoint until = node_.env.now() + kAnswerAfter;
  ++waiter->asking;
  bool free = false;
  std::error_code error;
  while (!waiter->gone && !free && !error && node_.env.now() < until) {
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
  if (error) co_return failed(error);
  co_return answer(free);
}

bool LockService::is_turn_of(SessionId session, const LockOp& op) {
  if (op.ticket == 0 || op.type == LockType::kUnlock) return true;
  tidy();
  const Key key{op.inode, op.space};
  const auto found = queues_.find(key);
  if (found == queues_.end()) return true;
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
}

void LockService::tidy() {
  if (term_ != node_.term) {
    for (auto& [key, queue] : queues_) {
      for (const auto& waiter : queue->waiters) waiter->gone = true;
      queue->changed.notify_all();
    }
    queues_.clear();
    waiting_ = 0;
    term_ = node_.term;
    return;
  }
  const TimePoint now = node_.env.now();
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

// Whoever waits looks again now and then: its time may be over, or its patience with the queue.
asio::awaitable<void> LockService::tick() {
  while (!queues_.empty()) {
    const auto stop = co_await node_.env.sleep_for(kTick);
    if (stop) break;
    tidy();
    for (const auto& [key, queue] : queues_) queue->changed.notify_all();
  }
  ticking_ = false;
}

}  // namespace fermata::serverd
