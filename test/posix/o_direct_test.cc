// open(2) with O_DIRECT. Alignment is kept to 4096 bytes, which every filesystem takes; what a
// filesystem does with less is its own affair.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

constexpr std::size_t kBlock = 4096;

struct Free {
  void operator()(char* buffer) const { std::free(buffer); }
};
using Aligned = std::unique_ptr<char, Free>;

Aligned aligned(std::string_view bytes) {
  Aligned buffer(static_cast<char*>(std::aligned_alloc(kBlock, bytes.size())));
  std::memcpy(buffer.get(), bytes.data(), bytes.size());
  return buffer;
}

TEST_CASE("O_DIRECT: what is written is read back, also without it") {
  const std::string bytes = pattern(64 * kBlock);
  const Aligned out = aligned(bytes);
  Fd fd(OK(::open("f", O_CREAT | O_RDWR | O_DIRECT, 0644)));
  CHECK(OK(::pwrite(fd, out.get(), bytes.size(), 0)) == static_cast<ssize_t>(bytes.size()));
  CHECK(content_of("f") == bytes);
  const Aligned in = aligned(std::string(bytes.size(), '\0'));
  CHECK(OK(::pread(fd, in.get(), bytes.size(), 0)) == static_cast<ssize_t>(bytes.size()));
  CHECK(std::string(in.get(), bytes.size()) == bytes);
  OK(fd.close());
  CHECK(content_of("f") == bytes);
}

TEST_CASE("O_DIRECT: sees what was written without it, and the other way round") {
  const std::string old_bytes = pattern(4 * kBlock, 1);
  const std::string new_bytes = pattern(kBlock, 2);
  make_file("f", old_bytes);
  const Fd plain = open_fd("f", O_RDWR);
  CHECK(read_at(plain, old_bytes.size()) == old_bytes);  // now in the page cache
  const Fd direct = open_fd("f", O_RDWR | O_DIRECT);
  const Aligned out = aligned(new_bytes);
  OK(::pwrite(direct, out.get(), kBlock, kBlock));
  CHECK(read_at(plain, kBlock, kBlock) == new_bytes);
  write_at(plain, new_bytes, 2 * kBlock);
  const Aligned in = aligned(std::string(kBlock, '\0'));
  OK(::pread(direct, in.get(), kBlock, 2 * kBlock));
  CHECK(std::string(in.get(), kBlock) == new_bytes);
}

TEST_CASE("O_DIRECT: reads end at the file's end") {
  make_file("f", pattern(kBlock + 100));
  const Fd fd = open_fd("f", O_RDONLY | O_DIRECT);
  const Aligned in = aligned(std::string(2 * kBlock, '\0'));
  CHECK(OK(::pread(fd, in.get(), 2 * kBlock, 0)) == kBlock + 100);
  CHECK(OK(::pread(fd, in.get(), kBlock, 2 * kBlock)) == 0);
}

}  // namespace
}  // namespace fermata::posix
