// Locks by plain system calls, and processes that hold them.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {

inline struct flock range(short type, off_t start = 0, off_t length = 0) {
  struct flock out {};
  out.l_type = type;
  out.l_whence = SEEK_SET;
  out.l_start = start;
  out.l_len = length;
  return out;
}
/// 0 or the errno of that fcntl(2).
inline int set_lock(const Fd& fd, int command, short type, off_t start = 0, off_t length = 0) {
  struct flock wanted = range(type, start, length);
  return errno_of(fcntl(fd.get(), command, &wanted));
}
/// What F_GETLK answers.
inline struct flock get_lock(const Fd& fd, short type, off_t start = 0, off_t length = 0) {
  struct flock wanted = range(type, start, length);
  REQUIRE(fcntl(fd.get(), F_GETLK, &wanted) == 0);
  return wanted;
}

/// Each holds its own of two files' locks, and waits for the other's: one of them is told so, and
/// when it lets go of what it holds the other one goes on.
inline void check_deadlock_found(const Fd& holds_one, const Fd& wants_two, const Fd& holds_two,
                                 const Fd& wants_one) {
  REQUIRE(set_lock(holds_one, F_SETLK, F_WRLCK) == 0);
  REQUIRE(set_lock(holds_two, F_SETLK, F_WRLCK) == 0);
  std::atomic<int> first{-1}, second{-1};
  std::thread one([&] { first = set_lock(wants_two, F_SETLKW, F_WRLCK); });
  std::thread two([&] { second = set_lock(wants_one, F_SETLKW, F_WRLCK); });
  CHECK(eventually([&] { return first >= 0 || second >= 0; }));
  if (second == EDEADLK) {
    CHECK(set_lock(holds_two, F_SETLK, F_UNLCK) == 0);
  } else {
    CHECK(first == EDEADLK);
    CHECK(set_lock(holds_one, F_SETLK, F_UNLCK) == 0);
  }
  one.join();
  two.join();
  CHECK((first == 0) != (second == 0));
}

/// Runs `body` in a child; its exit code, or 128 + signal.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    pid_ = fork();
    if (pid_ == 0) _exit(body());
  }
  ~Child() {
    if (pid_ > 0 && !ended_) {
      kill(pid_, SIGKILL);
      (void)wait();
    }
  }
  pid_t pid() const { return pid_; }
  int wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    ended_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  bool ended_ = false;
};

/// Stops a process with all its threads, which SIGSTOP alone only begins.
inline void stop(pid_t pid) {
  REQUIRE(kill(pid, SIGSTOP) == 0);
  const auto stopped = [&] {
    const std::filesystem::path tasks = "/proc/" + std::to_string(pid) + "/task";
    for (const auto& task : std::filesystem::directory_iterator(tasks)) {
      std::ifstream file(task.path() / "stat");
      std::string stat((std::istreambuf_iterator<char>(file)), {});
      const std::size_t name = stat.rfind(") ");
      if (name == std::string::npos || stat.at(name + 2) != 'T') return false;
    }
    return true;
  };
  REQUIRE(eventually(stopped));
}

/// The process waits in that system call.
inline bool sleeps_in(pid_t pid, long system_call) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/syscall");
  long number = -1;
  return static_cast<bool>(file >> number) && number == system_call;
}

}  // namespace fermata::test
