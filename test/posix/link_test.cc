// link(2), linkat(2).
#include <fstream>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("link: another name of the same file, also in another directory") {
  make_dir("d");
  make_file("f", "content", 0640);
  OK(::link("f", "d/g"));
  CHECK(stat_of("d/g").st_ino == stat_of("f").st_ino);
  CHECK(stat_of("f").st_nlink == 2);
  CHECK(stat_of("d/g").st_nlink == 2);
  make_file("d/g", "written", 0600);
  CHECK(content_of("f") == "written");
  CHECK(mode_of("f") == 0600);
  OK(::unlink("f"));
  CHECK(stat_of("d/g").st_nlink == 1);
  CHECK(content_of("d/g") == "written");
}

TEST_CASE("link: what is written through one name is seen through the other before close") {
  make_file("f", "abc");
  OK(::link("f", "g"));
  CHECK(stat_of("g").st_size == 3);
  const Fd one = open_fd("f", O_RDWR);
  const Fd two = open_fd("g", O_RDWR);
  write_at(one, "abcdef");
  CHECK(read_at(two, 9) == "abcdef");
  CHECK(stat_of("g").st_size == 6);
  OK(::ftruncate(two, 1));
  CHECK(fstat_of(one).st_size == 1);
}

TEST_CASE("link: FIFOs, symlinks and open files; a link to a symlink is one itself") {
  OK(::mkfifo("fifo", 0644));
  OK(::link("fifo", "fifo2"));
  CHECK(S_ISFIFO(lstat_of("fifo2").st_mode));
  OK(::symlink("nowhere", "l"));
  OK(::link("l", "l2"));
  CHECK(S_ISLNK(lstat_of("l2").st_mode));
  CHECK(lstat_of("l").st_nlink == 2);
}

TEST_CASE("linkat: with AT_SYMLINK_FOLLOW to the symlink's target") {
  make_file("f");
  OK(::symlink("f", "l"));
  OK(::linkat(AT_FDCWD, "l", AT_FDCWD, "g", AT_SYMLINK_FOLLOW));
  CHECK(lstat_of("g").st_ino == lstat_of("f").st_ino);
  OK(::linkat(AT_FDCWD, "l", AT_FDCWD, "h", 0));
  CHECK(S_ISLNK(lstat_of("h").st_mode));
  FAILS(EINVAL, ::linkat(AT_FDCWD, "f", AT_FDCWD, "i", 1 << 30));
}

TEST_CASE("linkat: between two directories' descriptors") {
  make_dir("a");
  make_dir("b");
  make_file("a/f");
  const Fd a = open_fd("a", O_RDONLY);
  const Fd b = open_fd("b", O_RDONLY);
  OK(::linkat(a, "f", b, "g", 0));
  CHECK(stat_of("b/g").st_ino == stat_of("a/f").st_ino);
  const Fd file = open_fd("a/f", O_RDONLY);
  FAILS(ENOTDIR, ::linkat(file, "f", b, "h", 0));
  FAILS(EBADF, ::linkat(-1, "f", b, "h", 0));
}

TEST_CASE("link: an existing name is never replaced") {
  make_file("f");
  make_file("g");
  make_dir("d");
  OK(::symlink("nowhere", "l"));
  for (const char* name : {"g", "d", "l", "f"}) {
    CAPTURE(name);
    FAILS(EEXIST, ::link("f", name));
  }
  CHECK(stat_of("f").st_nlink == 1);
}

TEST_CASE("link: directories are EPERM") {
  make_dir("d");
  FAILS(EPERM, ::link("d", "e"));
  FAILS(EPERM, ::link(".", "e"));
  make_file("f");
  FAILS(EEXIST, ::link("d", "f"));  // the name is looked at first
}

TEST_CASE("link: an unlinked file gets no new name") {
  NEEDS_ROOT();
  make_file("f");
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::unlink("f"));
  FAILS(ENOENT, ::linkat(fd, "", AT_FDCWD, "g", AT_EMPTY_PATH));
}

TEST_CASE("link: to another filesystem is EXDEV") {
  make_file("f");
  struct stat other {};
  if (::stat("/dev/shm", &other) != 0 || other.st_dev == stat_of(".").st_dev) {
    SKIP("no other filesystem at /dev/shm");
  }
  const std::string name = "/dev/shm/fermata-posix." + std::to_string(::getpid());
  FAILS(EXDEV, ::link("f", name.c_str()));
}

TEST_CASE("link: path errors") {
  make_file("f");
  OK(::symlink("loop", "loop"));
  FAILS(ENOENT, ::link("missing", "g"));
  FAILS(ENOENT, ::link("f", "missing/g"));
  FAILS(ENOENT, ::link("", "g"));
  FAILS(ENOENT, ::link("f", ""));
  FAILS(ENOTDIR, ::link("f/x", "g"));
  FAILS(ENOTDIR, ::link("f", "f/x"));
  FAILS(ENOENT, ::link("f", "g/"));
  FAILS(ELOOP, ::link("loop/f", "g"));
  FAILS(ELOOP, ::link("f", "loop/g"));
  FAILS(ENOTDIR, ::link("f/", "g"));
}

TEST_CASE("link: needs a writable directory and a searchable way") {
  NEEDS_ROOT();
  make_dir("closed", 0755);
  make_dir("hidden", 0600);
  make_dir("open", 0777);
  make_file("f", {}, 0666);
  make_file("hidden/f", {}, 0666);
  CHECK(as(kAlice, [] { return ::link("f", "closed/g"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::link("hidden/f", "open/g"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::link("f", "hidden/g"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::link("f", "open/g"); }) == Errno{});
  CHECK(stat_of("f").st_nlink == 2);
}

TEST_CASE("link: protected hard links are the owner's or a reader-and-writer's") {
  NEEDS_ROOT();
  int is_protected = 0;
  std::ifstream("/proc/sys/fs/protected_hardlinks") >> is_protected;
  if (is_protected == 0) SKIP("fs.protected_hardlinks is off");
  make_dir("open", 0777);
  make_file("f", {}, 0644);
  CHECK(as(kAlice, [] { return ::link("f", "open/g"); }) == Errno{EPERM});
  OK(::chmod("f", 04666));
  CHECK(as(kAlice, [] { return ::link("f", "open/g"); }) == Errno{EPERM});
  OK(::chown("f", kAlice.uid, 0));
  OK(::chmod("f", 04600));
  CHECK(as(kAlice, [] { return ::link("f", "open/g"); }) == Errno{});
}

// Hidden, because it takes minutes where a link is on a majority of disks before it is answered:
// posix_suite --dir PATH "[slow]".
TEST_CASE("link: a file has at most 65,000 names, then EMLINK", "[.slow]") {
  constexpr int kMax = 65'000;
  make_file("f", "content");
  make_dir("d");
  for (int i = 1; i < kMax; ++i) OK(::link("f", ("d/" + std::to_string(i)).c_str()));
  CHECK(stat_of("f").st_nlink == kMax);
  FAILS(EMLINK, ::link("f", "d/more"));
  OK(::unlink("d/1"));
  OK(::link("f", "d/more"));
  CHECK(content_of("d/more") == "content");
}

}  // namespace
}  // namespace fermata::posix
