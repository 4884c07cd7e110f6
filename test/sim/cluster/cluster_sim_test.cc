// Seeds that must hold. FERMATA_SIM_SEEDS (count) and FERMATA_SIM_FROM (first seed) widen the
// search; `fermata-sim --seed S --trace` tells a failing one's story.
#include "test/sim/cluster/cluster_sim.h"

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <string>

namespace fermata::test {
namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST_CASE("Cluster simulation: every seed keeps the invariants", "[sim][cluster]") {
  const std::uint64_t first = from_environment("FERMATA_SIM_FROM", 1);
  const std::uint64_t count = from_environment("FERMATA_SIM_SEEDS", 200);
  ClusterSimCounts total;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    INFO("seed " << seed << ": fermata-sim --seed " << seed << " --trace");
    const ClusterSimReport report = run_cluster_sim(seed);
    REQUIRE(report.violation == "");
    total += report.counts;
  }
  INFO(total.describe());
  if (count >= 200) CHECK(total.never_happened() == "");
  WARN(total.describe());
}

TEST_CASE("Cluster simulation: one seed is one run", "[sim][cluster]") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    CAPTURE(seed);
    CHECK(run_cluster_sim(seed).trace_hash == run_cluster_sim(seed).trace_hash);
  }
}

}  // namespace
}  // namespace fermata::test
