// One client machine: the real session keeper and cluster client with a SimMount on top, and
// processes that use it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "test/sim/cluster/sim_mount.h"

namespace fermata::test {

class SimClient {
 public:
  /// A visitor has no session: nobody waits for it, and it is told nothing it may keep. It only
  /// reads, so it would be the first to see what a deposed primary still shows.
  enum class Role : std::uint8_t { kMount, kVisitor };
  SimClient(World& world, unsigned number, Role role = Role::kMount);
  ~SimClient();

  /// A new life: connects, opens a session, runs `processes` processes.
  void start(unsigned processes);
  /// Gone without a word. Not from within its own handlers.
  void crash();
  bool up() const { return env_ != nullptr; }
  bool is_visitor() const { return role_ == Role::kVisitor; }
  /// Every process has ended.
  bool idle() const { return running_ == 0; }
  /// Closes what is open, then the session.
  void stop();
  bool stopped() const { return stopped_; }
  /// Reads the whole tree and every content, nothing from a cache. verified() when it is done.
  void verify();
  bool verified() const { return verified_; }
  const std::string& host() const { return host_; }
  std::string doing() const;

 private:
  boost::asio::awaitable<void> connect(unsigned processes);
  boost::asio::awaitable<void> run_process(std::size_t number);
  boost::asio::awaitable<void> do_stop();
  boost::asio::awaitable<void> do_verify();
  Task<void> verify_directory(InodeId directory, unsigned depth);

  // What processes do.
  Task<void> step(std::size_t process);
  Task<InodeId> directory();
  std::string name();
  std::string burst_name();
  Task<void> burst(std::size_t process);
  Task<void> write_file(std::size_t process);
  Task<void> read_file(std::size_t process);
  Task<void> close_one(std::size_t process);
  Task<void> change_tree();
  Task<void> change_quota();
  Task<void> look_around();
  Task<void> visit();
  Task<void> lock_file(std::size_t process);

  World& world_;
  const unsigned number_;
  const Role role_;
  const std::string host_;
  SimDisk disk_;
  SeededRandom random_;
  unsigned lives_ = 0;
  unsigned running_ = 0;
  bool stopped_ = false;
  bool verified_ = false;
  std::vector<std::string> doing_;                                   ///< by process
  std::vector<std::vector<std::shared_ptr<SimMount::Open>>> files_;  ///< open, by process
  std::unique_ptr<SimEnv> env_;
  std::unique_ptr<SimNetwork> network_;
  std::unique_ptr<mountd::ClientSession> session_;
  std::unique_ptr<mountd::ClusterClient> client_;
  std::unique_ptr<SimMount> mount_;
  std::unique_ptr<mountd::SessionKeeper> keeper_;
};

}  // namespace fermata::test
