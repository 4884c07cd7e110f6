// open(2) with O_TMPFILE: a file without a name.
#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

std::string proc_path(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

TEST_CASE("O_TMPFILE: a file without a name that works like any other") {
  const Fd fd(OK(::open(".", O_TMPFILE | O_RDWR, 0640)));
  CHECK(names_in(".").empty());
  write_at(fd, "content");
  CHECK(read_at(fd, 9) == "content");
  const auto made = fstat_of(fd);
  CHECK(made.st_nlink == 0);
  CHECK(S_ISREG(made.st_mode));
  CHECK((made.st_mode & 07777) == 0640);
  CHECK(made.st_size == 7);
}

TEST_CASE("O_TMPFILE: linkat gives it a name, with all that was written") {
  Fd fd(OK(::open(".", O_TMPFILE | O_RDWR, 0600)));
  write_at(fd, "content");
  OK(::linkat(AT_FDCWD, proc_path(fd).c_str(), AT_FDCWD, "f", AT_SYMLINK_FOLLOW));
  CHECK(fstat_of(fd).st_nlink == 1);
  CHECK(content_of("f") == "content");
  write_at(fd, "CONTENT");
  OK(fd.close());
  CHECK(content_of("f") == "CONTENT");
}

TEST_CASE("O_TMPFILE: linkat with AT_EMPTY_PATH") {
  NEEDS_ROOT();
  const Fd fd(OK(::open(".", O_TMPFILE | O_RDWR, 0600)));
  OK(::linkat(fd, "", AT_FDCWD, "f", AT_EMPTY_PATH));
  CHECK(stat_of("f").st_ino == fstat_of(fd).st_ino);
  make_file("g");
  FAILS(EEXIST, ::linkat(fd, "", AT_FDCWD, "g", AT_EMPTY_PATH));
}

TEST_CASE("O_TMPFILE: with O_EXCL it never gets a name") {
  const Fd fd(OK(::open(".", O_TMPFILE | O_RDWR | O_EXCL, 0600)));
  FAILS(ENOENT, ::linkat(AT_FDCWD, proc_path(fd).c_str(), AT_FDCWD, "f", AT_SYMLINK_FOLLOW));
}

TEST_CASE("O_TMPFILE: the umask and a setgid directory apply") {
  NEEDS_ROOT();
  make_dir("d", 0755);
  OK(::chown("d", 0, kAlice.gid));
  OK(::chmod("d", 02777));
  ::umask(027);
  const Fd fd(OK(::open("d", O_TMPFILE | O_RDWR, 0666)));
  CHECK((fstat_of(fd).st_mode & 07777) == 0640);
  CHECK(fstat_of(fd).st_gid == kAlice.gid);
}

TEST_CASE("O_TMPFILE: wants write access and a writable directory") {
  make_file("f");
  FAILS(EINVAL, ::open(".", O_TMPFILE | O_RDONLY, 0600));
  FAILS(ENOTDIR, ::open("f", O_TMPFILE | O_RDWR, 0600));
  FAILS(ENOENT, ::open("missing", O_TMPFILE | O_RDWR, 0600));
  if (is_root()) {
    CHECK(as(kAlice, [] { return ::open(".", O_TMPFILE | O_RDWR, 0600); }) == Errno{EACCES});
  }
}

}  // namespace
}  // namespace fermata::posix
