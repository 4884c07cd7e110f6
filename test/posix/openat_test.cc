// openat(2), openat2(2): where a path starts, and how far it may lead.
#include <linux/openat2.h>
#include <sys/syscall.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

long openat2(int dir, const char* path, std::uint64_t flags, std::uint64_t resolve,
             std::uint64_t mode = 0) {
  open_how how{};
  how.flags = flags | O_CLOEXEC;
  how.mode = mode;
  how.resolve = resolve;
  return ::syscall(SYS_openat2, dir, path, &how, sizeof how);
}

TEST_CASE("openat: a relative path starts at the directory, an absolute one does not") {
  make_dir("d");
  make_file("d/f", "inner");
  make_file("f", "outer");
  const Fd dir = open_fd("d", O_RDONLY);
  const Fd inner(OK(::openat(dir, "f", O_RDONLY)));
  CHECK(read_at(inner, 9) == "inner");
  const std::string absolute = working_directory() + "/f";
  const Fd outer(OK(::openat(dir, absolute.c_str(), O_RDONLY)));
  CHECK(read_at(outer, 9) == "outer");
  const Fd ignored(OK(::openat(-1, absolute.c_str(), O_RDONLY)));
  const Fd up(OK(::openat(dir, "../f", O_RDONLY)));
  CHECK(read_at(up, 9) == "outer");
}

TEST_CASE("openat: the descriptor must be a directory's") {
  make_file("f");
  const Fd file = open_fd("f", O_RDONLY);
  FAILS(ENOTDIR, ::openat(file, "x", O_RDONLY));
  FAILS(EBADF, ::openat(-1, "x", O_RDONLY));
}

TEST_CASE("openat: a directory keeps its descriptor when it is renamed") {
  make_dir("d");
  make_dir("e");
  const Fd dir = open_fd("d", O_RDONLY);
  OK(::rename("d", "e/moved"));
  const Fd fd(OK(::openat(dir, "f", O_CREAT | O_WRONLY, 0644)));
  CHECK(exists("e/moved/f"));
  CHECK(S_ISDIR(stat_of("e/moved/../../e").st_mode));
}

TEST_CASE("openat2: RESOLVE_BENEATH stays below the directory") {
  make_dir("d");
  make_file("d/f");
  make_file("f");
  OK(::symlink("../f", "d/up"));
  OK(::symlink("/", "d/root"));
  const Fd dir = open_fd("d", O_RDONLY);
  const Fd fd(static_cast<int>(OK(openat2(dir, "f", O_RDONLY, RESOLVE_BENEATH))));
  FAILS(EXDEV, openat2(dir, "../f", O_RDONLY, RESOLVE_BENEATH));
  FAILS(EXDEV, openat2(dir, "up", O_RDONLY, RESOLVE_BENEATH));
  FAILS(EXDEV, openat2(dir, "root", O_RDONLY, RESOLVE_BENEATH));
}

TEST_CASE("openat2: RESOLVE_IN_ROOT takes the directory for the root") {
  make_dir("d");
  make_file("d/f", "inner");
  OK(::symlink("/f", "d/link"));
  const Fd dir = open_fd("d", O_RDONLY);
  const Fd link(static_cast<int>(OK(openat2(dir, "link", O_RDONLY, RESOLVE_IN_ROOT))));
  CHECK(read_at(link, 9) == "inner");
  const Fd up(static_cast<int>(OK(openat2(dir, "../../f", O_RDONLY, RESOLVE_IN_ROOT))));
  CHECK(read_at(up, 9) == "inner");
}

TEST_CASE("openat2: RESOLVE_NO_SYMLINKS refuses a symlink anywhere") {
  make_dir("d");
  make_file("d/f");
  OK(::symlink("d", "link"));
  FAILS(ELOOP, openat2(AT_FDCWD, "link/f", O_RDONLY, RESOLVE_NO_SYMLINKS));
  const Fd fd(static_cast<int>(OK(openat2(AT_FDCWD, "d/f", O_RDONLY, RESOLVE_NO_SYMLINKS))));
}

TEST_CASE("openat2: unlike open it refuses flags and modes that it does not know") {
  make_file("f");
  FAILS(EINVAL, openat2(AT_FDCWD, "f", 1ULL << 40, 0));
  FAILS(EINVAL, openat2(AT_FDCWD, "f", O_RDONLY, 1ULL << 40));
  FAILS(EINVAL, openat2(AT_FDCWD, "f", O_RDONLY, 0, 0644));  // a mode without O_CREAT
  const Fd fd(static_cast<int>(OK(openat2(AT_FDCWD, "new", O_CREAT | O_RDWR, 0, 0600))));
  CHECK(mode_of("new") == 0600);
}

}  // namespace
}  // namespace fermata::posix
