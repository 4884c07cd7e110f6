#include "common/base/file_lock.h"

#include <sys/file.h>

#include <cerrno>
#include <thread>

#include "common/base/errc.h"

namespace fermata {

Status lock_exclusively(int fd, std::chrono::milliseconds patience) {
  const auto until = std::chrono::steady_clock::now() + patience;
  while (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK || std::chrono::steady_clock::now() >= until) return last_errno();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return {};
}

}  // namespace fermata
