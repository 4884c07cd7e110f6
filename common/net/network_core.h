// What the connections of one Network share: options, counters, timers, the list of who is open.
// TcpNetwork and SimNetwork are thin shells around one NetworkCore; connections keep it alive.
//
// Thread-safety: one executor.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/env/clock.h"
#include "common/io/waiter.h"
#include "common/net/rpc.h"
#include "common/net/stream.h"
#include "common/wire/methods.h"

namespace fermata {

struct NetworkOptions {
  Duration hello_timeout = std::chrono::seconds(5);  ///< from accept to the whole hello
  Duration idle_max = std::chrono::seconds(4);       ///< of silence before a ping is sent
  Duration dead_after = std::chrono::seconds(10);    ///< of hearing nothing: the connection is lost
  Duration linger_max = std::chrono::seconds(1);     ///< for what is queued when close() is called
  std::size_t half_open_max = 256;                   ///< accepted, hello not yet said
  std::size_t connections_max = 8192;                ///< accepted
  std::size_t out_queue_bytes_max = 16 * 1024 * 1024;  ///< per connection; one frame always fits
  std::size_t calls_max = 1024;    ///< calls sent and unanswered per connection; more wait
  std::size_t handled_max = 1024;  ///< requests being handled per connection; then reading stops
  std::size_t handled_bytes_max = 64 * 1024 * 1024;  ///< the same, of their bodies and payloads
  /// Largest body by method (common/wire/frame.h); null: kBodySizeDefaultMax for all.
  std::uint32_t (*body_size_max)(std::uint16_t method) = nullptr;
};

/// Calls a function at a time; re-armed as often as needed. Destroying it disarms it.
class Timer {
 public:
  virtual ~Timer() = default;
  virtual void arm(TimePoint when) = 0;  ///< replaces an earlier time
};
class Timers {
 public:
  virtual ~Timers() = default;
  virtual TimePoint now() const = 0;
  virtual std::unique_ptr<Timer> make(std::function<void()> action) = 0;
};

/// At most one line per peer and period, so that a peer gone mad cannot fill the log.
class LogLimiter {
 public:
  bool allow(const std::string& peer_address, TimePoint now);

 private:
  std::map<std::string, TimePoint> last_;  // by host
};

class RpcConnection;
struct ConnectAttempt;
struct ListenerCore;

class NetworkCore : public std::enable_shared_from_this<NetworkCore> {
 public:
  NetworkCore(boost::asio::any_io_executor ex, NetworkOptions opts, std::unique_ptr<Timers> tms);

  /// Runs a coroutine that stop() waits for. What escapes it is logged.
  void spawn(const char* what, boost::asio::awaitable<void> task);
  /// Closes every listener and connection at once, fails every connect(). Nothing opens afterwards.
  void shut_down();
  /// shut_down(), then waits until no coroutine of this network runs: handlers may go then.
  static boost::asio::awaitable<void> stop(std::shared_ptr<NetworkCore> core);

  const boost::asio::any_io_executor executor;
  const NetworkOptions options;
  const std::unique_ptr<Timers> timers;
  NetworkStats stats;
  LogLimiter log_limiter;
  bool closed = false;
  std::uint64_t next_connection_id = 1;
  std::map<std::uint64_t, RpcConnection*> connections;  // in order of making: deterministic
  std::set<std::shared_ptr<ConnectAttempt>> attempts;
  std::vector<std::weak_ptr<ListenerCore>> listeners;
  std::size_t half_open = 0;
  std::size_t accepted_open = 0;
  std::size_t running = 0;  // coroutines that spawn() and the connections started
  Waiter all_ended;
};

/// A listener's part that connections and the network see.
struct ListenerCore {
  Hello hello;
  Handler* handler = nullptr;
  std::map<std::uint64_t, std::weak_ptr<RpcConnection>> connections;
  bool closed = false;
  std::function<void()> stop_listening;
  void close();  ///< and everything it accepted; idempotent
};

/// Takes an accepted stream through the hello, or refuses it.
void accept_stream(const std::shared_ptr<NetworkCore>& core,
                   const std::shared_ptr<ListenerCore>& listener, std::unique_ptr<Stream> stream);

/// Network::connect for any kind of stream; `dial` makes it and may hang: it is cancelled at the
/// deadline.
Task<std::shared_ptr<Connection>> connect_stream(
    std::shared_ptr<NetworkCore> core, boost::asio::awaitable<Result<std::unique_ptr<Stream>>> dial,
    Hello hello, Handler* handler, Duration timeout);

}  // namespace fermata
