// The replicated log as the file service sees it, and the state machine it feeds. Nothing outside
// serverd/raft knows more than this, so the engine can be swapped.
//
// Thread-safety: everything runs on the node's executor, except where a method says that it blocks.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/wire/raft.h"
#include "serverd/raft/raft_core.h"

namespace fermata::serverd {

class StateMachine {
 public:
  virtual ~StateMachine() = default;
  struct Command {
    LogIndex index;
    Term term;
    std::shared_ptr<const std::string> data;
  };
  /// Applies committed commands in order and returns each one's result bytes. Deterministic: no
  /// clock, no randomness, no order of a hash map. The applied index moves in the same atomic write
  /// as the effects. No-op and membership entries are not shown; `last` is the index after the
  /// batch all the same. ENOSPC has had no effect: the batch comes again once there is room. A
  /// success may end early, at applied_index(): the rest of the results is void. Any other error
  /// means that the store is damaged: the node stops.
  virtual Result<std::vector<std::string>> apply(std::span<const Command> batch, LogIndex last) = 0;
  virtual LogIndex applied_index() const = 0;
  /// What is on stable storage; the log may be compacted up to here and is replayed from here at
  /// start.
  virtual LogIndex durable_index() const = 0;
  /// Makes everything applied so far durable. Blocks: called on the blocking pool, beside apply().
  /// ENOSPC: nothing is lost, try again once there is room.
  virtual Status flush() = 0;
  /// Writes a consistent copy of the state into the new directory `path` and returns the index it
  /// stands at. Blocks.
  virtual Result<LogIndex> checkpoint(const std::string& path) = 0;
  /// Replaces the whole state by the checkpoint in `path` (moved from there). Blocks; no apply
  /// meanwhile.
  virtual Status install(const std::string& path) = 0;
  /// This node's role in a term. A new primary is told only when it may serve: its first entry is
  /// applied.
  virtual void on_role(Role role, Term term) = 0;
};

struct LogStatus {
  NodeId self;
  NodeId primary;  ///< none if unknown
  Role role = Role::kBackup;
  bool rejoining = false;  ///< HardState::rejoining
  Term term;
  LogIndex first, last, commit, applied;
  Membership membership;
  std::vector<std::pair<NodeId, PeerProgress>> peers;  ///< at the primary only
};

class ReplicatedLog {
 public:
  virtual ~ReplicatedLog() = default;
  struct Outcome {
    LogIndex index;
    std::string result;  ///< what StateMachine::apply returned for it
  };
  /// Resumes when the command is committed by a majority and applied here. Errors: kNotPrimary
  /// and kShuttingDown (surely not committed through this call), kConnectionLost (lost the role or
  /// stopped meanwhile: it may or may not come to be committed).
  virtual Task<Outcome> propose(std::string command) = 0;
  /// Resumes when reads of the applied state are linearizable: at once under the leader lease, else
  /// after a round of heartbeats. kNotPrimary if another primary may exist.
  virtual Task<void> read_barrier() = 0;
  /// The inline form: true if a read may be answered right now.
  virtual bool may_read() const = 0;
  virtual Task<void> transfer_leadership(NodeId to) = 0;
  virtual Task<void> change_members(Membership next) = 0;
  virtual LogStatus status() const = 0;
  /// Applies here what is committed, as far as it was left for later (a part of it, if it is much).
  virtual void apply_now() = 0;
  /// This node cannot go on for want of room on its disk; it waits for some.
  virtual bool stalled() const = 0;
  /// While true as little as possible is kept on the disk: peers that come later get a snapshot.
  virtual void spare_room(bool spare) = 0;
  /// As primary: this peer lives, and lacks so much that the log may soon be cut behind what it
  /// needs next; then it needs a snapshot.
  virtual bool trails(NodeId peer) const = 0;
};

}  // namespace fermata::serverd
