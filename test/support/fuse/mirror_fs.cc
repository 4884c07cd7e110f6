#include "test/support/fuse/mirror_fs.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>

#include "common/base/assert.h"

namespace fermata::test {

using namespace mountd;  // NOLINT: every type here is one of its

struct MirrorFs::Node {
  std::uint64_t id = 0;
  int fd = -1;               ///< O_PATH
  std::uint64_t st_ino = 0;  ///< shown instead of the file's own; 0: its own
  std::pair<dev_t, ino_t> key{};
  std::uint64_t lookups = 0;  ///< under the table's mutex
  Mutex mutex;
  std::int32_t backing_id FM_GUARDED_BY(mutex) = 0;

  ~Node() {
    if (fd >= 0) ::close(fd);
  }
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd); }
};

struct MirrorFs::Directory {
  Mutex mutex;
  DIR* stream = nullptr;
  ~Directory() {
    if (stream != nullptr) ::closedir(stream);
  }
};

namespace {

int fd_of(std::uint64_t fh) { return static_cast<int>(fh); }

int status_of(int result) { return result == 0 ? 0 : errno; }

void clear_suidgid(int fd) {
  struct stat attr {};
  if (::fstat(fd, &attr) != 0) return;
  auto mode = attr.st_mode & ~static_cast<mode_t>(S_ISUID);
  if ((mode & S_IXGRP) != 0) mode &= ~static_cast<mode_t>(S_ISGID);
  if (mode != attr.st_mode) {
    ::chmod(("/proc/self/fd/" + std::to_string(fd)).c_str(), mode & 07777);
  }
}

}  // namespace

MirrorFs::MirrorFs(const std::string& directory, Options options) : options_(options) {
  auto root = std::make_shared<Node>();
  root->id = 1;
  root->fd = ::open(directory.c_str(), O_PATH | O_CLOEXEC | O_DIRECTORY);
  FM_ASSERT(root->fd >= 0);
  nodes_[1] = root;
}

MirrorFs::~MirrorFs() = default;

void MirrorFs::counted(const char* operation) {
  MutexLock lock(mutex_);
  ++counts_[operation];
}

std::uint64_t MirrorFs::count(const std::string& operation) {
  MutexLock lock(mutex_);
  return counts_[operation];
}

std::uint64_t MirrorFs::lookup_count() {
  MutexLock lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& [id, node] : nodes_) sum += node->lookups;
  return sum;
}

void MirrorFs::bind(const std::string& name, const std::string& path, std::uint64_t st_ino) {
  MutexLock lock(mutex_);
  bound_[name] = {path, st_ino, next_node_++};
}

NodeHandle MirrorFs::node_of(const std::string& name) {
  MutexLock lock(mutex_);
  return NodeHandle{last_node_[name]};
}

std::shared_ptr<MirrorFs::Node> MirrorFs::find(NodeHandle node) {
  MutexLock lock(mutex_);
  const auto at = nodes_.find(static_cast<std::uint64_t>(node));
  FM_ASSERT(at != nodes_.end());  // the kernel names only what it holds
  return at->second;
}

int MirrorFs::attributes(Node& node, struct stat& attr) {
  if (::fstatat(node.fd, "", &attr, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) return errno;
  if (node.st_ino != 0) attr.st_ino = node.st_ino;
  return 0;
}

int MirrorFs::look_up(NodeHandle parent, const std::string& name, Entry& entry) {
  const auto directory = find(parent);
  Bound bound{};
  if (parent == kRootNode) {
    MutexLock lock(mutex_);
    if (const auto at = bound_.find(name); at != bound_.end()) bound = at->second;
  }
  const int fd = bound.node != 0
                     ? ::open(bound.path.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC)
                     : ::openat(directory->fd, name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return errno;
  auto fresh = std::make_shared<Node>();
  fresh->fd = fd;
  struct stat attr {};
  if (::fstatat(fd, "", &attr, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) return errno;
  fresh->key = {attr.st_dev, attr.st_ino};
  fresh->st_ino = bound.st_ino;
  MutexLock lock(mutex_);
  std::shared_ptr<Node> node;
  if (bound.node != 0) {
    fresh->id = bound.node;
    fresh->key = {};
    auto& slot = nodes_[bound.node];
    if (!slot) slot = fresh;
    node = slot;
  } else if (const auto known = by_file_.find(fresh->key); known != by_file_.end()) {
    node = nodes_.at(known->second);
  } else {
    fresh->id = next_node_++;
    by_file_[fresh->key] = fresh->id;
    nodes_[fresh->id] = fresh;
    node = fresh;
  }
  ++node->lookups;
  if (parent == kRootNode) last_node_[name] = node->id;
  entry.node = NodeHandle{node->id};
  entry.entry_timeout = options_.entry_timeout;
  entry.attr_timeout = options_.attr_timeout;
  if (const int failure = attributes(*node, entry.attr); failure != 0) {
    --node->lookups;
    return failure;
  }
  return 0;
}

void MirrorFs::lookup(Ctx, NodeHandle parent, std::string_view name, EntryReply reply) {
  counted("lookup");
  Entry entry;
  const int failure = look_up(parent, std::string(name), entry);
  if (failure == ENOENT) return reply.absent(options_.entry_timeout);
  failure != 0 ? reply.error(failure) : reply.entry(entry);
}

void MirrorFs::forget(NodeHandle handle, std::uint64_t count) {
  counted("forget");
  std::shared_ptr<Node> node;
  {
    MutexLock lock(mutex_);
    const auto at = nodes_.find(static_cast<std::uint64_t>(handle));
    if (at == nodes_.end() || handle == kRootNode) return;
    node = at->second;
    FM_ASSERT(node->lookups >= count);
    node->lookups -= count;
    if (node->lookups != 0) return;
    by_file_.erase(node->key);
    nodes_.erase(at);
  }
  MutexLock lock(node->mutex);
  const auto backing_id = std::exchange(node->backing_id, 0);
  if (backing_id > 0) static_cast<void>(session_->close_backing(backing_id));
}

void MirrorFs::getattr(Ctx, NodeHandle handle, std::optional<std::uint64_t>, AttrReply reply) {
  counted("getattr");
  const auto node = find(handle);
  struct stat attr {};
  const int failure = attributes(*node, attr);
  failure != 0 ? reply.error(failure) : reply.attr(attr, options_.attr_timeout);
}

void MirrorFs::setattr(Ctx, NodeHandle handle, const SetAttributes& change, AttrReply reply) {
  counted("setattr");
  const auto node = find(handle);
  const auto path = node->path();
  int failure = 0;
  if (change.has(kSetMode)) failure = status_of(::chmod(path.c_str(), change.mode & 07777));
  if (failure == 0 && (change.valid & (kSetUid | kSetGid)) != 0) {
    failure = status_of(::fchownat(node->fd, "", change.has(kSetUid) ? change.uid : uid_t(-1),
                                   change.has(kSetGid) ? change.gid : gid_t(-1),
                                   AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW));
  }
  if (failure == 0 && change.has(kSetSize)) {
    const auto size = static_cast<off_t>(change.size_bytes);
    failure = status_of(change.fh ? ::ftruncate(fd_of(*change.fh), size)
                                  : ::truncate(path.c_str(), size));
  }
  if (failure == 0 && change.has(kSetKillSuidGid)) clear_suidgid(node->fd);
  if (failure == 0 && (change.valid & (kSetAtime | kSetMtime)) != 0) {
    timespec times[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}};
    if (change.has(kSetAtime)) times[0] = change.atime;
    if (change.has(kSetAtimeNow)) times[0] = {0, UTIME_NOW};
    if (change.has(kSetMtime)) times[1] = change.mtime;
    if (change.has(kSetMtimeNow)) times[1] = {0, UTIME_NOW};
    failure = status_of(::utimensat(AT_FDCWD, path.c_str(), times, 0));
  }
  struct stat attr {};
  if (failure == 0) failure = attributes(*node, attr);
  failure != 0 ? reply.error(failure) : reply.attr(attr, options_.attr_timeout);
}

void MirrorFs::readlink(Ctx, NodeHandle handle, ReadlinkReply reply) {
  counted("readlink");
  char target[4096];
  const auto size = ::readlinkat(find(handle)->fd, "", target, sizeof target);
  size < 0 ? reply.error(errno) : reply.target({target, static_cast<std::size_t>(size)});
}

void MirrorFs::adopt(Ctx context, int parent_fd, const std::string& name) {
  struct stat parent {};
  ::fstatat(parent_fd, "", &parent, AT_EMPTY_PATH);
  const auto gid = (parent.st_mode & S_ISGID) != 0 ? parent.st_gid : context.gid;
  static_cast<void>(!::fchownat(parent_fd, name.c_str(), context.uid, gid, AT_SYMLINK_NOFOLLOW));
}

void MirrorFs::mknod(Ctx context, NodeHandle parent, std::string_view view, mode_t mode, dev_t rdev,
                     EntryReply reply) {
  counted("mknod");
  const std::string name(view);
  const auto directory = find(parent);
  if (::mknodat(directory->fd, name.c_str(), mode, rdev) != 0) return reply.error(errno);
  adopt(context, directory->fd, name);
  Entry entry;
  const int failure = look_up(parent, name, entry);
  failure != 0 ? reply.error(failure) : reply.entry(entry);
}

void MirrorFs::mkdir(Ctx context, NodeHandle parent, std::string_view view, mode_t mode,
                     EntryReply reply) {
  counted("mkdir");
  const std::string name(view);
  const auto directory = find(parent);
  if (::mkdirat(directory->fd, name.c_str(), mode) != 0) return reply.error(errno);
  adopt(context, directory->fd, name);
  Entry entry;
  const int failure = look_up(parent, name, entry);
  failure != 0 ? reply.error(failure) : reply.entry(entry);
}

void MirrorFs::symlink(Ctx context, NodeHandle parent, std::string_view view,
                       std::string_view target, EntryReply reply) {
  counted("symlink");
  const std::string name(view);
  const auto directory = find(parent);
  if (::symlinkat(std::string(target).c_str(), directory->fd, name.c_str()) != 0) {
    return reply.error(errno);
  }
  adopt(context, directory->fd, name);
  Entry entry;
  const int failure = look_up(parent, name, entry);
  failure != 0 ? reply.error(failure) : reply.entry(entry);
}

void MirrorFs::link(Ctx, NodeHandle handle, NodeHandle parent, std::string_view view,
                    EntryReply reply) {
  counted("link");
  const std::string name(view);
  if (::linkat(AT_FDCWD, find(handle)->path().c_str(), find(parent)->fd, name.c_str(),
               AT_SYMLINK_FOLLOW) != 0) {
    return reply.error(errno);
  }
  Entry entry;
  const int failure = look_up(parent, name, entry);
  failure != 0 ? reply.error(failure) : reply.entry(entry);
}

void MirrorFs::unlink(Ctx, NodeHandle parent, std::string_view name, StatusReply reply) {
  counted("unlink");
  reply.error(status_of(::unlinkat(find(parent)->fd, std::string(name).c_str(), 0)));
}

void MirrorFs::rmdir(Ctx, NodeHandle parent, std::string_view name, StatusReply reply) {
  counted("rmdir");
  reply.error(status_of(::unlinkat(find(parent)->fd, std::string(name).c_str(), AT_REMOVEDIR)));
}

void MirrorFs::rename(Ctx, NodeHandle parent, std::string_view name, NodeHandle new_parent,
                      std::string_view new_name, unsigned flags, StatusReply reply) {
  counted("rename");
  reply.error(status_of(::renameat2(find(parent)->fd, std::string(name).c_str(),
                                    find(new_parent)->fd, std::string(new_name).c_str(), flags)));
}

int MirrorFs::finish_open(Node& node, int fd, OpenResult& result) {
  result.fh = static_cast<std::uint64_t>(fd);
  result.flags = options_.open_flags;
  if (!options_.passthrough) return 0;
  MutexLock lock(node.mutex);
  if (node.backing_id == 0) {
    const int backing = ::open(node.path().c_str(), O_RDONLY | O_CLOEXEC);
    if (backing < 0) return errno;
    const auto id = session_->open_backing(backing);
    ::close(backing);
    if (!id) return to_errno(id.error());
    node.backing_id = *id;
  }
  result.backing_id = node.backing_id;
  return 0;
}

void MirrorFs::open(Ctx, NodeHandle handle, const OpenRequest& request, OpenReply reply) {
  counted("open");
  const auto node = find(handle);
  const int flags = request.flags & ~(O_NOFOLLOW | O_APPEND | O_DIRECT);
  const int fd = ::open(node->path().c_str(), flags | O_CLOEXEC);
  if (fd < 0) return reply.error(errno);
  if (request.kill_suidgid) clear_suidgid(fd);
  OpenResult result;
  if (const int failure = finish_open(*node, fd, result); failure != 0) {
    ::close(fd);
    return reply.error(failure);
  }
  reply.opened(result);
}

void MirrorFs::create(Ctx context, NodeHandle parent, std::string_view view,
                      const CreateRequest& request, CreateReply reply) {
  counted("create");
  const std::string name(view);
  const auto directory = find(parent);
  const int flags = request.flags & ~(O_NOFOLLOW | O_APPEND | O_DIRECT);
  const int fd = ::openat(directory->fd, name.c_str(), flags | O_CREAT | O_CLOEXEC, request.mode);
  if (fd < 0) return reply.error(errno);
  adopt(context, directory->fd, name);
  Entry entry;
  OpenResult result;
  int failure = look_up(parent, name, entry);
  if (failure == 0) {
    failure = finish_open(*find(entry.node), fd, result);
    if (failure != 0) forget(entry.node, 1);
  }
  if (failure != 0) {
    ::close(fd);
    return reply.error(failure);
  }
  reply.created(entry, result);
}

void MirrorFs::open_abandoned(NodeHandle node, std::uint64_t fh, bool created) {
  ::close(fd_of(fh));
  if (created) forget(node, 1);
}

void MirrorFs::read(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t offset, std::size_t size,
                    ReadReply reply) {
  counted("read");
  if (reply.try_file(fd_of(fh), offset, size)) return;
  reply.file(fd_of(fh), offset, size);
}

void MirrorFs::write(Ctx, NodeHandle, const WriteRequest& request, WriteReply reply) {
  counted("write");
  const auto size = ::pwrite(fd_of(request.fh), request.data.data(), request.data.size(),
                             static_cast<off_t>(request.offset_bytes));
  if (size < 0) return reply.error(errno);
  if (request.kill_suidgid) clear_suidgid(fd_of(request.fh));
  reply.written(static_cast<std::size_t>(size));
}

void MirrorFs::flush(Ctx, NodeHandle, std::uint64_t, std::uint64_t, StatusReply reply) {
  counted("flush");
  reply.ok();
}

void MirrorFs::release(Ctx, NodeHandle, const ReleaseRequest& request, StatusReply reply) {
  counted("release");
  ::close(fd_of(request.fh));
  reply.ok();
}

void MirrorFs::fsync(Ctx, NodeHandle, std::uint64_t fh, bool data_only, StatusReply reply) {
  counted("fsync");
  reply.error(status_of(data_only ? ::fdatasync(fd_of(fh)) : ::fsync(fd_of(fh))));
}

void MirrorFs::fallocate(Ctx, NodeHandle, std::uint64_t fh, int mode, std::uint64_t offset,
                         std::uint64_t size, StatusReply reply) {
  counted("fallocate");
  reply.error(status_of(
      ::fallocate(fd_of(fh), mode, static_cast<off_t>(offset), static_cast<off_t>(size))));
}

void MirrorFs::lseek(Ctx, NodeHandle, std::uint64_t fh, std::uint64_t offset, int whence,
                     LseekReply reply) {
  counted("lseek");
  const auto at = ::lseek(fd_of(fh), static_cast<off_t>(offset), whence);
  at < 0 ? reply.error(errno) : reply.offset(static_cast<std::uint64_t>(at));
}

void MirrorFs::copy_file_range(Ctx, const CopyRange& range, WriteReply reply) {
  counted("copy_file_range");
  auto in = static_cast<off_t>(range.in_offset_bytes);
  auto out = static_cast<off_t>(range.out_offset_bytes);
  const auto size =
      ::copy_file_range(fd_of(range.in_fh), &in, fd_of(range.out_fh), &out, range.size_bytes, 0);
  size < 0 ? reply.error(errno) : reply.written(static_cast<std::size_t>(size));
}

void MirrorFs::opendir(Ctx, NodeHandle handle, int, OpenReply reply) {
  counted("opendir");
  auto directory = std::make_shared<Directory>();
  directory->stream = ::opendir(find(handle)->path().c_str());
  if (directory->stream == nullptr) return reply.error(errno);
  OpenResult result;
  {
    MutexLock lock(mutex_);
    result.fh = next_directory_++;
    directories_[result.fh] = directory;
  }
  reply.opened(result);
}

void MirrorFs::readdir(Ctx, NodeHandle handle, std::uint64_t fh, std::uint64_t cookie,
                       DirReply reply) {
  counted(reply.plus() ? "readdirplus" : "readdir");
  std::shared_ptr<Directory> directory;
  {
    MutexLock lock(mutex_);
    directory = directories_.at(fh);
  }
  {
    MutexLock lock(directory->mutex);
    cookie == 0 ? ::rewinddir(directory->stream)
                : ::seekdir(directory->stream, static_cast<long>(cookie));
    while (const auto* each = ::readdir(directory->stream)) {
      const std::string name = each->d_name;
      const DirEntry entry{name, each->d_ino, DTTOIF(each->d_type),
                           static_cast<std::uint64_t>(each->d_off)};
      Entry attributes;
      const bool named = name != "." && name != "..";
      if (reply.plus() && named && look_up(handle, name, attributes) != 0) attributes = {};
      if (!reply.plus() || attributes.node == kNoNode ? reply.add(entry)
                                                      : reply.add(entry, attributes)) {
        continue;
      }
      if (attributes.node != kNoNode) forget(attributes.node, 1);
      break;
    }
  }
  reply.done();
}

void MirrorFs::releasedir(Ctx, NodeHandle, std::uint64_t fh, StatusReply reply) {
  counted("releasedir");
  {
    MutexLock lock(mutex_);
    directories_.erase(fh);
  }
  reply.ok();
}

void MirrorFs::fsyncdir(Ctx, NodeHandle handle, std::uint64_t, bool, StatusReply reply) {
  counted("fsyncdir");
  const int fd = ::open(find(handle)->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return reply.error(errno);
  const int failure = status_of(::fsync(fd));
  ::close(fd);
  reply.error(failure);
}

void MirrorFs::statfs(Ctx, NodeHandle, StatfsReply reply) {
  counted("statfs");
  struct statvfs values {};
  if (::fstatvfs(find(kRootNode)->fd, &values) != 0) return reply.error(errno);
  reply.statfs(values);
}

void MirrorFs::setxattr(Ctx, NodeHandle handle, const SetXattr& what, StatusReply reply) {
  counted("setxattr");
  reply.error(status_of(::setxattr(find(handle)->path().c_str(), std::string(what.name).c_str(),
                                   what.value.data(), what.value.size(), what.flags)));
}

void MirrorFs::getxattr(Ctx, NodeHandle handle, std::string_view name, XattrReply reply) {
  counted("getxattr");
  char value[65536];
  const auto size =
      ::getxattr(find(handle)->path().c_str(), std::string(name).c_str(), value, sizeof value);
  size < 0 ? reply.error(errno) : reply.value(as_bytes({value, static_cast<std::size_t>(size)}));
}

void MirrorFs::listxattr(Ctx, NodeHandle handle, XattrReply reply) {
  counted("listxattr");
  char names[65536];
  const auto size = ::listxattr(find(handle)->path().c_str(), names, sizeof names);
  size < 0 ? reply.error(errno) : reply.value(as_bytes({names, static_cast<std::size_t>(size)}));
}

void MirrorFs::removexattr(Ctx, NodeHandle handle, std::string_view name, StatusReply reply) {
  counted("removexattr");
  reply.error(status_of(::removexattr(find(handle)->path().c_str(), std::string(name).c_str())));
}

}  // namespace fermata::test
