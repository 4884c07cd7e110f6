// Which operation moves which time: the rules of POSIX, and Linux where POSIX leaves a choice.
// Access times have a file of their own (atime_test.cc).
#include "test/posix/support/times.h"

#include <sys/mman.h>
#include <sys/xattr.h>
#include <time.h>

#include <cstring>

namespace fermata::posix {
namespace {

TEST_CASE("times: a new file's are the present, all three the same") {
  constexpr std::int64_t kSlack = 2'000'000'000;  // between two machines' clocks
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  make_dir("d");
  OK(::symlink("x", "l"));
  OK(::mkfifo("p", 0644));
  const Fd fd(OK(::open("f", O_CREAT | O_WRONLY, 0644)));
  for (const char* name : {"f", "l", "p"}) {
    CAPTURE(name);
    const Times times = times_of(name);
    CHECK(times.atime == times.mtime);
    CHECK(times.mtime == times.ctime);
    CHECK(times.mtime > to_ns(now) - kSlack);
    CHECK(times.mtime < to_ns(now) + kSlack);
  }
}

TEST_CASE("times: making a name moves the directory's mtime and ctime") {
  make_dir("d");
  make_file("f");
  const std::function<void()> makers[] = {
      [] { make_file("d/file"); },          [] { make_dir("d/dir"); },
      [] { OK(::symlink("x", "d/link")); }, [] { OK(::mkfifo("d/fifo", 0644)); },
      [] { OK(::link("f", "d/hard")); },    [] { OK(::rename("f", "d/moved")); },
  };
  int number = 0;
  for (const auto& make : makers) {
    CAPTURE(number++);
    const Watch watch("d");
    make();
    CHECK(watch.moved() == kModification);
  }
}

TEST_CASE("times: taking a name away moves the directory's mtime and ctime") {
  make_dir("d");
  make_file("d/file");
  make_dir("d/dir");
  make_file("d/other");
  const std::function<void()> removers[] = {
      [] { OK(::unlink("d/file")); },
      [] { OK(::rmdir("d/dir")); },
      [] { OK(::rename("d/other", "out")); },
  };
  int number = 0;
  for (const auto& remove : removers) {
    CAPTURE(number++);
    const Watch watch("d");
    remove();
    CHECK(watch.moved() == kModification);
  }
}

TEST_CASE("times: changes deeper down or of an entry's file leave the directory alone") {
  make_dir("d");
  make_dir("d/e");
  make_file("d/f", "abc");
  const Watch watch("d");
  make_file("d/e/new");
  OK(::chmod("d/f", 0600));
  make_file("d/f", "changed");
  (void)content_of("d/f");
  OK(::access("d/f", F_OK));
  CHECK(watch.moved() == kNothing);
}

TEST_CASE("times: calls that fail move nothing") {
  make_dir("d");
  make_dir("d/full");
  make_file("d/full/f");
  make_file("d/f");
  const Watch dir("d");
  const Watch file("d/f");
  FAILS(EEXIST, ::open("d/f", O_CREAT | O_EXCL | O_RDWR, 0644));
  FAILS(EEXIST, ::mkdir("d/f", 0755));
  FAILS(ENOENT, ::unlink("d/missing"));
  FAILS(EISDIR, ::unlink("d/full"));
  FAILS(ENOTEMPTY, ::rmdir("d/full"));
  FAILS(ENOENT, ::rename("d/missing", "d/x"));
  FAILS(EISDIR, ::rename("d/f", "d/full"));
  FAILS(EEXIST, ::link("d/f", "d/full"));
  CHECK(dir.moved() == kNothing);
  CHECK(file.moved() == kNothing);
}

TEST_CASE("times: a new or lost link moves the file's ctime") {
  make_file("f");
  const Watch linked("f");
  OK(::link("f", "g"));
  CHECK(linked.moved() == kStatus);
  const Watch unlinked("f");
  OK(::unlink("g"));
  CHECK(unlinked.moved() == kStatus);
  make_file("h");
  OK(::link("f", "g"));
  const Watch replaced("f");
  OK(::rename("h", "g"));
  CHECK(replaced.moved() == kStatus);
}

TEST_CASE("times: rename moves the ctime of what it renames and nothing of its content") {
  make_file("f");
  make_dir("d");
  const Watch file("f");
  const Watch dir("d");
  OK(::rename("f", "f2"));
  OK(::rename("d", "d2"));
  CHECK(file.moved(times_of("f2")) == kStatus);
  CHECK(dir.moved(times_of("d2")) == kStatus);
}

TEST_CASE("times: rename moves mtime and ctime of both directories") {
  make_dir("a");
  make_dir("b");
  make_file("a/f");
  const Watch a("a");
  const Watch b("b");
  OK(::rename("a/f", "b/f"));
  CHECK(a.moved() == kModification);
  CHECK(b.moved() == kModification);
}

TEST_CASE("times: write moves mtime and ctime, seen at once and kept by close") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  const Watch watch("f");
  write_at(fd, "content");
  CHECK(watch.moved(times_of(fd)) == kModification);
  CHECK(watch.moved() == kModification);
  const Times written = times_of("f");
  tick();
  OK(fd.close());
  CHECK(times_of("f").mtime == written.mtime);
}

TEST_CASE("times: writing the bytes that are there already counts as a write") {
  make_file("f", "abc");
  const Watch watch("f");
  Fd fd = open_fd("f", O_WRONLY);
  write_at(fd, "abc");
  OK(fd.close());
  CHECK(watch.moved() == kModification);
}

TEST_CASE("times: opening and closing without a write moves nothing") {
  make_file("f", "abc");
  const Watch watch("f");
  OK(open_fd("f", O_RDWR).close());
  OK(open_fd("f", O_RDONLY).close());
  OK(open_fd("f", O_RDWR | O_CREAT).close());
  Fd fd = open_fd("f", O_WRONLY);
  OK(::fsync(fd));
  OK(fd.close());
  CHECK(watch.moved() == kNothing);
}

TEST_CASE("times: O_TRUNC moves mtime and ctime, also of an empty file") {
  make_file("f", "abc");
  for (int round = 0; round < 2; ++round) {
    CAPTURE(round);
    const Watch watch("f");
    OK(open_fd("f", O_WRONLY | O_TRUNC).close());
    CHECK(watch.moved() == kModification);
  }
}

TEST_CASE(
    "times: truncate and ftruncate move mtime and ctime, also to the same size, as on Linux") {
  make_file("f", "abc");
  const Watch shrunk("f");
  OK(::truncate("f", 1));
  CHECK(shrunk.moved() == kModification);
  const Watch same("f");
  OK(::truncate("f", 1));
  CHECK(same.moved() == kModification);
  const Fd fd = open_fd("f", O_WRONLY);
  const Watch by_descriptor("f");
  OK(::ftruncate(fd, 1));
  CHECK(by_descriptor.moved() == kModification);
}

TEST_CASE("times: fallocate moves mtime and ctime, in every mode") {
  make_file("f", pattern(100'000));
  for (const int mode :
       {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE}) {
    CAPTURE(mode);
    const Watch watch("f");
    Fd fd = open_fd("f", O_RDWR);
    OK(::fallocate(fd, mode, 0, 200'000));
    CHECK(watch.moved() == kModification);
    OK(fd.close());
    CHECK(watch.moved() == kModification);
  }
}

TEST_CASE("times: copy_file_range moves those of the target, not of the source") {
  make_file("in", "abc");
  make_file("out", "xyz");
  const Watch in("in");
  const Watch out("out");
  {
    const Fd from = open_fd("in", O_RDONLY);
    const Fd to = open_fd("out", O_WRONLY);
    OK(::copy_file_range(from, nullptr, to, nullptr, 3, 0));
  }
  CHECK(in.moved() == kNothing);
  CHECK(out.moved() == kModification);
}

TEST_CASE("times: a store through a shared mapping moves mtime and ctime by msync") {
  make_file("f", std::string(4096, '-'));
  const Watch watch("f");
  const Fd fd = open_fd("f", O_RDWR);
  void* map = OK(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  std::memcpy(map, "stored", 6);
  OK(::msync(map, 4096, MS_SYNC));
  CHECK(watch.moved() == kModification);
  OK(::munmap(map, 4096));
}

TEST_CASE("times: changing an xattr moves ctime") {
  make_file("f");
  const Watch set("f");
  OK(::setxattr("f", "user.a", "x", 1, 0));
  CHECK(set.moved() == kStatus);
  const Watch got("f");
  char byte = 0;
  OK(::getxattr("f", "user.a", &byte, 1));
  CHECK(got.moved() == kNothing);
  const Watch removed("f");
  OK(::removexattr("f", "user.a"));
  CHECK(removed.moved() == kStatus);
}

TEST_CASE("times: they never run backwards over a series of changes") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  Times last = times_of("f");
  const auto check = [&] {
    const Times now = times_of("f");
    CHECK(now.mtime >= last.mtime);
    CHECK(now.ctime >= last.ctime);
    last = now;
  };
  for (int i = 0; i < 5; ++i) {
    write_at(fd, "x", i);
    check();
    OK(::fchmod(fd, 0600));
    check();
    OK(::fsync(fd));
    check();
    OK(::ftruncate(fd, 3));
    check();
  }
}

}  // namespace
}  // namespace fermata::posix
