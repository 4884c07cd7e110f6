// Quotas beside the log: what people and df(1) are shown of them, and who goes on with a count.
//
// Setting one is a mutation like others. What it leaves to be done, counting what is there or
// telling inodes that their tree is gone, the primary proposes in parts (CountQuota), each so small
// that mutations between them hardly wait; a new primary goes on where the state is.
//
// Thread-safety: the node's executor.
#pragma once

#include "serverd/service/node_context.h"

namespace fermata::serverd {

/// Of `reply`, which says what the cluster's disks leave: what the quotas of `inode` leave.
Status keep_within_quotas(const Namespace& state, InodeId inode, StatFsReply& reply);

class QuotaService {
 public:
  explicit QuotaService(NodeContext& node) : node_(node) {}

  /// Counts, until stopped.
  boost::asio::awaitable<void> run();
  boost::asio::awaitable<Response> list(Request request);

 private:
  NodeContext& node_;
};

}  // namespace fermata::serverd
