// The Network of the simulator: the same connections (connection.h) over pipes in virtual time,
// with faults on every link. Frames are really encoded and decoded.
//
// A SimFabric is the wire between all nodes; each node has a SimNetwork of its own, named by its
// host (addresses are HOST:PORT). Bytes of one direction of one connection arrive in order and
// whole, as TCP promises; between connections they overtake each other. What is cut off hangs until
// the link heals or an end gives up after NetworkOptions::dead_after, as with TCP. The same seed
// and the same calls give the same run.
//
// Everything a fault does to a node happens by post to the node's executor, never inside the call
// that caused it.
//
// Thread-safety: none; one thread. The fabric outlives its networks and the scheduler's callbacks
// may outlive both.
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "common/env/clock.h"
#include "common/env/random.h"
#include "common/net/network_core.h"

namespace fermata {

class SimScheduler;

/// What the fabric needs of a scheduler: virtual time.
class SimLink {
 public:
  virtual ~SimLink() = default;
  virtual TimePoint now() = 0;
  virtual void at(TimePoint when, std::function<void()> action) = 0;
};

/// Binds it to the simulator's scheduler, which outlives it.
std::unique_ptr<SimLink> make_sim_link(SimScheduler& scheduler);

/// How one direction of a link behaves. Chances are in millionths per write (a write carries one or
/// more whole frames).
struct SimLinkFaults {
  Duration delay_min = std::chrono::microseconds(50);
  Duration delay_max = std::chrono::microseconds(500);  ///< uniform between the two
  std::uint32_t slow_ppm = 0;                           ///< chance of delay_slow on top
  Duration delay_slow = std::chrono::milliseconds(50);
  std::uint32_t stall_ppm = 0;  ///< chance that this connection's direction stands still a while
  Duration stall = std::chrono::seconds(1);
  std::uint32_t drop_ppm =
      0;  ///< chance that the connection goes dead: nothing passes, no end is told
  std::uint32_t reset_ppm = 0;      ///< chance that the connection is reset: both ends are told
  std::uint32_t duplicate_ppm = 0;  ///< chance, per one-way message, that it arrives twice
};

/// What happened, so that a run can show that it was not spared.
struct SimNetworkStats {
  std::uint64_t connects = 0;
  std::uint64_t writes = 0;
  std::uint64_t bytes = 0;
  std::uint64_t held = 0;  ///< writes that met a partition
  std::uint64_t slow = 0;
  std::uint64_t stalls = 0;
  std::uint64_t drops = 0;
  std::uint64_t resets = 0;
  std::uint64_t duplicates = 0;
  std::uint64_t partitions = 0;
  std::uint64_t kills = 0;
};

/// One node's network. stop() closes everything and resumes when none of its handlers runs.
class SimNetwork : public Network {
 public:
  virtual boost::asio::awaitable<void> stop() = 0;
};

class SimFabric {
 public:
  /// `link` outlives this.
  SimFabric(SimLink& link, std::uint64_t seed);
  ~SimFabric();
  SimFabric(const SimFabric&) = delete;
  SimFabric& operator=(const SimFabric&) = delete;

  /// A node's network; `host` has no other one alive. Its connections run on `executor`.
  std::unique_ptr<SimNetwork> make_network(const std::string& host,
                                           boost::asio::any_io_executor executor,
                                           NetworkOptions options = {});

  /// For every direction of every link that has none of its own.
  void set_faults(SimLinkFaults faults);
  /// For what `from` sends to `to`.
  void set_faults(const std::string& from, const std::string& to, SimLinkFaults faults);

  /// What `from` sends to `to` no longer arrives, until it is healed; then it does, late.
  void cut(const std::string& from, const std::string& to);
  void heal(const std::string& from, const std::string& to);
  /// Both directions between every one of `side` and every host not in it.
  void partition(const std::set<std::string>& side, const std::set<std::string>& others);
  void heal_all();

  enum class Notice { kAtOnce, kAfterTimeout };
  /// The node's process ends: its connections are gone. kAtOnce: its kernel resets them, as when a
  /// process is killed; kAfterTimeout: nobody says a word, as when the power fails. Its network, if
  /// it is still alive, is cut off for good; make a new one for the node's next life.
  void kill(const std::string& host, Notice notice);
  /// Resets one open connection, chosen at random. False: there is none.
  bool reset_random_connection();

  std::size_t open_connections() const;
  const SimNetworkStats& stats() const;

  struct Impl;

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace fermata
