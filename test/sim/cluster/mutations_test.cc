// A rule broken on purpose must be noticed within a bounded number of seeds: a simulator that does
// not see these would not see the accident either.
#include <catch2/catch_test_macros.hpp>

#include "test/sim/cluster/cluster_sim.h"

namespace fermata::test {
namespace {

TEST_CASE("Cluster simulation: every broken rule is noticed", "[sim][cluster][mutation]") {
  constexpr std::uint64_t kSeedsMax = 2000;
  for (int i = 1; i <= static_cast<int>(kLastBrokenRule); ++i) {
    ClusterSimOptions options;
    options.broken = static_cast<BrokenRule>(i);
    ClusterSimReport report;
    std::uint64_t seed = 0;
    while (report.ok() && seed < kSeedsMax) report = run_cluster_sim(++seed, options);
    CAPTURE(to_string(options.broken), seed);
    CHECK(report.violation != "");
    WARN(to_string(options.broken) << ": seed " << seed << ": " << report.violation);
  }
}

}  // namespace
}  // namespace fermata::test
