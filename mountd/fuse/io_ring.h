// One io_uring(7) instance as FUSE over io_uring uses it: 128-byte submission entries, completions
// announced on an eventfd.
//
// The raw system calls are used: Debian 12's liburing (2.3) offers nothing more for commands with
// 128-byte entries, and what is needed of a ring is small.
//
// The ring belongs to the thread that made it (SINGLE_ISSUER), and what the kernel has to do for a
// completion is done when that thread enters (DEFER_TASKRUN), not between two of its instructions.
#pragma once

#include <linux/io_uring.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <system_error>

#include "common/base/result.h"

namespace fermata::mountd {

class IoRing {
 public:
  /// A ring with room for `entry_count` submissions between two calls of enter(). Errors: ENOSYS,
  /// EPERM (kernel.io_uring_disabled, a container's filter), EINVAL (before Linux 6.1), ENOMEM.
  static Result<std::unique_ptr<IoRing>> create(unsigned entry_count);
  /// Closes it; the kernel takes back by itself, soon, the commands that wait in it.
  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  /// A zeroed entry of 128 bytes, submitted by the next enter(); enters first when there is no
  /// room, and waits for it if the kernel has no memory.
  io_uring_sqe& next();
  /// File 0 of submissions that have IOSQE_FIXED_FILE: saves looking the descriptor up for each.
  Status use_file(int fd);
  /// Submits, and lets the kernel do what completions wait for; does not wait. After an error some
  /// submissions may be left for the next call.
  std::error_code enter();
  /// That error means: later.
  static bool is_passing(const std::error_code& error);
  bool has_unsubmitted() const { return tail_ != submitted_; }

  /// Takes one completion, if there is one.
  bool take(io_uring_cqe& completion);
  /// False promises that none is ready and none waits for enter().
  bool has_work() const;

  /// Readable when completions want to be fetched, except while muted.
  int event_fd() const { return event_fd_; }
  void mute(bool on);

 private:
  IoRing() = default;
  struct Area {
    void* start = nullptr;
    std::size_t size = 0;
  };
  Status map(const io_uring_params& params);
  bool map_area(Area& area, std::size_t size, off_t what);

  int fd_ = -1;
  int event_fd_ = -1;
  Area rings_, submissions_;
  unsigned *submit_head_ = nullptr, *submit_tail_ = nullptr, *submit_flags_ = nullptr;
  unsigned submit_mask_ = 0;
  unsigned *complete_head_ = nullptr, *complete_tail_ = nullptr, *complete_flags_ = nullptr;
  unsigned complete_mask_ = 0;
  io_uring_cqe* completions_ = nullptr;
  unsigned tail_ = 0;       ///< submissions written
  unsigned submitted_ = 0;  ///< and taken by the kernel
};

}  // namespace fermata::mountd
