// Finds the primary and carries calls to it, over failovers; the one place that retries.
//
// Thread-safety: one executor, its Env's.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <map>
#include <memory>
#include <string>

#include "common/env/env.h"
#include "common/net/rpc.h"
#include "common/wire/methods.h"
#include "mountd/client/cluster_client.h"
#include "mountd/client/cluster_map.h"

namespace fermata::mountd {

/// True once the running coroutine was asked to end: loops leave with EINTR.
boost::asio::awaitable<bool> is_cancelled();

/// Waits between attempts: twice as long each time, spread by chance.
class Backoff {
 public:
  Backoff(Env& env, const ClientOptions& options)
      : env_(env), next_(options.retry_min), max_(options.retry_max) {}
  /// EINTR if the coroutine was cancelled.
  Task<void> wait();
  void reset(Duration to) { next_ = to; }

 private:
  Env& env_;
  Duration next_;
  Duration max_;
};

class Router : public std::enable_shared_from_this<Router> {
 public:
  Router(Env& env, Network& network, ClientSession& session, std::shared_ptr<ClusterMap> map,
         ClientOptions options);

  enum class Lane {
    kControl,
    kBulk
  };  ///< bulk data has connections of its own, so that it delays nothing

  struct Answer {
    Response response;
    /// An earlier attempt may have been carried out without its answer reaching us.
    bool was_uncertain = false;
  };
  /// Asks the primary until one answers for good. Errors: EINTR (cancelled), ETIMEDOUT (soft
  /// mount), kShuttingDown, kTooLarge. A session that is over is an answer (kSessionExpired,
  /// kStaleEpoch).
  Task<Answer> call_primary(Method method, std::string body, Buffer payload,
                            Lane lane = Lane::kControl);
  /// One attempt at one node.
  Task<Response> call_node(std::string address, Method method, std::string body, Buffer payload,
                           Lane lane, Duration timeout);

  /// Resumes when the session is another one than `old`, or `old` was confirmed to live after all;
  /// or with EINTR, ETIMEDOUT, kShuttingDown.
  Task<void> wait_for_session(SessionId old);

  void stop();
  bool stopped() const { return stopped_; }

  Env& env() { return env_; }
  ClientSession& session() { return session_; }
  ClusterMap& map() { return *map_; }
  const ClientOptions& options() const { return options_; }
  Hello hello() const;

 private:
  struct Slot {
    std::shared_ptr<Connection> connection;
    std::shared_ptr<boost::asio::steady_timer>
        connecting;  ///< cancelled when the attempt has ended
    std::error_code last_error;
  };
  Task<std::shared_ptr<Connection>> connection_to(std::string address, Lane lane);
  bool give_up(TimePoint since) const;

  Env& env_;
  Network& network_;
  ClientSession& session_;
  std::shared_ptr<ClusterMap> map_;
  ClientOptions options_;
  std::map<std::pair<std::string, Lane>, Slot> slots_;
  bool stopped_ = false;
};

void count_call(Method method);

}  // namespace fermata::mountd
