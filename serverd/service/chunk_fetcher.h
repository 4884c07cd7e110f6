// Brings the chunks to this node that its state refers to and its disk lacks, and takes those away
// that nothing refers to any more.
//
// A node may apply a commit before the chunks of it arrive (it was not in the majority that stored
// them), may come from a snapshot, or find a copy damaged. Missing ones are fetched from the peers,
// a few at a time, until they are here. Deletion waits a while after the log ordered it and asks
// the state again: a chunk that came to be named anew, or was just stored or vouched for, stays.
//
// Thread-safety: the node's executor.
#pragma once

#include <map>
#include <span>
#include <unordered_map>
#include <vector>

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class ChunkFetcher {
 public:
  explicit ChunkFetcher(NodeContext& node);

  /// Until stopped: looks after what was announced below.
  boost::asio::awaitable<void> run();

  void on_referenced(std::span<const ChunkId> ids);
  void on_dropped(std::span<const ChunkId> ids);
  /// Compares all references with the store: after start and after a snapshot.
  void compare_all();
  /// The copy here is damaged: another one is wanted.
  void repair(ChunkId id);
  /// This node told somebody that it has the chunk: it is not deleted for a while.
  void vouch(ChunkId id);

  /// One chunk from any peer, verified; stored here too. ENOENT if none has it.
  Task<Buffer> fetch(ChunkId id);
  std::size_t missing() const { return missing_.size(); }

 private:
  struct Missing {
    TimePoint not_before{};
    Duration backoff{};
    bool busy = false;
    bool damaged = false;  ///< fetch even though the store has a copy
  };
  void look_for_new();
  boost::asio::awaitable<void> compare();
  boost::asio::awaitable<void> delete_due();
  boost::asio::awaitable<void> fetch_one(ChunkId id);
  void start_fetches();
  void expect(ChunkId id);
  Duration vouched_for() const;

  NodeContext& node_;
  std::vector<ChunkId> announced_;  ///< referenced, not yet looked for
  bool compare_wanted_ = true;
  std::map<ChunkId, Missing> missing_;
  std::size_t busy_ = 0;
  std::map<ChunkId, TimePoint> to_delete_;          ///< not before
  std::unordered_map<ChunkId, TimePoint> vouched_;  ///< until
  TimePoint next_sweep_{};
};

}  // namespace fermata::serverd
