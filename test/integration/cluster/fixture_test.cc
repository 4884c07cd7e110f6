// The fixture itself: whatever a test mounts, by itself or by hand, is gone when it ends.
#include <catch2/catch_test_macros.hpp>
#include <fstream>

#include "common/base/process.h"
#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

pid_t pid_of(const std::string& pidfile) {
  pid_t pid = 0;
  std::ifstream(pidfile) >> pid;
  return pid;
}

TEST_CASE("fixture: clean-up ends daemons and takes mounts that were made by hand", "[smoke]") {
  FM_NEEDS_MOUNTS();
  std::string root;
  std::vector<pid_t> pids;
  {
    MiniCluster cluster;
    root = cluster.root();
    const std::string disk = cluster.small_disk("disk", "32m");
    // One with its pid file where `fermata mount` puts it by default, one whose daemon is dead.
    const std::string by_hand = cluster.dir() + "/by hand";
    REQUIRE(cluster
                .fermata("mount " + cluster.servers() + " '" + by_hand + "' --cache-dir " + disk +
                         "/cache")
                .exit_code == 0);
    const std::string dead = root + "/dead";
    REQUIRE(cluster.mount_with(dead, dead + ".cache").exit_code == 0);
    write_file(by_hand + "/f", "x");
    pids = {pid_of(disk + "/cache/mountd.pid"), pid_of(dead + ".pid"),
            pid_of(cluster.dir() + "/mount.pid"), pid_of(cluster.dir() + "/node1.pid")};
    for (const pid_t pid : pids) REQUIRE(is_alive(pid));
    REQUIRE(run("kill -KILL " + std::to_string(pids[1])).exit_code == 0);
    REQUIRE(eventually([&] { return !is_alive(pids[1]); }));
    REQUIRE(run("cat /proc/self/mountinfo").out.find(dead) != std::string::npos);
  }
  for (const pid_t pid : pids) CHECK(!is_alive(pid));
  CHECK(run("cat /proc/self/mountinfo").out.find(root) == std::string::npos);
  CHECK(!exists(root));
}

}  // namespace
}  // namespace fermata::test
