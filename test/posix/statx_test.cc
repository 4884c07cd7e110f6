// statx(2): what stat has, the birth time, and flags.
#include <time.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

struct statx statx_of(const char* path, unsigned mask = STATX_BASIC_STATS | STATX_BTIME) {
  struct statx found {};
  OK(::statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, mask, &found));
  return found;
}

std::int64_t ns_of(const statx_timestamp& time) {
  return time.tv_sec * 1'000'000'000 + time.tv_nsec;
}

TEST_CASE("statx: agrees with stat") {
  make_file("f", "content", 0640);
  const auto plain = stat_of("f");
  const auto found = statx_of("f");
  CHECK((found.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS);
  CHECK(found.stx_mode == plain.st_mode);
  CHECK(found.stx_ino == plain.st_ino);
  CHECK(found.stx_nlink == plain.st_nlink);
  CHECK(found.stx_uid == plain.st_uid);
  CHECK(found.stx_gid == plain.st_gid);
  CHECK(found.stx_size == static_cast<std::uint64_t>(plain.st_size));
  CHECK(found.stx_blocks == static_cast<std::uint64_t>(plain.st_blocks));
  CHECK(ns_of(found.stx_mtime) == to_ns(plain.st_mtim));
  CHECK(ns_of(found.stx_ctime) == to_ns(plain.st_ctim));
}

TEST_CASE("statx: the birth time is when the file was made") {
  constexpr std::int64_t kSlack = 2'000'000'000;  // between two machines' clocks
  timespec before{};
  timespec after{};
  ::clock_gettime(CLOCK_REALTIME, &before);
  make_file("f");
  ::clock_gettime(CLOCK_REALTIME, &after);
  const auto found = statx_of("f");
  REQUIRE((found.stx_mask & STATX_BTIME) != 0);
  CHECK(ns_of(found.stx_btime) >= to_ns(before) - kSlack);
  CHECK(ns_of(found.stx_btime) <= to_ns(after) + kSlack);
}

TEST_CASE("statx: the birth time never changes") {
  make_file("f", "content");
  const auto birth = ns_of(statx_of("f").stx_btime);
  tick();
  make_file("f", "other", 0600);
  const timespec old[2] = {{1000, 0}, {1000, 0}};
  OK(::utimensat(AT_FDCWD, "f", old, 0));
  OK(::rename("f", "g"));
  const auto found = statx_of("g");
  REQUIRE((found.stx_mask & STATX_BTIME) != 0);
  CHECK(ns_of(found.stx_btime) == birth);
}

TEST_CASE("statx: directories, symlinks and FIFOs have a birth time too") {
  make_dir("d");
  OK(::symlink("x", "l"));
  OK(::mkfifo("p", 0644));
  for (const char* name : {"d", "l", "p"}) {
    CAPTURE(name);
    const auto found = statx_of(name);
    CHECK((found.stx_mask & STATX_BTIME) != 0);
    CHECK(ns_of(found.stx_btime) > 0);
  }
}

TEST_CASE("statx: through a descriptor, and whichever way it is synchronised") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDONLY);
  struct statx found {};
  OK(::statx(fd, "", AT_EMPTY_PATH, STATX_SIZE, &found));
  CHECK(found.stx_size == 3);
  for (const int flag : {AT_STATX_SYNC_AS_STAT, AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC}) {
    CAPTURE(flag);
    OK(::statx(AT_FDCWD, "f", flag, STATX_SIZE, &found));
    CHECK(found.stx_size == 3);
  }
}

TEST_CASE("statx: FORCE_SYNC sees what another descriptor has just written") {
  const Fd fd = open_fd("f", O_CREAT | O_WRONLY);
  write_at(fd, "content");
  struct statx found {};
  OK(::statx(AT_FDCWD, "f", AT_STATX_FORCE_SYNC, STATX_SIZE, &found));
  CHECK(found.stx_size == 7);
}

TEST_CASE("statx: errors") {
  make_file("f");
  struct statx found {};
  FAILS(ENOENT, ::statx(AT_FDCWD, "missing", 0, STATX_SIZE, &found));
  FAILS(ENOENT, ::statx(AT_FDCWD, "", 0, STATX_SIZE, &found));
  FAILS(ENOTDIR, ::statx(AT_FDCWD, "f/x", 0, STATX_SIZE, &found));
  FAILS(EINVAL, ::statx(AT_FDCWD, "f", AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC, 0, &found));
  FAILS(EINVAL, ::statx(AT_FDCWD, "f", 1 << 30, 0, &found));
  FAILS(EINVAL, ::statx(AT_FDCWD, "f", 0, STATX__RESERVED, &found));
  FAILS(EBADF, ::statx(-1, "f", 0, STATX_SIZE, &found));
}

}  // namespace
}  // namespace fermata::posix
