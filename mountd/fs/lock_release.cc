// How locks go: an unlock, a close, the end of an open file. What a write lock protected is
// committed first.
//
// Much of it happens behind: close(2) does not wait for RELEASE, nor a killed process for its
// commit. An owner's next request is carried out when what it left behind is done (settled()).
#include <spdlog/spdlog.h>

#include <boost/asio/post.hpp>

#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {

/// The caller did not wait for the end of what it had begun.
bool was_cut_short(std::error_code error) {
  return error == std::errc::interrupted || error == std::errc::operation_canceled;
}

}  // namespace

bool FileSystem::releases_write(const LockOp& op) const {
  for (const HeldLock& lock : locks_.of_owner(op.inode, op.space, op.owner)) {
    if (lock.type == LockType::kExclusive && lock.range.overlaps(op.range)) return true;
  }
  return false;
}

// The lock goes even if the commit fails: its owner is told, and the work stays in the cache. From
// then on it may be derived from what others have replaced under the lock: it is committed only if
// they have not.
Task<void> FileSystem::do_unlock(LoopContext& at, Credentials who, FilePtr file, Unlock what) {
  LockOp& op = what.op;
  fermata::Status committed;
  if (!what.behind) committed = co_await settled(at, op);
  const bool releases = releases_write(op);
  if (releases) file->syncs.fetch_add(1);
  const bool commits = what.dirty || releases;
  if (committed && commits) committed = co_await commit(at, file, what.caller);
  if (!committed && !what.behind && was_cut_short(committed.error())) {
    // Its caller is being killed. The commit goes on, and the lock is kept until it has ended.
    release_behind(at, file, std::move(what));
    co_return committed;
  }
  if (!committed) {
    MutexLock lock(file->mutex);
    file->fenced = true;
  }
  op.ticket = 0;
  const auto released = co_await unlock(at, who, file, op, what.through);
  if (!committed) co_return committed;
  if (commits) forgive_lost_locks(file);
  if (!released) co_return released.error();
  co_return fermata::Status{};
}

Task<void> FileSystem::unlock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                              std::uint64_t through) {
  FM_CO_TRY(const auto pass, co_await file->locks->gate(op.space).enter());
  const bool stays = through != 0 && locks_.last_through(op.inode, op.space, op.owner) != through;
  if (stays) co_return fermata::Status{};
  FM_CO_TRY(const auto before, co_await change_lock(at, who, std::move(op), 0));
  static_cast<void>(before);
  co_return fermata::Status{};
}

void FileSystem::forgive_lost_locks(const FilePtr& file) {
  if (locks_.lost_exclusive(file->inode, session_.id())) return;
  MutexLock lock(file->mutex);
  file->lock_lost = false;
}

// close(2): a process' locks on the file go with any of its descriptors for it (fcntl(2)).
Task<void> FileSystem::flush_and_unlock(LoopContext& at, Credentials who,
                                        std::shared_ptr<Handle> open, bool dirty,
                                        std::uint64_t owner, pid_t caller) {
  LockOp op;
  op.inode = open->file->inode;
  op.owner = owner;
  op.range = kWholeFile;
  Unlock what;
  what.op = op;
  what.dirty = dirty;
  what.caller = caller;
  const auto released = co_await do_unlock(at, who, open->file, std::move(what));
  if (!locks_.holds(op.inode, op.space, owner)) forget_locker(*open, owner);
  // A lock of a session that is over is released already.
  if (!released && released.error() != std::errc::no_such_file_or_directory) {
    co_return released.error();
  }
  co_return fermata::Status{};
}

// What its owner locks from here on, through another descriptor, is not this one's to release.
void FileSystem::forget_locker(Handle& open, std::uint64_t owner) {
  MutexLock lock(open.mutex);
  open.lockers.erase(owner);
}

void FileSystem::release_locks(LoopContext& at, const std::shared_ptr<Handle>& open,
                               const ReleaseRequest& request) {
  if (request.unlock_flock) release_lock(at, *open, LockSpace::kFlock, open->number);
  release_lock(at, *open, LockSpace::kPosix, open->number);
  std::set<std::uint64_t> lockers;
  {
    MutexLock lock(open->mutex);
    lockers.swap(open->lockers);
  }
  for (const std::uint64_t owner : lockers) {
    release_lock(at, *open, LockSpace::kPosix, owner);
  }
}

// A close that was not told (docs/FUSE.md rule 4) may be long ago, and others follow a mapping's
// end: what the process has locked through another descriptor since is not this one's to release.
void FileSystem::release_lock(LoopContext& at, const Handle& open, LockSpace space,
                              std::uint64_t owner) {
  const FilePtr file = open.file;
  if (locks_.last_through(file->inode, space, owner) != open.number) return;
  LockOp op;
  op.inode = file->inode;
  op.space = space;
  op.owner = owner;
  op.range = kWholeFile;
  Unlock what;
  what.op = std::move(op);
  what.through = open.number;
  release_behind(at, file, std::move(what));
}

// `file` has a hold.
void FileSystem::release_behind(LoopContext& at, const FilePtr& file, Unlock what) {
  what.behind = true;
  what.caller = 0;
  file->holds.fetch_add(1);
  begin_settling(what.op, Settles::kRelease);
  background(at, "release lock", unlock_behind(at, file, std::move(what)));
}

asio::awaitable<void> FileSystem::unlock_behind(LoopContext& at, FilePtr file, Unlock what) {
  Hold hold(this, file);
  const Credentials nobody;
  LockOp op = what.op;
  const std::uint64_t through = what.through;
  auto released = co_await do_unlock(at, nobody, file, std::move(what));
  op.ticket = 0;
  // Its owner is gone: nobody else would release it before the mount ends.
  constexpr auto kPause = std::chrono::milliseconds(500);
  for (bool said = false; !released && locks_.holds(op.inode, op.space, op.owner);) {
    if (!std::exchange(said, true)) {
      spdlog::warn("inode {}: a lock could not be released yet: {}", file->inode.value(),
                   released.error().message());
    }
    const std::error_code stop = co_await at.env->sleep_for(kPause);
    if (stop) break;  // the mount ends, and its session with it
    released = co_await unlock(at, nobody, file, op, through);
    if (!released && released.error() == std::errc::no_such_file_or_directory) break;
  }
  end_settling(op, Settles::kRelease);
}

// --- what nobody waits for -----------------------------------------------------------------------

void FileSystem::begin_settling(const LockOp& op, Settles what) {
  MutexLock lock(settling_mutex_);
  Settling& settling = settling_[{op.inode, op.space, op.owner}];
  ++settling.running;
  if (what == Settles::kRelease) ++settling.releases;
}

void FileSystem::end_settling(const LockOp& op, Settles what) {
  std::vector<std::shared_ptr<Signal>> waiters;
  {
    MutexLock lock(settling_mutex_);
    const auto found = settling_.find({op.inode, op.space, op.owner});
    Settling& settling = found->second;
    if (what == Settles::kRelease && --settling.releases == 0)
      waiters.swap(settling.release_waiters);
    if (--settling.running == 0) {
      waiters.insert(waiters.end(), settling.waiters.begin(), settling.waiters.end());
      settling_.erase(found);
    }
  }
  for (const auto& waiter : waiters) waiter->set({});
}

// A request of the owner is carried out after what it asked for before: else an unlock that is late
// would take away what was granted since.
Task<void> FileSystem::settled(LoopContext& at, LockOp op) {
  while (true) {
    const auto passed = std::make_shared<Signal>(at.env->executor());
    {
      MutexLock lock(settling_mutex_);
      const auto found = settling_.find({op.inode, op.space, op.owner});
      if (found == settling_.end()) co_return fermata::Status{};
      found->second.waiters.push_back(passed);
    }
    const auto error = co_await bounded(*passed);
    if (error) co_return error;
  }
}

// A soft mount waits for nothing longer than it would for the servers.
asio::awaitable<std::error_code> FileSystem::bounded(Signal& signal) {
  if (!options_.patience) co_return co_await signal.wait();
  const auto result = co_await signal.wait_for(*options_.patience);
  co_return result ? *result : std::make_error_code(std::errc::timed_out);
}

// close(2) does not wait for its RELEASE, so a lock may still be here whose file was closed before
// this request was made. The kernel gives requests out in their order: a RELEASE from before has
// been read, by some loop, and goes its way before anything that is posted to that loop now.
Task<void> FileSystem::settle_releases(LoopContext& at, InodeId inode) {
  for (LoopContext& loop : loops_) {
    if (loop.index == at.index) continue;
    const auto passed = std::make_shared<Signal>(at.env->executor());
    asio::post(loop.env->executor(), [passed] { passed->set({}); });
    if (const auto error = co_await passed->wait()) co_return error;
  }
  std::vector<std::shared_ptr<Signal>> released;
  {
    MutexLock lock(settling_mutex_);
    for (auto& [key, settling] : settling_) {
      // Not for what was given up: that one may be waiting here as well.
      if (std::get<InodeId>(key) != inode || settling.releases == 0) continue;
      released.push_back(std::make_shared<Signal>(at.env->executor()));
      settling.release_waiters.push_back(released.back());
    }
  }
  for (const auto& each : released) {
    const auto error = co_await bounded(*each);
    if (error) co_return error;
  }
  co_return fermata::Status{};
}

}  // namespace fermata::mountd
