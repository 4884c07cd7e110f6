// unlink(2), unlinkat(2), and files that live on without a name.
#include <sys/xattr.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("unlink: takes the name of anything but a directory") {
  make_file("file");
  OK(::symlink("file", "link"));
  OK(::mkfifo("fifo", 0644));
  OK(::unlink("link"));
  CHECK(exists("file"));
  OK(::unlink("fifo"));
  OK(::unlink("file"));
  CHECK(names_in(".").empty());
  FAILS(ENOENT, ::unlink("file"));
}

TEST_CASE("unlink: a directory is EISDIR, as on Linux") {
  make_dir("d");
  FAILS(EISDIR, ::unlink("d"));
  FAILS(EISDIR, ::unlink("d/."));
  FAILS(EISDIR, ::unlink("."));
  FAILS(EISDIR, ::unlink("d/.."));
  CHECK(exists("d"));
}

TEST_CASE("unlink: path errors") {
  make_file("f");
  make_dir("d");
  OK(::symlink("loop", "loop"));
  OK(::symlink("d", "link"));
  FAILS(ENOENT, ::unlink("missing"));
  FAILS(ENOENT, ::unlink(""));
  FAILS(ENOENT, ::unlink("missing/f"));
  FAILS(ENOTDIR, ::unlink("f/x"));
  FAILS(ENOTDIR, ::unlink("f/"));
  FAILS(ELOOP, ::unlink("loop/f"));
  FAILS(ENOTDIR, ::unlink("link/"));  // the symlink is meant, and it is no directory
  OK(::unlink("loop"));
}

TEST_CASE("unlink: needs a writable and searchable directory, nothing of the file") {
  NEEDS_ROOT();
  make_dir("closed", 0755);
  make_file("closed/f", {}, 0777);
  make_dir("hidden", 0666);
  make_file("hidden/f", {}, 0777);
  make_dir("open", 0777);
  make_file("open/f", {}, 0);
  CHECK(as(kAlice, [] { return ::unlink("closed/f"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::unlink("hidden/f"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::unlink("closed/missing"); }) == Errno{ENOENT});
  CHECK(as(kAlice, [] { return ::unlink("open/f"); }) == Errno{});
}

TEST_CASE("unlinkat: AT_REMOVEDIR is rmdir; other flags are refused") {
  make_dir("d");
  make_file("d/f");
  const Fd dir = open_fd("d", O_RDONLY);
  FAILS(ENOTDIR, ::unlinkat(dir, "f", AT_REMOVEDIR));
  OK(::unlinkat(dir, "f", 0));
  FAILS(EISDIR, ::unlinkat(AT_FDCWD, "d", 0));
  OK(::unlinkat(AT_FDCWD, "d", AT_REMOVEDIR));
  FAILS(EINVAL, ::unlinkat(AT_FDCWD, "x", 1 << 30));
}

TEST_CASE("unlink: an open file works on as before") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, "content");
  OK(::unlink("f"));
  CHECK(fstat_of(fd).st_nlink == 0);
  CHECK(read_at(fd, 9) == "content");
  write_at(fd, pattern(200'000));
  CHECK(fstat_of(fd).st_size == 200'000);
  CHECK((read_at(fd, 200'000) == pattern(200'000)));
  OK(::ftruncate(fd, 10));
  CHECK(fstat_of(fd).st_size == 10);
  OK(::fchmod(fd, 0600));
  OK(::fsync(fd));
  OK(::fsetxattr(fd, "user.a", "x", 1, 0));
  char byte = 0;
  CHECK(OK(::fgetxattr(fd, "user.a", &byte, 1)) == 1);
  CHECK(!exists("f"));
}

TEST_CASE("unlink: /proc/self/fd opens an unlinked file again") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, "content");
  OK(::unlink("f"));
  const Fd again = open_fd("/proc/self/fd/" + std::to_string(fd), O_RDWR);
  CHECK(read_at(again, 9) == "content");
  write_at(again, "CON");
  CHECK(read_at(fd, 9) == "CONtent");
  OK(fd.close());
  CHECK(read_at(again, 9) == "CONtent");
}

TEST_CASE("unlink: the same name made anew is another file") {
  const Fd old = open_fd("f", O_CREAT | O_RDWR);
  write_at(old, "old");
  OK(::unlink("f"));
  make_file("f", "new");
  CHECK(read_at(old, 9) == "old");
  CHECK(content_of("f") == "new");
  CHECK(fstat_of(old).st_ino != stat_of("f").st_ino);
  write_at(old, "still old");
  CHECK(content_of("f") == "new");
}

TEST_CASE("unlink: another process that has the file open keeps it") {
  make_file("f", "content");
  Child other([](Child& self) {
    const Fd fd = open_fd("f", O_RDWR);
    self.say();
    self.await();
    if (read_at(fd, 9) != "content") return 1;
    write_at(fd, "CON");
    return read_at(fd, 9) == "CONtent" ? 0 : 2;
  });
  other.await();
  OK(::unlink("f"));
  CHECK(!exists("f"));
  other.say();
  CHECK(other.join() == 0);
}

TEST_CASE("unlink: other links stay, with one link fewer") {
  make_file("f", "content");
  OK(::link("f", "g"));
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::unlink("f"));
  CHECK(fstat_of(fd).st_nlink == 1);
  CHECK(content_of("g") == "content");
}

}  // namespace
}  // namespace fermata::posix
