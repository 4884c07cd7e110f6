#include "test/sim/cluster/cluster_sim.h"

#include <spdlog/spdlog.h>

#include <array>
#include <cstdio>

#include "serverd/meta/check.h"
#include "test/sim/cluster/nemesis.h"

namespace fermata::test {

using namespace std::chrono_literals;

namespace {

constexpr Duration kSettleMax = 60s;  ///< for each step of the second phase

Character draw_character(SeededRandom& random) {
  Character c;
  const auto often = [&] { return random.chance(3, 5); };
  const auto pick = [&](auto... values) {
    const std::array<std::common_type_t<decltype(values)...>, sizeof...(values)> all{values...};
    return all[random.below(all.size())];
  };
  c.nodes = random.chance(1, 10) ? 5 : 3;
  c.clients = 1 + static_cast<unsigned>(random.below(3));
  c.processes = 1 + static_cast<unsigned>(random.below(3));
  c.chaos = std::chrono::milliseconds(4000 + random.below(8000));
  c.pace = pick(Duration(300ms), Duration(700ms), Duration(1500ms));
  c.think = pick(Duration(5ms), Duration(30ms), Duration(150ms));
  c.lease = pick(Duration(1s), Duration(2s), Duration(3s));
  c.disk_latency_max = pick(Duration(300us), Duration(2ms), Duration(15ms));
  c.clock_ppm_max = pick(0, 1000, 20000);
  c.links.delay_max = pick(Duration(200us), Duration(1ms), Duration(10ms));
  c.links.slow_ppm = pick(0u, 1000u, 20000u);
  c.links.delay_slow = pick(Duration(20ms), Duration(200ms), Duration(900ms));
  c.links.stall_ppm = pick(0u, 0u, 500u);
  c.links.drop_ppm = pick(0u, 0u, 300u);
  c.links.reset_ppm = pick(0u, 0u, 1000u);
  c.links.duplicate_ppm = pick(0u, 0u, 20000u);
  c.crashes = often();
  c.power_cuts = often();
  c.total_power_cuts = often();
  c.disk_faults = often();
  c.corruption = often();
  c.partitions = often();
  c.clogs = often();
  c.resets = often();
  c.client_crashes = often();
  c.client_partitions = often();
  c.chunks = often();
  c.soft = random.chance(1, 3);
  c.segment_bytes = pick(8u << 10, 32u << 10, 1u << 20);
  c.flush_bytes = pick(std::size_t{4} << 10, std::size_t{24} << 10, std::size_t{1} << 20);
  c.trailing_entries = pick(5u, 30u, 300u);
  c.apply_bytes_max = pick(std::size_t{1}, std::size_t{2000}, std::size_t{1} << 20);
  c.attempt_timeout = pick(Duration(250ms), Duration(1s));
  c.history_retention = random.chance(1, 3) ? Duration(3s) : Duration(24h);
  c.full_disks = often();
  return c;
}

std::uint64_t mix(std::uint64_t hash, std::string_view text) {
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  return hash;
}

}  // namespace

std::string host_of(NodeId node) { return "n" + std::to_string(node.value()); }

World::World(std::uint64_t seed, const ClusterSimOptions& options_in)
    : options(options_in),
      random(seed * 0x9e3779b97f4a7c15ULL + 1),
      character(draw_character(random)),
      scheduler(random.next()),
      link(make_sim_link(scheduler)),
      fabric(*link, random.next()) {
  for (auto& byte : cluster.bytes) byte = static_cast<std::uint8_t>(1 + random.below(255));
}

std::vector<std::string> World::addresses() const {
  std::vector<std::string> all;
  for (unsigned i = 1; i <= character.nodes; ++i) all.push_back(host_of(NodeId(i)) + ":7000");
  return all;
}

NetworkOptions World::network_options() const {
  NetworkOptions network;
  network.hello_timeout = 2s;
  network.idle_max = 1s;
  network.dead_after = 2500ms;
  return network;
}

Duration World::between(Duration least, Duration most) {
  const auto spread = static_cast<std::uint64_t>((most - least).count() + 1);
  return least + Duration(static_cast<Duration::rep>(random.below(spread)));
}

void World::note(const std::string& who, const std::string& what) {
  trace_hash = mix(mix(trace_hash, who), what) + scheduler.steps();
  if (!options.trace) return;
  const double at = static_cast<double>((scheduler.now().time_since_epoch() - 1000s) / 1us) / 1e6;
  std::fprintf(stderr, "%10.6f %-4s %s\n", at, who.c_str(), what.c_str());
}

namespace {

/// One run: the cluster and the two phases of its life.
class ClusterSim {
 public:
  ClusterSim(std::uint64_t seed, const ClusterSimOptions& options) : world_(seed, options) {
    for (unsigned i = 1; i <= world_.character.nodes; ++i)
      servers_.push_back(std::make_unique<SimServer>(world_, NodeId(i)));
    for (unsigned i = 0; i < world_.character.clients; ++i)
      clients_.push_back(std::make_unique<SimClient>(world_, i));
    clients_.push_back(
        std::make_unique<SimClient>(world_, world_.character.clients, SimClient::Role::kVisitor));
  }

  ClusterSimReport run(std::uint64_t seed) {
    world_.fabric.set_faults(world_.character.links);
    for (auto& server : servers_) server->start();
    for (auto& client : clients_) client->start(world_.character.processes);
    Nemesis nemesis(world_, servers_, clients_);
    nemesis.begin();
    run_for(world_.character.chaos);
    nemesis.heal();
    world_.load_over = true;
    settle();
    return report(seed);
  }

 private:
  bool failed() const { return world_.oracle.failed(); }
  void run_for(Duration duration) {
    world_.scheduler.run_until([this] { return failed(); }, duration);
  }
  /// False: it did not come true in time (L1).
  template <class Done>
  bool await(const char* what, Done done) {
    if (failed()) return false;
    if (world_.scheduler.run_until([&] { return failed() || done(); }, kSettleMax))
      return !failed();
    world_.oracle.fail(std::string("after everything was healed: ") + what + describe() + " (L1)");
    return false;
  }

  void settle() {
    world_.note("all", "healed");
    if (!await("operations do not end", [this] { return all_idle(); })) return;
    clients_.push_back(std::make_unique<SimClient>(world_, static_cast<unsigned>(clients_.size())));
    SimClient& reader = *clients_.back();
    reader.start(0);
    reader.verify();
    if (!await("the tree cannot be read", [&] { return reader.verified(); })) return;
    for (auto& client : clients_) {
      if (client->up()) client->stop();
    }
    if (!await("sessions cannot be closed", [this] { return all_stopped(); })) return;
    if (!await("the nodes do not come to rest", [this] { return at_rest(); })) return;
    check_states();
  }

  bool all_idle() const {
    for (const auto& client : clients_) {
      if (client->up() && !client->idle()) return false;
    }
    return true;
  }
  bool all_stopped() const {
    for (const auto& client : clients_) {
      if (client->up() && !client->stopped()) return false;
    }
    return true;
  }
  bool at_rest() {
    // Looking is dear: not after every step.
    if (world_.scheduler.now() < next_look_) return false;
    next_look_ = world_.scheduler.now() + 50ms;
    for (const auto& server : servers_) {
      if (!server->ready()) return false;
      const NodeStatus status = server->node().status();
      if (status.applied < world_.oracle.applied() || status.chunks_missing != 0 ||
          status.session_count != 0)
        return false;
    }
    return true;
  }

  void check_states() {
    for (const auto& server : servers_) {
      const auto& state = server->node().state();
      if (state.applied_index() != world_.oracle.applied()) {
        return world_.oracle.fail("node " + std::to_string(server->id().value()) +
                                  " has not applied all");
      }
      world_.oracle.check_digest(server->id(), state.store());
    }
    const auto& truth = world_.oracle.truth();
    const auto problems = serverd::check(truth.store());
    if (!problems) return world_.oracle.fail("the state cannot be checked");
    if (!problems->empty()) return world_.oracle.fail("the state is wrong: " + problems->front());
    const auto orphans = truth.orphans();
    if (!orphans || !orphans->empty()) world_.oracle.fail("orphans are left without a session");
  }

  std::string describe() {
    std::string out;
    for (const auto& server : servers_) {
      out += "\n  " + host_of(server->id()) + ": ";
      if (!server->ready()) {
        out += server->up() ? "starting" : "down";
        continue;
      }
      const NodeStatus status = server->node().status();
      out += status.role + " term " + std::to_string(status.term.value()) + " last " +
             std::to_string(status.last.value()) + " commit " +
             std::to_string(status.commit.value()) + " applied " +
             std::to_string(status.applied.value()) + " of " +
             std::to_string(world_.oracle.applied().value()) + ", sessions " +
             std::to_string(status.session_count) + ", chunks missing " +
             std::to_string(status.chunks_missing);
      for (const auto& [name, value] : status.counters) {
        if (value != 0) out += ", " + name + " " + std::to_string(value);
      }
    }
    for (const auto& client : clients_) {
      if (client->up()) out += "\n  " + client->host() + ":" + client->doing();
    }
    return out;
  }

  ClusterSimReport report(std::uint64_t seed) {
    for (auto& server : servers_) server->harvest();
    ClusterSimReport report;
    report.seed = seed;
    report.violation = world_.oracle.violation();
    ClusterSimCounts& counts = world_.counts;
    const Oracle::Counts& truth = world_.oracle.counts();
    counts.runs = 1;
    counts.steps = world_.scheduler.steps();
    counts.virtual_ms =
        static_cast<std::uint64_t>((world_.scheduler.now().time_since_epoch() - 1000s) / 1ms);
    counts.commands = truth.commands;
    counts.retries = truth.retries;
    counts.stale_bases = truth.stale_bases;
    counts.replaced_newer = truth.replaced_newer;
    counts.fenced = truth.fenced;
    counts.unknown = truth.unknown;
    counts.folded = truth.folded;
    counts.quota_records = truth.quota_records;
    counts.orphans = truth.orphaned;
    counts.digests = truth.digests;
    counts.checks = truth.checks;
    report.counts = counts;
    report.trace_hash = world_.trace_hash ^ counts.steps;
    // Clients first: what they hold of the network goes before the nodes.
    clients_.clear();
    servers_.clear();
    return report;
  }

  World world_;
  std::vector<std::unique_ptr<SimServer>> servers_;
  std::vector<std::unique_ptr<SimClient>> clients_;
  TimePoint next_look_{};
};

struct CountName {
  const char* name;
  std::uint64_t ClusterSimCounts::*value;
};
using C = ClusterSimCounts;
constexpr std::array<CountName, 49> kCounts{{
    {"runs", &C::runs},
    {"steps", &C::steps},
    {"virtual_ms", &C::virtual_ms},
    {"crashes", &C::crashes},
    {"power_cuts", &C::power_cuts},
    {"power_cuts_of_all", &C::power_cuts_of_all},
    {"torn_tails", &C::torn_tails},
    {"disk_faults", &C::disk_faults},
    {"full_disks", &C::full_disks},
    {"nodes_stopped", &C::nodes_stopped},
    {"corruptions", &C::corruptions},
    {"partitions", &C::partitions},
    {"one_way_partitions", &C::one_way_partitions},
    {"resets", &C::resets},
    {"clogs", &C::clogs},
    {"client_crashes", &C::client_crashes},
    {"client_partitions", &C::client_partitions},
    {"elections", &C::elections},
    {"snapshots_installed", &C::snapshots_installed},
    {"sessions_expired", &C::sessions_expired},
    {"callbacks", &C::callbacks},
    {"callbacks_failed", &C::callbacks_failed},
    {"recalls", &C::recalls},
    {"duplicates", &C::duplicates},
    {"retries", &C::retries},
    {"stale_bases", &C::stale_bases},
    {"replaced_newer", &C::replaced_newer},
    {"fenced", &C::fenced},
    {"folded", &C::folded},
    {"quota_records", &C::quota_records},
    {"read_barriers", &C::read_barriers},
    {"chunks_found_corrupt", &C::chunks_found_corrupt},
    {"chunks_fetched", &C::chunks_fetched},
    {"chunks_deleted", &C::chunks_deleted},
    {"without_room", &C::without_room},
    {"stalls", &C::stalls},
    {"orphans", &C::orphans},
    {"operations", &C::operations},
    {"mutations", &C::mutations},
    {"unknown", &C::unknown},
    {"cached_reads", &C::cached_reads},
    {"opens", &C::opens},
    {"locks_here", &C::locks_here},
    {"locks_returned", &C::locks_returned},
    {"made_here", &C::made_here},
    {"commits", &C::commits},
    {"commands", &C::commands},
    {"digests", &C::digests},
    {"checks", &C::checks},
}};
static_assert(sizeof(ClusterSimCounts) == kCounts.size() * sizeof(std::uint64_t));
constexpr std::size_t kCountsUsed = kCounts.size();

}  // namespace

ClusterSimCounts& ClusterSimCounts::operator+=(const ClusterSimCounts& other) {
  for (std::size_t i = 0; i < kCountsUsed; ++i) this->*kCounts[i].value += other.*kCounts[i].value;
  return *this;
}

std::string ClusterSimCounts::describe() const {
  std::string text;
  for (std::size_t i = 0; i < kCountsUsed; ++i)
    text += std::string(kCounts[i].name) + ' ' + std::to_string(this->*kCounts[i].value) + '\n';
  return text;
}

std::string ClusterSimCounts::never_happened() const {
  for (std::size_t i = 0; i < kCountsUsed; ++i) {
    if (this->*kCounts[i].value == 0) return kCounts[i].name;
  }
  return "";
}

ClusterSimReport run_cluster_sim(std::uint64_t seed, const ClusterSimOptions& options) {
  spdlog::set_level(options.trace ? spdlog::level::debug : spdlog::level::off);
  ClusterSim sim(seed, options);
  return sim.run(seed);
}

const char* to_string(BrokenRule rule) {
  switch (rule) {
    case BrokenRule::kNone:
      return "none";
    case BrokenRule::kVoteTwice:
      return "vote-twice";
    case BrokenRule::kApplyBeforeCommit:
      return "apply-before-commit";
    case BrokenRule::kSkipSync:
      return "skip-sync";
    case BrokenRule::kServeWhenDeposed:
      return "serve-when-deposed";
    case BrokenRule::kForgetRequests:
      return "forget-requests";
    case BrokenRule::kAckBeforeMajority:
      return "ack-before-majority";
    case BrokenRule::kSkipCallbacks:
      return "skip-callbacks";
    case BrokenRule::kIgnoreSessionEnd:
      return "ignore-session-end";
    case BrokenRule::kIgnoreCallbacks:
      return "ignore-callbacks";
    case BrokenRule::kTrustExpiredLeases:
      return "trust-expired-leases";
    case BrokenRule::kKeepDelegations:
      return "keep-delegations";
    case BrokenRule::kTrustOldDelegations:
      return "trust-old-delegations";
    case BrokenRule::kSkipRecalls:
      return "skip-recalls";
    case BrokenRule::kGiveUpUntold:
      return "give-up-untold";
  }
  return "unknown";
}

}  // namespace fermata::test
