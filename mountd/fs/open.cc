// Open and create: content is brought here and attached to the node. close.cc lets it go.
//
// Everything that attaches or truncates content passes the file's gate; only an open of what is
// attached and valid already does without (open_attached), which is the case that must be fast.
#include <fcntl.h>
#include <spdlog/spdlog.h>

#include "common/access/access.h"
#include "common/base/assert.h"
#include "mountd/fs/attributes.h"
#include "mountd/fs/fetch.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {
/// The cache's disk has this free before a writer is let past the daemon: evicting for it, as for
/// writes that the daemon makes, comes too late then.
constexpr std::uint64_t kPassthroughRoomBytes = 256ULL << 20;

std::error_code stale() { return from_errno(ESTALE); }
}  // namespace

FileSystem::OpenWish FileSystem::wish_of(int flags, bool kill) {
  OpenWish wish;
  wish.truncate = (flags & O_TRUNC) != 0;
  wish.writable = (flags & O_ACCMODE) != O_RDONLY || wish.truncate;
  wish.no_atime = (flags & O_NOATIME) != 0;
  wish.kill_suidgid = kill;
  constexpr int kExecutes = 0x20;  // __FMODE_EXEC of include/linux/fs.h
  const int access = flags & O_ACCMODE;
  if (access != O_WRONLY) wish.rights |= (flags & kExecutes) != 0 ? kMayExecute : kMayRead;
  if (access != O_RDONLY || wish.truncate) wish.rights |= kMayWrite;
  wish.sync = wish.writable && (flags & O_DSYNC) != 0;  // a part of O_SYNC
  wish.update = (flags & O_ACCMODE) == O_RDWR && !wish.truncate;
  return wish;
}

void FileSystem::open(Ctx ctx, NodeHandle node, const OpenRequest& request, OpenReply reply) {
  OpenWish wish = wish_of(request.flags, request.kill_suidgid);
  if (wish.writable && options_.read_only) return reply.error(EROFS);
  wish.squashed = options_.identity.squashes(ctx.uid);
  wish.second_try = second_tries_.take(ctx.pid, node, at(reply).env->now());
  {
    const auto view = table_.hold(node);
    if (!view) return reply.error(ESTALE);
    if (!view->file) return reply.error(EINVAL);
    Hold hold(this, view->file);
    if (const auto result = open_attached(*view, wish)) {
      hold.keep();
      return reply.opened(*result);
    }
  }
  auto task = open_for(at(reply), cred(ctx), ctx.pid, node, wish);
  run_request(ctx, std::move(reply), std::move(task),
              [](OpenReply& to, const OpenResult& result) { to.opened(result); });
}

std::optional<OpenResult> FileSystem::open_attached(const View& view, const OpenWish& wish) {
  FileState& file = *view.file;
  if (!view.current || wish.truncate || wish.kill_suidgid || wish.squashed) return std::nullopt;
  const bool sticky = file.sticky.load();
  const bool valid = view.attr_valid && view.version == view.attr.version;
  if (!sticky && !valid) return std::nullopt;
  {
    MutexLock lock(file.mutex);
    if (!file.copy || !file.copy->complete() || file.copy->conflict()) return std::nullopt;
    if (!sticky && file.copy->base() != view.version) return std::nullopt;
    // The first writer marks the copy, which is I/O.
    if (wish.writable && (file.writers.load() == 0 || !file.copy->maybe_dirty())) {
      return std::nullopt;
    }
  }
  auto result = register_open(view.file, wish);
  if (!result) return std::nullopt;
  return *result;
}

Task<OpenResult> FileSystem::open_for(LoopContext& at, Credentials who, pid_t caller,
                                      NodeHandle node, OpenWish wish) {
  auto result = co_await do_open(at, who, node, wish);
  if (!result && result.error() == stale()) second_tries_.refused(caller, at.env->now());
  co_return result;
}

Task<OpenResult> FileSystem::do_open(LoopContext& at, Credentials who, NodeHandle node,
                                     OpenWish wish) {
  const auto view = table_.hold(node);
  if (!view || !view->file) co_return stale();
  Hold hold(this, view->file);
  FM_CO_TRY(const auto result, co_await open_held(at, who, node, view->file, wish));
  hold.keep();
  co_return result;
}

Task<OpenResult> FileSystem::open_held(LoopContext& at, Credentials who, NodeHandle node,
                                       FilePtr file, OpenWish wish) {
  if (!wish.create) FM_CO_CHECK(co_await check_squashed(at, who, node, wish.rights, wish.squashed));
  FM_CO_TRY(const auto pass, co_await file->gate.enter());
  ContentWish content;
  content.bytes = !wish.truncate;
  content.may_stream = !wish.writable;
  content.second_try = wish.second_try;
  FM_CO_CHECK(co_await attach_content(at, who, node, file, content));
  if (!wish.writable) co_return register_open(file, wish);
  if (const auto view = table_.find(node)) note_writer(*file, who, view->attr.change);
  for (;;) {
    const auto ready = co_await prepare_writer(at, file, wish);
    if (!ready) {
      drop_unfilled(file);
      co_return ready.error();
    }
    auto opened = register_open(file, *ready);
    if (opened || opened.error() != make_error_code(Errc::kRetry)) co_return opened;
    wish.truncate = false;  // is done
  }
}

// What was to be truncated and was not: nobody fills it.
void FileSystem::drop_unfilled(const FilePtr& file) {
  CachePin copy;
  {
    MutexLock lock(file->mutex);
    if (file->fill || !file->copy || file->copy->complete()) return;
    copy = file->copy;
  }
  copy->fail_fill(std::make_error_code(std::errc::operation_canceled));
}

// ------------------------------------------------------------------------------ bringing content

CachePin FileSystem::attached(FileState& file, Version version) {
  MutexLock lock(file.mutex);
  if (!file.copy || file.copy->base() != version || file.copy->conflict()) return {};
  if (file.copy->complete()) return file.copy;
  if (!file.fill) return {};
  MutexLock fill_lock(file.fill->mutex);
  return file.fill->done && file.fill->result ? CachePin() : file.copy;
}

Task<void> FileSystem::attach_content(LoopContext& at, Credentials who, NodeHandle node,
                                      FilePtr file, ContentWish wish) {
  constexpr int kAttempts = 4;
  const bool need_content = wish.bytes;
  const bool may_stream = wish.may_stream;
  const auto which = wish.second_try ? NodeTable::Which::kAny : NodeTable::Which::kCurrent;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const auto view = table_.find(node);
    if (!view || (!view->current && !wish.second_try)) co_return stale();
    if (file->sticky.load()) co_return fermata::Status{};  // the mount's own work goes on
    Attr attr = view->attr;
    CachePin copy;
    if (view->attr_known) copy = attached(*file, attr.version);
    if (view->attr_known && !copy) copy = store_->find(file->inode, attr.version);
    FileContent content;
    if (!view->attr_valid && !need_content) {
      const auto answer = co_await at.client->getattr(who, file->inode);
      if (!answer) co_return stale_if_gone(file->inode, answer.error());
      attr = answer->attr;
      co_await settle_lineage(at, attr);
      table_.apply(attr, answer->stamp, answer->leased);
    } else if (!view->attr_valid || (need_content && !copy && attr.size_bytes != 0)) {
      const Version have = copy ? copy->base() : Version{};
      auto answer = co_await at.client->open(who, file->inode, have);
      if (!answer) co_return stale_if_gone(file->inode, answer.error());
      attr = answer->attr;
      content = std::move(answer->content);
      co_await settle_lineage(at, attr);
      table_.apply(attr, answer->stamp, answer->leased);
    }
    if (file->sticky.load()) co_return fermata::Status{};
    const auto now = table_.find(node);
    if (!now || (!now->current && !wish.second_try)) co_return stale();
    if (now->version != attr.version && !table_.take_newest(node, 1, which)) {
      copy = wish.second_try ? attached(*file, now->version) : CachePin();
      if (!copy) co_return stale();
      if (need_content && !copy->complete()) FM_CO_CHECK(co_await wait_filled(at, file, copy));
      co_return fermata::Status{};
    }
    if (now->version != attr.version && now->attr.version != attr.version) {
      continue;  // something newer still is known
    }
    copy = attached(*file, attr.version);
    if (!copy) {
      copy = store_->find(file->inode, attr.version);
      if (copy) attach_copy(file, copy);
    }
    if (copy) {
      if (!copy->complete() && (!may_stream || attr.size_bytes <= options_.stream_min_bytes)) {
        if (need_content) FM_CO_CHECK(co_await wait_filled(at, file, copy));
      }
      co_return fermata::Status{};
    }
    const bool have_content = content.kind != fermata::OpenReply::Content::kNone;
    if (need_content && attr.size_bytes != 0 && !have_content) continue;  // evicted meanwhile
    co_return co_await fill_copy(at, file, attr, std::move(content), need_content, may_stream);
  }
  co_return stale();
}

Task<CacheStore::Fill> FileSystem::begin_fill(LoopContext& at, Attr attr, bool need_content) {
  const mode_t mode = S_IFREG | (attr.mode & 07777);
  const std::uint64_t allocated =
      need_content ? std::min(attr.allocated_bytes, attr.size_bytes) : 0;
  CacheStore* store = store_;
  const std::string path = table_.path_of(attr.inode);
  const auto job = [store, attr, allocated, mode, path] {
    return store->begin_fill(attr.inode, attr.version, attr.size_bytes, allocated, mode, path);
  };
  // What a program has just closed or removed keeps its room until the kernel's RELEASE is here and
  // its last writes are settled.
  constexpr auto kPatience = std::chrono::seconds(1);
  constexpr auto kPause = std::chrono::milliseconds(10);
  const TimePoint deadline = at.env->now() + kPatience;
  for (;;) {
    auto fill = co_await blocking<CacheStore::Fill>(*at.env, job);
    const bool full = !fill && fill.error() == std::errc::no_space_on_device;
    const bool never = full && !store->ever_fits(allocated);
    if (never) {
      spdlog::warn("{}: {} MiB do not fit into the cache, of {} MiB (cache-size): it is not opened",
                   path, allocated >> 20, store->stats().limit_bytes >> 20);
    }
    if (!full || never || at.env->now() >= deadline) co_return fill;
    const std::error_code stop = co_await at.env->sleep_for(kPause);
    if (stop) co_return stop;
  }
}

// An older version that nobody has open does not stand in the way of the newer one's room.
void FileSystem::make_way(const FilePtr& file, Version version) {
  if (file->sticky.load() || file->mapped.load()) return;
  {
    MutexLock lock(file->mutex);
    if (!file->copy || file->copy->base() == version || file->copy->maybe_dirty()) return;
  }
  (void)detach_copy(file);
}

Task<void> FileSystem::fill_copy(LoopContext& at, FilePtr file, Attr attr, FileContent content,
                                 bool need_content, bool may_stream) {
  make_way(file, attr.version);
  FM_CO_TRY(auto fill, co_await begin_fill(at, attr, need_content));
  const CachePin copy = fill.copy;
  auto job = std::make_shared<FillJob>();
  attach_copy(file, copy);
  {
    MutexLock lock(file->mutex);
    const bool to_fill = fill.created && (need_content || attr.size_bytes == 0);
    file->fill = to_fill ? job : nullptr;
  }
  if (!fill.created) {
    if (!copy->complete() && need_content) co_return co_await wait_filled(at, file, copy);
    co_return fermata::Status{};
  }
  if (!need_content && attr.size_bytes != 0) co_return fermata::Status{};  // to be truncated
  auto shared = std::make_shared<FileContent>(std::move(content));
  if (attr.size_bytes == 0) {
    shared->kind = fermata::OpenReply::Content::kInline;
    shared->inline_bytes = {};
  }
  if (shared->kind == fermata::OpenReply::Content::kInline) {
    co_return co_await fetch_content(*at.env, *at.client, copy, shared, attr.size_bytes, job);
  }
  background(at, "fill", fill_behind(at, copy, shared, attr.size_bytes, job));
  if (may_stream && attr.size_bytes > options_.stream_min_bytes) co_return fermata::Status{};
  co_return co_await wait_filled(at, file, copy);
}

asio::awaitable<void> FileSystem::fill_behind(LoopContext& at, CachePin copy,
                                              std::shared_ptr<const FileContent> content,
                                              std::uint64_t size_bytes,
                                              std::shared_ptr<FillJob> job) {
  const auto status = co_await fetch_content(*at.env, *at.client, copy, content, size_bytes, job);
  if (!status && !copy->complete()) {
    spdlog::warn("content of inode {} version {} could not be fetched: {}", copy->inode().value(),
                 copy->base().value(), status.error().message());
  }
}

Task<void> FileSystem::wait_filled(LoopContext& at, FilePtr file, CachePin copy) {
  std::shared_ptr<FillJob> job;
  {
    MutexLock lock(file->mutex);
    job = file->fill;
  }
  auto signal = std::make_shared<Signal>(co_await asio::this_coro::executor);
  if (job) {
    {
      MutexLock lock(job->mutex);
      if (job->done) {
        if (job->result) co_return job->result;
        co_return fermata::Status{};
      }
      job->waiters.push_back(signal);
    }
    const auto error = co_await signal->wait();
    if (error) co_return error;
    co_return fermata::Status{};
  }
  // Another node of the inode fills it: it is complete soon after all is present.
  copy->when_present(0, copy->size_bytes(),
                     [signal](std::error_code error) { signal->set(error); });
  const auto error = co_await signal->wait();
  if (error) co_return error;
  constexpr int kPolls = 5000;
  for (int i = 0; i < kPolls && !copy->complete(); ++i) {
    const auto slept = co_await at.env->sleep_for(std::chrono::milliseconds(2));
    if (slept) co_return slept;
  }
  if (!copy->complete()) co_return std::errc::io_error;
  co_return fermata::Status{};
}

void FileSystem::attach_copy(const FilePtr& file, CachePin copy) {
  std::int64_t mtime_base = 0;
  std::int64_t atime_base = 0;
  if (const auto backing = copy->stat()) {
    atime_base = backing->atime_ns;
    // What was left dirty by an earlier mountd has the backing file's own mtime.
    if (!copy->maybe_dirty()) mtime_base = backing->mtime_ns;
  }
  std::int32_t old_backing = 0;
  {
    MutexLock lock(file->mutex);
    if (file->copy == copy) return;
    std::swap(old_backing, file->backing_id);
    std::swap(file->copy, copy);
    file->fill.reset();
    file->times.settle(mtime_base);
    file->atime_base_ns = atime_base;
    file->fenced = false;  // that was said of the copy before
    file->lock_lost = false;
  }
  FuseSession* fuse = fuse_.load();
  if (old_backing > 0 && fuse != nullptr) (void)fuse->close_backing(old_backing);
}

// ----------------------------------------------------------------------------------- opening

Task<FileSystem::OpenWish> FileSystem::prepare_writer(LoopContext& at, FilePtr file,
                                                      OpenWish wish) {
  CachePin copy;
  bool may_pass = false;
  bool first = false;
  const auto view = table_.find(file->node);
  const bool first_writer =
      file->writers.load() == 0 && !file->sticky.load() && !file->mapped.load();
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
    first = file->opens == 0;
    may_pass = first ? passthrough_.load() && !wants_tracking(*file, wish)
                     : file->mode == IoMode::kPassthrough;
    // Filling it has set the backing file's time: from here on another one means a write.
    // A time that has been looked at makes Linux (6.13 on) give the next write a finer one.
    if (copy && copy->complete()) {
      const auto backing = copy->stat();
      if (backing && !copy->maybe_dirty()) file->times.settle(backing->mtime_ns);
    }
    if (first_writer && view) file->times.follow(to_ns(view->attr.ctime));
  }
  if (!copy) co_return stale();
  if (wish.kill_suidgid) note_kill(file);
  if (!copy->complete() && !wish.truncate) FM_CO_CHECK(co_await wait_filled(at, file, copy));
  CacheStore* store = store_;
  const auto job = [copy, store, first, may_pass, wish]() -> Result<bool> {
    const bool pass = may_pass && (!first || store->make_free(kPassthroughRoomBytes, false) >=
                                                 kPassthroughRoomBytes);
    const auto writes = pass ? CachedCopy::Writes::kUntracked : CachedCopy::Writes::kTracked;
    if (!copy->complete()) {
      FM_CHECK(copy->truncate(0));
      FM_CHECK(copy->mark_maybe_dirty(writes));
      return pass;
    }
    // From here on the digests are all that tells what was written.
    if (pass) FM_CHECK(copy->settle_digests());
    FM_CHECK(copy->mark_maybe_dirty(writes));
    if (!wish.truncate) return pass;
    FM_TRY(const auto now, copy->stat());
    if (!wish.create || now.size_bytes != 0) FM_CHECK(copy->truncate(0));
    return pass;
  };
  FM_CO_TRY(const bool pass, co_await blocking<bool>(*at.env, job));
  wish.ordinary = !pass;
  co_return wish;
}

// All opens of a node are of one kind, so the first one decides. While somebody may still write
// past the daemon, through a mapping, the file stays as it is: the kernel's pages would not follow.
bool FileSystem::wants_tracking(FileState& file, const OpenWish& wish) const {
  if (file.mapped.load() || !file.copy || file.copy->untracked_writes_expected()) return false;
  const std::uint64_t size_bytes = wish.update ? file.copy->size_bytes() : 0;
  return wish.sync || sync_history_.wants_tracking(file.inode, size_bytes);
}

asio::awaitable<void> FileSystem::save_sync_history(LoopContext& at) {
  const auto save = [this] { return sync_history_.save(); };
  const auto saved = co_await blocking<void>(*at.env, save);
  if (!saved)
    spdlog::debug("which files are synced often is not kept: {}", saved.error().message());
}

// The kernel tells nobody when a passthrough writer meets a full disk: room is made ahead of it.
void FileSystem::begin_watching_room() {
  if (watching_room_.exchange(true)) return;
  LoopContext& loop = loops_.front();
  background_on(loop.index, "watch room", [this, &loop] { return watch_room(loop); });
}

asio::awaitable<void> FileSystem::watch_room(LoopContext& at) {
  // A disk takes 2 GiB a second at most, so neither pause lets a writer through what was free.
  constexpr auto kSoon = std::chrono::milliseconds(50);
  constexpr auto kLater = std::chrono::seconds(1);
  constexpr std::uint64_t kPlentyBytes = 16 * kPassthroughRoomBytes;
  CacheStore* store = store_;
  const auto look = [store]() -> Result<std::uint64_t> {
    return store->make_free(kPassthroughRoomBytes, true);
  };
  std::uint64_t free_bytes = 0;
  while (passthrough_writers_.load() != 0) {
    const bool plenty = free_bytes >= kPlentyBytes;
    const std::error_code stop = co_await at.env->sleep_for(plenty ? Duration(kLater) : kSoon);
    if (stop) co_return;
    const auto seen = co_await blocking<std::uint64_t>(*at.env, look);
    free_bytes = seen ? *seen : 0;
  }
  watching_room_ = false;
  if (passthrough_writers_.load() != 0) begin_watching_room();  // one came in between
}

std::int32_t FileSystem::backing_of(FileState& file, Fd& reader) {
  if (file.backing_id > 0) return file.backing_id;
  FuseSession* fuse = fuse_.load();
  if (fuse == nullptr) return 0;
  const auto id = fuse->open_backing(reader.get());
  if (!id) {
    if (passthrough_.exchange(false)) {
      spdlog::warn("passthrough is off: the cache directory cannot back it ({})",
                   id.error().message());
    }
    return 0;
  }
  file.backing_id = *id;
  return *id;
}

Result<OpenResult> FileSystem::register_open(const FilePtr& file, const OpenWish& wish) {
  if (const int why = file->lost.load(); why != 0) return from_errno(why);
  auto opened = std::make_shared<Handle>();
  opened->file = file;
  opened->number = next_handle_.fetch_add(1);
  opened->writable = wish.writable;
  opened->counts_reads = !wish.no_atime;
  opened->sync_writes = wish.sync;
  // Reads from the kernel's pages would not be heard of.
  const bool hears = opened->counts_reads && wants_read(file->inode);
  if (hears && passthrough_.load()) expect_reads(*file);
  OpenResult result;
  {
    MutexLock lock(file->mutex);
    if (!file->copy) return stale();
    // The last writer may have left, and the copy been declared clean, since the caller looked.
    if (wish.writable && !file->copy->maybe_dirty()) return Errc::kRetry;
    opened->copy = file->copy;
    FM_TRY(opened->reader, file->copy->reader());
    if (file->opens == 0) {
      const bool pass = !wish.ordinary && passthrough_.load() && file->copy->complete() &&
                        (wish.writable || !wants_tracking(*file, wish)) &&
                        backing_of(*file, *opened->reader) > 0;
      file->mode = pass ? IoMode::kPassthrough : IoMode::kOrdinary;
    }
    opened->mode = file->mode;
    if (file->mode == IoMode::kPassthrough) {
      // A reader has settled the mode since the copy was prepared for writes that pass the daemon.
      if (wish.writable && wish.ordinary) return Errc::kRetry;
      if (wish.writable) file->copy->expect_untracked_writes();
      result.backing_id = file->backing_id;
      // Of what is written past it the daemon cannot commit each write.
      if (wish.sync) result.flags |= kOpenDirectIo;
      file->page_cache_version = {};
    } else {
      const Version version = file->copy->base();
      const bool same = version && file->page_cache_version == version;
      if (same && !hears) result.flags |= kOpenKeepCache;
      file->page_cache_version = version;
    }
    ++file->opens;
    if (wish.writable) {
      if (file->writers.fetch_add(1) == 0) {
        file->syncs = 0;
        file->writes = 0;
        if (!file->sticky.load()) file->work_session = session_.newest_id();
      }
    } else if (!file->locks->asked.load()) {
      result.flags |= kOpenNoFlush;
      opened->flushes = false;
    }
  }
  result.fh = opened->number;
  if (wish.writable && opened->mode == IoMode::kPassthrough) {
    passthrough_writers_.fetch_add(1);
    begin_watching_room();
  }
  MutexLock lock(handles_mutex_);
  handles_.emplace(result.fh, std::move(opened));
  return result;
}

void FileSystem::create(Ctx ctx, NodeHandle parent, std::string_view name,
                        const CreateRequest& request, CreateReply reply) {
  CreateOp op;
  op.name = name;
  op.mode = request.mode & 07777;
  op.umask = ctx.umask;
  op.exclusive = true;
  OpenWish wish = wish_of(request.flags, false);  // a new file keeps the bits it is made with
  wish.create = true;
  wish.exclusive = (request.flags & O_EXCL) != 0;
  wish.squashed = options_.identity.squashes(ctx.uid);
  auto task = do_create_open(at(reply), cred(ctx), parent, std::move(op), wish);
  run_request(ctx, std::move(reply), std::move(task), [](CreateReply& to, const Created& created) {
    to.created(created.entry, created.result);
  });
}

Task<FileSystem::Created> FileSystem::do_create_open(LoopContext& at, Credentials who,
                                                     NodeHandle parent, CreateOp op,
                                                     OpenWish wish) {
  const auto directory = table_.inode_of(parent);
  const std::string name = op.name;
  // Who only reads commits nothing, and a squashed caller's rights are the cluster's to say.
  if (directory && wish.writable && !wish.squashed) {
    if (const auto made = make_here(at, who, parent, op)) {
      const View view = *made;
      co_return co_await open_made_here(at, who, *directory, view, wish);
    }
  }
  auto created = co_await do_create(at, who, parent, std::move(op));
  if (!created && created.error() == std::errc::file_exists && !wish.exclusive) {
    // Somebody else made it since the kernel looked. The kernel looks again (open(2) does so after
    // ESTALE), and checks who may open it.
    if (directory) table_.drop_entry(*directory, name);
    co_return stale();
  }
  if (!created) co_return created.error();
  co_return co_await open_created(at, who, *created, wish);
}

Task<FileSystem::Created> FileSystem::open_created(LoopContext& at, Credentials who, Entry entry,
                                                   OpenWish wish) {
  // The open may wait for the cluster, which may wait for a callback about this very file.
  const auto made = table_.find(entry.node);
  if (made && made->file) made->file->creating = true;
  auto result = co_await do_open(at, who, entry.node, wish);
  if (made && made->file) made->file->creating = false;
  if (!result) {
    forget(entry.node, 1);
    co_return result.error();
  }
  const auto timeout = entry.entry_timeout;
  if (const auto view = table_.find(entry.node)) {
    entry = entry_of(*view);
    entry.entry_timeout = timeout;
  }
  co_return Created{entry, *result};
}

void FileSystem::tmpfile(Ctx ctx, NodeHandle parent, const CreateRequest& request,
                         CreateReply reply) {
  CreateUnnamedOp op;
  op.mode = request.mode & 07777;
  op.umask = ctx.umask;
  op.linkable = (request.flags & O_EXCL) == 0;
  OpenWish wish = wish_of(request.flags, request.kill_suidgid);
  wish.create = true;
  auto task = do_tmpfile(at(reply), cred(ctx), parent, std::move(op), wish);
  run_request(ctx, std::move(reply), std::move(task), [](CreateReply& to, const Created& created) {
    to.created(created.entry, created.result);
  });
}

Task<FileSystem::Created> FileSystem::do_tmpfile(LoopContext& at, Credentials who,
                                                 NodeHandle parent, CreateUnnamedOp op,
                                                 OpenWish wish) {
  if (options_.read_only) co_return std::errc::read_only_file_system;
  const auto directory = table_.inode_of(parent);
  if (!directory) co_return stale();
  op.parent = *directory;
  op.uid = who.uid;
  op.gid = who.gid;
  const bool linkable = op.linkable;
  Mutation mutation = std::move(op);
  FM_CO_TRY(const auto reply, co_await at.client->mutate(who, std::move(mutation)));
  if (!reply.attr) co_return std::errc::io_error;
  const auto view = co_await bind(at, *reply.attr, reply.stamp, reply.leased);
  if (view.file) view.file->linkable = linkable;
  Entry entry = entry_of(view);
  auto created = co_await open_created(at, who, entry, wish);
  if (!created) release_orphan(view.inode);
  co_return created;
}

void FileSystem::open_abandoned(NodeHandle node, std::uint64_t fh, bool created) {
  {
    MutexLock lock(handles_mutex_);
    if (dirs_.erase(fh) != 0) return;
  }
  LoopContext& loop = loops_.front();
  asio::post(loop.env->executor(), [this, &loop, fh] { close_handle(loop, fh); });
  if (created) forget(node, 1);
}

}  // namespace fermata::mountd
