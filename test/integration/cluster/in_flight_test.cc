// A mount that ends, or whose callers are killed, while requests wait for a cluster that is gone.
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <optional>
#include <thread>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

using namespace std::chrono_literals;

/// stat(2) of a path in a process of its own, whose exit code is the errno.
class Process {
 public:
  explicit Process(const std::string& path) : pid_(fork()) {
    if (pid_ != 0) return;
    struct stat attr {};
    _exit(stat(path.c_str(), &attr) == 0 ? 0 : errno);
  }
  ~Process() {
    if (!ended_) kill();
    ends();
  }
  void kill() const { ::kill(pid_, SIGKILL); }
  bool ends() {
    ended_ = ended_ || eventually([this] { return waitpid(pid_, &status_, WNOHANG) == pid_; }, 20s);
    return ended_;
  }
  bool was_killed() const { return WIFSIGNALED(status_) && WTERMSIG(status_) == SIGKILL; }
  bool failed() const { return WIFEXITED(status_) && WEXITSTATUS(status_) != 0; }

 private:
  pid_t pid_;
  int status_ = 0;
  bool ended_ = false;
};

/// A mount without servers and a process that waits for one of its names.
struct Waiting {
  Waiting() {
    for (int node = 1; node <= 3; ++node) cluster.kill_node(node);
    process.emplace(cluster.mnt() + "/unheard-of");
  }
  /// A request waits in the daemon.
  bool in_flight() {
    return eventually([this] {
      const auto stat = cluster.fermata("cache stat --json " + cluster.mnt());
      return stat.out.find("\"operation\"") != std::string::npos;
    });
  }
  bool mountd_ends() const {
    return eventually([this] { return !exists(cluster.dir() + "/mount.pid"); }, 40s);
  }

  MiniCluster cluster;
  std::optional<Process> process;
};

TEST_CASE("in flight: a process that waits for the cluster can be killed", "[in_flight]") {
  FM_NEEDS_MOUNTS();
  Waiting w;
  REQUIRE(w.in_flight());
  w.process->kill();
  CHECK(w.process->ends());
  CHECK(w.process->was_killed());
  // At moments of all kinds: also when the request is on its way.
  for (int i = 0; i < 50; ++i) {
    CAPTURE(i);
    Process process(w.cluster.mnt() + "/other-" + std::to_string(i));
    std::this_thread::sleep_for(std::chrono::microseconds(i * 50));
    process.kill();
    CHECK(process.ends());
    CHECK(process.was_killed());
  }
}

TEST_CASE("in flight: when the daemon is killed its callers get an error", "[in_flight]") {
  FM_NEEDS_MOUNTS();
  Waiting w;
  REQUIRE(w.in_flight());
  w.cluster.kill_mount(w.cluster.mnt());
  REQUIRE(w.process->ends());
  CHECK(w.process->failed());
}

TEST_CASE("in flight: SIGTERM ends the daemon, and its callers get an error", "[in_flight]") {
  FM_NEEDS_MOUNTS();
  Waiting w;
  REQUIRE(w.in_flight());
  REQUIRE(run("kill -TERM $(cat " + w.cluster.dir() + "/mount.pid)").exit_code == 0);
  CHECK(w.mountd_ends());
  REQUIRE(w.process->ends());
  CHECK(w.process->failed());
}

TEST_CASE("in flight: a mount that is taken away lives until its last caller is killed",
          "[in_flight]") {
  FM_NEEDS_MOUNTS();
  Waiting w;
  REQUIRE(w.in_flight());
  REQUIRE(run("umount -l " + w.cluster.mnt()).exit_code == 0);
  w.process->kill();
  CHECK(w.process->ends());
  CHECK(w.mountd_ends());
}

}  // namespace
}  // namespace fermata::test
