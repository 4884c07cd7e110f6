// Which chunks a majority of nodes has on stable storage, as the primary knows it.
//
// A commit may name a chunk only when a majority has it. What was put or asked about is *pinned*:
// not proposed for deletion until the pin runs out, longer than a client takes from asking to
// committing. A chunk whose deletion is in the log already counts as absent. In memory: a new
// primary asks the nodes again, and proposes no deletions for the length of a pin.
//
// Thread-safety: the node's executor.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class ChunkDurability {
 public:
  explicit ChunkDurability(NodeContext& node) : node_(node), dropped_(node.env.executor()) {}

  /// Stores on this node and on the others; resumes when a majority has it. Errors: kHashMismatch,
  /// ENOSPC, kNoQuorum.
  Task<void> put(ChunkId id, Buffer bytes);
  /// For each, whether a majority has it; those are pinned.
  Task<std::vector<bool>> query(std::vector<ChunkId> ids);
  /// kMissingChunk unless a majority has all of them. They are pinned.
  Task<void> require(std::vector<ChunkId> ids);

  bool is_pinned(ChunkId id) const;
  /// While a DropChunks that names these is on its way.
  void begin_drop(const std::vector<ChunkId>& ids);
  void end_drop(const std::vector<ChunkId>& ids);
  /// Forgets pins that ran out.
  void sweep();

 private:
  struct Put;
  boost::asio::awaitable<void> put_here(std::shared_ptr<Put> put);
  boost::asio::awaitable<void> put_there(std::shared_ptr<Put> put, NodeId peer);
  struct Query;
  boost::asio::awaitable<void> query_there(std::shared_ptr<Query> query, NodeId peer);
  void pin(ChunkId id);

  NodeContext& node_;
  std::unordered_map<ChunkId, TimePoint> pins_;  ///< durable on a majority; until
  std::set<ChunkId> dropping_;
  Signal dropped_;
};

}  // namespace fermata::serverd
