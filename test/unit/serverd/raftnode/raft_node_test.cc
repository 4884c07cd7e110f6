// Three RaftNodes in virtual time: crashes, power cuts, failing disks, a lossy network.
#include "serverd/raft/raft_node.h"

#include <spdlog/spdlog.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <catch2/catch_test_macros.hpp>

#include "common/base/checksum.h"
#include "common/env/sim_env.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace std::chrono_literals;
namespace asio = boost::asio;

namespace {

/// What all replicas agree on: which command is at which index. Checked at every apply.
struct Oracle {
  std::map<std::uint64_t, std::string> applied;
  std::map<std::uint64_t, std::string> acked;
  std::uint64_t applies = 0;
};

/// Remembers every command in order; durable when flushed.
class FakeMachine final : public StateMachine {
 public:
  FakeMachine(Disk& disk, Oracle& oracle) : disk_(disk), oracle_(oracle) {
    if (const auto bytes = read_file(disk_, kPath, 1 << 30)) load(*bytes);
    durable_ = index_;
  }

  Result<std::vector<std::string>> apply(std::span<const Command> batch, LogIndex last) override {
    if (flush_needs > 0) return std::make_error_code(std::errc::no_space_on_device);
    std::vector<std::string> results;
    REQUIRE(last > index_);
    for (const Command& command : batch) {
      REQUIRE(command.index > index_);
      index_ = command.index;
      const auto [at, is_new] = oracle_.applied.emplace(index_.value(), *command.data);
      REQUIRE(at->second == *command.data);
      ++oracle_.applies;
      state_[index_.value()] = *command.data;
      results.push_back("done " + *command.data);
    }
    index_ = last;
    return results;
  }
  LogIndex applied_index() const override { return index_; }
  LogIndex durable_index() const override { return durable_; }
  Status flush() override {
    FM_TRY(const DiskSpace space, disk_.space("/"));
    if (space.free_bytes < flush_needs) return std::make_error_code(std::errc::no_space_on_device);
    flush_needs = 0;
    const LogIndex at = index_;
    FM_CHECK(disk_.make_dirs("/node"));
    FM_CHECK(disk_.sync_dir("/"));
    FM_CHECK(write_file_atomically(disk_, kPath, as_bytes(image())));
    durable_ = at;
    return {};
  }
  Result<LogIndex> checkpoint(const std::string& path) override {
    FM_CHECK(disk_.make_dirs(path));
    FM_CHECK(write_file_atomically(disk_, path + "/state", as_bytes(image())));
    FM_CHECK(write_file_atomically(disk_, path + "/padding", Bytes(2500000, std::byte{7})));
    FM_CHECK(write_file_atomically(disk_, path + "/empty", {}));
    return index_;
  }
  Status install(const std::string& path) override {
    FM_TRY(const auto bytes, read_file(disk_, path + "/state", 1 << 30));
    FM_CHECK(disk_.make_dirs("/node"));
    FM_CHECK(disk_.sync_dir("/"));
    FM_CHECK(write_file_atomically(disk_, kPath, bytes));
    load(bytes);
    durable_ = index_;
    ++installs;
    return {};
  }
  void on_role(Role role, Term term) override {
    is_primary = role == Role::kPrimary;
    told_term = term;
  }

  const std::map<std::uint64_t, std::string>& state() const { return state_; }
  bool is_primary = false;
  Term told_term;
  int installs = 0;
  std::uint64_t flush_needs = 0;  ///< bytes free; until then nothing can be applied

 private:
  static constexpr const char* kPath = "/node/state";
  std::string image() const {
    std::string out;
    append_le(out, index_.value());
    for (const auto& [index, text] : state_) {
      append_le(out, index);
      append_le(out, static_cast<std::uint32_t>(text.size()));
      out += text;
    }
    return out;
  }
  void load(ByteView bytes) {
    state_.clear();
    index_ = LogIndex(load_le<std::uint64_t>(bytes.data()));
    for (std::size_t at = 8; at < bytes.size();) {
      const auto index = load_le<std::uint64_t>(bytes.data() + at);
      const auto size = load_le<std::uint32_t>(bytes.data() + at + 8);
      state_[index] = std::string(as_text(bytes.subspan(at + 12, size)));
      at += 12 + size;
    }
  }

  Disk& disk_;
  Oracle& oracle_;
  LogIndex index_;
  LogIndex durable_;
  std::map<std::uint64_t, std::string> state_;
};

struct Cluster;

struct Node final : PeerTransport {
  Node(Cluster& cluster_in, std::uint32_t number) : cluster(cluster_in), id(number), disk(number) {}
  void set_members(const Membership& membership) override { members = membership; }
  void send(NodeId to, RaftMessage message) override;
  Task<Buffer> read_snapshot(NodeId from, std::uint64_t snapshot, std::string file,
                             std::uint64_t offset, std::uint32_t size) override;

  Cluster& cluster;
  NodeId id;
  SimDisk disk;
  Membership members;
  std::unique_ptr<SimEnv> env;
  std::unique_ptr<FakeMachine> machine;
  std::unique_ptr<RaftNode> raft;
  std::string start_error;
  bool started = false;
  bool failed = false;  // by fatal()
  std::uint64_t life = 0;
};

asio::awaitable<void> start_node(Node* node, std::shared_ptr<std::string> why) {
  const Status status = co_await node->raft->start(why.get());
  node->started = status.has_value();
  if (!status) node->start_error = status.error().message() + ": " + *why;
}

struct Cluster {
  explicit Cluster(std::uint64_t seed, std::uint32_t count = 3)
      : scheduler(seed), random(seed * 77 + 1) {
    for (std::uint32_t i = 1; i <= count; ++i) {
      nodes.push_back(std::make_unique<Node>(*this, i));
      first_members.members.push_back(
          {.id = NodeId(i), .address = "n" + std::to_string(i), .voter = true});
    }
  }
  ~Cluster() {
    for (auto& node : nodes) kill(*node);
  }

  RaftNodeOptions options(NodeId id) const {
    RaftNodeOptions o;
    o.raft.self = id;
    o.raft.seed = random_seed;
    o.cluster.bytes.fill(9);
    o.dir = "/node";
    o.first_members = first_members;
    o.segment_bytes = 4096;
    o.log_cache_bytes = 2000;
    o.flush_bytes = flush_bytes;
    o.trailing_entries = trailing;
    o.proposal_bytes_max = 20000;
    o.room_for = [this](std::uint64_t bytes) { return bytes <= snapshot_room; };
    return o;
  }
  void start(Node& node) {
    ++node.life;
    node.failed = node.started = false;
    node.start_error.clear();
    node.env = std::make_unique<SimEnv>(scheduler, node.disk, SimEnvOptions{.seed = random.next()});
    node.machine = std::make_unique<FakeMachine>(node.disk, oracle);
    node.raft = std::make_unique<RaftNode>(*node.env, options(node.id), *node.machine, node,
                                           [&node](const std::string& why) {
                                             node.failed = true;
                                             node.start_error = why;
                                           });
    asio::co_spawn(node.env->executor(), start_node(&node, std::make_shared<std::string>()),
                   asio::detached);
  }
  void kill(Node& node) {
    if (!node.env) return;
    node.env->crash();
    installs += node.machine->installs;
    persists += node.raft->counters().persists;
    node.raft.reset();
    node.machine.reset();
    node.env.reset();
  }
  void power_cut(Node& node) {
    kill(node);
    node.disk.power_cut(random);
  }
  bool alive(const Node& node) const { return node.env && node.started && !node.failed; }
  Node& node(NodeId id) { return *nodes.at(id.value() - 1); }
  Node* primary() {
    Node* best = nullptr;
    for (auto& n : nodes) {
      if (alive(*n) && n->machine->is_primary &&
          (!best || n->machine->told_term > best->machine->told_term)) {
        best = n.get();
      }
    }
    return best;
  }
  bool connected(NodeId a, NodeId b) const { return isolated != a && isolated != b; }
  Duration delay() { return Duration(static_cast<std::int64_t>(100000 + random.below(3000000))); }

  void start_all() {
    for (auto& n : nodes) {
      if (!n->env) start(*n);
    }
  }
  bool run_until(const std::function<bool()>& done, Duration limit) {
    return scheduler.run_until(done, limit);
  }
  void propose(Node& at);
  std::string settle();
  std::string show();

  SimScheduler scheduler;
  SeededRandom random;
  std::uint64_t random_seed = 5;
  Oracle oracle;
  Membership first_members;
  std::vector<std::unique_ptr<Node>> nodes;
  NodeId isolated;
  std::uint64_t loss_percent = 0;
  std::size_t flush_bytes = 4000;
  std::uint64_t trailing = 20;
  std::uint64_t snapshot_room = ~std::uint64_t{0};
  std::uint64_t next_command = 0;
  int installs = 0;
  std::uint64_t persists = 0;
  std::uint64_t refused = 0;
  std::uint64_t unknown = 0;
};

void deliver(Node* node, std::uint64_t life, const RaftMessage& message) {
  if (!node->env || node->life != life) return;
  asio::post(node->env->executor(), [node, message] { node->raft->receive(message); });
}

void Node::send(NodeId to, RaftMessage message) {
  if (!cluster.connected(id, to) || cluster.random.below(100) < cluster.loss_percent) return;
  Node* target = &cluster.node(to);
  const std::uint64_t target_life = target->life;
  const int copies = cluster.random.below(50) == 0 ? 2 : 1;
  for (int i = 0; i < copies; ++i) {
    cluster.scheduler.after(cluster.delay(), [=] { deliver(target, target_life, message); });
  }
}

struct Reply {
  std::optional<Result<Buffer>> result;
};
asio::awaitable<void> serve(Node* node, std::shared_ptr<Reply> reply, std::uint64_t snapshot,
                            std::string file, std::uint64_t offset, std::uint32_t size) {
  reply->result = co_await node->raft->read_snapshot_file(snapshot, std::move(file), offset, size);
}

Task<Buffer> Node::read_snapshot(NodeId from, std::uint64_t snapshot, std::string file,
                                 std::uint64_t offset, std::uint32_t size) {
  auto reply = std::make_shared<Reply>();
  if (cluster.connected(id, from) && cluster.random.below(100) >= cluster.loss_percent) {
    Node* peer = &cluster.node(from);
    if (cluster.alive(*peer)) {
      asio::co_spawn(peer->env->executor(),
                     serve(peer, reply, snapshot, std::move(file), offset, size), asio::detached);
    }
  }
  for (int i = 0; i < 50 && !reply->result; ++i) (void)co_await env->sleep_for(1ms);
  if (!reply->result) co_return Errc::kDeadlineExceeded;
  co_return std::move(*reply->result);
}

asio::awaitable<void> do_propose(Cluster* cluster, RaftNode* raft, std::string command) {
  const auto outcome = co_await raft->propose(command);
  if (outcome) {
    CHECK(outcome->result == "done " + command);
    CHECK(cluster->oracle.applied.at(outcome->index.value()) == command);
    cluster->oracle.acked[outcome->index.value()] = command;
  } else if (outcome.error() == Errc::kNotPrimary || outcome.error() == Errc::kShuttingDown) {
    ++cluster->refused;  // surely in nobody's log
  } else {
    CHECK(outcome.error() == Errc::kConnectionLost);
    ++cluster->unknown;
  }
}

void Cluster::propose(Node& at) {
  std::string command =
      "command " + std::to_string(++next_command) + std::string(random.below(300), '.');
  asio::co_spawn(at.env->executor(), do_propose(this, at.raft.get(), std::move(command)),
                 asio::detached);
}

/// For a failed check.
std::string Cluster::show() {
  std::string text;
  for (auto& n : nodes) {
    const LogStatus s = n->raft->status();
    text += "\nnode " + std::to_string(n->id.value()) + (n->started ? "" : " not started ") +
            n->start_error + (n->failed ? " failed" : "") + " " + to_string(s.role) + " term " +
            std::to_string(s.term.value()) + " first " + std::to_string(s.first.value()) +
            " last " + std::to_string(s.last.value()) + " commit " +
            std::to_string(s.commit.value()) + " applied " + std::to_string(s.applied.value()) +
            " fetches failed " + std::to_string(n->raft->counters().snapshot_fetches_failed);
  }
  return text;
}

/// Heals everything and waits for equal states; what is wrong, or nothing.
std::string Cluster::settle() {
  isolated = NodeId();
  loss_percent = 0;
  for (auto& n : nodes) n->disk.fail_at(~std::uint64_t{0}, SimDisk::Fault::kEio);  // never
  scheduler.run_for(100ms);  // a fault that has struck is noticed
  for (auto& n : nodes) {
    if (n->env && (n->failed || !n->started || n->disk.is_off())) power_cut(*n);
  }
  start_all();
  if (!run_until([&] { return primary() != nullptr; }, 20s)) {
    for (auto& n : nodes) {
      if (!n->start_error.empty()) return n->start_error;
    }
    return "no primary";
  }
  const std::size_t acked = oracle.acked.size();
  if (!run_until([&] { return primary() != nullptr && primary()->raft->may_read(); }, 20s))
    return "no lease";
  propose(*primary());
  if (!run_until([&] { return oracle.acked.size() > acked; }, 20s)) return "no progress";
  const auto equal = [&] {
    for (auto& n : nodes) {
      if (!alive(*n) || n->machine->state().empty()) return false;
      if (n->machine->state() != nodes.front()->machine->state()) return false;
      if (n->machine->state().rbegin()->first < oracle.acked.rbegin()->first) return false;
    }
    return true;
  };
  if (!run_until(equal, 30s)) return "states stay different:" + show();
  for (const auto& [index, command] : oracle.acked) {
    const auto& state = nodes.front()->machine->state();
    const auto at = state.find(index);
    if (at == state.end() || at->second != command) return "acknowledged command lost: " + command;
  }
  return "";
}

struct Quiet {
  Quiet() { spdlog::set_level(spdlog::level::off); }
  ~Quiet() { spdlog::set_level(spdlog::level::info); }
};

asio::awaitable<void> stop_node(Node* node, bool* stopped) {
  co_await node->raft->stop();
  *stopped = true;
}
asio::awaitable<void> run_barrier(Node* node, std::optional<Status>* result) {
  *result = co_await node->raft->read_barrier();
}
asio::awaitable<void> run_transfer(Node* node, NodeId to, std::optional<Status>* result) {
  *result = co_await node->raft->transfer_leadership(to);
}
asio::awaitable<void> run_change(Node* node, Membership next, std::optional<Status>* result) {
  *result = co_await node->raft->change_members(std::move(next));
}

}  // namespace

TEST_CASE("RaftNode: three nodes elect a primary, commit, and stop cleanly", "[raft][node]") {
  const Quiet quiet;
  Cluster cluster(1);
  cluster.start_all();
  REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
  for (int i = 0; i < 200; ++i) cluster.propose(*cluster.primary());
  REQUIRE(cluster.run_until([&] { return cluster.oracle.acked.size() == 200; }, 10s));
  REQUIRE(cluster.settle() == "");
  Node& primary = *cluster.primary();
  CHECK(primary.raft->counters().persists < 100);  // group commit
  CHECK(primary.raft->status().role == Role::kPrimary);
  CHECK(primary.raft->status().peers.size() == 2);
  CHECK(primary.members == cluster.first_members);

  std::optional<Status> read;
  asio::co_spawn(primary.env->executor(), run_barrier(&primary, &read), asio::detached);
  REQUIRE(cluster.run_until([&] { return read.has_value(); }, 1s));
  CHECK(read->has_value());

  bool stopped = false;
  const std::size_t unknown = cluster.unknown;
  for (int i = 0; i < 10; ++i) cluster.propose(primary);
  cluster.scheduler.run_for(200us);
  asio::co_spawn(primary.env->executor(), stop_node(&primary, &stopped), asio::detached);
  REQUIRE(cluster.run_until([&] { return stopped; }, 10s));
  CHECK(cluster.unknown == unknown + 10);
  CHECK_FALSE(primary.failed);
  cluster.kill(primary);
  CHECK(cluster.settle() == "");
}

TEST_CASE("RaftNode: a barrier at a deposed primary fails, at the new one waits for its lease",
          "[raft][node]") {
  const Quiet quiet;
  Cluster cluster(2);
  cluster.start_all();
  REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
  Node& old = *cluster.primary();
  cluster.isolated = old.id;
  cluster.propose(old);
  REQUIRE(cluster.run_until([&] { return cluster.primary() && cluster.primary() != &old; }, 10s));
  CHECK_FALSE(old.raft->may_read());
  std::optional<Status> at_old;
  std::optional<Status> at_new;
  asio::co_spawn(old.env->executor(), run_barrier(&old, &at_old), asio::detached);
  Node& fresh = *cluster.primary();
  asio::co_spawn(fresh.env->executor(), run_barrier(&fresh, &at_new), asio::detached);
  REQUIRE(cluster.run_until([&] { return at_old.has_value() && at_new.has_value(); }, 5s));
  CHECK(at_old->error() == Errc::kNotPrimary);
  CHECK(at_new->has_value());
  CHECK(cluster.unknown == 1);  // what the old one had taken in
  CHECK(cluster.settle() == "");
}

TEST_CASE("RaftNode: leadership moves, and a member leaves", "[raft][node]") {
  const Quiet quiet;
  Cluster cluster(3);
  cluster.start_all();
  REQUIRE(cluster.run_until(
      [&] { return cluster.primary() && cluster.primary()->raft->may_read(); }, 10s));
  Node& old = *cluster.primary();
  Node& next = cluster.node(NodeId(old.id.value() % 3 + 1));
  std::optional<Status> moved;
  asio::co_spawn(old.env->executor(), run_transfer(&old, next.id, &moved), asio::detached);
  REQUIRE(cluster.run_until([&] { return moved && cluster.primary() == &next; }, 5s));
  CHECK(moved->has_value());
  REQUIRE(cluster.run_until([&] { return next.raft->may_read(); }, 5s));
  Membership members = cluster.first_members;
  std::erase_if(members.members, [&](const Member& m) { return m.id == old.id; });
  std::optional<Status> changed;
  asio::co_spawn(next.env->executor(), run_change(&next, members, &changed), asio::detached);
  REQUIRE(cluster.run_until([&] { return changed.has_value(); }, 5s));
  CHECK(changed->has_value());
  CHECK(next.raft->status().membership == members);
  CHECK(next.members == members);
}

TEST_CASE("RaftNode: a node that missed much gets a snapshot, also in pieces and over crashes",
          "[raft][node]") {
  const Quiet quiet;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    CAPTURE(seed);
    Cluster cluster(seed);
    cluster.start_all();
    REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
    Node& behind = cluster.node(NodeId(cluster.primary()->id.value() % 3 + 1));
    cluster.power_cut(behind);
    for (int round = 0; round < 10; ++round) {
      for (int i = 0; i < 30; ++i) cluster.propose(*cluster.primary());
      cluster.scheduler.run_for(100ms);
    }
    REQUIRE(cluster.primary()->raft->counters().compactions > 0);
    REQUIRE(cluster.primary()->raft->status().first > LogIndex(20));
    cluster.loss_percent = 20;
    // Dies a few times while it fetches or installs.
    for (int i = 0; i < static_cast<int>(seed % 4); ++i) {
      cluster.start(behind);
      cluster.scheduler.run_for(
          Duration(static_cast<std::int64_t>(cluster.random.below(1500000000))));
      if (seed % 2 == 0)
        behind.disk.fail_at(behind.disk.operations() + cluster.random.below(20),
                            SimDisk::Fault::kEio);
      cluster.scheduler.run_for(
          Duration(static_cast<std::int64_t>(cluster.random.below(100000000))));
      cluster.power_cut(behind);
    }
    const std::string wrong = cluster.settle();
    REQUIRE(wrong == "");
    cluster.kill(behind);
    CHECK(cluster.installs > 0);
    CHECK(*behind.disk.list("/node/snapshots") == std::vector<std::string>{});
  }
}

TEST_CASE("RaftNode: a snapshot that has no room is not begun, and comes once there is some",
          "[raft][node]") {
  const Quiet quiet;
  Cluster cluster(3);
  cluster.start_all();
  REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
  Node& behind = cluster.node(NodeId(cluster.primary()->id.value() % 3 + 1));
  cluster.power_cut(behind);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 30; ++i) cluster.propose(*cluster.primary());
    cluster.scheduler.run_for(100ms);
  }
  REQUIRE(cluster.primary()->raft->status().first > LogIndex(20));
  cluster.snapshot_room = 10;
  cluster.start(behind);
  const auto failed = [&] {
    return cluster.alive(behind) && behind.raft->counters().snapshot_fetches_failed > 1;
  };
  REQUIRE(cluster.run_until(failed, 60s));
  CHECK(behind.raft->counters().snapshot_bytes_fetched == 0);
  CHECK(cluster.alive(behind));
  cluster.snapshot_room = ~std::uint64_t{0};
  REQUIRE(cluster.settle() == "");
  cluster.kill(behind);
  CHECK(cluster.installs > 0);
}

TEST_CASE("RaftNode: a primary whose disk hangs gives the role away", "[raft][node]") {
  const Quiet quiet;
  for (std::uint64_t seed = 1; seed <= 5; ++seed) {
    CAPTURE(seed);
    Cluster cluster(seed);
    cluster.start_all();
    REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
    Node* old = cluster.primary();
    for (int i = 0; i < 20; ++i) cluster.propose(*old);
    cluster.scheduler.run_for(200ms);
    old->env->slow_down(60s);
    for (int i = 0; i < 20; ++i) cluster.propose(*old);
    const auto another = [&] { return cluster.primary() != nullptr && cluster.primary() != old; };
    REQUIRE(cluster.run_until(another, 10s));
    const auto before = cluster.oracle.acked.size();
    const auto goes_on = [&] {
      if (Node* primary = cluster.primary()) cluster.propose(*primary);
      cluster.scheduler.run_for(50ms);
      return cluster.oracle.acked.size() > before + 10;
    };
    bool done = false;
    for (int i = 0; i < 200 && !done; ++i) done = goes_on();
    CHECK(done);
    CHECK(cluster.alive(*old));
    CHECK(cluster.primary() != old);
    old->env->slow_down(Duration{0});
    cluster.scheduler.run_for(60s);  // what hangs comes back
    REQUIRE(cluster.settle() == "");
  }
}

TEST_CASE("RaftNode: a peer that died while it fetched a snapshot does not pin the log",
          "[raft][node]") {
  const Quiet quiet;
  Cluster cluster(5);
  cluster.start_all();
  REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
  Node& behind = cluster.node(NodeId(cluster.primary()->id.value() % 3 + 1));
  const auto write = [&](Duration time) {
    const TimePoint end = cluster.scheduler.now() + time;
    while (cluster.scheduler.now() < end) {
      if (Node* primary = cluster.primary()) cluster.propose(*primary);
      cluster.scheduler.run_for(50ms);
    }
  };
  cluster.power_cut(behind);
  write(10s);
  cluster.start(behind);
  Node* primary = cluster.primary();
  REQUIRE(cluster.run_until([&] { return primary->raft->counters().snapshots_made > 0; }, 10s));
  cluster.power_cut(behind);
  write(10s);
  REQUIRE(cluster.primary() == primary);
  const LogIndex pinned = primary->raft->status().first;
  write(10s);
  CHECK(primary->raft->status().first == pinned);  // it may come back
  write(60s);
  REQUIRE(cluster.primary() == primary);
  CHECK(primary->raft->status().first.value() > pinned.value() + 500);
  REQUIRE(cluster.settle() == "");
  cluster.kill(behind);
  CHECK(cluster.installs > 0);
}

TEST_CASE("RaftNode: nothing acknowledged is lost by crashes, power cuts, bad disks and partitions",
          "[raft][node]") {
  const Quiet quiet;
  std::uint64_t acked = 0;
  std::uint64_t crashes = 0;
  std::uint64_t faults = 0;
  int installs = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    CAPTURE(seed);
    Cluster cluster(seed);
    cluster.random_seed = seed;
    cluster.start_all();
    for (int step = 0; step < 400; ++step) {
      const std::uint64_t choice = cluster.random.below(100);
      Node& any = *cluster.nodes[cluster.random.below(3)];
      if (any.env && (any.failed || any.disk.is_off() || !any.start_error.empty())) {
        INFO(any.start_error);
        // Refused for another reason than the injected fault: damage where there is none.
        REQUIRE(any.start_error.find("wipe") == std::string::npos);
        cluster.power_cut(any);
        ++crashes;
      } else if (choice < 3) {
        cluster.power_cut(any);
        ++crashes;
      } else if (choice < 5 && any.env) {
        cluster.kill(any);
        any.disk.close_all();
        ++crashes;
      } else if (choice < 7 && any.env) {
        const SimDisk::Fault kinds[] = {SimDisk::Fault::kPowerCutBefore,
                                        SimDisk::Fault::kPowerCutAfter, SimDisk::Fault::kEio,
                                        SimDisk::Fault::kEnospc, SimDisk::Fault::kShortWrite};
        any.disk.fail_at(any.disk.operations() + cluster.random.below(30),
                         kinds[cluster.random.below(5)]);
        ++faults;
      } else if (choice < 9) {
        cluster.isolated = NodeId(static_cast<std::uint32_t>(cluster.random.below(4)));
      } else if (choice < 10) {
        cluster.loss_percent = cluster.random.below(3) * 10;
      } else if (choice < 20) {
        if (!any.env) cluster.start(any);
      } else if (cluster.alive(any)) {
        Node* to = cluster.primary();
        if (to == nullptr || choice > 95) to = &any;
        for (std::uint64_t i = 0; i < 1 + cluster.random.below(12); ++i) cluster.propose(*to);
      }
      cluster.scheduler.run_for(
          Duration(static_cast<std::int64_t>(cluster.random.below(120000000))));
    }
    const std::string wrong = cluster.settle();
    REQUIRE(wrong == "");
    for (auto& node : cluster.nodes) cluster.kill(*node);
    acked += cluster.oracle.acked.size();
    installs += cluster.installs;
  }
  CAPTURE(acked, crashes, faults, installs);
  CHECK(acked > 10000);
  CHECK(crashes > 800);
  CHECK(installs > 10);
}

TEST_CASE("RaftNode: full disks stall nodes and kill none", "[raft][node]") {
  const Quiet quiet;
  for (const std::size_t full : {std::size_t{1}, std::size_t{3}}) {
    for (std::uint64_t seed = 1; seed <= 10; ++seed) {
      CAPTURE(full, seed);
      Cluster cluster(seed);
      cluster.start_all();
      REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
      for (int i = 0; i < 20; ++i) cluster.propose(*cluster.primary());
      cluster.scheduler.run_for(200ms);
      const auto before = cluster.oracle.acked.size();
      REQUIRE(before > 10);
      for (std::size_t i = 0; i < full; ++i) {
        SimDisk& disk = cluster.nodes[i]->disk;
        disk.set_capacity(disk.space("/")->total_bytes - disk.space("/")->free_bytes +
                          cluster.random.below(4000));
      }
      const auto stalled = [&] {
        std::size_t count = 0;
        for (const auto& node : cluster.nodes) count += node->raft->stalled() ? 1u : 0u;
        return count;
      };
      for (int i = 0; i < 200 && stalled() < full; ++i) {
        if (Node* primary = cluster.primary()) cluster.propose(*primary);
        cluster.scheduler.run_for(50ms);
      }
      REQUIRE(stalled() == full);
      cluster.scheduler.run_for(2s);
      for (const auto& node : cluster.nodes) REQUIRE(cluster.alive(*node));
      // The others hear from their primary, and need no election, unless it is the full one that
      // cannot apply any more.
      CHECK(cluster.primary() != nullptr);
      for (const auto& node : cluster.nodes) node->disk.set_capacity(1 << 30);
      REQUIRE(cluster.run_until([&] { return stalled() == 0; }, 10s));
      REQUIRE(cluster.settle() == "");
      CHECK(cluster.oracle.acked.size() > before);
      for (const auto& node : cluster.nodes) REQUIRE(cluster.alive(*node));
    }
  }
}

// Only a flush lets the log be cut. A log that took what the flush needs would stop both for good.
TEST_CASE("RaftNode: while the state waits for room, the log leaves it what there is",
          "[raft][node]") {
  const Quiet quiet;
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    CAPTURE(seed);
    Cluster cluster(seed);
    cluster.flush_bytes = std::size_t{1} << 30;
    cluster.trailing = 100000;
    cluster.start_all();
    REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
    for (int i = 0; i < 20; ++i) cluster.propose(*cluster.primary());
    cluster.scheduler.run_for(200ms);

    Node& full = cluster.node(NodeId(cluster.primary()->id.value() % 3 + 1));
    const auto free_bytes = [&] { return full.disk.space("/")->free_bytes; };
    const std::uint64_t used = full.disk.space("/")->total_bytes - free_bytes();
    constexpr std::uint64_t kFree = 40000;
    constexpr std::uint64_t kFlush = 20000;
    full.disk.set_capacity(used + kFree);
    full.machine->flush_needs = kFree + 1;
    // More than there is room for, most of it while the state waits.
    for (int i = 0; i < 400; ++i) {
      cluster.propose(*cluster.primary());
      cluster.scheduler.run_for(10ms);
    }
    REQUIRE(full.raft->stalled());
    CHECK(free_bytes() >= kFlush);
    REQUIRE(cluster.alive(full));
    full.machine->flush_needs = kFlush;
    full.disk.set_capacity(used + kFree + (1 << 20));  // what comes after that is another matter
    REQUIRE(cluster.settle() == "");
    CHECK(cluster.oracle.acked.size() > 400);
  }
}

TEST_CASE("RaftNode: who lacks half of what the log keeps trails, while the log can still help it",
          "[raft][node]") {
  const Quiet quiet;
  Cluster cluster(3);
  cluster.flush_bytes = std::size_t{1} << 30;  // the test says when
  cluster.trailing = 40;
  cluster.start_all();
  REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
  const auto write = [&](int count) {
    for (int i = 0; i < count; ++i) cluster.propose(*cluster.primary());
    cluster.scheduler.run_for(200ms);
  };
  write(5);
  Node& primary = *cluster.primary();
  Node& full = cluster.node(NodeId(primary.id.value() % 3 + 1));
  const auto trails = [&] { return primary.raft->trails(full.id); };
  const auto flush = [&] {
    primary.raft->spare_room(true);
    cluster.scheduler.run_for(30s);  // now and then in any case
    write(1);
    primary.raft->spare_room(true);
    primary.raft->spare_room(false);
    cluster.scheduler.run_for(1s);
  };
  CHECK_FALSE(trails());
  const DiskSpace space = *full.disk.space("/");
  full.disk.set_capacity(space.total_bytes - space.free_bytes + 100);
  write(10);
  flush();
  CHECK_FALSE(trails());
  write(20);
  flush();
  CHECK(trails());
  write(60);
  flush();
  REQUIRE(cluster.primary() == &primary);
  CHECK_FALSE(trails());  // what it lacks is gone
  full.disk.set_capacity(space.total_bytes);
  REQUIRE(cluster.settle() == "");
  CHECK_FALSE(cluster.primary()->raft->trails(full.id));
}

// Others may need its vote for what they remove.
TEST_CASE("RaftNode: a state that no room comes for does not hold its log up for ever",
          "[raft][node]") {
  const Quiet quiet;
  Cluster cluster(1);
  cluster.start_all();
  REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
  const NodeId other(cluster.primary()->id.value() % 3 + 1);
  cluster.isolated = NodeId(other.value() % 3 + 1);
  cluster.node(other).machine->flush_needs = ~std::uint64_t{0};
  const auto before = cluster.oracle.acked.size();
  cluster.propose(*cluster.primary());
  cluster.scheduler.run_for(100ms);
  for (int i = 0; i < 300; ++i) {
    if (Node* primary = cluster.primary()) cluster.propose(*primary);
    cluster.scheduler.run_for(200ms);
  }
  CHECK(cluster.oracle.acked.size() > before + 10);
  CHECK(cluster.node(other).raft->stalled());
  cluster.node(other).machine->flush_needs = 0;
  REQUIRE(cluster.settle() == "");
}

TEST_CASE("RaftNode: a state that does not fit to the log is refused", "[raft][node]") {
  const Quiet quiet;
  for (const bool ahead : {true, false}) {
    Cluster cluster(1, 1);
    cluster.start_all();
    REQUIRE(cluster.run_until([&] { return cluster.primary() != nullptr; }, 10s));
    for (int round = 0; round < 20; ++round) {
      for (int i = 0; i < 10; ++i) cluster.propose(*cluster.primary());
      cluster.scheduler.run_for(50ms);
    }
    Node& node = *cluster.nodes[0];
    REQUIRE(node.raft->counters().compactions > 0);
    REQUIRE(node.machine->flush());
    cluster.kill(node);
    REQUIRE(node.disk.remove_all(ahead ? "/node/log" : "/node/state"));
    cluster.start(node);
    REQUIRE(cluster.run_until([&] { return !node.start_error.empty(); }, 5s));
    CHECK(node.start_error.find(ahead ? "it has lost entries" : "entries between are missing") !=
          std::string::npos);
    cluster.kill(node);
  }
}
