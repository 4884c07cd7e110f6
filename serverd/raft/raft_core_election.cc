// Roles and how they change: pre-vote, vote, check-quorum, leadership transfer.
#include "serverd/raft/raft_core_impl.h"

namespace fermata::serverd {

void RaftCore::Impl::set_hard(HardState next, Output& out) {
  RAFT_ASSERT(next.term >= hard.term);
  if (next == hard) return;
  hard = next;
  hard_changed_at = sequence;
  out.hard_state = hard;
}

void RaftCore::Impl::reset_election_timer(TimePoint now) {
  const auto span = static_cast<std::uint64_t>(options.election_timeout_min.count());
  election_deadline =
      now + options.election_timeout_min + Duration(static_cast<Duration::rep>(random.below(span)));
}

/// Follows `new_primary` (none if unknown) in `term`. Does not touch refuse_votes_until: only a
/// message from a primary proves that one is alive.
void RaftCore::Impl::become_backup(Term term, NodeId new_primary, TimePoint now, Output& out) {
  if (term > hard.term) {
    HardState next = hard;
    next.term = term;
    next.voted_for = NodeId();
    set_hard(next, out);
    seen_round = 0;
  }
  primary = new_primary;
  peers.clear();
  rounds.clear();
  granted.clear();
  pre_vote = false;
  transfer_to = NodeId();
  role = is_voter(options.self) ? Role::kBackup : Role::kLearner;
  out.role_changed = true;
  reset_election_timer(now);
}

/// A message of this term's primary has come: it is alive, and may count on this node's silence.
void RaftCore::Impl::follow(const RaftMessage& message, TimePoint now, Output& out) {
  if (role == Role::kCandidate || primary != message.from) {
    become_backup(hard.term, message.from, now, out);
  }
  reset_election_timer(now);
  const Duration asked = std::chrono::milliseconds(message.silence_ms);
  const TimePoint until = now + std::max<Duration>(options.election_timeout_min, asked);
  refuse_votes_until = std::max(refuse_votes_until, until);
  // Durably: a restart must not shorten it. It becomes less when no longer promise is left.
  const bool longer = message.silence_ms > hard.silence_ms;
  const bool shorter = message.silence_ms < hard.silence_ms && refuse_votes_until == until;
  if (longer || shorter) {
    HardState next = hard;
    next.silence_ms = message.silence_ms;
    set_hard(next, out);
  }
  seen_round = std::max(seen_round, message.round);
}

void RaftCore::Impl::ask_pre_votes(TimePoint now, Output& out) {
  if (role != Role::kCandidate || !pre_vote || primary) out.role_changed = true;
  role = Role::kCandidate;
  primary = NodeId();
  pre_vote = true;
  granted.clear();
  reset_election_timer(now);
  for (const Member& member : membership().members) {
    if (!member.voter || member.id == options.self) continue;
    RaftMessage message = to(member.id, RaftKind::kPreVote);
    message.term = hard.term.next();
    message.prev_index = last;
    message.prev_term = last_term;
    out.messages.push_back(std::move(message));
  }
  count_votes(now, out);
}

/// Asks for votes in the next term. The requests leave after the own vote is durable, so no answer
/// can make this node primary in a term that it would forget.
void RaftCore::Impl::campaign(bool transfer, TimePoint now, Output& out) {
  RAFT_ASSERT(role != Role::kPrimary);
  HardState next = hard;
  next.term = hard.term.next();
  next.voted_for = options.self;
  set_hard(next, out);
  seen_round = 0;
  role = Role::kCandidate;
  primary = NodeId();
  pre_vote = false;
  granted.clear();
  out.role_changed = true;
  reset_election_timer(now);
  for (const Member& member : membership().members) {
    if (!member.voter || member.id == options.self) continue;
    RaftMessage message = to(member.id, RaftKind::kVote);
    message.prev_index = last;
    message.prev_term = last_term;
    message.transfer = transfer;
    out.messages_after_persist.push_back(std::move(message));
  }
}

void RaftCore::Impl::count_votes(TimePoint now, Output& out) {
  RAFT_ASSERT(role == Role::kCandidate);
  if (pre_vote || hard_durable()) granted.insert(options.self);
  if (!is_quorum(granted)) return;
  if (pre_vote) {
    campaign(false, now, out);
  } else {
    become_primary(now, out);
  }
}

void RaftCore::Impl::become_primary(TimePoint now, Output& out) {
  RAFT_ASSERT(hard.voted_for == options.self && hard_durable());
  RAFT_ASSERT(!hard.rejoining);
  role = Role::kPrimary;
  primary = options.self;
  out.role_changed = true;
  granted.clear();
  round = 0;
  rounds.clear();
  transfer_to = NodeId();
  lease_void_since.clear();
  peers.clear();
  settle_peers(now);
  if (!last) {
    // The group's first entry says who founded it, so that a node that joins later and replays the
    // log (and makes a snapshot of it) knows the membership from index 1 on.
    auto data = std::make_shared<const std::string>(encode_membership(membership()));
    first_of_term = append_own(EntryKind::kMembership, std::move(data), out);
    adopt_membership(first_of_term, Membership(membership()), out);
  } else {
    first_of_term = append_own(EntryKind::kNoop, std::make_shared<const std::string>(), out);
  }
  begin_round(now, out);
  replicate_all(now, out);
}

bool RaftCore::Impl::log_is_up_to_date(const RaftMessage& vote) const {
  if (mutated(RaftMutation::kVoteForOldLog)) return true;
  if (vote.prev_term != last_term) return vote.prev_term > last_term;
  return vote.prev_index >= last;  // [thesis 3.6.1]
}

/// Says whether this node would vote, and changes nothing.
void RaftCore::Impl::handle_pre_vote(const RaftMessage& message, TimePoint now, Output& out) {
  const bool lease_held = !mutated(RaftMutation::kVoteDuringLease) &&
                          (role == Role::kPrimary || now < refuse_votes_until);
  const bool grant =
      message.term > hard.term && !lease_held && may_vote() && log_is_up_to_date(message);
  RaftMessage reply = to(message.from, RaftKind::kPreVoteReply);
  reply.reject = !grant;
  if (grant) reply.term = message.term;
  out.messages.push_back(std::move(reply));
}

void RaftCore::Impl::handle_vote(const RaftMessage& message, TimePoint now, Output& out) {
  // A primary steps down by check-quorum if it is cut off; while it is not, nobody needs another.
  const bool lease_held = !mutated(RaftMutation::kVoteDuringLease) && !message.transfer &&
                          (role == Role::kPrimary || now < refuse_votes_until);
  if (message.term > hard.term && !lease_held && !mutated(RaftMutation::kIgnoreTerm)) {
    become_backup(message.term, NodeId(), now, out);
  }
  const bool free =
      !hard.voted_for || hard.voted_for == message.from || mutated(RaftMutation::kVoteTwice);
  const bool grant = message.term == hard.term && !lease_held && free && !primary &&
                     role != Role::kPrimary && may_vote() && log_is_up_to_date(message);
  if (!grant) {
    RaftMessage reply = to(message.from, RaftKind::kVoteReply);
    reply.reject = true;
    out.messages.push_back(std::move(reply));
    return;
  }
  HardState next = hard;
  next.voted_for = message.from;
  set_hard(next, out);
  reset_election_timer(now);
  promise(to(message.from, RaftKind::kVoteReply), out);
}

void RaftCore::Impl::handle_vote_reply(const RaftMessage& message, TimePoint now, Output& out) {
  const bool is_pre = message.kind == RaftKind::kPreVoteReply;
  if (role != Role::kCandidate || pre_vote != is_pre || message.reject) return;
  if (message.term != (is_pre ? hard.term.next() : hard.term)) return;
  granted.insert(message.from);
  count_votes(now, out);
}

Status RaftCore::Impl::transfer_leadership(NodeId target, TimePoint now, Output& out) {
  if (role != Role::kPrimary) return Errc::kNotPrimary;
  if (target == options.self || !is_voter(target)) return std::errc::invalid_argument;
  if (transfer_to && transfer_to != target) return Errc::kRetry;
  transfer_to = target;
  transfer_deadline = now + options.election_timeout_min;
  continue_transfer(now, out);
  return {};
}

/// Tells the target to take over as soon as it has the whole log. Called again with every heartbeat
/// and every progress until the term ends or the deadline passes.
void RaftCore::Impl::continue_transfer(TimePoint now, Output& out) {
  const auto peer = peers.find(transfer_to);
  if (peer == peers.end()) {  // removed meanwhile
    transfer_to = NodeId();
    return;
  }
  if (peer->second.match < last) return replicate(peer->first, peer->second, now, out);
  lease_void_since[transfer_to] = round;
  RaftMessage message = to(transfer_to, RaftKind::kTimeoutNow);
  message.round = round;
  out.messages.push_back(std::move(message));
}

void RaftCore::Impl::handle_timeout_now(const RaftMessage& message, TimePoint now, Output& out) {
  if (role != Role::kBackup || installing || !may_campaign()) return;
  if (primary && primary != message.from) return;
  // An old one that a later heartbeat overtook: the primary has its lease back.
  if (message.round < seen_round) return;
  campaign(true, now, out);
}

/// When a majority was last heard of; max for a majority of one.
TimePoint RaftCore::Impl::quorum_heard_at() const {
  return quorum_value([this](NodeId id) {
    if (id == options.self) return TimePoint::max();
    const PeerProgress* peer = counted(id);
    return peer == nullptr ? TimePoint::min() : peer->heard_at;
  });
}

}  // namespace fermata::serverd
