// read(2), pread(2), readv(2), preadv2(2).
#include <limits.h>
#include <sys/uio.h>

#include <limits>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("read: returns what is there, then 0 at the end and beyond it") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  char buffer[10];
  CHECK(OK(::read(fd, buffer, 4)) == 4);
  CHECK(std::string(buffer, 4) == "abcd");
  CHECK(OK(::read(fd, buffer, sizeof buffer)) == 2);
  CHECK(std::string(buffer, 2) == "ef");
  CHECK(OK(::read(fd, buffer, sizeof buffer)) == 0);
  OK(::lseek(fd, 1000, SEEK_SET));
  CHECK(OK(::read(fd, buffer, sizeof buffer)) == 0);
  CHECK(OK(::read(fd, buffer, 0)) == 0);
}

TEST_CASE("read: large reads return the whole") {
  const std::string bytes = pattern(5'000'001);
  make_file("f", bytes);
  const Fd fd = open_fd("f", O_RDONLY);
  std::string got(bytes.size(), '\0');
  CHECK(OK(::read(fd, got.data(), got.size())) == static_cast<ssize_t>(bytes.size()));
  CHECK((got == bytes));
}

TEST_CASE("read: holes read as zeros") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, "end", 300'000);
  const std::string all = read_at(fd, 400'000);
  CHECK((all == std::string(300'000, '\0') + "end"));
}

TEST_CASE("read: a directory is EISDIR, a descriptor for writing EBADF") {
  char byte = 0;
  const Fd dir = open_fd(".", O_RDONLY);
  FAILS(EISDIR, ::read(dir, &byte, 1));
  FAILS(EISDIR, ::pread(dir, &byte, 1, 0));
  const Fd writer = open_fd("f", O_CREAT | O_WRONLY);
  FAILS(EBADF, ::read(writer, &byte, 1));
  FAILS(EBADF, ::pread(writer, &byte, 1, 0));
}

TEST_CASE("pread: leaves the offset alone and refuses a negative one") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::lseek(fd, 2, SEEK_SET));
  char buffer[3];
  CHECK(OK(::pread(fd, buffer, 3, 3)) == 3);
  CHECK(std::string(buffer, 3) == "def");
  CHECK(::lseek(fd, 0, SEEK_CUR) == 2);
  FAILS(EINVAL, ::pread(fd, buffer, 3, -1));
  FAILS(EINVAL, ::pread(fd, buffer, 3, std::numeric_limits<off_t>::max() - 1));
}

TEST_CASE("pread: far beyond the end is the end") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  char byte = 0;
  CHECK(OK(::pread(fd, &byte, 1, off_t{1} << 50)) == 0);
}

TEST_CASE("readv: fills its buffers in order, and counts them") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  char one[2];
  char two[8] = {};
  const iovec parts[] = {{one, sizeof one}, {one, 0}, {two, sizeof two}};
  CHECK(OK(::readv(fd, parts, 3)) == 6);
  CHECK(std::string(one, 2) == "ab");
  CHECK(std::string(two) == "cdef");
  FAILS(EINVAL, ::readv(fd, parts, -1));
  const std::vector<iovec> many(IOV_MAX + 1, iovec{one, 1});
  FAILS(EINVAL, ::readv(fd, many.data(), IOV_MAX + 1));
}

TEST_CASE("preadv2: offset -1 is the current one; unknown flags are EOPNOTSUPP") {
  make_file("f", "abcdef");
  const Fd fd = open_fd("f", O_RDONLY);
  char buffer[3];
  const iovec part{buffer, sizeof buffer};
  CHECK(OK(::preadv2(fd, &part, 1, 3, 0)) == 3);
  CHECK(std::string(buffer, 3) == "def");
  CHECK(::lseek(fd, 0, SEEK_CUR) == 0);
  CHECK(OK(::preadv2(fd, &part, 1, -1, 0)) == 3);
  CHECK(::lseek(fd, 0, SEEK_CUR) == 3);
  FAILS(EOPNOTSUPP, ::preadv2(fd, &part, 1, 0, 1 << 30));
}

}  // namespace
}  // namespace fermata::posix
