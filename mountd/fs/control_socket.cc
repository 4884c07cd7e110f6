#include "mountd/fs/control_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstring>

namespace fermata::mountd {
namespace {

constexpr std::size_t kLineMax = 64u << 10;
constexpr std::size_t kTalksMax = 16;
constexpr int kClientPatienceMs = 10'000;

// sun_path holds 107 bytes: a longer path is bound through its directory's descriptor.
Result<int> listen_at(const std::string& path) {
  const auto slash = path.rfind('/');
  const std::string directory = path.substr(0, slash);
  const int dir = ::open(directory.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) return last_errno();
  const std::string name = "/proc/self/fd/" + std::to_string(dir) + path.substr(slash);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  ::unlink(path.c_str());
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string& at = path.size() < sizeof address.sun_path ? path : name;
  std::memcpy(address.sun_path, at.c_str(), std::min(at.size() + 1, sizeof address.sun_path - 1));
  const mode_t old_mask = ::umask(0177);
  const bool bound = fd >= 0 &&
                     ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0 &&
                     ::listen(fd, 8) == 0;
  const auto error = last_errno();
  ::umask(old_mask);
  ::close(dir);
  if (bound) return fd;
  if (fd >= 0) ::close(fd);
  return error;
}

std::string answer_to(const std::string& line, const ControlSocket::Asker& who,
                      const ControlSocket::Handler& handler) {
  namespace json = boost::json;
  boost::system::error_code error;
  const json::value request = json::parse(line, error);
  const json::value* verb =
      !error && request.is_object() ? request.as_object().if_contains("verb") : nullptr;
  if (verb == nullptr || !verb->is_string()) return R"({"error":"want {\"verb\":\"...\"}"})";
  return handler(std::string(verb->as_string()), line, who);
}

}  // namespace

Result<std::unique_ptr<ControlSocket>> ControlSocket::open(const std::string& path,
                                                           Handler handler) {
  FM_TRY(const int listener, listen_at(path));
  const int wake = ::eventfd(0, EFD_CLOEXEC);
  return std::unique_ptr<ControlSocket>(
      new ControlSocket(path, listener, wake, std::move(handler)));
}

ControlSocket::ControlSocket(std::string path, int listener, int wake, Handler handler)
    : path_(std::move(path)), listener_(listener), wake_(wake), handler_(std::move(handler)) {
  thread_ = std::thread([this] { run(); });
}

ControlSocket::~ControlSocket() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_, &one, sizeof one);
  thread_.join();
  for (auto& talk : talks_) talk.thread.join();
  ::close(listener_);
  ::close(wake_);
  ::unlink(path_.c_str());
}

bool ControlSocket::readable(int fd, int timeout_ms) {
  pollfd fds[2] = {{fd, POLLIN, 0}, {wake_, POLLIN, 0}};
  int count = 0;
  do {
    count = ::poll(fds, 2, timeout_ms);
  } while (count < 0 && errno == EINTR);
  return count > 0 && fds[1].revents == 0 && fds[0].revents != 0;
}

void ControlSocket::run() {
  while (true) {
    if (!readable(listener_, -1)) return;
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) continue;
    std::erase_if(talks_, [](Talk& talk) {
      if (!talk.over->load()) return false;
      talk.thread.join();
      return true;
    });
    if (talks_.size() >= kTalksMax) {
      ::close(fd);
      continue;
    }
    const auto over = std::make_shared<std::atomic<bool>>(false);
    talks_.push_back({std::thread([this, fd, over] {
                        serve(fd);
                        ::close(fd);
                        over->store(true);
                      }),
                      over});
  }
}

void ControlSocket::serve(int fd) {
  const timeval patience{kClientPatienceMs / 1000, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  ucred peer{};
  socklen_t peer_size = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &peer_size) != 0) return;
  const Asker who{peer.uid, peer.gid};
  std::string pending;
  while (true) {
    const auto newline = pending.find('\n');
    if (newline == std::string::npos) {
      char buffer[4096];
      if (pending.size() > kLineMax || !readable(fd, kClientPatienceMs)) return;
      const ssize_t size = ::read(fd, buffer, sizeof buffer);
      if (size <= 0) return;
      pending.append(buffer, static_cast<std::size_t>(size));
      continue;
    }
    const std::string answer = answer_to(pending.substr(0, newline), who, handler_) + "\n";
    pending.erase(0, newline + 1);
    for (std::size_t sent = 0; sent < answer.size();) {
      const ssize_t size = ::send(fd, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
      if (size <= 0) return;
      sent += static_cast<std::size_t>(size);
    }
  }
}

}  // namespace fermata::mountd
