// utimensat(2), futimens(3) and their elders.
#include <sys/time.h>
#include <time.h>
#include <utime.h>

#include "test/posix/support/times.h"

namespace fermata::posix {
namespace {

constexpr timespec kOmit{0, UTIME_OMIT};
constexpr timespec kNow{0, UTIME_NOW};

int set_times(const char* path, timespec atime, timespec mtime, int flags = 0) {
  const timespec times[2] = {atime, mtime};
  return ::utimensat(AT_FDCWD, path, times, flags);
}

std::int64_t wall_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return to_ns(now);
}
constexpr std::int64_t kSlack = 2'000'000'000;  // between two machines' clocks

bool is_about(std::int64_t time, std::int64_t other) {
  return time > other - kSlack && time < other + kSlack;
}

TEST_CASE("utimensat: sets both times to the nanosecond") {
  make_file("f");
  make_dir("d");
  OK(::mkfifo("p", 0644));
  for (const char* name : {"f", "d", "p"}) {
    CAPTURE(name);
    OK(set_times(name, {1'000'000'000, 1}, {1'500'000'000, 999'999'999}));
    CHECK(times_of(name).atime == 1'000'000'000'000'000'001);
    CHECK(times_of(name).mtime == 1'500'000'000'999'999'999);
  }
}

TEST_CASE("utimensat: before 1970 and past 2038 and 2106") {
  make_file("f");
  for (const time_t seconds : {time_t{-1}, time_t{-2'000'000'000}, time_t{0}, time_t{2'147'483'648},
                               time_t{4'294'967'296}, time_t{7'258'118'400}}) {  // the last: 2200
    CAPTURE(seconds);
    OK(set_times("f", {seconds, 123'456'789}, {seconds, 987'654'321}));
    const auto found = stat_of("f");
    CHECK(found.st_atim.tv_sec == seconds);
    CHECK(found.st_atim.tv_nsec == 123'456'789);
    CHECK(found.st_mtim.tv_sec == seconds);
    CHECK(found.st_mtim.tv_nsec == 987'654'321);
  }
}

TEST_CASE("utimensat: UTIME_OMIT keeps one time, UTIME_NOW takes the clock's") {
  make_file("f");
  OK(set_times("f", {1000, 1}, {2000, 2}));
  OK(set_times("f", kOmit, {3000, 3}));
  CHECK(times_of("f").atime == 1'000'000'000'001);
  CHECK(times_of("f").mtime == 3'000'000'000'003);
  OK(set_times("f", {4000, 4}, kOmit));
  CHECK(times_of("f").atime == 4'000'000'000'004);
  CHECK(times_of("f").mtime == 3'000'000'000'003);
  OK(set_times("f", kNow, kOmit));
  CHECK(is_about(times_of("f").atime, wall_ns()));
  CHECK(times_of("f").mtime == 3'000'000'000'003);
  OK(set_times("f", {4000, 4}, kNow));
  CHECK(times_of("f").atime == 4'000'000'000'004);
  CHECK(is_about(times_of("f").mtime, wall_ns()));
}

TEST_CASE("utimensat: no times at all means now for both") {
  make_file("f");
  OK(set_times("f", {1000, 1}, {2000, 2}));
  OK(::utimensat(AT_FDCWD, "f", nullptr, 0));
  CHECK(is_about(times_of("f").atime, wall_ns()));
  CHECK(is_about(times_of("f").mtime, wall_ns()));
  CHECK(times_of("f").atime == times_of("f").mtime);
}

TEST_CASE("utimensat: moves ctime, unless both times are omitted") {
  make_file("f");
  const Watch watch("f");
  OK(set_times("f", kOmit, kOmit));
  CHECK(watch.moved() == kNothing);
  OK(set_times("f", {1000, 0}, kOmit));
  CHECK(watch.moved() == kStatus);
  CHECK(is_about(times_of("f").ctime, wall_ns()));
}

TEST_CASE("utimensat: follows symlinks, with AT_SYMLINK_NOFOLLOW it does not") {
  make_file("f");
  OK(::symlink("f", "link"));
  OK(set_times("link", {1000, 1}, {2000, 2}));
  CHECK(times_of("f").mtime == 2'000'000'000'002);
  OK(set_times("link", {3000, 3}, {4000, 4}, AT_SYMLINK_NOFOLLOW));
  CHECK(times_of("f").mtime == 2'000'000'000'002);
  CHECK(times_of("link").mtime == 4'000'000'000'004);
}

TEST_CASE("futimens: what is set after writing stays when the file is closed") {
  Fd fd = open_fd("f", O_CREAT | O_WRONLY);
  write_at(fd, "content");
  const timespec times[2] = {{1000, 1}, {2000, 2}};
  OK(::futimens(fd, times));
  CHECK(times_of(fd).mtime == 2'000'000'000'002);
  OK(fd.close());
  CHECK(times_of("f").atime == 1'000'000'000'001);
  CHECK(times_of("f").mtime == 2'000'000'000'002);
}

TEST_CASE("futimens: the far future too, where 64 bits of nanoseconds do not reach") {
  Fd fd = open_fd("f", O_CREAT | O_WRONLY);
  write_at(fd, "content");
  const timespec times[2] = {{12'000'000'000, 1}, {12'000'000'001, 2}};  // 2350
  OK(::futimens(fd, times));
  CHECK(fstat_of(fd).st_mtim.tv_sec == 12'000'000'001);
  OK(fd.close());
  const auto found = stat_of("f");
  CHECK(found.st_atim.tv_sec == 12'000'000'000);
  CHECK(found.st_mtim.tv_sec == 12'000'000'001);
  CHECK(found.st_mtim.tv_nsec == 2);
}

TEST_CASE("utimensat: by path while another descriptor has written and closes later") {
  make_file("f", "abc");
  Fd fd = open_fd("f", O_WRONLY);
  write_at(fd, "content");
  OK(set_times("f", {1000, 1}, {2000, 2}));
  OK(fd.close());
  CHECK(times_of("f").mtime == 2'000'000'000'002);
  CHECK(content_of("f") == "content");
}

TEST_CASE("utimensat: a write after it moves mtime again") {
  Fd fd = open_fd("f", O_CREAT | O_WRONLY);
  write_at(fd, "content");
  const timespec times[2] = {{1000, 1}, {2000, 2}};
  OK(::futimens(fd, times));
  write_at(fd, "CONTENT");
  OK(fd.close());
  CHECK(is_about(times_of("f").mtime, wall_ns()));
}

TEST_CASE("utimensat: an unlinked file, through its descriptor") {
  make_file("f");
  const Fd fd = open_fd("f", O_RDWR);
  OK(::unlink("f"));
  const timespec times[2] = {{1000, 1}, {2000, 2}};
  OK(::futimens(fd, times));
  CHECK(times_of(fd).mtime == 2'000'000'000'002);
}

TEST_CASE("utimensat: any time is the owner's to set; the current one also a writer's") {
  NEEDS_ROOT();
  make_file("f", {}, 0646);
  OK(::chown("f", kAlice.uid, kAlice.gid));
  const auto tries = [](const User& user, timespec atime, timespec mtime) {
    return as(user, [atime, mtime] { return set_times("f", atime, mtime); });
  };
  const timespec old{1000, 0};
  CHECK(tries(kAlice, old, old) == Errno{});
  CHECK(tries(kBob, old, old) == Errno{EPERM});
  CHECK(tries(kBob, kNow, old) == Errno{EPERM});
  CHECK(tries(kBob, kNow, kOmit) == Errno{EPERM});
  CHECK(tries(kBob, kOmit, kOmit) == Errno{});
  CHECK(tries(kBob, kNow, kNow) == Errno{});
  CHECK(as(kBob, [] { return ::utimensat(AT_FDCWD, "f", nullptr, 0); }) == Errno{});
  OK(::chmod("f", 0644));
  CHECK(tries(kBob, kNow, kNow) == Errno{EACCES});
  CHECK(as(kBob, [] { return ::utimensat(AT_FDCWD, "f", nullptr, 0); }) == Errno{EACCES});
  CHECK(tries(kAlice, kNow, kNow) == Errno{});
  OK(::chmod("f", 0));
  CHECK(tries(kAlice, kNow, kNow) == Errno{});
}

TEST_CASE("utimensat: nanoseconds out of range are EINVAL") {
  make_file("f");
  FAILS(EINVAL, set_times("f", {0, 1'000'000'000}, kOmit));
  FAILS(EINVAL, set_times("f", kOmit, {0, -1}));
  FAILS(EINVAL, set_times("f", kOmit, {0, 0}, 1 << 30));
}

TEST_CASE("utimensat: path errors") {
  make_file("f");
  OK(::symlink("loop", "loop"));
  FAILS(ENOENT, set_times("missing", kNow, kNow));
  FAILS(ENOENT, set_times("", kNow, kNow));
  FAILS(ENOTDIR, set_times("f/x", kNow, kNow));
  FAILS(ELOOP, set_times("loop", kNow, kNow));
  const timespec now[2] = {kNow, kNow};
  FAILS(EBADF, ::futimens(-1, now));
}

TEST_CASE("utimensat: utime, utimes, futimes and lutimes") {
  make_file("f");
  OK(::symlink("f", "link"));
  const utimbuf whole{1000, 2000};
  OK(::utime("f", &whole));
  CHECK(times_of("f").mtime == 2'000'000'000'000);
  const timeval micro[2] = {{3000, 7}, {4000, 999'999}};
  OK(::utimes("f", micro));
  CHECK(times_of("f").atime == 3'000'000'007'000);
  CHECK(times_of("f").mtime == 4'000'999'999'000);
  OK(::lutimes("link", micro));
  CHECK(times_of("link").mtime == 4'000'999'999'000);
}

}  // namespace
}  // namespace fermata::posix
