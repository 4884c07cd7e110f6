// The lock that keeps two daemons from using one directory.
#pragma once

#include <chrono>

#include "common/base/result.h"

namespace fermata {

/// Takes flock(2)'s exclusive lock of the open file `fd`; it is held until the last descriptor of
/// that opening closes, so at the latest when the process ends. A process that was killed a moment
/// ago holds its locks until its last thread is gone: `patience` is how long to wait for that.
/// Blocks the thread. Errors: EWOULDBLOCK when somebody holds it for longer; what flock(2) gives.
Status lock_exclusively(int fd, std::chrono::milliseconds patience);

/// How long a starting daemon waits for one that is still ending.
inline constexpr std::chrono::milliseconds kLockPatience{5'000};

}  // namespace fermata
