// The log's messages over RPC: PeerTransport for RaftNode, and the requests that arrive from peers.
//
// A RaftMessage travels as the payload of a one-way request on the log's lane; snapshots are read
// piece by piece on the bulk lane. Thread-safety: the node's executor.
#pragma once

#include "serverd/raft/raft_node.h"
#include "serverd/service/node_context.h"

namespace fermata::serverd {

class RaftService final : public PeerTransport {
 public:
  explicit RaftService(NodeContext& node) : node_(node) {}
  void attach(RaftNode* raft) { raft_ = raft; }

  void set_members(const Membership&) override {}  // Peers asks the log
  void send(NodeId to, RaftMessage message) override;
  Task<Buffer> read_snapshot(NodeId from, std::uint64_t id, std::string file,
                             std::uint64_t offset_bytes, std::uint32_t size_bytes) override;

  Response receive(const Connection& from, const Request& request);
  boost::asio::awaitable<Response> serve_snapshot(Request request);

 private:
  NodeContext& node_;
  RaftNode* raft_ = nullptr;
};

}  // namespace fermata::serverd
