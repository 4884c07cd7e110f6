// flock and fcntl locks across machines.
//
// The cluster holds the locks; taking one brings the open copy up to the newest version in place,
// releasing a write lock commits it first: programs that lock see each other's work without a close
// in between. A lock request is a task of its own, so that a signal may end the wait for it: what
// is granted after that is given back.
//
// Owners: a process' fcntl locks are owned by the kernel's number for its descriptor table. flock
// and OFD locks belong to an open file, and their owner here is its handle: the kernel's number is
// made of an address that the next open file tends to get while the end of this one, which close(2)
// does not wait for, is still to come.
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

/// The request was given up while it was on its way.
bool may_have_happened(std::error_code error) { return error == std::errc::timed_out; }

/// The caller did not wait for the end of what it had begun.
bool was_cut_short(std::error_code error) {
  return error == std::errc::interrupted || error == std::errc::operation_canceled;
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
  op.owner = owner_of(*open, request.owner);
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

std::uint64_t FileSystem::owner_of(Handle& open, std::uint64_t kernel_owner) {
  MutexLock lock(open.mutex);
  return open.ofd_owner == kernel_owner ? open.number : kernel_owner;
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
  if (*type != LockType::kUnlock && asks_for_ofd_lock(ctx.pid)) {
    MutexLock lock(open->mutex);
    open->ofd_owner = request.owner;
  }
  op.owner = owner_of(*open, request.owner);
  op.range = range_of(request.range);
  op.pid = static_cast<std::uint32_t>(request.range.l_pid);
  start_lock(ctx, open, std::move(op), request.wait, std::move(reply));
}

void FileSystem::flock(Ctx ctx, NodeHandle, std::uint64_t fh, std::uint64_t, int operation,
                       StatusReply reply) {
  const auto open = handle(fh);
  if (!open) return reply.error(EBADF);
  LockOp op;
  op.inode = open->file->inode;
  op.space = LockSpace::kFlock;
  op.owner = open->number;
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
    Unlock what;
    what.op = std::move(op);
    what.caller = ctx.pid;
    auto task = do_unlock(loop, cred(ctx), file, std::move(what));
    return run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
  }
  file->locks->asked = true;
  bool of_process = false;
  if (op.space == LockSpace::kPosix) {
    of_process = op.owner != open->number;
    if (!of_process) op.pid = 0;
    MutexLock lock(open->mutex);
    if (of_process) open->lockers.insert(op.owner);
  }
  if (wait) op.ticket = next_ticket_.fetch_add(1);
  auto job = std::make_shared<LockJob>(loop.env->executor());
  // The wait graph knows process locks only: an OFD lock's owner is no process (fcntl(2)).
  job->detect_deadlock = wait && of_process;
  job->through = open->number;
  auto task = do_lock(loop, cred(ctx), file, std::move(op), ctx.pid, job);
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk,
              wait ? Interrupts::kAny : Interrupts::kFatal);
}

// Waits for the task; after an interrupt the task ends by itself and gives back what it got.
Task<void> FileSystem::do_lock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                               pid_t caller, std::shared_ptr<LockJob> job) {
  const LockOp asked = op;
  FM_CO_CHECK(co_await settled(at, op));
  // Changing a write lock into a read lock lets others read: what was written is to be seen.
  if (asked.type == LockType::kShared && releases_write(asked)) {
    FM_CO_CHECK(co_await commit(at, who, file, caller));
  }
  file->holds.fetch_add(1);  // the open has one
  background(at, "lock", run_lock(at, who, file, op, job));
  const auto error = co_await job->finished->wait();
  if (error != std::errc::operation_canceled || job->ended) {
    if (job->error) co_return job->error;
    co_return fermata::Status{};
  }
  job->given_up = true;
  begin_settling(asked);
  if (asked.ticket != 0) background(at, "give up lock", give_up_lock(at, asked));
  co_return from_errno(EINTR);
}

asio::awaitable<void> FileSystem::give_up_lock(LoopContext& at, LockOp op) {
  (void)co_await at.client->give_up_lock(op);
}

asio::awaitable<void> FileSystem::run_lock(LoopContext& at, Credentials who, FilePtr file,
                                           LockOp op, std::shared_ptr<LockJob> job) {
  Hold hold(this, file);
  auto granted = co_await try_lock(at, who, file, op, job->through);
  const HeldLock wanted{{session_.id(), op.owner}, op.range, op.type, op.pid};
  const auto in_the_way = [&] { return locks_.in_the_way(op.inode, op.space, wanted); };
  if (!granted && would_wait(granted.error()) && op.ticket == 0 && in_the_way()) {
    (void)co_await settle_releases(at, op.inode);
    if (!in_the_way()) granted = co_await try_lock(at, who, file, op, job->through);
  }
  while (!granted && would_wait(granted.error()) && op.ticket != 0 && !job->given_up) {
    const auto turn = co_await at.client->wait_lock(op, job->detect_deadlock);
    if (!turn) {
      granted = turn.error();
      break;
    }
    if (*turn && !job->given_up) granted = co_await try_lock(at, who, file, op, job->through);
  }
  if (granted && !job->given_up) {
    const auto fresh = co_await update_in_place(at, who, file);
    if (!fresh) {
      spdlog::warn("inode {}: locked, but its newest version could not be fetched: {}",
                   file->inode.value(), fresh.error().message());
      job->error = fresh.error();
    }
  }
  if (!granted) job->error = granted.error();
  if (!granted && may_have_happened(job->error)) settle_doubt(at, file, op);
  if (granted && (job->error || job->given_up)) {
    (void)co_await restore_locks(at, who, file, op, *granted);
  }
  job->ended = true;
  if (job->given_up) end_settling(op);
  job->finished->set({});
}

// One attempt. The answer: what the owner held on the file before.
Task<LockList> FileSystem::try_lock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                                    std::uint64_t through) {
  FM_CO_TRY(const auto pass, co_await file->locks->gate.enter());
  co_return co_await change_lock(at, who, file, std::move(op), through);
}

// The same, inside the gate.
Task<LockList> FileSystem::change_lock(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                                       std::uint64_t through) {
  const LockList before = locks_.of_owner(op.inode, op.space, op.owner);
  // A lock belongs to the session that it is granted in: the answer must be of the one asked in.
  constexpr int kSessionsMax = 3;
  const bool acquires = op.type != LockType::kUnlock;
  SessionId session;
  Result<MutationReply> reply = Errc::kSessionExpired;
  for (int i = 0; !reply && reply.error() == Errc::kSessionExpired && i < kSessionsMax; ++i) {
    FM_CO_TRY(session, co_await at.client->session());
    // A lock that went with its session cannot be built upon: whoever holds it must let go first.
    if (acquires && locks_.lost_any(op.inode, op.space, op.owner, session)) {
      co_return std::errc::io_error;
    }
    reply = co_await at.client->mutate(who, op, {}, session);
  }
  const bool gone = !reply && !acquires && reply.error() == Errc::kSessionExpired;
  if (!reply && !gone) co_return reply.error();
  locks_.apply(op.inode, op.space, {{session, op.owner}, op.range, op.type, op.pid}, through);
  if (!gone && reply->attr) {
    const Attr attr = *reply->attr;
    co_await settle_lineage(at, attr);
    table_.apply(attr, reply->stamp, reply->leased);
  }
  co_return before;
}

// Undoes a request that was granted when nobody waited for it any more, or that is of no use.
Task<void> FileSystem::restore_locks(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                                     LockList before) {
  FM_CO_TRY(const auto pass, co_await file->locks->gate.enter());
  // The file was closed, or all was released, in between.
  if (!locks_.holds(op.inode, op.space, op.owner)) co_return fermata::Status{};
  for (const LockOp& back : undo_of(op, before)) {
    const auto done = co_await change_lock(at, who, file, back, 0);
    if (done) continue;
    spdlog::warn("inode {}: a lock could not be put back after an interrupted request: {}",
                 file->inode.value(), done.error().message());
  }
  co_return fermata::Status{};
}

// The cluster may have granted what a soft mount gave up asking for. It is asked until it has
// answered to make it what is noted here: then the old request was carried out before that, or
// never will be.
void FileSystem::settle_doubt(LoopContext& at, const FilePtr& file, LockOp op) {
  file->holds.fetch_add(1);  // the caller has one
  begin_settling(op);
  background(at, "settle lock", settle_doubt_behind(at, file, std::move(op)));
}

asio::awaitable<void> FileSystem::settle_doubt_behind(LoopContext& at, FilePtr file, LockOp op) {
  constexpr auto kPause = std::chrono::milliseconds(500);
  Hold hold(this, file);
  bool doubt = true;
  while (doubt) {
    const auto done = co_await make_as_noted(at, file, op);
    doubt = !done && may_have_happened(done.error());
    if (!doubt) continue;
    const std::error_code stop = co_await at.env->sleep_for(kPause);
    if (stop) break;  // the mount ends, and its session with it
  }
  end_settling(op);
}

Task<void> FileSystem::make_as_noted(LoopContext& at, FilePtr file, LockOp op) {
  FM_CO_TRY(const auto pass, co_await file->locks->gate.enter());
  const LockList noted = locks_.of_owner(op.inode, op.space, op.owner);
  const Credentials nobody;
  for (const LockOp& back : undo_of(op, noted)) {
    FM_CO_TRY(const auto before, co_await change_lock(at, nobody, file, back, 0));
    static_cast<void>(before);
  }
  co_return fermata::Status{};
}

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
  const bool commits = what.dirty || releases_write(op);
  if (committed && commits) committed = co_await commit(at, who, file, what.caller);
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
  FM_CO_TRY(const auto pass, co_await file->locks->gate.enter());
  const bool stays = through != 0 && locks_.last_through(op.inode, op.space, op.owner) != through;
  if (stays) co_return fermata::Status{};
  FM_CO_TRY(const auto before, co_await change_lock(at, who, file, std::move(op), 0));
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
  begin_settling(what.op);
  background(at, "release lock", unlock_behind(at, file, std::move(what)));
}

asio::awaitable<void> FileSystem::unlock_behind(LoopContext& at, FilePtr file, Unlock what) {
  Hold hold(this, file);
  const Credentials nobody;
  const LockOp op = what.op;
  const auto released = co_await do_unlock(at, nobody, file, std::move(what));
  if (!released) {
    spdlog::warn("inode {}: a lock could not be released: {}", file->inode.value(),
                 released.error().message());
  }
  end_settling(op);
}

// --- what nobody waits for -----------------------------------------------------------------------

void FileSystem::begin_settling(const LockOp& op) {
  MutexLock lock(settling_mutex_);
  ++settling_[{op.inode, op.space, op.owner}].running;
}

void FileSystem::end_settling(const LockOp& op) {
  std::vector<std::shared_ptr<Signal>> waiters;
  {
    MutexLock lock(settling_mutex_);
    const auto found = settling_.find({op.inode, op.space, op.owner});
    if (--found->second.running != 0) return;
    waiters.swap(found->second.waiters);
    settling_.erase(found);
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
    if (const auto error = co_await passed->wait()) co_return error;
  }
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
      if (std::get<InodeId>(key) != inode) continue;
      released.push_back(std::make_shared<Signal>(at.env->executor()));
      settling.waiters.push_back(released.back());
    }
  }
  for (const auto& each : released) {
    if (const auto error = co_await each->wait()) co_return error;
  }
  co_return fermata::Status{};
}

// --- the content under a lock --------------------------------------------------------------------

// The open copy becomes the newest version, under its users' feet. Local work that no commit has
// taken stays: then the last close wins, as without locks.
Task<void> FileSystem::update_in_place(LoopContext& at, Credentials who, FilePtr file) {
  CachePin copy;
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
  }
  auto view = table_.find(file->node);
  const auto is_newest = [&] {
    return view && copy && view->attr_valid && view->attr.version == copy->base() &&
           !copy->updating();
  };
  if (is_newest()) co_return fermata::Status{};
  FM_CO_TRY(const auto still, co_await file->content_gate.enter());
  FM_CO_TRY(const auto pass, co_await file->gate.enter());
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
  }
  view = table_.find(file->node);
  if (!copy || !view || copy->conflict() || file->sticky.load()) co_return fermata::Status{};
  if (view->attr_known && view->attr.nlink == 0) co_return fermata::Status{};
  if (is_newest()) co_return fermata::Status{};
  FM_CO_TRY(auto newest, co_await at.client->open(who, file->inode, copy->base()));
  table_.apply(newest.attr, newest.stamp, newest.leased);
  if (newest.attr.version == copy->base()) co_return fermata::Status{};
  if (!copy->complete()) FM_CO_CHECK(co_await wait_filled(at, file, copy));

  const auto look = [copy]() -> Result<bool> {
    if (copy->updating()) return false;  // what an update that failed left is nobody's work
    FM_TRY(const bool maybe, copy->is_modified());
    if (!maybe) return false;
    FM_TRY(const auto scan, copy->changed_blocks());
    if (scan.modified()) return true;
    FM_CHECK(
        copy->note_clean(copy->base(), scan, copy->chunks(), CachedCopy::After::kStillWritable));
    return false;
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
