#include "test/posix/support/posix.h"

#include <dirent.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <ostream>
#include <stdexcept>

namespace fermata::posix {
namespace {

constexpr int kThrew = 254;  // an exit code that says: an exception ended the child

std::string name_of(int error) {
  const char* name = ::strerrorname_np(error);
  return error == 0 ? "success" : name != nullptr ? name : "errno " + std::to_string(error);
}

int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void become(const User& user) {
  OK(::setgroups(user.groups.size(), user.groups.data()));
  OK(::setresgid(user.gid, user.gid, user.gid));
  OK(::setresuid(user.uid, user.uid, user.uid));
}

}  // namespace

std::ostream& operator<<(std::ostream& to, Errno error) { return to << name_of(error.value); }

void fail_call(const char* call, const char* file, int line) {
  const std::string error = name_of(errno);
  const char* slash = std::strrchr(file, '/');
  throw std::runtime_error(std::string(call) + " failed with " + error + " (" +
                           (slash != nullptr ? slash + 1 : file) + ":" + std::to_string(line) +
                           ")");
}

Fd open_fd(const std::string& path, int flags, mode_t mode) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) fail_call(("open(" + path.substr(0, 80) + ")").c_str(), __FILE__, __LINE__);
  return Fd(fd);
}

void make_file(const std::string& path, std::string_view content, mode_t mode) {
  Fd fd = open_fd(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (!content.empty()) write_at(fd, content);
  OK(::fchmod(fd, mode));
  OK(fd.close());
}

void make_dir(const std::string& path, mode_t mode) {
  OK(::mkdir(path.c_str(), 0700));
  OK(::chmod(path.c_str(), mode));
}

std::string content_of(const std::string& path) {
  const Fd fd = open_fd(path, O_RDONLY);
  return read_at(fd, static_cast<std::size_t>(fstat_of(fd).st_size));
}

std::string read_at(int fd, std::size_t size, off_t offset) {
  std::string bytes(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got =
        OK(::pread(fd, bytes.data() + done, size - done, offset + static_cast<off_t>(done)));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  bytes.resize(done);
  return bytes;
}

void write_at(int fd, std::string_view bytes, off_t offset) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    done += static_cast<std::size_t>(OK(
        ::pwrite(fd, bytes.data() + done, bytes.size() - done, offset + static_cast<off_t>(done))));
  }
}

std::string pattern(std::size_t size, unsigned seed) {
  std::string bytes(size, '\0');
  std::uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
  for (char& byte : bytes) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    byte = static_cast<char>(state >> 56);
  }
  return bytes;
}

struct stat stat_of(const std::string& path) {
  struct stat found {};
  OK(::stat(path.c_str(), &found));
  return found;
}

struct stat lstat_of(const std::string& path) {
  struct stat found {};
  OK(::lstat(path.c_str(), &found));
  return found;
}

struct stat fstat_of(int fd) {
  struct stat found {};
  OK(::fstat(fd, &found));
  return found;
}

mode_t mode_of(const std::string& path) { return lstat_of(path).st_mode & 07777; }

bool exists(const std::string& path) {
  struct stat found {};
  return ::lstat(path.c_str(), &found) == 0;
}

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  DIR* stream = OK(::opendir(path.c_str()));
  while (const dirent* entry = ::readdir(stream)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  ::closedir(stream);
  std::sort(names.begin(), names.end());
  return names;
}

std::string working_directory() {
  char path[PATH_MAX];
  OK(::getcwd(path, sizeof path));
  return path;
}

std::int64_t to_ns(const timespec& time) {
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

void tick() {
  timespec start{};
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &start);
  do {
    const timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
    ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  } while (to_ns(now) <= to_ns(start));
}

bool is_root() { return ::geteuid() == 0; }

int in_child(const std::function<int()>& work) {
  const pid_t pid = OK(::fork());
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    int code = kThrew;
    try {
      code = work();
    } catch (const std::exception& error) {
      const std::string text = std::string("in a child process: ") + error.what() + "\n";
      (void)!::write(STDERR_FILENO, text.data(), text.size());
    }
    ::_exit(code);
  }
  const int code = wait_for(pid);
  if (code == kThrew) throw std::runtime_error("a child process failed: see its message");
  if (code > 128)
    throw std::runtime_error("a child process died of signal " + std::to_string(code - 128));
  return code;
}

Errno as(const User& user, const std::function<long()>& call) {
  return {in_child([&] {
    become(user);
    return outcome(call()).value;
  })};
}

Child::Child(const std::function<int(Child&)>& work) {
  int down[2];
  int up[2];
  OK(::pipe2(down, O_CLOEXEC));
  OK(::pipe2(up, O_CLOEXEC));
  pid_ = OK(::fork());
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::close(down[1]);
    ::close(up[0]);
    from_peer_ = down[0];
    to_peer_ = up[1];
    int code = kThrew;
    try {
      code = work(*this);
    } catch (const std::exception& error) {
      const std::string text = std::string("in a child process: ") + error.what() + "\n";
      (void)!::write(STDERR_FILENO, text.data(), text.size());
    }
    ::_exit(code);
  }
  ::close(down[0]);
  ::close(up[1]);
  to_peer_ = down[1];
  from_peer_ = up[0];
}

Child::~Child() {
  if (to_peer_ >= 0) ::close(to_peer_);
  if (from_peer_ >= 0) ::close(from_peer_);
  if (pid_ <= 0) return;
  ::kill(pid_, SIGKILL);
  (void)wait_for(pid_);
}

void Child::say() { OK(::write(to_peer_, "x", 1)); }

void Child::await() {
  constexpr int kPatienceMs = 20'000;
  pollfd ready{from_peer_, POLLIN, 0};
  if (::poll(&ready, 1, kPatienceMs) <= 0) throw std::runtime_error("the other process is silent");
  char byte = 0;
  if (OK(::read(from_peer_, &byte, 1)) == 0) throw std::runtime_error("the other process ended");
}

int Child::join() {
  const int code = wait_for(pid_);
  pid_ = -1;
  return code;
}

}  // namespace fermata::posix
