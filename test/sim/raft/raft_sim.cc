#include "test/sim/raft/raft_sim.h"

#include <algorithm>
#include <array>
#include <utility>

#include "test/sim/raft/sim_cluster.h"

namespace fermata::test {
namespace {

using EventKind = SimCluster::EventKind;

/// Decides what goes wrong, and when.
class Nemesis {
 public:
  Nemesis(SimCluster& cluster, bool lose_disks)
      : cluster_(cluster), random_(cluster.random()), lose_disks_(lose_disks) {
    pace_ = 50 * kMillisecond + static_cast<SimTime>(random_.below(400 * kMillisecond));
    load_pace_ = 5 * kMillisecond + static_cast<SimTime>(random_.below(60 * kMillisecond));
    few_voters_ = random_.chance(1, 8);
    change_weather();
  }

  void act() {
    cluster_.schedule(EventKind::kNemesis, 1 + within(2 * pace_));
    if (lose_disks_ && random_.chance(1, 10)) return lose_disk();
    switch (random_.below(18)) {
      case 0:
      case 1:
        return crash_one();
      case 2:
        return crash_primary();
      case 3:
      case 4:
      case 5:
        return restart_some();
      case 6:
        return isolate(primary_or_any().id, false);
      case 7:
        return isolate(primary_or_any().id, true);
      case 8:
        return split();
      case 9:
      case 10:
        return cluster_.heal_network();
      case 11:
        return change_weather();
      case 12:
        return compact_one();
      case 13:
      case 14:
        return change_membership();
      case 15:
        if (random_.chance(1, 6)) return cut_power();
        return transfer();
      case 16:
        return cut_link();
      case 17:
        return blink();
    }
  }

  void load() {
    // In a lull a node that misses heartbeats misses nothing else, so it may win an election.
    const bool lull = random_.chance(1, 30);
    cluster_.schedule(EventKind::kLoad, 1 + within(lull ? 2 * kSecond : 2 * load_pace_));
    SimNode* target = cluster_.primary();
    if (target == nullptr || random_.chance(1, 6)) target = &any_node();
    if (random_.chance(1, 4)) return cluster_.read(*target);
    cluster_.propose(*target,
                     random_.chance(1, 8) ? 1 + static_cast<unsigned>(random_.below(20)) : 1);
  }

  /// The worst moment to be cut off: a new primary is there and the old one does not know.
  void on_election() {
    if (!random_.chance(1, 3)) return;
    SimNode* elected = cluster_.primary();
    if (elected == nullptr) return;
    for (auto& node : cluster_.nodes()) {
      if (node->id == elected->id || !node->is_primary()) continue;
      isolate(node->id, false);
    }
    cluster_.propose(*elected, 1);
  }

  void heal_everything() {
    cluster_.heal_network();
    cluster_.weather() = SimWeather{};
    for (auto& node : cluster_.nodes()) {
      if (!node->up()) cluster_.start(*node);
    }
  }

 private:
  SimTime within(SimTime span) {
    return static_cast<SimTime>(random_.below(static_cast<std::uint64_t>(span)));
  }
  SimNode& any_node() { return *cluster_.nodes()[random_.below(cluster_.nodes().size())]; }
  SimNode& primary_or_any() {
    SimNode* primary = cluster_.primary();
    return primary != nullptr && random_.chance(1, 2) ? *primary : any_node();
  }

  void crash_one() { cluster_.crash(any_node()); }
  void crash_primary() {
    if (SimNode* primary = cluster_.primary()) cluster_.crash(*primary);
  }
  /// One at a time, and of three or more voters: no more than a minority is ever lost.
  void lose_disk() {
    SimNode* primary = cluster_.primary();
    if (primary == nullptr) return;
    const Membership& members = primary->core->membership();
    if (std::count_if(members.members.begin(), members.members.end(),
                      [](const Member& member) { return member.voter; }) < 3) {
      return;
    }
    for (auto& node : cluster_.nodes()) {
      if (node->lost_disk) return;
    }
    for (const Member& member : members.members) {
      const SimNode& node = cluster_.node(member.id);
      if (node.up() && node.core->membership() != members) return;
    }
    cluster_.lose_disk(primary_or_any());
  }
  void restart_some() {
    for (auto& node : cluster_.nodes()) {
      if (!node->up() && random_.chance(2, 3)) cluster_.start(*node);
    }
  }
  void cut_power() {
    ++cluster_.counts().power_cuts;
    for (auto& node : cluster_.nodes()) cluster_.crash(*node);
    for (auto& node : cluster_.nodes()) cluster_.start(*node);
  }
  /// Some nodes lose their memory for no time at all.
  void blink() {
    const std::uint64_t who = random_.next();
    for (auto& node : cluster_.nodes()) {
      if (!node->up() || ((who >> node->id.value()) & 1) == 0) continue;
      cluster_.crash(*node);
      cluster_.start(*node);
    }
  }
  /// Two nodes do not hear each other, and everyone else hears both: a bridge.
  void cut_link() {
    const NodeId a = primary_or_any().id;
    const NodeId b = any_node().id;
    if (a == b) return;
    ++cluster_.counts().partitions;
    cluster_.block(a, b);
    cluster_.block(b, a);
  }
  /// Most partition failures need only one isolated node (Alquraan, OSDI 2018).
  void isolate(NodeId lonely, bool one_way) {
    const bool inward = random_.chance(1, 2);
    ++(one_way ? cluster_.counts().one_way_partitions : cluster_.counts().partitions);
    for (auto& node : cluster_.nodes()) {
      if (node->id == lonely) continue;
      if (!one_way || inward) cluster_.block(node->id, lonely);
      if (!one_way || !inward) cluster_.block(lonely, node->id);
    }
  }
  void split() {
    ++cluster_.counts().partitions;
    const std::uint64_t sides = random_.next();
    for (auto& a : cluster_.nodes()) {
      for (auto& b : cluster_.nodes()) {
        const bool same = ((sides >> a->id.value()) & 1) == ((sides >> b->id.value()) & 1);
        if (!same) cluster_.block(a->id, b->id);
      }
    }
  }
  void change_weather() {
    SimWeather& weather = cluster_.weather();
    weather = SimWeather{};
    if (random_.chance(1, 2)) weather.drop_per_mille = random_.below(150);
    if (random_.chance(1, 2)) weather.duplicate_per_mille = random_.below(100);
    if (random_.chance(1, 2)) weather.slow_per_mille = random_.below(100);
    if (random_.chance(1, 3)) weather.delay_span = 1 + within(40 * kMillisecond);
    if (random_.chance(1, 3)) weather.disk_stall_per_mille = random_.below(200);
  }
  void compact_one() { cluster_.compact(primary_or_any()); }
  void transfer() {
    SimNode* primary = cluster_.primary();
    if (primary == nullptr) return;
    cluster_.transfer(*primary, any_node().id);
  }

  void change_membership() {
    SimNode* primary = cluster_.primary();
    if (primary == nullptr) return;
    for (auto& node : cluster_.nodes()) {
      if (node->lost_disk) return;
    }
    Membership next = primary->core->membership();
    auto& members = next.members;
    const NodeId id = any_node().id;
    const auto at = std::find_if(members.begin(), members.end(),
                                 [id](const Member& member) { return member.id >= id; });
    const auto voters = static_cast<std::size_t>(
        std::count_if(members.begin(), members.end(), [](const Member& m) { return m.voter; }));
    const std::size_t voters_min = few_voters_ ? 1 : 2;
    if (at == members.end() || at->id != id) {
      members.insert(at, {id, "node" + std::to_string(id.value()) + ":1", random_.chance(1, 4)});
    } else if (!at->voter) {
      at->voter = true;
    } else if (voters > voters_min && random_.chance(1, 4)) {
      at->voter = false;
    } else if (voters > voters_min) {
      members.erase(at);
    } else {
      return;
    }
    const bool itself = primary->id == id;
    if (cluster_.change_membership(*primary, std::move(next)) && itself) {
      ++cluster_.counts().primaries_removed;
    }
  }

  SimCluster& cluster_;
  SeededRandom& random_;
  bool lose_disks_;
  SimTime pace_;
  SimTime load_pace_;
  bool few_voters_;
};

/// Everyone in the newest membership has applied what was acknowledged, to the same state.
bool has_converged(SimCluster& cluster, LogIndex goal) {
  SimNode* primary = cluster.primary();
  if (primary == nullptr || primary->applied < goal) return false;
  for (const Member& member : primary->core->membership().members) {
    const SimNode& node = cluster.node(member.id);
    if (!node.up() || node.applied != primary->applied) return false;
    if (node.applied_chain != primary->applied_chain) return false;
  }
  return true;
}

/// Faults are over: a new proposal must be acknowledged, and reach everyone.
void settle(SimCluster& cluster, SimTime until) {
  const LogIndex before = cluster.checker().acknowledged();
  SimTime next_try = 0;
  while (!cluster.checker().failed()) {
    const LogIndex acknowledged = cluster.checker().acknowledged();
    if (acknowledged > before && has_converged(cluster, acknowledged)) return;
    if (cluster.now() >= until) {
      return cluster.checker().fail("no progress after everything was healed" + cluster.describe());
    }
    if (acknowledged == before && cluster.now() >= next_try) {
      next_try = cluster.now() + 200 * kMillisecond;
      if (SimNode* primary = cluster.primary()) cluster.propose(*primary, 1);
    }
    cluster.step();
  }
}

}  // namespace

RaftSimReport run_raft_sim(std::uint64_t seed, const RaftSimOptions& options) {
  SimCluster cluster(seed, options);
  Nemesis nemesis(cluster, options.lose_disks);
  cluster.schedule(EventKind::kNemesis, kSecond);
  cluster.schedule(EventKind::kLoad, 0);
  std::uint64_t elections = 0;
  while (cluster.now() < options.chaos.count() && !cluster.checker().failed()) {
    const auto mine = cluster.step();
    if (mine == EventKind::kNemesis) nemesis.act();
    if (mine == EventKind::kLoad) nemesis.load();
    if (cluster.checker().elections() == elections) continue;
    elections = cluster.checker().elections();
    nemesis.on_election();
  }
  if (!cluster.checker().failed()) {
    nemesis.heal_everything();
    settle(cluster, cluster.now() + options.settle.count());
  }
  RaftSimReport report;
  report.seed = seed;
  report.violation = cluster.checker().violation();
  report.counts = cluster.counts();
  report.counts.runs = 1;
  report.counts.virtual_ms = static_cast<std::uint64_t>(cluster.now() / kMillisecond);
  report.counts.checks = cluster.checker().checks();
  report.counts.elections = cluster.checker().elections();
  report.trace_hash = cluster.trace_hash();
  return report;
}

const char* to_string(Mutation mutation) {
  switch (mutation) {
    case Mutation::kNone:
      return "none";
    case Mutation::kVoteTwice:
      return "vote-twice";
    case Mutation::kVoteForOldLog:
      return "vote-for-old-log";
    case Mutation::kVoteDuringLease:
      return "vote-during-lease";
    case Mutation::kCommitBeforeQuorum:
      return "commit-before-quorum";
    case Mutation::kCommitOldTermByCounting:
      return "commit-old-term-by-counting";
    case Mutation::kServeReadsWithoutLease:
      return "serve-reads-without-lease";
    case Mutation::kIgnoreTerm:
      return "ignore-term";
    case Mutation::kTruncateCommitted:
      return "truncate-committed";
    case Mutation::kManyMemberships:
      return "many-memberships";
    case Mutation::kKeepTruncatedMembers:
      return "keep-truncated-members";
    case Mutation::kLeaseDuringTransfer:
      return "lease-during-transfer";
    case Mutation::kAckBeforePersist:
      return "ack-before-persist";
    case Mutation::kSkipHardStateSync:
      return "skip-hard-state-sync";
    case Mutation::kSkipLogSync:
      return "skip-log-sync";
    case Mutation::kApplyBeforeCommit:
      return "apply-before-commit";
    case Mutation::kForgetLeaseAtRestart:
      return "forget-lease-at-restart";
    case Mutation::kForgetLostDisk:
      return "forget-lost-disk";
  }
  return "unknown";
}

namespace {

struct CountName {
  const char* name;
  std::uint64_t RaftSimCounts::*value;
};
constexpr std::array<CountName, 31> kCounts{{
    {"runs", &RaftSimCounts::runs},
    {"steps", &RaftSimCounts::steps},
    {"virtual_ms", &RaftSimCounts::virtual_ms},
    {"proposals", &RaftSimCounts::proposals},
    {"acknowledged", &RaftSimCounts::acknowledged},
    {"messages", &RaftSimCounts::messages},
    {"dropped", &RaftSimCounts::dropped},
    {"duplicated", &RaftSimCounts::duplicated},
    {"through_codec", &RaftSimCounts::through_codec},
    {"elections", &RaftSimCounts::elections},
    {"crashes", &RaftSimCounts::crashes},
    {"power_cuts", &RaftSimCounts::power_cuts},
    {"torn_tails", &RaftSimCounts::torn_tails},
    {"lost_writes", &RaftSimCounts::lost_writes},
    {"truncations", &RaftSimCounts::truncations},
    {"partitions", &RaftSimCounts::partitions},
    {"one_way_partitions", &RaftSimCounts::one_way_partitions},
    {"compactions", &RaftSimCounts::compactions},
    {"snapshots_installed", &RaftSimCounts::snapshots_installed},
    {"snapshots_failed", &RaftSimCounts::snapshots_failed},
    {"membership_changes", &RaftSimCounts::membership_changes},
    {"primaries_removed", &RaftSimCounts::primaries_removed},
    {"memberships_reverted", &RaftSimCounts::memberships_reverted},
    {"transfers", &RaftSimCounts::transfers},
    {"transfer_votes", &RaftSimCounts::transfer_votes},
    {"lease_reads", &RaftSimCounts::lease_reads},
    {"index_reads", &RaftSimCounts::index_reads},
    {"reads_refused", &RaftSimCounts::reads_refused},
    {"disks_lost", &RaftSimCounts::disks_lost},
    {"rejoined", &RaftSimCounts::rejoined},
    {"checks", &RaftSimCounts::checks},
}};
static_assert(sizeof(RaftSimCounts) == kCounts.size() * sizeof(std::uint64_t));

}  // namespace

RaftSimCounts& RaftSimCounts::operator+=(const RaftSimCounts& other) {
  for (const auto& [name, value] : kCounts) this->*value += other.*value;
  return *this;
}

std::string RaftSimCounts::describe() const {
  std::string text;
  for (const auto& [name, value] : kCounts) {
    text += std::string(name) + ' ' + std::to_string(this->*value) + '\n';
  }
  return text;
}

std::string RaftSimCounts::never_happened() const {
  for (const auto& [name, value] : kCounts) {
    const bool optional = value == &RaftSimCounts::disks_lost || value == &RaftSimCounts::rejoined;
    if (this->*value == 0 && !optional) return name;
  }
  return "";
}

}  // namespace fermata::test
