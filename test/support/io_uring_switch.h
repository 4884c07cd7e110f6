// FUSE over io_uring switched on or off in the kernel for as long as tests want it so, and put
// back.
//
// The kernel has one switch for all mounts (the module parameter enable_uring), so the test
// programs of this machine agree by a lock on a file: many may want it on at a time, one may want
// it off. Who switched it on notes that in the file; the last one that leaves switches it off
// again, also what a test program that was killed has left.
#pragma once

#include <string>

namespace fermata::test {

class IoUringSwitch {
 public:
  enum class To { kOn, kOff };
  /// Waits for test programs that want the opposite.
  explicit IoUringSwitch(To to);
  ~IoUringSwitch();
  IoUringSwitch(const IoUringSwitch&) = delete;
  IoUringSwitch& operator=(const IoUringSwitch&) = delete;
  /// Why it is not as wanted (an older kernel, no right to switch); else empty.
  const std::string& trouble() const { return trouble_; }

 private:
  To to_;
  int lock_fd_ = -1;
  bool was_on_ = false;
  std::string trouble_;
};

/// FERMATA_TEST_IO_URING=1: every mount of this test program goes over io_uring (`io_uring=on`);
/// otherwise, over /dev/fuse.
bool tests_use_io_uring();
/// tests_use_io_uring(), and why the kernel cannot; else empty. Keeps the switch on till the
/// program ends.
std::string why_no_io_uring();

}  // namespace fermata::test
