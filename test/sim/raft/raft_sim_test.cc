// Seeds that must hold, and broken rules that must be noticed. FERMATA_SIM_SEEDS (count) and
// FERMATA_SIM_FROM (first seed) widen the search; a failing seed is printed.
#include "test/sim/raft/raft_sim.h"

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <string>

namespace fermata::test {
namespace {

std::uint64_t from_environment(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

TEST_CASE("Raft simulation: every seed keeps the properties of Raft", "[sim][raft]") {
  const std::uint64_t first = from_environment("FERMATA_SIM_FROM", 1);
  const std::uint64_t count = from_environment("FERMATA_SIM_SEEDS", 400);
  RaftSimCounts total;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    INFO("seed " << seed);
    const RaftSimReport report = run_raft_sim(seed);
    REQUIRE(report.violation == "");
    total += report.counts;
  }
  INFO(total.describe());
  if (count >= 200) CHECK(total.never_happened() == "");
  WARN(total.describe());
}

TEST_CASE("Raft simulation: who is elected late may lack what a later term has committed",
          "[sim][raft]") {
  CHECK(run_raft_sim(8147).violation == "");
}

TEST_CASE("Raft simulation: nodes that lose their disks, one at a time, lose nobody's entries",
          "[sim][raft]") {
  const std::uint64_t first = from_environment("FERMATA_SIM_FROM", 1);
  const std::uint64_t count = from_environment("FERMATA_SIM_SEEDS", 400);
  RaftSimOptions options;
  options.lose_disks = true;
  RaftSimCounts total;
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    INFO("seed " << seed);
    const RaftSimReport report = run_raft_sim(seed, options);
    REQUIRE(report.violation == "");
    total += report.counts;
  }
  WARN(total.describe());
  if (count >= 200) CHECK(total.rejoined > count / 4);
}

TEST_CASE("Raft simulation: one seed is one run", "[sim][raft]") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CAPTURE(seed);
    CHECK(run_raft_sim(seed).trace_hash == run_raft_sim(seed).trace_hash);
  }
}

TEST_CASE("Raft simulation: every broken rule is noticed", "[sim][raft][mutation]") {
  constexpr std::uint64_t kSeedsMax = 4000;
  for (int i = 1; i <= static_cast<int>(kLastMutation); ++i) {
    RaftSimOptions options;
    options.mutation = static_cast<Mutation>(i);
    options.lose_disks = options.mutation == Mutation::kForgetLostDisk;
    RaftSimReport report;
    std::uint64_t seed = 0;
    while (report.ok() && seed < kSeedsMax) report = run_raft_sim(++seed, options);
    CAPTURE(to_string(options.mutation), seed);
    CHECK(report.violation != "");
    WARN(to_string(options.mutation) << ": seed " << seed << ": " << report.violation);
  }
}

}  // namespace
}  // namespace fermata::test
