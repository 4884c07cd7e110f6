// chmod(2), fchmod(2), fchmodat(2).
#include "test/posix/support/times.h"

namespace fermata::posix {
namespace {

TEST_CASE("chmod: sets all twelve bits, of files and directories") {
  make_file("f");
  make_dir("d");
  for (const mode_t mode : {0u, 0777u, 01000u, 02010u, 04100u, 07777u, 0644u}) {
    CAPTURE(mode);
    OK(::chmod("f", mode));
    CHECK(mode_of("f") == mode);
    OK(::chmod("d", mode));
    CHECK(mode_of("d") == mode);
  }
  OK(::chmod("f", 0170644));  // a type among the bits does not count
  CHECK(stat_of("f").st_mode == (S_IFREG | 0644));
}

TEST_CASE("chmod: follows symlinks, changes FIFOs, and descriptors likewise") {
  make_file("f");
  OK(::symlink("f", "link"));
  OK(::chmod("link", 0600));
  CHECK(mode_of("f") == 0600);
  CHECK(mode_of("link") == 0777);
  OK(::mkfifo("fifo", 0644));
  OK(::chmod("fifo", 0622));
  CHECK(mode_of("fifo") == 0622);
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::fchmod(fd, 0640));
  CHECK(mode_of("f") == 0640);
  OK(::unlink("f"));
  OK(::fchmod(fd, 0604));
  CHECK((fstat_of(fd).st_mode & 07777) == 0604);
}

TEST_CASE("chmod: a symlink itself has no mode to change") {
  make_file("f");
  OK(::symlink("f", "link"));
  FAILS(EOPNOTSUPP, ::fchmodat(AT_FDCWD, "link", 0600, AT_SYMLINK_NOFOLLOW));
  CHECK(mode_of("f") == 0644);
}

TEST_CASE("chmod: moves ctime only") {
  make_file("f");
  const Watch watch("f");
  OK(::chmod("f", 0600));
  CHECK(watch.moved() == kStatus);
}

TEST_CASE("chmod: the mode that it has already still moves ctime") {
  make_file("f", {}, 0644);
  const Watch watch("f");
  OK(::chmod("f", 0644));
  CHECK(watch.moved() == kStatus);
}

TEST_CASE("chmod: is the owner's and root's") {
  NEEDS_ROOT();
  make_file("f", {}, 0666);
  OK(::chown("f", kAlice.uid, kAlice.gid));
  CHECK(as(kBob, [] { return ::chmod("f", 0600); }) == Errno{EPERM});
  CHECK(as(kCarol, [] { return ::chmod("f", 0600); }) == Errno{EPERM});
  CHECK(mode_of("f") == 0666);
  CHECK(as(kAlice, [] { return ::chmod("f", 0600); }) == Errno{});
  CHECK(mode_of("f") == 0600);
  OK(::chmod("f", 0644));
}

TEST_CASE("chmod: an owner outside the file's group loses setgid silently") {
  NEEDS_ROOT();
  make_file("f");
  make_dir("d");
  OK(::chown("f", kAlice.uid, kBob.gid));
  OK(::chown("d", kAlice.uid, kBob.gid));
  CHECK(as(kAlice, [] { return ::chmod("f", 02755); }) == Errno{});
  CHECK(as(kAlice, [] { return ::chmod("d", 02755); }) == Errno{});
  CHECK(mode_of("f") == 0755);
  CHECK(mode_of("d") == 0755);
  OK(::chown("f", kCarol.uid, kAlice.gid));  // Carol's, through a supplementary group
  CHECK(as(kCarol, [] { return ::chmod("f", 02755); }) == Errno{});
  CHECK(mode_of("f") == 02755);
}

TEST_CASE("chmod: takes effect for the next open, not for descriptors that are open") {
  NEEDS_ROOT();
  make_file("f", "abc", 0666);
  Child alice([](Child& self) {
    OK(::setresuid(kAlice.uid, kAlice.uid, kAlice.uid));
    const Fd fd = open_fd("f", O_RDWR);
    self.say();
    self.await();
    if (::pwrite(fd, "y", 1, 1) != 1) return 1;
    if (::open("f", O_RDWR) != -1 || errno != EACCES) return 2;
    return 0;
  });
  alice.await();
  OK(::chmod("f", 0600));
  alice.say();
  CHECK(alice.join() == 0);
  CHECK(content_of("f") == "ayc");
}

TEST_CASE("chmod: path errors") {
  make_file("f");
  OK(::symlink("loop", "loop"));
  FAILS(ENOENT, ::chmod("missing", 0644));
  FAILS(ENOENT, ::chmod("", 0644));
  FAILS(ENOTDIR, ::chmod("f/x", 0644));
  FAILS(ENOTDIR, ::chmod("f/", 0644));
  FAILS(ELOOP, ::chmod("loop", 0644));
  FAILS(EBADF, ::fchmod(-1, 0644));
  if (is_root()) {
    make_dir("d", 0600);
    make_file("d/f");
    CHECK(as(kAlice, [] { return ::chmod("d/f", 0644); }) == Errno{EACCES});
  }
}

}  // namespace
}  // namespace fermata::posix
