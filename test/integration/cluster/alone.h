// Directories that a mount has alone (docs/adr/0010-exclusive-directories.md), in tests.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <memory>
#include <set>
#include <string>

#include "test/support/mini_cluster.h"

namespace fermata::test {

/// What became of files on a mount, by the words of `fermata cache stat`.
long happened(MiniCluster& cluster, const std::string& mnt, const char* what);

/// Files that the mount made by itself.
long made_here(MiniCluster& cluster, const std::string& mnt);

/// Makes and removes files in `directory` until the mount has it alone.
void have_alone(MiniCluster& cluster, const std::string& mnt, const std::string& directory);

/// Without "." and "..".
std::set<std::string> names_in(const std::string& directory);

/// A file that another process has open: what this one starts (programs close what they inherit,
/// and a close commits) does not touch it.
class Held {
 public:
  explicit Held(const std::string& path) {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    child_ = fork();
    if (child_ == 0) {
      ::close(ends[0]);
      serve(ends[1], path);
    }
    ::close(ends[1]);
    socket_ = ends[0];
    REQUIRE(answer().error == 0);
  }
  ~Held() {
    Message message;
    message.what = 'q';
    (void)send(socket_, &message, sizeof message, MSG_NOSIGNAL);
    ::close(socket_);
    waitpid(child_, nullptr, 0);
  }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  void pwrite(const std::string& bytes, off_t at) { CHECK(ask('w', at, bytes).error == 0); }
  std::string pread(std::size_t size, off_t at) {
    return ask('r', at, std::string(size, ' ')).bytes;
  }
  nlink_t nlink() { return static_cast<nlink_t>(std::stoul(ask('n', 0, "").bytes)); }
  int fsync() { return ask('s', 0, "").error; }
  int lock() { return ask('l', 0, "").error; }
  int close() { return ask('c', 0, "").error; }

 private:
  static constexpr std::size_t kMax = 4096;
  struct Message {
    char what = 0;
    int error = 0;
    off_t at = 0;
    std::size_t size = 0;
    char bytes[kMax];
  };
  struct Answer {
    int error = 0;
    std::string bytes;
  };
  Answer ask(char what, off_t at, const std::string& bytes) {
    Message message;
    message.what = what;
    message.at = at;
    message.size = bytes.size();
    bytes.copy(message.bytes, kMax);
    REQUIRE(send(socket_, &message, sizeof message, 0) == sizeof message);
    return answer();
  }
  Answer answer() const {
    Message message;
    REQUIRE(recv(socket_, &message, sizeof message, 0) == sizeof message);
    return {message.error, std::string(message.bytes, message.size)};
  }
  [[noreturn]] static void serve(int socket, const std::string& path) {
    const int fd = open(path.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0644);
    Message message;
    message.error = fd < 0 ? errno : 0;
    message.size = 0;
    for (;;) {
      if (send(socket, &message, sizeof message, MSG_NOSIGNAL) != sizeof message) _exit(0);
      if (recv(socket, &message, sizeof message, 0) != sizeof message) _exit(0);
      if (message.what == 'q') _exit(0);
      ssize_t done = 0;
      struct stat st {};
      errno = 0;
      if (message.what == 'w') done = ::pwrite(fd, message.bytes, message.size, message.at);
      if (message.what == 'r') done = ::pread(fd, message.bytes, message.size, message.at);
      if (message.what == 's') done = ::fsync(fd);
      if (message.what == 'l') done = ::flock(fd, LOCK_EX | LOCK_NB);
      if (message.what == 'c') done = ::close(fd);
      if (message.what == 'n') done = ::fstat(fd, &st);
      message.error = done < 0 ? errno : 0;
      message.size = message.what == 'r' && done > 0 ? static_cast<std::size_t>(done) : 0;
      if (message.what == 'n') {
        const std::string number = std::to_string(st.st_nlink);
        message.size = number.copy(message.bytes, kMax);
      }
    }
  }
  int socket_ = -1;
  pid_t child_ = 0;
};

/// Two mounts, and a directory that the first one has alone.
struct Two {
  explicit Two(const std::string& options = {})
      : cluster({3, true, options}), a(cluster.mnt()), b(cluster.mount_another(options)) {
    REQUIRE(mkdir((a + "/d").c_str(), 0777) == 0);
    have_alone(cluster, a, a + "/d");
  }
  /// Made on the first mount, and held open: nothing of it was sent.
  std::unique_ptr<Held> make(const std::string& name) {
    const long before = made_here(cluster, a);
    auto fd = std::make_unique<Held>(a + "/d/" + name);
    REQUIRE(made_here(cluster, a) == before + 1);
    return fd;
  }
  MiniCluster cluster;
  const std::string a, b;
};

}  // namespace fermata::test
