// fermata-sim: runs seeds of the cluster simulator and of the Raft simulator and says what they
// went through. `./dev sim` builds and calls it.
//
// Seeds are shared out to worker processes over pipes; a worker that dies takes only its seed with
// it, and that is a failure like any other. Exit status: 0 all seeds hold and every kind of event
// has happened (if there were seeds enough to ask that), 1 otherwise, 2 for a wrong command line.
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "test/sim/cluster/cluster_sim.h"
#include "test/sim/raft/raft_sim.h"

namespace fermata::test {
namespace {

constexpr std::uint64_t kSeedsForEverything = 200;  ///< from here on every event must have happened
constexpr std::uint64_t kTwiceEvery = 50;           ///< one seed in so many is run twice
constexpr std::size_t kFailuresShown = 10;

struct Arguments {
  std::uint64_t seeds = 200;
  std::uint64_t from = 1;
  std::uint64_t seed = 0;
  unsigned jobs = 0;
  bool trace = false;
  bool no_raft = false;
  bool twice = false;
  std::string mutation = "none";
};

struct Failure {
  std::uint64_t seed = 0;
  std::string simulator;
  std::string what;
};

/// What one seed came to, as it goes through a pipe.
struct Outcome {
  ClusterSimCounts cluster;
  RaftSimCounts raft;
  bool cluster_ok = true;
  bool raft_ok = true;
};
static_assert(std::is_trivially_copyable_v<Outcome>);

enum class Kind : std::uint8_t { kBegin = 1, kFailure = 2, kEnd = 3 };
struct Head {
  Kind kind = Kind::kBegin;
  std::uint64_t seed = 0;
  std::uint32_t size = 0;  ///< of the text of a failure
};

void write_all(int fd, const void* data, std::size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t wrote = ::write(fd, at, size);
    if (wrote <= 0) _exit(3);
    at += wrote;
    size -= static_cast<std::size_t>(wrote);
  }
}
bool read_all(int fd, void* data, std::size_t size) {
  char* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t got = ::read(fd, at, size);
    if (got <= 0) return false;
    at += got;
    size -= static_cast<std::size_t>(got);
  }
  return true;
}

void send_failure(int fd, std::uint64_t seed, const std::string& text) {
  const Head head{Kind::kFailure, seed, static_cast<std::uint32_t>(text.size())};
  write_all(fd, &head, sizeof head);
  write_all(fd, text.data(), text.size());
}

[[noreturn]] void work(int fd, const Arguments& args, const ClusterSimOptions& options,
                       unsigned worker, unsigned workers) {
  for (std::uint64_t seed = args.from + worker; seed < args.from + args.seeds; seed += workers) {
    const Head begin{Kind::kBegin, seed, 0};
    write_all(fd, &begin, sizeof begin);
    Outcome outcome;
    const ClusterSimReport cluster = run_cluster_sim(seed, options);
    outcome.cluster = cluster.counts;
    outcome.cluster_ok = cluster.ok();
    if (!cluster.ok()) send_failure(fd, seed, "cluster: " + cluster.violation);
    if ((args.twice || seed % kTwiceEvery == 0) &&
        run_cluster_sim(seed, options).trace_hash != cluster.trace_hash) {
      outcome.cluster_ok = false;
      send_failure(fd, seed, "cluster: two runs of this seed differ");
    }
    if (!args.no_raft) {
      const RaftSimReport raft = run_raft_sim(seed);
      outcome.raft = raft.counts;
      outcome.raft_ok = raft.ok();
      if (!raft.ok()) send_failure(fd, seed, "raft: " + raft.violation);
    }
    const Head end{Kind::kEnd, seed, sizeof outcome};
    write_all(fd, &end, sizeof end);
    write_all(fd, &outcome, sizeof outcome);
  }
  _exit(0);
}

struct Worker {
  pid_t pid = 0;
  int fd = -1;
  std::uint64_t seed = 0;
  bool busy = false;
};

class Run {
 public:
  Run(const Arguments& args, const ClusterSimOptions& options) : args_(args), options_(options) {}

  int run() {
    const unsigned count = static_cast<unsigned>(
        std::min<std::uint64_t>(args_.jobs, std::max<std::uint64_t>(args_.seeds, 1)));
    for (unsigned i = 0; i < count; ++i) start(i, count);
    while (std::any_of(workers_.begin(), workers_.end(), [](const Worker& w) { return w.fd >= 0; }))
      listen();
    for (const Worker& worker : workers_) ::waitpid(worker.pid, nullptr, 0);
    return report();
  }

 private:
  void start(unsigned index, unsigned count) {
    int ends[2];
    if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
    const pid_t pid = ::fork();
    if (pid < 0) throw std::runtime_error("no process");
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);  // nobody would read what it finds
      ::close(ends[0]);
      work(ends[1], args_, options_, index, count);
    }
    ::close(ends[1]);
    workers_.push_back({pid, ends[0], 0, false});
  }

  void listen() {
    std::vector<pollfd> polls;
    for (const Worker& worker : workers_) polls.push_back({worker.fd, POLLIN, 0});
    ::poll(polls.data(), polls.size(), 1000);
    for (std::size_t i = 0; i < polls.size(); ++i) {
      if (workers_[i].fd >= 0 && polls[i].revents != 0) hear(workers_[i]);
    }
    show_progress(false);
  }

  void hear(Worker& worker) {
    Head head;
    if (!read_all(worker.fd, &head, sizeof head)) {
      if (worker.busy) {
        failures_.push_back({worker.seed, "", "the simulator died: see its last words above"});
        ++done_;
      }
      ::close(worker.fd);
      worker.fd = -1;
      return;
    }
    if (head.kind == Kind::kBegin) {
      worker.seed = head.seed;
      worker.busy = true;
    } else if (head.kind == Kind::kFailure) {
      std::string text(head.size, '\0');
      read_all(worker.fd, text.data(), text.size());
      failures_.push_back({head.seed, "", text});
      clear_line();
      std::cout << "seed " << head.seed << ": " << text << "\n" << std::flush;
    } else {
      Outcome outcome;
      read_all(worker.fd, &outcome, sizeof outcome);
      cluster_ += outcome.cluster;
      raft_ += outcome.raft;
      worker.busy = false;
      ++done_;
    }
  }

  void clear_line() const {
    if (::isatty(STDOUT_FILENO) != 0) std::cout << "\r\033[K";
  }

  void show_progress(bool last) {
    const auto now = std::chrono::steady_clock::now();
    const bool terminal = ::isatty(STDOUT_FILENO) != 0;
    const auto every = terminal ? std::chrono::milliseconds(500) : std::chrono::milliseconds(15000);
    if (!last && now - shown_ < every) return;
    shown_ = now;
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    clear_line();
    std::printf("%llu of %llu seeds, %.1f a second, %zu failed%s",
                static_cast<unsigned long long>(done_),
                static_cast<unsigned long long>(args_.seeds),
                static_cast<double>(done_) / std::max(seconds, 0.001), failures_.size(),
                terminal && !last ? "" : "\n");
    std::fflush(stdout);
  }

  static void print_table(const char* title, const std::string& counts) {
    std::cout << "\n" << title << "\n";
    std::istringstream lines(counts);
    std::string name;
    std::uint64_t value = 0;
    int column = 0;
    while (lines >> name >> value) {
      std::printf("  %-22s %12llu%s", name.c_str(), static_cast<unsigned long long>(value),
                  ++column % 2 == 0 ? "\n" : "");
    }
    if (column % 2 != 0) std::printf("\n");
    std::fflush(stdout);
  }

  int report() {
    show_progress(true);
    print_table("Cluster simulation (real nodes and clients)", cluster_.describe());
    if (!args_.no_raft) print_table("Raft simulation (cores)", raft_.describe());
    std::printf(
        "\n%llu seeds, %.1f virtual hours: %llu crashes, %llu power cuts (%llu of all nodes at "
        "once),\n%llu partitions, %llu torn tails, %llu snapshots installed, %llu client "
        "operations.\n",
        static_cast<unsigned long long>(done_),
        static_cast<double>(cluster_.virtual_ms + raft_.virtual_ms) / 3.6e6,
        static_cast<unsigned long long>(cluster_.crashes + raft_.crashes),
        static_cast<unsigned long long>(cluster_.power_cuts + cluster_.power_cuts_of_all +
                                        raft_.power_cuts),
        static_cast<unsigned long long>(cluster_.power_cuts_of_all + raft_.power_cuts),
        static_cast<unsigned long long>(cluster_.partitions + cluster_.one_way_partitions +
                                        raft_.partitions + raft_.one_way_partitions),
        static_cast<unsigned long long>(cluster_.torn_tails + raft_.torn_tails),
        static_cast<unsigned long long>(cluster_.snapshots_installed + raft_.snapshots_installed),
        static_cast<unsigned long long>(cluster_.operations));
    if (failures_.empty() && options_.broken == BrokenRule::kNone &&
        args_.seeds >= kSeedsForEverything) {
      const std::string missed = cluster_.never_happened();
      if (!missed.empty()) failures_.push_back({0, "", "'" + missed + "' never happened"});
      const std::string raft_missed = args_.no_raft ? "" : raft_.never_happened();
      if (!raft_missed.empty())
        failures_.push_back({0, "", "raft: '" + raft_missed + "' never happened"});
    }
    if (failures_.empty()) {
      std::printf("No violations.\n");
      return 0;
    }
    std::printf("\n%zu FAILED\n", failures_.size());
    for (std::size_t i = 0; i < std::min(failures_.size(), kFailuresShown); ++i) {
      const Failure& failure = failures_[i];
      std::printf("  %s\n", failure.what.c_str());
      if (failure.seed != 0) {
        std::printf(
            "    again: ./dev sim --seed %llu --trace%s\n",
            static_cast<unsigned long long>(failure.seed),
            options_.broken == BrokenRule::kNone ? "" : (" --mutation " + args_.mutation).c_str());
      }
    }
    return 1;
  }

  const Arguments& args_;
  const ClusterSimOptions& options_;
  std::vector<Worker> workers_;
  std::vector<Failure> failures_;
  ClusterSimCounts cluster_;
  RaftSimCounts raft_;
  std::uint64_t done_ = 0;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point shown_ = begin_;
};

int run_one(const Arguments& args, ClusterSimOptions options) {
  options.trace = args.trace;
  const ClusterSimReport cluster = run_cluster_sim(args.seed, options);
  RaftSimReport raft;
  RaftSimOptions raft_options;
  raft_options.trace = args.trace;
  if (!args.no_raft) raft = run_raft_sim(args.seed, raft_options);
  std::cout << "\ncluster simulation, seed " << args.seed << "\n"
            << cluster.counts.describe() << "trace " << std::hex << cluster.trace_hash << std::dec
            << "\n";
  if (!cluster.ok()) std::cout << "VIOLATION: " << cluster.violation << "\n";
  if (!raft.ok()) std::cout << "raft VIOLATION: " << raft.violation << "\n";
  return cluster.ok() && raft.ok() ? 0 : 1;
}

BrokenRule rule_named(const std::string& name) {
  for (int i = 0; i <= static_cast<int>(kLastBrokenRule); ++i) {
    if (name == to_string(static_cast<BrokenRule>(i))) return static_cast<BrokenRule>(i);
  }
  throw CLI::ValidationError("--mutation", "no rule is called " + name);
}

std::string rule_names() {
  std::string names;
  for (int i = 0; i <= static_cast<int>(kLastBrokenRule); ++i)
    names += std::string(i == 0 ? "" : ", ") + to_string(static_cast<BrokenRule>(i));
  return names;
}

int run(int argc, char** argv) {
  Arguments args;
  args.jobs = std::max(1u, std::thread::hardware_concurrency());
  CLI::App app{"Fermata's simulator: whole clusters in virtual time, a seed each"};
  app.add_option("--seeds", args.seeds, "how many")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--from", args.from, "the first one")->capture_default_str();
  auto* one = app.add_option("--seed", args.seed, "this one alone")->check(CLI::PositiveNumber);
  app.add_flag("--trace", args.trace, "with --seed: say what happens")->needs(one);
  app.add_option("--jobs", args.jobs, "processes")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_flag("--no-raft", args.no_raft, "leave out the simulation of Raft cores");
  app.add_flag("--twice", args.twice, "run each seed twice: they must not differ");
  app.add_option("--mutation", args.mutation, "break a rule: " + rule_names());
  ClusterSimOptions options;
  try {
    app.parse(argc, argv);
    options.broken = rule_named(args.mutation);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (args.seed != 0) return run_one(args, options);
  Run all(args, options);
  return all.run();
}

}  // namespace
}  // namespace fermata::test

int main(int argc, char** argv) { return fermata::test::run(argc, argv); }
