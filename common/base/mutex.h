// A mutex that clang's thread-safety analysis understands.
#pragma once

#include <mutex>

#if defined(__clang__)
#define FM_ATTRIBUTE(x) __attribute__((x))
#else
#define FM_ATTRIBUTE(x)
#endif
#define FM_GUARDED_BY(x) FM_ATTRIBUTE(guarded_by(x))
#define FM_REQUIRES(...) FM_ATTRIBUTE(requires_capability(__VA_ARGS__))
#define FM_EXCLUDES(...) FM_ATTRIBUTE(locks_excluded(__VA_ARGS__))

namespace fermata {

class FM_ATTRIBUTE(capability("mutex")) Mutex {
 public:
  void lock() FM_ATTRIBUTE(acquire_capability()) { mutex_.lock(); }
  void unlock() FM_ATTRIBUTE(release_capability()) { mutex_.unlock(); }
  bool try_lock() FM_ATTRIBUTE(try_acquire_capability(true)) { return mutex_.try_lock(); }

 private:
  std::mutex mutex_;
};

/// Holds a Mutex for a scope. Never across a co_await or a FUSE reply.
class FM_ATTRIBUTE(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) FM_ATTRIBUTE(acquire_capability(mutex)) : mutex_(mutex) {
    mutex_.lock();
  }
  ~MutexLock() FM_ATTRIBUTE(release_capability()) { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

}  // namespace fermata
