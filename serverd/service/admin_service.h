// What people and their tools ask a node: status, digests, sessions, to hand over the role.
//
// A digest is ordered through the log, so that every node computes it at the same index; the
// primary answers with the index and its own digest, the others are asked for that index.
// Thread-safety: the node's executor.
#pragma once

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class AdminService {
 public:
  explicit AdminService(NodeContext& node) : node_(node), digested_(node.env.executor()) {}

  NodeStatus status() const;
  boost::asio::awaitable<Response> digest(Request request);
  boost::asio::awaitable<Response> transfer(Request request);
  void on_digest_ordered();

 private:
  boost::asio::awaitable<void> compute_digests();
  Response digest_answer(LogIndex at) const;

  NodeContext& node_;
  bool computing_ = false;
  Signal digested_;
};

}  // namespace fermata::serverd
