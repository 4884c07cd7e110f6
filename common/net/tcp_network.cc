#include "common/net/tcp_network.h"

#include <netinet/tcp.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>
#include <utility>
#include <vector>

namespace fermata {

namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

constexpr auto kReply = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t kPartsMax = 64;  // Asio hands the kernel at most so many at a time
constexpr Duration kAcceptPause = std::chrono::milliseconds(100);

std::string to_text(const tcp::endpoint& endpoint) {
  const auto address = endpoint.address();
  const std::string port = std::to_string(endpoint.port());
  return address.is_v6() ? "[" + address.to_string() + "]:" + port
                         : address.to_string() + ":" + port;
}

class AsioTimer final : public Timer {
 public:
  AsioTimer(const asio::any_io_executor& executor, std::function<void()> action)
      : timer_(executor), action_(std::make_shared<std::function<void()>>(std::move(action))) {}
  void arm(TimePoint when) override {
    timer_.expires_at(when);
    // The weak reference: a timer that was destroyed after it fired must not act.
    timer_.async_wait([weak = std::weak_ptr(action_)](const boost::system::error_code& error) {
      if (error) return;
      if (const auto action = weak.lock()) (*action)();
    });
  }

 private:
  asio::steady_timer timer_;
  std::shared_ptr<std::function<void()>> action_;
};

class AsioTimers final : public Timers {
 public:
  explicit AsioTimers(asio::any_io_executor executor) : executor_(std::move(executor)) {}
  TimePoint now() const override { return std::chrono::steady_clock::now(); }
  std::unique_ptr<Timer> make(std::function<void()> action) override {
    return std::make_unique<AsioTimer>(executor_, std::move(action));
  }

 private:
  asio::any_io_executor executor_;
};

class TcpStream final : public Stream {
 public:
  TcpStream(tcp::socket socket, std::string peer)
      : socket_(std::move(socket)), peer_(std::move(peer)) {}

  asio::awaitable<IoResult> read_some(MutableByteView into) override {
    const auto [error, size] =
        co_await socket_.async_read_some(asio::buffer(into.data(), into.size()), kReply);
    if (error == asio::error::eof) co_return IoResult{};
    co_return IoResult{error, size};
  }

  /// async_write would cut everything into pieces of 64 KiB; the kernel takes what it has room for.
  asio::awaitable<std::error_code> write(std::span<const ByteView> parts) override {
    buffers_.clear();
    for (const ByteView part : parts) buffers_.emplace_back(part.data(), part.size());
    std::size_t first = 0;
    while (first < buffers_.size()) {
      const std::span<const asio::const_buffer> next =
          std::span(buffers_).subspan(first, std::min(buffers_.size() - first, kPartsMax));
      auto [error, size] = co_await socket_.async_write_some(next, kReply);
      if (error) co_return error;
      while (first < buffers_.size() && size >= buffers_[first].size()) {
        size -= buffers_[first++].size();
      }
      if (size != 0) buffers_[first] += size;
    }
    co_return std::error_code();
  }

  void close() override {
    boost::system::error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_both, ignored);
    socket_.close(ignored);
  }

  const std::string& peer_address() const override { return peer_; }

 private:
  tcp::socket socket_;
  const std::string peer_;
  std::vector<asio::const_buffer> buffers_;
};

/// Where TLS will wrap the socket (stream.h).
std::unique_ptr<Stream> make_stream(tcp::socket socket, const NetworkOptions& options) {
  boost::system::error_code ignored;  // a peer that is gone already shows at the first read
  socket.set_option(tcp::no_delay(true), ignored);
  const auto dead_ms = static_cast<unsigned>(
      std::chrono::duration_cast<std::chrono::milliseconds>(options.dead_after).count());
  ::setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &dead_ms, sizeof dead_ms);
  const tcp::endpoint peer = socket.remote_endpoint(ignored);
  return std::make_unique<TcpStream>(std::move(socket), to_text(peer));
}

asio::awaitable<Result<std::unique_ptr<Stream>>> dial(std::shared_ptr<NetworkCore> core,
                                                      std::string address) {
  FM_CO_TRY(const HostPort host_port, parse_address(address));
  std::vector<tcp::endpoint> endpoints;
  boost::system::error_code not_numeric;
  const auto numeric = asio::ip::make_address(host_port.host, not_numeric);
  if (!not_numeric) {
    endpoints.emplace_back(numeric, static_cast<std::uint16_t>(std::stoi(host_port.port)));
  } else {
    tcp::resolver resolver(core->executor);
    const auto [error, found] = co_await resolver.async_resolve(
        host_port.host, host_port.port, tcp::resolver::numeric_service, kReply);
    // The resolver's own codes have no errno: a name that cannot be found is an unreachable host.
    if (error) co_return std::errc::host_unreachable;
    for (const auto& entry : found) endpoints.push_back(entry.endpoint());
  }
  std::error_code last = std::make_error_code(std::errc::host_unreachable);
  for (const tcp::endpoint& endpoint : endpoints) {
    const auto state = co_await asio::this_coro::cancellation_state;
    if (state.cancelled() != asio::cancellation_type::none) {
      co_return std::errc::operation_canceled;
    }
    tcp::socket socket(core->executor);
    const auto [error] = co_await socket.async_connect(endpoint, kReply);
    if (!error) co_return make_stream(std::move(socket), core->options);
    last = from_errno(error.value());
  }
  co_return last;
}

/// Holds the listening socket; shared with the accepting coroutine.
struct TcpAcceptor {
  TcpAcceptor(const asio::any_io_executor& executor) : socket(executor), pause(executor) {}
  tcp::acceptor socket;
  asio::steady_timer pause;
  ListenerCore listener;
  std::string address;
};

asio::awaitable<void> accept_loop(std::shared_ptr<NetworkCore> core,
                                  std::shared_ptr<TcpAcceptor> acceptor) {
  const std::shared_ptr<ListenerCore> listener(acceptor, &acceptor->listener);
  while (!listener->closed) {
    auto [error, socket] = co_await acceptor->socket.async_accept(core->executor, kReply);
    if (listener->closed) break;
    if (!error) {
      accept_stream(core, listener, make_stream(std::move(socket), core->options));
      continue;
    }
    if (error == asio::error::connection_aborted) continue;  // it left while it queued
    ++core->stats.accept_errors;
    if (core->log_limiter.allow("listener " + acceptor->address, core->timers->now())) {
      spdlog::error("accept on {}: {}; trying again, connections wait meanwhile", acceptor->address,
                    error.message());
    }
    acceptor->pause.expires_after(kAcceptPause);
    co_await acceptor->pause.async_wait(kReply);
  }
}

class TcpListener final : public Listener {
 public:
  explicit TcpListener(std::shared_ptr<TcpAcceptor> acceptor) : acceptor_(std::move(acceptor)) {}
  ~TcpListener() override { acceptor_->listener.close(); }
  const std::string& address() const override { return acceptor_->address; }

 private:
  std::shared_ptr<TcpAcceptor> acceptor_;
};

Result<tcp::endpoint> local_endpoint(const std::string& address) {
  FM_TRY(const HostPort host_port, parse_address(address));
  boost::system::error_code error;
  const std::string host = host_port.host == "localhost" ? "127.0.0.1" : host_port.host;
  const auto numeric = asio::ip::make_address(host, error);
  if (error) return std::errc::invalid_argument;
  return tcp::endpoint(numeric, static_cast<std::uint16_t>(std::stoi(host_port.port)));
}

}  // namespace

Result<HostPort> parse_address(const std::string& address) {
  HostPort result;
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) return std::errc::invalid_argument;
  result.host = address.substr(0, colon);
  result.port = address.substr(colon + 1);
  if (result.host.front() == '[') {
    if (result.host.size() < 3 || result.host.back() != ']') return std::errc::invalid_argument;
    result.host = result.host.substr(1, result.host.size() - 2);
  } else if (result.host.find(':') != std::string::npos) {
    return std::errc::invalid_argument;  // an IPv6 address needs its brackets
  }
  std::uint16_t port = 0;
  const char* end = result.port.data() + result.port.size();
  const auto parsed = std::from_chars(result.port.data(), end, port);
  if (result.port.empty() || parsed.ec != std::errc() || parsed.ptr != end) {
    return std::errc::invalid_argument;
  }
  return result;
}

TcpNetwork::TcpNetwork(asio::any_io_executor executor, NetworkOptions options)
    : core_(std::make_shared<NetworkCore>(executor, options,
                                          std::make_unique<AsioTimers>(executor))) {}

TcpNetwork::~TcpNetwork() { core_->shut_down(); }

Task<std::shared_ptr<Connection>> TcpNetwork::connect(std::string address, Hello hello,
                                                      Handler* handler, Duration timeout) {
  return connect_stream(core_, dial(core_, std::move(address)), std::move(hello), handler, timeout);
}

Result<std::unique_ptr<Listener>> TcpNetwork::listen(const std::string& address, Hello hello,
                                                     Handler& handler) {
  FM_TRY(const tcp::endpoint endpoint, local_endpoint(address));
  auto acceptor = std::make_shared<TcpAcceptor>(core_->executor);
  boost::system::error_code error;
  acceptor->socket.open(endpoint.protocol(), error);
  if (!error) acceptor->socket.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor->socket.bind(endpoint, error);
  if (!error) acceptor->socket.listen(asio::socket_base::max_listen_connections, error);
  if (error) return from_errno(error.value());
  acceptor->address = to_text(acceptor->socket.local_endpoint(error));
  acceptor->listener.hello = std::move(hello);
  acceptor->listener.handler = &handler;
  acceptor->listener.stop_listening = [raw = acceptor.get()] {
    boost::system::error_code ignored;
    raw->socket.close(ignored);
    raw->pause.cancel();
  };
  std::erase_if(core_->listeners, [](const auto& weak) { return weak.expired(); });
  core_->listeners.push_back(std::shared_ptr<ListenerCore>(acceptor, &acceptor->listener));
  core_->spawn("accept", accept_loop(core_, acceptor));
  return std::unique_ptr<Listener>(std::make_unique<TcpListener>(std::move(acceptor)));
}

asio::awaitable<void> TcpNetwork::stop() { return NetworkCore::stop(core_); }

const NetworkStats& TcpNetwork::stats() const { return core_->stats; }

}  // namespace fermata
