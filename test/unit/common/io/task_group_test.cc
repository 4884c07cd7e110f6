#include "common/io/task_group.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <catch2/catch_test_macros.hpp>

#include "common/io/on.h"
#include "common/io/waiter.h"

namespace fermata {
namespace {

namespace asio = boost::asio;

asio::awaitable<void> wait_on(Waiter& waiter, std::vector<std::string>& log) {
  log.push_back((co_await waiter.wait()) ? "cancelled" : "notified");
}
asio::awaitable<void> throws() {
  co_await asio::post(co_await asio::this_coro::executor, asio::use_awaitable);
  throw std::runtime_error("thrown by a test");
}
asio::awaitable<void> join(TaskGroup& group, bool& joined) {
  co_await group.join();
  joined = true;
}

TEST_CASE("Waiter: a notification before the wait is kept; one wakes one", "[io]") {
  asio::io_context io;
  Waiter waiter(io.get_executor());
  std::vector<std::string> log;
  waiter.notify();
  waiter.notify();
  asio::co_spawn(io, wait_on(waiter, log), asio::detached);
  io.run_for(std::chrono::milliseconds(20));
  CHECK(log == std::vector<std::string>{"notified"});
  asio::co_spawn(io, wait_on(waiter, log), asio::detached);
  io.restart();
  io.run_for(std::chrono::milliseconds(20));
  CHECK(log.size() == 1);
  waiter.notify();
  CHECK(log.size() == 1);  // never inside notify()
  io.restart();
  io.run_for(std::chrono::milliseconds(20));
  CHECK(log.size() == 2);
}

TEST_CASE("TaskGroup: joins when all ended; a thrown exception ends one task only", "[io]") {
  asio::io_context io;
  TaskGroup group(io.get_executor());
  Waiter first(io.get_executor());
  std::vector<std::string> log;
  bool joined = false;
  group.spawn("first", wait_on(first, log));
  group.spawn("thrower", throws());
  asio::co_spawn(io, join(group, joined), asio::detached);
  io.run_for(std::chrono::milliseconds(20));
  CHECK(group.size() == 1);
  CHECK(!joined);
  first.notify();
  io.restart();
  io.run_for(std::chrono::milliseconds(20));
  CHECK(joined);
  CHECK(log == std::vector<std::string>{"notified"});
}

TEST_CASE("TaskGroup: cancel_all ends what runs and what is spawned later", "[io]") {
  asio::io_context io;
  TaskGroup group(io.get_executor());
  Waiter first(io.get_executor());
  Waiter second(io.get_executor());
  std::vector<std::string> log;
  bool joined = false;
  group.spawn("first", wait_on(first, log));
  asio::co_spawn(io, join(group, joined), asio::detached);
  io.run_for(std::chrono::milliseconds(20));
  group.cancel_all();
  group.spawn("second", wait_on(second, log));
  io.restart();
  io.run_for(std::chrono::milliseconds(20));
  CHECK(log == std::vector<std::string>(2, "cancelled"));
  CHECK(joined);
}

asio::awaitable<int> doubled(int value) { co_return 2 * value; }
asio::awaitable<void> use_on(asio::any_io_executor other, int& out) {
  out = co_await on(other, doubled(21));
}
TEST_CASE("on: runs elsewhere and comes back with the value", "[io]") {
  asio::io_context io;
  int out = 0;
  asio::co_spawn(io, use_on(io.get_executor(), out), asio::detached);
  io.run();
  CHECK(out == 42);
}

}  // namespace
}  // namespace fermata
