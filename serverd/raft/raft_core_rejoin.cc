// A member that lost its log comes back. It does not know any more what it acknowledged and for
// whom it voted, so it may help neither a commit nor an election: with the copies that it promised
// gone, a majority that contains it proves nothing. Until it is whole again
//
//   - it grants no vote and does not campaign;
//   - its replies carry a number, another one after each start, by which the primary knows that
//   what
//     this peer acknowledged before is void, and leaves it out of every majority: for commits, the
//     lease, reads and check-quorum.
//
// It is whole when its log holds, durably, all that was committed when it began anew. The primary
// learns how far that is: a round begun after it heard of the loss and answered by a majority that
// the peer is not in proves that no later primary existed when it began, so its commit index then
// covers whatever the peer ever helped to commit. (Any quorum of old meets such a majority in
// another node than this one. That is the recovery of Liskov and Cowling, "Viewstamped Replication
// Revisited", 2012, §4.3, with the primary asking for the node.)
//
// In a group of two every majority has the other node in it, which has lost nothing: there the
// returning node counts and votes at once, and only does not campaign.
#include "serverd/raft/raft_core_impl.h"

namespace fermata::serverd {

// ---- the primary's side

const PeerProgress* RaftCore::Impl::counted(NodeId id) const {
  const auto peer = peers.find(id);
  if (peer == peers.end()) return nullptr;
  return peer->second.rejoin == 0 || !rejoining_is_mute() ? &peer->second : nullptr;
}

bool RaftCore::Impl::rejoining_is_mute() const {
  const auto voters = std::count_if(membership().members.begin(), membership().members.end(),
                                    [](const Member& member) { return member.voter; });
  return voters != 2;
}

/// Whether this reply may be used. One from before the loss may still come, long after.
bool RaftCore::Impl::admit(PeerProgress& peer, const RaftMessage& reply) {
  if (reply.rejoin != 0) {
    if (peer.rejoin == reply.rejoin) return true;
    PeerProgress fresh;
    fresh.next = reply.reject ? std::min(reply.prev_index, last).next() : last.next();
    fresh.heard_at = peer.heard_at;
    fresh.recently_active = peer.recently_active;
    fresh.rejoin = reply.rejoin;
    fresh.rejoin_since = round + 1;
    peer = std::move(fresh);
    return true;
  }
  if (peer.rejoin == 0) return true;
  if (!peer.rejoin_until || reply.round < peer.rejoin_told) return false;
  peer.rejoin = 0;
  return true;
}

void RaftCore::Impl::tell_rejoining(PeerProgress& peer, RaftMessage& append) const {
  if (peer.rejoin == 0) return;
  if (!peer.rejoin_until && term_committed() && confirmed_round() >= peer.rejoin_since) {
    peer.rejoin_until = commit;
    peer.rejoin_told = round;
  }
  if (!peer.rejoin_until) return;
  append.rejoin = peer.rejoin;
  append.rejoin_until = peer.rejoin_until;
}

// ---- the node's own side

void RaftCore::Impl::note_rejoin_until(const RaftMessage& append) {
  if (hard.rejoining && append.rejoin == rejoin && append.rejoin_until) {
    rejoin_until = append.rejoin_until;
  }
}

/// Not while a candidate that this node may have voted for in its earlier life, in a term that it
/// does not know, can still be waiting for votes.
void RaftCore::Impl::finish_rejoin(TimePoint now, Output& out) {
  if (!hard.rejoining || !rejoin_until || now < rejoin_not_before) return;
  if (std::min(commit, durable) < rejoin_until) return;
  HardState next = hard;
  next.rejoining = false;
  rejoin = 0;
  set_hard(next, out);
}

}  // namespace fermata::serverd
