// What anybody may send to the port: it closes that connection, is counted, and harms no other.
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>

#include "common/env/random.h"
#include "common/wire/frame.h"
#include "test/unit/common/net/net_fixture.h"

namespace fermata::test {
namespace {

using asio::ip::tcp;
constexpr auto kReply = asio::as_tuple(asio::use_awaitable);

std::string hello_frame() {
  FrameHeader header;
  header.kind = FrameKind::kHello;
  return encode_frame(header, encode_hello({.hello = NetFixture::client_hello()}));
}
std::string request_frame(std::uint64_t id, std::uint16_t method = kEcho) {
  FrameHeader header;
  header.kind = FrameKind::kRequest;
  header.request_id = id;
  header.method = method;
  return encode_frame(header, "body", as_bytes("payload"));
}

tcp::endpoint endpoint_of(const NetFixture& f) {
  return {asio::ip::make_address("127.0.0.1"),
          static_cast<std::uint16_t>(std::stoi(parse_address(f.listener->address())->port))};
}

/// Sends the bytes and returns what comes until the server closes; `end` says to close first.
asio::awaitable<std::string> throw_at(NetFixture& f, std::string bytes, bool end) {
  tcp::socket socket(f.io);
  const auto [refused] = co_await socket.async_connect(endpoint_of(f), kReply);
  REQUIRE(!refused);
  co_await asio::async_write(socket, asio::buffer(bytes), kReply);
  boost::system::error_code ignored;
  if (end) socket.shutdown(tcp::socket::shutdown_send, ignored);
  std::string answer;
  for (;;) {
    char chunk[4096];
    const auto [error, size] = co_await socket.async_read_some(asio::buffer(chunk), kReply);
    if (error) co_return answer;
    answer.append(chunk, size);
  }
}

asio::awaitable<void> bystander(NetFixture& f, std::shared_ptr<Connection>& connection) {
  auto made = co_await f.connect();
  REQUIRE(made);
  connection = *made;
}
asio::awaitable<void> bystander_lives(std::shared_ptr<Connection> connection) {
  Request request;
  request.method = kEcho;
  auto got = co_await connection->call(std::move(request), 5s);
  CHECK(got);
}

asio::awaitable<void> malformed_one(NetFixture& f, std::string bytes, bool end) {
  const auto before = f.server.stats();
  (void)co_await throw_at(f, bytes, end);
  const auto after = f.server.stats();
  CHECK(after.malformed == before.malformed + 1);
}

TEST_CASE("TcpNetwork: what is not the protocol closes that connection and is counted",
          "[net][malformed]") {
  NetFixture f;
  std::shared_ptr<Connection> other;
  f.run(bystander(f, other));
  const std::string hello = hello_frame();
  f.run(malformed_one(f, "GET / HTTP/1.1\r\n\r\n", false));
  f.run(malformed_one(f, std::string(5000, '\0'), false));
  f.run(malformed_one(f, std::string(5000, '\xff'), false));
  f.run(malformed_one(f, hello.substr(0, 10), true));
  f.run(malformed_one(f, hello.substr(0, hello.size() - 1), true));
  f.run(malformed_one(f, request_frame(1), false));  // no hello
  f.run(malformed_one(f, hello + hello, false));     // a second one
  f.run(malformed_one(f, hello + "garbage that is longer than one header, for certain", false));
  f.run(malformed_one(f, hello + request_frame(2) + request_frame(2), false));  // an id again
  FrameHeader response;
  response.kind = FrameKind::kResponse;
  response.request_id = 1;
  f.run(malformed_one(f, hello + encode_frame(response, ""), false));  // nobody asked
  FrameHeader big;
  big.kind = FrameKind::kRequest;
  big.request_id = 1;
  big.body_size = kBodySizeDefaultMax + 1;
  f.run(malformed_one(f, hello + std::string(as_text(encode_header(big))), false));
  big.body_size = 0;
  big.payload_size = kPayloadSizeMax + 1;
  f.run(malformed_one(f, hello + std::string(as_text(encode_header(big))), false));
  f.run(bystander_lives(other));
}

asio::awaitable<void> storm(NetFixture& f, int rounds) {
  SeededRandom random(20261122);
  const std::string good =
      hello_frame() + request_frame(1) + request_frame(2, kFail) + request_frame(3);
  for (int i = 0; i < rounds; ++i) {
    std::string bytes = good;
    const auto mutations = 1 + random.below(4);
    for (std::uint64_t m = 0; m < mutations; ++m) {
      switch (random.below(4)) {
        case 0:
          bytes[random.below(bytes.size())] ^= static_cast<char>(1 << random.below(8));
          break;
        case 1:
          bytes.resize(1 + random.below(bytes.size()));
          break;
        case 2:
          bytes.insert(random.below(bytes.size()), std::string(1 + random.below(64), 'x'));
          break;
        default:
          bytes.append(bytes.substr(random.below(bytes.size())));
      }
    }
    (void)co_await throw_at(f, std::move(bytes), true);
  }
}
TEST_CASE("TcpNetwork: a storm of mutated bytes harms nobody else", "[net][malformed]") {
  NetFixture f;
  std::shared_ptr<Connection> other;
  f.run(bystander(f, other));
  f.run(storm(f, 1000));
  f.run(bystander_lives(other));
  const auto& stats = f.server.stats();
  CHECK(stats.accepted == 1001);
  CHECK(stats.malformed > 500);
  CHECK(f.handler.running == 0);
  CHECK(f.handler.connects == f.handler.disconnects + 1);
}

asio::awaitable<void> silent(NetFixture& f) {
  const auto start = std::chrono::steady_clock::now();
  const std::string to_nothing = co_await throw_at(f, "", false);
  const std::string to_a_part = co_await throw_at(f, hello_frame().substr(0, 20), false);
  CHECK(to_nothing.empty());
  CHECK(to_a_part.empty());
  CHECK(std::chrono::steady_clock::now() - start >= 190ms);
}
TEST_CASE("TcpNetwork: a connection that says no hello is closed in time", "[net][malformed]") {
  NetworkOptions options;
  options.hello_timeout = 100ms;
  NetFixture f(options);
  f.run(silent(f));
  CHECK(f.server.stats().refused == 2);
  CHECK(f.handler.connects == 0);
}

asio::awaitable<void> flood(NetFixture& f) {
  std::vector<tcp::socket> mute;
  for (int i = 0; i < 20; ++i) {
    mute.emplace_back(f.io);
    co_await mute.back().async_connect(endpoint_of(f), kReply);
  }
  co_await sleep_for(30ms);
  CHECK(f.server.stats().refused == 12);
  mute.clear();
  co_await sleep_for(30ms);
  auto made = co_await f.connect();
  CHECK(made);
}
TEST_CASE("TcpNetwork: half-open connections are capped", "[net][malformed]") {
  NetworkOptions options;
  options.half_open_max = 8;
  NetFixture f(options);
  f.run(flood(f));
}

asio::awaitable<void> other_version(NetFixture& f) {
  // A frame of another layout, and a hello that names only later versions.
  FrameHeader header;
  header.kind = FrameKind::kHello;
  header.version = 2;
  HelloBody later{.version_min = 2, .version_max = 3, .hello = NetFixture::client_hello()};
  const std::string other_layout = encode_frame(header, encode_hello(later));
  header.version = kProtocolVersion;
  const std::string same_layout = encode_frame(header, encode_hello(later));
  for (const std::string& bytes : {other_layout, same_layout}) {
    const std::string answer = co_await throw_at(f, bytes, false);
    REQUIRE(answer.size() == kFrameHeaderSize);
    const auto reply = decode_header(as_bytes(answer).first<kFrameHeaderSize>(), {});
    REQUIRE(reply);
    CHECK(reply->kind == FrameKind::kHelloReply);
    CHECK(from_wire(reply->error) == make_error_code(Errc::kVersionMismatch));
  }
}
TEST_CASE("TcpNetwork: another protocol version is told so", "[net][malformed]") {
  NetFixture f;
  f.run(other_version(f));
  CHECK(f.server.stats().refused == 2);
  CHECK(f.server.stats().malformed == 0);
}

}  // namespace
}  // namespace fermata::test
