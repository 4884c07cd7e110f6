#include "test/model/mount/worker.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/falloc.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>

namespace fermata::test::model {
namespace {

constexpr std::size_t kRunTree = ~std::size_t{0};
constexpr std::size_t kCloseAll = kRunTree - 1;

std::uint64_t fnv(const void* data, std::size_t size,
                  std::uint64_t state = 1469598103934665603ULL) {
  const auto* at = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < size; ++i) state = (state ^ at[i]) * 1099511628211ULL;
  return state;
}

bool send_all(int fd, const void* data, std::size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t sent = ::send(fd, at, size, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    size -= static_cast<std::size_t>(sent);
  }
  return true;
}

bool receive_all(int fd, void* data, std::size_t size) {
  char* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = ::recv(fd, at, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

std::int64_t ns(const timespec& time) { return time.tv_sec * 1'000'000'000LL + time.tv_nsec; }

timespec choice(std::int64_t time) {
  if (time == 0) return {0, UTIME_NOW};
  if (time == 1) return {0, UTIME_OMIT};
  std::int64_t seconds = time / 1'000'000'000;
  std::int64_t rest = time % 1'000'000'000;
  if (rest < 0) {
    rest += 1'000'000'000;
    --seconds;
  }
  return {seconds, rest};
}

Seen seen(const struct stat& st) {
  Seen out;
  out.exists = true;
  out.inode = st.st_ino;
  out.rdev = st.st_rdev;
  out.mode = st.st_mode;
  out.uid = st.st_uid;
  out.gid = st.st_gid;
  out.nlink = st.st_nlink;
  out.size_bytes = S_ISDIR(st.st_mode) ? 0 : st.st_size;
  out.atime_ns = ns(st.st_atim);
  out.mtime_ns = ns(st.st_mtim);
  out.ctime_ns = ns(st.st_ctim);
  return out;
}

Seen look(const std::string& path, bool follow) {
  struct stat st {};
  const int flags = follow ? 0 : AT_SYMLINK_NOFOLLOW;
  if (path.empty() || fstatat(AT_FDCWD, path.c_str(), &st, flags) != 0) return {};
  return seen(st);
}

std::string parent_of(const std::string& path) {
  const auto end = path.find_last_not_of('/');
  const auto slash = end == std::string::npos ? end : path.rfind('/', end);
  return slash == std::string::npos ? "/" : path.substr(0, slash + 1);
}

// One process of a program, after the fork.
class Child {
  template <typename F>
  auto as_root(F&& body) {
    become(0);
    auto out = body();
    become(user_);
    return out;
  }

  static void become(std::uint32_t user) {
    if (user == 0) {
      setfsuid(0);
      setfsgid(0);
    } else {
      setfsgid(user);
      setfsuid(user);
    }
  }

 public:
  Child(const std::vector<Op>& program, const Shape& shape, int channel)
      : program_(program), shape_(shape), channel_(channel) {
    std::fill(std::begin(fds_), std::end(fds_), -1);
  }

  [[noreturn]] void serve() {
    std::size_t index = 0;
    while (receive_all(channel_, &index, sizeof(index))) {
      if (index == kRunTree) {
        const std::string out = as_root([this] {
          std::string lines;
          walk("/", lines);
          return lines;
        });
        const std::size_t size = out.size();
        if (!send_all(channel_, &size, sizeof(size))) break;
        if (!send_all(channel_, out.data(), size)) break;
        continue;
      }
      Outcome outcome;
      if (index == kCloseAll) {
        for (int& fd : fds_) {
          if (fd >= 0) ::close(std::exchange(fd, -1));
        }
      } else {
        run(program_[index], outcome);
      }
      if (!send_all(channel_, &outcome, sizeof(outcome))) break;
    }
    _exit(0);
  }

 private:
  void run(const Op& op, Outcome& out) {
    errno = 0;
    out.result = call(op, out);
    out.error = out.result < 0 ? errno : 0;
    as_root([&] {
      out.seen[kPath] = look(op.path, false);
      out.seen[kPathFollowed] = look(op.path, true);
      out.seen[kParent] = look(parent_of(op.path), true);
      out.seen[kPath2] = look(op.path2, false);
      out.seen[kParent2] = look(parent_of(op.path2), true);
      struct stat st {};
      if (fds_[op.slot] >= 0 && fstat(fds_[op.slot], &st) == 0) out.seen[kDescriptor] = seen(st);
      return 0;
    });
  }

  void detail(Outcome& out, const std::string& text) {
    std::snprintf(out.detail, sizeof(out.detail), "%s", text.c_str());
  }

  std::int64_t keep(int& slot, int fd) {
    if (fd < 0) return -1;
    const int saved = std::exchange(slot, fd);
    if (saved >= 0) ::close(saved);
    return 0;
  }

  std::int64_t call(const Op& op, Outcome& out) {
    int& fd = fds_[op.slot];
    const char* path = op.path.c_str();
    const char* path2 = op.path2.c_str();
    const auto size = static_cast<std::size_t>(std::max<std::int64_t>(op.a, 0));
    switch (op.call) {
      case Call::kOpen:
        // Not O_NONBLOCK for real: a FIFO without a peer must not hang the test.
        return keep(fd, ::open(path, static_cast<int>(op.a) | O_NONBLOCK | O_CLOEXEC,
                               static_cast<mode_t>(op.b)));
      case Call::kClose: {
        const int old = std::exchange(fd, -1);
        return ::close(old);
      }
      case Call::kDup: {
        const int copy = ::dup(fd);
        if (op.slot2 == op.slot) return copy < 0 ? -1 : ::close(copy);
        return keep(fds_[op.slot2], copy);
      }
      case Call::kRead:
      case Call::kPread: {
        std::string bytes(size, '\0');
        const ssize_t got = op.call == Call::kRead ? ::read(fd, bytes.data(), size)
                                                   : ::pread(fd, bytes.data(), size, op.b);
        if (got > 0) out.digest = fnv(bytes.data(), static_cast<std::size_t>(got));
        return got;
      }
      case Call::kWrite:
        return ::write(fd, payload(op, size).data(), size);
      case Call::kPwrite:
        return ::pwrite(fd, payload(op, size).data(), size, op.b);
      case Call::kLseek:
        return seek(fd, op);
      case Call::kFtruncate:
        return ::ftruncate(fd, op.a);
      case Call::kFallocate:
        return ::fallocate(fd, static_cast<int>(op.a), op.b, op.c);
      case Call::kFsync:
        return ::fsync(fd);
      case Call::kFdatasync:
        return ::fdatasync(fd);
      case Call::kSyncFileRange:
        return ::sync_file_range(fd, op.b, op.a,
                                 SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
      case Call::kMmapWrite:
      case Call::kMmapRead:
        return map(fd, op, out);
      case Call::kCopyFileRange: {
        off64_t from = op.b;
        off64_t to = op.c;
        return ::copy_file_range(fd, &from, fds_[op.slot2], &to, size, 0);
      }
      case Call::kFchmod:
        return ::fchmod(fd, static_cast<mode_t>(op.a));
      case Call::kFchown:
        return ::fchown(fd, static_cast<uid_t>(op.a), static_cast<gid_t>(op.b));
      case Call::kFutimens: {
        const timespec times[] = {choice(op.a), choice(op.b)};
        return ::futimens(fd, times);
      }
      case Call::kFlock:
        if (locks_are_local(fd)) return 0;
        return ::flock(fd, static_cast<int>(op.a) | LOCK_NB);
      case Call::kSetLock:
      case Call::kGetLock: {
        if (locks_are_local(fd)) return 0;
        struct flock lock {};
        lock.l_type = static_cast<short>(op.a);
        lock.l_whence = SEEK_SET;
        lock.l_start = op.b;
        lock.l_len = op.c;
        const int result = ::fcntl(fd, op.call == Call::kSetLock ? F_SETLK : F_GETLK, &lock);
        if (result == 0 && op.call == Call::kGetLock) {
          detail(out, "type " + std::to_string(lock.l_type) +
                          (lock.l_type == F_UNLCK ? ""
                                                  : " at " + std::to_string(lock.l_start) +
                                                        " size " + std::to_string(lock.l_len)));
        }
        if (result < 0 && errno == EACCES) errno = EAGAIN;  // POSIX allows both
        return result;
      }
      case Call::kTruncate:
        return ::truncate(path, op.a);
      case Call::kStore:
        return store(op, size);
      case Call::kLoad: {
        const int from = ::open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        if (from < 0) return -1;
        const auto got = digest_of(from, out.digest);
        const int saved = errno;
        ::close(from);
        errno = saved;
        return got;
      }
      case Call::kStat:
        return look(op.path, true).exists ? 0 : -1;
      case Call::kAccess:
        return ::syscall(SYS_faccessat2, AT_FDCWD, path, op.a, AT_EACCESS);
      case Call::kMkdir:
        return ::mkdir(path, static_cast<mode_t>(op.a));
      case Call::kRmdir:
        return ::rmdir(path);
      case Call::kUnlink:
        return ::unlink(path);
      case Call::kRename:
        return ::rename(path, path2);
      case Call::kRenameat2:
        return ::renameat2(AT_FDCWD, path, AT_FDCWD, path2, static_cast<unsigned>(op.a));
      case Call::kLink:
        return ::linkat(AT_FDCWD, path, AT_FDCWD, path2, static_cast<int>(op.a));
      case Call::kSymlink:
        return ::symlink(path, path2);
      case Call::kReadlink: {
        char target[PATH_MAX];
        const ssize_t got = ::readlink(path, target, sizeof(target));
        if (got > 0) detail(out, std::string(target, static_cast<std::size_t>(got)));
        return got;
      }
      case Call::kMknod:
        return ::mknod(path, static_cast<mode_t>(op.a), S_ISCHR(op.a) ? makedev(1, 3) : 0);
      case Call::kChmod:
        return ::chmod(path, static_cast<mode_t>(op.a));
      case Call::kChown:
        return ::fchownat(AT_FDCWD, path, static_cast<uid_t>(op.a), static_cast<gid_t>(op.b),
                          static_cast<int>(op.c));
      case Call::kUtimens: {
        const timespec times[] = {choice(op.a), choice(op.b)};
        return ::utimensat(AT_FDCWD, path, times, static_cast<int>(op.c));
      }
      case Call::kSetxattr:
        return ::lsetxattr(path, path2, payload(op, size).data(), size, static_cast<int>(op.b));
      case Call::kGetxattr: {
        std::string value(size, '\0');
        const ssize_t got = ::lgetxattr(path, path2, value.data(), size);
        if (got > 0 && size > 0) out.digest = fnv(value.data(), static_cast<std::size_t>(got));
        return got;
      }
      case Call::kListxattr: {
        const auto names = xattrs(path);
        if (!names) return -1;
        std::string all;
        for (const auto& name : *names) all += name + " ";
        detail(out, all);
        return static_cast<std::int64_t>(names->size());
      }
      case Call::kRemovexattr:
        return ::lremovexattr(path, path2);
      case Call::kReaddir: {
        std::vector<std::string> names;
        if (!list(path, names)) return -1;
        std::string all;
        for (const auto& name : names) all += name + " ";
        out.digest = fnv(all.data(), all.size());
        detail(out, all);
        return static_cast<std::int64_t>(names.size());
      }
      case Call::kUmask:
        return static_cast<std::int64_t>(::umask(static_cast<mode_t>(op.a)));
      case Call::kBecome:
        user_ = static_cast<std::uint32_t>(op.a);
        become(user_);
        return 0;
    }
    return 0;
  }

  // The kernel keeps the locks of directories and devices to itself: with several mounts they are
  // not asked for.
  bool locks_are_local(int fd) const {
    struct stat st {};
    return shape_.sessions && ::fstat(fd, &st) == 0 && !S_ISREG(st.st_mode);
  }

  // Where a hole begins is the filesystem's choice, as long as it tells no lie: what SEEK_DATA
  // skips is zeros.
  std::int64_t seek(int fd, const Op& op) {
    const auto at = ::lseek(fd, op.a, static_cast<int>(op.b));
    if (op.b != SEEK_DATA && op.b != SEEK_HOLE) return at;
    const int error = errno;
    struct stat st {};
    const bool regular = ::fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
    if (S_ISDIR(st.st_mode)) return 0;  // a directory's size is the filesystem's own affair
    if (regular && at >= 0 && op.b == SEEK_DATA) {
      for (auto i = op.a; i < at; ++i) {
        char byte = 0;
        if (::pread(fd, &byte, 1, i) == 1 && byte != 0) return -1000;
      }
    }
    ::lseek(fd, 0, SEEK_SET);
    // All that is left may be a hole or not.
    if (at < 0 && error == ENXIO && op.b == SEEK_DATA && ::fstat(fd, &st) == 0 &&
        op.a < st.st_size) {
      return 0;
    }
    errno = error;
    return at < 0 ? -1 : 0;
  }

  std::int64_t map(int fd, const Op& op, Outcome& out) {
    struct stat st {};
    if (::fstat(fd, &st) != 0) return -1;
    const auto page = op.b & ~4095LL;
    const bool store = op.call == Call::kMmapWrite;
    // Only what the file has: beyond it is SIGBUS, everywhere.
    const auto end = std::min<std::int64_t>(st.st_size, op.b + op.a);
    if (!S_ISREG(st.st_mode) || end <= op.b) return 0;
    const auto size = static_cast<std::size_t>(end - page);
    void* at =
        ::mmap(nullptr, size, store ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, page);
    if (at == MAP_FAILED) return -1;
    char* from = static_cast<char*>(at) + (op.b - page);
    const auto count = static_cast<std::size_t>(end - op.b);
    if (store) {
      std::memcpy(from, payload(op, count).data(), count);
      ::msync(at, size, MS_SYNC);
    } else {
      out.digest = fnv(from, count);
    }
    ::munmap(at, size);
    return static_cast<std::int64_t>(count);
  }

  std::int64_t store(const Op& op, std::size_t size) {
    const int to =
        ::open(op.path.c_str(), O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC | op.slot2, 0644);
    if (to < 0) return -1;
    const auto wrote = ::pwrite(to, payload(op, size).data(), size, op.b);
    const int error = errno;
    if (::close(to) != 0) return -2;
    errno = error;
    return wrote;
  }

  static std::int64_t digest_of(int fd, std::uint64_t& digest) {
    std::string buffer(256 * 1024, '\0');
    std::int64_t total = 0;
    std::uint64_t state = 1469598103934665603ULL;
    while (true) {
      const ssize_t got = ::read(fd, buffer.data(), buffer.size());
      if (got < 0) return -1;
      if (got == 0) break;
      state = fnv(buffer.data(), static_cast<std::size_t>(got), state);
      total += got;
    }
    digest = state;
    return total;
  }

  static std::optional<std::vector<std::string>> xattrs(const char* path) {
    std::string list(8192, '\0');
    const ssize_t got = ::llistxattr(path, list.data(), list.size());
    if (got < 0) return std::nullopt;
    std::vector<std::string> out;
    for (std::size_t at = 0; at < static_cast<std::size_t>(got);) {
      out.emplace_back(list.c_str() + at);
      at += out.back().size() + 1;
    }
    std::sort(out.begin(), out.end());
    return out;
  }

  static bool list(const char* path, std::vector<std::string>& names) {
    DIR* directory = ::opendir(path);
    if (directory == nullptr) return false;
    while (const dirent* entry = ::readdir(directory)) {
      names.push_back(std::string(entry->d_name) + ":" + std::to_string(entry->d_type));
    }
    ::closedir(directory);
    std::sort(names.begin(), names.end());
    return true;
  }

  void walk(const std::string& path, std::string& out) {
    std::vector<std::string> names;
    if (!list(path.c_str(), names)) {
      out += path + " cannot be listed: " + std::strerror(errno) + "\n";
      return;
    }
    for (const auto& entry : names) {
      const std::string name = entry.substr(0, entry.rfind(':'));
      if (name == "." || name == "..") continue;
      const std::string child = path + name;
      struct stat st {};
      if (::lstat(child.c_str(), &st) != 0) {
        out += child + " cannot be looked at: " + std::strerror(errno) + "\n";
        continue;
      }
      char line[128];
      const bool no_meaning = S_ISREG(st.st_mode) && (st.st_mode & S_IXGRP) == 0;  // compare.cc
      const unsigned mode = no_meaning ? st.st_mode & ~unsigned{S_ISGID} : st.st_mode;
      std::snprintf(line, sizeof(line), " %o %u:%u links %lu size %lld", mode, st.st_uid, st.st_gid,
                    static_cast<unsigned long>(st.st_nlink),
                    S_ISDIR(st.st_mode) ? 0LL : static_cast<long long>(st.st_size));
      out += child + line;
      if (S_ISREG(st.st_mode)) {
        std::uint64_t digest = 0;
        const int fd = ::open(child.c_str(), O_RDONLY | O_CLOEXEC | O_NOATIME);
        if (fd < 0 || digest_of(fd, digest) < 0) {
          out += std::string(" cannot be read: ") + std::strerror(errno);
        }
        if (fd >= 0) ::close(fd);
        std::snprintf(line, sizeof(line), " content %016lx", static_cast<unsigned long>(digest));
        out += line;
      } else if (S_ISLNK(st.st_mode)) {
        char target[PATH_MAX];
        const ssize_t got = ::readlink(child.c_str(), target, sizeof(target));
        out += " -> " + std::string(target, static_cast<std::size_t>(std::max<ssize_t>(got, 0)));
      }
      for (const auto& attribute : xattrs(child.c_str()).value_or(std::vector<std::string>{})) {
        std::string value(4096, '\0');
        const ssize_t got =
            ::lgetxattr(child.c_str(), attribute.c_str(), value.data(), value.size());
        std::snprintf(line, sizeof(line), "=%016lx",
                      static_cast<unsigned long>(
                          fnv(value.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0)))));
        out += " " + attribute + line;
      }
      out += "\n";
      if (S_ISDIR(st.st_mode)) walk(child + "/", out);
    }
  }

  const std::vector<Op>& program_;
  const Shape shape_;
  const int channel_;
  int fds_[kSlots];
  std::uint32_t user_ = 0;
};

}  // namespace

Workers::Workers(const std::vector<std::string>& roots, const Shape& shape,
                 const std::vector<Op>& program)
    : program_(program) {
  for (int i = 0; i < shape.processes; ++i) {
    int channel[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel) != 0) {
      throw std::runtime_error("socketpair failed");
    }
    const std::string& root = roots[static_cast<std::size_t>(i) % roots.size()];
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::umask(022);
      const gid_t groups[] = {2000};
      if (::setgroups(1, groups) != 0 || ::chroot(root.c_str()) != 0 || ::chdir("/") != 0) {
        std::fprintf(stderr, "%s: %s (the model test needs root)\n", root.c_str(),
                     std::strerror(errno));
        _exit(2);
      }
      for (const auto& other : processes_) ::close(other.channel);
      ::close(channel[0]);
      Child(program, shape, channel[1]).serve();
    }
    ::close(channel[1]);
    processes_.push_back({pid, channel[0]});
  }
}

Workers::~Workers() {
  // Not only closed: processes that were forked later have inherited this end.
  for (const auto& process : processes_) {
    ::shutdown(process.channel, SHUT_RDWR);
    ::close(process.channel);
  }
  for (const auto& process : processes_) {
    int status = 0;
    ::waitpid(process.pid, &status, 0);
  }
}

Outcome Workers::ask(int process, std::size_t what) {
  const int channel = processes_[static_cast<std::size_t>(process)].channel;
  Outcome out;
  if (!send_all(channel, &what, sizeof(what)) || !receive_all(channel, &out, sizeof(out))) {
    out.result = out.error = -1;
  }
  return out;
}

Outcome Workers::run(std::size_t index) { return ask(program_[index].process, index); }

void Workers::close_all() {
  for (std::size_t i = 0; i < processes_.size(); ++i) ask(static_cast<int>(i), kCloseAll);
}

std::string Workers::tree(int process) {
  const int channel = processes_[static_cast<std::size_t>(process)].channel;
  std::size_t size = 0;
  if (!send_all(channel, &kRunTree, sizeof(kRunTree)) ||
      !receive_all(channel, &size, sizeof(size))) {
    return "its process died";
  }
  std::string out(size, '\0');
  return receive_all(channel, out.data(), size) ? out : "its process died";
}

}  // namespace fermata::test::model
