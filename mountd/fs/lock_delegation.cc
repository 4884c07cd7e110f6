// Locks of a file that only this mount uses: decided here, without asking.
//
// The cluster has delegated the file's list of locks to this mount's session (docs/PROTOCOL.md):
// what the mirror says then holds, and nobody else is granted anything before the list is returned.
// Everything about a file's locks happens inside its gate, a return too: one that is asked for
// while a request is on its way comes after that. Who has to wait for a lock waits at the primary
// as ever, which has the list returned first: queues and deadlocks are known in one place.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "common/base/limits.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace {
using Delegation = HeldLocks::Delegation;
constexpr LockSpace kSpaces[] = {LockSpace::kPosix, LockSpace::kFlock};
}  // namespace

// While the session's lease runs: after that the cluster may have ended it, and given the locks to
// others.
bool FileSystem::answers_for(InodeId inode, LockSpace space, SessionId session) const {
  return locks_.delegation(inode, space, session) == Delegation::kHeld && session_.runs(session);
}

// A return that was given up may still arrive, and would end a delegation granted since.
bool FileSystem::wants_delegation(const LockOp& op) const {
  return options_.lock_delegation && op.type != LockType::kUnlock && session_.is_settled();
}

void FileSystem::note_delegation(const LockOp& op, SessionId session, bool delegated) {
  const Delegation now = session_.is_settled() ? Delegation::kHeld : Delegation::kUnsure;
  locks_.set_delegation(op.inode, op.space, session, delegated ? now : Delegation::kNone);
}

fermata::Status FileSystem::lock_here(const LockOp& op, SessionId session, std::uint64_t through) {
  const HeldLock wanted{{session, op.owner}, op.range, op.type, op.pid};
  LockList held = locks_.of_session(op.inode, op.space, session);
  if (find_conflict(held, wanted)) return std::errc::resource_unavailable_try_again;
  const std::size_t before = held.size();
  set_lock(held, wanted);
  if (held.size() > kLocksPerFileMax && held.size() > before) return std::errc::no_lock_available;
  locks_.apply(op.inode, op.space, wanted, through);
  return {};
}

Task<void> FileSystem::return_locks(LoopContext& at, InodeId inode, LockSpace space) {
  const SessionId session = session_.id();
  if (!session) co_return fermata::Status{};  // its end was the delegation's
  ReturnLocksOp op;
  op.inode = inode;
  op.space = space;
  op.held = locks_.of_session(inode, space, session);
  const Credentials nobody;
  Mutation mutation = std::move(op);
  const auto reply = co_await at.client->mutate(nobody, std::move(mutation), {}, session);
  // Nodes of a version before delegations (kUnsupported) have not delegated anything.
  const bool over =
      !reply && (reply.error() == Errc::kSessionExpired || reply.error() == Errc::kUnsupported ||
                 reply.error() == std::errc::no_such_file_or_directory);
  locks_.set_delegation(inode, space, session,
                        reply || over ? Delegation::kNone : Delegation::kUnsure);
  if (!reply && !over) co_return reply.error();
  co_return fermata::Status{};
}

// The callback is answered before: a return that the log takes its time for does not look like a
// mount that is gone. The cluster asks again if it hears of none; one that waits for its turn does
// for all that have asked.
void FileSystem::begin_hand_back(InodeId inode, LockSpace space) {
  {
    MutexLock lock(recalled_mutex_);
    if (!recalled_.emplace(inode, space).second) return;
  }
  LoopContext& loop = loops_.front();
  background_on(loop.index, "hand back locks",
                [this, &loop, inode, space] { return hand_back(loop, inode, space); });
}

boost::asio::awaitable<void> FileSystem::hand_back(LoopContext& at, InodeId inode,
                                                   LockSpace space) {
  const auto locks = table_.locks_of(inode);
  const auto pass = co_await locks->gate(space).enter();
  {
    MutexLock lock(recalled_mutex_);
    recalled_.erase({inode, space});
  }
  if (!pass) co_return;
  const auto returned = co_await return_locks(at, inode, space);
  if (!returned) {
    spdlog::warn("inode {}: its locks could not be handed back yet: {}", inode.value(),
                 returned.error().message());
  }
}

// Who locks the file next, on another machine, does not have to wait for this one. Not at once: it
// may be opened again. Nobody waits for it.
void FileSystem::expect_hand_back(LoopContext& at, InodeId inode) {
  const SessionId session = session_.id();
  bool delegated = false;
  for (const LockSpace space : kSpaces) {
    delegated = delegated || locks_.delegation(inode, space, session) != Delegation::kNone;
  }
  if (!delegated) return;
  {
    MutexLock lock(unused_mutex_);
    unused_.insert(inode);
    if (std::exchange(unused_running_, true)) return;
  }
  background(at, "hand back locks", hand_back_unused(at));
}

bool FileSystem::is_open(InodeId inode) {
  const auto files = table_.files_of(inode);
  return std::ranges::any_of(files, [](const FilePtr& file) {
    MutexLock lock(file->mutex);
    return file->opens != 0;
  });
}

boost::asio::awaitable<void> FileSystem::hand_back_unused(LoopContext& at) {
  constexpr auto kUnusedFor = std::chrono::seconds(1);
  constexpr std::size_t kAtOnce = 32;
  while (true) {
    const std::error_code stop = co_await at.env->sleep_for(kUnusedFor);
    if (stop) co_return;  // the mount ends, and its session with it
    const auto round = std::make_shared<Unused>(at.env->executor());
    {
      MutexLock lock(unused_mutex_);
      round->left.assign(unused_.begin(), unused_.end());
      unused_.clear();
    }
    round->running = std::min(kAtOnce, round->left.size());
    for (std::size_t i = round->running; i > 0; --i)
      background(at, "hand back locks", hand_back_some(at, round));
    if (round->running != 0) {
      const auto error = co_await round->done->wait();
      if (error) co_return;
    }
    MutexLock lock(unused_mutex_);
    if (!unused_.empty()) continue;
    unused_running_ = false;
    co_return;
  }
}

boost::asio::awaitable<void> FileSystem::hand_back_some(LoopContext& at,
                                                        std::shared_ptr<Unused> round) {
  while (!round->left.empty()) {
    const InodeId inode = round->left.back();
    round->left.pop_back();
    for (const LockSpace space : kSpaces) {
      const auto now = locks_.delegation(inode, space, session_.id());
      if (now != Delegation::kNone && !is_open(inode)) co_await hand_back(at, inode, space);
    }
  }
  if (--round->running == 0) round->done->set({});
}

}  // namespace fermata::mountd
