// The other nodes of the group, as this one reaches them: a connection for the log's messages and
// another for bulk data (chunks, snapshots), so that a heartbeat never waits behind a megabyte.
//
// Connections are made when first needed and again after they broke, not more often than the
// back-off allows. Thread-safety: the node's executor.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class Peers {
 public:
  enum class Lane : std::uint8_t { kLog, kBulk };

  explicit Peers(NodeContext& node);

  /// One way, on the log's lane: dropped if there is no connection yet (one is then being made).
  void send(NodeId to, Request request);
  /// The callee's error is the Result's error too.
  Task<Response> call(NodeId to, Lane lane, Request request, Duration timeout);
  /// All other members, learners too.
  std::vector<NodeId> others() const;
  /// The voters among them.
  std::vector<NodeId> other_voters() const;
  void close();

 private:
  struct Link {
    std::shared_ptr<Connection> connection;
    bool connecting = false;
    TimePoint not_before{};
    Duration backoff{};
    std::unique_ptr<Signal> changed;
  };
  Link& link(NodeId to, Lane lane);
  std::string address_of(NodeId node) const;
  void connect(NodeId to, Lane lane);
  boost::asio::awaitable<void> do_connect(NodeId to, Lane lane);

  NodeContext& node_;
  std::map<std::pair<NodeId, Lane>, Link> links_;
  bool closed_ = false;
};

}  // namespace fermata::serverd
