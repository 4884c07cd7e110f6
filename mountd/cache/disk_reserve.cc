#include "mountd/cache/disk_reserve.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

namespace fermata::mountd {
namespace {
constexpr std::uint64_t kReleaseMin = 64u << 10;  // so that each small sidecar costs no ftruncate
}  // namespace

Status DiskReserve::open(const std::string& path) {
  const MutexLock lock(mutex_);
  FM_TRY(fd_, posix::open_file(path, O_RDWR | O_CREAT));
  if (::ftruncate(fd_->get(), 0) != 0) return last_errno();
  return {};
}

void DiskReserve::set_size(std::uint64_t size_bytes) {
  const MutexLock lock(mutex_);
  wanted_bytes_ = size_bytes;
  grow();
}

void DiskReserve::grow() {
  if (!fd_ || bytes_ >= wanted_bytes_) return;
  if (::fallocate(fd_->get(), 0, 0, static_cast<off_t>(wanted_bytes_)) == 0) {
    bytes_ = wanted_bytes_;
  } else {
    // It may have got a part.
    static_cast<void>(::ftruncate(fd_->get(), static_cast<off_t>(bytes_)) == 0);
  }
}

std::uint64_t DiskReserve::release(std::uint64_t bytes) {
  const MutexLock lock(mutex_);
  const std::uint64_t given = std::min(bytes_, std::max(bytes, kReleaseMin));
  if (given == 0 || ::ftruncate(fd_->get(), static_cast<off_t>(bytes_ - given)) != 0) return 0;
  bytes_ -= given;
  return given;
}

void DiskReserve::refill(std::uint64_t free_bytes) {
  const MutexLock lock(mutex_);
  if (bytes_ < wanted_bytes_ && free_bytes > 2 * wanted_bytes_) grow();
}

std::uint64_t DiskReserve::bytes() const {
  const MutexLock lock(mutex_);
  return bytes_;
}

}  // namespace fermata::mountd
