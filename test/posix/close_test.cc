// close(2): what others see afterwards, and which descriptors it ends.
#include <signal.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

// Around the sizes at which a filesystem changes how it keeps content: blocks, inline, chunks.
constexpr std::size_t kSizes[] = {
    0,     1,     4095,     4096,           4097,           65535,
    65536, 65537, 1u << 20, (1u << 20) - 1, (1u << 20) + 1, 3 * (1u << 20) + 17};

TEST_CASE("close: content of every size is there afterwards") {
  for (const std::size_t size : kSizes) {
    CAPTURE(size);
    const std::string bytes = pattern(size);
    Fd fd = open_fd("f", O_CREAT | O_WRONLY | O_TRUNC);
    write_at(fd, bytes);
    OK(fd.close());
    CHECK(stat_of("f").st_size == static_cast<off_t>(size));
    CHECK((content_of("f") == bytes));
  }
}

TEST_CASE("close: a file that grows from close to close keeps all of it") {
  std::string all;
  for (const std::size_t size : kSizes) {
    CAPTURE(size);
    const std::string piece = pattern(size, static_cast<unsigned>(size));
    Fd fd = open_fd("f", O_CREAT | O_WRONLY | O_APPEND);
    if (size != 0) OK(::write(fd, piece.data(), size));
    OK(fd.close());
    all += piece;
    CHECK((content_of("f") == all));
  }
}

TEST_CASE("close: a file that shrinks from close to close keeps what is left") {
  const std::string all = pattern(3 * (1u << 20) + 17);
  make_file("f", all);
  for (const std::size_t size : {2u << 20, (1u << 20) + 5, 1u << 20, 70'000u, 65'536u, 10u, 0u}) {
    CAPTURE(size);
    OK(::truncate("f", static_cast<off_t>(size)));
    CHECK((content_of("f") == all.substr(0, size)));
  }
}

TEST_CASE("close: small changes in a large file stay where they were made") {
  std::string all = pattern(3 * (1u << 20));
  make_file("f", all);
  for (const std::size_t at : {0u, 5000u, (1u << 20) - 10, (2u << 20) + 1, (3u << 20) - 3}) {
    CAPTURE(at);
    Fd fd = open_fd("f", O_WRONLY);
    write_at(fd, "changed", static_cast<off_t>(at));
    OK(fd.close());
    if (all.size() < at + 7) all.resize(at + 7);
    all.replace(at, 7, "changed");
    CHECK((content_of("f") == all));
  }
}

TEST_CASE("close: a closed descriptor is EBADF for every call") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  const int number = fd;
  OK(fd.close());
  char byte = 0;
  FAILS(EBADF, ::close(number));
  FAILS(EBADF, ::read(number, &byte, 1));
  FAILS(EBADF, ::write(number, &byte, 1));
  FAILS(EBADF, ::fsync(number));
  FAILS(EBADF, ::ftruncate(number, 0));
  FAILS(EBADF, ::lseek(number, 0, SEEK_SET));
}

TEST_CASE("close: a duplicate goes on, with the offset that was shared") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  const Fd twin(OK(::dup(fd)));
  OK(::write(fd, "one", 3));
  OK(fd.close());
  CHECK(::lseek(twin, 0, SEEK_CUR) == 3);
  OK(::write(twin, "two", 3));
  CHECK(content_of("f") == "onetwo");
}

TEST_CASE("close: other descriptors see what was written before it") {
  Fd writer = open_fd("f", O_CREAT | O_WRONLY);
  const Fd reader = open_fd("f", O_RDONLY);
  write_at(writer, "content");
  CHECK(read_at(reader, 9) == "content");
  CHECK(in_child([] { return content_of("f") == "content" ? 0 : 1; }) == 0);
  OK(writer.close());
  CHECK(read_at(reader, 9) == "content");
}

TEST_CASE("close: a process that dies has closed what it wrote") {
  Child writer([](Child& self) {
    const Fd fd = open_fd("f", O_CREAT | O_WRONLY);
    write_at(fd, "last words");
    self.say();
    ::pause();
    return 0;
  });
  writer.await();
  OK(::kill(writer.pid(), SIGKILL));
  CHECK(writer.join() == 128 + SIGKILL);
  CHECK(content_of("f") == "last words");
}

}  // namespace
}  // namespace fermata::posix
