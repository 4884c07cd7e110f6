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
#include <sstream>
#include <thread>

#include "ctl/commands.h"

extern char** environ;

namespace fermata::ctl {
namespace {

/// mountinfo writes space, tab, newline and backslash as \ooo.
std::string unescape(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out.push_back(static_cast<char>(std::strtol(text.substr(i + 1, 3).c_str(), nullptr, 8)));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

}  // namespace

Result<int> run_program(const std::vector<std::string>& argv) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  pid_t pid = 0;
  if (const int error =
          posix_spawn(&pid, argv[0].c_str(), nullptr, nullptr, arguments.data(), environ);
      error != 0)
    return from_errno(error);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0)
    if (errno != EINTR) return last_errno();
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
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
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream fields(line);
    std::string id, parent, device, root, target, word, type;
    fields >> id >> parent >> device >> root >> target;
    while (fields >> word && word != "-") {
    }
    fields >> type;
    if (type == "fuse.fermata") found.push_back(unescape(target));
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
