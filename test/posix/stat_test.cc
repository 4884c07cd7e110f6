// stat(2), lstat(2), fstat(2), fstatat(2).
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("stat: tells every type") {
  make_file("file");
  make_dir("dir");
  OK(::symlink("file", "link"));
  OK(::mkfifo("fifo", 0644));
  const Fd fd(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  name.sun_path[0] = 's';
  OK(::bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name));
  CHECK(S_ISREG(lstat_of("file").st_mode));
  CHECK(S_ISDIR(lstat_of("dir").st_mode));
  CHECK(S_ISLNK(lstat_of("link").st_mode));
  CHECK(S_ISFIFO(lstat_of("fifo").st_mode));
  CHECK(S_ISSOCK(lstat_of("s").st_mode));
  CHECK(S_ISREG(stat_of("link").st_mode));
}

TEST_CASE("stat: lstat shows the symlink, with its target's length and mode 0777") {
  make_file("f", "abc");
  OK(::symlink("./././f", "link"));
  const auto link = lstat_of("link");
  CHECK(link.st_size == 7);
  CHECK((link.st_mode & 07777) == 0777);
  CHECK(link.st_nlink == 1);
  CHECK(stat_of("link").st_size == 3);
  CHECK(stat_of("link").st_ino == stat_of("f").st_ino);
  CHECK(link.st_ino != stat_of("f").st_ino);
}

TEST_CASE("stat: one file is one (device, inode), another file another one") {
  make_file("f");
  make_file("g");
  make_dir("d");
  const auto before = stat_of("f");
  CHECK(before.st_ino != stat_of("g").st_ino);
  CHECK(before.st_dev == stat_of("d").st_dev);
  CHECK(before.st_dev == stat_of(".").st_dev);
  OK(::link("f", "d/hard"));
  OK(::rename("f", "d/moved"));
  CHECK(stat_of("d/hard").st_ino == before.st_ino);
  CHECK(stat_of("d/moved").st_ino == before.st_ino);
  make_file("d/moved", "written again");
  CHECK(stat_of("d/moved").st_ino == before.st_ino);
  const Fd fd = open_fd("d/hard", O_RDONLY);
  CHECK(fstat_of(fd).st_ino == before.st_ino);
}

TEST_CASE("stat: sizes and blocks of what was written, at once and after close") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, pattern(100'000));
  CHECK(fstat_of(fd).st_size == 100'000);
  CHECK(stat_of("f").st_size == 100'000);
  OK(fd.close());
  CHECK(stat_of("f").st_size == 100'000);
  CHECK(stat_of("f").st_blocks * 512 >= 100'000);
  CHECK(stat_of("f").st_blocks * 512 < 200'000);
  CHECK(stat_of("f").st_blksize >= 512);
}

TEST_CASE("stat: a sparse file has few blocks, before and after close") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, "data", off_t{100} << 20);
  CHECK(fstat_of(fd).st_blocks * 512 < 2 << 20);
  OK(fd.close());
  CHECK(stat_of("f").st_size == (off_t{100} << 20) + 4);
  CHECK(stat_of("f").st_blocks > 0);
  CHECK(stat_of("f").st_blocks * 512 < 2 << 20);
}

TEST_CASE("stat: a directory's link count is 2 and one for each directory in it") {
  make_dir("d");
  CHECK(stat_of("d").st_nlink == 2);
  make_dir("d/a");
  make_dir("d/b");
  make_file("d/f");
  CHECK(stat_of("d").st_nlink == 4);
  OK(::rmdir("d/a"));
  CHECK(stat_of("d").st_nlink == 3);
  OK(::rename("d/b", "moved"));
  CHECK(stat_of("d").st_nlink == 2);
}

TEST_CASE("stat: . and .. are the directory and its parent") {
  make_dir("d");
  make_dir("d/e");
  CHECK(stat_of("d/.").st_ino == stat_of("d").st_ino);
  CHECK(stat_of("d/e/..").st_ino == stat_of("d").st_ino);
  CHECK(stat_of("d/e/../..").st_ino == stat_of(".").st_ino);
}

TEST_CASE("stat: devices show their number") {
  NEEDS_ROOT();
  OK(::mknod("null", S_IFCHR | 0666, makedev(1, 3)));
  CHECK(stat_of("null").st_rdev == makedev(1, 3));
  CHECK(S_ISCHR(stat_of("null").st_mode));
}

TEST_CASE("fstat: an unlinked file has no link and everything else") {
  make_file("f", "content", 0640);
  const Fd fd = open_fd("f", O_RDWR);
  const auto before = fstat_of(fd);
  OK(::unlink("f"));
  const auto after = fstat_of(fd);
  CHECK(after.st_nlink == 0);
  CHECK(after.st_ino == before.st_ino);
  CHECK(after.st_mode == before.st_mode);
  CHECK(after.st_size == 7);
}

TEST_CASE("stat: reading attributes needs no permission on the file, only on the way") {
  NEEDS_ROOT();
  make_dir("open", 0711);
  make_dir("closed", 0700);
  make_file("open/f", "abc", 0);
  make_file("closed/f", "abc", 0777);
  struct stat found {};
  CHECK(as(kAlice, [&] { return ::stat("open/f", &found); }) == Errno{});
  CHECK(as(kAlice, [&] { return ::stat("closed/f", &found); }) == Errno{EACCES});
  CHECK(as(kAlice, [&] { return ::stat("closed/missing", &found); }) == Errno{EACCES});
}

TEST_CASE("stat: path errors") {
  make_file("f");
  OK(::symlink("loop", "loop"));
  OK(::symlink("nowhere", "dangling"));
  struct stat found {};
  FAILS(ENOENT, ::stat("missing", &found));
  FAILS(ENOENT, ::stat("", &found));
  FAILS(ENOENT, ::stat("missing/f", &found));
  FAILS(ENOENT, ::stat("dangling", &found));
  OK(::lstat("dangling", &found));
  FAILS(ENOTDIR, ::stat("f/x", &found));
  FAILS(ENOTDIR, ::stat("f/", &found));
  FAILS(ELOOP, ::stat("loop", &found));
  FAILS(ELOOP, ::stat("loop/f", &found));
  OK(::lstat("loop", &found));
  FAILS(EBADF, ::fstat(-1, &found));
}

TEST_CASE("fstatat: AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH and flags that do not exist") {
  make_file("f", "abc");
  OK(::symlink("f", "link"));
  const Fd fd = open_fd("f", O_RDONLY);
  struct stat found {};
  OK(::fstatat(AT_FDCWD, "link", &found, AT_SYMLINK_NOFOLLOW));
  CHECK(S_ISLNK(found.st_mode));
  OK(::fstatat(fd, "", &found, AT_EMPTY_PATH));
  CHECK(found.st_size == 3);
  FAILS(ENOENT, ::fstatat(fd, "", &found, 0));
  FAILS(ENOTDIR, ::fstatat(fd, "x", &found, 0));
  FAILS(EINVAL, ::fstatat(AT_FDCWD, "f", &found, 1 << 30));
}

TEST_CASE("stat: what one process changes another one sees at once") {
  make_file("f", "abc", 0644);
  Child other([](Child& self) {
    self.await();
    OK(::chmod("f", 0600));
    make_file("g", "x");
    OK(::truncate("f", 10));
    self.say();
    return 0;
  });
  CHECK(stat_of("f").st_size == 3);
  CHECK(!exists("g"));
  other.say();
  other.await();
  CHECK(mode_of("f") == 0600);
  CHECK(stat_of("f").st_size == 10);
  CHECK(exists("g"));
  CHECK(other.join() == 0);
}

}  // namespace
}  // namespace fermata::posix
