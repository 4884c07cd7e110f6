// flock and fcntl locks across machines.
//
// The cluster holds the locks, or has delegated those of a file to this mount (lock_delegation.cc);
// taking one brings the open copy up to the newest version in place,
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

#include "mountd/fs/file_system.h"
#include "mountd/fuse/caller.h"

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
  auto task = do_find_lock(at(reply), open->file->locks, std::move(op));
  run_request(ctx, std::move(reply), std::move(task),
              [](LockReply& to, const struct flock& found) { to.lock(found); });
}

Task<FindLockReply> FileSystem::find_lock(LoopContext& at, std::shared_ptr<InodeLocks> locks,
                                          LockOp op) {
  const SessionId session = session_.id();
  if (answers_for(op.inode, op.space, session)) {
    FM_CO_TRY(const auto pass, co_await locks->gate(op.space).enter());
    if (answers_for(op.inode, op.space, session)) {
      FindLockReply reply;
      reply.held = find_conflict(locks_.of_session(op.inode, op.space, session),
                                 {{session, op.owner}, op.range, op.type, op.pid});
      co_return reply;
    }
  }
  // Outside the gate: what is delegated to this mount has to be returned through it first.
  co_return co_await at.client->find_lock(op);
}

Task<struct flock> FileSystem::do_find_lock(LoopContext& at, std::shared_ptr<InodeLocks> locks,
                                            LockOp op) {
  FM_CO_CHECK(co_await send_file(at, op.inode));
  FM_CO_TRY(auto reply, co_await find_lock(at, locks, op));
  if (reply.held && reply.held->owner.session == session_.id()) {
    const std::uint64_t holder = reply.held->owner.number;
    FM_CO_CHECK(co_await settle_releases(at, op.inode));
    if (!locks_.holds(op.inode, op.space, holder)) {
      FM_CO_TRY(reply, co_await find_lock(at, locks, op));
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
  FM_CO_CHECK(co_await send_file(at, op.inode));
  FM_CO_CHECK(co_await settled(at, op));
  // Changing a write lock into a read lock lets others read: what was written is to be seen.
  if (asked.type == LockType::kShared && releases_write(asked)) {
    FM_CO_CHECK(co_await commit(at, file, caller));
  }
  file->holds.fetch_add(1);  // the open has one
  background(at, "lock", run_lock(at, who, file, op, job));
  const auto error = co_await job->finished->wait();
  if (error != std::errc::operation_canceled || job->ended) {
    if (job->error) co_return job->error;
    co_return fermata::Status{};
  }
  job->given_up = true;
  begin_settling(asked, Settles::kRequest);
  if (asked.ticket != 0) background(at, "give up lock", give_up_lock(at, asked));
  co_return from_errno(EINTR);
}

asio::awaitable<void> FileSystem::give_up_lock(LoopContext& at, LockOp op) {
  (void)co_await at.client->give_up_lock(op);
}

asio::awaitable<void> FileSystem::run_lock(LoopContext& at, Credentials who, FilePtr file,
                                           LockOp op, std::shared_ptr<LockJob> job) {
  Hold hold(this, file);
  const HeldLock wanted{{session_.id(), op.owner}, op.range, op.type, op.pid};
  const auto in_the_way = [&] { return locks_.in_the_way(op.inode, op.space, wanted); };
  // What a close has left behind may be gone by the time that the request has been refused for it.
  const bool was_in_the_way = in_the_way();
  auto granted = co_await try_lock(at, who, file, op, job->through);
  const bool here = answers_for(op.inode, op.space, session_.id());
  if (!granted && would_wait(granted.error()) && (op.ticket == 0 || here) &&
      (was_in_the_way || in_the_way())) {
    (void)co_await settle_releases(at, op.inode);
    if (!in_the_way() && !job->given_up)
      granted = co_await try_lock(at, who, file, op, job->through);
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
  if (job->given_up) end_settling(op, Settles::kRequest);
  job->finished->set({});
}

// One attempt.
Task<FileSystem::Grant> FileSystem::try_lock(LoopContext& at, Credentials who, FilePtr file,
                                             LockOp op, std::uint64_t through) {
  FM_CO_TRY(const auto pass, co_await file->locks->gate(op.space).enter());
  Grant grant;
  const InodeId inode = op.inode;
  const LockSpace space = op.space;
  const std::uint64_t owner = op.owner;
  FM_CO_TRY(grant.before, co_await change_lock(at, who, std::move(op), through));
  grant.after = locks_.of_owner(inode, space, owner);
  co_return grant;
}

// Inside the gate. The answer: what the owner held on the file before.
Task<LockList> FileSystem::change_lock(LoopContext& at, Credentials who, LockOp op,
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
    if (answers_for(op.inode, op.space, session)) {
      FM_CO_CHECK(lock_here(op, session, through));
      co_return before;
    }
    if (locks_.delegation(op.inode, op.space, session) != HeldLocks::Delegation::kNone) {
      FM_CO_CHECK(co_await return_locks(at, op.inode, op.space));
    }
    op.delegate = wants_delegation(op);
    reply = co_await at.client->mutate(who, op, {}, session);
    if (reply) note_delegation(op, session, reply->delegated);
    if (!reply && op.delegate && !would_wait(reply.error())) {
      locks_.set_delegation(op.inode, op.space, session, HeldLocks::Delegation::kUnsure);
    }
  }
  const auto delegation = locks_.delegation(op.inode, op.space, session);
  if (delegation != HeldLocks::Delegation::kNone && !is_open(op.inode))
    expect_hand_back(at, op.inode);
  const bool gone = !reply && !acquires && reply.error() == Errc::kSessionExpired;
  if (!reply && !gone) co_return reply.error();
  if (reply && reply->delegated) {
    FM_CO_CHECK(lock_here(op, session, through));
  } else {
    locks_.apply(op.inode, op.space, {{session, op.owner}, op.range, op.type, op.pid}, through);
  }
  if (!gone && reply->attr) {
    const Attr attr = *reply->attr;
    co_await settle_lineage(at, attr);
    table_.apply(attr, reply->stamp, reply->leased);
  }
  co_return before;
}

// Undoes a request that was granted when nobody waited for it any more, or that is of no use.
Task<void> FileSystem::restore_locks(LoopContext& at, Credentials who, FilePtr file, LockOp op,
                                     Grant grant) {
  FM_CO_TRY(const auto pass, co_await file->locks->gate(op.space).enter());
  // The file was closed, or another thread of the owner has locked or unlocked, in between: its
  // answer stands, and cannot be told apart from what this request has got.
  if (locks_.of_owner(op.inode, op.space, op.owner) != grant.after) co_return fermata::Status{};
  for (const LockOp& back : undo_of(op, grant.before)) {
    const auto done = co_await change_lock(at, who, back, 0);
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
  begin_settling(op, Settles::kRequest);
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
  end_settling(op, Settles::kRequest);
}

Task<void> FileSystem::make_as_noted(LoopContext& at, FilePtr file, LockOp op) {
  FM_CO_TRY(const auto pass, co_await file->locks->gate(op.space).enter());
  const LockList noted = locks_.of_owner(op.inode, op.space, op.owner);
  const Credentials nobody;
  for (const LockOp& back : undo_of(op, noted)) {
    FM_CO_TRY(const auto before, co_await change_lock(at, nobody, back, 0));
    static_cast<void>(before);
  }
  co_return fermata::Status{};
}

}  // namespace fermata::mountd
