#include "ctl/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/base/mount_table.h"
#include "ctl/commands.h"

extern char** environ;

namespace fermata::ctl {
namespace {

Result<pid_t> spawn(const std::vector<std::string>& argv, const sigset_t& blocked) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setsigmask(&attributes, &blocked);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = 0;
  const int error =
      posix_spawn(&pid, argv[0].c_str(), nullptr, &attributes, arguments.data(), environ);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return from_errno(error);
  return pid;
}

int exit_code(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Result<int> run_program(const std::vector<std::string>& argv) {
  sigset_t blocked;
  sigprocmask(SIG_SETMASK, nullptr, &blocked);
  FM_TRY(const pid_t pid, spawn(argv, blocked));
  int status = 0;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) return last_errno();
  return exit_code(status);
}

Result<int> run_in_foreground(const std::vector<std::string>& argv) {
  sigset_t passed_on;
  sigemptyset(&passed_on);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCHLD})
    sigaddset(&passed_on, signal);
  sigset_t before;
  sigprocmask(SIG_BLOCK, &passed_on, &before);
  FM_TRY(const pid_t pid, spawn(argv, before));
  for (;;) {
    int status = 0;
    const pid_t ended = waitpid(pid, &status, WNOHANG);
    if (ended < 0) return last_errno();
    if (ended == pid) return exit_code(status);
    siginfo_t info;
    const int signal = sigwaitinfo(&passed_on, &info);
    // What comes from the terminal the program has got itself.
    if (signal > 0 && signal != SIGCHLD && info.si_code != SI_KERNEL) kill(pid, signal);
  }
}

pid_t running_pid(const std::string& pidfile, const std::string& name) {
  std::ifstream file(pidfile);
  pid_t pid = 0;
  if (!(file >> pid) || !is_alive(pid)) return 0;
  std::ifstream comm("/proc/" + std::to_string(pid) + "/comm");
  std::string running;
  std::getline(comm, running);
  return running == name.substr(0, 15) ? pid : 0;  // the kernel keeps 15 bytes of a name
}

bool wait_until(std::chrono::milliseconds timeout, const std::function<bool()>& done) {
  const auto until = std::chrono::steady_clock::now() + timeout;
  while (!done()) {
    if (std::chrono::steady_clock::now() >= until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

SlowNote::SlowNote(std::string message, std::chrono::milliseconds delay)
    : thread_([this, delay, message = std::move(message)] {
        std::unique_lock lock(mutex_);
        if (!over_.wait_for(lock, delay, [this] { return done_; })) complain(message);
      }) {}

SlowNote::~SlowNote() {
  {
    const std::lock_guard lock(mutex_);
    done_ = true;
  }
  over_.notify_one();
  thread_.join();
}

bool stop_process(pid_t pid, std::chrono::milliseconds patience) {
  kill(pid, SIGTERM);
  if (wait_until(patience, [pid] { return !is_alive(pid); })) return true;
  kill(pid, SIGKILL);
  wait_until(std::chrono::seconds(5), [pid] { return !is_alive(pid); });
  return false;
}

std::vector<std::string> fermata_mounts() {
  std::vector<std::string> found;
  for (auto& mount : mount_table()) {
    if (mount.type == "fuse.fermata") found.push_back(std::move(mount.mount_point));
  }
  return found;
}

bool is_fermata_mount(const std::string& path) {
  std::error_code error;
  std::string wanted = std::filesystem::absolute(path, error).lexically_normal().string();
  while (wanted.size() > 1 && wanted.back() == '/') wanted.pop_back();
  const auto mounts = fermata_mounts();
  return std::find(mounts.begin(), mounts.end(), wanted) != mounts.end();
}

}  // namespace fermata::ctl
