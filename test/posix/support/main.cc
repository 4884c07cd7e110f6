// posix_suite --dir PATH: the conformance suite on any directory (also FERMATA_POSIX_DIR).
//
// Below PATH each case gets an empty directory, in which it runs. `--reporter conformance` prints
// one line per case for programs: outcome, file, case and first failure, separated by tabs.
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch_session.hpp>
#include <catch2/catch_test_case_info.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
#include <catch2/reporters/catch_reporter_streaming_base.hpp>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <string>

namespace fermata::posix {
namespace {

namespace fs = std::filesystem;

std::string g_root;  // below the directory under test, one per run

/// The working directory of each run of a case.
class Scratch : public Catch::EventListenerBase {
 public:
  using Catch::EventListenerBase::EventListenerBase;
  void testCasePartialStarting(const Catch::TestCaseInfo&, std::uint64_t) override {
    ::umask(022);
    here_ = g_root + "/" + std::to_string(++count_);
    fs::create_directory(here_);
    fs::current_path(here_);
  }
  void testCasePartialEnded(const Catch::TestCaseStats&, std::uint64_t) override {
    fs::current_path("/");
    std::error_code error;
    fs::remove_all(here_, error);
    if (error) std::cerr << "cannot remove " << here_ << ": " << error.message() << "\n";
  }

 private:
  std::string here_;
  int count_ = 0;
};
CATCH_REGISTER_LISTENER(Scratch)

std::string one_line(std::string text) {
  for (char& c : text)
    if (c == '\n' || c == '\t') c = ' ';
  return text;
}

/// One line per case: outcome, file, name, what failed first or why it was skipped.
class ConformanceReporter : public Catch::StreamingReporterBase {
 public:
  using StreamingReporterBase::StreamingReporterBase;
  static std::string getDescription() { return "one line per case, for programs"; }

  void testCaseStarting(const Catch::TestCaseInfo& info) override {
    StreamingReporterBase::testCaseStarting(info);
    detail_.clear();
    failed_ = skipped_ = false;
  }
  void assertionEnded(const Catch::AssertionStats& stats) override {
    const auto& result = stats.assertionResult;
    const bool skips = result.getResultType() == Catch::ResultWas::ExplicitSkip;
    if (result.isOk() && !skips) return;
    if ((failed_ && !skips) || (skips && skipped_)) return;
    (skips ? skipped_ : failed_) = true;
    const std::string line = std::to_string(result.getSourceInfo().line);
    detail_ = skips ? std::string(result.getMessage()) : "line " + line + ": " + shown(result);
  }
  void testCaseEnded(const Catch::TestCaseStats& stats) override {
    const std::string path = stats.testInfo->lineInfo.file;
    const char* verdict = failed_ ? "failed" : skipped_ ? "skipped" : "passed";
    m_stream << verdict << '\t' << fs::path(path).stem().string() << '\t' << stats.testInfo->name
             << '\t' << one_line(detail_) << std::endl;
    StreamingReporterBase::testCaseEnded(stats);
  }

 private:
  static std::string shown(const Catch::AssertionResult& result) {
    if (result.hasExpression() && result.hasExpandedExpression())
      return result.getExpression() + " is " + result.getExpandedExpression();
    return result.hasMessage() ? std::string(result.getMessage()) : result.getExpression();
  }
  std::string detail_;
  bool failed_ = false, skipped_ = false;
};
CATCH_REGISTER_REPORTER("conformance", ConformanceReporter)

int run(int argc, char** argv) {
  Catch::Session session;
  std::string dir;
  if (const char* set = std::getenv("FERMATA_POSIX_DIR")) dir = set;
  using Catch::Clara::Opt;
  session.cli(session.cli() |
              Opt(dir, "path")["--dir"]("the directory under test (or FERMATA_POSIX_DIR)"));
  if (const int code = session.applyCommandLine(argc, argv); code != 0) return code;
  const auto& config = session.configData();
  const bool runs = !config.showHelp && !config.libIdentify && !config.listTests &&
                    !config.listTags && !config.listReporters && !config.listListeners;
  if (!runs) return session.run();
  if (dir.empty()) {
    std::cerr << "say which directory to test: --dir PATH or FERMATA_POSIX_DIR\n";
    return 2;
  }
  std::string name = fs::absolute(dir).string() + "/posix.XXXXXX";
  if (::mkdtemp(name.data()) == nullptr || ::chmod(name.c_str(), 0755) != 0) {
    std::cerr << "cannot make a directory below " << dir << ": " << std::strerror(errno) << "\n";
    return 2;
  }
  g_root = name;
  const int code = session.run();
  std::error_code error;
  fs::remove_all(g_root, error);
  return code;
}

}  // namespace
}  // namespace fermata::posix

int main(int argc, char** argv) {
  try {
    return fermata::posix::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 2;
  }
}
