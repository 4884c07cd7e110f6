// What the nodes of a replica group say to each other about the log (schema/raft.capnp is the wire
// form, raft_codec.h the translation). Terms and rules: Ongaro, "Consensus: Bridging Theory and
// Practice" (2014), cited below as [thesis].
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/ids.h"

namespace fermata {

enum class EntryKind : std::uint8_t {
  kNoop =
      1,  ///< a new primary's first entry [thesis 6.4] (the very first primary's is a kMembership)
  kCommand = 2,     ///< bytes for the state machine
  kMembership = 3,  ///< an encoded Membership, in force from the moment it is appended [thesis 4.1]
};

/// One log entry. `data` is shared, never changed after it was made; never null.
struct LogEntry {
  LogIndex index;
  Term term;
  EntryKind kind = EntryKind::kCommand;
  std::shared_ptr<const std::string> data;
};

struct Member {
  NodeId id;
  std::string address;  ///< HOST:PORT where its RPC server listens
  bool voter = true;    ///< false: a learner, which receives the log and has no vote
  bool operator==(const Member&) const = default;
};
struct Membership {
  std::vector<Member> members;  ///< sorted by id
  bool operator==(const Membership&) const = default;
};

/// A snapshot by description; its files travel out of band (serverd/raft/snapshot.h).
struct SnapshotDescriptor {
  LogIndex index;  ///< the last entry it contains
  Term term;       ///< of that entry
  Membership membership;
  struct File {
    std::string name;  ///< no '/', not "." or ".."
    std::uint64_t size_bytes = 0;
    std::uint32_t crc32c = 0;
    bool operator==(const File&) const = default;
  };
  std::vector<File> files;
  std::uint64_t id = 0;  ///< names it at the node that made it, while that keeps it
  bool operator==(const SnapshotDescriptor&) const = default;
};

enum class RaftKind : std::uint8_t {
  kPreVote = 1,  ///< would you vote for me? [thesis 9.6]; term is the one the asker would have
  kPreVoteReply = 2,
  kVote = 3,
  kVoteReply = 4,
  kAppend = 5,  ///< entries, or none: a heartbeat
  kAppendReply = 6,
  kSnapshot = 7,       ///< your log ends before mine begins: fetch this
  kSnapshotReply = 8,  ///< installed (or given up: reject)
  kTimeoutNow = 9,     ///< leadership transfer: start an election at once [thesis 3.10]
};

/// One flat struct for all kinds: which fields count is said beside them.
struct RaftMessage {
  RaftKind kind = RaftKind::kAppend;
  GroupId group = kFirstGroup;
  NodeId from;
  NodeId to;
  Term term;            ///< the sender's (kPreVote: the one it asks for)
  LogIndex prev_index;  ///< kAppend: entry before the first (its reply echoes it); votes: the
                        ///< candidate's last index
  Term prev_term;       ///< its term
  std::vector<LogEntry> entries;  ///< kAppend
  LogIndex commit;                ///< kAppend: the primary's commit index
  std::uint64_t round = 0;        ///< kAppend, kSnapshot, kTimeoutNow, their replies: the heartbeat
                                  ///< round, for lease and ReadIndex
  bool reject = false;            ///< replies
  LogIndex match;  ///< kAppendReply, kSnapshotReply: last index known equal and durable; on reject:
                   ///< where to go on from
  Term match_term;  ///< kAppendReply on reject: term at `match`, for skipping whole terms
                    ///< [thesis 3.3]
  bool transfer =
      false;  ///< votes: the primary asked for it, so leases do not hold the answer back
  SnapshotDescriptor snapshot;  ///< kSnapshot; kSnapshotReply: index only
  /// kAppendReply, kSnapshotReply: not 0 if the sender has lost its log and counts for nothing
  /// until it has caught up; another number after each start. kAppend: the receiver's, if
  /// rejoin_until is for it.
  std::uint64_t rejoin = 0;
  LogIndex rejoin_until;  ///< kAppend: with everything up to here the receiver has caught up
  /// kAppend, kSnapshot: for how long the sender counts on it that the receiver, from the message's
  /// coming on, grants no vote; 0: as long as the receiver's own shortest election timeout.
  std::uint32_t silence_ms = 0;
};

}  // namespace fermata
