#include "test/sim/raft/sim_cluster.h"

#include <cstdio>

#include "common/wire/raft_codec.h"

namespace fermata::test {
namespace {

serverd::RaftMutation core_mutation(Mutation mutation) {
  using serverd::RaftMutation;
  switch (mutation) {
    case Mutation::kNone:
      return RaftMutation::kNone;
    case Mutation::kVoteTwice:
      return RaftMutation::kVoteTwice;
    case Mutation::kVoteForOldLog:
      return RaftMutation::kVoteForOldLog;
    case Mutation::kVoteDuringLease:
      return RaftMutation::kVoteDuringLease;
    case Mutation::kCommitBeforeQuorum:
      return RaftMutation::kCommitBeforeQuorum;
    case Mutation::kCommitOldTermByCounting:
      return RaftMutation::kCommitOldTerm;
    case Mutation::kServeReadsWithoutLease:
      return RaftMutation::kReadWithoutLease;
    case Mutation::kIgnoreTerm:
      return RaftMutation::kIgnoreTerm;
    case Mutation::kTruncateCommitted:
      return RaftMutation::kTruncateCommitted;
    case Mutation::kManyMemberships:
      return RaftMutation::kManyMemberships;
    case Mutation::kKeepTruncatedMembers:
      return RaftMutation::kKeepTruncatedMembers;
    case Mutation::kLeaseDuringTransfer:
      return RaftMutation::kLeaseDuringTransfer;
    default:
      return RaftMutation::kElsewhere;
  }
}

}  // namespace

SimCluster::SimCluster(std::uint64_t seed, const RaftSimOptions& options)
    : options_(options), random_(seed) {
  raft_options_.heartbeat_interval = std::chrono::milliseconds(50);
  raft_options_.election_timeout_min = std::chrono::milliseconds(300);
  raft_options_.clock_drift_max = std::chrono::milliseconds(30);
  raft_options_.append_bytes_max = random_.chance(1, 2) ? 40 : 1 << 20;
  raft_options_.inflight_max = random_.chance(1, 3) ? 1 + random_.below(3) : 64;
  raft_options_.mutation = core_mutation(options.mutation);
  if (random_.chance(1, 8)) codec_per_mille_ = 200;

  unsigned members = options.members;
  if (members == 0) {
    const auto dice = random_.below(16);
    members = dice == 0 ? 1 : dice == 1 ? 2 : dice < 12 ? 3 : 5;
  }
  Membership first;
  for (unsigned i = 1; i <= members; ++i) {
    first.members.push_back({NodeId(i), "node" + std::to_string(i) + ":1", true});
  }
  for (unsigned i = 1; i <= members + options.spares; ++i) {
    auto node = std::make_unique<SimNode>();
    node->id = NodeId(i);
    node->clock_ppm = static_cast<std::int64_t>(random_.below(60'001)) - 30'000;
    node->clock_offset = static_cast<SimTime>(random_.below(3600)) * kSecond;
    if (i <= members) node->first_membership = first;
    nodes_.push_back(std::move(node));
  }
  for (auto& node : nodes_) start(*node);
}

TimePoint SimCluster::clock(const SimNode& node) const {
  const SimTime skewed = now_ + now_ / 1000 * node.clock_ppm / 1000;
  return TimePoint(Duration(node.clock_offset + skewed));
}

void SimCluster::schedule(EventKind kind, SimTime delay, std::uint32_t node,
                          std::uint64_t argument) {
  const std::uint64_t incarnation = node == 0 ? 0 : nodes_[node - 1]->incarnation;
  events_.push({now_ + delay, next_order_++, kind, node, incarnation, argument});
}

std::optional<SimCluster::EventKind> SimCluster::step() {
  const Event event = events_.top();
  events_.pop();
  now_ = event.at;
  ++counts_.steps;
  trace_hash_ = mix(trace_hash_, mix(static_cast<std::uint64_t>(event.at),
                                     event.node * 16 + static_cast<std::uint64_t>(event.kind)));
  if (event.node == 0) return event.kind;
  on_event(*nodes_[event.node - 1], event);
  check_reads();
  return std::nullopt;
}

void SimCluster::on_event(SimNode& node, const Event& event) {
  if (event.kind == EventKind::kMessage) {  // outlives the receiver's crash
    auto found = on_the_way_.extract(event.argument);
    if (!node.up() || blocked_.contains({found.mapped().from, node.id})) {
      ++counts_.dropped;
      return;
    }
    Output out;
    node.core->receive(found.mapped(), clock(node), out);
    return carry_out(node, std::move(out));
  }
  if (!node.up() || event.incarnation != node.incarnation) return;
  if (event.kind == EventKind::kPersisted) return on_written(node);
  if (event.kind == EventKind::kFetched) return on_fetched(node);
  if (event.at != node.tick_at) return;  // another tick was scheduled for earlier
  node.tick_at = 0;
  Output out;
  node.core->tick(clock(node), out);
  carry_out(node, std::move(out));
}

void SimCluster::schedule_tick(SimNode& node) {
  const SimTime wait = (node.core->next_tick() - clock(node)).count();
  // A clock may be slow: it is asked again until it agrees.
  const SimTime at = now_ + std::max<SimTime>(wait, 100 * kMicrosecond);
  if (node.tick_at > now_ && node.tick_at <= at) return;
  node.tick_at = at;
  schedule(EventKind::kTick, at - now_, node.id.value());
}

// ---- the driver

/// Obeys an Output as the contract in raft_core.h says (or as the mutation does not).
void SimCluster::carry_out(SimNode& node, Output out) {
  bool truncated = false;
  for (const LogEntry& entry : out.append) {
    if (entry.index <= node.log.last_index()) {
      truncated = true;
      ++counts_.truncations;
      trace(node, "truncates at", entry.index.value());
      for (LogIndex i = entry.index; i <= node.log.last_index(); i = i.next()) {
        if (i < node.log.first_index()) continue;
        if (node.log.entry(i).kind == EntryKind::kMembership) ++counts_.memberships_reverted;
      }
      if (entry.index <= node.commit) {
        checker_.fail("a committed entry is truncated on node " + std::to_string(node.id.value()));
        return;
      }
    }
    if (!node.log.append(entry)) return checker_.fail("an append leaves a gap");
    checker_.on_append(node.id, node.log, entry.index);
  }
  if (truncated) check_membership(node);
  if (out.fetch_snapshot) {
    node.fetching = out.fetch_snapshot;
    node.fetching_from = out.fetch_from;
    schedule(EventKind::kFetched,
             kMillisecond + static_cast<SimTime>(random_.below(400 * kMillisecond)),
             node.id.value());
  }
  for (RaftMessage& message : out.messages) send(std::move(message));
  if (options_.mutation == Mutation::kAckBeforePersist) {
    for (RaftMessage& message : out.messages_after_persist) send(std::move(message));
    out.messages_after_persist.clear();
  }
  if (out.needs_persist() || !out.messages_after_persist.empty()) {
    node.jobs.push_back({out.sequence, out.hard_state, std::move(out.append),
                         std::move(out.messages_after_persist)});
    start_write(node);
  }
  check_role(node);
  check_commit(node);
  apply(node);
  for (const NodeId peer : out.wants_snapshot) {
    const bool recent = node.disk_snapshot.descriptor.index.next() >= node.log.first_index() &&
                        node.disk_snapshot.descriptor.index;
    const SimSnapshot& snapshot =
        recent && random_.chance(2, 3) ? node.disk_snapshot : take_snapshot(node);
    if (!snapshot.descriptor.index) continue;
    Output more;
    node.core->send_snapshot(peer, snapshot.descriptor, clock(node), more);
    for (RaftMessage& message : more.messages) send(std::move(message));
  }
  schedule_tick(node);
}

void SimCluster::send(RaftMessage message) {
  ++counts_.messages;
  if (message.kind == RaftKind::kTimeoutNow) ++counts_.transfers;
  if (message.kind == RaftKind::kVote && message.transfer) ++counts_.transfer_votes;
  if (message.to.value() == 0 || message.to.value() > nodes_.size()) return;
  if (blocked_.contains({message.from, message.to}) ||
      random_.chance(weather_.drop_per_mille, 1000)) {
    ++counts_.dropped;
    return;
  }
  if (codec_per_mille_ > 0 && random_.chance(codec_per_mille_, 1000)) {
    ++counts_.through_codec;
    auto decoded = decode_raft_message(as_bytes(encode(message)));
    if (!decoded) return checker_.fail("the codec refuses what it encoded");
    message = std::move(*decoded);
  }
  const int copies = random_.chance(weather_.duplicate_per_mille, 1000) ? 2 : 1;
  counts_.duplicated += static_cast<std::uint64_t>(copies - 1);
  for (int i = 0; i < copies; ++i) {
    SimTime delay =
        weather_.delay_min +
        static_cast<SimTime>(random_.below(static_cast<std::uint64_t>(weather_.delay_span)));
    if (random_.chance(weather_.slow_per_mille, 1000)) {
      delay += static_cast<SimTime>(random_.below(kSecond));
    }
    const std::uint64_t id = next_order_;
    schedule(EventKind::kMessage, delay, message.to.value(), id);
    on_the_way_.emplace(id, i + 1 < copies ? message : std::move(message));
    if (i + 1 == copies) break;
  }
}

void SimCluster::start_write(SimNode& node) {
  if (node.jobs_in_write > 0 || node.jobs.empty()) return;
  node.jobs_in_write = node.jobs.size();  // group commit: one sync for all of them
  SimTime latency = 100 * kMicrosecond + static_cast<SimTime>(random_.below(2 * kMillisecond));
  if (random_.chance(weather_.disk_stall_per_mille, 1000)) {
    latency += static_cast<SimTime>(random_.below(300 * kMillisecond));
  }
  schedule(EventKind::kPersisted, latency, node.id.value());
}

void SimCluster::write_job(SimNode& node, const SimNode::Job& job) {
  if (job.hard_state && options_.mutation != Mutation::kSkipHardStateSync) {
    if (node.disk_hard.rejoining && !job.hard_state->rejoining) {
      ++counts_.rejoined;
      node.lost_disk = false;
    }
    node.disk_hard = *job.hard_state;
  }
  if (options_.mutation == Mutation::kSkipLogSync) return;
  for (const LogEntry& entry : job.append) {
    if (!node.disk_log.append(entry)) checker_.fail("a write leaves a gap on disk");
  }
}

void SimCluster::on_written(SimNode& node) {
  std::uint64_t sequence = 0;
  std::vector<RaftMessage> after;
  for (; node.jobs_in_write > 0; --node.jobs_in_write) {
    SimNode::Job& job = node.jobs.front();
    write_job(node, job);
    sequence = job.sequence;
    for (RaftMessage& message : job.after) after.push_back(std::move(message));
    node.jobs.pop_front();
  }
  for (RaftMessage& message : after) send(std::move(message));
  Output out;
  node.core->on_persisted(sequence, clock(node), out);
  carry_out(node, std::move(out));
  start_write(node);
}

void SimCluster::on_fetched(SimNode& node) {
  if (!node.jobs.empty()) return schedule(EventKind::kFetched, kMillisecond, node.id.value());
  const SnapshotDescriptor descriptor = std::move(*node.fetching);
  node.fetching.reset();
  Output out;
  const bool reachable =
      this->node(node.fetching_from).up() && !blocked_.contains({node.fetching_from, node.id});
  const auto found = snapshots_.find(descriptor.id);
  if (!reachable || found == snapshots_.end() || random_.chance(1, 10)) {
    ++counts_.snapshots_failed;
    node.core->on_snapshot_failed(descriptor, clock(node), out);
    return carry_out(node, std::move(out));
  }
  const SimSnapshot& snapshot = found->second;
  const LogIndex index = snapshot.descriptor.index;
  if (index <= node.applied) checker_.fail("a snapshot takes the applied state back");
  checker_.on_install(node.id, index, snapshot.chain);
  trace(node, "installs a snapshot", index.value());
  ++counts_.snapshots_installed;
  node.disk_snapshot = snapshot;
  node.disk_log.reset(index, snapshot.descriptor.term, snapshot.chain);
  node.log = node.disk_log;
  node.applied = node.commit = index;
  node.applied_chain = snapshot.chain;
  node.applied_membership = snapshot.descriptor.membership;
  node.core->on_snapshot_installed(descriptor, clock(node), out);
  carry_out(node, std::move(out));
}

void SimCluster::apply(SimNode& node) {
  LogIndex to = std::min(node.core->commit(), node.core->durable_index());
  if (options_.mutation == Mutation::kApplyBeforeCommit) to = node.core->durable_index();
  while (node.applied < to && !checker_.failed()) {
    const LogIndex index = node.applied.next();
    if (index < node.log.first_index() || index > node.log.last_index()) {
      return checker_.fail("an entry to be applied is not in the log");
    }
    checker_.on_apply(node.id, node.core->term(), node.log, index);
    const LogEntry& entry = node.log.entry(index);
    if (entry.kind == EntryKind::kMembership) {
      auto decoded = decode_membership(as_bytes(*entry.data));
      if (decoded) node.applied_membership = std::move(*decoded);
      if (node.is_primary()) ++counts_.membership_changes;
    }
    node.applied = index;
    node.applied_chain = *node.log.chain_at(index);
    while (!node.waiting.empty() && node.waiting.front().index <= index) {
      const auto waiting = node.waiting.front();
      node.waiting.pop_front();
      if (waiting.index != index || waiting.term != entry.term) continue;  // lost to another
      ++counts_.acknowledged;
      checker_.on_acknowledge(index);
    }
  }
}

const SimSnapshot& SimCluster::take_snapshot(SimNode& node) {
  const LogIndex index = node.applied;
  if (index == node.disk_snapshot.descriptor.index) return node.disk_snapshot;
  SimSnapshot snapshot;
  snapshot.descriptor.index = index;
  snapshot.descriptor.term = *node.log.term_at(index);
  snapshot.descriptor.membership = node.applied_membership;
  snapshot.descriptor.files.push_back({"state", index.value(), 0});
  snapshot.descriptor.id = snapshots_.size() + 1;
  snapshot.chain = node.applied_chain;
  snapshots_.emplace(snapshot.descriptor.id, snapshot);
  node.disk_snapshot = snapshot;
  return node.disk_snapshot;
}

// ---- what may befall a node

void SimCluster::start(SimNode& node) {
  ++node.incarnation;
  node.log = node.disk_log;
  node.applied = node.commit = node.disk_snapshot.descriptor.index;
  node.applied_chain = node.disk_snapshot.chain;
  node.applied_membership =
      node.applied ? node.disk_snapshot.descriptor.membership : node.first_membership;
  RaftOptions options = raft_options_;
  options.self = node.id;
  options.seed = random_.next();
  TimePoint now = clock(node);
  if (options_.mutation == Mutation::kForgetLeaseAtRestart) now -= std::chrono::seconds(10);
  node.core.emplace(options, node.disk_hard, node.applied_membership,
                    std::min(node.applied, node.log.last_index()), node.log, now);
  node.tick_at = 0;
  trace(node, "starts");
  schedule_tick(node);
}

/// Loses memory, and of the writes on the way to the disk any suffix: the last one that survives
/// may do so in part.
void SimCluster::crash(SimNode& node) {
  if (!node.up()) return;
  trace(node, "crashes");
  ++counts_.crashes;
  std::size_t units = 0;
  for (std::size_t i = 0; i < node.jobs_in_write; ++i) units += 1 + node.jobs[i].append.size();
  std::size_t survive = random_.below(units + 1);
  for (std::size_t i = 0; i < node.jobs.size(); ++i) {
    SimNode::Job& job = node.jobs[i];
    if (!job.hard_state && job.append.empty()) continue;
    const std::size_t size = 1 + job.append.size();
    if (i >= node.jobs_in_write || survive == 0) {
      ++counts_.lost_writes;
      break;
    }
    if (survive < size) {
      ++counts_.torn_tails;
      job.append.resize(survive - 1);
      write_job(node, job);
      break;
    }
    survive -= size;
    write_job(node, job);
  }
  node.core.reset();
  node.jobs.clear();
  node.jobs_in_write = 0;
  node.waiting.clear();
  node.reading.clear();
  node.fetching.reset();
  ++node.incarnation;
}

void SimCluster::lose_disk(SimNode& node) {
  crash(node);
  trace(node, "loses its disk");
  ++counts_.disks_lost;
  node.lost_disk = true;
  node.disk_hard = HardState{};
  node.disk_hard.rejoining = options_.mutation != Mutation::kForgetLostDisk;
  node.disk_log = SimLog();
  node.disk_snapshot = SimSnapshot();
  start(node);
}

void SimCluster::compact(SimNode& node) {
  if (!node.up() || node.fetching || node.applied < node.log.first_index()) return;
  const SimSnapshot& snapshot = take_snapshot(node);
  const std::uint64_t keep = random_.chance(1, 2) ? 0 : random_.below(30);
  const std::uint64_t at = snapshot.descriptor.index.value();
  const LogIndex to(at > keep ? at - keep : 0);
  if (to < node.log.first_index()) return;
  ++counts_.compactions;
  trace(node, "compacts to", to.value());
  node.log.compact_to(to);
  node.disk_log.compact_to(to);
}

void SimCluster::propose(SimNode& node, unsigned count) {
  if (!node.up()) return;
  Output out;
  for (unsigned i = 0; i < count; ++i) {
    std::string data;
    append_le(data, next_command_++);
    const auto index =
        node.core->propose(std::make_shared<const std::string>(std::move(data)), clock(node), out);
    if (!index) break;
    ++counts_.proposals;
    while (!node.waiting.empty() && node.waiting.back().index >= *index) node.waiting.pop_back();
    node.waiting.push_back({*index, node.core->term()});
  }
  carry_out(node, std::move(out));
}

void SimCluster::read(SimNode& node) {
  if (!node.is_primary()) return;
  if (node.core->may_read(clock(node))) {
    ++counts_.lease_reads;  // check_reads() judges it
    if (random_.chance(3, 4)) return;
  } else {
    ++counts_.reads_refused;
  }
  Output out;
  const auto ticket = node.core->begin_read(clock(node), out);
  if (ticket) node.reading.push_back({*ticket, checker_.acknowledged()});
  carry_out(node, std::move(out));
}

bool SimCluster::change_membership(SimNode& primary, Membership next) {
  Output out;
  const bool was_voter = primary.up();
  const auto index = primary.core->propose_membership(std::move(next), clock(primary), out);
  if (index) trace(primary, "changes the membership at", index->value());
  carry_out(primary, std::move(out));
  return was_voter && index.has_value();
}

bool SimCluster::transfer(SimNode& primary, NodeId to) {
  Output out;
  const auto status = primary.core->transfer_leadership(to, clock(primary), out);
  trace(primary, "transfers to", to.value());
  carry_out(primary, std::move(out));
  return status.has_value();
}

SimNode* SimCluster::primary() {
  SimNode* found = nullptr;
  for (auto& node : nodes_) {
    if (!node->is_primary()) continue;
    if (found == nullptr || node->core->term() > found->core->term()) found = node.get();
  }
  return found;
}

// ---- checks

void SimCluster::check_role(SimNode& node) {
  if (!node.is_primary()) return;
  checker_.on_primary(node.id, node.core->term(), node.log);
}

void SimCluster::check_commit(SimNode& node) {
  const LogIndex commit = node.core->commit();
  if (commit == node.commit) return;
  checker_.on_commit(node.id, node.core->term(), node.log, node.commit, commit);
  trace(node, "commits up to", commit.value());
  node.commit = commit;
  if (!node.is_primary() || checker_.failed()) return;
  const auto chain = node.log.chain_at(commit);
  std::size_t voters = 0;
  std::size_t durable = 0;
  for (const Member& member : node.core->membership().members) {
    if (!member.voter) continue;
    ++voters;
    // What a node acknowledged just before it lost its disk may still be counted: nobody is
    // elected without the others.
    const SimNode& copy = this->node(member.id);
    const SimLog& disk = copy.disk_log;
    if (copy.lost_disk || commit < disk.first_index() || disk.chain_at(commit) == chain) ++durable;
  }
  checker_.on_primary_commit(node.id, node.core->term(), *node.log.term_at(commit), durable,
                             voters);
}

/// In force is the newest membership in the log, also after a truncation.
void SimCluster::check_membership(const SimNode& node) {
  for (LogIndex i = node.log.last_index(); i >= node.log.first_index(); i = i.prev()) {
    const LogEntry& entry = node.log.entry(i);
    if (entry.kind != EntryKind::kMembership) continue;
    const auto decoded = decode_membership(as_bytes(*entry.data));
    if (!decoded || *decoded != node.core->membership()) {
      checker_.fail("membership: node " + std::to_string(node.id.value()) +
                    " does not follow the newest one in its log");
    }
    return;
  }
}

/// Whoever may serve reads now must know of every acknowledged proposal.
void SimCluster::check_reads() {
  const LogIndex acknowledged = checker_.acknowledged();
  for (auto& node : nodes_) {
    if (!node->is_primary()) {
      node->reading.clear();
      continue;
    }
    if (node->core->may_read(clock(*node))) {
      checker_.on_read(node->id, "lease", node->core->read_index(), acknowledged);
    }
    std::erase_if(node->reading, [&](const SimNode::Reading& reading) {
      const auto state = node->core->read_state(reading.ticket);
      if (state == serverd::ReadState::kReady) {
        ++counts_.index_reads;
        checker_.on_read(node->id, "round", reading.ticket.index, reading.needed);
      }
      return state != serverd::ReadState::kWaiting;
    });
  }
}

std::string SimCluster::describe() const {
  std::string text;
  for (const auto& node : nodes_) {
    text += "\n  node " + std::to_string(node->id.value());
    if (!node->up()) {
      text += " down";
      continue;
    }
    const RaftCore& core = *node->core;
    text += std::string(" ") + serverd::to_string(core.role()) + " of term " +
            std::to_string(core.term().value()) + ", log " +
            std::to_string(node->log.first_index().value()) + ".." +
            std::to_string(core.last_index().value()) + ", durable " +
            std::to_string(core.durable_index().value()) + ", commit " +
            std::to_string(core.commit().value()) + ", applied " +
            std::to_string(node->applied.value()) + (node->fetching ? ", fetching" : "") +
            ", members";
    for (const Member& member : core.membership().members) {
      text += " " + std::to_string(member.id.value()) + (member.voter ? "" : " (learner)");
    }
    for (const auto& [id, peer] : core.progress()) {
      text += "; peer " + std::to_string(id.value()) + " match " +
              std::to_string(peer.match.value()) + " next " + std::to_string(peer.next.value()) +
              (peer.in_snapshot ? " in snapshot" : "") + (peer.probing ? " probing" : "");
    }
  }
  return text;
}

void SimCluster::trace(const SimNode& node, const char* what, std::uint64_t value) {
  if (!options_.trace) return;
  std::fprintf(stderr, "%10.3f ms node %u (%s, term %llu) %s %llu\n",
               static_cast<double>(now_) / 1e6, node.id.value(),
               node.up() ? serverd::to_string(node.core->role()) : "down",
               node.up() ? static_cast<unsigned long long>(node.core->term().value()) : 0ULL, what,
               static_cast<unsigned long long>(value));
}

}  // namespace fermata::test
