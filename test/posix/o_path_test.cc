// open(2) with O_PATH: a place in the tree, no access to content.
#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("O_PATH: gives no access to content and asks for none") {
  NEEDS_ROOT();
  make_file("f", "secret", 0);
  CHECK(as(kAlice, [] { return ::open("f", O_PATH); }) == Errno{});
  const Fd fd(OK(::open("f", O_PATH)));
  char byte = 0;
  FAILS(EBADF, ::read(fd, &byte, 1));
  FAILS(EBADF, ::write(fd, &byte, 1));
  FAILS(EBADF, ::ftruncate(fd, 0));
  FAILS(EBADF, ::fchmod(fd, 0644));
  FAILS(EBADF, ::fsync(fd));
  CHECK(fstat_of(fd).st_size == 6);
}

TEST_CASE("O_PATH: a directory's serves the *at calls and fchdir") {
  make_dir("d");
  make_file("d/f", "x");
  const Fd dir(OK(::open("d", O_PATH | O_DIRECTORY)));
  const Fd fd(OK(::openat(dir, "f", O_RDONLY)));
  const Fd before = open_fd(".", O_RDONLY);
  OK(::fchdir(dir));
  CHECK(exists("f"));
  OK(::fchdir(before));
}

TEST_CASE("O_PATH: with O_NOFOLLOW the symlink itself") {
  OK(::symlink("target", "link"));
  const Fd fd(OK(::open("link", O_PATH | O_NOFOLLOW)));
  CHECK(S_ISLNK(fstat_of(fd).st_mode));
  char target[16] = {};
  CHECK(::readlinkat(fd, "", target, sizeof target) == 6);
  CHECK(std::string(target) == "target");
}

TEST_CASE("O_PATH: /proc/self/fd opens the file again, also a renamed one") {
  make_file("f", "content");
  const Fd place(OK(::open("f", O_PATH)));
  OK(::rename("f", "g"));
  const Fd fd = open_fd("/proc/self/fd/" + std::to_string(place), O_RDWR);
  CHECK(read_at(fd, 9) == "content");
}

TEST_CASE("O_PATH: AT_EMPTY_PATH changes the file behind it") {
  NEEDS_ROOT();
  make_file("f");
  const Fd fd(OK(::open("f", O_PATH)));
  OK(::fchownat(fd, "", kAlice.uid, kAlice.gid, AT_EMPTY_PATH));
  CHECK(stat_of("f").st_uid == kAlice.uid);
  OK(::linkat(fd, "", AT_FDCWD, "g", AT_EMPTY_PATH));
  CHECK(stat_of("g").st_ino == stat_of("f").st_ino);
}

}  // namespace
}  // namespace fermata::posix
