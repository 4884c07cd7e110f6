// model_mount: seeded random programs on a mount and on a local directory, compared call by call.
//
// `model_mount --mount M --local L` finds where M differs from L; with a second --mount, processes
// are spread over both. A failing program is made as small as possible and printed. Exit status: 0
// no difference, 1 differences, 2 a wrong command line.
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>

#include "test/model/mount/compare.h"

namespace fermata::test::model {
namespace {

struct Arguments {
  Place place;
  std::uint64_t from = 1;
  std::uint64_t seeds = 50;
  std::uint64_t ops = 400;
  int processes = 2;
  unsigned jobs = 2;
  int tries = 400;
  bool keep_going = false;
};

bool run_seed(const Arguments& arguments, std::uint64_t seed) {
  const Shape shape{arguments.processes, arguments.ops, arguments.place.mounts.size() > 1};
  auto program = make_program(seed, shape);
  const auto found = compare(arguments.place, program, shape);
  if (!found) return true;
  std::printf("seed %llu differs after %zu operations:\n%s", static_cast<unsigned long long>(seed),
              found->step, found->what.c_str());
  std::fflush(stdout);
  program.resize(std::min(program.size(), found->step + 1));
  program = minimise(arguments.place, std::move(program), shape, arguments.tries);
  const auto again = compare(arguments.place, program, shape);
  std::string out = "seed " + std::to_string(seed);
  if (again) {
    out += ", made small:\n";
    for (const auto& op : program) out += "  > " + text(op) + "\n";
    out += again->what;
  } else {
    out += " does not differ every time: nothing smaller found\n";
  }
  std::printf("%s", out.c_str());
  std::fflush(stdout);
  return false;
}

// Every job has a process of its own: workers are forked from it, and it has no threads.
int run_job(const Arguments& arguments, unsigned job) {
  int failed = 0;
  for (std::uint64_t i = job; i < arguments.seeds; i += arguments.jobs) {
    if (run_seed(arguments, arguments.from + i)) continue;
    ++failed;
    if (!arguments.keep_going) break;
  }
  return failed;
}

int run(const Arguments& arguments) {
  std::vector<pid_t> jobs;
  for (unsigned job = 0; job < arguments.jobs; ++job) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      int failed = 1;
      try {
        failed = run_job(arguments, job);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "model_mount: %s\n", error.what());
      }
      std::fflush(stdout);
      ::_exit(failed == 0 ? 0 : 1);
    }
    jobs.push_back(pid);
  }
  int failed = 0;
  for (const pid_t pid : jobs) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) ++failed;
  }
  if (failed == 0) {
    std::printf("%llu programs of %llu operations: no difference\n",
                static_cast<unsigned long long>(arguments.seeds),
                static_cast<unsigned long long>(arguments.ops));
  }
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fermata::test::model

int main(int argc, char** argv) {
  fermata::test::model::Arguments arguments;
  CLI::App app("Random programs on a mount and on a local directory, compared call by call.");
  app.add_option("--mount", arguments.place.mounts,
                 "directory under test; twice: the same, from two mounts")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--local", arguments.place.local, "directory on the filesystem to compare with")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--seeds", arguments.seeds, "how many programs");
  app.add_option("--from", arguments.from, "the first seed");
  app.add_option("--ops", arguments.ops, "operations per program")->check(CLI::PositiveNumber);
  app.add_option("--processes", arguments.processes, "processes per program")
      ->check(CLI::Range(1, 16));
  app.add_option("--jobs", arguments.jobs, "programs at a time")->check(CLI::Range(1, 64));
  app.add_option("--tries", arguments.tries, "runs to make a program small that differs");
  app.add_flag("--keep-going", arguments.keep_going, "do not stop at the first difference");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return fermata::test::model::run(arguments);
}
