#include "serverd/service/peers.h"

#include <algorithm>
#include <utility>

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr Duration kConnectTimeout = 1s;
constexpr Duration kBackoffMin = 20ms;
constexpr Duration kBackoffMax = 500ms;
}  // namespace

Peers::Peers(NodeContext& node) : node_(node) {}

Peers::Link& Peers::link(NodeId to, Lane lane) {
  Link& result = links_[{to, lane}];
  if (!result.changed) result.changed = std::make_unique<Signal>(node_.env.executor());
  return result;
}

std::string Peers::address_of(NodeId id) const {
  for (const auto& member : node_.log->status().membership.members) {
    if (member.id == id) return member.address;
  }
  return {};
}

std::vector<NodeId> Peers::others() const {
  std::vector<NodeId> result;
  for (const auto& member : node_.log->status().membership.members) {
    if (member.id != node_.config.self) result.push_back(member.id);
  }
  return result;
}

std::vector<NodeId> Peers::other_voters() const {
  std::vector<NodeId> result;
  for (const auto& member : node_.log->status().membership.members) {
    if (member.id != node_.config.self && member.voter) result.push_back(member.id);
  }
  return result;
}

void Peers::connect(NodeId to, Lane lane) {
  Link& to_peer = link(to, lane);
  if (closed_ || to_peer.connecting || node_.env.now() < to_peer.not_before) return;
  to_peer.connecting = true;
  node_.tasks.spawn("connect", do_connect(to, lane));
}

asio::awaitable<void> Peers::do_connect(NodeId to, Lane lane) {
  Hello hello;
  hello.kind = Hello::Kind::kNode;
  hello.cluster = node_.config.cluster;
  hello.node = node_.config.self;
  hello.name = lane == Lane::kLog ? "node log" : "node bulk";
  std::string address = address_of(to);
  Result<std::shared_ptr<Connection>> made = Errc::kConnectionLost;
  if (!address.empty()) {
    made = co_await node_.network.connect(std::move(address), std::move(hello), nullptr,
                                          kConnectTimeout);
  }
  Link& to_peer = link(to, lane);
  to_peer.connecting = false;
  if (made && !closed_) {
    if ((*made)->peer().node != to) {
      spdlog::warn("node {}: another node ({}) answers at the address of node {}; check --peers",
                   node_.config.self.value(), (*made)->peer().node.value(), to.value());
      (*made)->close();
      made = Errc::kConnectionLost;
    } else {
      to_peer.connection = std::move(*made);
      to_peer.backoff = Duration::zero();
    }
  }
  if (!made) {
    to_peer.backoff = std::clamp(to_peer.backoff * 2, kBackoffMin, kBackoffMax);
    to_peer.not_before = node_.env.now() + to_peer.backoff;
    spdlog::debug("node {}: node {} cannot be reached: {}", node_.config.self.value(), to.value(),
                  made.error().message());
  }
  to_peer.changed->notify_all();
}

void Peers::send(NodeId to, Request request) {
  Link& to_peer = link(to, Lane::kLog);
  if (to_peer.connection && to_peer.connection->is_open()) {
    to_peer.connection->send(std::move(request));
  } else {
    connect(to, Lane::kLog);
  }
}

Task<Response> Peers::call(NodeId to, Lane lane, Request request, Duration timeout) {
  const TimePoint deadline = node_.env.now() + timeout;
  std::shared_ptr<Connection> connection;
  for (bool tried = false;; tried = true) {
    Link& to_peer = link(to, lane);
    if (to_peer.connection && to_peer.connection->is_open()) {
      connection = to_peer.connection;
      break;
    }
    if (closed_) co_return Errc::kShuttingDown;
    if (tried) co_return Errc::kConnectionLost;
    connect(to, lane);
    if (!to_peer.connecting) continue;  // backing off, or done already
    if (const auto error = co_await to_peer.changed->wait()) co_return error;
  }
  const Duration left = deadline - node_.env.now();
  if (left <= Duration::zero()) co_return Errc::kDeadlineExceeded;
  FM_CO_TRY(auto response, co_await connection->call(std::move(request), left));
  if (response.error) co_return response.error;
  co_return std::move(response);
}

void Peers::close() {
  closed_ = true;
  for (auto& [key, to_peer] : links_) {
    if (to_peer.connection) to_peer.connection->close();
    to_peer.connection.reset();
    to_peer.changed->notify_all();
  }
}

}  // namespace fermata::serverd
