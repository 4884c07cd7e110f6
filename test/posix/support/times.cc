#include "test/posix/support/times.h"

#include <ostream>

namespace fermata::posix {
namespace {
Times times_in(const struct stat& found) {
  return {to_ns(found.st_atim), to_ns(found.st_mtim), to_ns(found.st_ctim)};
}
}  // namespace

Times times_of(const std::string& path) { return times_in(lstat_of(path)); }
Times times_of(int fd) { return times_in(fstat_of(fd)); }

std::ostream& operator<<(std::ostream& to, Moved moved) {
  if (moved == kNothing) return to << "nothing";
  return to << (moved.atime ? "atime " : "") << (moved.mtime ? "mtime " : "")
            << (moved.ctime ? "ctime" : "");
}

}  // namespace fermata::posix
