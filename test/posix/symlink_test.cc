// symlink(2), readlink(2), and how paths follow them.
#include <limits.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

std::string target_of(const std::string& path) {
  std::string target(PATH_MAX, '\0');
  target.resize(
      static_cast<std::size_t>(OK(::readlink(path.c_str(), target.data(), target.size()))));
  return target;
}

TEST_CASE("symlink: keeps its target to the byte, whatever it is") {
  const std::string targets[] = {"f",  "/absolute", "../..//x/./", "with space\n", "\xff\xfe",
                                 "d/", "."};
  int number = 0;
  for (const std::string& target : targets) {
    CAPTURE(target);
    const std::string name = "l" + std::to_string(number++);
    OK(::symlink(target.c_str(), name.c_str()));
    CHECK(target_of(name) == target);
  }
}

TEST_CASE("symlink: a target has 1 to 4095 bytes") {
  for (const std::size_t size : {1u, 59u, 60u, 255u, 1023u, 4094u, 4095u}) {
    CAPTURE(size);
    const std::string target(size, 't');
    const std::string name = "l" + std::to_string(size);
    OK(::symlink(target.c_str(), name.c_str()));
    CHECK(target_of(name) == target);
    CHECK(lstat_of(name).st_size == static_cast<off_t>(size));
  }
  FAILS(ENAMETOOLONG, ::symlink(std::string(4096, 't').c_str(), "long"));
  FAILS(ENOENT, ::symlink("", "empty"));
  CHECK(!exists("long"));
}

TEST_CASE("symlink: an existing name is never replaced") {
  make_file("file");
  make_dir("dir");
  OK(::symlink("nowhere", "link"));
  for (const char* name : {"file", "dir", "link"}) {
    CAPTURE(name);
    FAILS(EEXIST, ::symlink("x", name));
  }
}

TEST_CASE("symlink: path errors") {
  make_file("f");
  OK(::symlink("loop", "loop"));
  FAILS(ENOENT, ::symlink("x", ""));
  FAILS(ENOENT, ::symlink("x", "missing/l"));
  FAILS(ENOTDIR, ::symlink("x", "f/l"));
  FAILS(ELOOP, ::symlink("x", "loop/l"));
  FAILS(ENOENT, ::symlink("x", "l/"));
  if (is_root()) {
    make_dir("d", 0755);
    CHECK(as(kAlice, [] { return ::symlink("x", "d/l"); }) == Errno{EACCES});
  }
}

TEST_CASE("symlink: belongs to its maker, and its mode means nothing") {
  NEEDS_ROOT();
  make_dir("d", 0777);
  make_file("f", "content", 0644);
  ::umask(0777);
  CHECK(as(kAlice, [] { return ::symlink("../f", "d/l"); }) == Errno{});
  CHECK(lstat_of("d/l").st_uid == kAlice.uid);
  CHECK(lstat_of("d/l").st_gid == kAlice.gid);
  CHECK(as(kBob, [] { return ::open("d/l", O_RDONLY); }) == Errno{});
}

TEST_CASE("readlink: cuts silently, adds no zero, refuses what is no symlink") {
  make_file("f");
  OK(::symlink("target", "l"));
  char buffer[10] = "---------";
  CHECK(OK(::readlink("l", buffer, 3)) == 3);
  CHECK(std::string(buffer, 4) == "tar-");
  FAILS(EINVAL, ::readlink("l", buffer, 0));
  FAILS(EINVAL, ::readlink("f", buffer, sizeof buffer));
  FAILS(EINVAL, ::readlink(".", buffer, sizeof buffer));
  FAILS(ENOENT, ::readlink("missing", buffer, sizeof buffer));
  FAILS(ENOENT, ::readlink("", buffer, sizeof buffer));
  FAILS(ENOTDIR, ::readlink("f/l", buffer, sizeof buffer));
}

TEST_CASE("symlink: is resolved from the directory that it lies in") {
  make_dir("d");
  make_dir("d/e");
  make_file("d/f", "inner");
  OK(::symlink("f", "d/l"));
  OK(::symlink("../f", "d/e/up"));
  OK(::symlink((working_directory() + "/d").c_str(), "absolute"));
  CHECK(content_of("d/l") == "inner");
  CHECK(content_of("d/e/up") == "inner");
  CHECK(content_of("absolute/e/up") == "inner");
  OK(::rename("d/l", "l"));
  FAILS(ENOENT, ::open("l", O_RDONLY));
}

TEST_CASE("symlink: .. after a symlink is the parent of where it leads") {
  make_dir("a");
  make_dir("a/b");
  make_file("a/f", "there");
  OK(::symlink("a/b", "l"));
  CHECK(content_of("l/../f") == "there");
}

TEST_CASE("symlink: 40 in a row are followed, 41 are ELOOP") {
  make_file("l0", "end");
  for (int i = 1; i <= 41; ++i) {
    OK(::symlink(("l" + std::to_string(i - 1)).c_str(), ("l" + std::to_string(i)).c_str()));
  }
  CHECK(content_of("l40") == "end");
  FAILS(ELOOP, ::open("l41", O_RDONLY));
  FAILS(ELOOP, ::open("l41", O_CREAT | O_RDWR, 0644));
}

TEST_CASE("symlink: two that lead to each other are ELOOP") {
  OK(::symlink("b", "a"));
  OK(::symlink("a", "b"));
  FAILS(ELOOP, ::open("a", O_RDONLY));
  FAILS(ELOOP, ::open("a/x", O_RDONLY));
  FAILS(ELOOP, ::mkdir("a/x", 0755));
  OK(::unlink("a"));
}

TEST_CASE("symlink: a trailing slash asks for the target") {
  make_dir("d");
  make_file("f");
  OK(::symlink("d", "to-dir"));
  OK(::symlink("f", "to-file"));
  CHECK(S_ISDIR(lstat_of("to-dir/").st_mode));
  struct stat found {};
  FAILS(ENOTDIR, ::lstat("to-file/", &found));
}

}  // namespace
}  // namespace fermata::posix
