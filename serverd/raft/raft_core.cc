#include "serverd/raft/raft_core.h"

#include "serverd/raft/raft_core_impl.h"

namespace fermata::serverd {

const char* to_string(Role role) {
  switch (role) {
    case Role::kBackup:
      return "backup";
    case Role::kCandidate:
      return "candidate";
    case Role::kPrimary:
      return "primary";
    case Role::kLearner:
      return "learner";
  }
  return "unknown";
}

RaftCore::Impl::Impl(RaftOptions options_in, HardState hard_in, Membership base, LogIndex applied,
                     LogView& log, TimePoint now)
    : options(options_in),
      view(log),
      random(options_in.seed ^ (std::uint64_t{options_in.self.value()} << 32)),
      hard(hard_in),
      durable(log.last_index()),
      last(durable),
      commit(std::max(applied, log.first_index().prev())) {
  FM_ASSERT(options.self);
  FM_ASSERT(options.clock_drift_max < options.election_timeout_min);
  FM_ASSERT(options.heartbeat_interval < options.election_timeout_min);
  FM_ASSERT(options.inflight_max > 0);
  FM_ASSERT(commit <= last);
  last_term = term_at(last).value_or(Term());
  RAFT_ASSERT(last_term <= hard.term);  // the hard state is persisted before the entries
  scan_log_for_members(base);
  settle_role(nullptr);
  reset_election_timer(now);
  // Before the restart this node may have acknowledged a primary that still counts on it. A node
  // that was never in any term has not.
  if (hard.term) refuse_votes_until = now + silence();
  if (hard.rejoining) {
    rejoin = random.next() | 1;
    rejoin_not_before = now + 2 * options.election_timeout_min + options.clock_drift_max;
  }
}

RaftMessage RaftCore::Impl::to(NodeId peer, RaftKind kind) const {
  RaftMessage message;
  message.kind = kind;
  message.group = options.group;
  message.from = options.self;
  message.to = peer;
  message.term = hard.term;
  if (kind == RaftKind::kAppendReply || kind == RaftKind::kSnapshotReply) message.rejoin = rejoin;
  if (kind == RaftKind::kAppend || kind == RaftKind::kSnapshot) {
    message.silence_ms = static_cast<std::uint32_t>(
        std::chrono::ceil<std::chrono::milliseconds>(options.election_timeout_min).count());
  }
  return message;
}

void RaftCore::Impl::promise(RaftMessage message, Output& out) const {
  auto& queue = hard_durable() && durable == last ? out.messages : out.messages_after_persist;
  queue.push_back(std::move(message));
}

void RaftCore::Impl::tick(TimePoint now, Output& out) {
  if (role == Role::kPrimary) {
    if (now - quorum_heard_at() >= options.election_timeout_min &&
        quorum_heard_at() != TimePoint::max()) {
      become_backup(hard.term, NodeId(), now, out);  // check-quorum [thesis 6.2]
      return;
    }
    if (transfer_to && now >= transfer_deadline) transfer_to = NodeId();
    if (now >= heartbeat_due) begin_round(now, out);
    return;
  }
  if (now < election_deadline) return;
  if (may_campaign() && !installing) {
    ask_pre_votes(now, out);
  } else {
    if (primary) {  // not heard of for a whole timeout
      primary = NodeId();
      out.role_changed = true;
    }
    reset_election_timer(now);
  }
}

TimePoint RaftCore::Impl::next_tick() const {
  if (role != Role::kPrimary) return election_deadline;
  TimePoint next = heartbeat_due;
  if (transfer_to) next = std::min(next, transfer_deadline);
  const TimePoint heard = quorum_heard_at();
  if (heard != TimePoint::max()) next = std::min(next, heard + options.election_timeout_min);
  return next;
}

void RaftCore::Impl::receive(const RaftMessage& message, TimePoint now, Output& out) {
  if (message.group != options.group || message.to != options.self) return;
  if (!message.from || message.from == options.self) return;
  // Requests for votes have their own rules about terms: they must not disturb a live primary.
  if (message.kind == RaftKind::kPreVote) return handle_pre_vote(message, now, out);
  if (message.kind == RaftKind::kVote) return handle_vote(message, now, out);
  const bool from_primary =
      message.kind == RaftKind::kAppend || message.kind == RaftKind::kSnapshot;
  if (message.term > hard.term && !mutated(RaftMutation::kIgnoreTerm)) {
    // A granted pre-vote echoes the term that was asked for, which nobody has yet.
    const bool is_echo = message.kind == RaftKind::kPreVoteReply && !message.reject;
    if (!is_echo) become_backup(message.term, from_primary ? message.from : NodeId(), now, out);
  }
  if (message.term < hard.term && !mutated(RaftMutation::kIgnoreTerm)) {
    if (!from_primary) return;
    RaftMessage reply = to(message.from, RaftKind::kAppendReply);  // tells it that it is deposed
    reply.reject = true;
    reply.round = message.round;
    reply.prev_index = message.prev_index;
    out.messages.push_back(std::move(reply));
    return;
  }
  switch (message.kind) {
    case RaftKind::kPreVoteReply:
    case RaftKind::kVoteReply:
      return handle_vote_reply(message, now, out);
    case RaftKind::kAppend:
      return handle_append(message, now, out);
    case RaftKind::kAppendReply:
      return handle_append_reply(message, now, out);
    case RaftKind::kSnapshot:
      return handle_snapshot(message, now, out);
    case RaftKind::kSnapshotReply:
      return handle_snapshot_reply(message, now, out);
    case RaftKind::kTimeoutNow:
      return handle_timeout_now(message, now, out);
    case RaftKind::kPreVote:
    case RaftKind::kVote:
      return;
  }
}

void RaftCore::Impl::on_persisted(std::uint64_t up_to, TimePoint now, Output& out) {
  RAFT_ASSERT(up_to <= sequence);
  persisted = std::max(persisted, up_to);
  LogIndex reached = durable;
  while (!marks.empty() && marks.front().sequence <= persisted) {
    reached = std::max(reached, marks.front().index);
    marks.pop_front();
  }
  RAFT_ASSERT(reached <= last);
  while (durable < reached && !tail.empty()) {
    tail.pop_front();
    durable = durable.next();
  }
  finish_rejoin(now, out);
  if (role == Role::kPrimary) advance_commit(now, out);
  if (role == Role::kCandidate) count_votes(now, out);  // the own vote counts from now on
}

RaftCore::RaftCore(RaftOptions options, HardState hard, Membership membership, LogIndex applied,
                   LogView& log, TimePoint now)
    : impl_(std::make_unique<Impl>(options, hard, std::move(membership), applied, log, now)) {}
RaftCore::~RaftCore() = default;
RaftCore::RaftCore(RaftCore&&) noexcept = default;
RaftCore& RaftCore::operator=(RaftCore&&) noexcept = default;

void RaftCore::tick(TimePoint now, Output& out) {
  impl_->begin(out);
  impl_->tick(now, out);
  impl_->finish(out);
}
void RaftCore::receive(const RaftMessage& message, TimePoint now, Output& out) {
  impl_->begin(out);
  impl_->receive(message, now, out);
  impl_->finish(out);
}
void RaftCore::on_persisted(std::uint64_t sequence, TimePoint now, Output& out) {
  impl_->begin(out);
  impl_->on_persisted(sequence, now, out);
  impl_->finish(out);
}
Result<LogIndex> RaftCore::propose(std::shared_ptr<const std::string> data, TimePoint now,
                                   Output& out) {
  FM_ASSERT(data != nullptr);
  if (impl_->role != Role::kPrimary) return Errc::kNotPrimary;
  if (impl_->transfer_to) return Errc::kRetry;
  impl_->begin(out);
  const LogIndex index = impl_->append_own(EntryKind::kCommand, std::move(data), out);
  impl_->replicate_all(now, out);
  impl_->finish(out);
  return index;
}
Result<LogIndex> RaftCore::propose_membership(Membership next, TimePoint now, Output& out) {
  impl_->begin(out);
  auto result = impl_->propose_membership(std::move(next), now, out);
  impl_->finish(out);
  return result;
}
Status RaftCore::transfer_leadership(NodeId to, TimePoint now, Output& out) {
  impl_->begin(out);
  auto result = impl_->transfer_leadership(to, now, out);
  impl_->finish(out);
  return result;
}
void RaftCore::on_snapshot_installed(const SnapshotDescriptor& snapshot, TimePoint now,
                                     Output& out) {
  impl_->begin(out);
  impl_->on_snapshot_installed(snapshot, now, out);
  impl_->finish(out);
}
void RaftCore::on_snapshot_failed(const SnapshotDescriptor& snapshot, TimePoint now, Output& out) {
  impl_->begin(out);
  impl_->on_snapshot_failed(snapshot, now, out);
  impl_->finish(out);
}
void RaftCore::send_snapshot(NodeId to, const SnapshotDescriptor& snapshot, TimePoint now,
                             Output& out) {
  impl_->begin(out);
  impl_->send_snapshot(to, snapshot, now, out);
  impl_->finish(out);
}
Result<ReadTicket> RaftCore::begin_read(TimePoint now, Output& out) {
  if (impl_->role != Role::kPrimary) return Errc::kNotPrimary;
  if (!impl_->term_committed()) return Errc::kRetry;
  impl_->begin(out);
  impl_->begin_round(now, out);
  impl_->finish(out);
  return ReadTicket{impl_->hard.term, impl_->round, impl_->commit};
}

TimePoint RaftCore::next_tick() const { return impl_->next_tick(); }
Role RaftCore::role() const { return impl_->role; }
Term RaftCore::term() const { return impl_->hard.term; }
NodeId RaftCore::primary() const { return impl_->primary; }
LogIndex RaftCore::commit() const { return impl_->commit; }
LogIndex RaftCore::last_index() const { return impl_->last; }
LogIndex RaftCore::durable_index() const { return impl_->durable; }
const Membership& RaftCore::membership() const { return impl_->membership(); }
bool RaftCore::may_read(TimePoint now) const { return impl_->may_read(now); }
LogIndex RaftCore::read_index() const { return impl_->commit; }
ReadState RaftCore::read_state(const ReadTicket& ticket) const {
  if (impl_->role != Role::kPrimary || impl_->hard.term != ticket.term) return ReadState::kLost;
  return impl_->confirmed_round() >= ticket.round ? ReadState::kReady : ReadState::kWaiting;
}
const std::map<NodeId, PeerProgress>& RaftCore::progress() const { return impl_->peers; }
TimePoint RaftCore::lease_until() const { return impl_->lease_until(); }
bool RaftCore::rejoining() const { return impl_->hard.rejoining; }

}  // namespace fermata::serverd
