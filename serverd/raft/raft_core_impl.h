// The inside of RaftCore, shared by raft_core*.cc and nobody else. One struct holds the state; the
// rules are grouped by file:
//
//   raft_core.cc              set-up, timers, which message goes where
//   raft_core_election.cc     roles, pre-vote, vote, check-quorum, transfer
//   raft_core_log.cc          the log: durable entries in the view, the others here
//   raft_core_replication.cc  appends and their replies, commit, heartbeat rounds, reads
//   raft_core_membership.cc   who is a member, since which entry
//   raft_core_snapshot.cc     for peers whose next entry is gone
//   raft_core_rejoin.cc       nodes that lost their log
#pragma once

#include <algorithm>
#include <array>
#include <deque>
#include <set>
#include <utility>

#include "common/base/assert.h"
#include "common/env/random.h"
#include "common/wire/raft_codec.h"
#include "serverd/raft/raft_core.h"

namespace fermata::serverd {

/// An invariant of the core. Quiet while a test breaks a rule, so that the checkers get to speak.
#define RAFT_ASSERT(condition) \
  FM_ASSERT(options.mutation != RaftMutation::kNone || static_cast<bool>(condition))

/// Of one read; bounds an append of empty entries. At most twice that is in one append.
inline constexpr std::uint64_t kEntriesPerAppendMax = kRaftEntriesMax / 2;

struct RaftCore::Impl {
  Impl(RaftOptions options_in, HardState hard_in, Membership membership, LogIndex applied,
       LogView& log, TimePoint now);

  RaftOptions options;
  LogView& view;
  SeededRandom random;

  // Persistence: every event has a number, and an Output is known by its last event's.
  HardState hard;
  std::uint64_t sequence = 0;
  std::uint64_t persisted = 0;        ///< every event up to here is durable
  std::uint64_t hard_changed_at = 0;  ///< the event that last changed `hard`
  bool hard_durable() const { return persisted >= hard_changed_at; }
  /// For how long a primary that was just heard of may count on no vote from here: its election
  /// timeout may differ from this node's.
  Duration silence() const {
    return std::max<Duration>(options.election_timeout_min,
                              std::chrono::milliseconds(hard.silence_ms));
  }

  // The log. Entries (durable, last] are in `tail`, the others in the view.
  LogIndex durable;
  LogIndex last;
  Term last_term;
  std::deque<LogEntry> tail;
  /// What becomes durable with which event; truncation lowers the marks that are under way, so a
  /// late report never covers an entry that was cut and came back.
  struct Mark {
    std::uint64_t sequence;
    LogIndex index;
  };
  std::deque<Mark> marks;
  LogIndex commit;

  /// Members since which entry: the newest one at or below `commit`, then any newer ones.
  struct MembersSince {
    LogIndex index;
    Membership membership;
  };
  std::deque<MembersSince> members;

  // Role.
  Role role = Role::kBackup;
  NodeId primary;
  TimePoint election_deadline;
  /// No vote before this (except in a transfer): a primary that this node has acknowledged may
  /// hold a lease until then.
  TimePoint refuse_votes_until = TimePoint::min();
  std::uint64_t seen_round = 0;  ///< highest of this term's primary
  std::optional<SnapshotDescriptor> installing;

  // Rejoining (hard.rejoining).
  std::uint64_t rejoin = 0;  ///< of this start
  LogIndex rejoin_until;     ///< as a primary said; none yet
  TimePoint rejoin_not_before = TimePoint::min();

  // Candidate.
  bool pre_vote = false;
  std::set<NodeId> granted;

  // Primary.
  std::map<NodeId, PeerProgress> peers;
  LogIndex first_of_term;  ///< the no-op
  std::uint64_t round = 0;
  struct Round {
    std::uint64_t number;
    TimePoint begun;
  };
  std::deque<Round> rounds;  ///< recent ones, for the lease
  TimePoint heartbeat_due;
  NodeId transfer_to;
  TimePoint transfer_deadline;
  /// Once kTimeoutNow was sent, its receiver may be elected in spite of leases, so there is no
  /// lease until it has acknowledged a later round (after which it refuses that kTimeoutNow). By
  /// receiver.
  std::map<NodeId, std::uint64_t> lease_void_since;

  bool mutated(RaftMutation mutation) const { return options.mutation == mutation; }

  // raft_core.cc
  void begin(Output& out) { out.sequence = ++sequence; }
  void finish(Output& out) const { out.commit = std::max(out.commit, commit); }
  void tick(TimePoint now, Output& out);
  void receive(const RaftMessage& message, TimePoint now, Output& out);
  void on_persisted(std::uint64_t up_to, TimePoint now, Output& out);
  TimePoint next_tick() const;
  RaftMessage to(NodeId peer, RaftKind kind) const;
  /// A promise: goes out once everything so far is durable (at once if it already is).
  void promise(RaftMessage message, Output& out) const;

  // raft_core_election.cc
  void set_hard(HardState next, Output& out);
  void reset_election_timer(TimePoint now);
  void become_backup(Term term, NodeId new_primary, TimePoint now, Output& out);
  void follow(const RaftMessage& message, TimePoint now, Output& out);
  void ask_pre_votes(TimePoint now, Output& out);
  void campaign(bool transfer, TimePoint now, Output& out);
  void count_votes(TimePoint now, Output& out);
  void become_primary(TimePoint now, Output& out);
  bool log_is_up_to_date(const RaftMessage& vote) const;
  void handle_pre_vote(const RaftMessage& message, TimePoint now, Output& out);
  void handle_vote(const RaftMessage& message, TimePoint now, Output& out);
  void handle_vote_reply(const RaftMessage& message, TimePoint now, Output& out);
  Status transfer_leadership(NodeId target, TimePoint now, Output& out);
  void continue_transfer(TimePoint now, Output& out);
  void handle_timeout_now(const RaftMessage& message, TimePoint now, Output& out);
  TimePoint quorum_heard_at() const;

  // raft_core_log.cc
  LogIndex first_index() const { return view.first_index(); }
  std::optional<Term> term_at(LogIndex index) const;
  Result<std::vector<LogEntry>> read(LogIndex from, std::size_t bytes_max) const;
  void append(LogEntry entry, Output& out);
  void truncate_from(LogIndex index);
  LogIndex last_index_with_term_at_most(LogIndex index, Term term) const;
  void reset_log(LogIndex index, Term term);

  // raft_core_replication.cc
  LogIndex append_own(EntryKind kind, std::shared_ptr<const std::string> data, Output& out);
  void replicate(NodeId id, PeerProgress& peer, TimePoint now, Output& out);
  void replicate_all(TimePoint now, Output& out);
  bool extend_unsent(NodeId id, PeerProgress& peer, Output& out) const;
  void begin_round(TimePoint now, Output& out);
  void heartbeat(NodeId id, PeerProgress& peer, TimePoint now, Output& out);
  void handle_append(const RaftMessage& message, TimePoint now, Output& out);
  void accept_entries(const RaftMessage& message, Output& out);
  void reject_append(const RaftMessage& message, Output& out) const;
  void reply_matched(const RaftMessage& message, LogIndex matched, Output& out) const;
  void handle_append_reply(const RaftMessage& message, TimePoint now, Output& out);
  void note_alive(NodeId from, PeerProgress& peer, std::uint64_t acked, TimePoint now);
  void note_match(const RaftMessage& reply, PeerProgress& peer, TimePoint now, Output& out);
  void advance_commit(TimePoint now, Output& out);
  void commit_to(LogIndex index);
  bool term_committed() const { return commit >= first_of_term; }
  TimePoint lease_until() const;
  bool may_read(TimePoint now) const;
  std::uint64_t confirmed_round() const;

  // raft_core_rejoin.cc
  bool admit(PeerProgress& peer, const RaftMessage& reply);
  void tell_rejoining(PeerProgress& peer, RaftMessage& append) const;
  void note_rejoin_until(const RaftMessage& append);
  void finish_rejoin(TimePoint now, Output& out);
  /// Whether a rejoining node has no part in majorities.
  bool rejoining_is_mute() const;
  bool may_vote() const { return !hard.rejoining || !rejoining_is_mute(); }
  /// Of a peer that counts; null: it is none, or is rejoining.
  const PeerProgress* counted(NodeId id) const;

  // raft_core_membership.cc
  /// kBadMessage unless it holds at least one member.
  static Result<Membership> decode_members(const LogEntry& entry);
  const Membership& membership() const { return members.back().membership; }
  const Member* find_member(NodeId id) const;
  bool is_voter(NodeId id) const;
  bool may_campaign() const;
  bool membership_committed() const { return members.back().index <= commit; }
  /// The k-th largest of `value` over the voters, where k is a majority: what a quorum has reached.
  template <class F>
  auto quorum_value(F value) const;
  bool is_quorum(const std::set<NodeId>& who) const;
  void scan_log_for_members(const Membership& base);
  void adopt_membership(LogIndex index, Membership next, Output& out);
  void revert_membership_from(LogIndex index);
  void prune_memberships();
  void settle_role(Output* out);
  void settle_peers(TimePoint now);
  Result<LogIndex> propose_membership(Membership next, TimePoint now, Output& out);
  void leave_if_removed(TimePoint now, Output& out);

  // raft_core_snapshot.cc
  void need_snapshot(NodeId id, PeerProgress& peer, TimePoint now, Output& out) const;
  void send_snapshot(NodeId to, const SnapshotDescriptor& snapshot, TimePoint now, Output& out);
  void handle_snapshot(const RaftMessage& message, TimePoint now, Output& out);
  void handle_snapshot_reply(const RaftMessage& message, TimePoint now, Output& out);
  void on_snapshot_installed(const SnapshotDescriptor& snapshot, TimePoint now, Output& out);
  void on_snapshot_failed(const SnapshotDescriptor& snapshot, TimePoint now, Output& out);
};

template <class F>
auto RaftCore::Impl::quorum_value(F value) const {
  using Value = decltype(value(NodeId()));
  std::array<Value, kRaftMembersMax> values;
  std::size_t count = 0;
  for (const Member& member : membership().members) {
    if (member.voter) values[count++] = value(member.id);
  }
  if (count == 0) return Value{};
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(count / 2);
  std::nth_element(values.begin(), at, values.begin() + static_cast<std::ptrdiff_t>(count),
                   std::greater<>());
  return *at;
}

}  // namespace fermata::serverd
