#include "serverd/raft/raft_node.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "common/base/assert.h"
#include "serverd/raft/raft_node_impl.h"

namespace fermata::serverd {
namespace asio = boost::asio;

namespace {
constexpr Duration kFullRetry = std::chrono::milliseconds(200);  // between looks for room
constexpr Duration kLogYields = std::chrono::seconds(10);        // to a state that waits for room
constexpr std::uint64_t kApplyLaterMax = 64;  // entries that a backup may leave for later
constexpr int kStalledTimeouts = 4;  // election timeouts that a sync of the primary may take
}  // namespace

RaftNode::RaftNode(Env& env, RaftNodeOptions options, StateMachine& machine,
                   PeerTransport& transport, std::function<void(std::string)> fatal)
    : env_(env),
      options_(std::move(options)),
      machine_(machine),
      transport_(transport),
      fatal_(std::move(fatal)),
      snapshots_(std::make_shared<SnapshotStore>(env.disk(), options_.dir + "/snapshots")),
      persist_wake_(env.executor()),
      apply_wake_(env.executor()),
      tasks_(env.executor()) {}

RaftNode::~RaftNode() = default;

asio::awaitable<void> RaftNode::stop() {
  const bool clean = running();
  stopped_ = true;
  fail_waiting(Errc::kShuttingDown);
  tasks_.cancel_all();
  co_await tasks_.join();
  if (!clean) co_return;
  const auto mark = [log = log_] { return log->mark_durable(); };
  const Status marked = co_await blocking<void>(env_, mark);
  if (!marked) spdlog::error("log: {}", marked.error().message());
}

/// What escapes from a loop is a bug, and a node that goes on without one of its loops would hold
/// its role and do nothing.
asio::awaitable<void> RaftNode::guarded(const char* what, asio::awaitable<void> loop) {
  std::string escaped;
  try {
    co_await std::move(loop);
  } catch (const std::exception& error) {
    escaped = std::string(what) + ": " + error.what();
  }
  if (!escaped.empty()) fail(std::move(escaped));
}

asio::awaitable<void> RaftNode::mark_durable() {
  const auto mark = [log = log_] { return log->mark_durable(); };
  const Status marked = co_await blocking<void>(env_, mark);
  marking_ = false;
  if (!marked) fail("log: " + marked.error().message() + "; what it held before this is safe");
}

void RaftNode::fail(std::string why) {
  if (stopped_) return;
  stopped_ = true;
  spdlog::critical("node {} of group {} stops: {}", options_.raft.self.value(),
                   options_.raft.group.value(), why);
  fail_waiting(Errc::kShuttingDown);
  tasks_.cancel_all();
  if (fatal_) fatal_(std::move(why));
}

// --- Obeying the core ----------------------------------------------------------------------------

void RaftNode::receive(const RaftMessage& message) {
  if (!running()) return;
  Output out;
  core_->receive(message, env_.now(), out);
  obey(std::move(out));
}

/// Puts what must become durable into the log's memory.
Status RaftNode::stage(Output& out) {
  sequence_ = std::max(sequence_, out.sequence);
  if (out.hard_state) {
    if (log_->hard_state().rejoining && !out.hard_state->rejoining) {
      spdlog::info("node {}: has everything again that was committed; it votes from now on",
                   options_.raft.self.value());
    }
    log_->set_hard_state(*out.hard_state);
  }
  unreported_ |= out.needs_persist();
  for (auto& message : out.messages_after_persist) {
    // While a full disk holds them up: the newest answer stands for those before it.
    if (log_stalled_) {
      std::erase_if(after_persist_, [&](const RaftMessage& before) {
        return before.kind == RaftKind::kAppendReply && before.kind == message.kind &&
               before.to == message.to;
      });
    }
    after_persist_.push_back(std::move(message));
  }
  // Each run of consecutive indexes is one append: the next may cut the log again.
  for (std::size_t first = 0; first < out.append.size();) {
    std::vector<LogEntry> run;
    do {
      run.push_back(std::move(out.append[first++]));
    } while (first < out.append.size() && out.append[first].index == run.back().index.next());
    FM_CHECK(log_->append(std::move(run)));
  }
  return {};
}

void RaftNode::obey(Output out) {
  if (!running()) return;
  if (const Status staged = stage(out); !staged) return fail("log: " + staged.error().message());
  if (core_->membership() != told_members_) {
    told_members_ = core_->membership();
    transport_.set_members(told_members_);
  }
  send_all(std::move(out.messages));
  if (unreported_ || !after_persist_.empty()) persist_wake_.notify();
  commit_ = std::max(commit_, out.commit);
  if (out.role_changed) note_role();
  if (!may_apply_later()) apply_some();
  tell_role();
  check_reads();
  if (!running()) return;
  for (const NodeId peer : out.wants_snapshot) want_snapshot(peer);
  for (const NodeId peer : out.forgetful) {
    ++counters_.peers_forgetful;
    spdlog::error(
        "node {}: node {} lacks log entries that it had acknowledged; they are sent again. Look "
        "at its disk, and whether an old copy of its directory was put back",
        options_.raft.self.value(), peer.value());
  }
  if (out.fetch_snapshot) {
    tasks_.spawn("fetch snapshot", fetch_snapshot(*out.fetch_snapshot, out.fetch_from));
  }
}

void RaftNode::send_all(std::vector<RaftMessage> messages) {
  for (RaftMessage& message : messages) {
    const NodeId to = message.to;
    transport_.send(to, std::move(message));
  }
}

void RaftNode::note_role() {
  const Role role = core_->role();
  const Term term = core_->term();
  if (role == role_ && term == role_term_) return;  // only the primary that is known changed
  if (role_ == Role::kPrimary) fail_waiting(Errc::kConnectionLost);
  if (role == Role::kPrimary) own_first_ = core_->last_index();
  role_ = role;
  role_term_ = term;
}

/// Tells the state machine its role: a new primary once its own first entry is applied, so that
/// everything its predecessors committed is too.
void RaftNode::tell_role() {
  if (stopped_ || (role_ == told_role_ && role_term_ == told_term_)) return;
  if (role_ == Role::kPrimary && applied_ < own_first_) return;
  told_role_ = role_;
  told_term_ = role_term_;
  spdlog::info("node {}: {} in term {}, entry {} applied", options_.raft.self.value(),
               to_string(role_), role_term_.value(), applied_.value());
  machine_.on_role(role_, role_term_);
}

asio::awaitable<void> RaftNode::tick_loop() {
  while (running()) {
    // An event may bring the next tick nearer, so never sleep for long.
    const TimePoint bound = env_.now() + options_.raft.heartbeat_interval / 4;
    (void)co_await env_.sleep_until(std::min(core_->next_tick(), bound));
    if (!running()) co_return;
    const TimePoint now = env_.now();
    if (now >= core_->next_tick()) {
      Output out;
      core_->tick(now, out);
      obey(std::move(out));
    }
    leave_stalled_disk(now);
    if (applied_ < ready_to_apply()) apply_wake_.notify();
    if (!marking_ && !unreported_ && log_->has_unmarked() &&
        now - persisted_at_ > options_.mark_after) {
      marking_ = true;
      tasks_.spawn("mark durable", mark_durable());
    }
    const Duration idle_max = spare_room_ ? kSnapshotIdleShort : options_.snapshot_idle_max;
    if (snapshot_ && !making_snapshot_ && now - snapshot_used_ > idle_max) {
      snapshot_used_ = now;
      tasks_.spawn("drop snapshot", drop_idle_snapshot());
    }
  }
}

/// One persist at a time; whatever is staged while it runs goes with the next.
asio::awaitable<void> RaftNode::persist_loop() {
  while (running()) {
    if (!unreported_ && after_persist_.empty()) {
      const std::error_code error = co_await persist_wake_.wait();
      if (error) co_return;
      continue;
    }
    const std::uint64_t sequence = sequence_;
    auto messages = std::exchange(after_persist_, {});
    unreported_ = false;
    if (log_->has_staged()) {
      ++counters_.persists;
      persisting_since_ = env_.now();
      const auto done = co_await persist();
      persisting_since_.reset();
      if (!running()) co_return;
      persisted_at_ = env_.now();
      if (!done) {
        fail("log: " + done.error().message() + "; what it held before this is safe");
        co_return;
      }
    }
    send_all(std::move(messages));
    Output out;
    core_->on_persisted(sequence, env_.now(), out);
    obey(std::move(out));
  }
}

/// A primary applies nothing that its own disk does not have. One whose disk neither works nor
/// fails would keep the role, for its heartbeats go on, and everybody waiting: another node may do
/// better. A full disk is the space guard's.
void RaftNode::leave_stalled_disk(TimePoint now) {
  const Duration patience = kStalledTimeouts * options_.raft.election_timeout_min;
  const bool slow = persisting_since_ && now - *persisting_since_ > patience;
  if (!slow || stalled() || core_->role() != Role::kPrimary || now < next_way_out_) return;
  next_way_out_ = now + patience;
  const Membership& members = core_->membership();
  NodeId heir;
  LogIndex match;
  for (const auto& [id, peer] : core_->progress()) {
    const bool votes =
        std::any_of(members.members.begin(), members.members.end(),
                    [id = id](const Member& member) { return member.id == id && member.voter; });
    if (!votes || !peer.recently_active || peer.rejoin != 0 || peer.in_snapshot) continue;
    if (!heir || peer.match > match) heir = id, match = peer.match;
  }
  if (!heir) return;
  ++counters_.slow_disks_left;
  spdlog::error(
      "node {}: a write to the log under {} has not come back for {} ms: the role is offered to "
      "node {}. Look at this node's disk",
      options_.raft.self.value(), options_.dir,
      std::chrono::duration_cast<std::chrono::milliseconds>(now - *persisting_since_).count(),
      heir.value());
  Output out;
  const Status begun = core_->transfer_leadership(heir, now, out);
  if (!begun) spdlog::warn("raft: {}", begun.error().message());
  obey(std::move(out));
}

/// While the state waits for room, the log leaves it what there is: only a flush lets the log be
/// cut, so a log that took the last of it would stop both. What does not fit after a while will not
/// fit by waiting; then the log goes on, since others may need this node's vote for what they
/// remove.
asio::awaitable<void> RaftNode::leave_room_to_state() {
  while (state_stalled_ && running() && env_.now() - state_stalled_at_ < kLogYields) {
    (void)co_await env_.sleep_for(kFullRetry);
  }
}

/// Waits while the disk is full. What is staged meanwhile goes with the next attempt.
Task<DurableLog::Persisted> RaftNode::persist() {
  co_await leave_room_to_state();
  for (;;) {
    const auto work = [log = log_] { return log->persist(); };
    const auto done = co_await blocking<DurableLog::Persisted>(env_, work);
    const bool full = !done && done.error() == std::errc::no_space_on_device;
    if (full != log_stalled_ && running()) {
      log_stalled_ = full;
      if (full) {
        ++counters_.stalls;
        spdlog::error("node {}: the disk is full: the log waits for room under {}",
                      options_.raft.self.value(), options_.dir);
      } else {
        spdlog::info("node {}: the log goes on", options_.raft.self.value());
      }
    }
    if (!full || !running()) co_return done;
    (void)co_await env_.sleep_for(kFullRetry);
  }
}

// --- Applying ------------------------------------------------------------------------------------

LogIndex RaftNode::ready_to_apply() const {
  if (installing_ || state_stalled_) return applied_;
  const LogIndex commit = options_.apply_uncommitted ? log_->last_index() : commit_;
  return std::max(applied_, std::min(commit, log_->durable_index()));
}

/// Nobody asks a backup for its state: it applies many entries at once, at the next tick, rather
/// than each before it can store the next.
bool RaftNode::may_apply_later() const {
  return role_ != Role::kPrimary && ready_to_apply().value() - applied_.value() < kApplyLaterMax;
}

/// One batch, now; the rest in further turns of the executor.
void RaftNode::apply_some() {
  if (applying_ || !running()) return;
  const LogIndex ready = ready_to_apply();
  if (applied_ < ready) {
    applying_ = true;
    const Status done = apply_batch(ready);
    applying_ = false;
    if (!done && done.error() == std::errc::no_space_on_device &&
        machine_.applied_index() == applied_) {
      state_stalled_ = true;
      state_stalled_at_ = env_.now();
      ++counters_.stalls;
      spdlog::error("node {}: the disk is full: the state waits for room under {}",
                    options_.raft.self.value(), options_.dir);
      tasks_.spawn("wait for room", wait_for_state_room());
    } else if (!done) {
      return fail("state machine: " + done.error().message());
    }
  }
  if (applied_ < ready_to_apply()) apply_wake_.notify();
  if (applied_bytes_ > options_.flush_bytes) begin_flush();
}

/// A state that can be flushed can be changed again.
asio::awaitable<void> RaftNode::wait_for_state_room() {
  for (;;) {
    (void)co_await env_.sleep_for(kFullRetry);
    if (!running()) co_return;
    const Status done = co_await flush_state();
    if (!running()) co_return;
    if (done) break;
    if (done.error() != std::errc::no_space_on_device) {
      fail("flush: " + done.error().message());
      co_return;
    }
  }
  state_stalled_ = false;
  spdlog::info("node {}: the state goes on", options_.raft.self.value());
  apply_wake_.notify();
}

asio::awaitable<void> RaftNode::apply_loop() {
  while (running()) {
    const std::error_code error = co_await apply_wake_.wait();
    if (error) co_return;
    apply_some();
    tell_role();
    check_reads();
  }
}

Status RaftNode::apply_batch(LogIndex up_to) {
  FM_TRY(const auto entries, log_->read(applied_.next(), up_to, options_.apply_bytes_max));
  std::vector<StateMachine::Command> commands;
  for (const LogEntry& entry : entries) {
    applied_bytes_ += entry.data->size() + sizeof entry;
    if (entry.kind != EntryKind::kCommand) continue;
    commands.push_back({.index = entry.index, .term = entry.term, .data = entry.data});
  }
  const LogIndex last = entries.back().index;
  FM_TRY(auto results, machine_.apply(commands, last));
  FM_ASSERT(results.size() == commands.size());
  const LogIndex reached = machine_.applied_index();
  FM_ASSERT(reached > applied_ && reached <= last);
  applied_ = reached;
  ++counters_.apply_batches;
  std::size_t next = 0;
  for (const LogEntry& entry : entries) {
    if (entry.index > reached) break;
    counters_.applied_commands += entry.kind == EntryKind::kCommand ? 1 : 0;
    resolve(entry, entry.kind == EntryKind::kCommand ? std::move(results[next++]) : std::string());
  }
  return {};
}

void RaftNode::resolve(const LogEntry& entry, std::string result) {
  const auto found = proposals_.find(entry.index);
  if (found == proposals_.end()) return;
  const auto proposal = std::move(found->second);
  proposals_.erase(found);
  release_room(proposal->bytes);
  // Another term's entry in its place: what was proposed there can never be committed.
  if (proposal->term != entry.term) return proposal->finish(Errc::kNotPrimary);
  proposal->finish(Outcome{.index = entry.index, .result = std::move(result)});
}

}  // namespace fermata::serverd
