// What callers of a RaftNode wait for; shared by raft_node*.cc and nobody else.
#pragma once

#include "serverd/raft/raft_node.h"

namespace fermata::serverd {

/// While room is spared: a snapshot holds on to what the state has replaced since.
inline constexpr Duration kSnapshotIdleShort = std::chrono::seconds(5);

/// A command or membership on its way, from its place in the log to its result.
struct RaftNode::Proposal {
  explicit Proposal(const boost::asio::any_io_executor& executor) : done(executor) {}
  Term term;
  std::size_t bytes = 0;
  std::optional<Result<Outcome>> result;
  Waiter done;

  void finish(Result<Outcome> outcome) {
    result = std::move(outcome);
    done.notify();
  }
};

/// A read that waits for its barrier.
struct RaftNode::Read {
  explicit Read(const boost::asio::any_io_executor& executor) : done(executor) {}
  bool ticketed = false;          // the round in flight began after this read
  std::optional<LogIndex> index;  // known to be current: waits until this is applied
  std::optional<Status> result;
  Waiter done;

  void finish(Status status) {
    result = status;
    done.notify();
  }
};

}  // namespace fermata::serverd
