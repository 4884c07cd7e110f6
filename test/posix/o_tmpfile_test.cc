// open(2) with O_TMPFILE: a file without a name.
#include <sys/xattr.h>

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

TEST_CASE("O_TMPFILE: what is large, synced or has attributes keeps all of it when it is named") {
  const std::string bytes = pattern(3'000'000);
  Fd fd(OK(::open(".", O_TMPFILE | O_RDWR, 0600)));
  write_at(fd, bytes);
  OK(::fsync(fd));
  write_at(fd, "later", 10);
  OK(::fsetxattr(fd, "user.a", "1", 1, 0));
  OK(::fchmod(fd, 0644));
  OK(::linkat(AT_FDCWD, proc_path(fd).c_str(), AT_FDCWD, "f", AT_SYMLINK_FOLLOW));
  const std::string expected = bytes.substr(0, 10) + "later" + bytes.substr(15);
  CHECK((content_of("f") == expected));
  CHECK(mode_of("f") == 0644);
  char value = 0;
  CHECK(::getxattr("f", "user.a", &value, 1) == 1);
  OK(fd.close());
  CHECK((content_of("f") == expected));
}

TEST_CASE("O_TMPFILE: named twice it is one file; named and removed it gets no name again") {
  const Fd fd(OK(::open(".", O_TMPFILE | O_RDWR, 0600)));
  write_at(fd, "content");
  OK(::linkat(AT_FDCWD, proc_path(fd).c_str(), AT_FDCWD, "f", AT_SYMLINK_FOLLOW));
  OK(::linkat(AT_FDCWD, proc_path(fd).c_str(), AT_FDCWD, "g", AT_SYMLINK_FOLLOW));
  CHECK(stat_of("f").st_ino == stat_of("g").st_ino);
  CHECK(fstat_of(fd).st_nlink == 2);
  OK(::unlink("f"));
  OK(::unlink("g"));
  CHECK(fstat_of(fd).st_nlink == 0);
  CHECK(read_at(fd, 9) == "content");
  FAILS(ENOENT, ::linkat(AT_FDCWD, proc_path(fd).c_str(), AT_FDCWD, "h", AT_SYMLINK_FOLLOW));
}

TEST_CASE("O_TMPFILE: leaves the directory's times alone until it is named") {
  make_dir("d");
  const auto before = stat_of("d");
  tick();
  const Fd fd(OK(::open("d", O_TMPFILE | O_RDWR, 0600)));
  CHECK(to_ns(stat_of("d").st_mtim) == to_ns(before.st_mtim));
  OK(::linkat(AT_FDCWD, proc_path(fd).c_str(), AT_FDCWD, "d/f", AT_SYMLINK_FOLLOW));
  CHECK(to_ns(stat_of("d").st_mtim) > to_ns(before.st_mtim));
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
