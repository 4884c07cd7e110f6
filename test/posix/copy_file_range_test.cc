// copy_file_range(2): what cp and install use.
#include <limits>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

/// Until all is copied or the source ends; offsets null.
std::size_t copy_all(int in, int out, std::size_t size) {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t got = OK(::copy_file_range(in, nullptr, out, nullptr, size - done, 0));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

TEST_CASE("copy_file_range: copies and moves both offsets") {
  make_file("in", "abcdef");
  const Fd in = open_fd("in", O_RDONLY);
  const Fd out = open_fd("out", O_CREAT | O_RDWR);
  OK(::lseek(in, 1, SEEK_SET));
  CHECK(copy_all(in, out, 3) == 3);
  CHECK(::lseek(in, 0, SEEK_CUR) == 4);
  CHECK(::lseek(out, 0, SEEK_CUR) == 3);
  CHECK(content_of("out") == "bcd");
}

TEST_CASE("copy_file_range: offsets that are given move, the descriptors' stay") {
  make_file("in", "abcdef");
  make_file("out", "------");
  const Fd in = open_fd("in", O_RDONLY);
  const Fd out = open_fd("out", O_RDWR);
  off_t from = 3;
  off_t to = 1;
  CHECK(OK(::copy_file_range(in, &from, out, &to, 2, 0)) == 2);
  CHECK(from == 5);
  CHECK(to == 3);
  CHECK(::lseek(in, 0, SEEK_CUR) == 0);
  CHECK(::lseek(out, 0, SEEK_CUR) == 0);
  CHECK(content_of("out") == "-de---");
}

TEST_CASE("copy_file_range: ends at the source's end, then returns 0") {
  make_file("in", "abc");
  const Fd in = open_fd("in", O_RDONLY);
  const Fd out = open_fd("out", O_CREAT | O_RDWR);
  CHECK(OK(::copy_file_range(in, nullptr, out, nullptr, 1000, 0)) == 3);
  CHECK(OK(::copy_file_range(in, nullptr, out, nullptr, 1000, 0)) == 0);
  off_t beyond = 100;
  CHECK(OK(::copy_file_range(in, &beyond, out, nullptr, 1000, 0)) == 0);
  CHECK(content_of("out") == "abc");
}

TEST_CASE("copy_file_range: large files, and what was written but not closed") {
  const std::string bytes = pattern(5'000'001);
  const Fd in = open_fd("in", O_CREAT | O_RDWR);
  write_at(in, bytes);
  Fd out = open_fd("out", O_CREAT | O_RDWR);
  CHECK(copy_all(in, out, bytes.size() + 10) == bytes.size());
  CHECK((read_at(out, bytes.size() + 10) == bytes));
  OK(out.close());
  CHECK((content_of("out") == bytes));
}

TEST_CASE("copy_file_range: within one file, but not over itself") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDWR);
  off_t from = 0;
  off_t to = 3;
  CHECK(OK(::copy_file_range(fd, &from, fd, &to, 3, 0)) == 3);
  CHECK(content_of("f") == "abcabc");
  from = 0;
  to = 2;
  FAILS(EINVAL, ::copy_file_range(fd, &from, fd, &to, 3, 0));
}

TEST_CASE("copy_file_range: beyond the target's end leaves a hole") {
  make_file("in", "abc");
  make_file("out", "x");
  const Fd in = open_fd("in", O_RDONLY);
  const Fd out = open_fd("out", O_RDWR);
  off_t to = 100'000;
  CHECK(OK(::copy_file_range(in, nullptr, out, &to, 3, 0)) == 3);
  CHECK(stat_of("out").st_size == 100'003);
  CHECK(read_at(out, 5, 99'998) == std::string("\0\0abc", 5));
}

TEST_CASE("copy_file_range: wants a readable and a writable regular file, not appending") {
  make_file("f", "abc");
  make_file("g");
  const Fd reader = open_fd("f", O_RDONLY);
  const Fd writer = open_fd("g", O_WRONLY);
  const Fd appender = open_fd("g", O_WRONLY | O_APPEND);
  const Fd dir = open_fd(".", O_RDONLY);
  OK(::mkfifo("fifo", 0644));
  const Fd fifo = open_fd("fifo", O_RDWR);
  FAILS(EBADF, ::copy_file_range(writer, nullptr, writer, nullptr, 1, 0));
  FAILS(EBADF, ::copy_file_range(reader, nullptr, reader, nullptr, 1, 0));
  FAILS(EBADF, ::copy_file_range(reader, nullptr, appender, nullptr, 1, 0));
  FAILS(EISDIR, ::copy_file_range(dir, nullptr, writer, nullptr, 1, 0));
  FAILS(EINVAL, ::copy_file_range(fifo, nullptr, writer, nullptr, 1, 0));
  FAILS(EINVAL, ::copy_file_range(reader, nullptr, writer, nullptr, 1, 1));
  FAILS(EBADF, ::copy_file_range(-1, nullptr, writer, nullptr, 1, 0));
}

TEST_CASE("copy_file_range: beyond the largest file is EFBIG") {
  make_file("f", "abc");
  const Fd in = open_fd("f", O_RDONLY);
  const Fd out = open_fd("g", O_CREAT | O_RDWR);
  off_t to = std::numeric_limits<off_t>::max();
  FAILS(EFBIG, ::copy_file_range(in, nullptr, out, &to, 3, 0));
  off_t far = std::numeric_limits<off_t>::max() - 10;
  FAILS(EFBIG, ::copy_file_range(in, nullptr, out, &far, 3, 0));
  CHECK(fstat_of(out).st_size == 0);
}

}  // namespace
}  // namespace fermata::posix
