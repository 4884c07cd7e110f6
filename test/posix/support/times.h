// A file's three times, and what an operation did to them.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <iosfwd>
#include <string>

#include "test/posix/support/posix.h"

namespace fermata::posix {

/// Nanoseconds since 1970.
struct Times {
  std::int64_t atime = 0, mtime = 0, ctime = 0;
};
Times times_of(const std::string& path);  ///< of a symlink: its own
Times times_of(int fd);

/// Which of the three an operation changed.
struct Moved {
  bool atime = false, mtime = false, ctime = false;
  bool operator==(const Moved&) const = default;
};
std::ostream& operator<<(std::ostream& to, Moved moved);
inline constexpr Moved kNothing{};
inline constexpr Moved kStatus{false, false, true};       ///< ctime
inline constexpr Moved kModification{false, true, true};  ///< mtime and ctime

/// Watches `path` from here on: what has changed since. The access time is left out (see
/// atime_test.cc). A symlink is watched itself.
class Watch {
 public:
  explicit Watch(std::string path) : path_(std::move(path)), before_(times_of(path_)) { tick(); }
  Moved moved() const { return moved(times_of(path_)); }
  Moved moved(const Times& now) const {
    return {false, now.mtime != before_.mtime, now.ctime != before_.ctime};
  }

 private:
  std::string path_;
  Times before_;
};

}  // namespace fermata::posix
