// lseek(2), with SEEK_DATA and SEEK_HOLE. Filesystems may see data where there is a hole but never
// the other way round; these cases use holes of 256 KiB, which each sees.
#include <sys/socket.h>

#include <limits>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

constexpr off_t kStep = 256 * 1024;
constexpr off_t kMax = std::numeric_limits<off_t>::max();

TEST_CASE("lseek: from the start, the offset and the end") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  CHECK(OK(::lseek(fd, 2, SEEK_SET)) == 2);
  CHECK(OK(::lseek(fd, 3, SEEK_CUR)) == 5);
  CHECK(OK(::lseek(fd, -1, SEEK_END)) == 5);
  CHECK(OK(::lseek(fd, 100, SEEK_END)) == 106);
  CHECK(OK(::lseek(fd, -106, SEEK_CUR)) == 0);
}

TEST_CASE("lseek: SEEK_END follows the size at once, whoever changed it") {
  make_file("f", "abcdef");
  const Fd reader = open_fd("f", O_RDONLY);
  const Fd writer = open_fd("f", O_WRONLY | O_APPEND);
  OK(::write(writer, "ghi", 3));
  CHECK(::lseek(reader, 0, SEEK_END) == 9);
  OK(::ftruncate(writer, 1));
  CHECK(::lseek(reader, 0, SEEK_END) == 1);
  OK(::truncate("f", 4));
  CHECK(::lseek(reader, 0, SEEK_END) == 4);
}

TEST_CASE("lseek: before the start, or by an unknown rule, is EINVAL and moves nothing") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::lseek(fd, 2, SEEK_SET));
  FAILS(EINVAL, ::lseek(fd, -1, SEEK_SET));
  FAILS(EINVAL, ::lseek(fd, -3, SEEK_CUR));
  FAILS(EINVAL, ::lseek(fd, -7, SEEK_END));
  FAILS(EINVAL, ::lseek(fd, 0, 17));
  CHECK(::lseek(fd, 0, SEEK_CUR) == 2);
}

TEST_CASE("lseek: a FIFO cannot seek") {
  OK(::mkfifo("fifo", 0644));
  const Fd fd = open_fd("fifo", O_RDWR);
  FAILS(ESPIPE, ::lseek(fd, 0, SEEK_SET));
}

TEST_CASE("lseek: duplicates and children share the offset") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  const Fd twin(OK(::dup(fd)));
  OK(::lseek(fd, 3, SEEK_SET));
  CHECK(::lseek(twin, 0, SEEK_CUR) == 3);
  CHECK(in_child([&] { return ::lseek(fd, 5, SEEK_SET) == 5 ? 0 : 1; }) == 0);
  CHECK(::lseek(twin, 0, SEEK_CUR) == 5);
}

/// Data in steps 1 and 3 of four, a hole at the end.
Fd striped() {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  const std::string bytes(kStep, 'd');
  OK(::ftruncate(fd, 5 * kStep));
  write_at(fd, bytes, 1 * kStep);
  write_at(fd, bytes, 3 * kStep);
  return fd;
}

void check_stripes(int fd) {
  CHECK(::lseek(fd, 0, SEEK_DATA) == 1 * kStep);
  CHECK(::lseek(fd, 1 * kStep + 5, SEEK_DATA) == 1 * kStep + 5);
  CHECK(::lseek(fd, 2 * kStep, SEEK_DATA) == 3 * kStep);
  FAILS(ENXIO, ::lseek(fd, 4 * kStep, SEEK_DATA));
  CHECK(::lseek(fd, 5, SEEK_HOLE) == 5);
  CHECK(::lseek(fd, 1 * kStep, SEEK_HOLE) == 2 * kStep);
  CHECK(::lseek(fd, 3 * kStep + 5, SEEK_HOLE) == 4 * kStep);
}

TEST_CASE("lseek: SEEK_DATA and SEEK_HOLE find the edges, and move the offset") {
  const Fd fd = striped();
  check_stripes(fd);
  OK(::lseek(fd, 0, SEEK_DATA));
  CHECK(::lseek(fd, 0, SEEK_CUR) == kStep);
}

TEST_CASE("lseek: holes are still there after close") {
  OK(striped().close());
  const Fd fd = open_fd("f", O_RDONLY);
  check_stripes(fd);
}

TEST_CASE("lseek: the end of a file counts as a hole") {
  make_file("f", std::string(kStep, 'd'));
  const Fd fd = open_fd("f", O_RDONLY);
  CHECK(::lseek(fd, 0, SEEK_DATA) == 0);
  CHECK(::lseek(fd, 0, SEEK_HOLE) == kStep);
  CHECK(::lseek(fd, kStep - 1, SEEK_HOLE) == kStep);
}

TEST_CASE("lseek: SEEK_DATA and SEEK_HOLE at the end, beyond it or before the start are ENXIO") {
  make_file("f", "abc");
  make_file("empty");
  const Fd fd = open_fd("f", O_RDONLY);
  const Fd empty = open_fd("empty", O_RDONLY);
  for (const int whence : {SEEK_DATA, SEEK_HOLE}) {
    CAPTURE(whence);
    FAILS(ENXIO, ::lseek(fd, 3, whence));
    FAILS(ENXIO, ::lseek(fd, 100, whence));
    FAILS(ENXIO, ::lseek(fd, kMax, whence));
    FAILS(ENXIO, ::lseek(fd, -1, whence));
    FAILS(ENXIO, ::lseek(empty, 0, whence));
  }
}

}  // namespace
}  // namespace fermata::posix
