#include "common/net/free_port.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>

#include "common/base/errc.h"

namespace fermata {
namespace {

constexpr std::uint16_t kPortMin = 10'000;       // below are many that services are known by
constexpr std::uint16_t kEphemeralMin = 32'768;  // Linux' default
constexpr int kTriesMax = 2'000;

std::uint16_t first_ephemeral_port() {
  std::ifstream file("/proc/sys/net/ipv4/ip_local_port_range");
  unsigned first = 0;
  if (!(file >> first) || first <= kPortMin || first > 65'535) return kEphemeralMin;
  return static_cast<std::uint16_t>(first);
}

Result<bool> is_free(std::uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return last_errno();
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  const bool bound = ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  ::close(fd);
  return bound;
}

}  // namespace

Result<std::vector<std::uint16_t>> free_loopback_ports(std::size_t count) {
  std::random_device random;
  std::uniform_int_distribution<int> any(kPortMin, first_ephemeral_port() - 1);
  std::vector<std::uint16_t> ports;
  for (int tries = 0; ports.size() < count; ++tries) {
    if (tries == kTriesMax) return std::errc::address_in_use;
    const auto port = static_cast<std::uint16_t>(any(random));
    if (std::ranges::find(ports, port) != ports.end()) continue;
    FM_TRY(const bool free, is_free(port));
    if (free) ports.push_back(port);
  }
  return ports;
}

}  // namespace fermata
