// Setgid directories: what is made in them belongs to their group.
#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

/// d belongs to Alice's group; everybody may write.
void prepare() {
  make_dir("d");
  OK(::chown("d", 0, kAlice.gid));
  OK(::chmod("d", 02777));
}

TEST_CASE("setgid directory: everything made in it gets its group, directories setgid too") {
  NEEDS_ROOT();
  prepare();
  make_file("hard");
  CHECK(as(kBob, [] {
          OK(::open("d/file", O_CREAT | O_WRONLY, 0644));
          OK(::mkdir("d/dir", 0755));
          OK(::symlink("x", "d/link"));
          OK(::mkfifo("d/fifo", 0644));
          return 0;
        }) == Errno{});
  for (const char* name : {"d/file", "d/dir", "d/link", "d/fifo"}) {
    CAPTURE(name);
    CHECK(lstat_of(name).st_uid == kBob.uid);
    CHECK(lstat_of(name).st_gid == kAlice.gid);
  }
  CHECK(mode_of("d/dir") == 02755);
  CHECK(mode_of("d/file") == 0644);
  OK(::mkdir("d/dir/deeper", 0700));
  CHECK(mode_of("d/dir/deeper") == 02700);
  CHECK(stat_of("d/dir/deeper").st_gid == kAlice.gid);
}

TEST_CASE("setgid directory: without the bit the caller's group counts") {
  NEEDS_ROOT();
  prepare();
  OK(::chmod("d", 0777));
  CHECK(as(kBob, [] { return ::open("d/file", O_CREAT | O_WRONLY, 0644); }) == Errno{});
  CHECK(as(kBob, [] { return ::mkdir("d/dir", 0755); }) == Errno{});
  CHECK(stat_of("d/file").st_gid == kBob.gid);
  CHECK(stat_of("d/dir").st_gid == kBob.gid);
  CHECK(mode_of("d/dir") == 0755);
}

TEST_CASE("setgid directory: renaming and linking into it change no group") {
  NEEDS_ROOT();
  prepare();
  make_file("f");
  make_file("g");
  OK(::rename("f", "d/f"));
  OK(::link("g", "d/g"));
  CHECK(stat_of("d/f").st_gid == 0);
  CHECK(stat_of("d/g").st_gid == 0);
}

TEST_CASE("setgid directory: a stranger's new setgid program loses the bit, a member's keeps it") {
  NEEDS_ROOT();
  prepare();
  CHECK(as(kBob, [] { return ::open("d/bob", O_CREAT | O_WRONLY, 02755); }) == Errno{});
  CHECK(as(kCarol, [] { return ::open("d/carol", O_CREAT | O_WRONLY, 02755); }) == Errno{});
  CHECK(mode_of("d/bob") == 0755);
  CHECK(mode_of("d/carol") == 02755);
  CHECK(as(kBob, [] { return ::mknod("d/node", S_IFREG | 02755, 0); }) == Errno{});
  CHECK(mode_of("d/node") == 0755);
}

TEST_CASE("setgid directory: setgid without group execute is kept also for a stranger") {
  NEEDS_ROOT();
  prepare();
  CHECK(as(kBob, [] { return ::open("d/f", O_CREAT | O_WRONLY, 02644); }) == Errno{});
  CHECK(mode_of("d/f") == 02644);
}

}  // namespace
}  // namespace fermata::posix
