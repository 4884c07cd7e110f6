// io_uring(7): what it does to files is what the system calls do.
#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <atomic>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

/// A ring of eight entries, used one at a time.
class Ring {
 public:
  Ring() : fd_(static_cast<int>(::syscall(SYS_io_uring_setup, 8, &params_))) {
    if (fd_ < 0) return;
    const auto& sq = params_.sq_off;
    const auto& cq = params_.cq_off;
    sq_ = map(sq.array + params_.sq_entries * sizeof(unsigned), IORING_OFF_SQ_RING);
    cq_ = map(cq.cqes + params_.cq_entries * sizeof(io_uring_cqe), IORING_OFF_CQ_RING);
    sqes_ = map(params_.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
  }
  /// False where the kernel has or allows none.
  bool works() const { return fd_ >= 0; }
  /// Submits one entry and waits for it: its result, a negative errno if it failed.
  int run(io_uring_sqe entry) {
    auto* tail = at<std::atomic<unsigned>>(sq_, params_.sq_off.tail);
    const unsigned slot = *tail & *at<unsigned>(sq_, params_.sq_off.ring_mask);
    static_cast<io_uring_sqe*>(sqes_.start)[slot] = entry;
    at<unsigned>(sq_, params_.sq_off.array)[slot] = slot;
    tail->fetch_add(1);
    OK(::syscall(SYS_io_uring_enter, int{fd_}, 1, 1, IORING_ENTER_GETEVENTS, nullptr, 0));
    auto* head = at<std::atomic<unsigned>>(cq_, params_.cq_off.head);
    const unsigned done = *head & *at<unsigned>(cq_, params_.cq_off.ring_mask);
    const int result = at<io_uring_cqe>(cq_, params_.cq_off.cqes)[done].res;
    head->fetch_add(1);
    return result;
  }
  int run(int opcode, int fd, const void* bytes, std::size_t size, off_t offset) {
    io_uring_sqe entry{};
    entry.opcode = static_cast<std::uint8_t>(opcode);
    entry.fd = fd;
    entry.addr = reinterpret_cast<std::uint64_t>(bytes);
    entry.len = static_cast<unsigned>(size);
    entry.off = static_cast<std::uint64_t>(offset);
    return run(entry);
  }

 private:
  struct Area {
    void* start = nullptr;
    std::size_t size = 0;
    Area() = default;
    Area(Area&& other) noexcept : start(other.start), size(other.size) { other.start = nullptr; }
    Area& operator=(Area&& other) noexcept {
      std::swap(start, other.start);
      std::swap(size, other.size);
      return *this;
    }
    ~Area() {
      if (start != nullptr) ::munmap(start, size);
    }
  };
  Area map(std::size_t size, off_t what) const {
    Area area;
    area.size = size;
    area.start =
        OK(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, what));
    return area;
  }
  template <class T>
  static T* at(const Area& area, unsigned offset) {
    return reinterpret_cast<T*>(static_cast<char*>(area.start) + offset);
  }

  io_uring_params params_{};
  Fd fd_;
  Area sq_, cq_, sqes_;
};

#define NEEDS_RING(ring) \
  if (!(ring).works()) SKIP("needs io_uring")

TEST_CASE("io_uring: writes, reads and syncs as the calls do") {
  Ring ring;
  NEEDS_RING(ring);
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  const std::string bytes = pattern(100'000);
  CHECK(ring.run(IORING_OP_WRITE, fd, bytes.data(), bytes.size(), 5) == 100'000);
  CHECK(ring.run(IORING_OP_FSYNC, fd, nullptr, 0, 0) == 0);
  std::string back(bytes.size(), '\0');
  CHECK(ring.run(IORING_OP_READ, fd, back.data(), back.size(), 5) == 100'000);
  CHECK((back == bytes));
  CHECK(ring.run(IORING_OP_READ, fd, back.data(), back.size(), 100'005) == 0);
  CHECK(stat_of("f").st_size == 100'005);
}

TEST_CASE("io_uring: opens and closes, with the errors of openat") {
  Ring ring;
  NEEDS_RING(ring);
  io_uring_sqe open{};
  open.opcode = IORING_OP_OPENAT;
  open.fd = AT_FDCWD;
  open.addr = reinterpret_cast<std::uint64_t>("f");
  open.open_flags = O_CREAT | O_EXCL | O_WRONLY;
  open.len = 0640;
  const int fd = ring.run(open);
  REQUIRE(fd >= 0);
  write_at(fd, "content");
  CHECK(ring.run(open) == -EEXIST);
  CHECK(ring.run(IORING_OP_CLOSE, fd, nullptr, 0, 0) == 0);
  FAILS(EBADF, ::fsync(fd));
  CHECK(content_of("f") == "content");
  CHECK(mode_of("f") == 0640);
}

TEST_CASE("io_uring: renames, removes and makes names") {
  Ring ring;
  NEEDS_RING(ring);
  make_file("f", "content");
  io_uring_sqe entry{};
  entry.opcode = IORING_OP_RENAMEAT;
  entry.fd = AT_FDCWD;
  entry.addr = reinterpret_cast<std::uint64_t>("f");
  entry.len = static_cast<unsigned>(AT_FDCWD);
  entry.off = reinterpret_cast<std::uint64_t>("g");
  CHECK(ring.run(entry) == 0);
  CHECK(ring.run(entry) == -ENOENT);
  io_uring_sqe remove{};
  remove.opcode = IORING_OP_UNLINKAT;
  remove.fd = AT_FDCWD;
  remove.addr = reinterpret_cast<std::uint64_t>("g");
  CHECK(ring.run(remove) == 0);
  CHECK(names_in(".").empty());
  io_uring_sqe make{};
  make.opcode = IORING_OP_MKDIRAT;
  make.fd = AT_FDCWD;
  make.addr = reinterpret_cast<std::uint64_t>("d");
  make.len = 0750;
  CHECK(ring.run(make) == 0);
  CHECK(mode_of("d") == 0750);
}

}  // namespace
}  // namespace fermata::posix
