// splice(2) and tee(2): between a file and a pipe.
#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

struct Pipe {
  Pipe() {
    int fds[2];
    OK(::pipe2(fds, O_CLOEXEC));
    out = Fd(fds[0]);
    in = Fd(fds[1]);
  }
  Fd out, in;
};

TEST_CASE("splice: a file through a pipe into another file") {
  const std::string bytes = pattern(300'000);
  make_file("from", bytes);
  const Fd from = open_fd("from", O_RDONLY);
  Fd to = open_fd("to", O_CREAT | O_RDWR);
  const Pipe pipe;
  std::size_t done = 0;
  while (const ssize_t in = OK(::splice(from, nullptr, pipe.in, nullptr, 65536, 0))) {
    ssize_t left = in;
    while (left > 0)
      left -= OK(::splice(pipe.out, nullptr, to, nullptr, static_cast<std::size_t>(left), 0));
    done += static_cast<std::size_t>(in);
  }
  CHECK(done == bytes.size());
  OK(to.close());
  CHECK((content_of("to") == bytes));
}

TEST_CASE("splice: an offset that is given moves, the descriptor's stays") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDWR);
  const Pipe pipe;
  off_t from = 1;
  CHECK(OK(::splice(fd, &from, pipe.in, nullptr, 2, 0)) == 2);
  CHECK(from == 3);
  off_t to = 4;
  CHECK(OK(::splice(pipe.out, nullptr, fd, &to, 2, 0)) == 2);
  CHECK(to == 6);
  CHECK(::lseek(fd, 0, SEEK_CUR) == 0);
  CHECK(content_of("f") == "abcdbc");
}

TEST_CASE("splice: at the file's end nothing comes") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDONLY);
  const Pipe pipe;
  off_t end = 3;
  CHECK(OK(::splice(fd, &end, pipe.in, nullptr, 10, 0)) == 0);
}

TEST_CASE("tee: what a pipe holds goes into a file twice") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  const Fd out = open_fd("g", O_CREAT | O_RDWR);
  const Pipe one;
  const Pipe two;
  CHECK(OK(::splice(fd, nullptr, one.in, nullptr, 6, 0)) == 6);
  CHECK(OK(::tee(one.out, two.in, 6, 0)) == 6);
  CHECK(OK(::splice(one.out, nullptr, out, nullptr, 6, 0)) == 6);
  CHECK(OK(::splice(two.out, nullptr, out, nullptr, 6, 0)) == 6);
  CHECK(content_of("g") == "abcdefabcdef");
}

TEST_CASE("splice: refuses what it cannot use") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDWR);
  const Fd appender = open_fd("f", O_WRONLY | O_APPEND);
  const Pipe pipe;
  OK(::write(pipe.in, "x", 1));
  off_t at = 0;
  FAILS(EINVAL, ::splice(fd, nullptr, fd, nullptr, 1, 0));
  FAILS(ESPIPE, ::splice(fd, nullptr, pipe.in, &at, 1, 0));
  FAILS(EINVAL, ::splice(pipe.out, nullptr, appender, nullptr, 1, 0));
  FAILS(EBADF, ::splice(appender, nullptr, pipe.in, nullptr, 1, 0));
}

}  // namespace
}  // namespace fermata::posix
