// Opens that the kernel makes a second time.
//
// An OPEN of a node that is not the newest one is answered ESTALE. The kernel then looks the name
// up again, as part of the same open(2), and opens what it finds; when that is ESTALE, too, the
// program gets it. Where others commit without a pause, and more so while locks bring an open node
// up to date, the second node can be old again by then. But what was the newest when the name was
// looked up is new enough: that was after open(2) began.
//
// Thread-safety: every method may be called from any thread.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <unordered_map>

#include "common/base/mutex.h"
#include "common/env/env.h"
#include "mountd/fuse/operations.h"

namespace fermata::mountd {

class SecondTries {
 public:
  /// An OPEN of this thread is answered ESTALE.
  void refused(pid_t caller, TimePoint now);
  /// A LOOKUP of this thread is answered with the node.
  void looked_up(pid_t caller, NodeHandle found) {
    if (count_.load(std::memory_order_relaxed) != 0) note(caller, found);
  }
  /// Whether this OPEN is the second try; it counts once.
  bool take(pid_t caller, NodeHandle node, TimePoint now) {
    return count_.load(std::memory_order_relaxed) != 0 && find(caller, node, now);
  }

 private:
  /// A try that does not come (the caller was killed, or may not open the file) is forgotten.
  static constexpr std::chrono::seconds kPatience{2};
  static constexpr std::size_t kCallersMax = 1000;
  struct Try {
    TimePoint refused;
    NodeHandle found = kNoNode;
  };
  void note(pid_t caller, NodeHandle found);
  bool find(pid_t caller, NodeHandle node, TimePoint now);

  Mutex mutex_;
  std::unordered_map<pid_t, Try> tries_ FM_GUARDED_BY(mutex_);
  std::atomic<std::size_t> count_{0};  ///< of tries_
};

}  // namespace fermata::mountd
