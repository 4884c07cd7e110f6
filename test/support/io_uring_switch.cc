#include "test/support/io_uring_switch.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

namespace fermata::test {
namespace {

constexpr const char* kSwitch = "/sys/module/fuse/parameters/enable_uring";
constexpr const char* kLock = "/tmp/fermata-test.io_uring";
constexpr char kSwitchedOn = '1';  ///< in the lock file: a test has done it

char state() {
  char value = 0;
  std::ifstream(kSwitch) >> value;
  return value;
}

bool set(char value) {
  std::ofstream file(kSwitch);
  file << value << std::flush;
  return static_cast<bool>(file);
}

void lock(int fd, int how) {
  while (::flock(fd, how) != 0 && errno == EINTR) {
  }
}

}  // namespace

IoUringSwitch::IoUringSwitch(To to) : to_(to) {
  if (state() == 0) {
    if (to == To::kOn) trouble_ = "this kernel has no FUSE over io_uring";
    return;
  }
  lock_fd_ = ::open(kLock, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_fd_ < 0) {
    trouble_ = std::string("cannot open ") + kLock;
    return;
  }
  lock(lock_fd_, to == To::kOn ? LOCK_SH : LOCK_EX);
  was_on_ = state() == 'Y';
  if (was_on_ == (to == To::kOn)) return;
  if (to == To::kOn && ::pwrite(lock_fd_, &kSwitchedOn, 1, 0) != 1) {
    trouble_ = std::string("cannot write ") + kLock;
  } else if (!set(to == To::kOn ? 'Y' : 'N')) {
    trouble_ = std::string("cannot write ") + kSwitch;
  }
}

IoUringSwitch::~IoUringSwitch() {
  if (lock_fd_ < 0) return;
  if (to_ == To::kOff) {
    if (was_on_) set('Y');
  } else if (::flock(lock_fd_, LOCK_EX | LOCK_NB) == 0) {
    char note = 0;
    if (::pread(lock_fd_, &note, 1, 0) == 1 && note == kSwitchedOn) {
      set('N');
      if (::ftruncate(lock_fd_, 0) != 0) set('Y');  // as it is noted
    }
  }
  ::close(lock_fd_);
}

bool tests_use_io_uring() {
  const char* wish = std::getenv("FERMATA_TEST_IO_URING");
  return wish != nullptr && std::strcmp(wish, "1") == 0;
}

std::string why_no_io_uring() {
  if (!tests_use_io_uring()) return {};
  static IoUringSwitch on(IoUringSwitch::To::kOn);
  return on.trouble();
}

}  // namespace fermata::test
