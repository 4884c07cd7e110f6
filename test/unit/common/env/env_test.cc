#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <vector>

#include "common/env/real_env.h"
#include "common/env/sim_env.h"

using namespace fermata;
using namespace std::chrono_literals;
namespace asio = boost::asio;

namespace {

struct Trace {
  std::vector<std::string> lines;
};
/// Says when a frame is destroyed, and touches the node as a node's locals do.
struct Guard {
  Trace* trace;
  std::string name;
  ~Guard() { trace->lines.push_back("gone " + name); }
};

asio::awaitable<void> worker(Env* env, Trace* trace, std::string name, int rounds) {
  const Guard guard{trace, name};
  for (int i = 0; i < rounds; ++i) {
    (void)co_await env->sleep_for(
        Duration(static_cast<std::int64_t>(env->random().below(1000000))));
    const auto value = co_await blocking<int>(*env, [i]() -> Result<int> { return i; });
    trace->lines.push_back(name + " " + std::to_string(*value) + " at " +
                           std::to_string(env->now().time_since_epoch().count()));
  }
}

asio::awaitable<void> sleeper(Env* env, std::error_code* error, Duration duration) {
  *error = co_await env->sleep_for(duration);
}

asio::awaitable<void> wait_on_timer(Env* env, Trace* trace, asio::steady_timer* timer) {
  const Guard guard{trace, "timer"};
  (void)env;
  co_await timer->async_wait(asio::use_awaitable);
}

std::vector<std::string> simulate(std::uint64_t seed) {
  SimScheduler scheduler(seed);
  SimDisk disk(seed);
  Trace trace;
  SimEnv a(scheduler, disk, {.seed = seed});
  SimEnv b(scheduler, disk, {.seed = seed + 1, .clock_rate_ppm = 500});
  co_spawn(a.executor(), worker(&a, &trace, "a", 20), asio::detached);
  co_spawn(b.executor(), worker(&b, &trace, "b", 20), asio::detached);
  CHECK(scheduler.run_until([&] { return trace.lines.size() == 42; }, 1s));
  return trace.lines;
}

}  // namespace

TEST_CASE("SimEnv: a seed gives one run, another seed another", "[env][sim]") {
  CHECK(simulate(1) == simulate(1));
  CHECK(simulate(1) != simulate(2));
}

TEST_CASE("SimEnv: virtual time is exact and costs nothing", "[env][sim]") {
  SimScheduler scheduler(1);
  SimDisk disk(1);
  SimEnv env(scheduler, disk);
  std::error_code error = std::make_error_code(std::errc::io_error);
  const TimePoint start = env.now();
  co_spawn(env.executor(), sleeper(&env, &error, 24h), asio::detached);
  scheduler.run_for(24h - 1ns);
  CHECK(error);
  scheduler.run_for(1ns);
  CHECK_FALSE(error);
  CHECK(env.now() - start == 24h);
}

TEST_CASE("SimEnv: a node's clock may run fast or slow, and its sleeps with it", "[env][sim]") {
  for (const std::int64_t ppm : {-300, 300}) {
    SimScheduler scheduler(1);
    SimDisk disk(1);
    SimEnv env(scheduler, disk, {.clock_rate_ppm = ppm});
    const TimePoint when = env.now() + 1000s;
    std::error_code error = std::make_error_code(std::errc::io_error);
    co_spawn(env.executor(), sleeper(&env, &error, 1000s), asio::detached);
    CHECK(scheduler.run_until([&] { return !error; }, 2000s));
    CHECK(env.now() >= when);
    CHECK(env.now() - when < 10ns);
  }
}

TEST_CASE("SimEnv: a cancelled sleep resumes with an error", "[env][sim]") {
  SimScheduler scheduler(1);
  SimDisk disk(1);
  SimEnv env(scheduler, disk);
  asio::cancellation_signal signal;
  std::error_code error;
  bool ended = false;
  co_spawn(env.executor(), sleeper(&env, &error, 1h),
           asio::bind_cancellation_slot(signal.slot(), [&](std::exception_ptr) { ended = true; }));
  scheduler.run_for(1s);
  CHECK_FALSE(ended);
  signal.emit(asio::cancellation_type::terminal);
  scheduler.run_for(0s);
  CHECK(ended);
  CHECK(error == std::errc::operation_canceled);
}

TEST_CASE("SimEnv: crash unwinds every coroutine at once and resumes none", "[env][sim]") {
  for (int steps = 0; steps < 60; ++steps) {
    SimScheduler scheduler(static_cast<std::uint64_t>(steps));
    SimDisk disk(1);
    Trace other;
    SimEnv survivor(scheduler, disk);
    co_spawn(survivor.executor(), worker(&survivor, &other, "other", 5), asio::detached);
    auto env = std::make_unique<SimEnv>(scheduler, disk);
    auto trace = std::make_unique<Trace>();
    auto timer = std::make_unique<asio::steady_timer>(env->executor(),
                                                      asio::steady_timer::time_point::max());
    for (int i = 0; i < 3; ++i) {
      co_spawn(env->executor(), worker(env.get(), trace.get(), "w", 1000), asio::detached);
    }
    co_spawn(env->executor(), wait_on_timer(env.get(), trace.get(), timer.get()), asio::detached);
    int left = steps;
    (void)scheduler.run_until([&] { return left-- == 0; }, 1h);
    env->crash();
    CHECK(env->crashed());
    // A coroutine that never began has no guard; the others are gone now, not later.
    const std::size_t lines = trace->lines.size();
    if (steps > 20) CHECK(std::count(trace->lines.begin(), trace->lines.end(), "gone w") == 3);
    if (steps > 20) CHECK(std::count(trace->lines.begin(), trace->lines.end(), "gone timer") == 1);
    scheduler.run_for(1s);
    CHECK(trace->lines.size() == lines);
    timer.reset();
    trace.reset();
    env.reset();
    scheduler.run_for(1s);
    CHECK(other.lines.size() == 6);
  }
}

TEST_CASE("RealEnv: sleeps, runs blocking work on other threads, cancels", "[env][real]") {
  asio::io_context context;
  RealEnv env(context.get_executor(), 2);
  Trace trace;
  co_spawn(context, worker(&env, &trace, "w", 5), asio::detached);
  asio::cancellation_signal signal;
  std::error_code error;
  co_spawn(context, sleeper(&env, &error, 1h),
           asio::bind_cancellation_slot(signal.slot(), asio::detached));
  asio::post(context, [&] { signal.emit(asio::cancellation_type::terminal); });
  std::thread::id there;
  const auto work = [&]() -> Result<int> {
    there = std::this_thread::get_id();
    return 1;
  };
  co_spawn(context, blocking<int>(env, work), asio::detached);
  context.run();
  CHECK(error == std::errc::operation_canceled);
  CHECK(trace.lines.size() == 6);
  CHECK(there != std::this_thread::get_id());
  CHECK(there != std::thread::id());
  CHECK(env.random().next() != env.random().next());
  CHECK(env.clock().wall_ns() > 1600000000000000000);
}
