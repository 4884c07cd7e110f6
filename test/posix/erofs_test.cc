// A read-only view: what is refused with EROFS, and what comes before it. The view is a read-only
// bind mount of the case's directory in a mount namespace of its own.
#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

/// `call`'s outcome in the directory "view", which is read-only.
Errno read_only(const std::function<long()>& call) {
  return {in_child([&] {
    OK(::unshare(CLONE_NEWNS));
    OK(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr));
    OK(::mount("view", "view", nullptr, MS_BIND, nullptr));
    OK(::mount(nullptr, "view", nullptr, MS_REMOUNT | MS_BIND | MS_RDONLY, nullptr));
    OK(::chdir("view"));
    return outcome(call()).value;
  })};
}

void prepare() {
  make_dir("view");
  make_file("view/f", "content", 0666);
  make_dir("view/d");
  OK(::symlink("f", "view/l"));
}

TEST_CASE("read-only: every change is EROFS") {
  NEEDS_ROOT();
  prepare();
  const std::pair<const char*, std::function<long()>> calls[] = {
      {"open for writing", [] { return ::open("f", O_WRONLY); }},
      {"open to create", [] { return ::open("new", O_CREAT | O_RDONLY, 0644); }},
      {"open to truncate", [] { return ::open("f", O_RDONLY | O_TRUNC); }},
      {"truncate", [] { return ::truncate("f", 0); }},
      {"chmod", [] { return ::chmod("f", 0600); }},
      {"chown", [] { return ::chown("f", 1, 1); }},
      {"lchown", [] { return ::lchown("l", 1, 1); }},
      {"utimensat", [] { return ::utimensat(AT_FDCWD, "f", nullptr, 0); }},
      {"mkdir", [] { return ::mkdir("new", 0755); }},
      {"rmdir", [] { return ::rmdir("d"); }},
      {"mkfifo", [] { return ::mkfifo("new", 0644); }},
      {"symlink", [] { return ::symlink("x", "new"); }},
      {"link", [] { return ::link("f", "new"); }},
      {"unlink", [] { return ::unlink("f"); }},
      {"rename", [] { return ::rename("f", "new"); }},
      {"setxattr", [] { return ::setxattr("f", "user.a", "x", 1, 0); }},
      {"removexattr", [] { return ::removexattr("f", "user.a"); }},
      {"access", [] { return ::access("f", W_OK); }},
  };
  for (const auto& [name, call] : calls) {
    CAPTURE(name);
    CHECK(read_only(call) == Errno{EROFS});
  }
  CHECK(content_of("view/f") == "content");
}

TEST_CASE("read-only: reading works as ever") {
  NEEDS_ROOT();
  prepare();
  CHECK(read_only([] { return ::open("f", O_RDONLY); }) == Errno{});
  CHECK(read_only([] { return ::open("f", O_RDONLY | O_CREAT, 0644); }) == Errno{});
  CHECK(read_only([] { return ::access("f", R_OK); }) == Errno{});
  CHECK(read_only([] { return content_of("f") == "content" ? 0 : -1; }) == Errno{});
  CHECK(read_only([] {
          struct statvfs found {};
          OK(::statvfs(".", &found));
          return (found.f_flag & ST_RDONLY) != 0 ? 0 : -1;
        }) == Errno{});
}

TEST_CASE("read-only: existing names are EEXIST, missing ones ENOENT, before EROFS") {
  NEEDS_ROOT();
  prepare();
  CHECK(read_only([] { return ::mkdir("d", 0755); }) == Errno{EEXIST});
  CHECK(read_only([] { return ::symlink("x", "f"); }) == Errno{EEXIST});
  CHECK(read_only([] { return ::open("f", O_CREAT | O_EXCL | O_RDWR, 0644); }) == Errno{EEXIST});
  CHECK(read_only([] { return ::open("missing", O_RDWR); }) == Errno{ENOENT});
  CHECK(read_only([] { return ::truncate("missing", 0); }) == Errno{ENOENT});
  CHECK(read_only([] { return ::mkdir("missing/d", 0755); }) == Errno{ENOENT});
  CHECK(read_only([] { return ::unlink("f/x"); }) == Errno{ENOTDIR});
}

}  // namespace
}  // namespace fermata::posix
