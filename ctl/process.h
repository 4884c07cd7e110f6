// Daemons as files of a directory see them: start, find by pid file, signal, wait.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/base/process.h"
#include "common/base/result.h"

namespace fermata::ctl {

/// Runs a program and waits for it; its standard streams are ours. The exit code, or 128 + signal.
Result<int> run_program(const std::vector<std::string>& argv);
/// The same for a program that is this one's whole work: signals to end are passed on to it.
Result<int> run_in_foreground(const std::vector<std::string>& argv);

/// The pid in `pidfile` if that process lives and is the program `name` (by /proc/PID/comm), else
/// 0.
pid_t running_pid(const std::string& pidfile, const std::string& name);

/// Waits until `done` or the time is over; looks every few milliseconds.
bool wait_until(std::chrono::milliseconds timeout, const std::function<bool()>& done);

/// Says `message` on stderr if it still lives after `delay`: for waits that are usually short.
class SlowNote {
 public:
  explicit SlowNote(std::string message, std::chrono::milliseconds delay = std::chrono::seconds(2));
  ~SlowNote();
  SlowNote(const SlowNote&) = delete;
  SlowNote& operator=(const SlowNote&) = delete;

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool done_ = false;
  std::thread thread_;
};

/// Sends SIGTERM, waits, then SIGKILL. True if it ended by itself.
bool stop_process(pid_t pid, std::chrono::milliseconds patience);

/// Mount points of Fermata in this mount namespace (by /proc/self/mountinfo).
std::vector<std::string> fermata_mounts();

/// True if `path` is a mount point of Fermata (by /proc/self/mountinfo: it does not touch the mount
/// itself).
bool is_fermata_mount(const std::string& path);

}  // namespace fermata::ctl
