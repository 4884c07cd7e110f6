// What every case of the conformance suite starts from.
//
// Each case runs in an empty directory of its own, which is the working directory: so cases name
// their files plainly ("f", "d/f") and need no clean-up. The system calls are called directly; this
// header adds errnos that print by name, short-hands for preparing files, and other users and
// processes. It includes little, because forty files include it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fermata::posix {

/// What a call ended with: 0, or its errno.
struct Errno {
  int value = 0;
  bool operator==(const Errno&) const = default;
};
std::ostream& operator<<(std::ostream& to, Errno error);  // EEXIST

/// Of a call that has just returned `result`: -1 (or a null or MAP_FAILED pointer) means errno.
inline Errno outcome(long result) { return {result == -1 ? errno : 0}; }
inline Errno outcome(const void* result) {
  const bool failed = result == nullptr || result == reinterpret_cast<const void*>(-1);
  return {failed ? errno : 0};
}

/// Throws with the errno's name, the call and its line.
[[noreturn]] void fail_call(const char* call, const char* file, int line);
template <class T>
T succeeded(T result, const char* call, const char* file, int line) {
  if (outcome(result) != Errno{}) fail_call(call, file, line);
  return result;
}

/// The call's result. The case ends here if it failed.
#define OK(...) ::fermata::posix::succeeded((__VA_ARGS__), #__VA_ARGS__, __FILE__, __LINE__)
/// The call fails with this errno.
#define FAILS(code, ...) \
  CHECK(::fermata::posix::outcome(__VA_ARGS__) == ::fermata::posix::Errno{code})

/// A descriptor that closes itself.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  operator int() const { return fd_; }  // NOLINT: it stands for the number wherever one is wanted
  /// close(2)'s result.
  int close() {
    const int fd = fd_;
    fd_ = -1;
    return ::close(fd);
  }

 private:
  int fd_ = -1;
};

// Preparations: each throws when a call fails.
Fd open_fd(const std::string& path, int flags, mode_t mode = 0644);
/// A new file (or a truncated one) with this content, mode (whatever the umask) and owner us.
void make_file(const std::string& path, std::string_view content = {}, mode_t mode = 0644);
void make_dir(const std::string& path, mode_t mode = 0755);
std::string content_of(const std::string& path);
std::string read_at(int fd, std::size_t size, off_t offset = 0);
void write_at(int fd, std::string_view bytes, off_t offset = 0);
/// `size` bytes that differ from place to place.
std::string pattern(std::size_t size, unsigned seed = 1);
struct stat stat_of(const std::string& path);
struct stat lstat_of(const std::string& path);
struct stat fstat_of(int fd);
/// The permission bits, with setuid, setgid and sticky.
mode_t mode_of(const std::string& path);
bool exists(const std::string& path);
/// The names in a directory, sorted, without "." and "..".
std::vector<std::string> names_in(const std::string& path);
std::string working_directory();

/// Waits until the clock that stamps files, which moves in steps and lags, is past the present.
void tick();
std::int64_t to_ns(const timespec& time);

struct User {
  uid_t uid;
  gid_t gid;
  std::vector<gid_t> groups;  ///< supplementary
};
// Numbers that no account of the machine has. Alice and Bob share no group; Carol is in Alice's
// too.
inline const User kAlice{61001, 62001, {}};
inline const User kBob{61002, 62002, {}};
inline const User kCarol{61003, 62003, {62001}};

bool is_root();
#define NEEDS_ROOT() \
  if (!::fermata::posix::is_root()) SKIP("needs root")

/// Runs `work` in a child process and returns what it returns (0 to 255). A crash or an exception
/// counts as a failure of the case, which ends.
int in_child(const std::function<int()>& work);
/// `call` returns as a system call does; its outcome, in a child process with the user's
/// credentials and no capabilities.
Errno as(const User& user, const std::function<long()>& call);

/// Another process that runs beside the case and is told when to go on. Ends with this object.
class Child {
 public:
  explicit Child(const std::function<int(Child&)>& work);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  /// Both sides: say() wakes the other side's next await().
  void say();
  void await();
  /// The exit code of `work`; 128 + signal.
  int join();
  pid_t pid() const { return pid_; }

 private:
  pid_t pid_ = -1;
  int to_peer_ = -1, from_peer_ = -1;
};

}  // namespace fermata::posix
