// The calls of ReplicatedLog: proposals, reads, membership, status.
#include <utility>

#include "common/base/assert.h"
#include "common/wire/raft_codec.h"
#include "serverd/raft/raft_node_impl.h"

namespace fermata::serverd {
namespace asio = boost::asio;

void RaftNode::fail_waiting(std::error_code error) {
  for (const auto& [index, proposal] : std::exchange(proposals_, {})) {
    proposal_bytes_ -= proposal->bytes;
    proposal->finish(Errc::kConnectionLost);  // others may have it in their logs
  }
  const bool role_lost = error == Errc::kConnectionLost;  // a read that got no answer did no harm
  for (const auto& read : std::exchange(reads_, {})) {
    read->finish(role_lost ? make_error_code(Errc::kNotPrimary) : error);
  }
  ticket_.reset();
  for (const auto& waiter : std::exchange(waiting_for_room_, {})) waiter->notify();
}

void RaftNode::release_room(std::size_t bytes) {
  proposal_bytes_ -= bytes;
  if (proposal_bytes_ >= options_.proposal_bytes_max || waiting_for_room_.empty()) return;
  waiting_for_room_.front()->notify();
  waiting_for_room_.pop_front();
}

Task<RaftNode::Outcome> RaftNode::propose(std::string command) {
  if (command.size() > DurableLog::kEntryBytesMax) co_return Errc::kTooLarge;
  // Only in the term of the call: the caller broke the leases of that one.
  const Term term = role_term_;
  while (running() && role_ == Role::kPrimary && proposal_bytes_ >= options_.proposal_bytes_max) {
    auto room = std::make_shared<Waiter>(env_.executor());
    waiting_for_room_.push_back(room);
    const std::error_code error = co_await room->wait();
    if (!error) continue;
    std::erase(waiting_for_room_, room);
    co_return error;
  }
  if (!running()) co_return Errc::kShuttingDown;
  if (role_term_ != term) co_return Errc::kNotPrimary;
  Output out;
  auto data = std::make_shared<const std::string>(std::move(command));
  const std::size_t bytes = data->size() + sizeof(LogEntry);
  const auto index = core_->propose(std::move(data), env_.now(), out);
  if (!index) co_return Errc::kNotPrimary;  // also while another node is told to take over
  auto proposal = std::make_shared<Proposal>(env_.executor());
  proposal->term = core_->term();
  proposal->bytes = bytes;
  proposal_bytes_ += bytes;
  proposals_[*index] = proposal;
  obey(std::move(out));
  // The next in line, if this one left room.
  release_room(0);
  co_return co_await wait_for(std::move(proposal));
}

Task<RaftNode::Outcome> RaftNode::wait_for(std::shared_ptr<Proposal> proposal) {
  while (!proposal->result) {
    const std::error_code error = co_await proposal->done.wait();
    if (error && !proposal->result) co_return error;  // the caller no longer wants to know
  }
  co_return std::move(*proposal->result);
}

Task<void> RaftNode::change_members(Membership next) {
  if (!running()) co_return Errc::kShuttingDown;
  Output out;
  const auto index = core_->propose_membership(std::move(next), env_.now(), out);
  if (!index) {
    obey(std::move(out));
    co_return index.error();
  }
  auto proposal = std::make_shared<Proposal>(env_.executor());
  proposal->term = core_->term();
  proposals_[*index] = proposal;
  obey(std::move(out));
  const auto outcome = co_await wait_for(std::move(proposal));
  if (!outcome) co_return outcome.error();
  co_return Status();
}

Task<void> RaftNode::transfer_leadership(NodeId to) {
  if (!running()) co_return Errc::kShuttingDown;
  Output out;
  const Status begun = core_->transfer_leadership(to, env_.now(), out);
  const Term term = core_->term();
  obey(std::move(out));
  if (!begun) co_return begun.error();
  const TimePoint end = env_.now() + 2 * options_.raft.election_timeout_min;
  while (running() && core_->role() == Role::kPrimary && core_->term() == term) {
    if (env_.now() >= end) co_return Errc::kDeadlineExceeded;
    const std::error_code error = co_await env_.sleep_for(std::chrono::milliseconds(5));
    if (error) co_return error;
  }
  co_return running() ? Status() : Status(Errc::kShuttingDown);
}

// --- Reads ---------------------------------------------------------------------------------------

bool RaftNode::may_read() const {
  return running() && told_role_ == Role::kPrimary && told_term_ == core_->term() &&
         core_->may_read(env_.now()) && applied_ >= core_->read_index();
}

Task<void> RaftNode::read_barrier() {
  if (!running()) co_return Errc::kShuttingDown;
  if (may_read()) co_return Status();
  if (role_ != Role::kPrimary) co_return Errc::kNotPrimary;
  auto read = std::make_shared<Read>(env_.executor());
  reads_.push_back(read);
  check_reads();
  while (!read->result) {
    const std::error_code error = co_await read->done.wait();
    if (!error || read->result) continue;
    std::erase(reads_, read);
    co_return error;
  }
  co_return *read->result;
}

/// True if `read` has come to its end.
bool RaftNode::check_read(Read& read) {
  if (!read.index) {
    const ReadState state =
        read.ticketed && ticket_ ? core_->read_state(*ticket_) : ReadState::kWaiting;
    if (core_->may_read(env_.now())) {
      read.index = core_->read_index();
    } else if (state == ReadState::kReady) {
      read.index = ticket_->index;
    } else if (state == ReadState::kLost || role_ != Role::kPrimary) {
      read.finish(Errc::kNotPrimary);
      return true;
    }
  }
  if (!read.index || applied_ < *read.index) return false;
  read.finish({});
  return true;
}

/// Reads that came while a round was in flight share the next one.
void RaftNode::check_reads() {
  if (checking_reads_) return;
  checking_reads_ = true;
  while (running() && !reads_.empty()) {
    std::erase_if(reads_, [this](const std::shared_ptr<Read>& read) { return check_read(*read); });
    if (ticket_ && core_->read_state(*ticket_) == ReadState::kWaiting) break;
    ticket_.reset();
    bool needed = false;
    for (const auto& read : reads_) needed |= !read->index;
    if (!needed) break;
    Output out;
    const auto ticket = core_->begin_read(env_.now(), out);
    if (ticket) {
      ticket_ = *ticket;
      for (const auto& read : reads_) read->ticketed |= !read->index;
    }
    obey(std::move(out));
    if (!ticket)
      break;  // this term's first entry is not committed yet: asked again after the next event
  }
  checking_reads_ = false;
}

LogStatus RaftNode::status() const {
  LogStatus status;
  status.self = options_.raft.self;
  status.applied = applied_;
  if (!core_) return status;
  status.primary = core_->primary();
  status.role = core_->role();
  status.rejoining = core_->rejoining();
  status.term = core_->term();
  status.first = log_->first_index();
  status.last = core_->last_index();
  status.commit = core_->commit();
  status.membership = core_->membership();
  for (const auto& [id, progress] : core_->progress()) status.peers.emplace_back(id, progress);
  return status;
}

}  // namespace fermata::serverd
