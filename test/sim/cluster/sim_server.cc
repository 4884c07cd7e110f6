#include "test/sim/cluster/sim_server.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "serverd/meta/namespace.h"
#include "serverd/store/mem_store.h"

namespace fermata::test {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using serverd::Family;
using serverd::KvStore;
using serverd::Role;
using serverd::StateMachine;

namespace {

constexpr const char* kDataDir = "/data";

/// A store that forgets what a broken rule wants forgotten.
class ForgetfulStore final : public KvStore {
 public:
  ForgetfulStore(std::unique_ptr<KvStore> inner, BrokenRule rule)
      : inner_(std::move(inner)), rule_(rule) {}
  Result<std::optional<std::string>> get(Family family, std::string_view key) const override {
    return inner_->get(family, key);
  }
  std::unique_ptr<serverd::KvIterator> iterate(Family family, std::string_view lower,
                                               std::string_view upper) const override {
    return inner_->iterate(family, lower, upper);
  }
  Status write(const serverd::KvBatch& batch) override {
    serverd::KvBatch kept;
    for (const auto& write : batch.writes()) {
      const bool forgotten =
          (rule_ == BrokenRule::kForgetRequests && write.family == Family::kRequests) ||
          (rule_ == BrokenRule::kIgnoreSessionEnd && write.family == Family::kSessions &&
           !write.value);
      if (forgotten) continue;
      if (write.value) {
        kept.put(write.family, write.key, *write.value);
      } else {
        kept.erase(write.family, write.key);
      }
    }
    return inner_->write(kept);
  }
  std::unique_ptr<serverd::KvReader> snapshot() const override { return inner_->snapshot(); }
  Status flush() override { return inner_->flush(); }
  Result<std::unique_ptr<serverd::KvReader>> checkpoint(const std::string& path) override {
    return inner_->checkpoint(path);
  }
  Status install(const std::string& path) override { return inner_->install(path); }
  ClusterId cluster() const override { return inner_->cluster(); }
  Status bind_cluster(ClusterId cluster) override { return inner_->bind_cluster(cluster); }
  std::uint64_t approximate_bytes(Family family) const override {
    return inner_->approximate_bytes(family);
  }

 private:
  std::unique_ptr<KvStore> inner_;
  BrokenRule rule_;
};

}  // namespace

/// The node's state, watched: what the log feeds it goes by the oracle.
class SimServer::Watched final : public StateMachine {
 public:
  Watched(World& world, NodeId node, serverd::Namespace& state)
      : world_(world), node_(node), state_(state) {}

  Result<std::vector<std::string>> apply(std::span<const Command> batch, LogIndex last) override {
    const LogIndex before = state_.applied_index();
    auto results = state_.apply(batch, last);
    if (!results) return results;
    world_.oracle.on_apply(node_, batch, before, last, *results);
    world_.note(host_of(node_), "applied " + std::to_string(last.value()));
    if (last == world_.oracle.applied() && ++applied_ % 24 == 0)
      world_.oracle.check_digest(node_, state_.store());
    return results;
  }
  LogIndex applied_index() const override { return state_.applied_index(); }
  LogIndex durable_index() const override { return state_.durable_index(); }
  Status flush() override { return state_.flush(); }
  Result<LogIndex> checkpoint(const std::string& path) override { return state_.checkpoint(path); }
  Status install(const std::string& path) override {
    FM_CHECK(state_.install(path));
    ++world_.counts.snapshots_installed;
    world_.note(host_of(node_), "installed " + std::to_string(state_.applied_index().value()));
    if (state_.applied_index() > world_.oracle.applied())
      world_.oracle.fail("a snapshot holds what nobody applied");
    return {};
  }
  void on_role(Role role, Term term) override {
    if (role == Role::kPrimary) {
      ++world_.counts.elections;
      world_.oracle.on_primary(node_, term);
    }
    world_.note(host_of(node_),
                std::string(serverd::to_string(role)) + " in term " + std::to_string(term.value()));
    state_.on_role(role, term);
  }

 private:
  World& world_;
  const NodeId node_;
  serverd::Namespace& state_;
  std::uint64_t applied_ = 0;
};

SimServer::SimServer(World& world, NodeId id) : world_(world), id_(id), disk_(world.random.next()) {
  const auto spread = static_cast<std::uint64_t>(2 * world.character.clock_ppm_max + 1);
  clock_ppm_ =
      static_cast<std::int64_t>(world.random.below(spread)) - world.character.clock_ppm_max;
  if (world.breaks(BrokenRule::kSkipSync) && id.value() == 1) disk_.ignore_syncs(true);
}

SimServer::~SimServer() {
  if (up()) crash(End::kProcess);
}

void SimServer::start() {
  if (up()) return;
  ++life_;
  started_ = false;
  const Character& character = world_.character;
  SimEnvOptions options;
  options.seed = world_.random.next();
  options.clock_rate_ppm = clock_ppm_;
  options.blocking_max = character.disk_latency_max;
  env_ = std::make_unique<SimEnv>(world_.scheduler, disk_, options);
  network_ = world_.fabric.make_network(host_of(id_), env_->executor(), world_.network_options());

  serverd::NodeConfig config;
  config.cluster = world_.cluster;
  config.self = id_;
  config.listen = host_of(id_) + ":7000";
  const auto addresses = world_.addresses();
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    config.first_members.push_back({NodeId(static_cast<std::uint32_t>(i + 1)), addresses[i], true});
  }
  config.data_dir = kDataDir;
  config.lease = character.lease;
  config.history_retention = character.history_retention;
  config.prune_interval = 2s;
  config.patch_fold_after = 300ms;
  config.exclusive_after = 2ms;  // so that directories go from hand to hand
  config.chunk_pin = 20s;
  config.chunk_drop_delay = 3s;
  config.chunk_pin_low = 1s;
  config.chunk_drop_delay_low = 100ms;
  config.chunk_start_grace = 2s;
  config.log_segment_bytes = character.segment_bytes;
  config.log_flush_bytes = character.flush_bytes;
  config.log_trailing_entries = character.trailing_entries;
  config.log_apply_bytes_max = character.apply_bytes_max;
  auto& testing = config.testing;
  testing.around_state = [this](serverd::Namespace& state) -> std::unique_ptr<StateMachine> {
    return std::make_unique<Watched>(world_, id_, state);
  };
  using serverd::RaftMutation;
  if (world_.breaks(BrokenRule::kVoteTwice)) testing.raft_mutation = RaftMutation::kVoteTwice;
  if (world_.breaks(BrokenRule::kServeWhenDeposed))
    testing.raft_mutation = RaftMutation::kReadWithoutLease;
  if (world_.breaks(BrokenRule::kAckBeforeMajority))
    testing.raft_mutation = RaftMutation::kCommitBeforeQuorum;
  if (world_.breaks(BrokenRule::kApplyBeforeCommit)) {
    testing.raft_mutation = RaftMutation::kElsewhere;
    testing.apply_uncommitted = true;
  }
  if (world_.breaks(BrokenRule::kSkipSync)) testing.raft_mutation = RaftMutation::kElsewhere;
  testing.skip_callbacks = world_.breaks(BrokenRule::kSkipCallbacks);
  testing.skip_recalls = world_.breaks(BrokenRule::kSkipRecalls);

  const BrokenRule rule = world_.options.broken;
  const auto open_store = [this, rule](const std::string& dir) -> Result<std::unique_ptr<KvStore>> {
    FM_TRY(auto store, serverd::MemStore::open(disk_, dir));
    if (rule == BrokenRule::kForgetRequests || rule == BrokenRule::kIgnoreSessionEnd) {
      return std::unique_ptr<KvStore>(std::make_unique<ForgetfulStore>(std::move(store), rule));
    }
    return std::unique_ptr<KvStore>(std::move(store));
  };
  const auto fatal = [this, life = life_](const std::string& reason) { on_fatal(life, reason); };
  node_ = std::make_unique<serverd::Node>(*env_, *network_, std::move(config), open_store, fatal);
  world_.note(host_of(id_), "starts");
  asio::co_spawn(env_->executor(), boot(life_), asio::detached);
}

asio::awaitable<void> SimServer::boot(std::uint64_t life) {
  auto done = co_await node_->start();
  if (done) {
    started_ = true;
  } else {
    on_fatal(life, "it does not start: " + done.error().message() + " (" + node_->why() + ")");
  }
}

void SimServer::on_fatal(std::uint64_t life, const std::string& reason) {
  if (life != life_) return;
  world_.note(host_of(id_), "stops: " + reason);
  // What a full disk may end: a start, and the installation of a snapshot, which has no way back.
  const bool for_room =
      reason.find("No space") != std::string::npos &&
      (reason.find("start") != std::string::npos || reason.find("snapshot") != std::string::npos);
  if (!faulty_ && !disk_.is_off() && !for_room) {
    world_.oracle.fail("node " + std::to_string(id_.value()) +
                       " stopped without a fault: " + reason);
    return;
  }
  ++world_.counts.nodes_stopped;
  // The process ends; somebody starts it again.
  world_.scheduler.after(1ms, [this, life] {
    if (life != life_ || !up()) return;
    crash(disk_.is_off() ? End::kPower : End::kProcess);
  });
}

void SimServer::crash(End end) {
  if (!up()) return;
  harvest();
  world_.note(host_of(id_), end == End::kPower ? "loses power" : "crashes");
  env_->crash();
  world_.fabric.kill(host_of(id_), end == End::kPower ? SimFabric::Notice::kAfterTimeout
                                                      : SimFabric::Notice::kAtOnce);
  node_.reset();
  network_.reset();
  if (end == End::kPower || disk_.is_off()) {
    disk_.power_cut(world_.random);
    faulty_ = false;
    world_.counts.torn_tails += disk_.torn_files() - torn_before_;
    torn_before_ = disk_.torn_files();
  } else {
    disk_.close_all();
  }
  env_.reset();
  started_ = false;
}

void SimServer::arm(SimDisk::Fault fault, std::uint64_t operations_ahead) {
  faulty_ = true;
  ++world_.counts.disk_faults;
  disk_.fail_at(disk_.operations() + operations_ahead, fault);
  disk_.on_power_off([this, life = life_] { on_fatal(life, "its power fails"); });
}

void SimServer::leave_free(std::optional<std::uint64_t> bytes) {
  disk_.set_capacity(~std::uint64_t{0});
  if (!bytes) return;
  const auto space = disk_.space(kDataDir);
  if (!space) return;  // its power is off
  disk_.set_capacity(space->total_bytes - space->free_bytes + *bytes);
  world_.note(host_of(id_), "has " + std::to_string(*bytes) + " bytes left on its disk");
}

bool SimServer::corrupt_chunk() {
  std::vector<std::string> files;
  const std::string root = std::string(kDataDir) + "/chunks";
  const auto shards = disk_.list(root);
  if (!shards) return false;
  for (const auto& shard : *shards) {
    const auto names = disk_.list(root + "/" + shard);
    if (!names) continue;
    for (const auto& name : *names) {
      if (name.size() >= 32) files.push_back(root + "/" + shard + "/" + name);
    }
  }
  if (files.empty()) return false;
  const std::string& victim = files[world_.random.below(files.size())];
  world_.note(host_of(id_), "has a damaged chunk " + victim);
  return disk_.corrupt(victim, world_.random.below(20), 0x10);
}

void SimServer::harvest() {
  if (!ready()) return;
  const NodeStatus status = node_->status();
  const auto count = [&](const char* name) -> std::uint64_t {
    const auto found = status.counters.find(name);
    return found == status.counters.end() ? 0 : found->second;
  };
  ClusterSimCounts& counts = world_.counts;
  counts.sessions_expired += count("sessions_expired");
  counts.callbacks += count("callbacks");
  counts.callbacks_failed += count("callbacks_failed");
  counts.recalls += count("recalls");
  counts.duplicates += count("duplicates_applied") + count("duplicates_in_flight");
  counts.read_barriers += count("read_barriers");
  counts.chunks_fetched += count("chunks_fetched");
  counts.chunks_deleted += count("chunks_deleted");
  counts.without_room += count("mutations_without_room");
  counts.stalls += count("stalls");
  counts.chunks_found_corrupt += status.chunks_corrupt;
}

}  // namespace fermata::test
