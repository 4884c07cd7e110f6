// Access times, as the mount's options want them: relatime by default (a read is noted if the last
// noted one is not newer than the last change, or a day old), strictatime, noatime.
#include <sys/mman.h>
#include <sys/statvfs.h>

#include "test/posix/support/times.h"

namespace fermata::posix {
namespace {

enum class Rule { kNone, kRelative, kStrict };

Rule rule() {
  struct statvfs found {};
  OK(::statvfs(".", &found));
  if ((found.f_flag & ST_NOATIME) != 0) return Rule::kNone;
  return (found.f_flag & ST_RELATIME) != 0 ? Rule::kRelative : Rule::kStrict;
}

constexpr std::int64_t kSecond = 1'000'000'000;

/// Sets atime (s) and mtime (s), both long ago, so that ctime is newer than either.
void age(const char* path, time_t atime, time_t mtime) {
  const timespec times[2] = {{atime, 0}, {mtime, 0}};
  OK(::utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW));
  tick();
}

void read_file(const char* path, int flags = 0) {
  const Fd fd = open_fd(path, O_RDONLY | flags);
  char byte = 0;
  OK(::read(fd, &byte, 1));
}

TEST_CASE("atime: the first read after a change is noted") {
  make_file("f", "abc");
  age("f", 1000, 2000);
  read_file("f");
  if (rule() == Rule::kNone) {
    CHECK(times_of("f").atime == 1000 * kSecond);
  } else {
    CHECK(times_of("f").atime > 2000 * kSecond);
  }
  CHECK(times_of("f").mtime == 2000 * kSecond);
}

TEST_CASE("atime: a stat right after the reader's close shows the read") {
  if (rule() == Rule::kNone) SKIP("mounted with noatime");
  make_file("f", "abc");
  for (int round = 0; round < 300; ++round) {
    age("f", 1000, 2000);
    read_file("f");
    REQUIRE(times_of("f").atime > 2000 * kSecond);
  }
}

TEST_CASE("atime: it is seen through the descriptor that has read") {
  if (rule() == Rule::kNone) SKIP("mounted with noatime");
  make_file("f", "abc");
  age("f", 1000, 2000);
  const Fd fd = open_fd("f", O_RDONLY);
  char byte = 0;
  OK(::read(fd, &byte, 1));
  CHECK(times_of(fd).atime > 2000 * kSecond);
}

TEST_CASE("atime: a read right after the first one is noted by strictatime only") {
  make_file("f", "abc");
  age("f", 1000, 2000);
  read_file("f");
  const Times first = times_of("f");
  tick();
  read_file("f");
  if (rule() == Rule::kStrict) {
    CHECK(times_of("f").atime > first.atime);
  } else {
    CHECK(times_of("f").atime == first.atime);
  }
}

TEST_CASE("atime: reading moves neither mtime nor ctime") {
  make_file("f", "abc");
  age("f", 1000, 2000);
  const Watch watch("f");
  read_file("f");
  CHECK(watch.moved() == kNothing);
}

TEST_CASE("atime: opening is no reading, nor is reading nothing") {
  make_file("f", "abc");
  age("f", 1000, 2000);
  {
    const Fd fd = open_fd("f", O_RDONLY);
    char byte = 0;
    CHECK(::read(fd, &byte, 0) == 0);
    (void)fstat_of(fd);
  }
  CHECK(times_of("f").atime == 1000 * kSecond);
}

TEST_CASE("atime: O_NOATIME leaves it") {
  make_file("f", "abc");
  age("f", 1000, 2000);
  read_file("f", O_NOATIME);
  CHECK(times_of("f").atime == 1000 * kSecond);
}

TEST_CASE("atime: reading through a mapping counts") {
  if (rule() == Rule::kNone) SKIP("mounted with noatime");
  make_file("f", std::string(4096, 'x'));
  age("f", 1000, 2000);
  {
    const Fd fd = open_fd("f", O_RDONLY);
    void* map = OK(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0));
    CHECK(*static_cast<volatile char*>(map) == 'x');
    OK(::munmap(map, 4096));
  }
  CHECK(times_of("f").atime > 2000 * kSecond);
}

TEST_CASE("atime: listing a directory counts as reading it") {
  if (rule() == Rule::kNone) SKIP("mounted with noatime");
  make_dir("d");
  make_file("d/f");
  age("d", 1000, 2000);
  CHECK(names_in("d").size() == 1);
  CHECK(times_of("d").atime > 2000 * kSecond);
  CHECK(times_of("d").mtime == 2000 * kSecond);
}

TEST_CASE("atime: reading a symlink counts, following it too") {
  if (rule() == Rule::kNone) SKIP("mounted with noatime");
  OK(::symlink("target", "l"));
  age("l", 1000, 2000);
  char target[16];
  OK(::readlink("l", target, sizeof target));
  CHECK(times_of("l").atime > 2000 * kSecond);
}

TEST_CASE("atime: what a write leaves alone") {
  make_file("f", "abc");
  age("f", 1000, 2000);
  {
    const Fd fd = open_fd("f", O_RDWR);
    write_at(fd, "x");
  }
  CHECK(times_of("f").atime == 1000 * kSecond);
}

}  // namespace
}  // namespace fermata::posix
