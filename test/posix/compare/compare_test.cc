// The conformance suite on a local directory and on mounts, side by side.
#include <sys/vfs.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include "test/posix/compare/known_differences.h"
#include "test/posix/compare/results.h"
#include "test/support/mini_cluster.h"

namespace fermata::posix {
namespace {

constexpr long kExt4Magic = 0xEF53;

std::string suite() {
  return std::filesystem::read_symlink("/proc/self/exe").replace_filename("posix_suite").string();
}

Run run_on(const std::string& place, const std::string& dir) {
  Run run;
  run.place = place;
  const auto start = std::chrono::steady_clock::now();
  // The suite fails as a whole when a case does: what counts are its lines.
  const auto result =
      test::run(suite() + " --reporter conformance --dir " + dir, std::chrono::seconds(300));
  run.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  run.cases = parse_results(result.out);
  CAPTURE(place, result.exit_code, result.out);
  CHECK(run.cases.size() > 400);
  return run;
}

Run run_on_mount(const std::string& place, const std::string& options) {
  test::MiniCluster cluster({3, true, options});
  Run run = run_on(place, cluster.mnt());
  CHECK(cluster.digests_equal());
  return run;
}

bool matches(const KnownDifference& known, const std::string& name) {
  if (known.name.ends_with('*'))
    return name.starts_with(known.name.substr(0, known.name.size() - 1));
  return known.name == name;
}

const KnownDifference* known_for(const std::string& name, Path path) {
  for (const auto& known : kKnownDifferences) {
    if (matches(known, name) && (known.path == Path::kBoth || known.path == path)) return &known;
  }
  return nullptr;
}

std::string shown(const CaseResult& result) {
  switch (result.verdict) {
    case Verdict::kPassed:
      return "passed";
    case Verdict::kSkipped:
      return "skipped (" + result.detail + ")";
    case Verdict::kFailed:
      break;
  }
  return "failed (" + result.detail + ")";
}

/// Known differences that are none any more: their lines have to go.
std::vector<std::string> outdated(const std::vector<Run>& runs, const Path* paths) {
  std::vector<std::string> found;
  for (const auto& known : kKnownDifferences) {
    for (std::size_t i = 1; i < runs.size(); ++i) {
      if (known.path != Path::kBoth && known.path != paths[i]) continue;
      for (const auto& [name, result] : runs[i].cases) {
        if (matches(known, name) && result.verdict == Verdict::kPassed)
          found.push_back(runs[i].place + ": " + name);
      }
    }
  }
  return found;
}

TEST_CASE("posix: mounts conform as the local filesystem does, but for the known differences",
          "[posix]") {
  if (const auto why = test::why_no_mounts(); !why.empty()) SKIP(why);
  const char* set = std::getenv("FERMATA_POSIX_LOCAL_DIR");
  const std::string local = set != nullptr ? set : "/tmp";
  struct statfs filesystem {};
  REQUIRE(::statfs(local.c_str(), &filesystem) == 0);
  const bool is_ext4 = filesystem.f_type == kExt4Magic;
  const std::vector<Run> runs = {run_on(is_ext4 ? "ext4" : "local, not ext4", local),
                                 run_on_mount("mount, passthrough", "suid,dev"),
                                 run_on_mount("mount, ordinary", "suid,dev,nopassthrough")};
  constexpr Path kPaths[] = {Path::kBoth, Path::kPassthrough, Path::kOrdinary};
  std::cout << table_of(runs) << "\n";
  std::vector<std::string> unexpected;
  for (const auto& difference : differences(runs)) {
    std::cout << difference.file << ": " << difference.name << "\n";
    const KnownDifference* known = nullptr;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const auto& result = difference.results[i];
      std::cout << "    " << runs[i].place << ": " << shown(result) << "\n";
      if (result.verdict == Verdict::kPassed) continue;
      const KnownDifference* reason = i == 0 ? nullptr : known_for(difference.name, kPaths[i]);
      if (reason != nullptr) known = reason;
      // A local filesystem of another kind may have limits of its own.
      const bool excused = i == 0 ? !is_ext4 : reason != nullptr;
      if (!excused) unexpected.push_back(runs[i].place + ": " + difference.name);
    }
    if (known != nullptr) std::cout << "    known: " << known->reason << "\n";
  }
  std::cout << std::flush;
  CHECK(unexpected == std::vector<std::string>{});
  CHECK(outdated(runs, kPaths) == std::vector<std::string>{});
}

}  // namespace
}  // namespace fermata::posix
