// A RaftNode's start, and what keeps its log short: flush, compaction, snapshots made, served,
// fetched.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "common/base/assert.h"
#include "common/wire/raft_codec.h"
#include "serverd/raft/raft_node_impl.h"

namespace fermata::serverd {
namespace asio = boost::asio;

namespace {

constexpr Duration kBusyPoll = std::chrono::milliseconds(5);
constexpr Duration kFlushRetry = std::chrono::seconds(1);
constexpr Duration kFlushToSpare = std::chrono::seconds(4);
constexpr Duration kFetcherPatience = std::chrono::minutes(1);
constexpr Duration kNoRoomRetry =
    std::chrono::seconds(10);  // between looks for room for a snapshot
/// Of the log, while room is spared: a node that was away for a moment shall need no snapshot, for
/// which it has no room either.
constexpr std::uint64_t kSpareTrailingBytes = 8 << 20;

/// No members: a node that waits to be added.
Result<Membership> decode_or_empty(const std::string& bytes) {
  if (bytes.empty()) return Membership();
  return decode_membership(as_bytes(bytes));
}

bool names_are_safe(const SnapshotDescriptor& snapshot) {
  for (const auto& file : snapshot.files) {
    if (file.name.empty() || file.name == "." || file.name == "..") return false;
    if (file.name.find('/') != std::string::npos || file.name.find('\0') != std::string::npos)
      return false;
  }
  return true;
}

}  // namespace

// --- Start ---------------------------------------------------------------------------------------

Task<void> RaftNode::start(std::string* why) {
  FM_CO_CHECK(co_await open(why));
  FM_CO_CHECK(co_await fit_log_to_state(why));
  const auto base_members = decode_or_empty(log_->base_membership());
  if (!base_members) {
    *why = options_.dir + "/log: the membership at the log's base cannot be decoded";
    co_return Errc::kCorruptLog;
  }
  applied_ = machine_.applied_index();
  commit_ = applied_;
  core_.emplace(options_.raft, log_->hard_state(), *base_members, applied_, *log_, env_.now());
  told_members_ = core_->membership();
  transport_.set_members(told_members_);
  role_ = told_role_ = core_->role();
  role_term_ = told_term_ = core_->term();
  machine_.on_role(role_, role_term_);
  if (core_->rejoining()) {
    spdlog::warn(
        "node {}: rejoins after the loss of its log: no vote until it has everything again",
        options_.raft.self.value());
  }
  tasks_.spawn("raft ticks", guarded("raft ticks", tick_loop()));
  tasks_.spawn("raft persist", guarded("raft persist", persist_loop()));
  tasks_.spawn("raft apply", guarded("raft apply", apply_loop()));
  co_return Status();
}

Task<void> RaftNode::open(std::string* why) {
  struct Opened {
    std::shared_ptr<DurableLog> log;
    std::string why;
  };
  DurableLogOptions log_options{.dir = options_.dir + "/log",
                                .cluster = options_.cluster,
                                .group = options_.raft.group,
                                .self = options_.raft.self,
                                .first_membership = options_.first_members.members.empty()
                                                        ? std::string()
                                                        : encode_membership(options_.first_members),
                                .rejoining = options_.rejoining,
                                .segment_bytes = options_.segment_bytes,
                                .cache_bytes = options_.log_cache_bytes,
                                .make_room = options_.make_room};
  auto opened = std::make_shared<Opened>();
  const auto work = [opened, log_options = std::move(log_options), disk = &env_.disk(),
                     snapshots = snapshots_]() -> Status {
    auto log = DurableLog::open(*disk, log_options, opened->why);
    if (!log) return log.error();
    opened->log = std::move(*log);
    const Status ready = snapshots->open();
    if (!ready) opened->why = "snapshots: " + ready.error().message();
    return ready;
  };
  const Status done = co_await blocking<void>(env_, work);
  if (!done) {
    *why = opened->why;
    co_return done.error();
  }
  log_ = opened->log;
  co_return Status();
}

/// Completes an interrupted install, then checks that the state stands inside the log.
Task<void> RaftNode::fit_log_to_state(std::string* why) {
  const LogIndex applied = machine_.applied_index();
  const auto work = [log = log_, snapshots = snapshots_, applied]() -> Status {
    FM_TRY(const auto note, snapshots->interrupted_install());
    if (!note) return {};
    // The state machine replaces its state whole or not at all, and so says whether it did.
    if (applied >= note->index) {
      FM_CHECK(log->reset(note->index, note->term, encode_membership(note->membership)));
    }
    return snapshots->end_install();
  };
  const Status done = co_await blocking<void>(env_, work);
  if (!done) {
    *why = options_.dir +
           "/snapshots: an interrupted install cannot be completed: " + done.error().message();
    co_return done.error();
  }
  log_->finish_reset();
  const std::string state = "the state stands at entry " + std::to_string(applied.value());
  const std::string advice =
      "; keep a copy of the directory, then empty it and start this node with --init --rejoin";
  if (applied < log_->base_index()) {
    *why = state + " but the log begins at " + std::to_string(log_->first_index().value()) +
           ": the entries between are missing" + advice;
    co_return Errc::kCorruptLog;
  }
  if (applied > log_->last_index()) {
    *why = state + " but the log ends at " + std::to_string(log_->last_index().value()) +
           ": it has lost entries" + advice;
    co_return Errc::kCorruptLog;
  }
  co_return Status();
}

// --- Flush and compaction ------------------------------------------------------------------------

void RaftNode::begin_flush() {
  if (flushing_ || installing_ || state_stalled_ || !running()) return;
  flushing_ = true;
  flushed_at_ = env_.now();
  applied_bytes_ = 0;
  tasks_.spawn("flush and compact", flush_and_compact());
}

/// While the disk is short of room, whoever calls this again and again keeps the log short.
void RaftNode::spare_room(bool spare) {
  constexpr std::size_t kWorthwhile = 64 << 10;  // of new records
  spare_room_ = spare;
  // Now and then in any case: a state whose own upkeep met the full disk goes on with the next one.
  const bool due = env_.now() - flushed_at_ > kFlushToSpare;
  if (spare && (due || applied_bytes_ > kWorthwhile)) begin_flush();
}

std::uint64_t RaftNode::trailing_bytes() const {
  return spare_room_ ? std::min(options_.trailing_bytes / 2, kSpareTrailingBytes)
                     : options_.trailing_bytes;
}

/// Up to where the log may go as far as the state has it for sure and peers that are behind are
/// concerned. With `part` 2, 3, ... only that part of what is kept for them would be.
LogIndex RaftNode::not_kept(std::uint64_t part) const {
  const std::uint64_t durable = std::min(machine_.durable_index(), applied_).value();
  return std::max(LogIndex(durable - std::min(durable, options_.trailing_entries / part)),
                  std::min(log_->index_keeping(trailing_bytes() / part), LogIndex(durable)));
}

bool RaftNode::trails(NodeId id) const {
  const auto peer = core_->progress().find(id);
  if (peer == core_->progress().end()) return false;
  const LogIndex match = peer->second.match;
  const bool catches_up = peer->second.recently_active && !peer->second.in_snapshot &&
                          match.next() >= log_->first_index();
  return catches_up && match < not_kept(2);
}

asio::awaitable<void> RaftNode::flush_and_compact() {
  const Status done = co_await do_flush_and_compact();
  if (!done && done.error() == std::errc::no_space_on_device) {
    // Nothing is lost but time: the log is longer than it should be.
    spdlog::warn("node {}: no room to flush the state under {}; it is tried again",
                 options_.raft.self.value(), options_.dir);
    (void)co_await env_.sleep_for(kFlushRetry);
    applied_bytes_ = std::max(applied_bytes_, options_.flush_bytes + 1);
    flushing_ = false;
    co_return;
  }
  flushing_ = false;
  if (!done) fail("flush or compaction: " + done.error().message());
}

/// ENOSPC only when nothing can be given back any more.
Task<void> RaftNode::flush_state() {
  const auto flush = [machine = &machine_, make_room = options_.make_room]() -> Status {
    Status done = machine->flush();
    while (!done && done.error() == std::errc::no_space_on_device && make_room && make_room()) {
      done = machine->flush();
    }
    return done;
  };
  co_return co_await blocking<void>(env_, flush);
}

Task<void> RaftNode::do_flush_and_compact() {
  FM_CO_CHECK(co_await flush_state());
  ++counters_.flushes;
  const LogIndex up_to = compaction_limit();
  if (!running() || up_to <= log_->base_index()) co_return Status();
  FM_CO_TRY(auto membership, log_->membership_at(up_to));
  log_->forget(up_to, std::move(membership));
  const auto compact = [log = log_] { return log->compact(); };
  FM_CO_CHECK(co_await blocking<void>(env_, compact));
  ++counters_.compactions;
  co_return Status();
}

/// Up to where the log may go: what the state has for sure, less some for slow peers, and nothing
/// that a peer will need after the snapshot that it is fetching.
LogIndex RaftNode::compaction_limit() const {
  if (making_snapshot_) return LogIndex();
  const LogIndex limit = not_kept(1);
  return snapshot_is_needed() ? std::min(limit, snapshot_->index) : limit;
}

/// A peer is told to fetch it, and either lives or has asked for a piece lately: one that died in
/// the middle must not make the log grow for ever, nor one that has no room for it fill this disk.
bool RaftNode::snapshot_is_needed() const {
  if (!snapshot_) return false;
  const Duration age = env_.now() - snapshot_used_;
  if (spare_room_ && age >= kSnapshotIdleShort) return false;
  const bool used = age < kFetcherPatience;
  return std::any_of(core_->progress().begin(), core_->progress().end(), [&](const auto& peer) {
    return peer.second.in_snapshot && (used || peer.second.recently_active);
  });
}

// --- Snapshots for peers -------------------------------------------------------------------------

void RaftNode::want_snapshot(NodeId peer) {
  if (snapshot_ && snapshot_->index.next() >= log_->first_index()) {
    if (!spare_room_) snapshot_used_ = env_.now();
    Output out;
    core_->send_snapshot(peer, *snapshot_, env_.now(), out);
    return obey(std::move(out));
  }
  snapshot_wanted_.push_back(peer);
  if (making_snapshot_ || installing_) return;
  making_snapshot_ = true;
  tasks_.spawn("make snapshot", make_snapshot());
}

asio::awaitable<void> RaftNode::make_snapshot() {
  const Status done = co_await do_make_snapshot();
  making_snapshot_ = false;
  const auto wanted = std::exchange(snapshot_wanted_, {});
  if (!running()) co_return;
  if (!done) {
    spdlog::error("snapshot: {}; the peers that need it are asked again later",
                  done.error().message());
    co_return;
  }
  for (const NodeId peer : wanted) want_snapshot(peer);
}

Task<void> RaftNode::do_make_snapshot() {
  const std::uint64_t id = env_.random().next() | 1;
  const std::uint64_t old = snapshot_ ? snapshot_->id : 0;
  snapshot_.reset();
  const auto work = [snapshots = snapshots_, machine = &machine_, id,
                     old]() -> Result<SnapshotDescriptor> {
    if (old != 0) FM_CHECK(snapshots->remove(old));
    auto made = snapshots->make(*machine, id);
    if (!made) (void)snapshots->remove(id);
    return made;
  };
  FM_CO_TRY(auto made, co_await blocking<SnapshotDescriptor>(env_, work));
  const auto term = log_->term_at(made.index);
  if (!term) co_return Errc::kTruncatedHistory;
  FM_CO_TRY(const auto members, log_->membership_at(made.index));
  FM_CO_TRY(made.membership, decode_or_empty(members));
  made.term = *term;
  ++counters_.snapshots_made;
  snapshot_ = std::move(made);
  snapshot_used_ = env_.now();
  co_return Status();
}

asio::awaitable<void> RaftNode::drop_idle_snapshot() {
  if (snapshot_is_needed()) co_return;
  const std::uint64_t id = snapshot_->id;
  snapshot_.reset();
  const auto work = [snapshots = snapshots_, id] { return snapshots->remove(id); };
  const Status done = co_await blocking<void>(env_, work);
  if (!done) spdlog::warn("snapshot: an old one cannot be removed: {}", done.error().message());
}

Task<Buffer> RaftNode::read_snapshot_file(std::uint64_t id, std::string file,
                                          std::uint64_t offset_bytes, std::uint32_t size_bytes) {
  if (!running()) co_return Errc::kShuttingDown;
  if (!snapshot_ || snapshot_->id != id) co_return std::errc::no_such_file_or_directory;
  snapshot_used_ = env_.now();
  const auto work = [snapshots = snapshots_, id, file = std::move(file), offset_bytes, size_bytes] {
    return snapshots->read(id, file, offset_bytes, size_bytes);
  };
  co_return co_await blocking<Buffer>(env_, work);
}

// --- A snapshot from a peer ----------------------------------------------------------------------

asio::awaitable<void> RaftNode::fetch_snapshot(SnapshotDescriptor snapshot, NodeId from) {
  Status done = co_await fetch_files(snapshot, from);
  if (!done && done.error() == std::errc::no_space_on_device) {
    spdlog::warn("node {}: no room for a snapshot of node {}; it is tried again",
                 options_.raft.self.value(), from.value());
    (void)co_await env_.sleep_for(kNoRoomRetry);
  }
  if (done) done = co_await install(snapshot);
  installing_ = false;
  if (!running()) co_return;
  Output out;
  if (done) {
    ++counters_.snapshots_installed;
    spdlog::info("node {}: installed the snapshot at entry {} of node {}",
                 options_.raft.self.value(), snapshot.index.value(), from.value());
    log_->finish_reset();
    applied_ = snapshot.index;
    commit_ = std::max(commit_, applied_);
    core_->on_snapshot_installed(snapshot, env_.now(), out);
  } else {
    ++counters_.snapshot_fetches_failed;
    spdlog::warn("node {}: fetching a snapshot from node {} failed: {}; what came is kept",
                 options_.raft.self.value(), from.value(), done.error().message());
    core_->on_snapshot_failed(snapshot, env_.now(), out);
  }
  obey(std::move(out));
}

Task<void> RaftNode::fetch_files(SnapshotDescriptor snapshot, NodeId from) {
  if (!names_are_safe(snapshot)) co_return Errc::kBadMessage;
  const auto begin = [snapshots = snapshots_, snapshot] {
    return snapshots->begin_fetch(snapshot);
  };
  FM_CO_CHECK(co_await blocking<void>(env_, begin));
  FM_CO_CHECK(co_await check_room(snapshot));
  for (const auto& file : snapshot.files) FM_CO_CHECK(co_await fetch_file(snapshot.id, file, from));
  // Also for the installation, which has no way back.
  co_return co_await check_room(snapshot);
}

/// ENOSPC unless what is still to come of it leaves the log room to go on.
Task<void> RaftNode::check_room(const SnapshotDescriptor& snapshot) {
  if (!options_.room_for) co_return Status();
  const auto look = [snapshots = snapshots_, snapshot]() -> Result<std::uint64_t> {
    std::uint64_t missing = 0;
    for (const auto& file : snapshot.files) {
      FM_TRY(const std::uint64_t there, snapshots->fetched_bytes(snapshot.id, file));
      missing += file.size_bytes - there;
    }
    return missing;
  };
  FM_CO_TRY(const std::uint64_t missing, co_await blocking<std::uint64_t>(env_, look));
  if (!options_.room_for(missing)) co_return std::errc::no_space_on_device;
  co_return Status();
}

Task<void> RaftNode::fetch_file(std::uint64_t id, SnapshotDescriptor::File file, NodeId from) {
  for (int round = 0;; ++round) {
    const auto look = [snapshots = snapshots_, id, file] {
      return snapshots->fetched_bytes(id, file);
    };
    FM_CO_TRY(std::uint64_t offset, co_await blocking<std::uint64_t>(env_, look));
    int failures = 0;
    while (offset < file.size_bytes) {
      auto piece = co_await transport_.read_snapshot(from, id, file.name, offset,
                                                     SnapshotStore::kPieceBytes);
      if (!running()) co_return Errc::kShuttingDown;
      if (!piece || piece->empty()) {
        const std::error_code error = piece ? from_errno(EIO) : piece.error();
        if (error == std::errc::no_such_file_or_directory || ++failures >= options_.fetch_attempts)
          co_return error;
        (void)co_await env_.sleep_for(options_.fetch_retry);
        continue;
      }
      failures = 0;
      const std::uint64_t size = piece->size();
      if (size > file.size_bytes - offset) co_return Errc::kBadMessage;
      const auto write = [snapshots = snapshots_, id, name = file.name, offset, piece = *piece] {
        return snapshots->write(id, name, offset, piece.view());
      };
      FM_CO_CHECK(co_await blocking<void>(env_, write));
      offset += size;
      counters_.snapshot_bytes_fetched += size;
    }
    const auto check = [snapshots = snapshots_, id, file] {
      return snapshots->check_file(id, file);
    };
    const Status checked = co_await blocking<void>(env_, check);
    // A part that a crash garbled is found only now: once more from its start.
    if (checked || checked.error() != Errc::kHashMismatch || round > 0) co_return checked;
  }
}

/// On success the disk has the new state and an empty log; the caller tells the memory and the
/// core.
Task<void> RaftNode::install(SnapshotDescriptor snapshot) {
  installing_ = true;
  while (running() && (flushing_ || making_snapshot_)) (void)co_await env_.sleep_for(kBusyPoll);
  if (!running()) co_return Errc::kShuttingDown;
  const auto begin = [snapshots = snapshots_, snapshot] {
    return snapshots->begin_install(snapshot);
  };
  FM_CO_CHECK(co_await blocking<void>(env_, begin));
  // From here on there is no way back.
  const auto work = [snapshots = snapshots_, snapshot, machine = &machine_,
                     log = log_]() -> Status {
    FM_CHECK(machine->install(snapshots->incoming_path(snapshot.id)));
    FM_CHECK(log->reset(snapshot.index, snapshot.term, encode_membership(snapshot.membership)));
    return snapshots->end_install();
  };
  const Status done = co_await blocking<void>(env_, work);
  if (!done) {
    fail("installing a snapshot: " + done.error().message());
  } else if (machine_.applied_index() != snapshot.index) {
    fail("the installed snapshot stands at entry " +
         std::to_string(machine_.applied_index().value()) + ", not at its " +
         std::to_string(snapshot.index.value()));
  }
  co_return running() ? Status() : Status(Errc::kShuttingDown);
}

}  // namespace fermata::serverd
