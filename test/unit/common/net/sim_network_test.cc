#include "common/net/sim_network.h"

#include <boost/asio/detached.hpp>

#include "common/env/sim_env.h"
#include "test/unit/common/net/net_fixture.h"

namespace fermata::test {
namespace {

/// Two nodes in virtual time: "b" listens, "a" connects.
struct SimFixture {
  explicit SimFixture(std::uint64_t seed = 1, NetworkOptions options = {})
      : scheduler(seed),
        link(make_sim_link(scheduler)),
        fabric(*link, seed),
        disk(seed),
        env_a(std::make_unique<SimEnv>(scheduler, disk)),
        env_b(std::make_unique<SimEnv>(scheduler, disk)),
        a(fabric.make_network("a", env_a->executor(), options)),
        b(fabric.make_network("b", env_b->executor(), options)) {
    auto made = b->listen("b:9000", NetFixture::server_hello(), handler);
    REQUIRE(made);
    listener = std::move(*made);
  }
  template <class F>
  void run(F&& task, Duration limit = 60s) {
    bool done = false;
    std::exception_ptr error;
    asio::co_spawn(env_a->executor(), std::forward<F>(task), [&](std::exception_ptr e) {
      error = e;
      done = true;
    });
    REQUIRE(scheduler.run_until([&] { return done; }, limit));
    if (error) std::rethrow_exception(error);
  }
  Duration time() const { return scheduler.now().time_since_epoch(); }

  SimScheduler scheduler;
  std::unique_ptr<SimLink> link;
  SimFabric fabric;
  SimDisk disk;
  TestHandler handler;
  std::unique_ptr<SimEnv> env_a;
  std::unique_ptr<SimEnv> env_b;
  std::unique_ptr<SimNetwork> a;
  std::unique_ptr<SimNetwork> b;
  std::unique_ptr<Listener> listener;
};

Request request_of(std::uint16_t method, std::string body) {
  Request request;
  request.method = method;
  request.body = std::move(body);
  return request;
}

Task<std::shared_ptr<Connection>> connect(SimFixture& f, Duration timeout = 5s) {
  return f.a->connect("b:9000", NetFixture::client_hello(), nullptr, timeout);
}

asio::awaitable<void> echo_rounds(SimFixture& f, int rounds) {
  auto connection = co_await connect(f);
  REQUIRE(connection);
  for (int i = 0; i < rounds; ++i) {
    auto got = co_await (*connection)->call(request_of(kEcho, std::to_string(i)), 5s);
    REQUIRE(got);
    CHECK(got->body == std::to_string(i));
    (*connection)->send(request_of(kNote, std::to_string(i % 10)));
  }
  (void)co_await (*connection)->call(request_of(kEcho, ""), 5s);
  (*connection)->close();
}

TEST_CASE("SimNetwork: calls work, and one seed is one run", "[net][sim]") {
  const auto run = [](std::uint64_t seed) {
    SimFixture f(seed);
    f.run(echo_rounds(f, 50));
    f.scheduler.run_for(1s);
    CHECK(f.handler.notes.size() == 50);
    CHECK(f.handler.disconnects == 1);
    CHECK(f.fabric.open_connections() == 0);
    return std::pair(f.time(), f.fabric.stats().bytes);
  };
  CHECK(run(3) == run(3));
  CHECK(run(3).first != run(4).first);
}

asio::awaitable<void> notes(SimFixture& f) {
  auto connection = co_await connect(f);
  REQUIRE(connection);
  for (int i = 0; i < 200; ++i) {
    (*connection)->send(request_of(kNote, "n"));
    (void)co_await (*connection)->call(request_of(kEcho, ""), 5s);
  }
}
TEST_CASE("SimNetwork: one-way messages can arrive twice, requests never", "[net][sim]") {
  SimFixture f;
  SimLinkFaults faults;
  faults.duplicate_ppm = 200'000;
  f.fabric.set_faults(faults);
  f.run(notes(f));
  CHECK(f.fabric.stats().duplicates > 10);
  CHECK(f.handler.notes.size() == 200 + f.fabric.stats().duplicates);
}

asio::awaitable<void> refused(SimFixture& f) {
  auto nobody = co_await f.a->connect("b:1", NetFixture::client_hello(), nullptr, 5s);
  CHECK(nobody.error() == std::errc::connection_refused);
  auto wrong = co_await f.a->connect("b:9000", NetFixture::client_hello(2), nullptr, 5s);
  CHECK(wrong.error() == make_error_code(Errc::kWrongCluster));
  f.fabric.cut("b", "a");
  auto hangs = co_await connect(f, 1s);
  CHECK(hangs.error() == make_error_code(Errc::kDeadlineExceeded));
  f.fabric.heal_all();
  auto works = co_await connect(f, 1s);
  CHECK(works);
}
TEST_CASE("SimNetwork: connects are refused, hang in a partition, and work when it heals",
          "[net][sim]") {
  SimFixture f;
  f.run(refused(f));
}

asio::awaitable<void> partitioned(SimFixture& f, bool one_way) {
  auto connection = co_await connect(f);
  REQUIRE(connection);
  // A short cut delays; a long one kills.
  f.fabric.cut("a", "b");
  if (!one_way) f.fabric.cut("b", "a");
  f.scheduler.after(2s, [&f] { f.fabric.heal_all(); });
  auto late = co_await (*connection)->call(request_of(kEcho, "late"), 5s);
  REQUIRE(late);
  CHECK(late->body == "late");
  f.fabric.cut("b", "a");
  if (!one_way) f.fabric.cut("a", "b");
  auto lost = co_await (*connection)->call(request_of(kEcho, "lost"), 30s);
  CHECK(lost.error() == make_error_code(Errc::kConnectionLost));
  CHECK(!(*connection)->is_open());
}
TEST_CASE("SimNetwork: a short partition delays, a long one loses the connection", "[net][sim]") {
  for (const bool one_way : {false, true}) {
    CAPTURE(one_way);
    SimFixture f;
    f.run(partitioned(f, one_way));
    f.scheduler.run_for(15s);
    CHECK(f.handler.disconnects == 1);  // the other end finds out for itself
  }
}

asio::awaitable<void> wait_for_loss(SimFixture& f, Duration& took) {
  auto connection = co_await connect(f);
  REQUIRE(connection);
  const TimePoint start = f.scheduler.now();
  auto got = co_await (*connection)->call(request_of(kHang, ""), 60s);
  CHECK(got.error() == make_error_code(Errc::kConnectionLost));
  took = f.scheduler.now() - start;
}
TEST_CASE("SimNetwork: a killed node's peers notice at once, or after the timeout", "[net][sim]") {
  for (const auto notice : {SimFabric::Notice::kAtOnce, SimFabric::Notice::kAfterTimeout}) {
    SimFixture f;
    f.scheduler.after(1s, [&] {
      f.env_b->crash();
      f.fabric.kill("b", notice);
      f.listener.reset();
      f.b.reset();
      f.env_b.reset();
    });
    Duration took{};
    f.run(wait_for_loss(f, took));
    if (notice == SimFabric::Notice::kAtOnce) {
      CHECK(took < 1010ms);
    } else {
      CHECK(took > 8s);
      CHECK(took < 12s);
    }
    // The node's next life.
    f.env_b = std::make_unique<SimEnv>(f.scheduler, f.disk);
    f.b = f.fabric.make_network("b", f.env_b->executor());
    auto again = f.b->listen("b:9000", NetFixture::server_hello(), f.handler);
    REQUIRE(again);
    f.listener = std::move(*again);
    f.run(echo_rounds(f, 3));
  }
}

asio::awaitable<void> caller(SimFixture& f, int& calls, int& lost, int& answered, int& running) {
  std::shared_ptr<Connection> connection;
  for (int i = 0; i < 60; ++i) {
    if (!connection || !connection->is_open()) {
      auto made = co_await connect(f, 2s);
      if (!made) continue;
      connection = *made;
    }
    ++calls;
    auto got = co_await connection->call(request_of(kEcho, std::to_string(i)), 3s);
    if (got) {
      ++answered;
      CHECK(got->body == std::to_string(i));
    } else {
      ++lost;
    }
    co_await f.env_a->sleep_for(20ms);
  }
  if (connection) connection->close();
  --running;
}
TEST_CASE("SimNetwork: under every fault at once each call ends, right or lost", "[net][sim]") {
  std::uint64_t resets = 0;
  std::uint64_t drops = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    SimFixture f(seed);
    SimLinkFaults faults;
    faults.slow_ppm = 50'000;
    faults.stall_ppm = 10'000;
    faults.drop_ppm = 3'000;
    faults.reset_ppm = 10'000;
    faults.duplicate_ppm = 50'000;
    f.fabric.set_faults(faults);
    int calls = 0, lost = 0, answered = 0, running = 4;
    for (int i = 0; i < 4; ++i) {
      asio::co_spawn(f.env_a->executor(), caller(f, calls, lost, answered, running),
                     asio::detached);
    }
    CHECK(f.scheduler.run_until([&] { return running == 0; }, 600s));
    CHECK(calls == lost + answered);
    CHECK(answered > 100);
    f.scheduler.run_for(60s);
    CHECK(f.handler.running == 0);
    CHECK(f.fabric.open_connections() == 0);
    resets += f.fabric.stats().resets;
    drops += f.fabric.stats().drops;
  }
  CHECK(resets > 20);  // else the run proves nothing
  CHECK(drops > 5);
}

}  // namespace
}  // namespace fermata::test
