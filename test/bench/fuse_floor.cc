// What FUSE itself costs: a filesystem in memory on plain libfuse and /dev/fuse that does nothing
// else. No Fermata code; its times are the floor that docs/FUSE.md compares with.
//
// One directory. Everything is answered at once from memory and may be kept by the kernel for ever;
// pages stay cached over opens, and closing asks nothing (no FLUSH).
//
// usage: fuse_floor [--threads] MOUNT_POINT; in the foreground, till it is unmounted or SIGTERM.
// With --threads libfuse's pool of threads reads requests, else one thread does.
#define FUSE_USE_VERSION 314
#include <fuse_lowlevel.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

namespace {

constexpr double kForever = 1e9;

struct File {
  std::string bytes;
  mode_t mode = 0;
};

/// Guarded by `mutex`, as a filesystem with several threads has to.
struct Tree {
  std::mutex mutex;
  std::map<std::string, fuse_ino_t, std::less<>> names;
  std::unordered_map<fuse_ino_t, File> files;
  fuse_ino_t next = FUSE_ROOT_ID + 1;
};
Tree tree;

struct stat attributes(fuse_ino_t ino) {
  struct stat to {};
  to.st_ino = ino;
  to.st_nlink = 1;
  to.st_blksize = 4096;
  if (ino == FUSE_ROOT_ID) {
    to.st_mode = S_IFDIR | 0777;
    return to;
  }
  const File& file = tree.files[ino];
  to.st_mode = file.mode;
  to.st_size = static_cast<off_t>(file.bytes.size());
  return to;
}

fuse_entry_param entry_of(fuse_ino_t ino) {
  fuse_entry_param entry{};
  entry.ino = ino;
  entry.attr = attributes(ino);
  entry.attr_timeout = entry.entry_timeout = kForever;
  return entry;
}

void lookup(fuse_req_t request, fuse_ino_t, const char* name) {
  std::lock_guard lock(tree.mutex);
  const auto found = tree.names.find(std::string_view(name));
  if (found == tree.names.end()) {
    fuse_reply_err(request, ENOENT);
    return;
  }
  const auto entry = entry_of(found->second);
  fuse_reply_entry(request, &entry);
}

void getattr(fuse_req_t request, fuse_ino_t ino, fuse_file_info*) {
  std::lock_guard lock(tree.mutex);
  const auto attr = attributes(ino);
  fuse_reply_attr(request, &attr, kForever);
}

void setattr(fuse_req_t request, fuse_ino_t ino, struct stat* wish, int to_set, fuse_file_info*) {
  std::lock_guard lock(tree.mutex);
  if (ino != FUSE_ROOT_ID) {
    auto& file = tree.files[ino];
    if ((to_set & FUSE_SET_ATTR_SIZE) != 0) {
      file.bytes.resize(static_cast<std::size_t>(wish->st_size));
    }
    if ((to_set & FUSE_SET_ATTR_MODE) != 0) file.mode = S_IFREG | (wish->st_mode & 07777);
  }
  const auto attr = attributes(ino);
  fuse_reply_attr(request, &attr, kForever);
}

void create(fuse_req_t request, fuse_ino_t, const char* name, mode_t mode, fuse_file_info* open) {
  std::lock_guard lock(tree.mutex);
  const auto ino = tree.next++;
  tree.files[ino].mode = S_IFREG | (mode & 07777);
  tree.names[name] = ino;
  open->keep_cache = 1;
  const auto entry = entry_of(ino);
  fuse_reply_create(request, &entry, open);
}

void open(fuse_req_t request, fuse_ino_t, fuse_file_info* open) {
  open->keep_cache = 1;
  fuse_reply_open(request, open);
}

void read(fuse_req_t request, fuse_ino_t ino, std::size_t size, off_t offset, fuse_file_info*) {
  std::lock_guard lock(tree.mutex);
  const auto& bytes = tree.files[ino].bytes;
  const auto begin = std::min(static_cast<std::size_t>(offset), bytes.size());
  fuse_reply_buf(request, bytes.data() + begin, std::min(size, bytes.size() - begin));
}

void write(fuse_req_t request, fuse_ino_t ino, const char* data, std::size_t size, off_t offset,
           fuse_file_info*) {
  std::lock_guard lock(tree.mutex);
  auto& bytes = tree.files[ino].bytes;
  const auto begin = static_cast<std::size_t>(offset);
  if (bytes.size() < begin + size) bytes.resize(begin + size);
  std::memcpy(bytes.data() + begin, data, size);
  fuse_reply_write(request, size);
}

void unlink(fuse_req_t request, fuse_ino_t, const char* name) {
  std::lock_guard lock(tree.mutex);
  const auto found = tree.names.find(std::string_view(name));
  if (found != tree.names.end()) tree.names.erase(found);
  fuse_reply_err(request, 0);
}

void forget(fuse_req_t request, fuse_ino_t ino, std::uint64_t) {
  std::lock_guard lock(tree.mutex);
  tree.files.erase(ino);  // only names that are gone are forgotten while the mount lives
  fuse_reply_none(request);
}

void release(fuse_req_t request, fuse_ino_t, fuse_file_info*) { fuse_reply_err(request, 0); }

fuse_lowlevel_ops operations() {
  fuse_lowlevel_ops ops{};
  ops.lookup = lookup;
  ops.forget = forget;
  ops.getattr = getattr;
  ops.setattr = setattr;
  ops.create = create;
  ops.open = open;
  ops.read = read;
  ops.write = write;
  ops.unlink = unlink;
  ops.release = release;
  return ops;
}

int serve(fuse_session* session, bool threads) {
  if (!threads) return fuse_session_loop(session);
  fuse_loop_config* config = fuse_loop_cfg_create();
  const int result = fuse_session_loop_mt(session, config);
  fuse_loop_cfg_destroy(config);
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  const bool threads = argc == 3 && std::string_view(argv[1]) == "--threads";
  if (argc != (threads ? 3 : 2)) {
    std::fprintf(stderr, "usage: fuse_floor [--threads] MOUNT_POINT\n");
    return 2;
  }
  char options[] = "-odefault_permissions,allow_other,fsname=floor,subtype=floor";
  char* arguments[] = {argv[0], options, nullptr};
  fuse_args args = FUSE_ARGS_INIT(2, arguments);
  const auto ops = operations();
  fuse_session* session = fuse_session_new(&args, &ops, sizeof ops, nullptr);
  fuse_opt_free_args(&args);
  if (session == nullptr || fuse_set_signal_handlers(session) != 0 ||
      fuse_session_mount(session, argv[argc - 1]) != 0) {
    std::fprintf(stderr, "fuse_floor: cannot mount on %s\n", argv[argc - 1]);
    return 1;
  }
  const int result = serve(session, threads);
  fuse_session_unmount(session);
  fuse_remove_signal_handlers(session);
  fuse_session_destroy(session);
  return result < 0 ? 1 : 0;
}
