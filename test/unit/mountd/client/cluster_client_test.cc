// Mutations over a network that answers as the test says.
#include "mountd/client/cluster_client.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <catch2/catch_test_macros.hpp>
#include <deque>
#include <optional>

#include "common/env/sim_env.h"
#include "common/wire/message_codec.h"
#include "mountd/client/cluster_map.h"

using namespace fermata;
using namespace fermata::mountd;
using namespace std::chrono_literals;
namespace asio = boost::asio;

namespace {

/// One node, always reached, that answers each call with the next of `answers`.
class Script final : public Network {
 public:
  Task<std::shared_ptr<Connection>> connect(std::string, Hello, Handler*, Duration) override {
    co_return std::make_shared<End>(*this);
  }
  Result<std::unique_ptr<Listener>> listen(const std::string&, Hello, Handler&) override {
    return Errc::kUnsupported;
  }
  const NetworkStats& stats() const override { return stats_; }

  void answer(std::error_code error) {
    Response response;
    response.error = error;
    if (!error) response.body = encode(MutationReply{});
    answers.push_back(std::move(response));
  }
  std::deque<Response> answers;
  std::vector<MutationRequest> asked;

 private:
  class End final : public Connection {
   public:
    explicit End(Script& script) : script_(script) {}
    Task<Response> call(Request request, Duration) override {
      FM_CO_TRY(auto message, decode<MutationRequest>(request.body));
      script_.asked.push_back(std::move(message));
      if (script_.answers.empty()) co_return Errc::kTooLarge;  // ends it
      Response response = std::move(script_.answers.front());
      script_.answers.pop_front();
      co_return response;
    }
    void send(Request) override {}
    void close() override {}
    bool is_open() const override { return true; }
    const Hello& peer() const override { return hello_; }
    const std::string& peer_address() const override { return hello_.name; }

   private:
    Script& script_;
    Hello hello_;
  };
  NetworkStats stats_;
};

/// A client in session 1; when that is lost it gets the next one.
struct Mount {
  Mount() {
    open(SessionId(1));
    map->set_on_lost([this](SessionId lost) { open(SessionId(lost.value() + 1)); });
  }
  ~Mount() { env.crash(); }
  void open(SessionId id) { session.opened(id, Epoch(1), Stamp(1), env.now() + 10s); }

  std::error_code outcome(Mutation op) {
    std::optional<std::error_code> out;
    asio::co_spawn(env.executor(), run(&client, std::move(op), &out), asio::detached);
    REQUIRE(scheduler.run_until([&] { return out.has_value(); }, 10s));
    return *out;
  }
  static asio::awaitable<void> run(ClusterClient* client, Mutation op,
                                   std::optional<std::error_code>* out) {
    const Credentials nobody;
    const auto reply = co_await client->mutate(nobody, std::move(op));
    *out = reply ? std::error_code() : reply.error();
  }

  SimScheduler scheduler{1};
  SimDisk disk{1};
  SimEnv env{scheduler, disk};
  Script network;
  ClientSession session{env.clock()};
  std::shared_ptr<ClusterMap> map = make_cluster_map({"node:1"});
  ClusterClient client{env, network, session, map, ClientOptions{}};
};

Mutation make_directory() {
  CreateOp op;
  op.parent = InodeId(1);
  op.name = "d";
  op.type = FileType::kDirectory;
  return op;
}

}  // namespace

TEST_CASE("ClusterClient: the same mutation is asked again until a primary answers", "[client]") {
  Mount mount;
  for (const Errc passing : {Errc::kNotPrimary, Errc::kConnectionLost, Errc::kRetry})
    mount.network.answer(passing);
  mount.network.answer({});
  CHECK(!mount.outcome(make_directory()));
  REQUIRE(mount.network.asked.size() == 4);
  for (const auto& asked : mount.network.asked) CHECK(asked.sequence == Sequence(1));
}

// In another session it has another number, and nobody would know that it is the same.
TEST_CASE("ClusterClient: what may have been carried out is not repeated in another session",
          "[client]") {
  Mount mount;
  mount.network.answer(Errc::kConnectionLost);
  mount.network.answer(Errc::kSessionExpired);
  mount.network.answer(std::make_error_code(std::errc::file_exists));
  CHECK(mount.outcome(make_directory()) == Errc::kSessionExpired);
  CHECK(mount.network.asked.size() == 2);
}

TEST_CASE("ClusterClient: what surely was not carried out is", "[client]") {
  Mount mount;
  mount.network.answer(Errc::kNotPrimary);
  mount.network.answer(Errc::kSessionExpired);
  mount.network.answer({});
  CHECK(!mount.outcome(make_directory()));
  REQUIRE(mount.network.asked.size() == 3);
  CHECK(mount.network.asked.back().session == SessionId(2));
}
