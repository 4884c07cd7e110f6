// rename(2), renameat(2). Flags are in renameat2_test.cc.
#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("rename: within a directory and between two") {
  make_dir("d");
  make_file("f", "content");
  const auto inode = stat_of("f").st_ino;
  OK(::rename("f", "g"));
  CHECK(!exists("f"));
  OK(::rename("g", "d/h"));
  CHECK(!exists("g"));
  CHECK(content_of("d/h") == "content");
  CHECK(stat_of("d/h").st_ino == inode);
}

TEST_CASE("rename: replaces a file, whatever kind, and its last link is gone") {
  make_file("victim", "old");
  OK(::link("victim", "other"));
  make_file("f", "new");
  OK(::rename("f", "victim"));
  CHECK(content_of("victim") == "new");
  CHECK(content_of("other") == "old");
  CHECK(stat_of("other").st_nlink == 1);
  OK(::symlink("nowhere", "l"));
  OK(::rename("l", "victim"));
  CHECK(S_ISLNK(lstat_of("victim").st_mode));
  OK(::mkfifo("fifo", 0644));
  OK(::rename("fifo", "victim"));
  CHECK(S_ISFIFO(lstat_of("victim").st_mode));
  CHECK(names_in(".") == std::vector<std::string>{"other", "victim"});
}

TEST_CASE("rename: a replaced file that is open lives on") {
  make_file("victim", "old");
  make_file("f", "new");
  const Fd fd = open_fd("victim", O_RDWR);
  OK(::rename("f", "victim"));
  CHECK(read_at(fd, 9) == "old");
  CHECK(fstat_of(fd).st_nlink == 0);
  write_at(fd, "OLD");
  CHECK(content_of("victim") == "new");
}

TEST_CASE("rename: an open file keeps its descriptors and content") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, "content");
  OK(::rename("f", "g"));
  write_at(fd, "CON");
  CHECK(content_of("g") == "CONtent");
}

TEST_CASE("rename: the editor's way to save leaves exactly the new file") {
  make_file("f", "old", 0640);
  for (int i = 0; i < 5; ++i) {
    const std::string text = "version " + std::to_string(i);
    Fd fd = open_fd("f.tmp", O_CREAT | O_EXCL | O_WRONLY, 0640);
    write_at(fd, text);
    OK(::fsync(fd));
    OK(fd.close());
    OK(::rename("f.tmp", "f"));
    CHECK(content_of("f") == text);
  }
  CHECK(names_in(".") == std::vector<std::string>{"f"});
}

TEST_CASE("rename: readers of a name that is replaced find the old or the new, never none") {
  make_file("f", "0");
  Child writer([](Child& self) {
    self.await();
    for (int i = 0; i < 60; ++i) {
      make_file("f.tmp", std::to_string(i));
      OK(::rename("f.tmp", "f"));
    }
    OK(::symlink("x", "done"));
    return 0;
  });
  writer.say();
  bool missing = false;
  bool empty = false;
  while (!exists("done")) {
    const Fd fd(::open("f", O_RDONLY));
    if (fd < 0) {
      missing = true;
    } else if (read_at(fd, 9).empty()) {
      empty = true;
    }
  }
  CHECK(writer.join() == 0);
  CHECK_FALSE(missing);
  CHECK_FALSE(empty);
  CHECK(content_of("f") == "59");
}

TEST_CASE("rename: a directory moves with all that is in it; .. and link counts follow") {
  make_dir("a");
  make_dir("b");
  make_dir("a/d");
  make_file("a/d/f", "content");
  OK(::rename("a/d", "b/e"));
  CHECK(content_of("b/e/f") == "content");
  CHECK(stat_of("a").st_nlink == 2);
  CHECK(stat_of("b").st_nlink == 3);
  CHECK(stat_of("b/e/..").st_ino == stat_of("b").st_ino);
  CHECK(names_in("a").empty());
}

TEST_CASE("rename: the working directory's path follows") {
  make_dir("a");
  make_dir("b");
  const std::string top = working_directory();
  OK(::chdir("a"));
  OK(::rename("../a", "../b/c"));
  CHECK(working_directory() == top + "/b/c");
  make_file("f");
  OK(::chdir(top.c_str()));
  CHECK(exists("b/c/f"));
}

TEST_CASE("rename: a directory replaces an empty directory only") {
  make_dir("d");
  make_file("d/f");
  make_dir("empty");
  make_dir("full");
  make_file("full/x");
  FAILS(ENOTEMPTY, ::rename("d", "full"));
  OK(::rename("d", "empty"));
  CHECK(exists("empty/f"));
  CHECK(!exists("d"));
}

TEST_CASE("rename: a file never replaces a directory, nor a directory a file") {
  make_file("f");
  make_dir("d");
  make_dir("full");
  make_file("full/x");
  OK(::symlink("d", "l"));
  FAILS(EISDIR, ::rename("f", "d"));
  FAILS(EISDIR, ::rename("f", "full"));
  FAILS(EISDIR, ::rename("l", "d"));
  FAILS(ENOTDIR, ::rename("d", "f"));
  FAILS(ENOTDIR, ::rename("d", "l"));
  CHECK(names_in(".").size() == 4);
}

TEST_CASE("rename: two names of one file, or a name to itself: nothing happens") {
  make_file("f", "content");
  make_dir("d");
  OK(::link("f", "g"));
  OK(::rename("f", "g"));
  CHECK(exists("f"));
  CHECK(exists("g"));
  OK(::rename("f", "f"));
  OK(::rename("d", "d"));
  CHECK(stat_of("f").st_nlink == 2);
  FAILS(ENOENT, ::rename("missing", "missing"));
}

TEST_CASE("rename: a directory does not go into itself, nor over what holds it") {
  make_dir("a");
  make_dir("a/b");
  make_dir("a/b/c");
  FAILS(EINVAL, ::rename("a", "a/x"));
  FAILS(EINVAL, ::rename("a", "a/b/x"));
  FAILS(EINVAL, ::rename("a", "a/b"));
  FAILS(ENOTEMPTY, ::rename("a/b/c", "a"));
  FAILS(ENOTEMPTY, ::rename("a/b", "a"));
}

TEST_CASE("rename: . and .. are EBUSY") {
  make_dir("d");
  FAILS(EBUSY, ::rename(".", "x"));
  FAILS(EBUSY, ::rename("d/..", "x"));
  FAILS(EBUSY, ::rename("d", "."));
  FAILS(EBUSY, ::rename("d", "d/.."));
}

TEST_CASE("rename: trailing slashes are for directories") {
  make_file("f");
  make_dir("d");
  FAILS(ENOTDIR, ::rename("f/", "g"));
  FAILS(ENOTDIR, ::rename("f", "g/"));
  FAILS(ENOTDIR, ::rename("f", "d/f/"));
  OK(::rename("d/", "e/"));
  CHECK(exists("e"));
  OK(::symlink("e", "l"));
  FAILS(ENOTDIR, ::rename("l/", "m"));
}

TEST_CASE("rename: path errors") {
  make_file("f");
  make_dir("d");
  OK(::symlink("loop", "loop"));
  FAILS(ENOENT, ::rename("missing", "g"));
  FAILS(ENOENT, ::rename("f", "missing/g"));
  FAILS(ENOENT, ::rename("", "g"));
  FAILS(ENOENT, ::rename("f", ""));
  FAILS(ENOTDIR, ::rename("f/x", "g"));
  FAILS(ENOTDIR, ::rename("f", "f/x"));
  FAILS(ELOOP, ::rename("loop/f", "g"));
  FAILS(ELOOP, ::rename("f", "loop/g"));
}

TEST_CASE("rename: a symlink is renamed itself, also a dangling one") {
  make_file("f", "content");
  OK(::symlink("f", "l"));
  OK(::symlink("nowhere", "dangling"));
  OK(::rename("l", "m"));
  OK(::rename("dangling", "still"));
  CHECK(S_ISLNK(lstat_of("m").st_mode));
  CHECK(S_ISLNK(lstat_of("still").st_mode));
  make_file("g", "other");
  OK(::rename("g", "m"));
  CHECK(content_of("f") == "content");
}

TEST_CASE("rename: to another filesystem is EXDEV") {
  make_file("f");
  struct stat other {};
  if (::stat("/dev/shm", &other) != 0 || other.st_dev == stat_of(".").st_dev) {
    SKIP("no other filesystem at /dev/shm");
  }
  const std::string name = "/dev/shm/fermata-posix." + std::to_string(::getpid());
  FAILS(EXDEV, ::rename("f", name.c_str()));
  CHECK(exists("f"));
}

TEST_CASE("rename: both directories must be writable and searchable") {
  NEEDS_ROOT();
  make_dir("open", 0777);
  make_dir("closed", 0755);
  make_dir("hidden", 0666);
  make_file("open/f");
  make_file("closed/f");
  make_file("hidden/f");
  CHECK(as(kAlice, [] { return ::rename("open/f", "closed/g"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::rename("closed/f", "open/g"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::rename("hidden/f", "open/g"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::rename("open/f", "open/g"); }) == Errno{});
}

TEST_CASE("rename: a directory that gets another parent must be writable itself") {
  NEEDS_ROOT();
  make_dir("a", 0777);
  make_dir("b", 0777);
  make_dir("a/d", 0755);
  CHECK(as(kAlice, [] { return ::rename("a/d", "b/d"); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::rename("a/d", "a/e"); }) == Errno{});
  OK(::chmod("a/e", 0777));
  CHECK(as(kAlice, [] { return ::rename("a/e", "b/e"); }) == Errno{});
}

TEST_CASE("renameat: between two directories' descriptors") {
  make_dir("a");
  make_dir("b");
  make_file("a/f");
  const Fd a = open_fd("a", O_RDONLY);
  const Fd b = open_fd("b", O_RDONLY);
  OK(::renameat(a, "f", b, "g"));
  CHECK(exists("b/g"));
  const Fd file = open_fd("b/g", O_RDONLY);
  FAILS(ENOTDIR, ::renameat(file, "x", b, "y"));
  FAILS(EBADF, ::renameat(-1, "x", b, "y"));
}

}  // namespace
}  // namespace fermata::posix
