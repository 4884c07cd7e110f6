// truncate(2), ftruncate(2).
#include <signal.h>
#include <sys/resource.h>

#include <limits>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("truncate: shrinks, and grows with zeros") {
  make_file("f", "abcdef");
  OK(::truncate("f", 3));
  CHECK(content_of("f") == "abc");
  OK(::truncate("f", 6));
  CHECK(content_of("f") == std::string("abc\0\0\0", 6));
  OK(::truncate("f", 0));
  CHECK(stat_of("f").st_size == 0);
}

TEST_CASE("truncate: what was cut off never comes back") {
  const std::string bytes = pattern(2'500'000);
  for (const off_t cut : {1, 4096, 70'000, 1'048'576, 1'500'000}) {
    CAPTURE(cut);
    make_file("f", bytes);
    OK(::truncate("f", cut));
    OK(::truncate("f", 2'500'000));
    const std::string all = content_of("f");
    const auto kept = static_cast<std::size_t>(cut);
    CHECK((all.substr(0, kept) == bytes.substr(0, kept)));
    CHECK((all.substr(kept) == std::string(bytes.size() - kept, '\0')));
  }
}

TEST_CASE("truncate: follows symlinks and is seen through open descriptors at once") {
  make_file("f", "abcdef");
  OK(::symlink("f", "link"));
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::truncate("link", 2));
  CHECK(fstat_of(fd).st_size == 2);
  CHECK(read_at(fd, 10) == "ab");
}

TEST_CASE("truncate: growing allocates nothing, shrinking frees") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(::ftruncate(fd, off_t{1} << 30));
  CHECK(fstat_of(fd).st_size == off_t{1} << 30);
  CHECK(fstat_of(fd).st_blocks < 64);
  write_at(fd, pattern(1 << 20));
  OK(::fsync(fd));
  CHECK(fstat_of(fd).st_blocks * 512 >= 1 << 20);
  OK(::ftruncate(fd, 0));
  CHECK(fstat_of(fd).st_blocks == 0);
}

TEST_CASE("ftruncate: changes the size under other descriptors, offsets stay") {
  make_file("f", "abcdef");
  const Fd one = open_fd("f", O_RDWR);
  const Fd two = open_fd("f", O_RDWR);
  OK(::lseek(one, 5, SEEK_SET));
  OK(::ftruncate(two, 2));
  CHECK(fstat_of(one).st_size == 2);
  CHECK(stat_of("f").st_size == 2);
  CHECK(::lseek(one, 0, SEEK_CUR) == 5);
  OK(::write(one, "X", 1));
  CHECK(content_of("f") == std::string("ab\0\0\0X", 6));
}

TEST_CASE("ftruncate: the size is there after close, written or not") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(::ftruncate(fd, 100'000));
  OK(fd.close());
  CHECK(stat_of("f").st_size == 100'000);
  Fd again = open_fd("f", O_RDWR);
  OK(::ftruncate(again, 7));
  OK(again.close());
  CHECK(content_of("f") == std::string(7, '\0'));
}

TEST_CASE("ftruncate: wants a regular file open for writing") {
  make_file("f", "abc");
  const Fd reader = open_fd("f", O_RDONLY);
  FAILS(EINVAL, ::ftruncate(reader, 0));
  const Fd dir = open_fd(".", O_RDONLY);
  FAILS(EINVAL, ::ftruncate(dir, 0));
  OK(::mkfifo("fifo", 0644));
  const Fd fifo = open_fd("fifo", O_RDWR);
  FAILS(EINVAL, ::ftruncate(fifo, 0));
  FAILS(EBADF, ::ftruncate(-1, 0));
}

TEST_CASE("truncate: only regular files") {
  make_dir("d");
  OK(::mkfifo("fifo", 0644));
  FAILS(EISDIR, ::truncate("d", 0));
  FAILS(EINVAL, ::truncate("fifo", 0));
}

TEST_CASE("truncate: path errors") {
  make_file("f");
  OK(::symlink("loop", "loop"));
  FAILS(ENOENT, ::truncate("missing", 0));
  FAILS(ENOENT, ::truncate("", 0));
  FAILS(ENOTDIR, ::truncate("f/x", 0));
  FAILS(ENOTDIR, ::truncate("f/", 0));
  FAILS(ELOOP, ::truncate("loop", 0));
}

TEST_CASE("truncate: a negative size is EINVAL, also of a missing file; a huge one EFBIG") {
  make_file("f", "abc");
  FAILS(EINVAL, ::truncate("f", -1));
  FAILS(EINVAL, ::truncate("missing", -1));
  FAILS(EFBIG, ::truncate("f", std::numeric_limits<off_t>::max()));
  CHECK(content_of("f") == "abc");
}

TEST_CASE("truncate: needs write permission, no descriptor open for writing does") {
  NEEDS_ROOT();
  make_file("f", "abc", 0644);
  CHECK(as(kAlice, [] { return ::truncate("f", 0); }) == Errno{EACCES});
  OK(::chmod("f", 0646));
  CHECK(as(kAlice, [] { return ::truncate("f", 1); }) == Errno{});
  CHECK(content_of("f") == "a");
  // The mode counts when a file is opened, not later.
  CHECK(as(kAlice, [] {
          const Fd fd = open_fd("f", O_WRONLY);
          return ::ftruncate(fd, 2);
        }) == Errno{});
}

TEST_CASE("truncate: beyond RLIMIT_FSIZE is EFBIG with SIGXFSZ") {
  make_file("f", "abc");
  const int result = in_child([] {
    static volatile sig_atomic_t signals = 0;
    ::signal(SIGXFSZ, [](int) { signals = signals + 1; });
    const rlimit limit{1000, 1000};
    OK(::setrlimit(RLIMIT_FSIZE, &limit));
    if (::truncate("f", 1000) != 0) return 1;
    if (::truncate("f", 1001) != -1 || errno != EFBIG) return 2;
    return signals == 1 ? 0 : 3;
  });
  CHECK(result == 0);
}

}  // namespace
}  // namespace fermata::posix
