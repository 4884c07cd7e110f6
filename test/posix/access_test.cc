// access(2), faccessat(2).
#include <sys/syscall.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("access: asks of owner, group or others, the first that applies") {
  NEEDS_ROOT();
  make_file("f");
  OK(::chown("f", kAlice.uid, kAlice.gid));
  OK(::chmod("f", 0421));
  const auto may = [](const User& user, int mode) {
    return as(user, [mode] { return ::access("f", mode); });
  };
  CHECK(may(kAlice, R_OK) == Errno{});
  CHECK(may(kAlice, W_OK) == Errno{EACCES});
  CHECK(may(kAlice, X_OK) == Errno{EACCES});
  CHECK(may(kCarol, W_OK) == Errno{});
  CHECK(may(kCarol, R_OK) == Errno{EACCES});
  CHECK(may(kBob, X_OK) == Errno{});
  CHECK(may(kBob, R_OK) == Errno{EACCES});
  CHECK(may(kBob, R_OK | X_OK) == Errno{EACCES});
  CHECK(may(kBob, F_OK) == Errno{});
}

TEST_CASE("access: root may do anything but execute what nobody may") {
  NEEDS_ROOT();
  make_file("f", {}, 0);
  make_dir("d", 0);
  OK(::access("f", R_OK | W_OK));
  FAILS(EACCES, ::access("f", X_OK));
  OK(::access("d", R_OK | W_OK | X_OK));
  OK(::chmod("f", 0001));
  OK(::access("f", X_OK));
}

TEST_CASE("access: the real user counts, with AT_EACCESS the effective one") {
  NEEDS_ROOT();
  make_file("f", {}, 0600);
  const int result = in_child([] {
    OK(::setresuid(kAlice.uid, 0, 0));
    if (::access("f", R_OK) != -1 || errno != EACCES) return 1;
    if (::syscall(SYS_faccessat2, AT_FDCWD, "f", R_OK, AT_EACCESS) != 0) return 2;
    return 0;
  });
  CHECK(result == 0);
}

TEST_CASE("access: existence, and path errors") {
  make_file("f");
  OK(::symlink("nowhere", "dangling"));
  OK(::symlink("loop", "loop"));
  OK(::access("f", F_OK));
  FAILS(ENOENT, ::access("missing", F_OK));
  FAILS(ENOENT, ::access("", F_OK));
  FAILS(ENOENT, ::access("dangling", F_OK));
  FAILS(ENOTDIR, ::access("f/x", F_OK));
  FAILS(ENOTDIR, ::access("f/", F_OK));
  FAILS(ELOOP, ::access("loop", F_OK));
  FAILS(EINVAL, ::access("f", 8));
}

TEST_CASE("faccessat: AT_SYMLINK_NOFOLLOW asks for the symlink") {
  OK(::symlink("nowhere", "dangling"));
  CHECK(::syscall(SYS_faccessat2, AT_FDCWD, "dangling", F_OK, AT_SYMLINK_NOFOLLOW) == 0);
  make_file("f");
  FAILS(EINVAL, ::syscall(SYS_faccessat2, AT_FDCWD, "f", F_OK, 1 << 30));
}

TEST_CASE("access: the way must be searchable") {
  NEEDS_ROOT();
  make_dir("d", 0666);
  make_file("d/f", {}, 0777);
  CHECK(as(kAlice, [] { return ::access("d/f", F_OK); }) == Errno{EACCES});
}

}  // namespace
}  // namespace fermata::posix
