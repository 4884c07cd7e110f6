// mmap(2), msync(2), munmap(2), mremap(2), madvise(2).
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>

#include <cstring>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

constexpr std::size_t kPage = 4096;

class Mapping {
 public:
  Mapping(int fd, std::size_t size, int protection, int flags, off_t offset = 0)
      : size_(size),
        at_(static_cast<char*>(OK(::mmap(nullptr, size, protection, flags, fd, offset)))) {}
  ~Mapping() { unmap(); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  char* data() const { return at_; }
  std::string text(std::size_t from, std::size_t size) const { return {at_ + from, size}; }
  void store(std::size_t at, std::string_view bytes) {
    std::memcpy(at_ + at, bytes.data(), bytes.size());
  }
  void sync() { OK(::msync(at_, size_, MS_SYNC)); }
  void unmap() {
    if (at_ != nullptr) ::munmap(at_, size_);
    at_ = nullptr;
  }

 private:
  std::size_t size_;
  char* at_;
};

TEST_CASE("mmap: a shared mapping and the file are the same bytes") {
  const std::string bytes = pattern(3 * kPage);
  make_file("f", bytes);
  const Fd fd = open_fd("f", O_RDWR);
  Mapping map(fd, 3 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED);
  CHECK((map.text(0, bytes.size()) == bytes));
  map.store(kPage, "stored");
  CHECK(read_at(fd, 6, kPage) == "stored");
  write_at(fd, "written", 2 * kPage);
  CHECK(map.text(2 * kPage, 7) == "written");
}

TEST_CASE("mmap: other descriptors and processes see a shared store") {
  make_file("f", std::string(kPage, '-'));
  const Fd fd = open_fd("f", O_RDWR);
  Mapping map(fd, kPage, PROT_READ | PROT_WRITE, MAP_SHARED);
  map.store(0, "stored");
  CHECK(content_of("f").substr(0, 6) == "stored");
  CHECK(in_child([] {
          const Fd other = open_fd("f", O_RDWR);
          Mapping theirs(other, kPage, PROT_READ | PROT_WRITE, MAP_SHARED);
          if (theirs.text(0, 6) != "stored") return 1;
          theirs.store(6, "theirs");
          return 0;
        }) == 0);
  CHECK(map.text(0, 12) == "storedtheirs");
}

TEST_CASE("mmap: stores are in the file after msync, munmap and close") {
  make_file("f", std::string(300'000, '-'));
  {
    Fd fd = open_fd("f", O_RDWR);
    Mapping map(fd, 300'000, PROT_READ | PROT_WRITE, MAP_SHARED);
    map.store(200'000, "stored");
    map.sync();
    map.unmap();
    OK(fd.close());
  }
  CHECK(content_of("f").substr(200'000, 6) == "stored");
}

TEST_CASE("mmap: a mapping outlives its descriptor, and so do stores through it") {
  make_file("f", std::string(kPage, '-'));
  Fd fd = open_fd("f", O_RDWR);
  Mapping map(fd, kPage, PROT_READ | PROT_WRITE, MAP_SHARED);
  OK(fd.close());
  map.store(0, "after close");
  CHECK(content_of("f").substr(0, 11) == "after close");
  map.store(100, "again");
  map.unmap();
  CHECK(content_of("f").substr(100, 5) == "again");
  CHECK(content_of("f").substr(0, 11) == "after close");
}

TEST_CASE("mmap: stores after close of a child that exits are in the file") {
  make_file("f", std::string(kPage, '-'));
  CHECK(in_child([] {
          Fd fd = open_fd("f", O_RDWR);
          auto* map = static_cast<char*>(
              OK(::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)));
          OK(fd.close());
          std::memcpy(map, "child", 5);
          return 0;  // without munmap
        }) == 0);
  CHECK(content_of("f").substr(0, 5) == "child");
}

TEST_CASE("mmap: a private mapping keeps its stores to itself") {
  make_file("f", std::string(kPage, '-'));
  const Fd fd = open_fd("f", O_RDONLY);
  Mapping map(fd, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  map.store(0, "private");
  CHECK(content_of("f").substr(0, 7) == "-------");
  CHECK(map.text(0, 7) == "private");
}

TEST_CASE("mmap: protection must fit how the file was opened") {
  make_file("f", std::string(kPage, '-'));
  const Fd reader = open_fd("f", O_RDONLY);
  const Fd writer = open_fd("f", O_WRONLY);
  FAILS(EACCES, ::mmap(nullptr, kPage, PROT_WRITE, MAP_SHARED, reader, 0));
  FAILS(EACCES, ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, writer, 0));
  FAILS(EACCES, ::mmap(nullptr, kPage, PROT_WRITE, MAP_SHARED, writer, 0));
  Mapping map(reader, kPage, PROT_READ, MAP_SHARED);
  FAILS(EACCES, ::mprotect(map.data(), kPage, PROT_READ | PROT_WRITE));
}

TEST_CASE("mmap: what cannot be mapped") {
  make_file("f", std::string(kPage, '-'));
  const Fd fd = open_fd("f", O_RDWR);
  const Fd dir = open_fd(".", O_RDONLY);
  FAILS(EINVAL, ::mmap(nullptr, 0, PROT_READ, MAP_SHARED, fd, 0));
  FAILS(EINVAL, ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, 1));
  FAILS(EINVAL, ::mmap(nullptr, kPage, PROT_READ, 0, fd, 0));
  FAILS(ENODEV, ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, dir, 0));
  FAILS(EBADF, ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, -1, 0));
}

TEST_CASE("mmap: the last page is zeros behind the end, and what is stored there is no content") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDWR);
  {
    Mapping map(fd, kPage, PROT_READ | PROT_WRITE, MAP_SHARED);
    CHECK((map.text(3, kPage - 3) == std::string(kPage - 3, '\0')));
    map.store(3, "beyond");
    map.sync();
  }
  CHECK(content_of("f") == "abc");
  OK(::ftruncate(fd, 9));
  CHECK(content_of("f") == std::string("abc\0\0\0\0\0\0", 9));
}

sigjmp_buf g_jump;

/// Whether reading this byte raises SIGBUS.
bool faults(const char* at) {
  struct sigaction old {};
  struct sigaction act {};
  act.sa_handler = [](int) { ::siglongjmp(g_jump, 1); };
  ::sigaction(SIGBUS, &act, &old);
  if (sigsetjmp(g_jump, 1) == 0) {
    (void)*static_cast<const volatile char*>(at);
    ::sigaction(SIGBUS, &old, nullptr);
    return false;
  }
  ::sigaction(SIGBUS, &old, nullptr);
  return true;
}

TEST_CASE("mmap: pages behind the end fault until the file grows, and again when it shrinks") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDWR);
  Mapping map(fd, 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED);
  CHECK_FALSE(faults(map.data()));
  CHECK(faults(map.data() + kPage));
  OK(::ftruncate(fd, 2 * kPage));
  CHECK_FALSE(faults(map.data() + kPage));
  map.store(kPage, "grown");
  CHECK(read_at(fd, 5, kPage) == "grown");
  OK(::ftruncate(fd, 3));
  CHECK(faults(map.data() + kPage));
}

TEST_CASE("mmap: an unlinked file stays mapped") {
  make_file("f", std::string(kPage, '-'));
  Fd fd = open_fd("f", O_RDWR);
  Mapping map(fd, kPage, PROT_READ | PROT_WRITE, MAP_SHARED);
  OK(::unlink("f"));
  map.store(0, "stored");
  CHECK(read_at(fd, 6) == "stored");
  OK(fd.close());
  CHECK(map.text(0, 6) == "stored");
}

TEST_CASE("mmap: an offset of whole pages") {
  const std::string bytes = pattern(3 * kPage);
  make_file("f", bytes);
  const Fd fd = open_fd("f", O_RDONLY);
  const Mapping map(fd, kPage, PROT_READ, MAP_PRIVATE, kPage);
  CHECK((map.text(0, kPage) == bytes.substr(kPage, kPage)));
}

TEST_CASE("mremap: a grown mapping shows more of the file") {
  const std::string bytes = pattern(4 * kPage);
  make_file("f", bytes);
  const Fd fd = open_fd("f", O_RDWR);
  void* small = OK(::mmap(nullptr, kPage, PROT_READ, MAP_SHARED, fd, 0));
  void* large = OK(::mremap(small, kPage, 4 * kPage, MREMAP_MAYMOVE));
  CHECK((std::string(static_cast<char*>(large), 4 * kPage) == bytes));
  OK(::munmap(large, 4 * kPage));
}

TEST_CASE("msync: errors") {
  make_file("f", std::string(2 * kPage, '-'));
  const Fd fd = open_fd("f", O_RDWR);
  void* at = OK(::mmap(nullptr, 2 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  OK(::msync(at, 2 * kPage, MS_SYNC));
  OK(::msync(at, 2 * kPage, MS_ASYNC));
  FAILS(EINVAL, ::msync(at, kPage, MS_SYNC | MS_ASYNC));
  FAILS(EINVAL, ::msync(static_cast<char*>(at) + 1, kPage, MS_SYNC));
  OK(::munmap(at, 2 * kPage));
  FAILS(ENOMEM, ::msync(at, kPage, MS_SYNC));
}

TEST_CASE("mmap: MAP_SHARED_VALIDATE refuses flags that it does not know") {
  make_file("f", std::string(kPage, '-'));
  const Fd fd = open_fd("f", O_RDWR);
  Mapping map(fd, kPage, PROT_READ | PROT_WRITE, MAP_SHARED_VALIDATE);
  FAILS(EOPNOTSUPP,
        ::mmap(nullptr, kPage, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC | (1 << 27), fd, 0));
}

TEST_CASE("madvise: MADV_REMOVE punches a hole into the file") {
  make_file("f", std::string(4 * kPage, 'x'));
  const Fd fd = open_fd("f", O_RDWR);
  const Mapping map(fd, 4 * kPage, PROT_READ | PROT_WRITE, MAP_SHARED);
  OK(::madvise(map.data() + kPage, kPage, MADV_REMOVE));
  CHECK((map.text(kPage, kPage) == std::string(kPage, '\0')));
  CHECK((content_of("f").substr(kPage, kPage) == std::string(kPage, '\0')));
  CHECK(content_of("f").substr(2 * kPage, 1) == "x");
}

}  // namespace
}  // namespace fermata::posix
