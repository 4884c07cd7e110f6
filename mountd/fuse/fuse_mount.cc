#include "mountd/fuse/fuse_mount.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <spawn.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "common/base/errc.h"

extern char** environ;

namespace fermata::mountd {
namespace {

bool is_at_or_below(const std::string& path, const std::string& directory) {
  if (directory == "/") return true;
  return path.starts_with(directory) &&
         (path.size() == directory.size() || path[directory.size()] == '/');
}

MountError fail(int errno_value, std::string message) {
  return {from_errno(errno_value), std::move(message)};
}

/// The errno of using `path`, whose filesystem may be dead or hang: 0 when it does not say in a
/// second. The thread of a hanging one is left behind; the caller is about to give up.
int probe(const std::string& path) {
  auto answer = std::make_shared<std::promise<int>>();
  auto result = answer->get_future();
  std::thread([answer, path] {
    struct statvfs ignored {};
    answer->set_value(::statvfs(path.c_str(), &ignored) == 0 ? 0 : errno);
  }).detach();
  return result.wait_for(std::chrono::seconds(1)) == std::future_status::ready ? result.get() : 0;
}

/// fsname goes into a comma-separated list.
std::string escape_option(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == ',' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

}  // namespace

std::optional<MountInfo> find_mount(const std::string& path) {
  std::optional<MountInfo> found;  // a later one covers an earlier one
  for (auto& info : mount_table()) {
    if (info.mount_point == path) found = std::move(info);
  }
  return found;
}

std::optional<MountInfo> find_mount(std::uint64_t device_number) {
  for (auto& info : mount_table()) {
    if (info.device_number == device_number) return std::move(info);
  }
  return std::nullopt;
}

std::string check_mount_point(const MountOptions& options, MountError& error) {
  namespace fs = std::filesystem;
  if (options.mount_point.empty()) {
    error = fail(EINVAL, "no mount point was given");
    return {};
  }
  std::error_code ignored;
  auto lexical = fs::absolute(options.mount_point, ignored).lexically_normal().string();
  while (lexical.size() > 1 && lexical.back() == '/') lexical.pop_back();
  // Before any call that would ask the filesystem that may be mounted there.
  if (const auto mounted = find_mount(lexical); mounted && mounted->type.starts_with("fuse")) {
    if (mounted->type != kFilesystemType) {
      error = fail(EBUSY, lexical + " is the mount point of another FUSE filesystem (" +
                              mounted->source + ", " + mounted->type + "): unmount it first");
      return {};
    }
    if (const int failure = probe(lexical); failure == ENOTCONN || failure == ECONNABORTED) {
      error = fail(ENOTCONN, "a dead fermata mount is left at " + lexical +
                                 " (its daemon has gone): run 'umount -l " + lexical +
                                 "' and mount again");
      return {};
    }
    error = fail(EBUSY, lexical + " is already a fermata mount of " + mounted->source);
    return {};
  }
  char resolved[PATH_MAX];
  if (::realpath(lexical.c_str(), resolved) == nullptr) {
    const int failure = errno;
    if (failure == ENOTCONN) {
      error = fail(failure, lexical + " lies in a dead FUSE mount: run 'umount -l' on that first");
    } else {
      error = fail(failure,
                   "cannot use " + lexical + " as a mount point: " + from_errno(failure).message());
    }
    return {};
  }
  std::string path = resolved;
  if (path != lexical) {
    if (const auto mounted = find_mount(path); mounted && mounted->type == kFilesystemType) {
      error = fail(EBUSY, path + " is already a fermata mount of " + mounted->source);
      return {};
    }
  }
  struct stat attr {};
  if (::stat(path.c_str(), &attr) != 0) {
    error = fail(errno, "cannot use " + path + ": " + last_errno().message());
    return {};
  }
  if (!S_ISDIR(attr.st_mode)) {
    error = fail(ENOTDIR, "the mount point " + path + " is not a directory");
    return {};
  }
  for (const auto& own : options.own_directories) {
    const auto real = fs::weakly_canonical(own, ignored).string();
    if (is_at_or_below(real, path)) {
      error = fail(EINVAL, "the mount point " + path + " would cover " + real +
                               ", which the daemon itself uses: choose another");
      return {};
    }
  }
  return path;
}

int mount_as_root(const MountOptions& options, const std::string& path, MountError& error) {
  const int fd = ::open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    const int why = errno;
    const bool denied = why == EACCES || why == EPERM;
    error = fail(why, std::string("cannot open /dev/fuse (") +
                          (denied ? "may this user, or this container, open it?"
                                  : "is the fuse module loaded?") +
                          "): " + std::generic_category().message(why));
    return -1;
  }
  unsigned long flags = 0;
  if (options.read_only) flags |= MS_RDONLY;
  if (options.no_suid) flags |= MS_NOSUID;
  if (options.no_dev) flags |= MS_NODEV;
  if (options.no_exec) flags |= MS_NOEXEC;
  if (options.no_atime) flags |= MS_NOATIME;
  if (options.strict_atime) flags |= MS_STRICTATIME;
  if (options.sync_dir) flags |= MS_DIRSYNC;
  const auto data = "fd=" + std::to_string(fd) +
                    ",rootmode=40000,user_id=" + std::to_string(::geteuid()) +
                    ",group_id=" + std::to_string(::getegid()) + ",allow_other,default_permissions";
  if (::mount(options.fs_name.c_str(), path.c_str(), kFilesystemType, flags, data.c_str()) != 0) {
    error = fail(errno, "cannot mount on " + path + ": " + last_errno().message());
    ::close(fd);
    return -1;
  }
  return fd;
}

std::string fusermount_options(const MountOptions& options) {
  std::string list =
      "fsname=" + escape_option(options.fs_name) + ",subtype=fermata,default_permissions";
  // Another user's access needs the administrator's consent.
  std::ifstream config("/etc/fuse.conf");
  for (std::string line; std::getline(config, line);) {
    if (line == "user_allow_other") list += ",allow_other";
  }
  list += options.read_only ? ",ro" : "";
  list += options.no_suid ? ",nosuid" : "";  // fusermount3 forces nosuid and nodev in any case
  list += options.no_dev ? ",nodev" : "";
  list += options.no_exec ? ",noexec" : "";
  list += options.no_atime ? ",noatime" : "";
  list += options.strict_atime ? ",strictatime" : "";
  list += options.sync_dir ? ",dirsync" : "";
  return list;
}

Status detach_mount(const std::string& path, std::uint64_t device_number) {
  const auto mounted = find_mount(path);
  if (!mounted || mounted->device_number != device_number) return {};
  if (::umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) return {};
  if (errno == EINVAL) return {};  // somebody was faster
  if (errno != EPERM) return last_errno();
  const char* arguments[] = {"fusermount3", "-u", "-z", "-q", "--", path.c_str(), nullptr};
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, arguments[0], nullptr, nullptr,
                                     const_cast<char**>(arguments), environ);
  if (failure != 0) return from_errno(failure);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const auto left = find_mount(path);
  if (left && left->device_number == device_number) return std::errc::operation_not_permitted;
  return {};
}

bool has_admin_capability() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  return (data[0].effective & (1u << CAP_SYS_ADMIN)) != 0;
}

}  // namespace fermata::mountd
