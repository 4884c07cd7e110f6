#include "mountd/fs/second_tries.h"

namespace fermata::mountd {

void SecondTries::refused(pid_t caller, TimePoint now) {
  if (caller == 0) return;  // it cannot be told from others
  MutexLock lock(mutex_);
  std::erase_if(tries_, [now](const auto& each) { return now - each.second.refused > kPatience; });
  if (tries_.size() >= kCallersMax) tries_.clear();
  tries_[caller] = {now, kNoNode};
  count_.store(tries_.size(), std::memory_order_relaxed);
}

void SecondTries::note(pid_t caller, NodeHandle found) {
  MutexLock lock(mutex_);
  const auto at = tries_.find(caller);
  if (at != tries_.end()) at->second.found = found;
}

bool SecondTries::find(pid_t caller, NodeHandle node, TimePoint now) {
  MutexLock lock(mutex_);
  const auto at = tries_.find(caller);
  if (at == tries_.end()) return false;
  const bool is_it = at->second.found == node && now - at->second.refused <= kPatience;
  tries_.erase(at);
  count_.store(tries_.size(), std::memory_order_relaxed);
  return is_it;
}

}  // namespace fermata::mountd
