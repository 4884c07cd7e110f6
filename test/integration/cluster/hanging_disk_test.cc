// Disks that answer nothing for a while, as a failing one or a busy array does.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <future>
#include <memory>

#include "test/integration/cluster/alone.h"
#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

/// File systems frozen (FIFREEZE of ioctl_xfs_fsfreeze(8)) by a process that thaws them when this
/// one does, or is gone: nothing on this machine hangs for ever.
class Frozen {
 public:
  explicit Frozen(const std::vector<std::string>& points) {
    int ends[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    child_ = fork();
    if (child_ == 0) {
      ::close(ends[0]);
      serve(ends[1], points);
    }
    ::close(ends[1]);
    socket_ = ends[0];
    char error = 1;
    REQUIRE(recv(socket_, &error, 1, 0) == 1);
    REQUIRE(error == 0);
  }
  ~Frozen() {
    ::close(socket_);
    waitpid(child_, nullptr, 0);
  }
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;

 private:
  [[noreturn]] static void serve(int socket, const std::vector<std::string>& points) {
    std::vector<int> frozen;
    char error = 0;
    for (const auto& point : points) {
      frozen.push_back(open(point.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (ioctl(frozen.back(), FIFREEZE, 0) != 0) error = static_cast<char>(errno);
    }
    if (send(socket, &error, 1, MSG_NOSIGNAL) == 1) (void)recv(socket, &error, 1, 0);
    for (const int fd : frozen) ioctl(fd, FITHAW, 0);
    _exit(0);
  }

  pid_t child_;
  int socket_;
};

/// The log stands still, and the primary stays what it is: its backups' disks hang.
std::unique_ptr<Frozen> freeze_backups(MiniCluster& cluster) {
  const int primary = cluster.primary();
  std::vector<std::string> points;
  for (int node = 1; node <= 3; ++node) {
    if (node != primary) points.push_back(cluster.dir() + "/node" + std::to_string(node));
  }
  return std::make_unique<Frozen>(points);
}

}  // namespace

TEST_CASE("hanging disks: who recalls a directory waits for what was done there", "[faults]") {
  FM_NEEDS_MOUNTS();
  const std::string disk = "ext4:200m";
  MiniCluster cluster({3, true, {}, {disk, disk, disk}});
  const std::string a = cluster.mnt(), b = cluster.mount_another();
  REQUIRE(mkdir((a + "/d").c_str(), 0777) == 0);
  const struct stat before = stat_of(b + "/d");
  have_alone(cluster, a, a + "/d");
  {
    const Fd fd(a + "/d/came and goes", O_CREAT | O_EXCL | O_RDWR);
    REQUIRE(unlink((a + "/d/came and goes").c_str()) == 0);
  }
  const struct stat here = stat_of(a + "/d");
  const auto asked = [&] { return cluster.rpc_counts(a)["callback"]; };
  const long asked_before = asked();
  auto frozen = freeze_backups(cluster);
  auto looks = std::async(std::launch::async, [&] { return stat_of(b + "/d"); });
  CHECK(eventually([&] { return asked() >= asked_before + 2; }));
  CHECK(looks.wait_for(std::chrono::seconds(0)) == std::future_status::timeout);
  frozen.reset();
  const struct stat there = looks.get();
  CHECK(ns_of(here.st_mtim) > ns_of(before.st_mtim));
  CHECK(ns_of(there.st_mtim) == ns_of(here.st_mtim));
  CHECK(cluster.digests_equal());
}

}  // namespace fermata::test
