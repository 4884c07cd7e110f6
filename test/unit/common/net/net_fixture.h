// A server and a client on one io_context, for tests of the transport.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <catch2/catch_test_macros.hpp>
#include <functional>
#include <memory>
#include <string>

#include "common/io/waiter.h"
#include "common/net/tcp_network.h"
#include "test/support/print.h"

namespace fermata::test {

namespace asio = boost::asio;
using namespace std::chrono_literals;

inline asio::awaitable<void> sleep_for(Duration duration) {
  asio::steady_timer timer(co_await asio::this_coro::executor);
  timer.expires_after(duration);
  co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
}

/// Methods of the test's server.
enum TestMethod : std::uint16_t {
  kEcho = 1,       // body and payload back
  kSleepEcho = 2,  // after as many ms as the body says
  kFail = 3,       // ENOSPC with a body
  kThrow = 4,
  kHang = 5,      // until cancelled
  kNote = 6,      // counts (one way)
  kCallBack = 7,  // calls kEcho on the same connection and answers with what it got
  kBig = 8,       // answers with a payload of as many bytes as the body says
};

class TestHandler : public Handler {
 public:
  asio::awaitable<Response> handle(std::shared_ptr<Connection> from, Request request) override {
    ++handled;
    ++running;
    most_running = std::max(most_running, running);
    Response response;
    switch (request.method) {
      case kEcho:
        response.body = std::move(request.body);
        response.payload = std::move(request.payload);
        break;
      case kSleepEcho:
        co_await sleep_for(std::chrono::milliseconds(std::stoi(request.body)));
        response.body = std::move(request.body);
        break;
      case kFail:
        response.error = std::make_error_code(std::errc::no_space_on_device);
        response.body = "hint";
        break;
      case kThrow:
        --running;
        throw std::runtime_error("thrown by a test");
      case kHang: {
        Waiter never(co_await asio::this_coro::executor);
        if (co_await never.wait()) ++cancelled;
        break;
      }
      case kNote:
        notes += request.body;
        break;
      case kCallBack: {
        request.method = kEcho;
        auto got = co_await from->call(std::move(request), 5s);
        response.body = got ? "called back: " + got->body : got.error().message();
        break;
      }
      case kBig:
        response.payload = Buffer::allocate(std::stoul(request.body));
        break;
      default:
        response.error = Errc::kUnsupported;
    }
    --running;
    co_return response;
  }
  Status on_connect(const std::shared_ptr<Connection>& connection) override {
    ++connects;
    last = connection;
    if (connection->peer().name == "unwanted") return std::errc::permission_denied;
    return {};
  }
  void on_disconnect(const std::shared_ptr<Connection>&) override { ++disconnects; }

  int handled = 0;
  int running = 0;
  int most_running = 0;
  int cancelled = 0;
  int connects = 0;
  int disconnects = 0;
  std::string notes;
  std::weak_ptr<Connection> last;
};

struct NetFixture {
  explicit NetFixture(NetworkOptions server_options = {}, NetworkOptions client_options = {})
      : server(io.get_executor(), server_options), client(io.get_executor(), client_options) {
    auto made = server.listen("127.0.0.1:0", server_hello(), handler);
    REQUIRE(made);
    listener = std::move(*made);
  }
  static ClusterId cluster(std::uint8_t which) {
    ClusterId id;
    id.bytes[0] = which;
    return id;
  }
  static Hello server_hello() {
    Hello hello;
    hello.kind = Hello::Kind::kNode;
    hello.cluster = cluster(1);
    hello.node = NodeId(7);
    hello.name = "server";
    return hello;
  }
  static Hello client_hello(std::uint8_t which = 1, std::string name = "client") {
    Hello hello;
    hello.cluster = cluster(which);
    hello.session = SessionId(42);
    hello.name = std::move(name);
    return hello;
  }
  /// Runs the task to its end; 20 s at most.
  void run(asio::awaitable<void> task) {
    bool done = false;
    std::exception_ptr error;
    asio::co_spawn(io, std::move(task), [&](std::exception_ptr e) {
      error = e;
      done = true;
    });
    run_until(done);
    if (error) std::rethrow_exception(error);
  }
  void run_until(const bool& done) {
    const auto end = std::chrono::steady_clock::now() + 20s;
    io.restart();
    while (!done && std::chrono::steady_clock::now() < end) io.run_one_for(50ms);
    REQUIRE(done);
  }
  void run_for(Duration duration) {
    io.restart();
    io.run_for(duration);
  }
  Task<std::shared_ptr<Connection>> connect(Handler* local = nullptr) {
    return client.connect(listener->address(), client_hello(), local, 5s);
  }

  asio::io_context io{1};
  TestHandler handler;
  TcpNetwork server;
  TcpNetwork client;
  std::unique_ptr<Listener> listener;
};

}  // namespace fermata::test
