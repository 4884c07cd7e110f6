// A real cluster on this machine for tests: the programs as users run them, through `fermata mini`.
//
// Each test gets a directory of its own. The destructor, also after a failure, ends the daemons of
// every pid file in it, then detaches whatever the kernel says is mounted below it, mounted through
// the fixture or by hand, and only then removes it: nothing hangs whoever looks there next, and no
// removal ever walks into a live mount.
//
// Mounts go over /dev/fuse, or all over io_uring with FERMATA_TEST_IO_URING=1 in the environment,
// unless their options say (io_uring_switch.h).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <map>
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

/// Why mounts cannot be tested here (no root, no /dev/fuse, no io_uring where that is asked for),
/// or empty.
std::string why_no_mounts();

class MiniCluster {
 public:
  struct Options {
    int nodes = 3;
    bool mount = true;
    std::string mount_options;  ///< for -o
    /// small_disk() for the data of node 1, 2, ...; empty: that node has no disk of its own.
    std::vector<std::string> node_disks = {};
  };
  MiniCluster() : MiniCluster(Options()) {}
  explicit MiniCluster(Options options);
  ~MiniCluster();
  MiniCluster(const MiniCluster&) = delete;
  MiniCluster& operator=(const MiniCluster&) = delete;

  const std::string& dir() const { return dir_; }
  /// Above dir(): all that the test makes is below it, and goes with it.
  std::string root() const;
  std::string mnt() const { return dir_ + "/mnt"; }
  std::string servers() const { return dir_ + "/servers"; }
  std::string bin(const std::string& program) const;

  /// One more mount, with a cache of its own, like another machine's. Its mount point.
  std::string mount_another(const std::string& options = {});
  /// Mounts at `mount_point` (made if missing), which is below root(), with that cache directory;
  /// the pid file and the log are beside the mount point. `options` as for -o.
  RunResult mount_with(const std::string& mount_point, const std::string& cache_dir,
                       const std::string& options = {});
  /// A tmpfs of that size ("24m") of the test's own, or an ext4 ("ext4:200m"); where it is mounted.
  std::string small_disk(const std::string& name, const std::string& kind);
  /// The daemon of a mount point of ours, which runs.
  pid_t daemon_of(const std::string& mount_point) const;
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
  /// RPCs that the mount's daemon has made, by method; without session renewals.
  std::map<std::string, long> rpc_counts(const std::string& mount_point);
  long rpc_count(const std::string& mount_point);  ///< of all of them

  /// Copies the logs to where CI can show them.
  std::string logs() const;

 private:
  void clean_up();
  std::string pid_file_of(const std::string& mount_point) const;

  std::string dir_;
  int mount_count_ = 0;
};

}  // namespace fermata::test
