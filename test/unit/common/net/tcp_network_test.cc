#include "common/net/tcp_network.h"

#include <sys/resource.h>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/detached.hpp>

#include "common/wire/frame.h"
#include "test/unit/common/net/net_fixture.h"

namespace fermata::test {
namespace {

Request request_of(std::uint16_t method, std::string body, std::size_t payload_size = 0) {
  Request request;
  request.method = method;
  request.body = std::move(body);
  if (payload_size != 0) {
    request.payload = Buffer::allocate(payload_size);
    std::memset(request.payload.mutable_view().data(), 0x5a, payload_size);
  }
  return request;
}

std::string text(std::error_code error) { return error.message(); }

asio::awaitable<void> call_into(std::shared_ptr<Connection> connection, Request request,
                                Duration timeout, std::vector<std::string>& log) {
  auto got = co_await connection->call(std::move(request), timeout);
  log.push_back(got ? got->body : text(got.error()));
}

asio::awaitable<void> echo_sizes(NetFixture& f) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  CHECK((*connection)->peer().name == "server");
  CHECK((*connection)->peer().node == NodeId(7));
  for (const std::size_t body : {0UL, 1UL, 48UL, 16384UL, 65536UL}) {
    for (const std::size_t payload : {0UL, 1UL, 4096UL, 65537UL, 8UL << 20}) {
      CAPTURE(body, payload);
      auto got =
          co_await (*connection)->call(request_of(kEcho, std::string(body, 'x'), payload), 10s);
      REQUIRE(got);
      CHECK(!got->error);
      CHECK(got->body == std::string(body, 'x'));
      REQUIRE(got->payload.size() == payload);
      const auto view = got->payload.view();
      CHECK(
          std::all_of(view.begin(), view.end(), [](std::byte b) { return b == std::byte{0x5a}; }));
    }
  }
}
TEST_CASE("TcpNetwork: bodies and payloads of every size come back whole", "[net]") {
  NetFixture f;
  f.run(echo_sizes(f));
  CHECK(f.server.stats().malformed == 0);
  CHECK(f.server.stats().requests == 25);
}

asio::awaitable<void> errors(NetFixture& f) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  auto failed = co_await (*connection)->call(request_of(kFail, ""), 5s);
  REQUIRE(failed);
  CHECK(failed->error == std::errc::no_space_on_device);
  CHECK(failed->body == "hint");
  auto thrown = co_await (*connection)->call(request_of(kThrow, ""), 5s);
  REQUIRE(thrown);
  CHECK(thrown->error == std::errc::io_error);
  auto unknown = co_await (*connection)->call(request_of(99, ""), 5s);
  REQUIRE(unknown);
  CHECK(unknown->error == make_error_code(Errc::kUnsupported));
  auto body = co_await (*connection)->call(request_of(kEcho, std::string(65537, 'x')), 5s);
  CHECK(body.error() == make_error_code(Errc::kTooLarge));
  auto payload = co_await (*connection)->call(request_of(kEcho, "", (8 << 20) + 1), 5s);
  CHECK(payload.error() == make_error_code(Errc::kTooLarge));
  auto answer = co_await (*connection)->call(request_of(kBig, std::to_string((8 << 20) + 1)), 5s);
  REQUIRE(answer);
  CHECK(answer->error == make_error_code(Errc::kTooLarge));
  CHECK((*connection)->is_open());
}
TEST_CASE("TcpNetwork: errors and oversize leave the connection usable", "[net]") {
  NetFixture f;
  f.run(errors(f));
}

asio::awaitable<void> out_of_order(NetFixture& f, std::vector<std::string>& log) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  for (const char* ms : {"120", "80", "40", "0"}) {
    asio::co_spawn(f.io, call_into(*connection, request_of(kSleepEcho, ms), 5s, log),
                   asio::detached);
  }
  co_await sleep_for(250ms);
}
TEST_CASE("TcpNetwork: answers come in any order, many at once", "[net]") {
  NetFixture f;
  std::vector<std::string> log;
  f.run(out_of_order(f, log));
  CHECK(log == std::vector<std::string>{"0", "40", "80", "120"});
}

asio::awaitable<void> many(NetFixture& f, std::vector<std::string>& log) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  for (int i = 0; i < 5000; ++i) {
    asio::co_spawn(f.io, call_into(*connection, request_of(kEcho, std::to_string(i)), 15s, log),
                   asio::detached);
  }
  while (log.size() < 5000) co_await sleep_for(5ms);
}
TEST_CASE("TcpNetwork: more calls than calls_max wait and all are answered, gathered in few writes",
          "[net]") {
  NetworkOptions few;
  few.calls_max = 100;
  NetFixture f({}, few);
  std::vector<std::string> log;
  f.run(many(f, log));
  std::sort(log.begin(), log.end());
  log.erase(std::unique(log.begin(), log.end()), log.end());
  CHECK(log.size() == 5000);
  CHECK(f.handler.most_running <= 100);
  CHECK(f.client.stats().writes < f.client.stats().frames_out / 4);
}

asio::awaitable<void> deadline(NetFixture& f) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  const auto start = std::chrono::steady_clock::now();
  auto got = co_await (*connection)->call(request_of(kHang, ""), 50ms);
  const auto took = std::chrono::steady_clock::now() - start;
  CHECK(got.error() == make_error_code(Errc::kDeadlineExceeded));
  CHECK(took >= 50ms);
  CHECK(took < 500ms);
  co_await sleep_for(50ms);
  CHECK(f.handler.cancelled == 1);
  auto after = co_await (*connection)->call(request_of(kEcho, "still here"), 5s);
  REQUIRE(after);
  CHECK(after->body == "still here");
}
TEST_CASE("TcpNetwork: a deadline ends the call and its handler, not the connection", "[net]") {
  NetFixture f;
  f.run(deadline(f));
}

asio::awaitable<void> hang(std::shared_ptr<Connection> connection, std::error_code& outcome) {
  co_await asio::this_coro::throw_if_cancelled(false);
  auto got = co_await connection->call(request_of(kHang, ""), 10s);
  outcome = got ? std::error_code() : got.error();
}
asio::awaitable<void> cancel(NetFixture& f) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  asio::cancellation_signal signal;
  std::error_code outcome;
  asio::co_spawn(f.io, hang(*connection, outcome),
                 asio::bind_cancellation_slot(signal.slot(), asio::detached));
  co_await sleep_for(30ms);
  CHECK(f.handler.running == 1);
  signal.emit(asio::cancellation_type::terminal);
  co_await sleep_for(30ms);
  CHECK(outcome == std::errc::operation_canceled);
  CHECK(f.handler.cancelled == 1);
  CHECK(f.handler.running == 0);
  auto after = co_await (*connection)->call(request_of(kEcho, "still here"), 5s);
  CHECK(after);
}
TEST_CASE("TcpNetwork: cancelling a call cancels its handler", "[net]") {
  NetFixture f;
  f.run(cancel(f));
}

asio::awaitable<void> disconnect(NetFixture& f, std::vector<std::string>& log, bool by_server) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  for (int i = 0; i < 3; ++i) {
    asio::co_spawn(f.io, call_into(*connection, request_of(kHang, ""), 10s, log), asio::detached);
  }
  co_await sleep_for(30ms);
  CHECK(f.handler.running == 3);
  if (by_server) {
    f.handler.last.lock()->close();
  } else {
    (*connection)->close();
  }
  co_await sleep_for(50ms);
  CHECK(!(*connection)->is_open());
  CHECK(f.handler.running == 0);
  CHECK(f.handler.cancelled == 3);
  CHECK(f.handler.disconnects == 1);
  auto after = co_await (*connection)->call(request_of(kEcho, ""), 5s);
  CHECK(after.error() == make_error_code(Errc::kConnectionLost));
}
TEST_CASE("TcpNetwork: a disconnect fails the calls and cancels the handlers", "[net]") {
  for (const bool by_server : {false, true}) {
    NetFixture f;
    std::vector<std::string> log;
    f.run(disconnect(f, log, by_server));
    CHECK(log == std::vector<std::string>(3, text(Errc::kConnectionLost)));
  }
}

asio::awaitable<void> both_ways(NetFixture& f, TestHandler& local) {
  auto connection = co_await f.connect(&local);
  REQUIRE(connection);
  auto got = co_await (*connection)->call(request_of(kCallBack, "hi"), 5s);
  REQUIRE(got);
  CHECK(got->body == "called back: hi");
  for (const char* note : {"a", "b", "c", "d"}) (*connection)->send(request_of(kNote, note));
  (void)co_await (*connection)->call(request_of(kEcho, ""), 5s);
  CHECK(f.handler.notes == "abcd");
  // Nobody answers requests at the other end: an error, not a hang.
  auto deaf = co_await f.connect(nullptr);
  REQUIRE(deaf);
  auto refused = co_await (*deaf)->call(request_of(kCallBack, "hi"), 5s);
  REQUIRE(refused);
  CHECK(refused->body == "called back: ");
}
TEST_CASE("TcpNetwork: either end asks; one-way messages keep their order", "[net]") {
  TestHandler local;
  NetFixture f;
  f.run(both_ways(f, local));
}

asio::awaitable<void> refused_hellos(NetFixture& f) {
  auto wrong = co_await f.client.connect(f.listener->address(), f.client_hello(2), nullptr, 5s);
  CHECK(wrong.error() == make_error_code(Errc::kWrongCluster));
  auto unwanted =
      co_await f.client.connect(f.listener->address(), f.client_hello(1, "unwanted"), nullptr, 5s);
  CHECK(unwanted.error() == std::errc::permission_denied);
  auto new_here = co_await f.client.connect(f.listener->address(), f.client_hello(0), nullptr, 5s);
  REQUIRE(new_here);
  CHECK((*new_here)->peer().cluster == f.cluster(1));  // told by the answer
  auto nobody = co_await f.client.connect("127.0.0.1:1", f.client_hello(), nullptr, 5s);
  CHECK(nobody.error() == std::errc::connection_refused);
  auto nonsense = co_await f.client.connect("nonsense", f.client_hello(), nullptr, 5s);
  CHECK(nonsense.error() == std::errc::invalid_argument);
  auto by_name = co_await f.client.connect("localhost" + f.listener->address().substr(9),
                                           f.client_hello(), nullptr, 5s);
  CHECK(by_name);
}
TEST_CASE("TcpNetwork: a hello of another cluster is refused with its reason", "[net]") {
  NetFixture f;
  f.run(refused_hellos(f));
  CHECK(f.server.stats().refused == 2);
  CHECK(f.server.stats().malformed == 0);
}

TEST_CASE("TcpNetwork: a port in use is EADDRINUSE, a freed one can be taken again", "[net]") {
  NetFixture f;
  const std::string address = f.listener->address();
  auto second = f.server.listen(address, f.server_hello(), f.handler);
  CHECK(second.error() == std::errc::address_in_use);
  f.listener.reset();
  CHECK(f.server.listen(address, f.server_hello(), f.handler));
  CHECK(f.server.listen("192.0.2.1:0", f.server_hello(), f.handler).error() ==
        std::errc::address_not_available);
  CHECK(f.server.listen("here", f.server_hello(), f.handler).error() ==
        std::errc::invalid_argument);
}

TEST_CASE("parse_address: hosts, IPv6 in brackets, ports", "[net]") {
  CHECK(parse_address("[::1]:80")->host == "::1");
  CHECK(parse_address("a.b:65535")->port == "65535");
  for (const char* bad :
       {"", ":", "a", "a:", ":1", "a:b", "a:1x", "a:65536", "::1:80", "[]:1", "[::1]", "a:-1"}) {
    CAPTURE(bad);
    CHECK(!parse_address(bad));
  }
}

asio::awaitable<void> silent_server(NetFixture& f) {
  // A socket that accepts in the kernel and says nothing.
  asio::ip::tcp::acceptor mute(f.io, {asio::ip::make_address("127.0.0.1"), 0});
  const auto start = std::chrono::steady_clock::now();
  auto got = co_await f.client.connect("127.0.0.1:" + std::to_string(mute.local_endpoint().port()),
                                       f.client_hello(), nullptr, 100ms);
  CHECK(got.error() == make_error_code(Errc::kDeadlineExceeded));
  CHECK(std::chrono::steady_clock::now() - start < 1s);
}
TEST_CASE("TcpNetwork: connect keeps its deadline against a server without a word", "[net]") {
  NetFixture f;
  f.run(silent_server(f));
}

asio::awaitable<void> back_pressure(NetFixture& f, int& answered) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  // Ten big answers whose sum is far over the server's queue: they wait for room, none is lost.
  for (int i = 0; i < 10; ++i) {
    asio::co_spawn(f.io, (*connection)->call(request_of(kBig, "4000000"), 10s),
                   [&answered](std::exception_ptr, Result<Response> got) {
                     if (got && got->payload.size() == 4000000) ++answered;
                   });
  }
  while (answered < 10) co_await sleep_for(5ms);
  // One-way messages over the bound are dropped and counted; calls wait.
  for (int i = 0; i < 50; ++i) (*connection)->send(request_of(kNote, "x", 1000000));
  CHECK(f.client.stats().sends_dropped >= 40);
  auto got = co_await (*connection)->call(request_of(kEcho, "after"), 10s);
  REQUIRE(got);
  CHECK(f.handler.notes.size() == 50 - f.client.stats().sends_dropped);
}
TEST_CASE("TcpNetwork: queues are bounded: calls and answers wait, one-way messages drop",
          "[net]") {
  NetworkOptions small;
  small.out_queue_bytes_max = 5000000;
  NetFixture f(small, small);
  int answered = 0;
  f.run(back_pressure(f, answered));
}

asio::awaitable<void> slots(NetFixture& f, std::vector<std::string>& log) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  for (int i = 0; i < 40; ++i) {
    asio::co_spawn(f.io, call_into(*connection, request_of(kSleepEcho, "5"), 10s, log),
                   asio::detached);
  }
  while (log.size() < 40) co_await sleep_for(5ms);
}
TEST_CASE("TcpNetwork: a server with all slots used stops reading and goes on later", "[net]") {
  NetworkOptions few;
  few.handled_max = 8;
  NetFixture f(few);
  std::vector<std::string> log;
  f.run(slots(f, log));
  CHECK(log == std::vector<std::string>(40, "5"));
  CHECK(f.handler.most_running <= 8);
}

asio::awaitable<void> quiet(NetFixture& f) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  co_await sleep_for(600ms);
  CHECK((*connection)->is_open());
}
TEST_CASE("TcpNetwork: pings keep a quiet connection", "[net]") {
  NetworkOptions brisk;
  brisk.idle_max = 50ms;
  brisk.dead_after = 200ms;
  NetFixture f(brisk, brisk);
  f.run(quiet(f));
  CHECK(f.server.stats().dead == 0);
}

asio::awaitable<void> dead_peer(NetFixture& f) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  auto got = co_await (*connection)->call(request_of(kHang, ""), 10s);
  CHECK(got.error() == make_error_code(Errc::kConnectionLost));
}
TEST_CASE("TcpNetwork: a peer that says nothing any more is dead", "[net]") {
  // The server pings so rarely that the client, who expects it sooner, gives up.
  NetworkOptions brisk;
  brisk.idle_max = 50ms;
  brisk.dead_after = 200ms;
  NetFixture f({}, brisk);
  f.run(dead_peer(f));
  CHECK(f.client.stats().dead == 1);
}

asio::awaitable<void> starve(NetFixture& f, bool& done) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  rlimit old{};
  ::getrlimit(RLIMIT_NOFILE, &old);
  rlimit low = old;
  // One descriptor is left, for the connecting end; accepting fails.
  asio::ip::tcp::socket probe(f.io, asio::ip::tcp::v4());
  low.rlim_cur = static_cast<rlim_t>(probe.native_handle()) + 1;
  probe.close();
  ::setrlimit(RLIMIT_NOFILE, &low);
  auto starved = co_await f.client.connect(f.listener->address(), f.client_hello(), nullptr, 300ms);
  ::setrlimit(RLIMIT_NOFILE, &old);
  CHECK(!starved);
  CHECK(f.server.stats().accept_errors > 0);
  auto got = co_await (*connection)->call(request_of(kEcho, "still here"), 5s);
  CHECK(got);
  auto fresh = co_await f.client.connect(f.listener->address(), f.client_hello(), nullptr, 5s);
  CHECK(fresh);
  done = true;
}
TEST_CASE("TcpNetwork: running out of descriptors stops new connections only, and only a while",
          "[net]") {
  NetFixture f;
  bool done = false;
  f.run(starve(f, done));
  CHECK(done);
}

asio::awaitable<void> leave_running(NetFixture& f, std::vector<std::string>& log) {
  auto connection = co_await f.connect();
  REQUIRE(connection);
  asio::co_spawn(f.io, call_into(*connection, request_of(kHang, ""), 10s, log), asio::detached);
  asio::co_spawn(f.io, call_into(*connection, request_of(kSleepEcho, "5000"), 10s, log),
                 asio::detached);
  co_await sleep_for(20ms);
}
TEST_CASE("TcpNetwork: the io_context may stop at any time, and nothing dangles", "[net]") {
  std::vector<std::string> log;
  {
    NetFixture f;
    f.run(leave_running(f, log));
  }
  CHECK(log.empty());
}
TEST_CASE("TcpNetwork: stop() resumes when no handler runs", "[net]") {
  std::vector<std::string> log;
  NetFixture f;
  f.run(leave_running(f, log));
  f.run(f.server.stop());
  CHECK(f.handler.cancelled == 1);
  f.run_for(20ms);
  CHECK(log == std::vector<std::string>(2, text(Errc::kConnectionLost)));
  f.run(f.client.stop());
}

}  // namespace
}  // namespace fermata::test
