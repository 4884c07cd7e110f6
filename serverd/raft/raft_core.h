// One member of one replica group, as a pure step machine.
//
// No clock, no randomness but a seed, no I/O: step functions take an event and the time, and fill
// an Output that says what to persist, what to send and what is committed. The driver
// (raft_node.h) and the simulator obey the same contract:
//
//   1. Persist `hard_state` and `append` durably, in that order, before sending `messages_after_persist`
//      and before calling on_persisted(). Several Outputs may be persisted by one fdatasync.
//   2. `messages` may be sent at once (the leader's appends travel while its own disk works [thesis 10.2.1]).
//   3. Entries up to `commit` may be applied, in order, once they are durable here.
//
// Raft as in [thesis], with pre-vote (9.6), check-quorum and leader lease (6.4.1), ReadIndex (6.4),
// pipelined and batched append (10.2), learners (4.2.1), one-at-a-time membership (4.1 with the
// 2015 fix: no change before the leader's no-op of its term is committed), leadership transfer (3.10).
//
// Thread-safety: none; one caller at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/env/clock.h"
#include "common/wire/raft.h"

namespace fermata::serverd {

enum class Role : std::uint8_t { kBackup, kCandidate, kPrimary, kLearner };
const char* to_string(Role role);

struct HardState {
  Term term;
  NodeId voted_for;
  bool operator==(const HardState&) const = default;
};

/// The core's view of the log. Entries that an Output told the driver to append must be readable at
/// once, durable or not; entries before first_index() are in the snapshot.
class LogView {
 public:
  virtual ~LogView() = default;
  virtual LogIndex first_index() const = 0;  ///< of the oldest entry kept; last_index() + 1 if none
  virtual LogIndex last_index() const = 0;   ///< the snapshot's index if the log is empty
  /// Of the entry, or of the snapshot at first_index() - 1. nullopt: not known here.
  virtual std::optional<Term> term_at(LogIndex index) const = 0;
  /// Entries [first, last], cut after `bytes_max` of data but at least one.
  virtual Result<std::vector<LogEntry>> read(LogIndex first, LogIndex last, std::size_t bytes_max) const = 0;
};

struct RaftOptions {
  NodeId self;
  GroupId group = kFirstGroup;
  Duration heartbeat_interval = std::chrono::milliseconds(100);
  Duration election_timeout_min = std::chrono::milliseconds(600);  ///< the timeout is drawn from [min, 2 min)
  Duration clock_drift_max = std::chrono::milliseconds(60);        ///< taken off the leader lease
  std::size_t append_bytes_max = 1 << 20;   ///< of data in one kAppend
  std::size_t inflight_max = 64;            ///< kAppends on the way to one peer
  std::uint64_t seed = 1;                   ///< for election timeouts
};

struct Output {
  std::optional<HardState> hard_state;        ///< changed: persist first
  std::vector<LogEntry> append;               ///< in order; an index at or below the log's last one truncates it there
  std::vector<RaftMessage> messages;          ///< send at once
  std::vector<RaftMessage> messages_after_persist;
  LogIndex commit;                            ///< highest committed index known
  bool role_changed = false;                  ///< look at role() and term()
  /// Fetch and install this, then call on_snapshot_installed (or on_snapshot_failed).
  std::optional<SnapshotDescriptor> fetch_snapshot;
  NodeId fetch_from;
  /// This peer needs a snapshot: make one if there is none recent, then call send_snapshot.
  std::vector<NodeId> wants_snapshot;
};

struct PeerProgress {
  LogIndex match;
  LogIndex next;
  bool recently_active = false;
  bool in_snapshot = false;
};

class RaftCore {
 public:
  /// `hard` and the log are what was durable; `membership` is the newest one in the log or snapshot.
  RaftCore(RaftOptions options, HardState hard, Membership membership, LogIndex applied, LogView& log, TimePoint now);

  // Events. Each fills `out` (appending to what is there, so that several events share one Output).
  void tick(TimePoint now, Output& out);
  void receive(const RaftMessage& message, TimePoint now, Output& out);
  /// Everything up to here in this term's log and the hard state are durable.
  void on_persisted(LogIndex index, Term term_of_entry, TimePoint now, Output& out);
  /// Appends a command to the log if primary (Errc::kNotPrimary else) and says at which index.
  Result<LogIndex> propose(std::shared_ptr<const std::string> data, TimePoint now, Output& out);
  /// One member added, removed or promoted. Errc::kRetry while another change is under way.
  Result<LogIndex> propose_membership(Membership next, TimePoint now, Output& out);
  Status transfer_leadership(NodeId to, TimePoint now, Output& out);
  void on_snapshot_installed(const SnapshotDescriptor& snapshot, TimePoint now, Output& out);
  void on_snapshot_failed(const SnapshotDescriptor& snapshot, TimePoint now, Output& out);
  void send_snapshot(NodeId to, const SnapshotDescriptor& snapshot, TimePoint now, Output& out);

  /// When tick() should next be called.
  TimePoint next_tick() const;

  Role role() const;
  Term term() const;
  NodeId primary() const;  ///< as far as known; none if not
  LogIndex commit() const;
  const Membership& membership() const;
  /// True while this node is primary, holds the leader lease (a majority answered a heartbeat round
  /// begun less than election_timeout_min - clock_drift_max ago) and has committed an entry of its
  /// term. State applied up to read_index() then answers reads linearizably.
  bool may_read(TimePoint now) const;
  /// The commit index a linearizable read must have applied: valid while may_read().
  LogIndex read_index() const;
  const std::map<NodeId, PeerProgress>& progress() const;
  TimePoint lease_until() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fermata::serverd
