// sendfile(2): from a file to anything.
#include <sys/sendfile.h>
#include <sys/socket.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("sendfile: from file to file, moving both offsets") {
  const std::string bytes = pattern(300'000);
  make_file("in", bytes);
  const Fd in = open_fd("in", O_RDONLY);
  const Fd out = open_fd("out", O_CREAT | O_RDWR);
  std::size_t done = 0;
  while (const ssize_t sent = OK(::sendfile(out, in, nullptr, 1 << 20)))
    done += static_cast<std::size_t>(sent);
  CHECK(done == bytes.size());
  CHECK((content_of("out") == bytes));
  CHECK(::lseek(in, 0, SEEK_CUR) == static_cast<off_t>(bytes.size()));
}

TEST_CASE("sendfile: an offset that is given moves, the descriptor's stays") {
  make_file("in", "abcdef");
  const Fd in = open_fd("in", O_RDONLY);
  const Fd out = open_fd("out", O_CREAT | O_RDWR);
  off_t from = 2;
  CHECK(OK(::sendfile(out, in, &from, 3)) == 3);
  CHECK(from == 5);
  CHECK(::lseek(in, 0, SEEK_CUR) == 0);
  CHECK(content_of("out") == "cde");
}

TEST_CASE("sendfile: to a socket") {
  make_file("in", "abcdef");
  const Fd in = open_fd("in", O_RDONLY);
  int pair[2];
  OK(::socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
  const Fd near(pair[0]);
  const Fd far(pair[1]);
  CHECK(OK(::sendfile(near, in, nullptr, 100)) == 6);
  char buffer[10];
  CHECK(OK(::read(far, buffer, sizeof buffer)) == 6);
  CHECK(std::string(buffer, 6) == "abcdef");
}

TEST_CASE("sendfile: refuses what it cannot use") {
  make_file("in", "abcdef");
  make_file("out");
  const Fd in = open_fd("in", O_RDONLY);
  const Fd out = open_fd("out", O_WRONLY);
  const Fd appender = open_fd("out", O_WRONLY | O_APPEND);
  FAILS(EBADF, ::sendfile(out, out, nullptr, 1));
  FAILS(EBADF, ::sendfile(in, in, nullptr, 1));
  FAILS(EINVAL, ::sendfile(appender, in, nullptr, 1));
  off_t negative = -1;
  FAILS(EINVAL, ::sendfile(out, in, &negative, 1));
}

}  // namespace
}  // namespace fermata::posix
