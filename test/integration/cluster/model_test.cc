// Random programs on mounts and on ext4, compared call by call (test/model/mount).
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstdio>

#include "test/integration/cluster/files.h"
#include "test/support/io_uring_switch.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

/// The oracle is ext4 in a file, whatever this machine's own filesystem is.
void compare(MiniCluster& cluster, const std::string& places, const std::string& arguments) {
  const RunResult result = run(cluster.bin("model_mount") + " " + places + " --local " +
                                   cluster.small_disk("ext4", "ext4:1G") + " " + arguments,
                               std::chrono::minutes(25));
  std::printf("%s\n", result.out.c_str());
  CHECK(result.exit_code == 0);
  if (result.exit_code == 0) CHECK(cluster.digests_equal());
}

/// Over io_uring only the transport is another one: fewer programs do.
std::string seeds(int count) {
  return "--seeds " + std::to_string(tests_use_io_uring() ? count / 2 : count);
}

TEST_CASE("model: a mount does what ext4 does", "[model]") {
  FM_NEEDS_MOUNTS();
  const std::string options =
      GENERATE(std::string("dev,suid"), std::string("dev,suid,nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  compare(cluster, "--mount " + cluster.mnt(), seeds(100) + " --ops 400 --processes 2 --jobs 4");
}

TEST_CASE("model: two mounts together do what ext4 does", "[model]") {
  FM_NEEDS_MOUNTS();
  const std::string options =
      GENERATE(std::string("dev,suid"), std::string("dev,suid,nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string other = cluster.mount_another(options);
  compare(cluster, "--mount " + cluster.mnt() + " --mount " + other,
          seeds(50) + " --ops 400 --processes 4 --jobs 4");
}

}  // namespace
}  // namespace fermata::test
