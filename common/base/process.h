// What the kernel says of another process.
#pragma once

#include <sys/types.h>

namespace fermata {

/// True while `pid` or one of its threads runs. A zombie whose threads have all ended is dead, even
/// if nobody reaps it; one with threads left still has its files open and its locks held
/// (proc(5), fields "state" and "num_threads" of /proc/PID/stat). Thread-safe.
bool is_alive(pid_t pid);

}  // namespace fermata
