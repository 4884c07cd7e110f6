// Random operations on files' data (test/model/data), read back through a second mount at each
// close, with a cache so small that copies come and go all the time.
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstdio>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

TEST_CASE("data: what is written by any means is what is read, here and elsewhere", "[data]") {
  FM_NEEDS_MOUNTS();
  const std::string path = GENERATE(std::string(), std::string(",nopassthrough"));
  CAPTURE(path);
  MiniCluster cluster({3, false, {}});
  const std::string options = "cache-size=14M" + path;
  const std::string mnt = cluster.root() + "/mnt";
  REQUIRE(cluster.mount_with(mnt, cluster.root() + "/cache", options).exit_code == 0);
  const std::string other = cluster.mount_another(options);
  for (int seed = 1; seed <= 2; ++seed) {
    const std::string dir = "/seed" + std::to_string(seed);
    REQUIRE(run("mkdir " + mnt + dir).exit_code == 0);
    const RunResult result = run(cluster.bin("data_check") + " --dir " + mnt + dir + " --other " +
                                 other + dir + " --ops 1200 --seed " + std::to_string(seed));
    INFO(result.out);
    CHECK(result.exit_code == 0);
  }
  CHECK(cluster.digests_equal());
}

}  // namespace
}  // namespace fermata::test
