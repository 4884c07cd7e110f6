// fallocate(2), all modes, and posix_fallocate(3).
#include <linux/falloc.h>

#include <limits>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

constexpr off_t kKiB = 1024;

Fd file_of(const std::string& bytes) {
  make_file("f", bytes);
  return open_fd("f", O_RDWR);
}

TEST_CASE("fallocate: reserves space and grows the file with zeros") {
  const Fd fd = file_of("abc");
  OK(::fallocate(fd, 0, 0, 256 * kKiB));
  CHECK(fstat_of(fd).st_size == 256 * kKiB);
  CHECK(fstat_of(fd).st_blocks * 512 >= 256 * kKiB);
  CHECK((content_of("f") == "abc" + std::string(256 * kKiB - 3, '\0')));
  OK(::fallocate(fd, 0, 0, kKiB));  // already there
  CHECK(fstat_of(fd).st_size == 256 * kKiB);
}

TEST_CASE("fallocate: KEEP_SIZE reserves beyond the end and keeps the size") {
  const Fd fd = file_of("abc");
  OK(::fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 256 * kKiB));
  CHECK(fstat_of(fd).st_size == 3);
  CHECK(fstat_of(fd).st_blocks * 512 >= 256 * kKiB);
  CHECK(content_of("f") == "abc");
}

TEST_CASE("fallocate: PUNCH_HOLE makes zeros and gives the space back") {
  const std::string bytes = pattern(1024 * kKiB);
  const Fd fd = file_of(bytes);
  OK(::fsync(fd));
  const auto before = fstat_of(fd).st_blocks;
  OK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 256 * kKiB, 512 * kKiB));
  CHECK(fstat_of(fd).st_size == 1024 * kKiB);
  CHECK(fstat_of(fd).st_blocks * 512 <= before * 512 - 512 * kKiB);
  CHECK(::lseek(fd, 0, SEEK_HOLE) == 256 * kKiB);
  CHECK(::lseek(fd, 256 * kKiB, SEEK_DATA) == 768 * kKiB);
  std::string expected = bytes;
  expected.replace(256 * kKiB, 512 * kKiB, std::string(512 * kKiB, '\0'));
  CHECK((content_of("f") == expected));
}

TEST_CASE("fallocate: PUNCH_HOLE to the byte, within one block and across blocks") {
  const std::string bytes = pattern(64 * kKiB);
  const Fd fd = file_of(bytes);
  OK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 50));
  OK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 10'000));
  std::string expected = bytes;
  expected.replace(100, 50, std::string(50, '\0'));
  expected.replace(5000, 10'000, std::string(10'000, '\0'));
  CHECK((content_of("f") == expected));
}

TEST_CASE("fallocate: PUNCH_HOLE beyond the end changes nothing") {
  const Fd fd = file_of("abc");
  OK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 1000));
  CHECK(content_of("f") == "abc");
}

TEST_CASE("fallocate: PUNCH_HOLE without KEEP_SIZE is EOPNOTSUPP") {
  const Fd fd = file_of("abc");
  FAILS(EOPNOTSUPP, ::fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 1));
  CHECK(content_of("f") == "abc");
}

TEST_CASE("fallocate: ZERO_RANGE makes zeros and grows the file unless KEEP_SIZE") {
  const std::string bytes = pattern(64 * kKiB);
  const Fd fd = file_of(bytes);
  OK(::fallocate(fd, FALLOC_FL_ZERO_RANGE, 1000, 10'000));
  std::string expected = bytes;
  expected.replace(1000, 10'000, std::string(10'000, '\0'));
  CHECK((content_of("f") == expected));
  OK(::fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 60 * kKiB, 100 * kKiB));
  CHECK(fstat_of(fd).st_size == 64 * kKiB);
  OK(::fallocate(fd, FALLOC_FL_ZERO_RANGE, 60 * kKiB, 100 * kKiB));
  CHECK(fstat_of(fd).st_size == 160 * kKiB);
  expected.resize(60 * kKiB);
  expected.resize(160 * kKiB, '\0');
  CHECK((content_of("f") == expected));
}

TEST_CASE("fallocate: COLLAPSE_RANGE takes blocks out") {
  const std::string bytes = pattern(64 * kKiB);
  const Fd fd = file_of(bytes);
  OK(::fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 8 * kKiB, 16 * kKiB));
  CHECK((content_of("f") == bytes.substr(0, 8 * kKiB) + bytes.substr(24 * kKiB)));
}

TEST_CASE("fallocate: INSERT_RANGE puts a hole in") {
  const std::string bytes = pattern(64 * kKiB);
  const Fd fd = file_of(bytes);
  OK(::fallocate(fd, FALLOC_FL_INSERT_RANGE, 8 * kKiB, 16 * kKiB));
  CHECK((content_of("f") ==
         bytes.substr(0, 8 * kKiB) + std::string(16 * kKiB, '\0') + bytes.substr(8 * kKiB)));
}

TEST_CASE("fallocate: modes that exclude each other or are unknown are refused") {
  const Fd fd = file_of("abc");
  FAILS(EOPNOTSUPP, ::fallocate(fd, 1 << 20, 0, 1));
  const Errno both = outcome(
      ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE, 0, 1));
  CHECK((both == Errno{EOPNOTSUPP} || both == Errno{EINVAL}));
  CHECK(content_of("f") == "abc");
}

TEST_CASE("fallocate: a range must be positive and within the largest file") {
  const Fd fd = file_of("abc");
  FAILS(EINVAL, ::fallocate(fd, 0, 0, 0));
  FAILS(EINVAL, ::fallocate(fd, 0, 0, -1));
  FAILS(EINVAL, ::fallocate(fd, 0, -1, 1));
  FAILS(EFBIG, ::fallocate(fd, 0, 0, std::numeric_limits<off_t>::max()));
  FAILS(EFBIG, ::fallocate(fd, 0, std::numeric_limits<off_t>::max(), 1));
  CHECK(fstat_of(fd).st_size == 3);
}

TEST_CASE("fallocate: wants a regular file open for writing") {
  make_file("f");
  const Fd reader = open_fd("f", O_RDONLY);
  FAILS(EBADF, ::fallocate(reader, 0, 0, 1));
  const Fd dir = open_fd(".", O_RDONLY);
  FAILS(EBADF, ::fallocate(dir, 0, 0, 1));
  OK(::mkfifo("fifo", 0644));
  const Fd fifo = open_fd("fifo", O_RDWR);
  FAILS(ESPIPE, ::fallocate(fifo, 0, 0, 1));
}

TEST_CASE("fallocate: what was reserved, punched and zeroed is still so after close") {
  const std::string bytes = pattern(1024 * kKiB);
  Fd fd = file_of(bytes);
  OK(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 256 * kKiB));
  OK(::fallocate(fd, FALLOC_FL_ZERO_RANGE, 512 * kKiB, 256 * kKiB));
  OK(::fallocate(fd, 0, 1024 * kKiB, 256 * kKiB));
  OK(fd.close());
  std::string expected = bytes;
  expected.replace(0, 256 * kKiB, std::string(256 * kKiB, '\0'));
  expected.replace(512 * kKiB, 256 * kKiB, std::string(256 * kKiB, '\0'));
  expected.resize(1280 * kKiB);
  CHECK((content_of("f") == expected));
}

TEST_CASE("posix_fallocate: returns the error and leaves errno") {
  const Fd fd = file_of("abc");
  CHECK(::posix_fallocate(fd, 0, 64 * kKiB) == 0);
  CHECK(fstat_of(fd).st_size == 64 * kKiB);
  CHECK(::posix_fallocate(fd, 0, 0) == EINVAL);
  const Fd reader = open_fd("f", O_RDONLY);
  CHECK(::posix_fallocate(reader, 0, 1) == EBADF);
}

}  // namespace
}  // namespace fermata::posix
