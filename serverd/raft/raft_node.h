// One member of one replica group at work: it carries out what the pure RaftCore says.
//
// The core's Outputs become appends to the DurableLog, messages, and calls of the StateMachine. One
// persist is in flight at a time; everything proposed or received meanwhile goes with the next
// (group commit). The primary's appends travel while its own disk works. Entries are applied, in
// order, on the executor, as soon as they are committed and durable here.
//
// Fail-stop: an error of the log or of the state machine is not survivable (an fsync that failed
// cannot be repeated); `fatal` is called once and the node does nothing more. A full disk is no
// such error: the node stalls, hears and votes, and goes on when there is room.
//
// On disk: DIR/log (durable_log.h) and DIR/snapshots (snapshot.h).
//
// Thread-safety: everything on env.executor(). Environment, transport and state machine outlive the
// node. To end it: co_await stop(), then destroy it; or, in a simulation, SimEnv::crash() and
// destroy it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/buffer.h"
#include "common/env/env.h"
#include "common/io/task_group.h"
#include "common/io/waiter.h"
#include "serverd/raft/durable_log.h"
#include "serverd/raft/replicated_log.h"
#include "serverd/raft/snapshot.h"

namespace fermata::serverd {

/// How a node reaches the others. Implemented over RPC by the service, by a lossy queue in
/// simulations.
class PeerTransport {
 public:
  virtual ~PeerTransport() = default;
  /// Where everybody is: called at the start and whenever it changes, before messages to new
  /// members.
  virtual void set_members(const Membership& membership) = 0;
  /// Best effort: may lose, delay, duplicate or reorder. Never calls back into the node.
  virtual void send(NodeId to, RaftMessage message) = 0;
  /// RaftNode::read_snapshot_file at `from`. Has a deadline of its own.
  virtual Task<Buffer> read_snapshot(NodeId from, std::uint64_t id, std::string file,
                                     std::uint64_t offset_bytes, std::uint32_t size_bytes) = 0;
};

struct RaftNodeOptions {
  RaftOptions raft;
  ClusterId cluster;
  std::string dir;
  /// In force when the log is created; empty for a node that waits to be added.
  Membership first_members;
  bool rejoining = false;  ///< used when the log is created: this node had one, and lost it
  std::uint32_t segment_bytes = 16U << 20;
  std::size_t log_cache_bytes = std::size_t{64} << 20;
  std::size_t proposal_bytes_max = std::size_t{32}
                                   << 20;  ///< proposed and not applied; beyond it propose() waits
  std::size_t apply_bytes_max = std::size_t{1} << 20;  ///< applied in one turn of the executor
  std::size_t flush_bytes = std::size_t{64}
                            << 20;         ///< applied since the last flush: flush, then compact
  std::uint64_t trailing_entries = 10000;  ///< kept below the state's durable index, for slow peers
  std::uint64_t trailing_bytes = 256ULL << 20;  ///< and no more than that
  /// As DurableLogOptions::make_room; also for the state's flush.
  std::function<bool()> make_room = {};
  /// Whether so much more may be written, of what is not needed at once: snapshots of peers.
  std::function<bool(std::uint64_t bytes)> room_for = {};
  Duration snapshot_idle_max = std::chrono::minutes(10);  ///< a snapshot nobody reads is removed
  Duration fetch_retry = std::chrono::milliseconds(200);  ///< between attempts to read a piece
  Duration mark_after = std::chrono::seconds(1);  ///< without new entries: DurableLog::mark_durable
  int fetch_attempts = 25;         ///< in a row without success: the fetch is given up
  bool apply_uncommitted = false;  ///< a rule broken on purpose, in tests only (test/sim)
};

class RaftNode final : public ReplicatedLog {
 public:
  RaftNode(Env& env, RaftNodeOptions options, StateMachine& machine, PeerTransport& transport,
           std::function<void(std::string)> fatal);
  ~RaftNode() override;

  /// Opens the log, checks that the state machine fits to it, and takes part in the group. On an
  /// error `why` says for the operator what is wrong. Errors: those of DurableLog::open;
  /// kCorruptLog if state and log do not fit. `why` outlives the task.
  Task<void> start(std::string* why);
  /// Fails what waits with kShuttingDown and waits for what runs.
  boost::asio::awaitable<void> stop();

  /// From another member.
  void receive(const RaftMessage& message);
  /// A piece of a snapshot that this node made. Errors: ENOENT: it is gone, EINVAL.
  Task<Buffer> read_snapshot_file(std::uint64_t id, std::string file, std::uint64_t offset_bytes,
                                  std::uint32_t size_bytes);

  // ReplicatedLog.
  /// Waits while proposal_bytes_max are under way. kTooLarge: over DurableLog::kEntryBytesMax.
  Task<Outcome> propose(std::string command) override;
  Task<void> read_barrier() override;
  void apply_now() override { apply_some(); }
  bool may_read() const override;
  Task<void> transfer_leadership(NodeId to) override;
  Task<void> change_members(Membership next) override;
  LogStatus status() const override;
  bool stalled() const override { return log_stalled_ || state_stalled_; }
  void spare_room(bool spare) override;
  bool trails(NodeId peer) const override;

  struct Counters {
    std::uint64_t persists = 0;
    std::uint64_t applied_commands = 0;
    std::uint64_t apply_batches = 0;
    std::uint64_t flushes = 0;
    std::uint64_t compactions = 0;
    std::uint64_t snapshots_made = 0;
    std::uint64_t snapshots_installed = 0;
    std::uint64_t snapshot_bytes_fetched = 0;
    std::uint64_t snapshot_fetches_failed = 0;
    std::uint64_t peers_forgetful = 0;  ///< times that a peer lacked what it had acknowledged
    std::uint64_t stalls = 0;           ///< for want of room
    std::uint64_t slow_disks_left = 0;  ///< times the role was offered to another node for that
  };
  const Counters& counters() const { return counters_; }

 private:
  struct Proposal;
  struct Read;

  // raft_node.cc: obeying the core.
  void obey(Output out);
  Status stage(Output& out);
  void note_role();
  void tell_role();
  boost::asio::awaitable<void> tick_loop();
  boost::asio::awaitable<void> persist_loop();
  boost::asio::awaitable<void> apply_loop();
  boost::asio::awaitable<void> guarded(const char* what, boost::asio::awaitable<void> loop);
  boost::asio::awaitable<void> mark_durable();
  void send_all(std::vector<RaftMessage> messages);
  bool running() const { return core_.has_value() && !stopped_; }
  void fail(std::string why);
  void fail_waiting(std::error_code error);
  boost::asio::awaitable<void> leave_room_to_state();
  Task<DurableLog::Persisted> persist();
  void leave_stalled_disk(TimePoint now);

  // raft_node.cc: applying.
  LogIndex ready_to_apply() const;
  bool may_apply_later() const;
  void apply_some();
  Status apply_batch(LogIndex up_to);
  boost::asio::awaitable<void> wait_for_state_room();
  void resolve(const LogEntry& entry, std::string result);

  // raft_node_calls.cc: what callers wait for.
  Task<Outcome> wait_for(std::shared_ptr<Proposal> proposal);
  void release_room(std::size_t bytes);
  void check_reads();
  bool check_read(Read& read);

  // raft_node_snapshot.cc: start, flush, compaction, snapshots.
  Task<void> open(std::string* why);
  Task<void> fit_log_to_state(std::string* why);
  boost::asio::awaitable<void> flush_and_compact();
  Task<void> flush_state();
  void begin_flush();
  Task<void> do_flush_and_compact();
  LogIndex not_kept(std::uint64_t part) const;
  std::uint64_t trailing_bytes() const;  ///< kept of the log below the state, now
  LogIndex compaction_limit() const;
  bool snapshot_is_needed() const;
  void want_snapshot(NodeId peer);
  boost::asio::awaitable<void> make_snapshot();
  Task<void> do_make_snapshot();
  boost::asio::awaitable<void> fetch_snapshot(SnapshotDescriptor snapshot, NodeId from);
  Task<void> fetch_files(SnapshotDescriptor snapshot, NodeId from);
  Task<void> check_room(const SnapshotDescriptor& snapshot);
  Task<void> fetch_file(std::uint64_t id, SnapshotDescriptor::File file, NodeId from);
  Task<void> install(SnapshotDescriptor snapshot);
  boost::asio::awaitable<void> drop_idle_snapshot();

  Env& env_;
  const RaftNodeOptions options_;
  StateMachine& machine_;
  PeerTransport& transport_;
  std::function<void(std::string)> fatal_;
  std::shared_ptr<DurableLog> log_;
  std::shared_ptr<SnapshotStore> snapshots_;
  std::optional<RaftCore> core_;
  bool stopped_ = false;
  Counters counters_;

  // Persisting: Outputs up to sequence_ are staged in the log; messages that wait for that.
  std::uint64_t sequence_ = 0;
  std::vector<RaftMessage> after_persist_;
  bool unreported_ = false;  // staged since the core was last told what is durable
  Waiter persist_wake_;
  TimePoint persisted_at_{};
  std::optional<TimePoint> persisting_since_;
  TimePoint next_way_out_{};  // for leave_stalled_disk()
  bool marking_ = false;

  // Applying.
  LogIndex commit_;
  LogIndex applied_;
  bool applying_ = false;          // on the stack
  bool installing_ = false;        // the state is being replaced
  std::size_t applied_bytes_ = 0;  // since the last flush
  bool flushing_ = false;
  TimePoint flushed_at_{};
  Waiter apply_wake_;

  // Full disks.
  bool log_stalled_ = false;
  bool state_stalled_ = false;
  TimePoint state_stalled_at_{};
  bool spare_room_ = false;

  // Role, as the core has it and as the state machine was told.
  Role role_ = Role::kBackup;
  Term role_term_;
  LogIndex own_first_;  // the primary's first entry
  Role told_role_ = Role::kBackup;
  Term told_term_;
  Membership told_members_;

  // Callers.
  std::map<LogIndex, std::shared_ptr<Proposal>> proposals_;
  std::size_t proposal_bytes_ = 0;
  std::deque<std::shared_ptr<Waiter>> waiting_for_room_;
  std::vector<std::shared_ptr<Read>> reads_;
  std::optional<ReadTicket> ticket_;
  bool checking_reads_ = false;

  // Snapshots.
  std::optional<SnapshotDescriptor> snapshot_;  // served to peers
  TimePoint snapshot_used_{};
  bool making_snapshot_ = false;
  std::vector<NodeId> snapshot_wanted_;

  TaskGroup tasks_;  // last: its tasks use all of the above
};

}  // namespace fermata::serverd
