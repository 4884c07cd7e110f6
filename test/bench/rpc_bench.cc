// Round trips over loopback: a raw socket, then the transport, in one thread each.
//
// usage: rpc_bench [ROUNDS]      (default 20000; ctest runs it tiny)
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "common/net/tcp_network.h"

namespace {

namespace asio = boost::asio;
using namespace fermata;
using namespace std::chrono_literals;
using SteadyClock = std::chrono::steady_clock;

constexpr std::size_t kSize = 4096;

void print(const char* what, std::size_t payload, int in_flight, std::vector<double> us,
           double seconds) {
  std::sort(us.begin(), us.end());
  const auto at = [&](double q) {
    return us[static_cast<std::size_t>(q * static_cast<double>(us.size() - 1))];
  };
  const double count = static_cast<double>(us.size());
  std::printf(
      "%-14s payload %8zu B  in flight %3d  p50 %8.1f us  p99 %8.1f us  %9.0f /s  %8.1f MB/s\n",
      what, payload, in_flight, at(0.5), at(0.99), count / seconds,
      count * static_cast<double>(payload) / seconds / 1e6);
}

bool transfer(int fd, char* data, bool reading) {
  for (std::size_t done = 0; done < kSize;) {
    const ssize_t n = reading ? ::recv(fd, data + done, kSize - done, 0)
                              : ::send(fd, data + done, kSize - done, MSG_NOSIGNAL);
    if (n <= 0) return false;
    done += static_cast<std::size_t>(n);
  }
  return true;
}

/// Two threads, blocking calls: what the kernel alone costs.
void bench_raw(int rounds) {
  const int listening = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (::bind(listening, reinterpret_cast<sockaddr*>(&address), length) != 0) return;
  ::listen(listening, 1);
  ::getsockname(listening, reinterpret_cast<sockaddr*>(&address), &length);
  std::thread echo([listening] {
    const int fd = ::accept(listening, nullptr, nullptr);
    const int on = 1;
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    std::vector<char> data(kSize);
    while (transfer(fd, data.data(), true) && transfer(fd, data.data(), false)) {
    }
    ::close(fd);
  });
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    std::vector<char> data(kSize);
    std::vector<double> us;
    const auto start = SteadyClock::now();
    for (int i = 0; i < rounds; ++i) {
      const auto t = SteadyClock::now();
      if (!transfer(fd, data.data(), false) || !transfer(fd, data.data(), true)) break;
      us.push_back(std::chrono::duration<double, std::micro>(SteadyClock::now() - t).count());
    }
    print("raw socket", kSize, 1, us,
          std::chrono::duration<double>(SteadyClock::now() - start).count());
  }
  ::close(fd);
  echo.join();
  ::close(listening);
}

class EchoHandler final : public Handler {
 public:
  asio::awaitable<Response> handle(std::shared_ptr<Connection>, Request request) override {
    Response response;
    response.payload = std::move(request.payload);
    co_return response;
  }
};

asio::awaitable<void> echo(std::shared_ptr<Connection> connection, Buffer payload, int rounds,
                           std::vector<double>* us, int* running) {
  for (int i = 0; i < rounds; ++i) {
    Request request;
    request.method = 1;
    request.payload = payload;
    const auto t = SteadyClock::now();
    auto got = co_await connection->call(std::move(request), 30s);
    if (!got) break;
    us->push_back(std::chrono::duration<double, std::micro>(SteadyClock::now() - t).count());
  }
  --*running;
}

asio::awaitable<void> bench_rpc(asio::io_context* io, std::string address, std::size_t payload_size,
                                int in_flight, int rounds) {
  TcpNetwork network(io->get_executor());
  const Hello hello;  // g++ 12 breaks a Hello{} inside the co_await
  auto connection = co_await network.connect(address, hello, nullptr, 5s);
  if (!connection) co_return;
  Buffer payload = Buffer::allocate(payload_size);
  std::fill(payload.mutable_view().begin(), payload.mutable_view().end(), std::byte{1});
  std::vector<double> us;
  int running = in_flight;
  const auto start = SteadyClock::now();
  for (int i = 0; i < in_flight; ++i) {
    asio::co_spawn(*io, echo(*connection, payload, rounds / in_flight, &us, &running),
                   asio::detached);
  }
  asio::steady_timer pause(*io);
  while (running != 0) {
    pause.expires_after(200us);
    co_await pause.async_wait(asio::use_awaitable);
  }
  if (!us.empty()) {
    print("rpc", payload_size, in_flight, us,
          std::chrono::duration<double>(SteadyClock::now() - start).count());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::max(100, std::atoi(argv[1])) : 20000;
  std::printf("rpc_bench: loopback echo, 2 threads, %d rounds, %u CPUs\n", rounds,
              std::thread::hardware_concurrency());
  bench_raw(rounds);

  asio::io_context server_io(1);
  EchoHandler handler;
  auto server = std::make_unique<TcpNetwork>(server_io.get_executor());
  auto listener = server->listen("127.0.0.1:0", Hello{}, handler);
  if (!listener) return 1;
  const std::string address = (*listener)->address();
  std::thread serving([&server_io] { server_io.run(); });
  struct Shape {
    std::size_t payload;
    int in_flight;
    int rounds;
  };
  for (const Shape& shape : {Shape{kSize, 1, rounds}, Shape{kSize, 32, rounds},
                             Shape{1 << 20, 4, std::max(100, rounds / 20)}}) {
    asio::io_context io(1);
    asio::co_spawn(io, bench_rpc(&io, address, shape.payload, shape.in_flight, shape.rounds),
                   asio::detached);
    io.run();
  }
  server_io.stop();
  serving.join();
  listener->reset();
  server.reset();
  return 0;
}
