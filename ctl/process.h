// Daemons as files of a directory see them: start, find by pid file, signal, wait.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "common/base/process.h"
#include "common/base/result.h"

namespace fermata::ctl {

/// Runs a program and waits for it; its standard streams are ours. The exit code, or 128 + signal.
Result<int> run_program(const std::vector<std::string>& argv);

/// The pid in `pidfile` if that process lives and is the program `name` (by /proc/PID/comm), else
/// 0.
pid_t running_pid(const std::string& pidfile, const std::string& name);

/// Waits until `done` or the time is over; looks every few milliseconds.
bool wait_until(std::chrono::milliseconds timeout, const std::function<bool()>& done);

/// Sends SIGTERM, waits, then SIGKILL. True if it ended by itself.
bool stop_process(pid_t pid, std::chrono::milliseconds patience);

/// True if `path` is a mount point of Fermata (by /proc/self/mountinfo: it does not touch the mount
/// itself).
bool is_fermata_mount(const std::string& path);

}  // namespace fermata::ctl
