// One primary's mutations over a log that the test decides about.
#include "serverd/service/mutate_service.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "common/env/sim_env.h"
#include "common/wire/message_codec.h"
#include "serverd/service/callbacks.h"
#include "serverd/service/chunk_durability.h"
#include "serverd/service/lock_service.h"
#include "serverd/service/peers.h"
#include "serverd/service/space_guard.h"
#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace std::chrono_literals;
namespace asio = boost::asio;

namespace {

class NoNetwork final : public Network {
 public:
  Task<std::shared_ptr<Connection>> connect(std::string, Hello, Handler*, Duration) override {
    co_return Errc::kConnectionLost;
  }
  Result<std::unique_ptr<Listener>> listen(const std::string&, Hello, Handler&) override {
    return Errc::kUnsupported;
  }
  const NetworkStats& stats() const override { return stats_; }

 private:
  NetworkStats stats_;
};

/// Applies what is proposed at once, unless it is told to wait.
class TestLog final : public ReplicatedLog {
 public:
  explicit TestLog(NodeContext& node) : node_(node), go_on_(node.env.executor()) {
    status_.self = node.config.self;
    status_.role = Role::kPrimary;
    status_.membership.members.push_back({.id = node.config.self, .address = {}, .voter = true});
  }
  Task<Outcome> propose(std::string command) override {
    ++proposed;
    while (waits) {
      if (const auto error = co_await go_on_.wait()) co_return error;
    }
    const LogIndex index = node_.ns->applied_index().next();
    const StateMachine::Command entry{index, node_.term,
                                      std::make_shared<const std::string>(std::move(command))};
    FM_CO_TRY(auto results, node_.ns->apply(std::span(&entry, 1), index));
    if (loses_role) node_.serving = false;
    co_return Outcome{.index = index, .result = std::move(results.at(0))};
  }
  Task<void> read_barrier() override {
    if (!node_.serving) co_return Errc::kNotPrimary;
    co_return Status();
  }
  bool may_read() const override { return node_.serving; }
  Task<void> transfer_leadership(NodeId) override { co_return Errc::kUnsupported; }
  Task<void> change_members(Membership) override { co_return Errc::kUnsupported; }
  LogStatus status() const override { return status_; }
  void apply_now() override {}
  bool stalled() const override { return false; }
  void spare_room(bool) override {}
  bool trails(NodeId) const override { return false; }

  /// It has so much more than is applied.
  void pend(std::uint64_t entries) {
    status_.last = LogIndex(node_.ns->applied_index().value() + entries);
  }
  void go_on() {
    waits = false;
    go_on_.notify_all();
  }

  int proposed = 0;
  bool waits = false;
  bool loses_role = false;  ///< once it has applied something

 private:
  NodeContext& node_;
  Signal go_on_;
  LogStatus status_;
};

NodeConfig config_with(std::size_t mutations_max) {
  NodeConfig config;
  config.self = NodeId(1);
  config.mutations_max = mutations_max;
  return config;
}

/// The primary of term 1 with one session.
struct Primary {
  explicit Primary(std::size_t mutations_max = 16)
      : node(env, network, config_with(mutations_max)) {
    driver.bootstrap();
    session = driver.session;
    node.ns = driver.ns.get();
    node.log = &log;
    node.peers = &peers;
    node.callbacks = &callbacks;
    node.space = &space;
    node.durability = &durability;
    node.locks = &locks;
    node.term = Term(1);
    node.serving = true;
    node.leases.start_term(node.term, {});
    node.sessions.start_term({{session, 10s}}, env.now());
    node.leases.add_session(session);
    node.epochs[session] = Epoch(1);
  }
  ~Primary() { env.crash(); }

  /// The answer comes into the place that is returned.
  std::shared_ptr<std::optional<Response>> begin(Mutation op) {
    MutationRequest message;
    message.session = session;
    message.epoch = Epoch(1);
    message.sequence = sequence = sequence.next();
    message.answered_below = Sequence(1);
    message.op = std::move(op);
    Request request;
    request.body = encode(message);
    auto answer = std::make_shared<std::optional<Response>>();
    asio::co_spawn(env.executor(), answer_to(&mutations, std::move(request), answer),
                   asio::detached);
    return answer;
  }
  static asio::awaitable<void> answer_to(MutateService* service, Request request,
                                         std::shared_ptr<std::optional<Response>> answer) {
    *answer = co_await service->mutate(std::move(request));
  }
  bool run_until(const std::function<bool()>& done) { return scheduler.run_until(done, 5s); }
  std::error_code outcome(Mutation op) {
    const auto answer = begin(std::move(op));
    REQUIRE(run_until([&] { return answer->has_value(); }));
    return (*answer)->error;
  }

  SimScheduler scheduler{1};
  SimDisk disk{1};
  SimEnv env{scheduler, disk};
  NoNetwork network;
  std::unique_ptr<MemStore> store = std::move(*MemStore::open(disk, "/meta"));
  serverd::test::Driver driver{*store};
  NodeContext node;
  TestLog log{node};
  Peers peers{node};
  Callbacks callbacks{node};
  SpaceGuard space{node};
  ChunkDurability durability{node};
  LockService locks{node};
  MutateService mutations{node};
  SessionId session;
  Sequence sequence;
};

CreateOp create_op(const std::string& name, InodeId inode = {}) {
  CreateOp op;
  op.parent = kRootInode;
  op.name = name;
  op.mode = 0644;
  op.inode = inode;
  return op;
}

}  // namespace

// kNotPrimary would say that it was not: if the session then ends before the client has asked
// another primary, the client does it again in its next one, and is told EEXIST of its own file.
TEST_CASE("mutations: a primary that loses its role does not deny what was carried out",
          "[service]") {
  Primary primary;
  REQUIRE(!primary.outcome(create_op("before")));
  primary.log.loses_role = true;
  const std::error_code told = primary.outcome(create_op("carried out"));
  REQUIRE(primary.driver.see(kRootInode, "carried out"));
  CHECK(told == Errc::kConnectionLost);
  CHECK(primary.outcome(create_op("after")) == Errc::kNotPrimary);
  CHECK_FALSE(primary.driver.see(kRootInode, "after"));
}

TEST_CASE("mutations: what others wait for is taken on although there are too many", "[service]") {
  Primary primary(1);
  REQUIRE(!primary.outcome(ReserveInodesOp{1}));
  const InodeId reserved(primary.driver.ns->session(primary.session)->value().reserved[0].first);
  primary.log.waits = true;
  const int before = primary.log.proposed;
  const auto first = primary.begin(create_op("first"));
  REQUIRE(primary.run_until([&] { return primary.log.proposed == before + 1; }));
  CHECK(primary.outcome(create_op("one more")) == Errc::kRetry);
  const auto made = primary.begin(create_op("made alone", reserved));
  const auto returned = primary.begin(ReturnLocksOp{kRootInode, LockSpace::kPosix, {}});
  REQUIRE(primary.run_until([&] { return primary.log.proposed == before + 3; }));
  primary.log.go_on();
  REQUIRE(primary.run_until(
      [&] { return first->has_value() && made->has_value() && returned->has_value(); }));
  CHECK(!(*first)->error);
  CHECK(!(*made)->error);
  CHECK(primary.driver.see(kRootInode, "made alone") == reserved);
}

TEST_CASE("patience: time in which the log stands still does not count", "[service]") {
  Primary primary;
  const auto passes = [&](Patience& patience, int seconds) {
    for (int i = 0; i < seconds; ++i) {
      primary.scheduler.run_for(1s);
      if (patience.is_over()) return true;
    }
    return false;
  };
  Patience patience(primary.node, primary.session, 1.5);  // 15 s
  CHECK_FALSE(passes(patience, 10));
  primary.log.pend(1);
  CHECK_FALSE(passes(patience, 60));
  primary.log.pend(0);
  CHECK_FALSE(passes(patience, 3));
  CHECK(passes(patience, 4));
}
