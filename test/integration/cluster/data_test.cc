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

TEST_CASE("data: a small cache takes a file as soon as the others are closed or removed",
          "[data]") {
  FM_NEEDS_MOUNTS();
  const std::string path = GENERATE(std::string(), std::string(",nopassthrough"));
  CAPTURE(path);
  MiniCluster cluster({3, false, {}});
  const std::string mnt = cluster.root() + "/mnt";
  const std::string options = "cache-size=20M" + path;
  REQUIRE(cluster.mount_with(mnt, cluster.root() + "/cache", options).exit_code == 0);
  const std::string megabytes = "head -c 12M /dev/urandom > " + mnt;
  REQUIRE(run(megabytes + "/a && " + megabytes + "/b").exit_code == 0);
  const std::string a = mnt + "/a";
  const std::string b = mnt + "/b";
  for (int round = 0; round < 20; ++round) {
    CAPTURE(round);
    const RunResult closed = run("dd if=/dev/urandom of=" + a +
                                 " bs=64K count=150 conv=notrunc status=none && wc -c < " + b);
    CHECK(closed.out == "12582912\n");
    const RunResult removed = run("cp " + a + " " + mnt + "/c && rm " + mnt + "/c && wc -c < " + b);
    CHECK(removed.out == "12582912\n");
    const RunResult appended =
        run("cat " + a + " >> " + mnt + "/d && rm " + mnt + "/d && cat " + b + " | wc -c");
    CHECK(appended.out == "12582912\n");
  }
}

TEST_CASE("data: a file that is larger than the cache is not opened, and the log says why",
          "[data]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string small = cluster.root() + "/small";
  REQUIRE(cluster.mount_with(small, small + ".cache", "cache-size=20M").exit_code == 0);
  REQUIRE(run("head -c 30M /dev/urandom > " + cluster.mnt() + "/f").exit_code == 0);
  CHECK(read_error(small + "/f") == ENOSPC);
  const RunResult said = run("grep 'do not fit into the cache' " + small + ".log");
  CHECK(said.out.find("f: 30 MiB") != std::string::npos);
}

TEST_CASE("data: a small cache takes the newer version of a large file", "[data]") {
  FM_NEEDS_MOUNTS();
  const std::string path = GENERATE(std::string(), std::string(",nopassthrough"));
  CAPTURE(path);
  MiniCluster cluster;
  const std::string small = cluster.root() + "/small";
  const std::string cache = cluster.root() + "/small.cache";
  REQUIRE(cluster.mount_with(small, cache, "cache-size=20M" + path).exit_code == 0);
  const std::string write = "head -c 14M /dev/urandom | tee " + cluster.mnt() + "/f | sha256sum";
  const std::string read = "sha256sum < " + small + "/f";
  for (int version = 1; version <= 3; ++version) {
    CAPTURE(version);
    const RunResult wrote = run(write);
    REQUIRE(wrote.exit_code == 0);
    CHECK(run(read).out == wrote.out);
  }
}

}  // namespace
}  // namespace fermata::test
