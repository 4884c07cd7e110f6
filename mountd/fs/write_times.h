// When an open file was written, told from its backing file.
//
// A local write moves the backing file's mtime, also one that the kernel makes past the daemon. Two
// clocks meet here: attributes come from the primary, writes from this machine, whose clock may
// lag and whose file times may be coarse (a timer tick, before Linux 6.13). Programs may still
// count on a write being newer than what they saw of the file before it (stat(2), make(1)).
//
// Thread-safety: none; FileState's mutex guards it. All times are ns since 1970.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

namespace fermata::mountd {

class WriteTimes {
 public:
  /// The backing file's mtime stands for the one in the attributes: nothing is written yet.
  void settle(std::int64_t backing_mtime_ns) {
    base_ns_ = seen_ns_ = backing_mtime_ns;
    shown_ns_ = std::numeric_limits<std::int64_t>::min();
  }
  /// What is written from now on is newer than this change of the attributes.
  void follow(std::int64_t ctime_ns) { floor_ns_ = ctime_ns + 1; }
  /// A local write has moved it.
  bool moved(std::int64_t backing_mtime_ns) const { return backing_mtime_ns != base_ns_; }

  /// The mtime to show and to commit, once it has moved. `ctime_ns` is the attributes': a write
  /// since the last look is newer than it, if the clocks are close enough to mean that, and newer
  /// than what the last look showed.
  std::int64_t look(std::int64_t backing_mtime_ns, std::int64_t ctime_ns) {
    constexpr std::int64_t kNearNs = 1'000'000'000;
    if (backing_mtime_ns != seen_ns_) {
      seen_ns_ = backing_mtime_ns;
      const bool older = backing_mtime_ns <= ctime_ns;
      if (older && ctime_ns - backing_mtime_ns < kNearNs) follow(ctime_ns);
      if (std::max(backing_mtime_ns, floor_ns_) <= shown_ns_) follow(shown_ns_);
    }
    shown_ns_ = std::max(backing_mtime_ns, floor_ns_);
    return shown_ns_;
  }

 private:
  std::int64_t base_ns_ = 0;
  std::int64_t seen_ns_ = 0;
  std::int64_t floor_ns_ = 0;
  std::int64_t shown_ns_ = std::numeric_limits<std::int64_t>::min();
};

}  // namespace fermata::mountd
