#include "test/model/mount/compare.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <stdexcept>

#include "test/model/mount/worker.h"

namespace fermata::test::model {
namespace {
namespace fs = std::filesystem;

constexpr std::size_t kTreeEvery = 64;  ///< operations between two comparisons of the whole tree
constexpr const char* kThingNames[] = {"the path",          "what the path leads to",
                                       "its parent",        "the second path",
                                       "the second parent", "the descriptor"};

std::string error_text(int error) { return error == 0 ? "no error" : strerrorname_np(error); }

// The times of inodes as they were seen last: what a call changed is what counts, because two
// filesystems never do it in the same nanosecond.
class Times {
 public:
  /// A time that was set by utimensat does not show that bytes changed after it, so closing such a
  /// file moves its ctime on a mount: not a difference.
  void forgive(const Seen& seen) { forgiven_.insert(seen.inode); }
  bool forgives(const Seen& seen) const { return forgiven_.count(seen.inode) != 0; }
  /// It has just been made: ext4 gives numbers of removed inodes out again, and may do so within
  /// the tick of its clock in which the old inode was seen last.
  void begin(const Seen& seen) { last_.erase(seen.inode); }
  /// Whether mtime and ctime have changed since the last look; explicit times themselves.
  std::array<std::string, 2> changes(const Seen& seen) {
    Last& last = last_[seen.inode];
    std::array<std::string, 2> out = {one(seen.mtime_ns, last.mtime_ns),
                                      one(seen.ctime_ns, last.ctime_ns)};
    last = {seen.mtime_ns, seen.ctime_ns};
    return out;
  }

 private:
  struct Last {
    std::int64_t mtime_ns = 0;
    std::int64_t ctime_ns = 0;
  };
  static std::string one(std::int64_t now, std::int64_t before) {
    // 2020 to 2100 is now; other times are explicit, from utimensat.
    constexpr std::int64_t kNowBegins = 1'577'836'800'000'000'000;
    constexpr std::int64_t kNowEnds = 4'102'444'800'000'000'000;
    if (now < kNowBegins || now > kNowEnds) return std::to_string(now);
    return now != before ? "changed" : "the same";
  }
  std::map<std::uint64_t, Last> last_;
  std::set<std::uint64_t> forgiven_;
};

const std::array<std::string, 9> kFieldNames = {"exists", "mode",  "owner", "links", "device",
                                                "size",   "group", "mtime", "ctime"};

std::array<std::string, 9> describe(const Seen& seen, Times& times, bool sizes) {
  if (!seen.exists) return {"no"};
  // A setgid file that its group may not execute loses the bit on ext4 when one outside the group
  // writes to it (Linux 6.2 on), and not on a mount: docs/POSIX.md.
  const bool no_meaning = S_ISREG(seen.mode) && (seen.mode & S_IXGRP) == 0;
  std::ostringstream mode;
  mode << std::oct << (no_meaning ? seen.mode & ~unsigned{S_ISGID} : seen.mode);
  // Bytes through a FIFO move its times, which the kernel does not tell a FUSE filesystem.
  const bool timed = sizes && !S_ISFIFO(seen.mode);
  const auto changes = timed ? times.changes(seen) : std::array<std::string, 2>{};
  return {"yes",
          mode.str(),
          std::to_string(seen.uid),
          std::to_string(seen.nlink),
          S_ISCHR(seen.mode) ? std::to_string(seen.rdev) : "",
          sizes ? std::to_string(seen.size_bytes) : "",
          std::to_string(seen.gid),
          changes[0],
          changes[1]};
}

std::string describe_result(const Outcome& outcome) {
  if (outcome.result == -1 && outcome.error == -1) return "the process died";
  if (outcome.result < 0) return std::to_string(outcome.result) + " " + error_text(outcome.error);
  std::ostringstream out;
  out << outcome.result;
  if (outcome.digest != 0) out << " bytes " << std::hex << outcome.digest;
  if (outcome.detail[0] != 0) out << " " << outcome.detail;
  return out.str();
}

std::string sort_of(const Outcome& outcome) {
  return outcome.result < 0 ? error_text(outcome.error) : "success";
}

bool makes(const Op& op) {
  return op.call == Call::kMkdir || op.call == Call::kMknod || op.call == Call::kSymlink ||
         (op.call == Call::kOpen && (op.a & O_CREAT) != 0);
}

class Comparison {
 public:
  Comparison(const Place& place, const std::vector<Op>& program, const Shape& shape)
      : program_(program), shape_(shape) {
    static std::atomic<int> count{0};
    const std::string name =
        "/model-" + std::to_string(::getpid()) + "-" + std::to_string(count.fetch_add(1));
    local_root_ = place.local + name;
    mount_root_ = place.mounts.front() + name;
    make(local_root_);
    make(mount_root_);
    std::vector<std::string> roots;
    for (const auto& mount : place.mounts) roots.push_back(mount + name);
    mounted_ = std::make_unique<Workers>(roots, shape, program);
    local_ = std::make_unique<Workers>(std::vector<std::string>{local_root_}, shape, program);
  }
  ~Comparison() {
    mounted_.reset();
    local_.reset();
    std::error_code ignored;
    fs::remove_all(local_root_, ignored);
    fs::remove_all(mount_root_, ignored);
  }
  Comparison(const Comparison&) = delete;
  Comparison& operator=(const Comparison&) = delete;

  std::optional<Difference> run() {
    for (std::size_t step = 0; step < program_.size(); ++step) {
      const Outcome expected = local_->run(step);
      const Outcome outcome = mounted_->run(step);
      auto found = differ(program_[step], outcome, expected);
      if (!found && (step + 1) % kTreeEvery == 0) found = trees_differ();
      if (found) {
        found->step = step;
        return found;
      }
    }
    mounted_->close_all();
    local_->close_all();
    auto found = trees_differ();
    if (found) found->step = program_.size();
    return found;
  }

 private:
  static void make(const std::string& path) {
    if (::mkdir(path.c_str(), 0777) != 0 || ::chmod(path.c_str(), 0777) != 0) {
      throw std::runtime_error(path + ": " + std::strerror(errno));
    }
  }

  std::optional<Difference> differ(const Op& op, const Outcome& outcome, const Outcome& expected) {
    Difference out;
    const std::string is = describe_result(outcome);
    const std::string should = describe_result(expected);
    if (is != should) {
      out.what += "    result: " + is + "; local: " + should + "\n";
      out.kind += " result " + sort_of(outcome) + " not " + sort_of(expected);
    }
    // Several mounts: a descriptor shows the version that it opened.
    const bool descriptor_size = !shape_.sessions;
    if (makes(op) && outcome.result >= 0) {
      mounted_times_.begin(outcome.seen[kPath]);
      local_times_.begin(expected.seen[kPath]);
    }
    if (op.call == Call::kUtimens) mounted_times_.forgive(outcome.seen[kPathFollowed]);
    if (op.call == Call::kFutimens) mounted_times_.forgive(outcome.seen[kDescriptor]);
    for (std::size_t thing = 0; thing < kThings; ++thing) {
      const bool sizes = thing != kDescriptor || descriptor_size;
      const auto there = describe(outcome.seen[thing], mounted_times_, sizes);
      const auto here = describe(expected.seen[thing], local_times_, sizes);
      if (there == here) continue;
      std::string fields;
      for (std::size_t i = 0; i < there.size(); ++i) {
        const bool ctime = i + 1 == there.size();
        if (there[i] == here[i]) continue;
        if (ctime && there[i] == "changed" && mounted_times_.forgives(outcome.seen[thing]))
          continue;
        fields += " " + kFieldNames[i] + " " + there[i] + ", local " + here[i] + ";";
        out.kind += " " + kFieldNames[i];
      }
      if (!fields.empty())
        out.what += std::string("    ") + kThingNames[thing] + ":" + fields + "\n";
    }
    if (out.what.empty()) return std::nullopt;
    out.what = "  " + text(op) + "\n" + out.what;
    out.kind = std::to_string(static_cast<int>(op.call)) + out.kind;
    return out;
  }

  std::optional<Difference> trees_differ() {
    for (int process = 0; process < (shape_.sessions ? shape_.processes : 1); ++process) {
      // By the same process on both sides: closing the files that it reads ends its locks on them.
      const std::string here = local_->tree(process);
      const std::string there = mounted_->tree(process);
      if (there == here) continue;
      std::istringstream a(there);
      std::istringstream b(here);
      std::string line_a;
      std::string line_b;
      while (line_a == line_b && a && b) {
        line_a.clear();
        line_b.clear();
        std::getline(a, line_a);
        std::getline(b, line_b);
      }
      return Difference{0, "  tree:  " + line_a + "\n  local: " + line_b + "\n", "tree"};
    }
    return std::nullopt;
  }

  const std::vector<Op>& program_;
  const Shape shape_;
  std::string local_root_;
  std::string mount_root_;
  std::unique_ptr<Workers> mounted_;
  std::unique_ptr<Workers> local_;
  Times mounted_times_;
  Times local_times_;
};

}  // namespace

std::optional<Difference> compare(const Place& place, const std::vector<Op>& program,
                                  const Shape& shape) {
  return Comparison(place, program, shape).run();
}

// Delta debugging (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", TSE
// 2002): parts are left out, large ones first, as long as what is left still fails.
std::vector<Op> minimise(const Place& place, std::vector<Op> program, const Shape& shape,
                         int runs_max) {
  const auto first = compare(place, program, shape);
  if (!first) return program;
  std::size_t part = std::max<std::size_t>(1, program.size() / 2);
  while (runs_max > 0) {
    bool smaller = false;
    for (std::size_t at = 0; at < program.size() && runs_max > 0;) {
      auto without = program;
      const auto begin = without.begin() + static_cast<std::ptrdiff_t>(at);
      const auto count = std::min(part, program.size() - at);
      without.erase(begin, begin + static_cast<std::ptrdiff_t>(count));
      --runs_max;
      const auto found = without.empty() ? std::nullopt : compare(place, without, shape);
      if (!found || found->kind != first->kind) {
        at += part;
        continue;
      }
      without.resize(std::min(without.size(), found->step + 1));
      program = std::move(without);
      smaller = true;
    }
    if (part == 1 && !smaller) break;
    part = std::max<std::size_t>(1, part / 2);
  }
  return program;
}

}  // namespace fermata::test::model
