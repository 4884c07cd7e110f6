#include "mountd/client/router.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "common/wire/message_codec.h"

namespace fermata::mountd {
namespace {

namespace asio = boost::asio;

std::array<std::atomic<std::uint64_t>, 64> call_counters;

constexpr Duration kBulkTimeout = std::chrono::seconds(30);
constexpr Duration kConnectTimeout = std::chrono::seconds(2);
constexpr Duration kTimeoutMax = std::chrono::seconds(20);

/// The node cannot serve now, another one may: try again.
bool is_passing(const std::error_code& error) {
  return error == Errc::kNotPrimary || error == Errc::kNoQuorum || error == Errc::kShuttingDown ||
         error == Errc::kRetry || error == Errc::kConnectionLost ||
         error == Errc::kDeadlineExceeded;
}

/// The request may have been carried out although this is the answer.
bool is_uncertain(const std::error_code& error) {
  return error == Errc::kConnectionLost || error == Errc::kDeadlineExceeded ||
         error == Errc::kNoQuorum;
}

}  // namespace

void count_call(Method method) {
  const auto index = static_cast<std::size_t>(method);
  if (index < call_counters.size()) call_counters[index].fetch_add(1, std::memory_order_relaxed);
}

std::map<std::string, std::uint64_t> ClusterClient::call_counts() {
  std::map<std::string, std::uint64_t> counts;
  for (std::size_t i = 0; i < call_counters.size(); ++i) {
    const std::uint64_t count = call_counters[i].load(std::memory_order_relaxed);
    if (count != 0) counts[to_string(static_cast<Method>(i))] = count;
  }
  return counts;
}

asio::awaitable<bool> is_cancelled() {
  co_return (co_await asio::this_coro::cancellation_state).cancelled() !=
      asio::cancellation_type::none;
}

Task<void> Backoff::wait() {
  if (const bool stop = co_await is_cancelled(); stop) co_return std::errc::interrupted;
  const auto spread = static_cast<std::uint64_t>(next_.count() / 2 + 1);
  const Duration pause =
      next_ / 2 + Duration(static_cast<Duration::rep>(env_.random().below(spread)));
  next_ = std::min(next_ * 2, max_);
  co_await env_.sleep_for(pause);
  if (const bool stop = co_await is_cancelled(); stop) co_return std::errc::interrupted;
  co_return Status();
}

Router::Router(Env& env, Network& network, ClientSession& session, std::shared_ptr<ClusterMap> map,
               ClientOptions options)
    : env_(env),
      network_(network),
      session_(session),
      map_(std::move(map)),
      options_(std::move(options)) {}

Hello Router::hello() const {
  Hello hello;
  hello.kind = Hello::Kind::kClient;
  hello.cluster = map_->cluster();
  hello.session = session_.id();
  hello.name = options_.host + ":" + options_.mount_point;
  if (hello.name.size() > 255) hello.name.resize(255);
  return hello;
}

Task<std::shared_ptr<Connection>> Router::connection_to(std::string address, Lane lane) {
  const auto key = std::make_pair(address, lane);
  for (;;) {
    if (stopped_) co_return Errc::kShuttingDown;
    Slot& slot = slots_[key];
    if (slot.connection && slot.connection->is_open()) co_return slot.connection;
    slot.connection.reset();
    if (!slot.connecting) break;
    const auto event = slot.connecting;
    co_await event->async_wait(asio::as_tuple(asio::use_awaitable));
    if (const bool stop = co_await is_cancelled(); stop) co_return std::errc::interrupted;
    const Slot& after = slots_[key];
    if (!after.connecting && !after.connection && after.last_error) co_return after.last_error;
  }
  const auto event =
      std::make_shared<asio::steady_timer>(env_.executor(), asio::steady_timer::time_point::max());
  slots_[key].connecting = event;
  Hello greeting = hello();
  auto connected =
      co_await network_.connect(address, std::move(greeting), nullptr, kConnectTimeout);
  Slot& slot = slots_[key];
  slot.connecting.reset();
  event->cancel();
  slot.last_error = connected ? std::error_code() : connected.error();
  if (!connected) co_return connected.error();
  if (stopped_) {
    (*connected)->close();
    co_return Errc::kShuttingDown;
  }
  slot.connection = *connected;
  co_return slot.connection;
}

Task<Response> Router::call_node(std::string address, Method method, std::string body,
                                 Buffer payload, Lane lane, Duration timeout) {
  FM_CO_TRY(const auto connection, co_await connection_to(address, lane));
  Request request;
  request.method = static_cast<std::uint16_t>(method);
  request.body = std::move(body);
  request.payload = std::move(payload);
  count_call(method);
  co_return co_await connection->call(std::move(request), timeout);
}

bool Router::give_up(TimePoint since) const {
  return options_.soft && env_.now() - since > options_.soft_timeout;
}

Task<Router::Answer> Router::call_primary(Method method, std::string body, Buffer payload,
                                          Lane lane) {
  const TimePoint begin = env_.now();
  Duration timeout = lane == Lane::kBulk ? kBulkTimeout : options_.attempt_timeout;
  Backoff backoff(env_, options_);
  Answer answer;
  bool said = false;
  for (unsigned attempt = 0;; ++attempt) {
    if (stopped_) co_return Errc::kShuttingDown;
    const std::string address = map_->address_for(attempt);
    if (address.empty()) co_return std::errc::host_unreachable;
    auto response = co_await call_node(address, method, body, payload, lane, timeout);
    if (const bool stop = co_await is_cancelled(); stop) co_return std::errc::interrupted;
    const std::error_code error = response ? response->error : response.error();
    if (response && !is_passing(error)) {
      map_->learn_primary(address);
      answer.response = std::move(*response);
      co_return answer;
    }
    if (!response && (error == Errc::kTooLarge || error == Errc::kWrongCluster ||
                      error == Errc::kVersionMismatch))
      co_return error;
    if (is_uncertain(error)) answer.was_uncertain = true;
    if (error == Errc::kDeadlineExceeded) timeout = std::min(timeout * 2, kTimeoutMax);
    const bool same_node_may_do = response && error == Errc::kRetry;
    if (!same_node_may_do) map_->forget_primary(address);
    if (response && error == Errc::kNotPrimary) {
      const auto hint = decode<PrimaryHint>(response->body);
      if (hint && !hint->address.empty() && hint->address != address) {
        map_->learn_primary(hint->address);
        if (attempt < 8) continue;  // follow at once, but not round in circles
      }
    }
    if (give_up(begin)) co_return std::errc::timed_out;
    if (!said && env_.now() - begin > std::chrono::seconds(5)) {
      said = true;
      const bool is_busy = error == Errc::kDeadlineExceeded || error == Errc::kRetry;
      if (is_busy) {
        spdlog::warn(
            "{} has had no answer of {} for 5 s: still trying; it may wait for another mount that "
            "does not answer (until that one's session is over), or for a disk (`fermata status`)",
            to_string(method), address);
      } else {
        spdlog::warn("no primary answers {} for 5 s ({}): still trying; look at `fermata status`",
                     to_string(method), error.message());
      }
    }
    FM_CO_CHECK(co_await backoff.wait());
  }
}

Task<void> Router::wait_for_session(SessionId old) {
  const TimePoint begin = env_.now();
  const std::uint64_t confirmed = session_.confirmations();
  if (old) map_->report_lost(old);
  for (;;) {
    // The old one may live on: a primary that was deposed meanwhile did not know it.
    const SessionId now = session_.id();
    if (now && (now != old || session_.confirmations() != confirmed)) co_return Status();
    if (stopped_) co_return Errc::kShuttingDown;
    if (give_up(begin)) co_return std::errc::timed_out;
    if (const bool stop = co_await is_cancelled(); stop) co_return std::errc::interrupted;
    co_await env_.sleep_for(std::chrono::milliseconds(10));
  }
}

void Router::stop() {
  stopped_ = true;
  for (auto& [key, slot] : slots_) {
    if (slot.connection) slot.connection->close();
    if (slot.connecting) slot.connecting->cancel();
  }
}

}  // namespace fermata::mountd
