// The ids that the cluster has set aside for files that this mount makes by itself.
//
// They belong to one session and end with it. More are asked for while some are left, so that
// making a file waits for none. Thread-safety: any thread.
#pragma once

#include <deque>
#include <optional>

#include "common/base/ids.h"
#include "common/base/mutex.h"

namespace fermata::mountd {

class InodeReserve {
 public:
  static constexpr std::uint32_t kAskCount = 1024;  ///< at once
  static constexpr std::size_t kLow = 512;          ///< ask when fewer are left

  std::optional<InodeId> take(SessionId session) {
    MutexLock lock(mutex_);
    if (session != session_ || ids_.empty()) return std::nullopt;
    const InodeId id = ids_.front();
    ids_.pop_front();
    return id;
  }
  /// It was not used.
  void put_back(SessionId session, InodeId id) {
    MutexLock lock(mutex_);
    if (session == session_) ids_.push_front(id);
  }
  /// True: the caller asks now, and says with asked() what came of it.
  bool begin_asking(SessionId session) {
    MutexLock lock(mutex_);
    if (session != session_) {
      session_ = session;
      ids_.clear();
      asking_ = false;
    }
    if (!session || asking_ || ids_.size() >= kLow) return false;
    asking_ = true;
    return true;
  }
  /// `count` 0: none were given.
  void asked(SessionId session, InodeId first, std::uint32_t count) {
    MutexLock lock(mutex_);
    if (session != session_) return;
    asking_ = false;
    for (std::uint32_t i = 0; i < count; ++i) ids_.push_back(InodeId(first.value() + i));
  }

 private:
  Mutex mutex_;
  SessionId session_ FM_GUARDED_BY(mutex_);
  std::deque<InodeId> ids_ FM_GUARDED_BY(mutex_);
  bool asking_ FM_GUARDED_BY(mutex_) = false;
};

}  // namespace fermata::mountd
