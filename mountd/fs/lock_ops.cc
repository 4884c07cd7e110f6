// flock and fcntl locks across machines.
//
// The cluster holds the locks; taking one brings the open copy up to the newest version in place,
// releasing a write lock commits it first: programs that lock see each other's work without a close
// in between. A lock request is a task of its own, so that a signal may end the wait for it: what
// is granted after that is given back.
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>

#include "mountd/fs/caller.h"
#include "mountd/fs/fetch.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {

constexpr auto kAnswerOk = [](StatusReply& to) { to.ok(); };

LockRange range_of(const struct flock& range) {
  const auto first = static_cast<std::uint64_t>(range.l_start);
  if (range.l_len == 0) return {first, kLockEnd};
  return {first, first + static_cast<std::uint64_t>(range.l_len) - 1};
}

std::optional<LockType> type_of(int fcntl_type) {
  switch (fcntl_type) {
    case F_RDLCK:
      return LockType::kShared;
    case F_WRLCK:
      return LockType::kExclusive;
    case F_UNLCK:
      return LockType::kUnlock;
    default:
      return std::nullopt;
  }
}

bool would_wait(std::error_code error) {
  return error == std::errc::resource_unavailable_try_again;
}

}  // namespace

void FileSystem::getlk(Ctx ctx, NodeHandle, const LockRequest& request, LockReply reply) {
  const auto open = handle(request.fh);
  const auto type = type_of(request.range.l_type);
  if (!open) return reply.error(EBADF);
  if (!type || *type == LockType::kUnlock) return reply.error(EINVAL);
  LockOp op;
  op.inode = open->file->inode;
  op.type = *type;
  op.owner = request.owner;
  op.range = range_of(request.range);
  auto task = do_find_lock(at(reply), std::move(op));
  run_request(ctx, std::move(reply), std::move(task),
              [](LockReply& to, const struct flock& found) { to.lock(found); });
}

Task<struct flock> FileSystem::do_find_lock(LoopContext& at, LockOp op) {
  FM_CO_TRY(auto reply, co_await at.client->find_lock(op));
  if (reply.held && reply.held->owner.session == session_.id()) {
    const std::uint64_t holder = reply.held->owner.number;
    FM_CO_CHECK(co_await settle_releases(at, op.inode));
    if (!locks_.holds(op.inode, op.space, holder)) {
      FM_CO_TRY(reply, co_await at.client->find_lock(op));
    }
  }
  struct flock out {};
  out.l_type = F_UNLCK;
  out.l_whence = SEEK_SET;
  if (reply.held) {
    const HeldLock& held = *reply.held;
    out.l_type = held.type == LockType::kExclusive ? F_WRLCK : F_RDLCK;
    out.l_start = static_cast<off_t>(held.range.first);
    out.l_len = held.range.last == kLockEnd
                    ? 0
                    : static_cast<off_t>(held.range.last - held.range.first + 1);
    // A process of another machine has no number here, and an open file description is no process.
    const bool local = held.owner.session == session_.id();
    out.l_pid = local ? static_cast<pid_t>(held.pid) : 0;
  }
  co_return out;
}

void FileSystem::setlk(Ctx ctx, NodeHandle, const LockRequest& request, StatusReply reply) {
  const auto open = handle(request.fh);
  const auto type = type_of(request.range.l_type);
  if (!open) return reply.error(EBADF);
  if (!type) return reply.error(EINVAL);
  LockOp op;
  op.inode = open->file->inode;
  op.space = LockSpace::kPosix;
  op.type = *type;
  op.owner = request.owner;
  op.range = range_of(request.range);
  op.pid = static_cast<std::uint32_t>(request.range.l_pid);
  start_lock(ctx, open, std::move(op), request.wait, std::move(reply));
}

void FileSystem::flock(Ctx ctx, NodeHandle, std::uint64_t fh, std::uint64_t owner, int operation,
                       StatusReply reply) {
  const auto open = handle(fh);
  if (!open) return reply.error(EBADF);
  LockOp op;
  op.inode = open->file->inode;
  op.space = LockSpace::kFlock;
  op.owner = owner;
  op.range = kWholeFile;
  switch (operation & ~LOCK_NB) {
    case LOCK_SH:
      op.type = LockType::kShared;
      break;
    case LOCK_EX:
      op.type = LockType::kExclusive;
      break;
    case LOCK_UN:
      op.type = LockType::kUnlock;
      break;
    default:
      return reply.error(EINVAL);
  }
  start_lock(ctx, open, std::move(op), (operation & LOCK_NB) == 0, std::move(reply));
}

void FileSystem::start_lock(Ctx ctx, const std::shared_ptr<Handle>& open, LockOp op, bool wait,
                            StatusReply reply) {
  LoopContext& loop = at(reply);
  const FilePtr file = open->file;
  if (op.type == LockType::kUnlock) {
    if (!locks_.holds(op.inode, op.space, op.owner)) return reply.ok();
    auto task = do_unlock(loop, cred(ctx), file, std::move(op), ctx.pid);
    return run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
  }
  for (const FilePtr& each : table_.files_of(op.inode)) each->locked = true;
  bool of_process = false;
  if (op.space == LockSpace::kPosix) {
    of_process = !asks_for_ofd_lock(ctx.pid);
    if (!of_process) op.pid = 0;
    MutexLock lock(open->mutex);
    open->lockers.insert(op.owner);
  }
  if (wait) op.ticket = next_ticket_.fetch_add(1);
  auto job = std::make_shared<LockJob>(loop.env->executor());
  // The wait graph knows process locks only: an OFD lock's owner is no process (fcntl(2)).
  job->detect_deadlock = wait && of_process;
  auto task = do_lock(loop, cred(ctx), file, std::move(op), ctx.pid, job);
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk,
              wait ? Interrupts::kAny : Interrupts::kFatal);
}

// Waits for the task; after an interrupt the task ends by itself and gives back what it got.
Task<void> FileSystem::do_lock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                               pid_t caller, std::shared_ptr<LockJob> job) {
  const LockOp asked = op;
  // Changing a write lock into a read lock lets others read: what was written is to be seen.
  if (asked.type == LockType::kShared && releases_write(asked)) {
    FM_CO_CHECK(co_await commit(at, who, file, caller));
  }
  file->holds.fetch_add(1);  // the open has one
  background(at, "lock", run_lock(at, who, file, op, job));
  const auto error = co_await job->finished->wait();
  if (error != std::errc::operation_canceled) {
    if (error) co_return error;
    co_return fermata::Status{};
  }
  job->given_up = true;
  if (asked.ticket != 0) background(at, "give up lock", give_up_lock(at, asked));
  co_return from_errno(EINTR);
}

asio::awaitable<void> FileSystem::give_up_lock(LoopContext& at, LockOp op) {
  (void)co_await at.client->give_up_lock(op);
}

asio::awaitable<void> FileSystem::run_lock(LoopContext& at, Credentials who, FilePtr file,
                                           LockOp op, std::shared_ptr<LockJob> job) {
  Hold hold(this, file);
  auto granted = co_await try_lock(at, who, file, op);
  const HeldLock wanted{{session_.id(), op.owner}, op.range, op.type, op.pid};
  const auto in_the_way = [&] { return locks_.in_the_way(op.inode, op.space, wanted); };
  if (!granted && would_wait(granted.error()) && op.ticket == 0 && in_the_way()) {
    (void)co_await settle_releases(at, op.inode);
    if (!in_the_way()) granted = co_await try_lock(at, who, file, op);
  }
  while (!granted && would_wait(granted.error()) && op.ticket != 0 && !job->given_up) {
    const auto turn = co_await at.client->wait_lock(op, job->detect_deadlock);
    if (!turn) {
      granted = turn.error();
      break;
    }
    if (*turn && !job->given_up) granted = co_await try_lock(at, who, file, op);
  }
  if (!granted) {
    job->finished->set(granted.error());
    co_return;
  }
  if (job->given_up) {
    co_await restore_locks(at, who, file, op, *granted);
    co_return;
  }
  const auto fresh = co_await update_in_place(at, who, file);
  std::error_code error;
  if (!fresh) error = fresh.error();
  if (error) {
    spdlog::warn("inode {}: locked, but its newest version could not be fetched: {}",
                 file->inode.value(), error.message());
    co_await restore_locks(at, who, file, op, *granted);
  }
  job->finished->set(error);
}

// One attempt. The answer: what the owner held on the file before.
Task<LockList> FileSystem::try_lock(LoopContext& at, Credentials who, FilePtr file, LockOp op) {
  FM_CO_TRY(const auto pass, co_await file->lock_gate.enter());
  const LockList before = locks_.of_owner(op.inode, op.space, op.owner);
  // A lock belongs to the session that it is granted in: the answer must be of the one asked in.
  constexpr int kSessionsMax = 3;
  const bool acquires = op.type != LockType::kUnlock;
  SessionId session;
  Result<MutationReply> reply = Errc::kSessionExpired;
  for (int i = 0; !reply && reply.error() == Errc::kSessionExpired && i < kSessionsMax; ++i) {
    session = session_.id();
    // A lock that went with its session cannot be built upon: whoever holds it must let go first.
    if (acquires && locks_.lost_any(op.inode, op.space, op.owner, session)) {
      co_return std::errc::io_error;
    }
    reply = co_await at.client->mutate(who, op, {}, session);
  }
  const bool gone = !reply && !acquires && reply.error() == Errc::kSessionExpired;
  if (!reply && !gone) co_return reply.error();
  locks_.apply(op.inode, op.space, {{session, op.owner}, op.range, op.type, op.pid});
  if (!gone && reply->attr) {
    const Attr attr = *reply->attr;
    co_await settle_lineage(at, attr);
    table_.apply(attr, reply->stamp, reply->leased);
  }
  co_return before;
}

asio::awaitable<void> FileSystem::restore_locks(LoopContext& at, Credentials who, FilePtr file,
                                                LockOp op, LockList before) {
  LockOp back = op;
  back.ticket = 0;
  back.type = LockType::kUnlock;
  auto done = co_await try_lock(at, who, file, back);
  for (const HeldLock& lock : before) {
    if (!lock.range.overlaps(op.range)) continue;
    back.type = lock.type;
    back.range = lock.range;
    done = co_await try_lock(at, who, file, back);
    if (!done) {
      spdlog::warn("inode {}: a lock could not be put back after an interrupted request: {}",
                   file->inode.value(), done.error().message());
    }
  }
}

bool FileSystem::releases_write(const LockOp& op) const {
  for (const HeldLock& lock : locks_.of_owner(op.inode, op.space, op.owner)) {
    if (lock.type == LockType::kExclusive && lock.range.overlaps(op.range)) return true;
  }
  return false;
}

// The lock goes even if the commit fails: its owner is told, and the work stays in the cache.
Task<void> FileSystem::do_unlock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                                 pid_t caller) {
  fermata::Status committed;
  if (releases_write(op)) committed = co_await commit(at, who, file, caller);
  op.ticket = 0;
  const auto released = co_await try_lock(at, who, file, op);
  if (!committed) co_return committed;
  if (!released) co_return released.error();
  co_return fermata::Status{};
}

// close(2): a process' locks on the file go with any of its descriptors for it (fcntl(2)).
Task<void> FileSystem::flush_and_unlock(LoopContext& at, Credentials who,
                                        std::shared_ptr<Handle> open, bool dirty,
                                        std::uint64_t owner, pid_t caller) {
  const FilePtr file = open->file;
  fermata::Status committed;
  if (dirty) committed = co_await commit(at, who, file, caller);
  LockOp op;
  op.inode = file->inode;
  op.owner = owner;
  op.range = kWholeFile;
  const auto released = co_await try_lock(at, who, file, op);
  if (released) forget_locker(*open, owner);
  if (!committed) co_return committed;
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
  if (request.unlock_flock) {
    release_lock(at, open->file, LockSpace::kFlock, request.lock_owner);
  }
  std::set<std::uint64_t> lockers;
  {
    MutexLock lock(open->mutex);
    lockers.swap(open->lockers);
  }
  for (const std::uint64_t owner : lockers) {
    release_lock(at, open->file, LockSpace::kPosix, owner);
  }
}

void FileSystem::release_lock(LoopContext& at, const FilePtr& file, LockSpace space,
                              std::uint64_t owner) {
  if (!locks_.holds(file->inode, space, owner)) return;
  LockOp op;
  op.inode = file->inode;
  op.space = space;
  op.owner = owner;
  op.range = kWholeFile;
  file->holds.fetch_add(1);  // the open has one still
  {
    MutexLock lock(unlocks_mutex_);
    ++unlocks_[file->inode].running;
  }
  background(at, "release lock", unlock_behind(at, file, op));
}

asio::awaitable<void> FileSystem::unlock_behind(LoopContext& at, FilePtr file, LockOp op) {
  Hold hold(this, file);
  const Credentials nobody;
  const auto released = co_await do_unlock(at, nobody, file, op, 0);
  if (!released) {
    spdlog::warn("inode {}: a lock could not be released: {}", file->inode.value(),
                 released.error().message());
  }
  std::vector<std::shared_ptr<Signal>> waiters;
  {
    MutexLock lock(unlocks_mutex_);
    const auto found = unlocks_.find(file->inode);
    if (--found->second.running != 0) co_return;
    waiters.swap(found->second.waiters);
    unlocks_.erase(found);
  }
  for (const auto& waiter : waiters) waiter->set({});
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
  const auto released = std::make_shared<Signal>(at.env->executor());
  {
    MutexLock lock(unlocks_mutex_);
    const auto found = unlocks_.find(inode);
    if (found == unlocks_.end()) co_return fermata::Status{};
    found->second.waiters.push_back(released);
  }
  if (const auto error = co_await released->wait()) co_return error;
  co_return fermata::Status{};
}

// --- the content under a lock --------------------------------------------------------------------

// The open copy becomes the newest version, under its users' feet. Local work that no commit has
// taken stays: then the last close wins, as without locks.
Task<void> FileSystem::update_in_place(LoopContext& at, Credentials who, FilePtr file) {
  FM_CO_TRY(const auto pass, co_await file->gate.enter());
  FM_CO_TRY(const auto scanning, co_await file->scan_gate.enter());
  CachePin copy;
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
  }
  const auto view = table_.find(file->node);
  if (!copy || !view || copy->conflict() || file->sticky.load()) co_return fermata::Status{};
  if (view->attr_known && view->attr.nlink == 0) co_return fermata::Status{};
  if (view->attr_valid && view->attr.version == copy->base()) co_return fermata::Status{};
  FM_CO_TRY(auto newest, co_await at.client->open(who, file->inode, copy->base()));
  table_.apply(newest.attr, newest.stamp, newest.leased);
  if (newest.attr.version == copy->base()) co_return fermata::Status{};
  if (!copy->complete()) FM_CO_CHECK(co_await wait_filled(at, file, copy));

  const auto look = [copy]() -> Result<bool> {
    if (copy->updating()) return false;  // what an update that failed left is nobody's work
    return copy->surely_modified();
  };
  FM_CO_TRY(const bool modified, co_await blocking<bool>(*at.env, look));
  if (modified) {
    spdlog::warn(
        "inode {}: written without the lock while others committed: it is not brought up "
        "to version {}",
        file->inode.value(), newest.attr.version.value());
    file->sticky = true;
    co_return fermata::Status{};
  }
  const auto content = std::make_shared<const FileContent>(std::move(newest.content));
  const auto updated = co_await update_copy(*at.env, *at.client, copy, newest.attr, content);
  if (!updated && updated.error() == std::errc::text_file_busy) {
    file->sticky = true;  // written to without the lock, just now
    co_return fermata::Status{};
  }
  if (!updated) co_return updated.error();

  const auto backing = copy->stat();
  {
    MutexLock lock(file->mutex);
    if (backing) file->times.settle(backing->mtime_ns);
    file->page_cache_version = {};
  }
  count("updated in place");
  NodeTable::Invalidation stale;
  if (table_.committed(file->node, newest.attr.version)) {
    stale = table_.expire_names(file->inode);
  }
  Notifier::Item pages;
  pages.kind = Notifier::Kind::kInvalidateInode;
  pages.node = file->node;
  pages.offset_bytes = 0;
  stale.items.push_back(std::move(pages));
  co_await invalidate(std::move(stale));
  co_return fermata::Status{};
}

}  // namespace fermata::mountd
