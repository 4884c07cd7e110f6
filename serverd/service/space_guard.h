// How much room the nodes' disks have, and when to say ENOSPC before a disk does.
//
// A full disk under the log would stop the node, and the same load fills every node's disk at the
// same time: so the primary refuses what takes room while it still has some, and while a majority
// has. What frees room goes on. A reserve file, removed when even the reserve is used up, lets the
// log and the store finish what was begun.
//
// Thread-safety: the node's executor.
#pragma once

#include <map>

#include "common/env/disk.h"
#include "serverd/service/node_context.h"

namespace fermata::serverd {

class SpaceGuard {
 public:
  explicit SpaceGuard(NodeContext& node) : node_(node) {}

  /// Looks at the own disk, and as primary asks the others, until stopped.
  boost::asio::awaitable<void> watch();

  /// Room for what an application wants to write: on this node and on a majority.
  bool has_room() const;
  /// This node alone: backups refuse chunks by it.
  bool has_room_here() const { return own_known_ == false || own_.free_bytes > reserve(own_); }
  /// What the fullest node of the emptiest majority has.
  DiskSpace cluster() const;
  DiskSpace own() const { return own_; }

 private:
  std::uint64_t reserve(const DiskSpace& space) const;
  boost::asio::awaitable<void> look();
  boost::asio::awaitable<void> ask(NodeId peer);
  boost::asio::awaitable<void> keep_reserve_file();

  NodeContext& node_;
  DiskSpace own_;
  bool own_known_ = false;
  std::map<NodeId, DiskSpace> others_;
  bool reserve_file_ = false;
};

}  // namespace fermata::serverd
