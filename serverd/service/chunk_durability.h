// Which chunks a majority of nodes has on stable storage, as the primary knows it.
//
// A commit may name a chunk only when a majority has it. What was put or asked about is *pinned*:
// not proposed for deletion for a while, so that a client need not send it twice. While a put, a
// question or a commit of a chunk is under way it is *in use* and never proposed for deletion; that
// is what safety rests on. A chunk whose deletion is in the log already counts as absent. In
// memory: a new term begins with nothing known and asks the nodes again.
//
// Thread-safety: the node's executor.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class ChunkDurability {
 public:
  explicit ChunkDurability(NodeContext& node)
      : node_(node), dropped_(node.env.executor()), sent_(node.env.executor()) {}

  /// While it lives nobody proposes to delete these chunks.
  class Use {
   public:
    Use(ChunkDurability& of, std::vector<ChunkId> ids);
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use();

   private:
    ChunkDurability& of_;
    const std::vector<ChunkId> ids_;
  };

  /// Stores on this node and on the others; resumes when a majority has it. Errors: kHashMismatch;
  /// ENOSPC, if so many nodes are full that no majority can have it; kNoQuorum.
  Task<void> put(ChunkId id, Buffer bytes);
  /// For each, whether a majority has it; those are pinned.
  Task<std::vector<bool>> query(std::vector<ChunkId> ids);
  /// kMissingChunk unless a majority has all of them, in this term. The caller has them in use.
  Task<void> require(std::vector<ChunkId> ids);

  /// A new term: what is known of the nodes' chunks is void.
  void on_serving();
  /// Not to be proposed for deletion.
  bool is_protected(ChunkId id) const;
  /// A node has these and its state does not name them.
  void offer(const std::vector<ChunkId>& ids);
  /// Of what was offered, some that nothing names or protects.
  std::vector<ChunkId> take_offered(std::size_t chunks_max);
  /// While a DropChunks that names these is on its way.
  void begin_drop(const std::vector<ChunkId>& ids);
  void end_drop(const std::vector<ChunkId>& ids);
  /// Forgets pins that ran out.
  void sweep();

 private:
  struct Put;
  boost::asio::awaitable<void> put_here(std::shared_ptr<Put> put);
  boost::asio::awaitable<void> put_there(std::shared_ptr<Put> put, NodeId peer);
  Task<void> send(std::shared_ptr<Put> put, NodeId peer);
  struct Query;
  boost::asio::awaitable<void> query_there(std::shared_ptr<Query> query, NodeId peer);
  void pin(ChunkId id) { pins_[id] = node_.env.now(); }
  /// A majority has it, and nobody proposed to delete it since.
  bool is_pinned(ChunkId id) const;

  NodeContext& node_;
  std::unordered_map<ChunkId, TimePoint> pins_;  ///< durable on a majority; since
  std::unordered_map<ChunkId, std::size_t> in_use_;
  std::set<ChunkId> offered_;
  std::set<ChunkId> dropping_;
  Signal dropped_;
  std::map<NodeId, std::size_t> sending_bytes_;  ///< to each node, unanswered
  Signal sent_;                                  ///< there may be less of it, or of what waits
};

}  // namespace fermata::serverd
