// The chunk requests: from clients to the primary (put, query), from anyone (get), and between
// nodes (replicate, has, offer). Thread-safety: the node's executor.
#pragma once

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class ChunkService {
 public:
  explicit ChunkService(NodeContext& node) : node_(node) {}

  boost::asio::awaitable<Response> put(Request request);
  boost::asio::awaitable<Response> query(Request request);
  boost::asio::awaitable<Response> get(std::shared_ptr<Connection> from, Request request);
  boost::asio::awaitable<Response> replicate(Request request);
  Response has(const Request& request);
  Response offer(const Connection& from, const Request& request);

 private:
  NodeContext& node_;
};

}  // namespace fermata::serverd
