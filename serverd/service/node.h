// One storage node: store, namespace, chunks, replicated log and the services on them, assembled
// over an Env, a Network and a data directory.
//
// The node answers its clients and its peers on one listener; each Method has its coroutine in one
// of the *_service.cc files. Nothing here knows real time, threads or sockets, so a simulation can
// start a node, destroy it at any moment (after SimEnv::crash()) and start it again on the same
// disk.
//
// The data directory: log/ (replicated log), meta/ (the store), chunks/, snapshots/, times (which
// log index was applied when), reserve (room for the last breath of a full disk). node.toml and the
// lock belong to main.cc.
//
// Fail-stop: what a node cannot survive without risking what it acknowledged (an fsync error, a
// damaged store, a command of a newer program) ends in `fatal`, after which it answers nobody.
//
// Thread-safety: the Env's executor.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/env/env.h"
#include "common/net/rpc.h"
#include "common/wire/messages.h"
#include "common/wire/raft.h"
#include "serverd/raft/replicated_log.h"

namespace fermata::serverd {

class KvStore;

struct NodeConfig {
  ClusterId cluster;
  NodeId self;
  std::string listen;                 ///< HOST:PORT to bind
  std::vector<Member> first_members;  ///< used when the log is created, not later
  bool rejoining = false;  ///< used when the log is created: this node had one, and lost it
  std::string data_dir;
  // The owner of a new cluster's root directory.
  std::uint32_t root_uid = 0, root_gid = 0, root_mode = 0755;

  // docs/adr/0007-failover-timing.md
  Duration heartbeat = std::chrono::milliseconds(75);
  Duration election_timeout_min = std::chrono::milliseconds(400);
  Duration clock_drift_max = std::chrono::milliseconds(40);
  Duration lease = std::chrono::seconds(10);
  std::size_t leases_per_session = 200'000;
  /// As LeaseTable's: what others have not asked about for so long may be one session's alone.
  Duration exclusive_after = std::chrono::seconds(1);
  std::size_t sessions_max = 4096;
  std::size_t mutations_max = 4096;  ///< under way at once; more are refused with kRetry

  Duration chunk_pin = std::chrono::minutes(10);  ///< put or queried, not yet committed
  Duration chunk_drop_delay = std::chrono::minutes(1);
  Duration chunk_pin_low = std::chrono::seconds(10);  ///< the same while room is scarce
  Duration chunk_drop_delay_low = std::chrono::seconds(1);
  /// Deletions ordered so soon after the start are put off: what this node said before it stopped
  /// is forgotten, and somebody may count on it.
  Duration chunk_start_grace = std::chrono::seconds(30);
  std::size_t fetch_parallel = 4;
  Duration history_retention = std::chrono::hours(24);
  Duration history_retention_low = std::chrono::minutes(10);  ///< while room is scarce; then less
  Duration prune_interval = std::chrono::seconds(30);
  /// A file whose last commit of patches is so long ago has them folded into chunks.
  Duration patch_fold_after = std::chrono::seconds(10);
  Duration space_interval = std::chrono::milliseconds(500);
  std::uint64_t space_reserve_bytes = 64ULL << 20;  ///< or an eighth of the disk, if that is less
  std::uint64_t reserve_file_bytes = 0;             ///< 0: none

  // The log; small in simulations, so that little load brings compaction and snapshots about.
  std::uint32_t log_segment_bytes = 16U << 20;
  std::size_t log_flush_bytes = std::size_t{64} << 20;  ///< applied between flushes of the state
  std::uint64_t log_trailing_entries = 10000;           ///< kept below that for slow peers
  std::uint64_t log_trailing_bytes = 256ULL << 20;      ///< and no more than that
  std::size_t log_apply_bytes_max = std::size_t{1} << 20;

  /// For tests only, and set by nothing else: watching what is applied, and breaking rules on
  /// purpose to see that the simulator notices.
  struct Testing {
    /// Stands between the log and the state; the Namespace outlives it.
    std::function<std::unique_ptr<StateMachine>(class Namespace&)> around_state;
    RaftMutation raft_mutation = RaftMutation::kNone;
    bool apply_uncommitted = false;
    bool skip_callbacks = false;
    bool skip_recalls = false;
  } testing;
};

class Node final : public Handler {
 public:
  using StoreFactory = std::function<Result<std::unique_ptr<KvStore>>(const std::string& dir)>;
  using Fatal = std::function<void(const std::string& reason)>;

  /// `env` and `network` outlive the node. `fatal` is called at most once, from the executor, and
  /// must not destroy the node at once.
  Node(Env& env, Network& network, NodeConfig config, StoreFactory store, Fatal fatal);
  /// In production stop() first. In a simulation after SimEnv::crash().
  ~Node() override;

  /// Opens everything in the data directory (made if it is not there), listens and takes part.
  /// On an error `why()` is a sentence for the operator; the node is then only good to be
  /// destroyed.
  Task<void> start();
  const std::string& why() const;
  /// Hands over the role if it is primary, lets requests end (for a short while), flushes and
  /// closes. The network's own stop comes after it.
  boost::asio::awaitable<void> stop();

  const std::string& address() const;  ///< with the real port
  NodeStatus status() const;
  /// For tests and the simulator's checks.
  const class Namespace& state() const;

  boost::asio::awaitable<Response> handle(std::shared_ptr<Connection> from,
                                          Request request) override;
  Status on_connect(const std::shared_ptr<Connection>& connection) override;
  void on_disconnect(const std::shared_ptr<Connection>& connection) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fermata::serverd
