#include "mountd/client/session.h"

#include "common/base/assert.h"

namespace fermata::mountd {

Sequence ClientSession::begin_mutation() {
  MutexLock lock(mutex_);
  open_.insert(next_);
  return Sequence(next_++);
}

void ClientSession::finish_mutation(Sequence sequence) {
  MutexLock lock(mutex_);
  open_.erase(sequence.value());
}

Sequence ClientSession::answered_below() const {
  MutexLock lock(mutex_);
  return Sequence(open_.empty() ? next_ : *open_.begin());
}

void ClientSession::opened(SessionId id, Epoch epoch, Stamp valid_from, TimePoint lease_until) {
  FM_ASSERT(id);
  valid_from_.store(valid_from.value(), std::memory_order_release);
  epoch_.store(epoch.value(), std::memory_order_release);
  lease_until_.store(lease_until.time_since_epoch().count(), std::memory_order_release);
  newest_.store(id.value(), std::memory_order_release);
  id_.store(id.value(), std::memory_order_release);
  confirmations_.fetch_add(1, std::memory_order_acq_rel);
}

void ClientSession::renewed(TimePoint lease_until) {
  lease_until_.store(lease_until.time_since_epoch().count(), std::memory_order_release);
  confirmations_.fetch_add(1, std::memory_order_acq_rel);
}

void ClientSession::void_leases_below(Stamp stamp) {
  std::uint64_t now = valid_from_.load(std::memory_order_acquire);
  while (now < stamp.value() &&
         !valid_from_.compare_exchange_weak(now, stamp.value(), std::memory_order_acq_rel)) {
  }
}

void ClientSession::settled(Stamp stamp) {
  void_leases_below(stamp);
  unsettled_.fetch_sub(1, std::memory_order_acq_rel);
}

void ClientSession::lost() {
  valid_from_.store(~0ULL, std::memory_order_release);
  lease_until_.store(0, std::memory_order_release);
  id_.store(0, std::memory_order_release);
}

}  // namespace fermata::mountd
