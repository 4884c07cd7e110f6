// The client's session with the cluster: what it may trust of its caches, shared by all loops.
//
// The primary grants leases on inodes with its answers (docs/PROTOCOL.md). They hold while the
// session's lease holds, and end early by a callback or when a new primary's term has been
// accepted. Stamps order what primaries said: an answer stamped below the last callback of its
// inode is not cached (the cache keeps that stamp per inode; here is only what concerns all).
//
// Thread-safety: everything may be called from any thread; the reads are a few atomic loads.
#pragma once

#include <atomic>
#include <set>
#include <string>
#include <vector>

#include "common/base/ids.h"
#include "common/base/mutex.h"
#include "common/env/clock.h"
#include "common/wire/messages.h"

namespace fermata::mountd {

class ClientSession {
 public:
  explicit ClientSession(Clock& clock) : clock_(clock) {}

  /// None between two sessions.
  SessionId id() const { return SessionId(id_.load(std::memory_order_acquire)); }
  /// The same, but between two sessions the one that is over.
  SessionId newest_id() const { return SessionId(newest_.load(std::memory_order_acquire)); }
  Epoch epoch() const { return Epoch(epoch_.load(std::memory_order_acquire)); }
  /// True while what was cached under `stamp` may be used without asking (callbacks aside).
  bool lease_holds(Stamp stamp) const {
    return stamp.value() >= valid_from_.load(std::memory_order_acquire) &&
           unsettled_.load(std::memory_order_acquire) == 0 && clock_.now() < lease_until();
  }
  /// The cluster has not ended the session, nor will it yet.
  bool runs(SessionId session) const { return id() == session && clock_.now() < lease_until(); }
  /// When the session lease ends unless it is renewed: kernel timeouts must not outlive it.
  TimePoint lease_until() const {
    return TimePoint(Duration(lease_until_.load(std::memory_order_acquire)));
  }
  /// Leases with lower stamps are void.
  Stamp valid_from() const { return Stamp(valid_from_.load(std::memory_order_acquire)); }

  /// A new mutation's number; `finish` it when its answer has arrived or is given up.
  Sequence begin_mutation();
  void finish_mutation(Sequence sequence);
  Sequence answered_below() const;

  // A mutation that was given up may still be carried out, and nobody calls its own client back:
  // from begin_unsettled() on no lease holds, after settled() those stamped later than `stamp` do.
  void begin_unsettled() { unsettled_.fetch_add(1, std::memory_order_acq_rel); }
  void settled(Stamp stamp);
  bool is_settled() const { return unsettled_.load(std::memory_order_acquire) == 0; }

  /// Grows whenever the cluster says that the session lives.
  std::uint64_t confirmations() const { return confirmations_.load(std::memory_order_acquire); }

  /// As of the last renewal: the volume has quotas.
  bool has_quotas() const { return quotas_.load(std::memory_order_relaxed); }
  void note_quotas(bool quotas) { quotas_.store(quotas, std::memory_order_relaxed); }

  // For the SessionKeeper.
  void opened(SessionId id, Epoch epoch, Stamp valid_from, TimePoint lease_until);
  void renewed(TimePoint lease_until);
  void void_leases_below(Stamp stamp);
  void lost();

 private:
  Clock& clock_;
  std::atomic<std::uint64_t> id_{0};
  std::atomic<std::uint64_t> newest_{0};
  std::atomic<std::uint64_t> epoch_{0};
  std::atomic<std::uint64_t> valid_from_{~0ULL};
  std::atomic<std::uint32_t> unsettled_{0};
  std::atomic<std::uint64_t> confirmations_{0};
  std::atomic<bool> quotas_{false};
  std::atomic<Duration::rep> lease_until_{0};
  mutable Mutex mutex_;
  std::set<std::uint64_t> open_ FM_GUARDED_BY(mutex_);
  std::uint64_t next_ FM_GUARDED_BY(mutex_) = 1;
};

}  // namespace fermata::mountd
