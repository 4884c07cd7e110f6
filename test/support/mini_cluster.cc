#include "test/support/mini_cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "common/base/mount_table.h"
#include "common/base/process.h"
#include "test/support/io_uring_switch.h"

namespace fermata::test {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

/// The name of the running program (its first 15 bytes); empty if there is none.
std::string program_of(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/comm");
  std::string name;
  std::getline(file, name);
  return name;
}

/// The daemon of ours that wrote this pid file; 0 if it is gone, whoever has its number now.
pid_t pid_in(const std::string& path) {
  std::ifstream file(path);
  pid_t pid = 0;
  file >> pid;
  return is_alive(pid) && program_of(pid).starts_with("fermata-") ? pid : 0;
}

void kill_and_wait(pid_t pid) {
  if (pid <= 1) return;
  kill(pid, SIGKILL);
  eventually([pid] { return !is_alive(pid); }, std::chrono::seconds(10));
}

/// What is mounted at or below `dir`, in the order of mounting. Asks the kernel, not the mounts.
std::vector<MountInfo> mounts_below(const std::string& dir) {
  std::vector<MountInfo> found;
  for (auto& mount : mount_table()) {
    const std::string& point = mount.mount_point;
    if (point == dir || point.starts_with(dir + "/")) found.push_back(std::move(mount));
  }
  return found;
}

/// The daemons that pid files below `dir` name. Looks into no FUSE mount, alive or dead.
std::vector<pid_t> daemons_below(const std::string& dir) {
  constexpr int kDepthMax = 3;  // root/c/disk/cache/mountd.pid
  std::set<std::string> closed;
  for (const MountInfo& mount : mounts_below(dir))
    if (mount.type.starts_with("fuse")) closed.insert(mount.mount_point);
  std::vector<pid_t> found;
  std::error_code error;
  fs::recursive_directory_iterator at(dir, error);
  for (; !error && at != fs::recursive_directory_iterator(); at.increment(error)) {
    // The type comes with the name: a mount point is not asked for it.
    const std::string path = at->path().string();
    if (closed.contains(path) || at.depth() >= kDepthMax) at.disable_recursion_pending();
    if (at->path().extension() != ".pid" || closed.contains(path)) continue;
    if (const pid_t pid = pid_in(path); pid != 0) found.push_back(pid);
  }
  return found;
}

/// False if something is still mounted there.
bool detach_all(const std::string& dir) {
  constexpr int kRounds = 5;  // one mount may hide another
  for (int round = 0; round < kRounds; ++round) {
    auto mounts = mounts_below(dir);
    if (mounts.empty()) return true;
    std::reverse(mounts.begin(), mounts.end());
    for (const MountInfo& mount : mounts)
      umount2(mount.mount_point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
  }
  return mounts_below(dir).empty();
}

/// The options with the way of requests that this test program is about, unless they name one.
std::string with_transport(const std::string& options) {
  if (options.find("io_uring=") != std::string::npos) return options;
  return options + (options.empty() ? "" : ",") +
         (tests_use_io_uring() ? "io_uring=on" : "io_uring=off");
}

[[noreturn]] void fail(const std::string& what, const RunResult& result) {
  throw std::runtime_error(what + " (exit code " + std::to_string(result.exit_code) + "):\n" +
                           result.out);
}

}  // namespace

RunResult run(const std::string& command, std::chrono::seconds timeout) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) throw std::runtime_error("pipe2 failed");
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    setpgid(0, 0);
    dup2(fds[1], STDOUT_FILENO);
    dup2(fds[1], STDERR_FILENO);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    execl("/bin/bash", "bash", "-euo", "pipefail", "-c", command.c_str(),
          static_cast<char*>(nullptr));
    _exit(127);
  }
  close(fds[1]);
  RunResult result;
  const auto until = std::chrono::steady_clock::now() + timeout;
  bool killed = false;
  int status = 0;
  bool reaped = false;
  // The command may leave daemons behind that hold the pipe: its own end counts, not the pipe's.
  for (;;) {
    pollfd ready{fds[0], POLLIN, 0};
    if (poll(&ready, 1, 20) > 0) {
      char buffer[65536];
      const ssize_t size = read(fds[0], buffer, sizeof buffer);
      if (size > 0) {
        result.out.append(buffer, static_cast<std::size_t>(size));
        continue;
      }
      if (reaped || size == 0) break;
    }
    if (reaped) break;
    reaped = waitpid(child, &status, WNOHANG) == child;
    if (!killed && std::chrono::steady_clock::now() > until) {
      killed = true;
      result.out += "\n[killed after " + std::to_string(timeout.count()) + " s]\n";
      kill(-child, SIGKILL);
    }
  }
  close(fds[0]);
  if (!reaped) waitpid(child, &status, 0);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

bool eventually(const std::function<bool()>& done, std::chrono::milliseconds timeout) {
  const auto until = std::chrono::steady_clock::now() + timeout;
  while (!done()) {
    if (std::chrono::steady_clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

std::string why_no_mounts() {
  if (geteuid() != 0) return "mounting in tests needs root";
  if (access("/dev/fuse", R_OK | W_OK) != 0) return "/dev/fuse cannot be opened";
  return why_no_io_uring();
}

std::string MiniCluster::bin(const std::string& program) const {
  const fs::path self = fs::read_symlink("/proc/self/exe");
  return (self.parent_path() / program).string();
}

MiniCluster::MiniCluster(Options options) {
  char name[] = "/tmp/fermata-test.XXXXXX";
  if (mkdtemp(name) == nullptr) throw std::runtime_error("mkdtemp failed");
  chmod(name, 0755);  // tests look at it as other users, too
  dir_ = name;
  dir_ += "/c";
  std::string command = "mini start --dir " + dir_ + " --nodes " + std::to_string(options.nodes);
  if (options.mount) command += " --mount " + mnt();
  if (options.mount) command += " -o " + with_transport(options.mount_options);
  try {
    for (std::size_t i = 0; i < options.node_disks.size(); ++i) {
      if (!options.node_disks[i].empty())
        small_disk("node" + std::to_string(i + 1), options.node_disks[i]);
    }
    const RunResult result = fermata(command);
    if (result.exit_code != 0) fail("mini start failed", {result.exit_code, result.out + logs()});
  } catch (...) {
    clean_up();
    throw;
  }
}

MiniCluster::~MiniCluster() { clean_up(); }

std::string MiniCluster::root() const { return fs::path(dir_).parent_path().string(); }

void MiniCluster::clean_up() {
  // The mounts' daemons first, while they have servers to say good-bye to.
  const std::vector<pid_t> daemons = daemons_below(root());
  std::vector<pid_t> mountds;
  for (const pid_t pid : daemons)
    if (program_of(pid) == "fermata-mountd") mountds.push_back(pid);
  for (const pid_t pid : mountds) kill(pid, SIGTERM);
  eventually([&] { return std::none_of(mountds.begin(), mountds.end(), is_alive); },
             std::chrono::seconds(10));
  for (const pid_t pid : daemons)
    if (is_alive(pid)) kill_and_wait(pid);
  if (!detach_all(root())) {
    std::fprintf(stderr, "%s is left: something is still mounted there\n", root().c_str());
    return;
  }
  std::error_code error;
  if (std::getenv("FERMATA_KEEP_TEST_DIRS") == nullptr) fs::remove_all(root(), error);
}

std::string MiniCluster::small_disk(const std::string& name, const std::string& kind) {
  const std::string path = dir_ + "/" + name;
  fs::create_directories(path);
  const std::string ext4 = "ext4:";
  if (kind.starts_with(ext4)) {
    const std::string image = root() + "/" + name + ".ext4";
    const RunResult made =
        run("truncate -s " + kind.substr(ext4.size()) + " " + image + "; mkfs.ext4 -q " + image +
            "; mount -o loop " + image + " " + path + "; rmdir " + path + "/lost+found");
    if (made.exit_code != 0) fail("no ext4 at " + path, made);
    return path;
  }
  if (mount("fermata-test", path.c_str(), "tmpfs", 0, ("mode=0755,size=" + kind).c_str()) != 0)
    throw std::system_error(errno, std::generic_category(), "tmpfs at " + path);
  return path;
}

RunResult MiniCluster::mount_with(const std::string& mount_point, const std::string& cache_dir,
                                  const std::string& options) {
  std::string command = "mount " + servers() + " " + mount_point + " --cache-dir " + cache_dir +
                        " --pidfile " + mount_point + ".pid --log " + mount_point + ".log";
  if (!options.empty()) command += " -o " + options;
  return fermata(command);
}

std::string MiniCluster::mount_another(const std::string& options) {
  const std::string point = dir_ + "-mnt" + std::to_string(++mount_count_);
  const RunResult result = mount_with(point, point + ".cache", options);
  if (result.exit_code != 0) fail("mount failed", {result.exit_code, result.out + logs()});
  return point;
}

std::string MiniCluster::pid_file_of(const std::string& mount_point) const {
  return mount_point == mnt() ? dir_ + "/mount.pid" : mount_point + ".pid";
}

pid_t MiniCluster::daemon_of(const std::string& mount_point) const {
  const pid_t pid = pid_in(pid_file_of(mount_point));
  if (pid == 0) throw std::runtime_error("no daemon serves " + mount_point);
  return pid;
}

void MiniCluster::kill_mount(const std::string& mount_point) {
  kill_and_wait(pid_in(pid_file_of(mount_point)));
  umount2(mount_point.c_str(), MNT_DETACH);
}

void MiniCluster::umount(const std::string& mount_point) {
  const RunResult result = fermata("umount " + mount_point);
  if (result.exit_code != 0) fail("umount failed", result);
}

bool MiniCluster::runs(int node) const {
  return pid_in(dir_ + "/node" + std::to_string(node) + ".pid") != 0;
}

void MiniCluster::kill_node(int node) {
  kill_and_wait(pid_in(dir_ + "/node" + std::to_string(node) + ".pid"));
}

int MiniCluster::primary() {
  int found = 0;
  const bool there = eventually([&] {
    const RunResult status = fermata("status --json --no-digest " + servers());
    std::error_code error;
    const json::value document = json::parse(status.out, error);
    if (error || !document.is_object()) return false;
    const json::value* primary = document.as_object().if_contains("primary");
    if (primary == nullptr) return false;
    found = static_cast<int>(primary->to_number<int>());
    return true;
  });
  if (!there) throw std::runtime_error("no primary within 30 s" + logs());
  return found;
}

int MiniCluster::kill_primary() {
  const int node = primary();
  kill_node(node);
  return node;
}

void MiniCluster::restart_node(int node) {
  const RunResult result =
      fermata("mini restart --dir " + dir_ + " --node " + std::to_string(node));
  if (result.exit_code != 0) fail("mini restart failed", {result.exit_code, result.out + logs()});
}

bool MiniCluster::digests_equal() {
  RunResult last;
  const auto equal = [&] {
    last = fermata("digest " + servers());
    return last.exit_code == 0;
  };
  if (eventually(equal, std::chrono::seconds(60))) return true;
  std::fprintf(stderr, "the nodes' digests stayed unequal:\n%s%s\n", last.out.c_str(),
               logs().c_str());
  return false;
}

RunResult MiniCluster::fermata(const std::string& arguments) {
  return run(bin("fermata") + " " + arguments, std::chrono::seconds(180));
}

std::map<std::string, long> MiniCluster::rpc_counts(const std::string& mount_point) {
  const RunResult result = fermata("cache stat --json " + mount_point);
  std::error_code error;
  const json::value document = json::parse(result.out, error);
  if (error || !document.is_object()) fail("cache stat gave no JSON", result);
  std::map<std::string, long> counts;
  for (const auto& field : document.as_object().at("rpcs").as_object()) {
    if (field.key() != "renew_session") counts[field.key()] = field.value().to_number<long>();
  }
  return counts;
}

long MiniCluster::rpc_count(const std::string& mount_point) {
  long total = 0;
  for (const auto& [method, count] : rpc_counts(mount_point)) total += count;
  return total;
}

std::string MiniCluster::logs() const {
  std::string all;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root(), error)) {
    if (entry.path().extension() == ".log")
      all +=
          "\n== " + entry.path().string() + "\n" + run("tail -n 40 " + entry.path().string()).out;
  }
  for (const auto& entry : fs::directory_iterator(dir_, error)) {
    if (entry.path().extension() == ".log")
      all +=
          "\n== " + entry.path().string() + "\n" + run("tail -n 40 " + entry.path().string()).out;
  }
  return all;
}

}  // namespace fermata::test
