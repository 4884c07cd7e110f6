// One member of one replica group, as a pure step machine.
//
// No clock, no randomness but a seed, no I/O: step functions take an event and the time, and fill
// an Output that says what to persist, what to send and what is committed. The driver
// (raft_node.h) and the simulator obey the same contract:
//
//   1. Persist `hard_state` and `append` durably, in that order, before sending
//      `messages_after_persist` and before calling on_persisted(). Outputs are persisted in the
//      order in which they were filled; several may be persisted by one fdatasync.
//   2. `messages` may be sent at once (the leader's appends travel while its own disk works
//      [thesis 10.2.1]).
//   3. Entries up to `commit` may be applied, in order, once they are durable here: up to
//      min(commit(), durable_index()).
//
// Raft as in [thesis], with pre-vote (9.6), check-quorum and leader lease (6.4.1), ReadIndex (6.4),
// pipelined and batched append (10.2), learners (4.2.1), one-at-a-time membership (4.1 with the
// 2015 fix: no change before the leader's no-op of its term is committed), leadership transfer
// (3.10). Beyond the thesis: a node that lost its log rejoins without a vote (raft_core_rejoin.cc).
//
// Thread-safety: none; one caller at a time.
#pragma once

#include <cstdint>
#include <deque>
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
  /// The log that this node had is lost, and with it what it acknowledged and voted: it takes part
  /// in no election and counts in no majority until it has everything again (raft_core_rejoin.cc).
  bool rejoining = false;
  /// For how long a primary may count on this node's silence (RaftMessage::silence_ms).
  std::uint32_t silence_ms = 0;
  bool operator==(const HardState&) const = default;
};

/// The core's view of the log. The core itself remembers entries until it is told that they are
/// durable, and asks here only for older ones, so an Output may be carried out when it suits.
class LogView {
 public:
  virtual ~LogView() = default;
  virtual LogIndex first_index() const = 0;  ///< of the oldest entry kept; last_index() + 1 if none
  virtual LogIndex last_index() const = 0;   ///< the snapshot's index if the log is empty
  /// Of the entry, or of the snapshot at first_index() - 1. nullopt: not known here.
  virtual std::optional<Term> term_at(LogIndex index) const = 0;
  /// Entries [first, last], cut after `bytes_max` of data but at least one.
  virtual Result<std::vector<LogEntry>> read(LogIndex first, LogIndex last,
                                             std::size_t bytes_max) const = 0;
};

/// Rules that a test breaks on purpose to see that the simulator notices (test/sim/raft). Never set
/// outside of tests; any value but kNone also turns the core's own assertions off.
enum class RaftMutation : std::uint8_t {
  kNone,
  kElsewhere,             ///< the harness breaks a rule; the core only keeps its assertions quiet
  kVoteTwice,             ///< forgets whom it voted for in this term
  kVoteForOldLog,         ///< votes for candidates whose log is behind
  kVoteDuringLease,       ///< votes although a live primary holds a lease
  kCommitBeforeQuorum,    ///< commits what is durable on the primary alone
  kCommitOldTerm,         ///< commits older terms' entries by counting copies [thesis 3.6.2]
  kReadWithoutLease,      ///< serves reads whenever it believes to be primary
  kIgnoreTerm,            ///< does not step down for a higher term, and follows lower ones
  kTruncateCommitted,     ///< cuts its log after an append's last entry, equal or not
  kManyMemberships,       ///< starts a membership change while another is not committed
  kKeepTruncatedMembers,  ///< does not go back to the old membership on truncation
  kLeaseDuringTransfer,   ///< keeps its lease after it has told another node to take over
};

struct RaftOptions {
  NodeId self;
  GroupId group = kFirstGroup;
  Duration heartbeat_interval = std::chrono::milliseconds(100);
  /// The timeout is drawn from [min, 2 min).
  Duration election_timeout_min = std::chrono::milliseconds(600);
  /// Taken off the leader lease.
  Duration clock_drift_max = std::chrono::milliseconds(60);
  std::size_t append_bytes_max = 1 << 20;  ///< of data in one kAppend
  std::size_t inflight_max = 64;           ///< kAppends on the way to one peer
  std::uint64_t seed = 1;                  ///< for election timeouts
  RaftMutation mutation = RaftMutation::kNone;
};

struct Output {
  /// Pass it to on_persisted() once this Output, and so every earlier one, is durable.
  std::uint64_t sequence = 0;
  std::optional<HardState> hard_state;  ///< changed: persist first
  /// In order; an index at or below the log's last one truncates it there.
  std::vector<LogEntry> append;
  std::vector<RaftMessage> messages;  ///< send at once
  std::vector<RaftMessage> messages_after_persist;
  LogIndex commit;            ///< highest committed index known
  bool role_changed = false;  ///< look at role(), term() and primary()
  /// Fetch and install this, then call on_snapshot_installed (or on_snapshot_failed). Until then
  /// the core accepts no entries, so nothing acknowledged can be in the log that is replaced.
  std::optional<SnapshotDescriptor> fetch_snapshot;
  NodeId fetch_from;
  /// This peer needs a snapshot: make one if there is none recent, then call send_snapshot.
  std::vector<NodeId> wants_snapshot;
  /// These peers lack entries that they had acknowledged; they get them again.
  std::vector<NodeId> forgetful;

  bool needs_persist() const { return hard_state || !append.empty(); }
};

/// What the primary knows of a peer. The first four are for status; the rest is the core's.
struct PeerProgress {
  LogIndex match;                ///< known equal and durable there
  LogIndex next;                 ///< to send
  bool recently_active = false;  ///< heard of within an election timeout
  bool in_snapshot = false;      ///< is told to fetch a snapshot: no entries meanwhile
  std::uint64_t rejoin = 0;      ///< not 0: counts for nothing yet (RaftMessage::rejoin)

  std::uint64_t rejoin_since = 0;  ///< the first round that began after that was known
  LogIndex rejoin_until;           ///< none: not known yet
  std::uint64_t rejoin_told = 0;   ///< the round in which it became known
  std::uint64_t match_round = 0;   ///< the latest round in which `match` was confirmed
  bool probing = true;             ///< where the logs meet is not known: one append at a time
  bool probe_sent = false;
  std::deque<LogIndex> inflight;  ///< last index of each append on the way
  std::uint64_t acked_round = 0;
  TimePoint acked_at = TimePoint::min();  ///< when that round began, by this node's clock
  TimePoint heard_at = TimePoint::min();
  TimePoint snapshot_at = TimePoint::min();  ///< of the last kSnapshot or wants_snapshot
  SnapshotDescriptor snapshot;
};

/// A linearizable read that waits for its heartbeat round [thesis 6.4].
struct ReadTicket {
  Term term;
  std::uint64_t round = 0;
  LogIndex index;  ///< state applied up to here answers it
};
enum class ReadState : std::uint8_t { kWaiting, kReady, kLost };

class RaftCore {
 public:
  /// `hard` and the log are what was durable; `membership` is that of the snapshot below the log
  /// (of the first start, if there is none): newer ones are found in the log, which is read once.
  /// Empty for a node that waits to be added. `applied` is at most the log's last index.
  RaftCore(RaftOptions options, HardState hard, Membership membership, LogIndex applied,
           LogView& log, TimePoint now);
  ~RaftCore();
  RaftCore(RaftCore&&) noexcept;
  RaftCore& operator=(RaftCore&&) noexcept;

  // Events. Each fills `out` (appending to what is there, so that several events share one Output).
  void tick(TimePoint now, Output& out);
  void receive(const RaftMessage& message, TimePoint now, Output& out);
  /// The Output with this sequence, and every earlier one, is durable.
  void on_persisted(std::uint64_t sequence, TimePoint now, Output& out);
  /// Appends a command to the log if primary (Errc::kNotPrimary else) and says at which index.
  /// Errc::kRetry while leadership is being transferred. `data` is not null.
  Result<LogIndex> propose(std::shared_ptr<const std::string> data, TimePoint now, Output& out);
  /// One member added, removed, promoted, demoted or moved to another address. Errc::kRetry while
  /// another change is under way or this term's first entry is not committed; EINVAL for anything
  /// else than one change that leaves a voter.
  Result<LogIndex> propose_membership(Membership next, TimePoint now, Output& out);
  /// Given up after an election timeout. EINVAL: `to` is no other voter.
  Status transfer_leadership(NodeId to, TimePoint now, Output& out);
  /// The log now is empty and stands at the snapshot, durably.
  void on_snapshot_installed(const SnapshotDescriptor& snapshot, TimePoint now, Output& out);
  void on_snapshot_failed(const SnapshotDescriptor& snapshot, TimePoint now, Output& out);
  /// Ignored if `to` no longer needs one, or this one is too old to help.
  void send_snapshot(NodeId to, const SnapshotDescriptor& snapshot, TimePoint now, Output& out);
  /// Starts a heartbeat round for a linearizable read without a lease. kNotPrimary; kRetry until
  /// this term's first entry is committed. Many waiting reads should share one ticket.
  Result<ReadTicket> begin_read(TimePoint now, Output& out);

  /// When tick() should next be called.
  TimePoint next_tick() const;

  Role role() const;
  Term term() const;
  NodeId primary() const;  ///< as far as known; none if not
  LogIndex commit() const;
  LogIndex last_index() const;     ///< of the log, durable or not
  LogIndex durable_index() const;  ///< this log is known durable here up to this
  const Membership& membership() const;
  /// True while this node is primary, holds the leader lease (a majority answered a heartbeat round
  /// begun less than election_timeout_min - clock_drift_max ago) and has committed an entry of its
  /// term. State applied up to read_index() then answers reads linearizably.
  bool may_read(TimePoint now) const;
  /// The commit index a linearizable read must have applied: valid while may_read().
  LogIndex read_index() const;
  ReadState read_state(const ReadTicket& ticket) const;
  const std::map<NodeId, PeerProgress>& progress() const;  ///< empty unless primary
  TimePoint lease_until() const;
  bool rejoining() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Sorted by id, without duplicates or id 0, at most kRaftMembersMax; may be empty.
bool well_formed(const Membership& membership);

}  // namespace fermata::serverd
