// Appends, their replies, what is committed, and the heartbeat rounds behind leases and reads.
#include "serverd/raft/raft_core_impl.h"

namespace fermata::serverd {
namespace {

constexpr std::size_t kRoundsMax = 1024;

/// Whether an append could have been made by a correct primary. The codec has checked each field;
/// this checks how they hang together.
bool is_consistent(const RaftMessage& message) {
  LogIndex index = message.prev_index;
  Term term = message.prev_term;
  if (!index && term) return false;
  for (const LogEntry& entry : message.entries) {
    if (index.value() == UINT64_MAX || entry.index != index.next()) return false;
    if (!entry.term || entry.term < term || entry.term > message.term || !entry.data) return false;
    index = entry.index;
    term = entry.term;
  }
  return true;
}

}  // namespace

// ---- the primary's side

LogIndex RaftCore::Impl::append_own(EntryKind kind, std::shared_ptr<const std::string> data,
                                    Output& out) {
  RAFT_ASSERT(role == Role::kPrimary);
  append({last.next(), hard.term, kind, std::move(data)}, out);
  return last;
}

void RaftCore::Impl::replicate_all(TimePoint now, Output& out) {
  for (auto& [id, peer] : peers) replicate(id, peer, now, out);
}

/// Sends what the peer lacks, as far as flow control lets it.
void RaftCore::Impl::replicate(NodeId id, PeerProgress& peer, TimePoint now, Output& out) {
  while (!peer.in_snapshot && peer.next <= last) {
    if (peer.probing ? peer.probe_sent : peer.inflight.size() >= options.inflight_max) {
      if (!peer.probing) extend_unsent(id, peer, out);
      return;
    }
    if (!peer.probing && extend_unsent(id, peer, out)) continue;
    const auto prev_term = term_at(peer.next.prev());
    if (!prev_term || peer.next < first_index()) return need_snapshot(id, peer, now, out);
    auto entries = read(peer.next, options.append_bytes_max);
    if (!entries || entries->empty()) return;  // the driver has seen the error and stops the node
    RaftMessage message = to(id, RaftKind::kAppend);
    message.prev_index = peer.next.prev();
    message.prev_term = *prev_term;
    message.entries = std::move(*entries);
    message.commit = commit;
    message.round = round;
    tell_rejoining(peer, message);
    const LogIndex end = message.entries.back().index;
    out.messages.push_back(std::move(message));
    if (peer.probing) {
      peer.probe_sent = true;
      return;
    }
    peer.inflight.push_back(end);
    peer.next = end.next();
  }
}

/// Adds the next entries to an append for this peer that is still in the Output, so that proposals
/// made in one go travel together [thesis 10.2.2].
bool RaftCore::Impl::extend_unsent(NodeId id, PeerProgress& peer, Output& out) const {
  if (peer.next <= durable || peer.inflight.empty()) return false;
  constexpr std::size_t kLookBack = 8;
  const std::size_t count = out.messages.size();
  for (std::size_t i = count; i > 0 && i + kLookBack > count; --i) {
    RaftMessage& message = out.messages[i - 1];
    if (message.to != id || message.kind != RaftKind::kAppend || message.entries.empty()) continue;
    if (message.term != hard.term || message.entries.back().index.next() != peer.next ||
        peer.inflight.back().next() != peer.next) {
      return false;
    }
    std::size_t bytes = 0;
    for (const LogEntry& entry : message.entries) bytes += entry.data->size() + sizeof entry;
    if (bytes >= options.append_bytes_max || message.entries.size() >= kEntriesPerAppendMax) {
      return false;
    }
    auto entries = read(peer.next, options.append_bytes_max - bytes);
    if (!entries || entries->empty()) return false;
    std::move(entries->begin(), entries->end(), std::back_inserter(message.entries));
    peer.inflight.back() = message.entries.back().index;
    peer.next = message.entries.back().index.next();
    return true;
  }
  return false;
}

void RaftCore::Impl::begin_round(TimePoint now, Output& out) {
  rounds.push_back({++round, now});
  if (rounds.size() > kRoundsMax) rounds.pop_front();
  heartbeat_due = now + options.heartbeat_interval;
  for (auto& [id, peer] : peers) heartbeat(id, peer, now, out);
  if (transfer_to) continue_transfer(now, out);
}

/// An empty append. It names the entry before `next`, so a peer that lost an append says so.
void RaftCore::Impl::heartbeat(NodeId id, PeerProgress& peer, TimePoint now, Output& out) {
  peer.recently_active = now - peer.heard_at < options.election_timeout_min;
  RaftMessage message = to(id, RaftKind::kAppend);
  const auto prev_term = peer.in_snapshot ? std::nullopt : term_at(peer.next.prev());
  if (prev_term) {
    message.prev_index = peer.next.prev();
    message.prev_term = *prev_term;
  } else if (peer.recently_active) {
    need_snapshot(id, peer, now, out);  // index 0 is equal everywhere: only the round matters
  }
  message.commit = commit;
  message.round = round;
  tell_rejoining(peer, message);
  out.messages.push_back(std::move(message));
}

void RaftCore::Impl::handle_append_reply(const RaftMessage& message, TimePoint now, Output& out) {
  const auto found = peers.find(message.from);
  if (role != Role::kPrimary || found == peers.end()) return;
  PeerProgress& peer = found->second;
  if (!admit(peer, message)) return;
  note_alive(message.from, peer, message.round, now);
  if (!message.reject) return note_match(message, peer, now, out);
  if (peer.in_snapshot) return;
  if (message.prev_index <= peer.match) {
    if (!peer.match || message.round <= peer.match_round) return;  // old news
    // It had these and has them no longer: its log was damaged or put back. They are sent again.
    // (Or a reject overtook an acknowledgement. Then too there is no harm in asking again.)
    peer.match = LogIndex();
    peer.match_round = message.round;
    out.forgetful.push_back(message.from);
  }
  if (peer.probing && message.prev_index != peer.next.prev()) return;
  // Both sides skip whole terms: nothing above this can be equal.
  LogIndex agree = std::min(message.match, message.prev_index.prev());
  agree = last_index_with_term_at_most(agree, message.match_term);
  const LogIndex next = std::max(peer.match, agree).next();
  const bool moved = next < peer.next;
  peer.next = next;
  peer.probing = true;
  peer.inflight.clear();
  if (moved) {  // else wait for the next heartbeat, so a peer that refuses everything costs little
    peer.probe_sent = false;
    replicate(message.from, peer, now, out);
  }
}

void RaftCore::Impl::note_alive(NodeId from, PeerProgress& peer, std::uint64_t acked,
                                TimePoint now) {
  peer.heard_at = now;
  peer.recently_active = true;
  if (acked > peer.acked_round && acked <= round) {
    peer.acked_round = acked;
    const auto begun =
        std::lower_bound(rounds.begin(), rounds.end(), acked,
                         [](const Round& r, std::uint64_t number) { return r.number < number; });
    if (begun != rounds.end() && begun->number == acked) peer.acked_at = begun->begun;
  }
  if (const auto sent = lease_void_since.find(from);
      sent != lease_void_since.end() && acked > sent->second) {
    lease_void_since.erase(sent);
  }
}

/// The peer has everything up to `match` durably.
void RaftCore::Impl::note_match(const RaftMessage& reply, PeerProgress& peer, TimePoint now,
                                Output& out) {
  const NodeId from = reply.from;
  if (reply.match > last) return;  // no correct peer says so
  if (reply.match >= peer.match) {
    peer.match = reply.match;
    peer.match_round = std::max(peer.match_round, reply.round);
  }
  if (peer.in_snapshot) {
    if (peer.match < peer.snapshot.index) return;
    peer.in_snapshot = false;
    peer.next = peer.match.next();
  }
  while (!peer.inflight.empty() && peer.inflight.front() <= peer.match) peer.inflight.pop_front();
  // An append that matched at next - 1, or anything newer, shows where the logs meet.
  if (peer.probing) {
    peer.probing = peer.match < peer.next.prev();
    peer.probe_sent = peer.probing;
  }
  peer.next = std::max(peer.next, peer.match.next());
  advance_commit(now, out);
  if (role != Role::kPrimary) return;  // removed itself with that commit
  const auto again = peers.find(from);
  if (again == peers.end()) return;
  replicate(from, again->second, now, out);
  if (transfer_to == from && again->second.match == last) continue_transfer(now, out);
}

void RaftCore::Impl::advance_commit(TimePoint now, Output& out) {
  LogIndex reached = quorum_value([this](NodeId id) {
    if (id == options.self) return durable;
    const PeerProgress* peer = counted(id);
    return peer == nullptr ? LogIndex() : peer->match;
  });
  if (mutated(RaftMutation::kCommitBeforeQuorum)) reached = std::max(reached, durable);
  if (reached <= commit) return;
  // Only this term's entries are committed by counting; older ones with them [thesis 3.6.2].
  if (term_at(reached) != hard.term && !mutated(RaftMutation::kCommitOldTerm)) return;
  commit_to(reached);
  leave_if_removed(now, out);
}

void RaftCore::Impl::commit_to(LogIndex index) {
  RAFT_ASSERT(index <= last);
  if (index <= commit) return;
  commit = index;
  prune_memberships();
}

// ---- the backup's side

void RaftCore::Impl::handle_append(const RaftMessage& message, TimePoint now, Output& out) {
  if (role == Role::kPrimary && !mutated(RaftMutation::kIgnoreTerm)) return;  // no correct peer
  if (!is_consistent(message)) return;
  follow(message, now, out);
  note_rejoin_until(message);
  if (installing) return reject_append(message, out);  // the log is about to be replaced
  if (message.prev_index > commit && term_at(message.prev_index) != message.prev_term) {
    return reject_append(message, out);
  }
  accept_entries(message, out);
  finish_rejoin(now, out);
}

/// The logs agree at prev_index (or it is committed, which is as good).
void RaftCore::Impl::accept_entries(const RaftMessage& message, Output& out) {
  LogIndex matched = message.prev_index;
  for (const LogEntry& entry : message.entries) {
    matched = entry.index;
    if (entry.index <= commit) continue;  // equal by leader completeness
    if (entry.index <= last && term_at(entry.index) == entry.term) continue;
    Result<Membership> next = Membership();
    if (entry.kind == EntryKind::kMembership) next = decode_members(entry);
    if (!next || entry.index > last.next() || entry.term > hard.term ||
        entry.term < term_at(entry.index.prev())) {
      matched = entry.index.prev();  // no correct primary sends it
      break;
    }
    if (entry.index <= last) truncate_from(entry.index);
    append(entry, out);
    if (entry.kind == EntryKind::kMembership) {
      adopt_membership(entry.index, std::move(*next), out);
    }
  }
  if (mutated(RaftMutation::kTruncateCommitted) && !message.entries.empty() && matched < last) {
    truncate_from(matched);
    append(message.entries.back(), out);
  }
  if (message.prev_index <= commit) matched = std::max(matched, std::min(commit, last));
  commit_to(std::min({message.commit, matched, last}));
  reply_matched(message, matched, out);
}

void RaftCore::Impl::reply_matched(const RaftMessage& message, LogIndex matched,
                                   Output& out) const {
  RaftMessage reply = to(message.from, RaftKind::kAppendReply);
  reply.round = message.round;
  reply.prev_index = message.prev_index;
  // What is committed is in this primary's log too, so it may be told in any case.
  reply.match = std::max(matched, commit);
  if (message.entries.empty()) {
    // A heartbeat is answered at once, whatever the disk is busy with: the lease waits for it.
    reply.match = std::min(reply.match, durable);
    auto& queue = hard_durable() ? out.messages : out.messages_after_persist;
    queue.push_back(std::move(reply));
  } else {
    promise(std::move(reply), out);
  }
}

void RaftCore::Impl::reject_append(const RaftMessage& message, Output& out) const {
  RaftMessage reply = to(message.from, RaftKind::kAppendReply);
  reply.reject = true;
  reply.round = message.round;
  reply.prev_index = message.prev_index;
  if (message.prev_index) {
    reply.match = last_index_with_term_at_most(message.prev_index.prev(), message.prev_term);
    reply.match_term = term_at(reply.match).value_or(Term());
  }
  auto& queue = hard_durable() ? out.messages : out.messages_after_persist;
  queue.push_back(std::move(reply));
}

// ---- leases and reads

/// Until when no other node can be elected: every majority contains a node that acknowledged a
/// round begun after that, and refuses to vote for election_timeout_min since [thesis 6.4.1].
TimePoint RaftCore::Impl::lease_until() const {
  if (role != Role::kPrimary) return TimePoint::min();
  if (!lease_void_since.empty() && !mutated(RaftMutation::kLeaseDuringTransfer)) {
    return TimePoint::min();
  }
  const TimePoint since = quorum_value([this](NodeId id) {
    if (id == options.self) return TimePoint::max();
    const PeerProgress* peer = counted(id);
    return peer == nullptr ? TimePoint::min() : peer->acked_at;
  });
  if (since == TimePoint::max() || since == TimePoint::min()) return since;
  return since + options.election_timeout_min - options.clock_drift_max;
}

bool RaftCore::Impl::may_read(TimePoint now) const {
  if (role != Role::kPrimary || !term_committed()) return false;
  return now < lease_until() || mutated(RaftMutation::kReadWithoutLease);
}

/// The newest round that a majority has answered, so that this node was primary when it began.
std::uint64_t RaftCore::Impl::confirmed_round() const {
  return quorum_value([this](NodeId id) {
    if (id == options.self) return round;
    const PeerProgress* peer = counted(id);
    return peer == nullptr ? std::uint64_t{0} : peer->acked_round;
  });
}

}  // namespace fermata::serverd
