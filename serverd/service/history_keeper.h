// How long the past is kept: prunes history by age and lets unreferenced chunks go.
//
// Every node notes now and then which log index it has applied at which wall-clock time, in the
// small file `times`, so that a new primary knows the age of an index too. The primary proposes
// PruneHistory for what is older than the retention, a bounded piece per command, and DropChunks
// for garbage that nobody has pinned. While room is scarce the retention shrinks from round to
// round until there is enough, or nothing left to forget.
//
// Thread-safety: the node's executor.
#pragma once

#include <deque>

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class HistoryKeeper {
 public:
  explicit HistoryKeeper(NodeContext& node) : node_(node) {}

  boost::asio::awaitable<void> run();
  void on_serving();

 private:
  struct Sample {
    LogIndex index;
    std::int64_t wall_ns = 0;
  };
  boost::asio::awaitable<void> load();
  boost::asio::awaitable<void> sample();
  boost::asio::awaitable<void> prune();
  boost::asio::awaitable<void> drop_chunks();
  /// How old history may be now.
  Duration retention();
  /// The newest index that is known to have been applied `age` ago or earlier.
  LogIndex applied_before(Duration age) const;
  Duration kept() const;

  NodeContext& node_;
  std::deque<Sample> samples_;  ///< rising
  TimePoint serving_since_{};
  LogIndex pruned_;           ///< nothing of history is left up to here
  Duration low_retention_{};  ///< of the next round in which room is scarce
};

}  // namespace fermata::serverd
