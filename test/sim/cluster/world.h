// What the parts of one simulated cluster share: time, network, oracle, counts, and the character
// that the seed gave this run.
#pragma once

#include <memory>
#include <string>

#include "common/env/sim_env.h"
#include "common/net/sim_network.h"
#include "test/sim/cluster/cluster_sim.h"
#include "test/sim/cluster/oracle.h"

namespace fermata::test {

/// Drawn once per seed ("swarm testing", Groce et al., ISSTA 2012: runs that lack some kinds of
/// faults go deeper into the others).
struct Character {
  unsigned nodes = 3;
  unsigned clients = 3;
  unsigned processes = 2;  ///< per client
  Duration chaos{};
  Duration pace{};   ///< between faults, on average
  Duration think{};  ///< of a process between operations, at most
  Duration lease{};
  Duration attempt_timeout{};  ///< of a client's call to one node
  Duration disk_latency_max{};
  std::int64_t clock_ppm_max = 0;
  SimLinkFaults links;
  bool crashes = false, power_cuts = false, total_power_cuts = false, disk_faults = false;
  bool corruption = false, partitions = false, clogs = false, resets = false;
  bool client_crashes = false, client_partitions = false, full_disks = false;
  bool chunks = false;  ///< files of several chunks
  bool soft = false;    ///< client 0 is a soft mount
  std::uint32_t segment_bytes = 0;
  std::size_t flush_bytes = 0;
  std::uint64_t trailing_entries = 0;
  std::size_t apply_bytes_max = 0;
  Duration history_retention{};
};

struct World {
  World(std::uint64_t seed, const ClusterSimOptions& options_in);

  const ClusterSimOptions options;
  SeededRandom random;  ///< of the faults
  Character character;
  SimScheduler scheduler;
  std::unique_ptr<SimLink> link;
  SimFabric fabric;
  Oracle oracle;
  ClusterSimCounts counts;
  ClusterId cluster;
  bool load_over = false;  ///< processes end after their present operation
  std::uint64_t trace_hash = 0;

  bool breaks(BrokenRule rule) const { return options.broken == rule; }
  std::vector<std::string> addresses() const;
  NetworkOptions network_options() const;
  Duration between(Duration least, Duration most);
  /// Goes into the trace hash and, if asked for, to standard error.
  void note(const std::string& who, const std::string& what);
};

std::string host_of(NodeId node);

}  // namespace fermata::test
