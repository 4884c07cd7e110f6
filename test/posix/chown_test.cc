// chown(2), lchown(2), fchown(2), fchownat(2).
#include "test/posix/support/times.h"

namespace fermata::posix {
namespace {

constexpr uid_t kKeep = static_cast<uid_t>(-1);

TEST_CASE("chown: root changes owner, group or both; -1 keeps one") {
  NEEDS_ROOT();
  make_file("f");
  OK(::chown("f", 1, 2));
  CHECK(stat_of("f").st_uid == 1);
  CHECK(stat_of("f").st_gid == 2);
  OK(::chown("f", kKeep, 3));
  CHECK(stat_of("f").st_uid == 1);
  CHECK(stat_of("f").st_gid == 3);
  OK(::chown("f", 4, kKeep));
  CHECK(stat_of("f").st_uid == 4);
  CHECK(stat_of("f").st_gid == 3);
  OK(::chown("f", 4294967294u, 4294967294u));
  CHECK(stat_of("f").st_uid == 4294967294u);
  CHECK(stat_of("f").st_gid == 4294967294u);
}

TEST_CASE("chown: follows symlinks, lchown does not") {
  NEEDS_ROOT();
  make_file("f");
  OK(::symlink("f", "link"));
  OK(::chown("link", 1, 1));
  CHECK(stat_of("f").st_uid == 1);
  CHECK(lstat_of("link").st_uid == 0);
  OK(::lchown("link", 2, 2));
  CHECK(stat_of("f").st_uid == 1);
  CHECK(lstat_of("link").st_uid == 2);
  CHECK(mode_of("link") == 0777);
  OK(::fchownat(AT_FDCWD, "link", 3, 3, AT_SYMLINK_NOFOLLOW));
  CHECK(lstat_of("link").st_gid == 3);
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::fchown(fd, 5, 5));
  OK(::fchownat(fd, "", kKeep, 6, AT_EMPTY_PATH));
  CHECK(stat_of("f").st_uid == 5);
  CHECK(stat_of("f").st_gid == 6);
}

TEST_CASE("chown: an owner may give the file to his own groups, nothing else") {
  NEEDS_ROOT();
  make_file("f");
  OK(::chown("f", kCarol.uid, kCarol.gid));
  const auto tries = [](const User& user, uid_t uid, gid_t gid) {
    return as(user, [uid, gid] { return ::chown("f", uid, gid); });
  };
  CHECK(tries(kCarol, kKeep, kAlice.gid) == Errno{});  // a supplementary group of hers
  CHECK(stat_of("f").st_gid == kAlice.gid);
  CHECK(tries(kCarol, kCarol.uid, kCarol.gid) == Errno{});
  CHECK(stat_of("f").st_gid == kCarol.gid);
  CHECK(tries(kCarol, kKeep, kBob.gid) == Errno{EPERM});
  CHECK(tries(kCarol, kBob.uid, kKeep) == Errno{EPERM});
  CHECK(tries(kBob, kBob.uid, kKeep) == Errno{EPERM});
  CHECK(tries(kBob, kKeep, kBob.gid) == Errno{EPERM});
  CHECK(stat_of("f").st_uid == kCarol.uid);
}

TEST_CASE("chown: clears setuid and setgid of a file, also for root") {
  NEEDS_ROOT();
  make_file("f");
  OK(::chmod("f", 06755));
  OK(::chown("f", 1, 1));
  CHECK(mode_of("f") == 0755);
  OK(::chmod("f", 06755));
  OK(::chown("f", kCarol.uid, kCarol.gid));
  OK(::chmod("f", 06755));
  CHECK(as(kCarol, [] { return ::chown("f", kKeep, kAlice.gid); }) == Errno{});
  CHECK(mode_of("f") == 0755);
}

TEST_CASE("chown: setgid without group execute is no setgid and stays") {
  NEEDS_ROOT();
  make_file("f");
  OK(::chmod("f", 02745));
  OK(::chown("f", 1, 1));
  CHECK(mode_of("f") == 02745);
}

TEST_CASE("chown: directories keep setuid and setgid") {
  NEEDS_ROOT();
  make_dir("d");
  OK(::chmod("d", 06755));
  OK(::chown("d", 1, 1));
  CHECK(mode_of("d") == 06755);
}

TEST_CASE("chown: moves ctime only") {
  make_file("f");
  const Watch watch("f");
  OK(::chown("f", ::getuid(), ::getgid()));
  CHECK(watch.moved() == kStatus);
}

TEST_CASE("chown: an unlinked file, through its descriptor") {
  NEEDS_ROOT();
  make_file("f");
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::unlink("f"));
  OK(::fchown(fd, 7, 8));
  CHECK(fstat_of(fd).st_uid == 7);
  CHECK(fstat_of(fd).st_gid == 8);
}

TEST_CASE("chown: path errors") {
  make_file("f");
  OK(::symlink("loop", "loop"));
  const uid_t me = ::getuid();
  FAILS(ENOENT, ::chown("missing", me, kKeep));
  FAILS(ENOENT, ::chown("", me, kKeep));
  FAILS(ENOTDIR, ::chown("f/x", me, kKeep));
  FAILS(ELOOP, ::chown("loop", me, kKeep));
  OK(::lchown("loop", me, kKeep));
  FAILS(EBADF, ::fchown(-1, me, kKeep));
  FAILS(EINVAL, ::fchownat(AT_FDCWD, "f", me, kKeep, 1 << 30));
}

}  // namespace
}  // namespace fermata::posix
