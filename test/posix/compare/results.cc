#include "test/posix/compare/results.h"

#include <array>
#include <cstdio>
#include <set>
#include <sstream>

namespace fermata::posix {
namespace {

std::vector<std::string> fields_of(const std::string& line) {
  std::vector<std::string> fields;
  std::istringstream in(line);
  for (std::string field; std::getline(in, field, '\t');) fields.push_back(field);
  return fields;
}

std::string cell(const std::array<int, 3>& counts) {
  std::string text = std::to_string(counts[0]);
  if (counts[1] != 0) text += ", " + std::to_string(counts[1]) + " failed";
  if (counts[2] != 0) text += ", " + std::to_string(counts[2]) + " skipped";
  return text;
}

std::string padded(std::string text, std::size_t width) {
  if (text.size() < width) text.resize(width, ' ');
  return text;
}

}  // namespace

std::map<std::string, CaseResult> parse_results(const std::string& text) {
  std::map<std::string, CaseResult> cases;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const auto fields = fields_of(line);
    if (fields.size() < 3) continue;
    CaseResult result;
    if (fields[0] == "passed") {
      result.verdict = Verdict::kPassed;
    } else if (fields[0] == "skipped") {
      result.verdict = Verdict::kSkipped;
    } else if (fields[0] != "failed") {
      continue;
    }
    result.file = fields[1].substr(0, fields[1].rfind("_test"));
    if (fields.size() > 3) result.detail = fields[3];
    cases[fields[2]] = std::move(result);
  }
  return cases;
}

std::string table_of(const std::vector<Run>& runs) {
  constexpr std::size_t kFileWidth = 20;
  constexpr std::size_t kWidth = 26;
  std::map<std::string, std::vector<std::array<int, 3>>> files;
  std::vector<std::array<int, 3>> totals(runs.size());
  for (std::size_t i = 0; i < runs.size(); ++i) {
    for (const auto& [name, result] : runs[i].cases) {
      auto& counts = files[result.file];
      counts.resize(runs.size());
      ++counts[i][static_cast<std::size_t>(result.verdict)];
      ++totals[i][static_cast<std::size_t>(result.verdict)];
    }
  }
  std::string text = padded("cases passed", kFileWidth);
  for (const auto& run : runs) text += "  " + padded(run.place, kWidth);
  text += "\n";
  for (const auto& [file, counts] : files) {
    text += padded(file, kFileWidth);
    for (const auto& each : counts) text += "  " + padded(cell(each), kWidth);
    text += "\n";
  }
  text += padded("all", kFileWidth);
  for (const auto& each : totals) text += "  " + padded(cell(each), kWidth);
  text += "\n" + padded("seconds", kFileWidth);
  for (const auto& run : runs) {
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.1f", run.seconds);
    text += "  " + padded(seconds, kWidth);
  }
  return text + "\n";
}

std::vector<Difference> differences(const std::vector<Run>& runs) {
  std::set<std::string> names;
  for (const auto& run : runs)
    for (const auto& [name, result] : run.cases) names.insert(name);
  std::vector<Difference> found;
  for (const auto& name : names) {
    Difference difference{name, {}, {}};
    bool differs = false;
    for (const auto& run : runs) {
      const auto at = run.cases.find(name);
      CaseResult result;
      result.detail = "did not run";
      if (at != run.cases.end()) result = at->second;
      if (!result.file.empty()) difference.file = result.file;
      differs = differs || result.verdict != Verdict::kPassed;
      difference.results.push_back(std::move(result));
    }
    if (differs) found.push_back(std::move(difference));
  }
  return found;
}

}  // namespace fermata::posix
