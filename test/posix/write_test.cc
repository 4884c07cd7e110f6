// write(2), pwrite(2), writev(2), pwritev2(2).
#include <signal.h>
#include <sys/resource.h>
#include <sys/uio.h>

#include <limits>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("write: overwrites, extends, moves the offset and the size") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDWR);
  OK(::lseek(fd, 4, SEEK_SET));
  CHECK(OK(::write(fd, "WXYZ", 4)) == 4);
  CHECK(::lseek(fd, 0, SEEK_CUR) == 8);
  CHECK(fstat_of(fd).st_size == 8);
  CHECK(stat_of("f").st_size == 8);
  CHECK(content_of("f") == "abcdWXYZ");
}

TEST_CASE("write: large writes are taken whole") {
  const std::string bytes = pattern(5'000'001);
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  CHECK(OK(::write(fd, bytes.data(), bytes.size())) == static_cast<ssize_t>(bytes.size()));
  CHECK((read_at(fd, bytes.size()) == bytes));
}

TEST_CASE("write: beyond the end leaves a hole") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, "a");
  write_at(fd, "b", 1'000'000);
  CHECK(fstat_of(fd).st_size == 1'000'001);
  CHECK((read_at(fd, 999'999, 1) == std::string(999'999, '\0')));
}

TEST_CASE("write: nothing written changes nothing") {
  make_file("f", "abc");
  const auto before = stat_of("f");
  tick();
  const Fd fd = open_fd("f", O_WRONLY);
  CHECK(OK(::pwrite(fd, "", 0, 100)) == 0);
  const auto after = stat_of("f");
  CHECK(after.st_size == 3);
  CHECK(to_ns(after.st_mtim) == to_ns(before.st_mtim));
}

TEST_CASE("write: a descriptor for reading is EBADF") {
  make_file("f");
  const Fd fd = open_fd("f", O_RDONLY);
  FAILS(EBADF, ::write(fd, "x", 1));
  FAILS(EBADF, ::pwrite(fd, "x", 1, 0));
}

TEST_CASE("pwrite: leaves the offset alone and refuses a negative one") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDWR);
  OK(::pwrite(fd, "X", 1, 3));
  CHECK(::lseek(fd, 0, SEEK_CUR) == 0);
  CHECK(content_of("f") == "abcXef");
  FAILS(EINVAL, ::pwrite(fd, "X", 1, -1));
}

TEST_CASE("writev: gathers its buffers in order") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  char one[] = "ab";
  char two[] = "cdef";
  const iovec parts[] = {{one, 2}, {one, 0}, {two, 4}};
  CHECK(OK(::writev(fd, parts, 3)) == 6);
  CHECK(content_of("f") == "abcdef");
  FAILS(EINVAL, ::writev(fd, parts, -1));
}

TEST_CASE("pwritev2: RWF_APPEND appends whatever the offset says") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDWR);
  char bytes[] = "def";
  const iovec part{bytes, 3};
  CHECK(OK(::pwritev2(fd, &part, 1, 0, RWF_APPEND)) == 3);
  CHECK(content_of("f") == "abcdef");
  CHECK(OK(::pwritev2(fd, &part, 1, 0, RWF_DSYNC)) == 3);
  CHECK(OK(::pwritev2(fd, &part, 1, 3, RWF_SYNC)) == 3);
  CHECK(content_of("f") == "defdef");
}

TEST_CASE("write: beyond the largest file is EFBIG") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  FAILS(EFBIG, ::pwrite(fd, "x", 1, std::numeric_limits<off_t>::max() - 1));
  CHECK(fstat_of(fd).st_size == 0);
}

TEST_CASE("write: at RLIMIT_FSIZE it is cut, then EFBIG with SIGXFSZ") {
  const int result = in_child([] {
    static volatile sig_atomic_t signals = 0;
    ::signal(SIGXFSZ, [](int) { signals = signals + 1; });
    const rlimit limit{1000, 1000};
    OK(::setrlimit(RLIMIT_FSIZE, &limit));
    const Fd fd = open_fd("f", O_CREAT | O_RDWR);
    const std::string bytes(600, 'x');
    if (::write(fd, bytes.data(), 600) != 600) return 1;
    if (::write(fd, bytes.data(), 600) != 400) return 2;
    if (signals != 0) return 3;
    if (::write(fd, "x", 1) != -1 || errno != EFBIG) return 4;
    if (signals != 1) return 5;
    if (fstat_of(fd).st_size != 1000) return 6;
    return 0;
  });
  CHECK(result == 0);
}

TEST_CASE("write: concurrent writers of different places do not disturb each other") {
  constexpr int kProcesses = 4;
  constexpr std::size_t kSize = 64;
  make_file("f", std::string(kProcesses * 100 * kSize, '-'));
  {
    std::vector<std::unique_ptr<Child>> writers;
    for (int i = 0; i < kProcesses; ++i) {
      writers.push_back(std::make_unique<Child>([i](Child& self) {
        const Fd fd = open_fd("f", O_WRONLY);
        self.await();
        const std::string record(kSize, static_cast<char>('a' + i));
        for (int n = 0; n < 100; ++n) {
          write_at(fd, record, static_cast<off_t>((n * kProcesses + i) * int{kSize}));
        }
        return 0;
      }));
    }
    for (auto& writer : writers) writer->say();
    for (auto& writer : writers) CHECK(writer->join() == 0);
  }
  std::string expected;
  for (int n = 0; n < 100; ++n)
    for (int i = 0; i < kProcesses; ++i) expected += std::string(kSize, static_cast<char>('a' + i));
  CHECK((content_of("f") == expected));
}

}  // namespace
}  // namespace fermata::posix
