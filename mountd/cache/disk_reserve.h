// Room on the cache's disk that writers cannot take.
//
// A file of allocated blocks. Writers fill what is free beside it and then get ENOSPC; what must go
// on all the same (sidecars, the copies of readers, cutting a file short) takes its room from here:
// the file shrinks. When there is room again it grows back.
//
// Thread-safety: any thread; calls may block on the disk.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/base/mutex.h"
#include "mountd/cache/posix_file.h"

namespace fermata::mountd {

class DiskReserve {
 public:
  /// Opens or makes `path`, and takes nothing yet: what an earlier run had in reserve is free.
  Status open(const std::string& path);
  /// Grows to `size_bytes` if there is room. A filesystem that cannot allocate ahead has no
  /// reserve.
  void set_size(std::uint64_t size_bytes);
  /// Gives `bytes` back to the disk, a little more, or all that is left; how many.
  std::uint64_t release(std::uint64_t bytes);
  /// Grows back if the disk, which has `free_bytes`, has plenty.
  void refill(std::uint64_t free_bytes);
  std::uint64_t bytes() const;

 private:
  void grow() FM_REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::shared_ptr<Fd> fd_ FM_GUARDED_BY(mutex_);
  std::uint64_t wanted_bytes_ FM_GUARDED_BY(mutex_) = 0;
  std::uint64_t bytes_ FM_GUARDED_BY(mutex_) = 0;
};

}  // namespace fermata::mountd
