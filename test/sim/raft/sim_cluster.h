// The nodes, their disks, the network between them and virtual time. What befalls them is decided
// in raft_sim.cc.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/env/random.h"
#include "serverd/raft/raft_core.h"
#include "test/sim/raft/raft_sim.h"
#include "test/sim/raft/sim_checker.h"
#include "test/sim/raft/sim_log.h"

namespace fermata::test {

using serverd::HardState;
using serverd::Output;
using serverd::RaftCore;
using serverd::RaftOptions;
using serverd::ReadTicket;
using serverd::Role;

/// Virtual nanoseconds since the run began.
using SimTime = std::int64_t;
inline constexpr SimTime kMicrosecond = 1000;
inline constexpr SimTime kMillisecond = 1000 * kMicrosecond;
inline constexpr SimTime kSecond = 1000 * kMillisecond;

struct SimSnapshot {
  SnapshotDescriptor descriptor;  ///< index 0: none
  std::uint64_t chain = 0;        ///< the state: a hash of all that was applied
};

struct SimNode {
  NodeId id;
  std::int64_t clock_ppm = 0;  ///< how much faster its clock runs
  SimTime clock_offset = 0;
  Membership first_membership;

  // On disk.
  HardState disk_hard;
  SimLog disk_log;
  SimSnapshot disk_snapshot;
  bool lost_disk = false;  ///< and has not everything again

  // In memory, gone with a crash.
  struct Job {
    std::uint64_t sequence = 0;
    std::optional<HardState> hard_state;
    std::vector<LogEntry> append;
    std::vector<RaftMessage> after;
  };
  struct Waiting {
    LogIndex index;
    Term term;
  };
  struct Reading {
    ReadTicket ticket;
    LogIndex needed;
  };
  std::optional<RaftCore> core;  ///< none while it is down
  std::uint64_t incarnation = 0;
  SimLog log;
  std::deque<Job> jobs;
  std::size_t jobs_in_write = 0;
  LogIndex commit;
  LogIndex applied;
  std::uint64_t applied_chain = 0;
  Membership applied_membership;
  std::deque<Waiting> waiting;
  std::vector<Reading> reading;
  std::optional<SnapshotDescriptor> fetching;
  NodeId fetching_from;
  SimTime tick_at = 0;

  bool up() const { return core.has_value(); }
  bool is_primary() const { return core && core->role() == Role::kPrimary; }
};

/// How bad the world is; redrawn now and then.
struct SimWeather {
  std::uint64_t drop_per_mille = 0;
  std::uint64_t duplicate_per_mille = 0;
  std::uint64_t slow_per_mille = 0;  ///< messages that take up to a second
  SimTime delay_min = 200 * kMicrosecond;
  SimTime delay_span = 2 * kMillisecond;
  std::uint64_t disk_stall_per_mille = 0;
};

class SimCluster {
 public:
  SimCluster(std::uint64_t seed, const RaftSimOptions& options);

  enum class EventKind : std::uint8_t { kTick, kMessage, kPersisted, kFetched, kNemesis, kLoad };
  struct Event {
    SimTime at;
    std::uint64_t order;
    EventKind kind;
    std::uint32_t node;
    std::uint64_t incarnation;
    std::uint64_t argument;
    bool operator>(const Event& other) const {
      return at != other.at ? at > other.at : order > other.order;
    }
  };
  /// The next event, and time with it; nodes' events are carried out, the caller's are returned.
  std::optional<EventKind> step();
  void schedule(EventKind kind, SimTime delay, std::uint32_t node = 0, std::uint64_t argument = 0);

  // What may befall a node.
  void start(SimNode& node);
  void crash(SimNode& node);
  /// Crashes, comes back with an empty disk, and rejoins.
  void lose_disk(SimNode& node);
  void compact(SimNode& node);
  /// Proposes `count` commands at once; a wrong node refuses.
  void propose(SimNode& node, unsigned count);
  void read(SimNode& node);
  bool change_membership(SimNode& primary, Membership next);
  bool transfer(SimNode& primary, NodeId to);
  void block(NodeId from, NodeId to) { blocked_.insert({from, to}); }
  void heal_network() { blocked_.clear(); }

  std::vector<std::unique_ptr<SimNode>>& nodes() { return nodes_; }
  SimNode& node(NodeId id) { return *nodes_[id.value() - 1]; }
  SimNode* primary();            ///< of the highest term, if any
  std::string describe() const;  ///< one line per node
  SimTime now() const { return now_; }
  SeededRandom& random() { return random_; }
  SimWeather& weather() { return weather_; }
  SimChecker& checker() { return checker_; }
  RaftSimCounts& counts() { return counts_; }
  std::uint64_t trace_hash() const { return trace_hash_; }

 private:
  TimePoint clock(const SimNode& node) const;
  void on_event(SimNode& node, const Event& event);
  void on_written(SimNode& node);
  void on_fetched(SimNode& node);
  void carry_out(SimNode& node, Output out);
  void send(RaftMessage message);
  void start_write(SimNode& node);
  void write_job(SimNode& node, const SimNode::Job& job);
  void check_role(SimNode& node);
  void check_commit(SimNode& node);
  void apply(SimNode& node);
  void check_membership(const SimNode& node);
  void check_reads();
  void schedule_tick(SimNode& node);
  const SimSnapshot& take_snapshot(SimNode& node);
  void trace(const SimNode& node, const char* what, std::uint64_t value = 0);

  RaftSimOptions options_;
  RaftOptions raft_options_;
  SeededRandom random_;
  SimTime now_ = 0;
  std::uint64_t next_order_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::unordered_map<std::uint64_t, RaftMessage> on_the_way_;
  std::vector<std::unique_ptr<SimNode>> nodes_;
  std::set<std::pair<NodeId, NodeId>> blocked_;
  std::map<std::uint64_t, SimSnapshot> snapshots_;
  SimWeather weather_;
  SimChecker checker_;
  RaftSimCounts counts_;
  std::uint64_t next_command_ = 1;
  std::uint64_t codec_per_mille_ = 0;
  std::uint64_t trace_hash_ = 0;
};

}  // namespace fermata::test
