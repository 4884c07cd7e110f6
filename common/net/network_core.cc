#include "common/net/network_core.h"

#include <spdlog/spdlog.h>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/this_coro.hpp>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

#include "common/net/connection.h"

namespace fermata {

namespace asio = boost::asio;

namespace {
constexpr Duration kLogPeriod = std::chrono::seconds(10);
constexpr std::size_t kLogPeersMax = 1024;
}  // namespace

bool LogLimiter::allow(const std::string& peer_address, TimePoint now) {
  const std::string host = peer_address.substr(0, peer_address.rfind(':'));
  if (last_.size() >= kLogPeersMax) last_.clear();
  const auto [at, is_new] = last_.try_emplace(host, now);
  if (!is_new && now - at->second < kLogPeriod) return false;
  at->second = now;
  return true;
}

/// One connect() under way. Whoever sets `outcome` first has decided it.
struct ConnectAttempt {
  explicit ConnectAttempt(const asio::any_io_executor& executor) : decided(executor) {}

  void decide(Result<std::shared_ptr<Connection>> result) {
    if (outcome) return;
    outcome = std::move(result);
    decided.notify();
  }
  /// Ends what goes on; the outcome stays.
  void give_up() {
    if (!outcome) outcome = Errc::kConnectionLost;
    abort_dial.emit(asio::cancellation_type::terminal);
    if (connection) connection->abort();
  }

  std::optional<Result<std::shared_ptr<Connection>>> outcome;
  Waiter decided;
  asio::cancellation_signal abort_dial;
  std::shared_ptr<RpcConnection> connection;
};

NetworkCore::NetworkCore(asio::any_io_executor ex, NetworkOptions opts, std::unique_ptr<Timers> tms)
    : executor(std::move(ex)), options(opts), timers(std::move(tms)), all_ended(executor) {}

void NetworkCore::spawn(const char* what, asio::awaitable<void> task) {
  ++running;
  asio::co_spawn(executor, std::move(task),
                 [core = shared_from_this(), what](const std::exception_ptr& escaped) {
                   if (--core->running == 0) core->all_ended.notify();
                   if (!escaped) return;
                   try {
                     std::rethrow_exception(escaped);
                   } catch (const std::exception& e) {
                     spdlog::error("{}: an exception escaped: {}; this is a bug, please report it",
                                   what, e.what());
                   } catch (...) {
                     spdlog::error("{}: an exception escaped; this is a bug, please report it",
                                   what);
                   }
                 });
}

void NetworkCore::shut_down() {
  closed = true;
  for (const auto& weak : std::exchange(listeners, {})) {
    if (const auto listener = weak.lock()) listener->close();
  }
  std::vector<std::shared_ptr<RpcConnection>> open;
  for (const auto& [id, connection] : connections) {
    // One that is being destroyed still stands in the list.
    if (auto alive = connection->weak_from_this().lock()) open.push_back(std::move(alive));
  }
  for (const auto& connection : open) connection->abort();
  const auto dialling = attempts;
  for (const auto& attempt : dialling) {
    attempt->decide(Errc::kShuttingDown);
    attempt->give_up();
  }
}

asio::awaitable<void> NetworkCore::stop(std::shared_ptr<NetworkCore> core) {
  core->shut_down();
  std::error_code cancelled;
  while (core->running != 0 && !cancelled) cancelled = co_await core->all_ended.wait();
}

void ListenerCore::close() {
  if (std::exchange(closed, true)) return;
  stop_listening();
  for (const auto& [id, weak] : std::exchange(connections, {})) {
    if (const auto connection = weak.lock()) connection->abort();
  }
}

namespace {

asio::awaitable<void> welcome(std::shared_ptr<RpcConnection> connection,
                              std::shared_ptr<ListenerCore> listener) {
  co_await RpcConnection::welcome(std::move(connection), std::move(listener));
}

asio::awaitable<void> dial_and_greet(std::shared_ptr<NetworkCore> core,
                                     std::shared_ptr<ConnectAttempt> attempt,
                                     asio::awaitable<Result<std::unique_ptr<Stream>>> dial,
                                     Hello hello, Handler* handler) {
  co_await asio::this_coro::throw_if_cancelled(false);
  auto stream = co_await std::move(dial);
  if (attempt->outcome) co_return;
  if (!stream) {
    attempt->decide(stream.error());
    co_return;
  }
  const auto connection = std::make_shared<RpcConnection>(core, std::move(*stream), handler);
  connection->enlist();
  attempt->connection = connection;
  const Status greeted = co_await RpcConnection::greet(connection, std::move(hello));
  if (attempt->outcome) co_return;
  if (!greeted) {
    connection->abort();
    attempt->decide(greeted.error());
    co_return;
  }
  ++core->stats.connected;
  attempt->decide(std::shared_ptr<Connection>(connection));
}

/// Ends the attempt however connect_stream() is left, also when its coroutine is destroyed.
struct AttemptGuard {
  std::shared_ptr<NetworkCore> core;
  std::shared_ptr<ConnectAttempt> attempt;
  bool succeeded = false;
  ~AttemptGuard() {
    core->attempts.erase(attempt);
    if (!succeeded) attempt->give_up();
    attempt->connection.reset();
  }
};

}  // namespace

void accept_stream(const std::shared_ptr<NetworkCore>& core,
                   const std::shared_ptr<ListenerCore>& listener, std::unique_ptr<Stream> stream) {
  ++core->stats.accepted;
  if (core->closed || listener->closed || core->half_open >= core->options.half_open_max ||
      core->accepted_open >= core->options.connections_max) {
    ++core->stats.refused;
    if (core->log_limiter.allow(stream->peer_address(), core->timers->now())) {
      spdlog::warn("refused connection from {}: {} open, {} of them without a hello",
                   stream->peer_address(), core->accepted_open, core->half_open);
    }
    stream->close();
    return;
  }
  const auto connection =
      std::make_shared<RpcConnection>(core, std::move(stream), listener->handler);
  connection->enlist();
  std::erase_if(listener->connections, [](const auto& entry) { return entry.second.expired(); });
  listener->connections.emplace(core->stats.accepted, connection);
  core->spawn("connection hello", welcome(connection, listener));
}

Task<std::shared_ptr<Connection>> connect_stream(
    std::shared_ptr<NetworkCore> core, asio::awaitable<Result<std::unique_ptr<Stream>>> dial,
    Hello hello, Handler* handler, Duration timeout) {
  if (core->closed) co_return Errc::kShuttingDown;
  AttemptGuard guard{core, std::make_shared<ConnectAttempt>(core->executor)};
  const auto attempt = guard.attempt;
  core->attempts.insert(attempt);
  const auto timer = core->timers->make([weak = std::weak_ptr(attempt)] {
    if (const auto alive = weak.lock()) alive->decide(Errc::kDeadlineExceeded);
  });
  timer->arm(core->timers->now() + timeout);
  // Not among those stop() waits for: a name resolution cannot be interrupted, and touches nothing.
  asio::co_spawn(
      core->executor, dial_and_greet(core, attempt, std::move(dial), std::move(hello), handler),
      asio::bind_cancellation_slot(attempt->abort_dial.slot(), [attempt](std::exception_ptr e) {
        if (e) attempt->decide(from_errno(EIO));
      }));
  if (const std::error_code stop = co_await attempt->decided.wait(); stop) {
    co_return std::make_error_code(std::errc::operation_canceled);
  }
  auto outcome = *attempt->outcome;
  guard.succeeded = static_cast<bool>(outcome);
  co_return outcome;
}

}  // namespace fermata
