#include "serverd/service/node_context.h"

#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/this_coro.hpp>
#include <utility>

#include "common/wire/command_codec.h"
#include "common/wire/message_codec.h"
#include "serverd/service/peers.h"

namespace fermata::serverd {

namespace asio = boost::asio;

NodeContext::NodeContext(Env& environment, Network& net, NodeConfig cfg)
    : env(environment),
      network(net),
      config(std::move(cfg)),
      started(environment.now()),
      leases({.leases_per_session = config.leases_per_session,
              .items_per_callback = 2048,
              .exclusive_after = config.exclusive_after,
              .exclusive_creates = 4}),
      sessions(
          {.lease = config.lease, .drift_percent = 5, .margin_min = std::chrono::milliseconds(50)}),
      serving_changed(environment.executor()),
      tasks(environment.executor()) {}

std::size_t NodeContext::majority() const {
  std::size_t voters = 0;
  for (const auto& member : log->status().membership.members) voters += member.voter ? 1u : 0u;
  return voters / 2 + 1;
}

bool NodeContext::all_know(CommandLevel level) const {
  return command_levels.all_know(peers->others(), level);
}

Task<CommandResult> NodeContext::propose(Command command) {
  command.time = wall_time(env);
  std::string bytes = encode(command);
  FM_CO_TRY(const auto outcome, co_await log->propose(std::move(bytes)));
  co_return decode_command_result(as_bytes(outcome.result));
}

Task<CommandResult> NodeContext::propose_own(decltype(Command::body) body) {
  Command command;
  command.body = std::move(body);
  co_return co_await propose(std::move(command));
}

Response ok() { return {}; }

Response failed(std::error_code error) {
  Response response;
  response.error = error;
  return response;
}

Response not_primary(const NodeContext& node) {
  Response response = failed(Errc::kNotPrimary);
  const LogStatus status = node.log->status();
  PrimaryHint hint;
  hint.term = status.term;
  hint.primary = status.primary;
  for (const auto& member : status.membership.members) {
    if (member.id == status.primary) hint.address = member.address;
  }
  response.body = encode(hint);
  return response;
}

Task<void> readable(NodeContext& node) {
  if (!node.serving) co_return Errc::kNotPrimary;
  if (!node.log->may_read()) {
    node.count("read_barriers");
    FM_CO_CHECK(co_await node.log->read_barrier());
    if (!node.serving) co_return Errc::kNotPrimary;
  }
  co_return Status();
}

Status check_session(const NodeContext& node, SessionId session, Epoch epoch) {
  const auto it = node.epochs.find(session);
  if (it == node.epochs.end()) return Errc::kSessionExpired;
  // Its end is proposed and may yet fail with the role: only what was applied is said for good.
  if (node.sessions.is_ending(session)) return Errc::kRetry;
  if (it->second != epoch) return Errc::kStaleEpoch;
  return {};
}

asio::awaitable<bool> cancelled() {
  const auto state = co_await asio::this_coro::cancellation_state;
  co_return state.cancelled() != asio::cancellation_type::none;
}

Timestamp wall_time(Env& env) {
  const std::int64_t ns = env.clock().wall_ns();
  constexpr std::int64_t kSecond = 1'000'000'000;
  const std::int64_t seconds = ns / kSecond - (ns % kSecond < 0 ? 1 : 0);
  return {seconds, static_cast<std::uint32_t>(ns - seconds * kSecond)};
}

}  // namespace fermata::serverd
