// fsync(2), fdatasync(2), syncfs(2), sync_file_range(2), sync(2). That data survives is for tests
// that cut the power; here: who may call them on what, and that they report success.
#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("fsync: files open for writing, for reading, and directories") {
  const Fd writer = open_fd("f", O_CREAT | O_WRONLY);
  write_at(writer, "content");
  OK(::fsync(writer));
  OK(::fdatasync(writer));
  write_at(writer, "more", 100);
  const Fd reader = open_fd("f", O_RDONLY);
  OK(::fsync(reader));
  OK(::fdatasync(reader));
  const Fd dir = open_fd(".", O_RDONLY);
  OK(::fsync(dir));
  OK(::fdatasync(dir));
  CHECK(content_of("f").size() == 104);
}

TEST_CASE("fsync: an unlinked file, and a clean one again and again") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  for (int i = 0; i < 3; ++i) OK(::fsync(fd));
  OK(::unlink("f"));
  write_at(fd, "content");
  OK(::fsync(fd));
  OK(::fdatasync(fd));
  CHECK(read_at(fd, 9) == "content");
}

TEST_CASE("fsync: what has nothing to sync is EINVAL or EBADF") {
  OK(::mkfifo("fifo", 0644));
  const Fd fifo = open_fd("fifo", O_RDWR);
  FAILS(EINVAL, ::fsync(fifo));
  FAILS(EINVAL, ::fdatasync(fifo));
  FAILS(EBADF, ::fsync(-1));
  FAILS(EBADF, ::fdatasync(-1));
}

TEST_CASE("syncfs: through any descriptor") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, "content");
  OK(::syncfs(fd));
  const Fd dir = open_fd(".", O_RDONLY);
  OK(::syncfs(dir));
  FAILS(EBADF, ::syncfs(-1));
}

TEST_CASE("sync_file_range: ranges, flags and errors") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  write_at(fd, pattern(100'000));
  constexpr unsigned kAll =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  OK(::sync_file_range(fd, 0, 0, kAll));
  OK(::sync_file_range(fd, 4096, 8192, SYNC_FILE_RANGE_WRITE));
  FAILS(EINVAL, ::sync_file_range(fd, -1, 10, kAll));
  FAILS(EINVAL, ::sync_file_range(fd, 0, -1, kAll));
  FAILS(EINVAL, ::sync_file_range(fd, 0, 0, 1u << 20));
  OK(::mkfifo("fifo", 0644));
  const Fd fifo = open_fd("fifo", O_RDWR);
  FAILS(ESPIPE, ::sync_file_range(fifo, 0, 0, kAll));
}

}  // namespace
}  // namespace fermata::posix
