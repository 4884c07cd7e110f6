// Flush, fsync and write-back: when close(2) has returned, the new version is on a majority of
// disks, or close has failed and the work is kept here.
//
// One commit of a copy runs at a time; who comes meanwhile shares the next one, which takes in all
// that was written before it starts. The commit is a task of its own: an interrupted caller leaves
// it running.
#include <spdlog/spdlog.h>

#include <utility>

#include "mountd/fs/attributes.h"
#include "mountd/fs/fetch.h"
#include "mountd/fs/file_system.h"
#include "mountd/fs/write_back.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {
constexpr auto kAnswerOk = [](StatusReply& to) { to.ok(); };

/// For people: the path if that is known.
std::string name_of(const CachedCopy& copy) {
  const std::string path = copy.path_hint();
  const std::string inode = "inode " + std::to_string(copy.inode().value());
  return path.empty() ? inode : path + " (" + inode + ")";
}
}  // namespace

// True without I/O on the disk only: a tracked copy knows.
bool FileSystem::surely_clean(const Handle& open) {
  if (open.mode != IoMode::kOrdinary) return false;
  if (open.file->sticky.load() || open.file->unsent.load() || open.file->lost.load() != 0)
    return false;
  const auto modified = open.copy->is_modified();
  if (!modified || *modified) return false;
  const auto backing = open.copy->stat();
  if (!backing) return false;
  MutexLock lock(open.file->mutex);
  return !open.file->commit_running && !open.file->kill_privileges &&
         !open.file->times.moved(backing->mtime_ns);
}

void FileSystem::flush(Ctx ctx, NodeHandle, std::uint64_t fh, std::uint64_t owner,
                       StatusReply reply) {
  const auto open = handle(fh);
  if (!open) return reply.ok();
  // A file without a name is committed by fsync and when it gets one: else nobody asks for it.
  const bool asked = !open->file->linkable.load() || open->file->naming.load() != 0;
  const bool dirty = open->writable && asked && !surely_clean(*open);
  if (locks_.holds(open->file->inode, LockSpace::kPosix, owner)) {
    auto task = flush_and_unlock(at(reply), cred(ctx), open, dirty, owner, ctx.pid);
    return run_request(ctx, std::move(reply), std::move(task), kAnswerOk, Interrupts::kFatalLate);
  }
  forget_locker(*open, owner);
  if (!dirty) return reply.ok();
  auto task = commit(at(reply), open->file, ctx.pid);
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk, Interrupts::kFatalLate);
}

// The quorum's disks are the durability: nothing is synced here.
void FileSystem::fsync(Ctx ctx, NodeHandle, std::uint64_t fh, bool, StatusReply reply) {
  const auto open = handle(fh);
  if (!open) return reply.error(EBADF);
  const bool written = open->writable || open->file->writers.load() != 0 ||
                       open->file->sticky.load() || open->file->mapped.load();
  if (!written || surely_clean(*open)) return reply.ok();
  open->file->syncs.fetch_add(1);
  auto task = commit(at(reply), open->file, ctx.pid);
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
}

Task<void> FileSystem::commit(LoopContext& at, FilePtr file, pid_t caller) {
  const auto waiter = start_commit(at, file);
  while (true) {
    const auto result = co_await waiter->wait_for(kLastWordsPatience);
    if (result && *result) co_return *result;
    if (result) co_return fermata::Status{};
    if (is_dying(caller)) co_return from_errno(EINTR);
  }
}

void FileSystem::note_writer(FileState& file, const Credentials& who, LogIndex change) {
  MutexLock lock(file.mutex);
  if (file.writers.load() == 0 && !file.sticky.load()) file.writer = {who, change};
}

std::shared_ptr<Signal> FileSystem::start_commit(LoopContext& at, const FilePtr& file) {
  auto waiter = std::make_shared<Signal>(at.env->executor());
  std::shared_ptr<CommitJob> start;
  {
    MutexLock lock(file->mutex);
    if (file->commit_running) {
      if (!file->commit_next) file->commit_next = std::make_shared<CommitJob>();
      file->commit_next->waiters.push_back(waiter);
    } else {
      start = file->commit_running = std::make_shared<CommitJob>();
      start->waiters.push_back(waiter);
    }
  }
  if (start) {
    file->holds.fetch_add(1);  // the caller has one
    background(at, "commit", run_commits(at, file, start));
  }
  return waiter;
}

asio::awaitable<void> FileSystem::run_commits(LoopContext& at, FilePtr file,
                                              std::shared_ptr<CommitJob> job) {
  Hold hold(this, file);
  while (job) {
    auto done = co_await commit_once(at, file);
    // The session was renewed under it and nothing came in between: once more, in the new one.
    if (!done && done.error() == make_error_code(Errc::kRetry)) {
      done = co_await commit_once(at, file);
    }
    const std::error_code error = done ? std::error_code{} : done.error();
    const auto view = table_.find(file->node);
    std::vector<std::shared_ptr<Signal>> waiters;
    {
      MutexLock lock(file->mutex);
      if (!error || (file->copy && file->copy->conflict())) file->sticky = false;
      waiters.swap(job->waiters);
      job = std::move(file->commit_next);
      file->commit_next.reset();
      file->commit_running = job;
    }
    for (const auto& waiter : waiters) waiter->set(error);
  }
}

Task<void> FileSystem::commit_once(LoopContext& at, FilePtr file) {
  bool kill = false;
  auto done = co_await commit_now(at, file, kill);
  if (!done && kill) {
    MutexLock lock(file->mutex);
    file->kill_privileges = true;  // is still to be done
  }
  co_return done;
}

Task<void> FileSystem::commit_now(LoopContext& at, FilePtr file, bool& kill) {
  FM_CO_TRY(auto pass, co_await file->content_gate.enter());
  if (const int why = file->lost.load(); why != 0) co_return from_errno(why);
  CommitInput input;
  {
    MutexLock lock(file->mutex);
    input.copy = file->copy;
    input.clear_suid_sgid = std::exchange(file->kill_privileges, false);
    input.cred = file->writer.who;
    input.opened = file->writer.opened;
  }
  kill = input.clear_suid_sgid;
  const auto view = table_.find(file->node);
  if (!input.copy || !view) co_return fermata::Status{};
  if (input.copy->conflict()) co_return from_errno(ESTALE);  // was refused for good, and still is
  auto unsent = file->unsent.load() ? table_.unsent(file->inode) : std::nullopt;
  if (!input.copy->maybe_dirty() && !kill && !unsent) co_return fermata::Status{};
  // Bringing it up to date for a lock was begun and has failed: it holds no version.
  if (input.copy->updating()) co_return std::errc::io_error;
  // Nobody can open an unlinked file's next version: it ends with its last close here.
  const bool unlinked = view->attr_known && view->attr.nlink == 0;
  if (unlinked && !file->linkable.load()) co_return fermata::Status{};  // close_writer() lets go
  struct Look {
    bool modified = false;
    BackingStat backing;
  };
  const CachePin copy = input.copy;
  const auto job = [copy]() -> Result<Look> {
    Look out;
    FM_TRY(out.backing, copy->stat());
    FM_TRY(out.modified, copy->is_modified());
    return out;
  };
  Result<Look> looked = Errc::kRetry;
  if (copy->untracked_writes_expected()) {
    looked = co_await blocking<Look>(*at.env, job);
  } else {
    looked = job();  // a tracked copy knows, and a stat(2) is no wait
  }
  if (!looked) co_return looked.error();
  const Look look = *looked;
  // Chunks take long to upload, and whoever wants to know the directory does not wait for that: nor
  // for the gate.
  if (unsent && (!look.modified || look.backing.size_bytes > kInlineBytesMax)) {
    FM_CO_CHECK(co_await send_now(at, file, *unsent));
    if (std::exchange(kill, false)) {
      MutexLock lock(file->mutex);
      file->kill_privileges = true;
    }
    pass.release();
    co_return co_await commit_now(at, file, kill);
  }
  bool mtime_moved = false;
  input.mtime = view->attr.mtime;
  {
    MutexLock lock(file->mutex);
    if (!look.modified) file->fenced = false;  // nothing is left of what was
    const std::int64_t backing_ns = look.backing.mtime_ns;
    mtime_moved = file->times.moved(backing_ns);
    if (mtime_moved) input.mtime = from_ns(file->times.look(backing_ns, to_ns(view->attr.ctime)));
  }
  if (view->noted_read) input.atime = view->attr.atime;
  if (look.modified) file->sticky = true;  // what is being committed stays the mount's
  input.path_hint = copy->path_hint();
  if (look.modified) {
    FM_CO_TRY(input.under, co_await at.client->session());
    bool lock_lost = locks_.lost_exclusive(file->inode, input.under);
    {
      MutexLock lock(file->mutex);
      lock_lost = lock_lost || file->lock_lost;
      const bool other_session = file->work_session && file->work_session != input.under;
      input.may_replace = !file->fenced && !other_session;
    }
    if (session_.has_quotas()) input.allocated_max = [&] { return ask_allocated_max(at, file); };
    if (lock_lost) {
      FM_CO_CHECK(co_await set_aside(at, file, copy, "its lock was lost with the session"));
      co_return from_errno(ESTALE);
    }
    if (unsent) {
      input.make = unsent->op;
      input.cred = unsent->who;
      input.under = unsent->session;
    }
    auto outcome = co_await commit_copy(*at.env, *at.client, input);
    if (!outcome && unsent) {
      // Its content alone may be what is refused. Not what a full disk refuses: that is told.
      FM_CO_CHECK(co_await settle_unmade(at, file, *unsent, outcome.error()));
      input.make.reset();
      input.may_replace = false;  // what is there already is its own
      outcome = co_await commit_copy(*at.env, *at.client, input);
    } else if (unsent && outcome->changed) {
      table_.sent(file->inode, outcome->reply);
      note_made(*file, outcome->reply.attr);
    } else if (unsent) {
      FM_CO_CHECK(co_await send_now(at, file, *unsent));  // written, and as empty as before
    }
    if (!outcome) co_return co_await refused(at, file, copy, outcome.error());
    if (outcome->changed) {
      count(outcome->replaced ? "replaced a newer version" : "committed");
      auto elsewhere = after_commit(file, outcome->reply, look.backing.mtime_ns, input.under);
      co_await invalidate(std::move(elsewhere));
      co_return fermata::Status{};
    }
  }
  if (mtime_moved || input.clear_suid_sgid) {
    FM_CO_CHECK(co_await send_times(at, file, input, look.backing.mtime_ns));
  }
  co_return fermata::Status{};
}

// Written, but with the bytes that were there already: only the time is news.
Task<void> FileSystem::send_times(LoopContext& at, FilePtr file, CommitInput input,
                                  std::int64_t backing_mtime_ns) {
  SetAttrOp op;
  op.inode = file->inode;
  op.mtime = input.mtime;
  op.written = true;
  op.atime = input.atime;
  op.clear_suid_sgid = input.clear_suid_sgid;
  op.opened = input.opened;
  FM_CO_TRY(const auto reply, co_await at.client->mutate(input.cred, op));
  if (reply.attr) table_.apply(*reply.attr, reply.stamp, reply.leased);
  MutexLock lock(file->mutex);
  file->times.settle(backing_mtime_ns);
  if (reply.attr) file->times.follow(to_ns(reply.attr->ctime));
  co_return fermata::Status{};
}

NodeTable::Invalidation FileSystem::after_commit(const FilePtr& file, const MutationReply& reply,
                                                 std::int64_t mtime_ns, SessionId under) {
  const Version version = reply.version;
  if (reply.attr) table_.apply(*reply.attr, reply.stamp, reply.leased);
  {
    MutexLock lock(file->mutex);
    file->times.settle(mtime_ns);
    if (reply.attr) file->times.follow(to_ns(reply.attr->ctime));
    file->fenced = false;
    file->work_session = under;
    if (file->mode == IoMode::kOrdinary) file->page_cache_version = version;
  }
  // Attributes that the kernel took before passthrough writes are old (docs/FUSE.md rule 9).
  FuseSession* fuse = fuse_.load();
  if (fuse != nullptr) (void)fuse->invalidate_inode(file->node, -1, 0);
  if (!table_.committed(file->node, version)) return {};
  return table_.expire_names(file->inode);
}

Task<void> FileSystem::set_aside(LoopContext& at, FilePtr file, CachePin copy, const char* why) {
  count("set aside as a conflict");
  spdlog::warn("{}: local changes on version {} are kept as a conflict in {} ({})", name_of(*copy),
               copy->base().value(), copy->data_path(), why);
  const auto job = [copy] { return copy->mark_conflict(); };
  FM_CO_CHECK(co_await blocking<void>(*at.env, job));
  if (file) {
    table_.retire(file->node);
    invalidate_later(table_.expire_names(file->inode));
  }
  co_return fermata::Status{};
}

// `file` may be null: nobody has it open.
Task<void> FileSystem::settle_committed(LoopContext& at, FilePtr file, CachePin copy,
                                        CachedCopy::After after) {
  // All that can fail comes first: once it is noted clean, nobody would ask again.
  FM_CO_TRY(const SessionId under, co_await at.client->session());
  struct Look {
    ChangeScan scan;
    BackingStat backing;
  };
  const auto look = [copy]() -> Result<Look> {
    Look out;
    FM_TRY(out.backing, copy->stat());
    FM_TRY(out.scan, copy->changed_blocks());
    return out;
  };
  FM_CO_TRY(const auto seen, co_await blocking<Look>(*at.env, look));
  const Credentials nobody;
  FM_CO_TRY(auto opened, co_await at.client->open(nobody, copy->inode(), Version{}));
  const auto content = std::make_shared<const FileContent>(std::move(opened.content));
  FM_CO_TRY(const bool same,
            co_await holds_content(*at.env, *at.client, copy, opened.attr, content));
  if (!same) co_return Errc::kStaleBase;
  const Version version = opened.attr.version;
  const auto keep = [copy, version, seen, after] {
    return copy->note_clean(version, seen.scan, {}, after);
  };
  FM_CO_CHECK(co_await blocking<void>(*at.env, keep));
  count("found committed");
  spdlog::info("{}: version {} holds the local changes already: their commit's answer was lost",
               name_of(*copy), version.value());
  if (!file) co_return fermata::Status{};
  MutationReply reply;
  reply.stamp = opened.stamp;
  reply.leased = opened.leased;
  reply.attr = opened.attr;
  reply.version = version;
  auto elsewhere = after_commit(file, reply, seen.backing.mtime_ns, under);
  co_await invalidate(std::move(elsewhere));
  co_return fermata::Status{};
}

Task<void> FileSystem::refused(LoopContext& at, FilePtr file, CachePin copy,
                               std::error_code error) {
  if (error == make_error_code(Errc::kStaleBase)) {
    constexpr auto kOpen = CachedCopy::After::kStillWritable;
    const auto settled = co_await settle_committed(at, file, copy, kOpen);
    if (settled || settled.error() != make_error_code(Errc::kStaleBase)) co_return settled;
    FM_CO_CHECK(co_await set_aside(at, file, copy, "the session was over and others wrote"));
    co_return error;
  }
  if (error == make_error_code(Errc::kSessionExpired) ||
      error == make_error_code(Errc::kStaleEpoch)) {
    // The new session may commit it, if nobody wrote meanwhile (fencing).
    {
      MutexLock lock(file->mutex);
      file->fenced = true;
    }
    const Credentials nobody;
    FM_CO_TRY(const auto now, co_await at.client->getattr(nobody, file->inode));
    table_.apply(now.attr, now.stamp, now.leased);
    if (now.attr.version == copy->base()) co_return Errc::kRetry;
    constexpr auto kOpen = CachedCopy::After::kStillWritable;
    const auto settled = co_await settle_committed(at, file, copy, kOpen);
    if (settled || settled.error() != make_error_code(Errc::kStaleBase)) co_return settled;
    FM_CO_CHECK(co_await set_aside(at, file, copy, "the session was over and others wrote"));
    co_return from_errno(ESTALE);
  }
  if (means_gone(error)) {
    const Credentials nobody;
    auto now = co_await at.client->getattr(nobody, file->inode);
    if (!now && means_gone(now.error())) {
      FM_CO_CHECK(co_await set_aside(at, file, copy, "the file was removed"));
    }
    co_return from_errno(ESTALE);
  }
  count("failed");
  spdlog::error("{}: commit failed, the changes stay in the cache: {}", name_of(*copy),
                error.message());
  co_return error;
}

// ------------------------------------------------------------------------------ all of them

void FileSystem::commit_all(Duration timeout, std::function<void(std::vector<Uncommitted>)> done) {
  LoopContext& loop = loops_.front();
  background_on(loop.index, "commit all", [this, &loop, timeout, done = std::move(done)] {
    return commit_files(loop, timeout, done);
  });
}

asio::awaitable<void> FileSystem::commit_files(LoopContext& at, Duration timeout,
                                               std::function<void(std::vector<Uncommitted>)> done) {
  const TimePoint deadline = at.env->now() + timeout;
  const auto left = [&] { return std::max<Duration>(deadline - at.env->now(), Duration{0}); };
  struct Commit {
    FilePtr file;
    std::shared_ptr<Signal> waiter;
  };
  std::vector<Commit> commits;
  std::vector<std::unique_ptr<Hold>> holds;
  for (const auto& file : table_.held_files()) {
    {
      MutexLock lock(file->mutex);
      if (!file->copy || file->copy->conflict()) continue;
      if (!file->copy->maybe_dirty() && !file->unsent.load()) continue;
    }
    file->holds.fetch_add(1);
    holds.push_back(std::make_unique<Hold>(this, file));
    commits.push_back({file, start_commit(at, file)});
  }
  std::vector<Uncommitted> failed;
  std::vector<std::shared_ptr<Signal>> settled;
  for (const auto& [file, waiter] : commits) {
    const auto result = co_await waiter->wait_for(left());
    if (!result || *result) {
      CachePin copy;
      {
        MutexLock lock(file->mutex);
        copy = file->copy;
      }
      const std::string name =
          copy ? name_of(*copy) : "inode " + std::to_string(file->inode.value());
      const auto why = result ? *result : std::make_error_code(std::errc::timed_out);
      failed.push_back({name, why, copy && copy->conflict()});
    } else if (file->writers.load() == 0) {
      settled.push_back(std::make_shared<Signal>(at.env->executor()));
      file->holds.fetch_add(1);
      background(at, "close writer", settle_closed(at, file, settled.back()));
    }
  }
  for (const auto& each : settled) (void)co_await each->wait_for(left());
  holds.clear();
  const auto told = std::make_shared<Signal>(at.env->executor());
  background(at, "note reads", send_reads_now(at, told));
  (void)co_await told->wait_for(left());
  done(std::move(failed));
}

// What was dirty although nobody had it open is clean now, and may be evicted. Owns one hold.
asio::awaitable<void> FileSystem::settle_closed(LoopContext& at, FilePtr file,
                                                std::shared_ptr<Signal> done) {
  co_await close_writer(at, file);
  done->set({});
}

void FileSystem::start_recovery() {
  LoopContext& loop = loops_.front();
  background_on(loop.index, "recovery", [this, &loop] { return recover(loop); });
}

asio::awaitable<void> FileSystem::recover(LoopContext& at) {
  for (auto& copy : store_->recovered_dirty()) {
    co_await recover_one(at, std::move(copy));
  }
}

// What an earlier mountd could not commit any more: as after an expired session, it is committed
// only if nobody wrote since.
asio::awaitable<void> FileSystem::recover_one(LoopContext& at, CachePin copy) {
  const Credentials nobody;
  const auto answer = co_await at.client->getattr(nobody, copy->inode());
  if (!answer && !means_gone(answer.error())) {
    spdlog::warn("{}: changes left by an earlier run stay in the cache: {}", name_of(*copy),
                 answer.error().message());
    co_return;
  }
  if (answer && answer->attr.version != copy->base()) {
    // It ended after its commit had arrived and before the answer had.
    const auto settled = co_await settle_committed(at, nullptr, copy, CachedCopy::After::kClosed);
    if (settled) co_return;
    if (settled.error() != make_error_code(Errc::kStaleBase)) {
      spdlog::warn("{}: changes left by an earlier run stay in the cache: {}", name_of(*copy),
                   settled.error().message());
      co_return;
    }
  }
  if (!answer || answer->attr.version != copy->base()) {
    (void)co_await set_aside(at, nullptr, copy, answer ? "others wrote since" : "it was removed");
    co_return;
  }
  const auto view = table_.adopt(answer->attr, answer->stamp, answer->leased);
  if (!view.file) co_return;
  const FilePtr file = view.file;
  Hold hold(this, file);
  {
    auto pass = co_await file->gate.enter();
    if (!pass) co_return;
    bool free = false;
    {
      MutexLock lock(file->mutex);
      free = file->copy == copy || (file->opens == 0 && !file->copy);
    }
    if (!free) {
      (void)co_await set_aside(at, nullptr, copy, "another copy of it is open");
      co_return;
    }
    attach_copy(file, copy);
    MutexLock lock(file->mutex);
    file->fenced = true;
    file->sticky = true;
    file->writer = {};
  }
  const auto done = co_await commit(at, file, 0);
  if (!done) co_return;
  count("recovered");
  spdlog::info("{}: changes left by an earlier run are committed", name_of(*copy));
  file->holds.fetch_add(1);
  background(at, "close writer", close_writer(at, file));
}

}  // namespace fermata::mountd
