// The primary dies by SIGKILL while applications write: they see a pause and no error.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cstdio>
#include <thread>
#include <vector>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

using Clock = std::chrono::steady_clock;

TEST_CASE("failover: writes go on within 3 s of the primary's SIGKILL, 20 times, without an error",
          "[failover]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  std::vector<double> pauses;
  for (int trial = 0; trial < 20; ++trial) {
    CAPTURE(trial);
    const std::string file = mnt + "/trial" + std::to_string(trial);
    write_file(file, "before");
    const int dead = cluster.kill_primary();
    const auto killed = Clock::now();
    write_file(file, "after " + std::to_string(trial));  // throws on any error
    pauses.push_back(std::chrono::duration<double>(Clock::now() - killed).count());
    REQUIRE(read_file(file) == "after " + std::to_string(trial));
    cluster.restart_node(dead);
  }
  std::sort(pauses.begin(), pauses.end());
  std::printf("failover through the mount, 20 trials: median %.3f s, worst %.3f s\n", pauses[10],
              pauses.back());
  CHECK(pauses.back() < 3.0);
  CHECK(cluster.digests_equal());
}

TEST_CASE("failover: a copy in progress and readers survive several dead primaries", "[failover]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  const std::string other = cluster.mount_another();
  std::atomic<bool> done{false};
  std::atomic<int> written{0};
  std::string failure;
  std::thread writer([&] {
    try {
      for (int i = 0; !done; ++i) {
        write_file(mnt + "/w" + std::to_string(i),
                   random_bytes(static_cast<std::size_t>(i * 997 % 150'000), i));
        written = i + 1;
      }
    } catch (const std::exception& e) {
      failure = e.what();
    }
  });
  for (int kill = 0; kill < 5; ++kill) {
    const int before = written;
    REQUIRE(eventually([&] { return written > before + 20 || !failure.empty(); }));
    const int dead = cluster.kill_primary();
    const int at = written;
    REQUIRE(eventually([&] { return written > at + 5 || !failure.empty(); }));
    cluster.restart_node(dead);
  }
  done = true;
  writer.join();
  CHECK(failure.empty());
  REQUIRE(written > 100);
  for (int i = 0; i < written; ++i) {
    CAPTURE(i);
    REQUIRE(read_file(other + "/w" + std::to_string(i)) ==
            random_bytes(static_cast<std::size_t>(i * 997 % 150'000), i));
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE("an outage of all servers: writers wait, SIGKILL still ends them, all goes on afterwards",
          "[failover]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  write_file(mnt + "/f", "before");
  for (int node = 1; node <= 3; ++node) cluster.kill_node(node);
  // A process that waits for a server can be killed.
  const RunResult killed =
      run("(echo x > " + mnt + "/stuck) & pid=$!; sleep 1; kill -KILL $pid; wait $pid || echo gone",
          std::chrono::seconds(30));
  CAPTURE(killed.out);
  CHECK(killed.out.find("gone") != std::string::npos);
  std::atomic<bool> finished{false};
  std::string failure;
  std::thread writer([&] {
    try {
      write_file(mnt + "/during", "written during the outage");
    } catch (const std::exception& e) {
      failure = e.what();
    }
    finished = true;
  });
  std::this_thread::sleep_for(std::chrono::seconds(12));  // longer than the session lease
  CHECK(!finished);
  for (int node = 1; node <= 3; ++node) cluster.restart_node(node);
  CHECK(eventually([&] { return finished.load(); }, std::chrono::seconds(60)));
  writer.join();
  CHECK(failure.empty());
  CHECK(read_file(mnt + "/during") == "written during the outage");
  CHECK(read_file(mnt + "/f") == "before");
}

}  // namespace
}  // namespace fermata::test
