// What one run of posix_suite said, and how several compare.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace fermata::posix {

enum class Verdict { kPassed, kFailed, kSkipped };

struct CaseResult {
  Verdict verdict = Verdict::kFailed;
  std::string file;    ///< without "_test"
  std::string detail;  ///< what failed first, or why it was skipped
};

/// One run on one directory.
struct Run {
  std::string place;  ///< "ext4", "passthrough", "ordinary"
  std::map<std::string, CaseResult> cases;
  double seconds = 0;
};

/// Reads what `--reporter conformance` printed; lines of another form are left out.
std::map<std::string, CaseResult> parse_results(const std::string& text);

/// Cases per file and verdict, the runs side by side.
std::string table_of(const std::vector<Run>& runs);

/// A case that did not simply pass everywhere.
struct Difference {
  std::string name, file;
  std::vector<CaseResult> results;  ///< one per run; a case that did not run counts as failed
};
std::vector<Difference> differences(const std::vector<Run>& runs);

}  // namespace fermata::posix
