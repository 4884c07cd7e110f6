// Many processes at one name and at one file's end.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <map>
#include <sstream>
#include <vector>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

constexpr int kProcesses = 8;

/// Runs `work(process)` in as many processes; what each returned: 0, or an errno.
std::vector<int> in_processes(const std::function<int(int)>& work) {
  std::vector<pid_t> children;
  for (int process = 0; process < kProcesses; ++process) {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) ::_exit(work(process));
    children.push_back(child);
  }
  std::vector<int> ends;
  for (const pid_t child : children) {
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    ends.push_back(WIFEXITED(status) ? WEXITSTATUS(status) : -status);
  }
  return ends;
}
const std::vector<int> kAllFine(kProcesses, 0);

TEST_CASE("races: of 8 processes on two mounts exactly one makes each name", "[races]") {
  FM_NEEDS_MOUNTS();
  constexpr std::size_t kNames = 5000;
  MiniCluster cluster;
  const std::string other = cluster.mount_another();
  std::filesystem::create_directory(cluster.mnt() + "/names");
  using Winners = std::array<std::atomic<int>, kNames>;
  void* shared =
      ::mmap(nullptr, sizeof(Winners), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(shared != MAP_FAILED);
  auto& winners = *new (shared) Winners();
  const auto ends = in_processes([&](int process) {
    const std::string dir = (process % 2 == 0 ? cluster.mnt() : other) + "/names/";
    for (std::size_t i = 0; i < kNames; ++i) {
      const int fd = ::open((dir + std::to_string(i)).c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644);
      if (fd < 0 && errno != EEXIST) return errno;
      if (fd < 0) continue;
      ++winners[i];
      if (::close(fd) != 0) return errno;
    }
    return 0;
  });
  CHECK(ends == kAllFine);
  std::map<int, int> names_by_winners;
  for (const auto& count : winners) ++names_by_winners[count];
  CHECK(names_by_winners == std::map<int, int>{{1, static_cast<int>(kNames)}});
  for (const std::string& mount : {cluster.mnt(), other}) {
    const auto listed = std::filesystem::directory_iterator(mount + "/names");
    CHECK(static_cast<std::size_t>(std::distance(begin(listed), end(listed))) == kNames);
  }
  ::munmap(shared, sizeof(Winners));
}

// ---- records at a file's end

constexpr int kRecords = 12'500;  // of each process

std::string record(int process, int number) {
  const std::string id = std::to_string(process) + " " + std::to_string(number) + " ";
  return id + std::string(static_cast<std::size_t>(number % 70), 'x') + "\n";
}

int append(int fd, const std::string& text) {
  const ssize_t done = ::write(fd, text.data(), text.size());
  if (done < 0) return errno;
  return done == static_cast<ssize_t>(text.size()) ? 0 : EIO;
}

/// Every record once, none torn, each process' own in order.
void check_records(const std::string& path) {
  std::istringstream lines(read_file(path));
  std::vector<int> next(kProcesses, 0);
  int wrong = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    int process = -1;
    int number = -1;
    fields >> process >> number;
    const bool known = fields && process >= 0 && process < kProcesses;
    if (!known || line + "\n" != record(process, number) ||
        next[static_cast<std::size_t>(process)]++ != number) {
      ++wrong;
    }
  }
  CHECK(wrong == 0);
  CHECK(next == std::vector<int>(kProcesses, kRecords));
}

TEST_CASE("races: 8 processes on one mount append 100,000 records", "[races]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string path = cluster.mnt() + "/log";
  const auto ends = in_processes([&](int process) {
    const int fd = ::open(path.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0644);
    if (fd < 0) return errno;
    for (int i = 0; i < kRecords; ++i)
      if (const int error = append(fd, record(process, i)); error != 0) return error;
    return ::close(fd) == 0 ? 0 : errno;
  });
  CHECK(ends == kAllFine);
  check_records(path);
  check_records(cluster.mount_another(options) + "/log");
}

TEST_CASE("races: 8 processes on two mounts append 100,000 records under a lock", "[races]") {
  FM_NEEDS_MOUNTS();
  constexpr int kUnderOneLock = 250;
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string other = cluster.mount_another(options);
  write_file(cluster.mnt() + "/log", "");
  const auto ends = in_processes([&](int process) {
    // Open all the time: taking the lock brings the copy up to date.
    const std::string path = (process % 2 == 0 ? cluster.mnt() : other) + "/log";
    const int fd = ::open(path.c_str(), O_WRONLY | O_APPEND);
    if (fd < 0) return errno;
    for (int i = 0; i < kRecords; i += kUnderOneLock) {
      if (::flock(fd, LOCK_EX) != 0) return errno;
      for (int j = i; j < i + kUnderOneLock; ++j)
        if (const int error = append(fd, record(process, j)); error != 0) return error;
      if (::flock(fd, LOCK_UN) != 0) return errno;
    }
    return ::close(fd) == 0 ? 0 : errno;
  });
  INFO((ends == kAllFine ? std::string() : cluster.logs()));
  CHECK(ends == kAllFine);
  check_records(cluster.mnt() + "/log");
  check_records(other + "/log");
  CHECK(cluster.digests_equal());
}

}  // namespace
}  // namespace fermata::test
