// Who is a member. A membership is in force from the moment its entry is in the log, committed or
// not, and goes with the entry if that is truncated [thesis 4.1].
#include "common/wire/raft_codec.h"
#include "serverd/raft/raft_core_impl.h"

namespace fermata::serverd {
namespace {

/// How many members differ, counting a change of vote or address as one.
std::size_t count_changes(const Membership& before, const Membership& after) {
  std::size_t changes = 0;
  auto old = before.members.begin();
  auto now = after.members.begin();
  while (old != before.members.end() || now != after.members.end()) {
    if (now == after.members.end() || (old != before.members.end() && old->id < now->id)) {
      ++changes, ++old;
    } else if (old == before.members.end() || now->id < old->id) {
      ++changes, ++now;
    } else {
      if (*old != *now) ++changes;
      ++old, ++now;
    }
  }
  return changes;
}

bool has_voter(const Membership& membership) {
  return std::any_of(membership.members.begin(), membership.members.end(),
                     [](const Member& member) { return member.voter; });
}

const Member* find_in(const Membership& membership, NodeId id) {
  for (const Member& member : membership.members) {
    if (member.id == id) return &member;
  }
  return nullptr;
}

}  // namespace

bool well_formed(const Membership& membership) {
  if (membership.members.size() > kRaftMembersMax) return false;
  NodeId before;
  for (const Member& member : membership.members) {
    if (member.id <= before) return false;
    before = member.id;
  }
  return true;
}

Result<Membership> RaftCore::Impl::decode_members(const LogEntry& entry) {
  FM_TRY(Membership decoded, decode_membership(as_bytes(*entry.data)));
  if (!well_formed(decoded) || !has_voter(decoded)) return Errc::kBadMessage;
  return decoded;
}

const Member* RaftCore::Impl::find_member(NodeId id) const { return find_in(membership(), id); }

bool RaftCore::Impl::is_voter(NodeId id) const {
  const Member* member = find_member(id);
  return member != nullptr && member->voter;
}

/// A voter may. So may one whose removal is not committed yet: the others may need it to finish
/// that, though it does not count itself [thesis 4.2.2].
bool RaftCore::Impl::may_campaign() const {
  if (hard.rejoining) return false;
  if (is_voter(options.self)) return true;
  if (membership_committed() || members.size() < 2) return false;
  const Member* before = find_in(members[members.size() - 2].membership, options.self);
  return before != nullptr && before->voter;
}

bool RaftCore::Impl::is_quorum(const std::set<NodeId>& who) const {
  std::size_t voters = 0;
  std::size_t among = 0;
  for (const Member& member : membership().members) {
    if (!member.voter) continue;
    ++voters;
    if (who.contains(member.id)) ++among;
  }
  return among * 2 > voters;
}

void RaftCore::Impl::scan_log_for_members(const Membership& base) {
  FM_ASSERT(well_formed(base));
  members.push_back({first_index().prev(), base});
  for (LogIndex at = first_index(); at <= last;) {
    auto entries = read(at, options.append_bytes_max);
    // The driver has just read and checked the whole log; what it cannot read now is fatal.
    FM_ASSERT(entries && !entries->empty());
    for (const LogEntry& entry : *entries) {
      if (entry.kind != EntryKind::kMembership) continue;
      auto decoded = decode_members(entry);
      FM_ASSERT(decoded);  // checked before it was appended
      members.push_back({entry.index, std::move(*decoded)});
    }
    at = entries->back().index.next();
  }
  prune_memberships();
}

void RaftCore::Impl::adopt_membership(LogIndex index, Membership next, Output& out) {
  RAFT_ASSERT(index > members.back().index);
  members.push_back({index, std::move(next)});
  settle_role(&out);
}

void RaftCore::Impl::revert_membership_from(LogIndex index) {
  if (mutated(RaftMutation::kKeepTruncatedMembers)) {
    members.back().index = std::min(members.back().index, index.prev());
    return;
  }
  while (members.size() > 1 && members.back().index >= index) members.pop_back();
  RAFT_ASSERT(members.back().index < index);
  settle_role(nullptr);
}

void RaftCore::Impl::prune_memberships() {
  while (members.size() > 1 && members[1].index <= commit) members.pop_front();
}

/// Backup or learner, as the membership in force says; other roles stay.
void RaftCore::Impl::settle_role(Output* out) {
  if (role != Role::kBackup && role != Role::kLearner) return;
  const Role next = is_voter(options.self) ? Role::kBackup : Role::kLearner;
  if (next != role && out != nullptr) out->role_changed = true;
  role = next;
}

/// One PeerProgress for each other member.
void RaftCore::Impl::settle_peers(TimePoint now) {
  std::erase_if(peers, [this](const auto& peer) { return find_member(peer.first) == nullptr; });
  for (const Member& member : membership().members) {
    if (member.id == options.self || peers.contains(member.id)) continue;
    PeerProgress peer;
    peer.next = last.next();
    peer.heard_at = now;
    peer.recently_active = true;
    peers.emplace(member.id, std::move(peer));
  }
}

Result<LogIndex> RaftCore::Impl::propose_membership(Membership next, TimePoint now, Output& out) {
  if (role != Role::kPrimary) return Errc::kNotPrimary;
  if (!well_formed(next) || !has_voter(next)) return std::errc::invalid_argument;
  const bool under_way = !membership_committed() && !mutated(RaftMutation::kManyMemberships);
  // A node that rejoins must not come to decide in a group of which it knows nothing.
  const bool rejoining = std::any_of(peers.begin(), peers.end(),
                                     [](const auto& peer) { return peer.second.rejoin != 0; });
  if (transfer_to || under_way || rejoining || !term_committed()) return Errc::kRetry;
  if (count_changes(membership(), next) != 1) return std::errc::invalid_argument;
  auto data = std::make_shared<const std::string>(encode_membership(next));
  const LogIndex index = append_own(EntryKind::kMembership, std::move(data), out);
  adopt_membership(index, std::move(next), out);
  settle_peers(now);
  replicate_all(now, out);
  return index;
}

/// A primary that removed itself leaves once that is committed, and names an heir so that nobody
/// has to wait for a timeout [thesis 4.2.2].
void RaftCore::Impl::leave_if_removed(TimePoint now, Output& out) {
  if (role != Role::kPrimary || is_voter(options.self) || !membership_committed()) return;
  NodeId heir;
  LogIndex match;
  for (const auto& [id, peer] : peers) {
    if (is_voter(id) && peer.rejoin == 0 && peer.match >= match) heir = id, match = peer.match;
  }
  if (heir) {
    RaftMessage message = to(heir, RaftKind::kTimeoutNow);
    message.round = round;
    out.messages.push_back(std::move(message));
  }
  become_backup(hard.term, NodeId(), now, out);
}

}  // namespace fermata::serverd
