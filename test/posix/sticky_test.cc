// Sticky directories: names are their owners' to take away.
#include <stdio.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

/// d is root's and sticky; d/f and d/sub are Alice's.
void prepare() {
  make_dir("d");
  OK(::chmod("d", 01777));
  make_file("d/f", {}, 0666);
  make_dir("d/sub", 0777);
  OK(::chown("d/f", kAlice.uid, kAlice.gid));
  OK(::chown("d/sub", kAlice.uid, kAlice.gid));
}

TEST_CASE("sticky: a stranger removes and renames nothing") {
  NEEDS_ROOT();
  prepare();
  make_dir("out", 0777);
  CHECK(as(kBob, [] { return ::unlink("d/f"); }) == Errno{EPERM});
  CHECK(as(kBob, [] { return ::rmdir("d/sub"); }) == Errno{EPERM});
  CHECK(as(kBob, [] { return ::rename("d/f", "d/g"); }) == Errno{EPERM});
  CHECK(as(kBob, [] { return ::rename("d/f", "out/f"); }) == Errno{EPERM});
  CHECK(as(kBob, [] { return ::rename("d/sub", "out/sub"); }) == Errno{EPERM});
  CHECK(as(kCarol, [] { return ::unlink("d/f"); }) == Errno{EPERM});  // of the file's group
}

TEST_CASE("sticky: a stranger replaces nothing, and exchanges nothing") {
  NEEDS_ROOT();
  prepare();
  make_file("d/mine");
  OK(::chown("d/mine", kBob.uid, kBob.gid));
  CHECK(as(kBob, [] { return ::rename("d/mine", "d/f"); }) == Errno{EPERM});
  CHECK(as(kBob, [] {
          return ::renameat2(AT_FDCWD, "d/mine", AT_FDCWD, "d/f", RENAME_EXCHANGE);
        }) == Errno{EPERM});
  CHECK(as(kBob, [] { return ::rename("d/mine", "d/free"); }) == Errno{});
}

TEST_CASE("sticky: making, writing and linking are free") {
  NEEDS_ROOT();
  prepare();
  CHECK(as(kBob, [] { return ::open("d/new", O_CREAT | O_WRONLY, 0644); }) == Errno{});
  CHECK(as(kBob, [] { return ::open("d/f", O_WRONLY | O_TRUNC); }) == Errno{});
  CHECK(as(kBob, [] { return ::link("d/f", "d/g"); }) == Errno{});
}

TEST_CASE("sticky: the owner of the file, of the directory, and root may") {
  NEEDS_ROOT();
  prepare();
  CHECK(as(kAlice, [] { return ::rename("d/f", "d/g"); }) == Errno{});
  CHECK(as(kAlice, [] { return ::unlink("d/g"); }) == Errno{});
  CHECK(as(kAlice, [] { return ::rmdir("d/sub"); }) == Errno{});
  make_file("d/f");
  OK(::chown("d/f", kAlice.uid, kAlice.gid));
  OK(::chown("d", kBob.uid, kBob.gid));
  OK(::chmod("d", 01777));
  CHECK(as(kBob, [] { return ::unlink("d/f"); }) == Errno{});
  make_file("d/f");
  OK(::chown("d/f", kAlice.uid, kAlice.gid));
  OK(::unlink("d/f"));
}

}  // namespace
}  // namespace fermata::posix
