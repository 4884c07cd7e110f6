// Snapshots by description: for a peer whose next entry is no longer in the log. The files travel
// out of band; the core only says who fetches what, and where the log goes on.
#include "serverd/raft/raft_core_impl.h"

namespace fermata::serverd {

// ---- the primary's side

/// Asks the driver for a snapshot, or tells the peer again of the one that it was given; at most
/// once per election timeout, and only while the peer is heard of.
void RaftCore::Impl::need_snapshot(NodeId id, PeerProgress& peer, TimePoint now,
                                   Output& out) const {
  if (!peer.recently_active) return;
  if (peer.snapshot_at != TimePoint::min() &&
      now - peer.snapshot_at < options.election_timeout_min) {
    return;
  }
  peer.snapshot_at = now;
  if (!peer.in_snapshot) {
    out.wants_snapshot.push_back(id);
    return;
  }
  RaftMessage message = to(id, RaftKind::kSnapshot);
  message.round = round;
  message.snapshot = peer.snapshot;
  out.messages.push_back(std::move(message));
}

void RaftCore::Impl::send_snapshot(NodeId id, const SnapshotDescriptor& snapshot, TimePoint now,
                                   Output& out) {
  const auto found = peers.find(id);
  if (role != Role::kPrimary || found == peers.end()) return;
  PeerProgress& peer = found->second;
  RAFT_ASSERT(snapshot.index <= commit);
  RAFT_ASSERT(!snapshot.membership.members.empty());
  if (snapshot.index.next() < first_index() || snapshot.index <= peer.match) return;
  peer.in_snapshot = true;
  peer.snapshot = snapshot;
  peer.next = snapshot.index.next();
  peer.inflight.clear();
  peer.probing = true;
  peer.probe_sent = false;
  peer.snapshot_at = TimePoint::min();
  need_snapshot(id, peer, now, out);
}

void RaftCore::Impl::handle_snapshot_reply(const RaftMessage& message, TimePoint now, Output& out) {
  const auto found = peers.find(message.from);
  if (role != Role::kPrimary || found == peers.end()) return;
  PeerProgress& peer = found->second;
  if (!admit(peer, message)) return;
  note_alive(message.from, peer, message.round, now);
  if (!message.reject) return note_match(message, peer, now, out);
  if (!peer.in_snapshot || message.snapshot.index != peer.snapshot.index) return;
  peer.in_snapshot = false;  // and the next heartbeat finds that it needs one
  peer.next = peer.match.next();
  peer.snapshot_at = now;
}

// ---- the backup's side

void RaftCore::Impl::handle_snapshot(const RaftMessage& message, TimePoint now, Output& out) {
  if (role == Role::kPrimary && !mutated(RaftMutation::kIgnoreTerm)) return;
  const SnapshotDescriptor& snapshot = message.snapshot;
  if (!snapshot.index || !snapshot.term || snapshot.term > message.term ||
      !well_formed(snapshot.membership) || snapshot.membership.members.empty()) {
    return;
  }
  follow(message, now, out);
  if (installing) return;  // one at a time; the primary asks again
  const bool have_it = term_at(snapshot.index) == snapshot.term;
  if (snapshot.index > commit && have_it) commit_to(snapshot.index);
  if (snapshot.index <= commit) {
    RaftMessage reply = to(message.from, RaftKind::kAppendReply);
    reply.round = message.round;
    reply.match = commit;
    return promise(std::move(reply), out);
  }
  if (snapshot.term < last_term && snapshot.index > last) return;  // no correct primary has it
  installing = snapshot;
  out.fetch_snapshot = snapshot;
  out.fetch_from = message.from;
}

void RaftCore::Impl::on_snapshot_installed(const SnapshotDescriptor& snapshot, TimePoint now,
                                           Output& out) {
  RAFT_ASSERT(installing && *installing == snapshot);
  RAFT_ASSERT(snapshot.index > commit);
  RAFT_ASSERT(view.last_index() == snapshot.index);
  RAFT_ASSERT(view.term_at(snapshot.index) == snapshot.term);
  installing.reset();
  reset_log(snapshot.index, snapshot.term);
  commit = snapshot.index;
  members.clear();
  members.push_back({snapshot.index, snapshot.membership});
  settle_role(&out);
  reset_election_timer(now);
  if (!primary) return;
  RaftMessage reply = to(primary, RaftKind::kSnapshotReply);
  reply.match = snapshot.index;
  reply.snapshot.index = snapshot.index;
  promise(std::move(reply), out);
}

void RaftCore::Impl::on_snapshot_failed(const SnapshotDescriptor& snapshot, TimePoint now,
                                        Output& out) {
  RAFT_ASSERT(installing && *installing == snapshot);
  installing.reset();
  reset_election_timer(now);
  if (!primary) return;
  RaftMessage reply = to(primary, RaftKind::kSnapshotReply);
  reply.reject = true;
  reply.snapshot.index = snapshot.index;
  out.messages.push_back(std::move(reply));
}

}  // namespace fermata::serverd
