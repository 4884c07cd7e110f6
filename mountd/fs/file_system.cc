#include "mountd/fs/file_system.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <set>

#include "common/access/access.h"
#include "common/base/assert.h"
#include "mountd/fs/attributes.h"
#include "mountd/fuse/caller.h"

namespace fermata::mountd {
namespace asio = boost::asio;

FileSystem::FileSystem(std::vector<LoopContext> loops, ClientSession& session, FsOptions options)
    : loops_(std::move(loops)),
      session_(session),
      options_(options),
      table_(session, NodeTable::Limits{}),
      mapped_(loops_.front().env->executor()) {
  for (const auto& loop : loops_) {
    tasks_.push_back(std::make_unique<TaskGroup>(loop.env->executor()));
  }
}

FileSystem::~FileSystem() {
  if (store_ != nullptr) store_->on_pressure({});
}

void FileSystem::set_store(CacheStore& store) {
  store_ = &store;
  sync_history_.load(store.dir() + "/synced");
  store.on_pressure([this](std::uint64_t bytes) { return release_idle(bytes); });
}

void FileSystem::attach(FuseSession& session, Notifier& notifier) {
  notifier_ = &notifier;
  passthrough_ = options_.passthrough && session.has_passthrough();
  epoch_ = session.has_epoch();
  fuse_ = &session;
}

void FileSystem::detach() {
  passthrough_ = false;
  notifier_ = nullptr;
  fuse_ = nullptr;
}

void FileSystem::init(const ConnectionInfo& info) { acls_ = info.acls; }

void FileSystem::background(LoopContext& at, std::string name, awaitable<void> task) {
  tasks_[at.index]->spawn(std::move(name), std::move(task));
}

void FileSystem::background_on(unsigned index, std::string name,
                               std::function<awaitable<void>()> make) {
  asio::post(loops_[index].env->executor(),
             [this, index, name = std::move(name), make = std::move(make)]() mutable {
               tasks_[index]->spawn(std::move(name), make());
             });
}

void FileSystem::stop(std::function<void()> done) {
  auto left = std::make_shared<std::atomic<std::size_t>>(loops_.size());
  for (const auto& loop : loops_) {
    TaskGroup& tasks = *tasks_[loop.index];
    asio::post(loop.env->executor(), [&tasks, left, done, executor = loop.env->executor()] {
      tasks.cancel_all();
      asio::co_spawn(executor, tasks.join(), [left, done](std::exception_ptr) {
        if (left->fetch_sub(1) == 1) done();
      });
    });
  }
}

void FileSystem::count(const char* what) {
  MutexLock lock(counts_mutex_);
  ++counts_[what];
}

FileSystem::Summary FileSystem::summary() {
  Summary out;
  out.nodes = table_.counters();
  {
    MutexLock lock(handles_mutex_);
    out.open_files = handles_.size();
  }
  MutexLock lock(counts_mutex_);
  out.commits = counts_;
  return out;
}

std::vector<CacheListing> FileSystem::cached_files() {
  std::set<std::pair<InodeId, std::uint64_t>> open;
  for (const auto& file : table_.held_files()) {
    MutexLock lock(file->mutex);
    if (file->copy && file->opens != 0) open.emplace(file->inode, file->copy->serial());
  }
  auto files = store_->list();
  for (auto& file : files) {
    file.open = open.contains({file.inode, file.serial});
    std::string path = table_.path_of(file.inode);
    // What was known when the copy was made beats a part of it.
    if (path.empty() || (path.starts_with(".../") && !file.path_hint.empty())) continue;
    if (path == file.path_hint) continue;
    file.path_hint = path;
    store_->rename(file.inode, path);
  }
  return files;
}

// ------------------------------------------------------------------------------------- access

Credentials FileSystem::cred(Ctx ctx) const {
  // What root may do does not depend on groups.
  std::vector<std::uint32_t> groups;
  if (ctx.uid != 0 && options_.identity.squash != Squash::kAll) groups = groups_of(ctx.pid);
  return options_.identity.in_cluster(ctx.uid, ctx.gid, std::move(groups));
}

Task<void> FileSystem::check_squashed(LoopContext& at, Credentials who, NodeHandle node,
                                      std::uint32_t wanted, bool squashed) {
  if (!squashed) co_return fermata::Status{};
  FM_CO_TRY(const auto view, co_await fresh_view(at, who, node));
  Permissions permissions{view.attr.type, view.attr.mode, view.attr.uid, view.attr.gid};
  if (!view.attr.no_xattrs) {
    FM_CO_TRY(const auto xattrs, co_await all_xattrs(at, who, node));
    if (const auto acl = xattrs->find(std::string(kAclAccess)); acl != xattrs->end()) {
      FM_CO_TRY(permissions.acl, parse_acl(acl->second));
    }
  }
  if (!may(who, permissions, wanted)) co_return std::errc::permission_denied;
  co_return fermata::Status{};
}

// ----------------------------------------------------------------------------------- timeouts

Timeout FileSystem::lease_left() const {
  const auto left = session_.lease_until() - loops_.front().env->clock().now();
  return std::max<Timeout>(std::chrono::duration_cast<Timeout>(left), Timeout{0});
}

bool FileSystem::may_differ(FileState& file) {
  if (file.writers.load() != 0 || file.mapped.load() || file.sticky.load()) return true;
  MutexLock lock(file.mutex);
  return file.copy && file.copy->maybe_dirty();  // closed, and not committed yet
}

Timeout FileSystem::attr_timeout(const View& view) {
  // What changes through one node the kernel does not tell the inode's other ones.
  if (fuse_.load() == nullptr || !view.attr_valid || !view.alone) return Timeout{0};
  if (view.file) {
    if (may_differ(*view.file)) return Timeout{0};
    if (view.version != view.attr.version) return Timeout{0};
  }
  return std::min<Timeout>(options_.attr_timeout, lease_left());
}

// What the kernel keeps of a directory it lets root walk through without a question: where nobody
// may search, every walk is asked for.
Timeout FileSystem::entry_timeout(InodeId parent, bool leased) {
  if (!leased || !epoch_.load()) return Timeout{0};
  if (options_.identity.squash != Squash::kNone) {
    const auto view = table_.find(table_.node_of(parent));
    if (!view || !view->attr_known || !view->attr.no_xattrs) return Timeout{0};
    const Permissions permissions{view->attr.type, view->attr.mode, view->attr.uid, view->attr.gid};
    const Credentials nobody = options_.identity.in_cluster(0, 0, {});
    if (!may(nobody, permissions, kMayExecute)) return Timeout{0};
  }
  return std::min<Timeout>(options_.entry_timeout, lease_left());
}

struct stat FileSystem::stat_of(const View& view) {
  struct stat out = to_stat(view.shown ? *view.shown : view.attr);
  if (options_.identity.maps()) {
    out.st_uid = options_.identity.local_uid(out.st_uid);
    out.st_gid = options_.identity.local_gid(out.st_gid);
  }
  if (!view.file) return out;
  FileState& file = *view.file;
  if (file.holds.load() != 0) note_backing_read(file);
  // Noted here, or after `view` was taken: a close does not wait for its release, which notes it.
  if (const auto read = table_.noted_read(view.inode); read && *read > view.attr.atime)
    out.st_atim = to_timespec(*read);
  if (!may_differ(file)) return out;
  MutexLock lock(file.mutex);
  if (file.kill_privileges) {
    out.st_mode &= ~mode_t{S_ISUID};
    if ((out.st_mode & S_IXGRP) != 0) out.st_mode &= ~mode_t{S_ISGID};
  }
  if (!file.copy || !file.copy->complete()) return out;
  const auto backing = file.copy->stat();
  if (!backing) return out;
  overlay_backing(out, *backing);
  if (file.times.moved(backing->mtime_ns)) {
    const std::int64_t ctime_ns = to_ns(view.attr.ctime);
    const std::int64_t mtime_ns = file.times.look(backing->mtime_ns, ctime_ns);
    out.st_mtim = to_timespec(from_ns(mtime_ns));
    if (ctime_ns < mtime_ns) out.st_ctim = out.st_mtim;
  }
  return out;
}

Entry FileSystem::entry_of(const View& view) {
  Entry out;
  out.node = view.node;
  out.attr = stat_of(view);
  out.attr_timeout = attr_timeout(view);
  return out;
}

// ------------------------------------------------------------------------------------- lookup

asio::awaitable<void> FileSystem::settle_lineage(LoopContext& at, const Attr attr) {
  if (attr.type != FileType::kRegular) co_return;
  const auto view = table_.find(table_.node_of(attr.inode));
  if (!view || !view->file || view->version == attr.version) co_return;
  const FilePtr file = view->file;
  if (file->sticky.load() || (file->writers.load() == 0 && !file->mapped.load())) co_return;
  CachePin copy;
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
  }
  if (!copy || copy->conflict()) co_return;
  const Version base = copy->base();
  const auto job = [copy]() -> Result<bool> {
    // What an update in place writes is nobody's work (locked_content.cc).
    const std::uint64_t updates = copy->updates();
    if (copy->updating()) return false;
    FM_TRY(const bool modified, copy->is_modified());
    return modified && copy->updates() == updates;
  };
  const auto modified = co_await blocking<bool>(*at.env, job);
  if (!modified || !*modified) co_return;
  // Times that were set, or the same bytes again, are no work to stay behind for. A commit that
  // goes on is such work until it has ended; an update looks itself, and may wait for a gate that
  // our caller holds.
  auto still = file->content_gate.try_enter();
  for (bool committing = false; !still && !committing; still = file->content_gate.try_enter()) {
    if (file->updates_asked.load() != 0) co_return;
    {
      MutexLock lock(file->mutex);
      committing = file->commit_running != nullptr;
    }
    if (committing) break;
    constexpr auto kPause = std::chrono::milliseconds(1);  // another look, or an end just now
    const std::error_code stop = co_await at.env->sleep_for(kPause);
    if (stop) co_return;
  }
  if (still) {
    const auto look = [copy]() -> Result<bool> {
      if (copy->updating()) return false;
      return copy->surely_modified();
    };
    const auto surely = co_await blocking<bool>(*at.env, look);
    if (!surely || !*surely) co_return;
  }
  // A commit may have ended meanwhile; with no writer left, nobody would look at it again.
  MutexLock lock(file->mutex);
  const bool used = file->writers.load() != 0 || file->mapped.load();
  if (used && file->copy == copy && copy->base() == base) file->sticky = true;
}

asio::awaitable<NodeTable::View> FileSystem::bind(LoopContext& at, const Attr attr, Stamp stamp,
                                                  bool leased) {
  co_await settle_lineage(at, attr);
  co_return table_.bind(attr, stamp, leased);
}

void FileSystem::lookup(Ctx ctx, NodeHandle parent, std::string_view name, EntryReply reply) {
  if (name.size() > kNameMax) return reply.error(ENAMETOOLONG);
  const auto directory = table_.inode_of(parent);
  if (!directory) return reply.error(ESTALE);
  // Whether a squashed caller may search the directory is the cluster's to say.
  const auto found =
      options_.identity.squashes(ctx.uid) ? NodeTable::Found{} : table_.lookup(*directory, name);
  if (found.known == NodeTable::Known::kAbsent)
    return reply.absent(entry_timeout(*directory, true));
  if (found.known == NodeTable::Known::kPresent) {
    Entry entry = entry_of(found.child);
    entry.entry_timeout = entry_timeout(*directory, true);
    second_tries_.looked_up(ctx.pid, entry.node);
    return reply.entry(entry);
  }
  auto task = do_lookup(at(reply), cred(ctx), parent, std::string(name));
  const auto answer = [this, caller = ctx.pid](EntryReply& to, const Entry& entry) {
    if (entry.node == kNoNode) return to.absent(entry.entry_timeout);
    second_tries_.looked_up(caller, entry.node);
    to.entry(entry);
  };
  run_request(ctx, std::move(reply), std::move(task), answer);
}

Task<Entry> FileSystem::do_lookup(LoopContext& at, Credentials who, NodeHandle parent,
                                  std::string name) {
  const auto directory = table_.inode_of(parent);
  if (!directory) co_return from_errno(ESTALE);
  FM_CO_TRY(const auto found, co_await at.client->lookup(who, *directory, name));
  Entry entry;
  const InodeId child = found.attr ? found.attr->inode : InodeId{};
  if (!found.attr) {
    entry.entry_timeout =
        entry_timeout(*directory, table_.set_entry(*directory, name, child, found.stamp,
                                                   found.entry_leased, NodeTable::By::kRead));
    co_return entry;
  }
  const auto view = co_await bind(at, *found.attr, found.stamp, found.leased);
  entry = entry_of(view);
  entry.entry_timeout =
      entry_timeout(*directory, table_.set_entry(*directory, name, child, found.stamp,
                                                 found.entry_leased, NodeTable::By::kRead));
  co_return entry;
}

void FileSystem::forget(NodeHandle node, std::uint64_t lookup_count) {
  const auto forgotten = table_.forget_lookup(node, lookup_count);
  if (forgotten.file) teardown(forgotten.file);
  if (forgotten.orphan) release_orphan(*forgotten.orphan);
}

void FileSystem::unhold(const FilePtr& file) {
  if (file->holds.fetch_sub(1) != 1) return;
  // The cluster keeps it for this session as long as it is not told otherwise. If it has a name
  // after all, being told is harmless.
  if (file->unlinked_elsewhere.exchange(false) && !file_in_use(file->inode)) {
    release_orphan(file->inode);
  }
  if (const auto removed = table_.reap(file->node)) {
    teardown(removed);
  } else {
    note_idle(file);
  }
}

// Moves the copy and its backing id out, unless somebody has just opened it: an open that the
// kernel is told of may not lose its backing id. The id is closed when no table lock is held.
bool FileSystem::detach_copy(const FilePtr& file) {
  CachePin copy;
  std::int32_t backing = 0;
  {
    MutexLock lock(file->mutex);
    if (file->opens != 0) return false;
    std::swap(copy, file->copy);
    std::swap(backing, file->backing_id);
    file->fill.reset();
  }
  FuseSession* fuse = fuse_.load();
  if (backing > 0 && fuse != nullptr) (void)fuse->close_backing(backing);
  return true;
}

void FileSystem::teardown(const FilePtr& file) {
  (void)detach_copy(file);
  MutexLock lock(idle_mutex_);
  if (file->idle_place) idle_.erase(*std::exchange(file->idle_place, std::nullopt));
}

void FileSystem::note_idle(const FilePtr& file) {
  {
    MutexLock lock(file->mutex);
    if (!file->copy) return;
    file->copy->note_use();
  }
  FilePtr oldest;
  {
    MutexLock lock(idle_mutex_);
    if (file->idle_place) {
      idle_.splice(idle_.end(), idle_, *file->idle_place);
    } else {
      file->idle_place = idle_.insert(idle_.end(), file);
    }
    if (idle_.size() > options_.idle_files_max) oldest = take_oldest_idle();
  }
  if (oldest) let_go(*oldest);
}

FileSystem::FilePtr FileSystem::take_oldest_idle() {
  while (!idle_.empty()) {
    const FilePtr file = idle_.front().lock();
    idle_.pop_front();
    if (!file) continue;
    file->idle_place.reset();
    return file;
  }
  return nullptr;
}

std::uint64_t FileSystem::let_go(FileState& file) {
  CachePin copy;
  std::int32_t backing = 0;
  table_.if_idle(file, [&] {
    MutexLock lock(file.mutex);
    if (file.sticky.load() || file.unsent.load()) return;
    std::swap(copy, file.copy);
    std::swap(backing, file.backing_id);
  });
  FuseSession* fuse = fuse_.load();
  if (backing > 0 && fuse != nullptr) (void)fuse->close_backing(backing);
  if (!copy) return 0;
  store_->touch(*copy);
  return copy->size_bytes();
}

bool FileSystem::release_idle(std::uint64_t bytes) {
  std::uint64_t released = 0;
  while (released < bytes) {
    FilePtr file;
    {
      MutexLock lock(idle_mutex_);
      file = take_oldest_idle();
    }
    if (!file) break;
    released += let_go(*file);
  }
  return released != 0;
}

void FileSystem::drop_idle() { (void)release_idle(~std::uint64_t{0}); }

bool FileSystem::file_in_use(InodeId inode) { return table_.in_use(inode); }

// ------------------------------------------------------------------------------------- statfs

namespace {

constexpr auto kFreshFor = std::chrono::seconds(2);
constexpr auto kAnswerStatfs = [](StatfsReply& to, const struct statvfs& values) {
  to.statfs(values);
};

struct statvfs to_statvfs(const StatFsReply& known) {
  constexpr std::uint64_t kUnit = 4096;
  constexpr std::uint64_t kInodesFree = 1ULL << 40;  // ids are 48 bits; there is no other limit
  struct statvfs out {};
  out.f_bsize = kUnit;
  out.f_frsize = kUnit;
  out.f_blocks = known.total_bytes / kUnit;
  out.f_bfree = known.free_bytes / kUnit;
  out.f_bavail = out.f_bfree;
  out.f_ffree = known.inodes_max == 0 ? kInodesFree : known.inodes_max - known.inodes;
  out.f_files = known.inodes + out.f_ffree;
  out.f_favail = out.f_ffree;
  out.f_namemax = kNameMax;
  return out;
}

}  // namespace

void FileSystem::statfs(Ctx ctx, NodeHandle node, StatfsReply reply) {
  if (session_.has_quotas()) {
    const auto inode = table_.inode_of(node);
    auto task = do_statfs_within(at(reply), inode.value_or(kRootInode));
    return run_request(ctx, std::move(reply), std::move(task), kAnswerStatfs);
  }
  std::optional<StatFsReply> known;
  bool refresh = false;
  {
    MutexLock lock(statfs_mutex_);
    known = statfs_;
    refresh = known && !statfs_asked_ && at(reply).env->now() - statfs_at_ > kFreshFor;
    if (refresh) statfs_asked_ = true;
  }
  LoopContext& here = at(reply);
  if (refresh) background(here, "statfs", refresh_statfs(here));
  run_request(ctx, std::move(reply), do_statfs(here), kAnswerStatfs);
}

asio::awaitable<void> FileSystem::refresh_statfs(LoopContext& at) {
  const Credentials nobody;
  auto answer = co_await at.client->statfs(nobody, InodeId());
  MutexLock lock(statfs_mutex_);
  statfs_asked_ = false;
  if (!answer) co_return;
  statfs_ = *answer;
  statfs_at_ = at.env->now();
}

Task<struct statvfs> FileSystem::do_statfs(LoopContext& at) {
  std::optional<StatFsReply> known;
  {
    MutexLock lock(statfs_mutex_);
    known = statfs_;
  }
  if (!known) {
    const Credentials nobody;
    FM_CO_TRY(known, co_await at.client->statfs(nobody, InodeId()));
    MutexLock lock(statfs_mutex_);
    statfs_ = known;
    statfs_at_ = at.env->now();
  }
  co_return to_statvfs(*known);
}

// Of a directory, whose quotas may leave less room than the disks do.
Task<struct statvfs> FileSystem::do_statfs_within(LoopContext& at, InodeId inode) {
  constexpr std::size_t kKnownMax = 1000;
  {
    MutexLock lock(statfs_mutex_);
    const auto known = statfs_within_.find(inode);
    if (known != statfs_within_.end() && at.env->now() - known->second.at <= kFreshFor)
      co_return to_statvfs(known->second.reply);
  }
  const Credentials nobody;
  FM_CO_TRY(const auto reply, co_await at.client->statfs(nobody, inode));
  MutexLock lock(statfs_mutex_);
  if (statfs_within_.size() >= kKnownMax) statfs_within_.clear();
  statfs_within_[inode] = {reply, at.env->now()};
  co_return to_statvfs(reply);
}

}  // namespace fermata::mountd
