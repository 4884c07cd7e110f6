// rmdir(2), and directories that live on without a name.
#include <dirent.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("rmdir: removes an empty directory; the parent has one link fewer") {
  make_dir("d");
  const auto before = stat_of(".").st_nlink;
  OK(::rmdir("d"));
  CHECK(!exists("d"));
  CHECK(stat_of(".").st_nlink == before - 1);
  make_dir("e");
  OK(::rmdir("e/"));
}

TEST_CASE("rmdir: whatever is in it, it is ENOTEMPTY") {
  make_dir("d");
  make_file("d/x");
  FAILS(ENOTEMPTY, ::rmdir("d"));
  OK(::unlink("d/x"));
  OK(::symlink("nowhere", "d/x"));
  FAILS(ENOTEMPTY, ::rmdir("d"));
  OK(::unlink("d/x"));
  make_dir("d/x");
  FAILS(ENOTEMPTY, ::rmdir("d"));
  OK(::rmdir("d/x"));
  OK(::rmdir("d"));
}

TEST_CASE("rmdir: what is no directory is ENOTDIR") {
  make_file("f");
  make_dir("d");
  OK(::symlink("d", "l"));
  OK(::mkfifo("p", 0644));
  FAILS(ENOTDIR, ::rmdir("f"));
  FAILS(ENOTDIR, ::rmdir("l"));
  FAILS(ENOTDIR, ::rmdir("l/"));
  FAILS(ENOTDIR, ::rmdir("p"));
  FAILS(ENOTDIR, ::rmdir("f/x"));
}

TEST_CASE("rmdir: . is EINVAL, .. is ENOTEMPTY") {
  make_dir("d");
  make_dir("d/e");
  FAILS(EINVAL, ::rmdir("."));
  FAILS(EINVAL, ::rmdir("d/."));
  FAILS(ENOTEMPTY, ::rmdir(".."));
  FAILS(ENOTEMPTY, ::rmdir("d/e/.."));
}

TEST_CASE("rmdir: path errors") {
  OK(::symlink("loop", "loop"));
  FAILS(ENOENT, ::rmdir("missing"));
  FAILS(ENOENT, ::rmdir(""));
  FAILS(ENOENT, ::rmdir("missing/d"));
  FAILS(ELOOP, ::rmdir("loop/d"));
}

TEST_CASE("rmdir: needs a writable parent; its permission comes before ENOTEMPTY") {
  NEEDS_ROOT();
  make_dir("closed", 0755);
  make_dir("closed/d", 0777);
  make_file("closed/d/f");
  CHECK(as(kAlice, [] { return ::rmdir("closed/d"); }) == Errno{EACCES});
  make_dir("open", 0777);
  make_dir("open/d", 0);
  CHECK(as(kAlice, [] { return ::rmdir("open/d"); }) == Errno{});
}

TEST_CASE("rmdir: an open directory is empty, without links, and takes nothing new") {
  make_dir("d");
  const Fd dir = open_fd("d", O_RDONLY);
  OK(::rmdir("d"));
  CHECK(fstat_of(dir).st_nlink == 0);
  DIR* stream = OK(::fdopendir(OK(::dup(dir))));
  CHECK(::readdir(stream) == nullptr);
  ::closedir(stream);
  FAILS(ENOENT, ::openat(dir, "f", O_CREAT | O_WRONLY, 0644));
  FAILS(ENOENT, ::mkdirat(dir, "d", 0755));
  FAILS(ENOENT, ::symlinkat("x", dir, "l"));
  make_file("f");
  FAILS(ENOENT, ::linkat(AT_FDCWD, "f", dir, "g", 0));
  FAILS(ENOENT, ::renameat(AT_FDCWD, "f", dir, "g"));
}

TEST_CASE("rmdir: a working directory that is removed has no path") {
  make_dir("d");
  const int result = in_child([] {
    OK(::chdir("d"));
    OK(::rmdir("../d"));
    char path[4096];
    if (::getcwd(path, sizeof path) != nullptr || errno != ENOENT) return 1;
    struct stat found {};
    if (::stat(".", &found) != 0 || found.st_nlink != 0) return 2;
    if (::open("f", O_CREAT | O_WRONLY, 0644) != -1 || errno != ENOENT) return 3;
    return 0;
  });
  CHECK(result == 0);
}

TEST_CASE("rmdir: the same name made anew is another directory") {
  make_dir("d");
  const Fd old = open_fd("d", O_RDONLY);
  OK(::rmdir("d"));
  make_dir("d");
  make_file("d/f");
  CHECK(fstat_of(old).st_ino != stat_of("d").st_ino);
  FAILS(ENOENT, ::openat(old, "f", O_RDONLY));
}

}  // namespace
}  // namespace fermata::posix
