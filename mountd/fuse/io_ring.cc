#include "mountd/fuse/io_ring.h"

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "common/base/assert.h"
#include "common/base/errc.h"

namespace fermata::mountd {
namespace {

constexpr std::size_t kSubmissionBytes = 128;

unsigned load(const unsigned* at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
void store(unsigned* at, unsigned value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }

template <class T>
T* at(void* start, unsigned offset) {
  return reinterpret_cast<T*>(static_cast<std::byte*>(start) + offset);
}

}  // namespace

Result<std::unique_ptr<IoRing>> IoRing::create(unsigned entry_count) {
  std::unique_ptr<IoRing> ring(new IoRing);
  io_uring_params params{};
  params.flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG;
  ring->fd_ = static_cast<int>(::syscall(SYS_io_uring_setup, entry_count, &params));
  if (ring->fd_ < 0) return last_errno();
  if ((params.features & IORING_FEAT_SINGLE_MMAP) == 0) return std::errc::not_supported;
  FM_CHECK(ring->map(params));
  ring->event_fd_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (ring->event_fd_ < 0) return last_errno();
  if (::syscall(SYS_io_uring_register, ring->fd_, IORING_REGISTER_EVENTFD, &ring->event_fd_, 1) !=
      0) {
    return last_errno();
  }
  return ring;
}

Status IoRing::use_file(int fd) {
  if (::syscall(SYS_io_uring_register, fd_, IORING_REGISTER_FILES, &fd, 1) != 0) {
    return last_errno();
  }
  return {};
}

bool IoRing::map_area(Area& area, std::size_t size, off_t what) {
  void* start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd_, what);
  if (start == MAP_FAILED) return false;
  area = {start, size};
  // A child that keeps the ring mapped would keep it, and the mount, alive.
  return ::madvise(start, size, MADV_DONTFORK) == 0;
}

Status IoRing::map(const io_uring_params& params) {
  const auto& sq = params.sq_off;
  const auto& cq = params.cq_off;
  const auto size = std::max<std::size_t>(sq.array + params.sq_entries * sizeof(unsigned),
                                          cq.cqes + params.cq_entries * sizeof(io_uring_cqe));
  if (!map_area(rings_, size, IORING_OFF_SQ_RING) ||
      !map_area(submissions_, params.sq_entries * kSubmissionBytes, IORING_OFF_SQES)) {
    return last_errno();
  }
  submit_head_ = at<unsigned>(rings_.start, sq.head);
  submit_tail_ = at<unsigned>(rings_.start, sq.tail);
  submit_flags_ = at<unsigned>(rings_.start, sq.flags);
  submit_mask_ = *at<unsigned>(rings_.start, sq.ring_mask);
  complete_head_ = at<unsigned>(rings_.start, cq.head);
  complete_tail_ = at<unsigned>(rings_.start, cq.tail);
  complete_flags_ = at<unsigned>(rings_.start, cq.flags);
  complete_mask_ = *at<unsigned>(rings_.start, cq.ring_mask);
  completions_ = at<io_uring_cqe>(rings_.start, cq.cqes);
  auto* order = at<unsigned>(rings_.start, sq.array);
  for (unsigned i = 0; i < params.sq_entries; ++i) order[i] = i;
  return {};
}

IoRing::~IoRing() {
  for (auto& area : {rings_, submissions_}) {
    if (area.start != nullptr) ::munmap(area.start, area.size);
  }
  if (fd_ >= 0) ::close(fd_);
  if (event_fd_ >= 0) ::close(event_fd_);
}

io_uring_sqe& IoRing::next() {
  while (tail_ - load(submit_head_) > submit_mask_) {
    const auto error = enter();
    if (!error) continue;
    FM_ASSERT(is_passing(error));  // the kernel takes all of them, or will
    ::usleep(100);
  }
  auto* entry = at<io_uring_sqe>(submissions_.start,
                                 static_cast<unsigned>((tail_ & submit_mask_) * kSubmissionBytes));
  std::memset(static_cast<void*>(entry), 0, kSubmissionBytes);
  ++tail_;
  return *entry;
}

std::error_code IoRing::enter() {
  store(submit_tail_, tail_);
  for (;;) {
    const auto taken = ::syscall(SYS_io_uring_enter, fd_, tail_ - submitted_, 0,
                                 IORING_ENTER_GETEVENTS, nullptr, 0);
    if (taken >= 0) {
      submitted_ += static_cast<unsigned>(taken);
      if (submitted_ == tail_ || taken == 0) return {};
      continue;
    }
    if (errno != EINTR) return last_errno();
  }
}

bool IoRing::is_passing(const std::error_code& error) {
  return error == from_errno(EAGAIN) || error == from_errno(EBUSY) || error == from_errno(ENOMEM);
}

bool IoRing::take(io_uring_cqe& completion) {
  const unsigned head = *complete_head_;
  if (head == load(complete_tail_)) return false;
  completion = completions_[head & complete_mask_];
  store(complete_head_, head + 1);
  return true;
}

bool IoRing::has_work() const {
  std::atomic_thread_fence(std::memory_order_seq_cst);  // after mute(): see the kernel's last word
  return *complete_head_ != load(complete_tail_) ||
         (load(submit_flags_) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

void IoRing::mute(bool on) { store(complete_flags_, on ? IORING_CQ_EVENTFD_DISABLED : 0); }

}  // namespace fermata::mountd
