// A real cluster on this machine for tests: the programs as users run them, through `fermata mini`.
//
// Each test gets a directory of its own; the destructor ends every process it started and takes
// away every mount, also after a failure, so that nothing hangs whoever looks at the mount point
// next.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

namespace fermata::test {

struct RunResult {
  int exit_code = -1;  ///< 128 + signal if it was killed
  std::string out;     ///< stdout and stderr
};

/// Runs `command` with bash (errors end it), at most `timeout`; then it is killed.
RunResult run(const std::string& command, std::chrono::seconds timeout = std::chrono::seconds(120));

/// Polls until `done` says true; false after `timeout`.
bool eventually(const std::function<bool()>& done,
                std::chrono::milliseconds timeout = std::chrono::seconds(30));

/// Why mounts cannot be tested here (no root, no /dev/fuse), or empty.
std::string why_no_mounts();

class MiniCluster {
 public:
  struct Options {
    int nodes = 3;
    bool mount = true;
    std::string mount_options;  ///< for -o
  };
  MiniCluster() : MiniCluster(Options()) {}
  explicit MiniCluster(Options options);
  ~MiniCluster();
  MiniCluster(const MiniCluster&) = delete;
  MiniCluster& operator=(const MiniCluster&) = delete;

  const std::string& dir() const { return dir_; }
  std::string mnt() const { return dir_ + "/mnt"; }
  std::string servers() const { return dir_ + "/servers"; }
  std::string bin(const std::string& program) const;

  /// One more mount, with a cache of its own, like another machine's. Its mount point.
  std::string mount_another(const std::string& options = {});
  /// SIGKILLs the daemon of a mount point of ours and takes the dead mount away.
  void kill_mount(const std::string& mount_point);
  void umount(const std::string& mount_point);

  void kill_node(int node);  ///< SIGKILL
  int kill_primary();        ///< its number
  void restart_node(int node);
  bool runs(int node) const;
  int primary();  ///< waits until there is one
  /// True when every node runs, is reachable and has the same digest.
  bool digests_equal();
  /// A command of `fermata`: `fermata("status " + servers())`.
  RunResult fermata(const std::string& arguments);
  /// RPCs that the mount's daemon has made, all methods but session renewals.
  long rpc_count(const std::string& mount_point);

  /// Copies the logs to where CI can show them.
  std::string logs() const;

 private:
  void clean_up();

  std::string dir_;
  std::vector<std::string> mounts_;
};

}  // namespace fermata::test
