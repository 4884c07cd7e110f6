// renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT.
#include <stdio.h>
#include <sys/sysmacros.h>

#include "test/posix/support/times.h"

namespace fermata::posix {
namespace {

int rename2(const char* from, const char* to, unsigned flags) {
  return ::renameat2(AT_FDCWD, from, AT_FDCWD, to, flags);
}

TEST_CASE("renameat2: NOREPLACE renames to a free name only") {
  make_file("f", "f");
  make_file("g", "g");
  make_dir("d");
  FAILS(EEXIST, rename2("f", "g", RENAME_NOREPLACE));
  FAILS(EEXIST, rename2("f", "d", RENAME_NOREPLACE));
  FAILS(EEXIST, rename2("f", "f", RENAME_NOREPLACE));
  CHECK(content_of("g") == "g");
  OK(rename2("f", "h", RENAME_NOREPLACE));
  CHECK(content_of("h") == "f");
  FAILS(ENOENT, rename2("missing", "x", RENAME_NOREPLACE));
}

TEST_CASE("renameat2: EXCHANGE swaps two files, with contents and attributes") {
  make_file("f", "from f", 0600);
  make_file("g", "from g", 0640);
  const auto f = stat_of("f").st_ino;
  const auto g = stat_of("g").st_ino;
  OK(rename2("f", "g", RENAME_EXCHANGE));
  CHECK(stat_of("f").st_ino == g);
  CHECK(stat_of("g").st_ino == f);
  CHECK(content_of("f") == "from g");
  CHECK(content_of("g") == "from f");
  CHECK(mode_of("f") == 0640);
  CHECK(names_in(".").size() == 2);
}

TEST_CASE("renameat2: EXCHANGE swaps things of different kinds between directories") {
  make_dir("a");
  make_dir("b");
  make_dir("a/dir");
  make_file("a/dir/inner", "inner");
  make_file("b/file", "file");
  OK(rename2("a/dir", "b/file", RENAME_EXCHANGE));
  CHECK(content_of("a/dir") == "file");
  CHECK(content_of("b/file/inner") == "inner");
  CHECK(stat_of("a").st_nlink == 2);
  CHECK(stat_of("b").st_nlink == 3);
  CHECK(stat_of("b/file/..").st_ino == stat_of("b").st_ino);
  OK(::symlink("nowhere", "l"));
  OK(rename2("l", "b/file", RENAME_EXCHANGE));
  CHECK(S_ISDIR(lstat_of("l").st_mode));
  CHECK(S_ISLNK(lstat_of("b/file").st_mode));
}

TEST_CASE("renameat2: EXCHANGE swaps two full directories") {
  make_dir("a");
  make_dir("b");
  make_file("a/x", "a");
  make_file("b/x", "b");
  OK(rename2("a", "b", RENAME_EXCHANGE));
  CHECK(content_of("a/x") == "b");
  CHECK(content_of("b/x") == "a");
}

TEST_CASE("renameat2: EXCHANGE needs both names, and neither inside the other") {
  make_file("f");
  make_dir("a");
  make_dir("a/b");
  FAILS(ENOENT, rename2("f", "missing", RENAME_EXCHANGE));
  FAILS(ENOENT, rename2("missing", "f", RENAME_EXCHANGE));
  FAILS(EINVAL, rename2("a", "a/b", RENAME_EXCHANGE));
  FAILS(EINVAL, rename2("a/b", "a", RENAME_EXCHANGE));
  OK(rename2("f", "f", RENAME_EXCHANGE));
}

TEST_CASE("renameat2: EXCHANGE of open files keeps each descriptor with its file") {
  make_file("f", "from f");
  make_file("g", "from g");
  const Fd f = open_fd("f", O_RDWR);
  OK(rename2("f", "g", RENAME_EXCHANGE));
  CHECK(read_at(f, 9) == "from f");
  write_at(f, "FROM");
  CHECK(content_of("g") == "FROM f");
  CHECK(content_of("f") == "from g");
}

TEST_CASE("renameat2: EXCHANGE moves both ctimes and the directories' times") {
  make_dir("a");
  make_dir("b");
  make_file("a/f");
  make_file("b/g");
  const Watch a("a");
  const Watch b("b");
  const Watch f("a/f");
  const Watch g("b/g");
  OK(rename2("a/f", "b/g", RENAME_EXCHANGE));
  CHECK(a.moved() == kModification);
  CHECK(b.moved() == kModification);
  CHECK(f.moved(times_of("b/g")) == kStatus);
  CHECK(g.moved(times_of("a/f")) == kStatus);
}

TEST_CASE(
    "renameat2: EXCHANGE of a directory asks for write access to it when its parent changes") {
  NEEDS_ROOT();
  make_dir("a", 0777);
  make_dir("b", 0777);
  make_dir("a/d", 0755);
  make_file("b/f");
  CHECK(as(kAlice, [] { return rename2("a/d", "b/f", RENAME_EXCHANGE); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return rename2("b/f", "a/d", RENAME_EXCHANGE); }) == Errno{EACCES});
}

void check_whiteout(const char* name) {
  CAPTURE(name);
  const auto found = lstat_of(name);
  CHECK(S_ISCHR(found.st_mode));
  CHECK((found.st_mode & 07777) == 0);
  CHECK(found.st_rdev == makedev(0, 0));
  CHECK(found.st_nlink == 1);
}

TEST_CASE("renameat2: WHITEOUT leaves the device 0/0 where the file was") {
  make_file("f", "content");
  OK(rename2("f", "g", RENAME_WHITEOUT));
  CHECK(content_of("g") == "content");
  check_whiteout("f");
}

TEST_CASE("renameat2: WHITEOUT between directories, over a file, and of a directory") {
  make_dir("a");
  make_dir("b");
  make_dir("a/d");
  make_file("a/d/x");
  make_file("a/f", "new");
  make_file("b/f", "old");
  OK(rename2("a/f", "b/f", RENAME_WHITEOUT));
  CHECK(content_of("b/f") == "new");
  check_whiteout("a/f");
  OK(rename2("a/d", "b/d", RENAME_WHITEOUT));
  CHECK(exists("b/d/x"));
  check_whiteout("a/d");
  CHECK(stat_of("a").st_nlink == 2);
  CHECK(stat_of("b").st_nlink == 3);
  CHECK(names_in("a") == std::vector<std::string>{"d", "f"});
}

TEST_CASE("renameat2: WHITEOUT with NOREPLACE") {
  make_file("f");
  make_file("g");
  FAILS(EEXIST, rename2("f", "g", RENAME_WHITEOUT | RENAME_NOREPLACE));
  CHECK(S_ISREG(lstat_of("f").st_mode));
  OK(rename2("f", "h", RENAME_WHITEOUT | RENAME_NOREPLACE));
  check_whiteout("f");
}

TEST_CASE("renameat2: flags that exclude each other or do not exist are EINVAL") {
  make_file("f");
  make_file("g");
  FAILS(EINVAL, rename2("f", "g", RENAME_NOREPLACE | RENAME_EXCHANGE));
  FAILS(EINVAL, rename2("f", "g", RENAME_WHITEOUT | RENAME_EXCHANGE));
  FAILS(EINVAL, rename2("f", "g", 1u << 20));
}

}  // namespace
}  // namespace fermata::posix
