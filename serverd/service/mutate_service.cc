#include "serverd/service/mutate_service.h"

#include <algorithm>
#include <utility>

#include "common/wire/message_codec.h"
#include "serverd/service/callbacks.h"
#include "serverd/service/chunk_durability.h"
#include "serverd/service/lock_service.h"
#include "serverd/service/patch_folder.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr int kAttemptsMax = 100;
constexpr std::uint64_t kRecordBytes = 2048;  // of a mutation, about, without its payload

CommandResult refused(std::error_code error) {
  CommandResult result;
  result.error = to_wire(error);
  return result;
}
}  // namespace

/// What a mutation keeps marked while it is on its way.
class MutateService::Marks {
 public:
  Marks(MutateService& service, const MutationPlan& plan, SessionId by)
      : service_(service),
        touched_(plan.touched),
        by_(by),
        links_(plan.links),
        term_(service.node_.term) {
    if (links_) service_.links_locked_.insert(links_);
    service_.node_.leases.mark(touched_, by_);
  }
  Marks(const Marks&) = delete;
  Marks& operator=(const Marks&) = delete;
  ~Marks() { release(); }
  void release() {
    if (released_) return;
    released_ = true;
    // A new term's table knows nothing of the marks of an older one.
    if (service_.node_.term == term_) service_.node_.leases.unmark(touched_, by_);
    if (links_) {
      service_.links_locked_.erase(links_);
      service_.links_freed_.notify_all();
    }
  }

 private:
  MutateService& service_;
  const TouchSet touched_;
  const SessionId by_;
  const InodeId links_;
  const Term term_;
  bool released_ = false;
};

Response MutateService::reply(const MutationRequest& request, const CommandResult& result) {
  if (result.error != 0) return failed(from_wire(result.error));
  auto message = mutation_reply(*node_.ns, node_.leases, request, result, node_.env.now());
  if (!message) return failed(message.error());
  Response response;
  response.body = encode(*message);
  return response;
}

asio::awaitable<Response> MutateService::mutate(Request request) {
  auto message = decode<MutationRequest>(request.body);
  if (!message) co_return failed(message.error());
  if (auto status = check_payload(message->op, request.payload.view()); !status) {
    co_return failed(status.error());
  }
  if (auto status = co_await readable(node_); !status) {
    co_return status.error() == Errc::kNotPrimary ? not_primary(node_) : failed(status.error());
  }
  if (auto status = check_session(node_, message->session, message->epoch); !status) {
    co_return failed(status.error());
  }
  if (!node_.all_know(kLevelExclusiveDirectories)) message->asks_exclusive = false;
  const Key key{message->session, message->sequence};
  std::shared_ptr<Flight> flight;
  if (const auto it = flights_.find(key); it != flights_.end()) {
    node_.count("duplicates_in_flight");
    flight = it->second;
  } else {
    auto known = node_.ns->request_result(message->session, message->sequence);
    if (!known) co_return failed(known.error());
    if (*known) {
      node_.count("duplicates_applied");
      co_return reply(*message, **known);
    }
    // Those that are here may be waiting for it.
    const bool settles = settles_recall(message->op);
    if (flights_.size() >= node_.config.mutations_max && !settles) co_return failed(Errc::kRetry);
    flight = std::make_shared<Flight>(std::move(*message), std::move(request.payload),
                                      node_.env.executor());
    flights_.emplace(key, flight);
    node_.tasks.spawn("mutation", run(flight));
  }
  while (!flight->done) {
    if (const auto error = co_await flight->changed.wait()) co_return failed(error);
  }
  if (!flight->outcome) {
    const auto error = flight->outcome.error();
    co_return error == Errc::kNotPrimary ? not_primary(node_) : failed(error);
  }
  // The state and the leases may be another primary's by now: then the client asks again there. Not
  // for kNotPrimary, which would say that nothing was carried out: should its session end before
  // that, it would do it once more in the next one.
  if (const auto status = co_await readable(node_); !status)
    co_return failed(Errc::kConnectionLost);
  co_return reply(flight->request, *flight->outcome);
}

asio::awaitable<void> MutateService::run(std::shared_ptr<Flight> flight) {
  flight->outcome = co_await execute(flight);
  flight->done = true;
  flights_.erase({flight->request.session, flight->request.sequence});
  flight->changed.notify_all();
}

Task<CommandResult> MutateService::execute(std::shared_ptr<Flight> flight) {
  const Mutation& op = flight->request.op;
  // Small, and no more of them than locks.
  const auto* lock = std::get_if<LockOp>(&op);
  const bool unlocks = (lock != nullptr && lock->type == LockType::kUnlock) ||
                       std::holds_alternative<ReturnLocksOp>(op);
  const bool wants_room = takes_room(op);
  if (const auto room = wants_room ? node_.space->room() : node_.space->room_to_free();
      !room && !unlocks) {
    if (room.error() != std::errc::no_space_on_device) co_return room.error();
    node_.count("mutations_without_room");
    co_return refused(room.error());
  }
  // Once in the log, once in the state, and what surrounds it.
  const std::uint64_t bytes = wants_room ? 2 * flight->payload.size() + kRecordBytes : 0;
  const SpaceGuard::Admission admission(*node_.space, bytes);
  auto chunks = chunks_of(op, flight->payload.view());
  if (!chunks) co_return chunks.error();
  // Safe from garbage collection until the command is applied, or surely never will be.
  const ChunkDurability::Use use(*node_.durability, *chunks);
  Result<CommandResult> result = Errc::kRetry;
  Term durable_in;
  for (int i = 0; i < kAttemptsMax; ++i) {
    FM_CO_CHECK(co_await readable(node_));
    if (!chunks->empty() && durable_in != node_.term) {
      durable_in = node_.term;
      if (auto durable = co_await node_.durability->require(*chunks); !durable) {
        co_return durable.error();
      }
    }
    result = co_await attempt(flight, chunks->empty() ? node_.term : durable_in);
    const bool again =
        result ? result->error == to_wire(Errc::kRetry) : result.error() == Errc::kRetry;
    if (!again || co_await cancelled()) break;
    node_.count("mutation_retries");
  }
  co_return result;
}

/// In `term`, in which the chunks are durable.
Task<CommandResult> MutateService::attempt(std::shared_ptr<Flight> flight, Term term) {
  const MutationRequest& request = flight->request;
  const auto* lock = std::get_if<LockOp>(&request.op);
  Result<MutationPlan> plan = Errc::kRetry;
  for (bool waited = false;; waited = true) {
    FM_CO_CHECK(co_await readable(node_));
    // Another primary may have carried it out while this one waited: its client asks again.
    if (!node_.serves(term)) co_return waited ? Errc::kNotPrimary : Errc::kRetry;
    if (lock != nullptr && lock->type != LockType::kUnlock) {
      FM_CO_CHECK(co_await node_.locks->recall(lock->inode, lock->space, request.session));
      if (!node_.serves(term)) co_return Errc::kNotPrimary;
      if (!node_.locks->is_turn_of(request.session, *lock))
        co_return refused(std::make_error_code(std::errc::resource_unavailable_try_again));
    }
    // What others made without telling comes first: the plan is made of it.
    const auto directories = directories_of(*node_.ns, request.op);
    if (node_.callbacks->held_elsewhere(directories, request.session)) {
      FM_CO_CHECK(co_await node_.callbacks->recall(directories, request.session));
      continue;
    }
    plan = plan_mutation(*node_.ns, request.session, request.op);
    if (!plan) co_return refused(plan.error());
    if (!plan->links || !links_locked_.contains(plan->links)) break;
    if (const auto error = co_await links_freed_.wait()) co_return error;
  }
  const auto* back = std::get_if<ReturnLocksOp>(&request.op);
  if (back != nullptr && !node_.locks->may_be_delegated(request.session, *back)) {
    CommandResult nothing;  // a member may not know this command, and there is nothing to be done
    nothing.inode = back->inode;
    co_return nothing;
  }
  const bool reserves = std::holds_alternative<ReserveInodesOp>(request.op);
  if (reserves && !node_.all_know(kLevelExclusiveDirectories))
    co_return refused(std::make_error_code(std::errc::operation_not_supported));
  if (plan->found) {
    // As an open (ReadService::open): who takes the last link has asked already who has it open.
    if (node_.leases.losing_last_link(plan->found)) {
      if (const auto error = co_await links_freed_.wait()) co_return error;
      co_return Errc::kRetry;
    }
    node_.leases.opened(request.session, plan->found, false);  // seen by whoever asks from here on
    CommandResult found;
    found.inode = plan->found;
    co_return found;
  }
  const CreateOp* create = request.asks_exclusive ? create_of(request.op) : nullptr;
  if (create != nullptr &&
      node_.leases.wants_alone(request.session, create->parent, node_.env.now())) {
    for (Touch& touch : plan->touched) touch.all_entries |= touch.inode == create->parent;
  }
  Marks marks(*this, *plan, request.session);
  auto requests = node_.leases.break_leases(plan->touched, request.session);
  FM_CO_TRY(auto open, co_await node_.callbacks->break_leases(std::move(requests), plan->losing));
  if (!node_.serves(term)) co_return Errc::kNotPrimary;

  MutateCommand mutate;
  mutate.op = request.op;
  if (lock != nullptr && lock->delegate)
    std::get<LockOp>(mutate.op).delegate = node_.locks->may_delegate(request.session, *lock);
  mutate.payload = std::string(as_text(flight->payload.view()));
  mutate.expected_inode = plan->expected_inode;
  // Removing a file would copy it to history first, for which there may be no room.
  const auto* commit = std::get_if<CommitOp>(&request.op);
  mutate.no_history = node_.no_history &&
                      (commit == nullptr || (commit->size_bytes == 0 && !commit->replace_newer));
  mutate.expected_target = plan->expected_target;
  if (plan->losing) {
    for (const SessionId session : node_.leases.openers(plan->losing, request.session)) {
      open.insert(session);
    }
    mutate.open_in.assign(open.begin(), open.end());
  }
  Command command;
  command.session = request.session;
  command.epoch = request.epoch;
  command.sequence = request.sequence;
  command.answered_below = request.answered_below;
  command.cred = request.cred;
  command.body = std::move(mutate);
  auto result = co_await node_.propose(std::move(command));
  marks.release();
  if (lock != nullptr && result)
    node_.locks->on_answered(request.session, *lock, result->error == 0);
  if (back != nullptr && result) node_.locks->on_returned(back->inode, back->space);
  if (commit != nullptr && commit->kind == CommitOp::Kind::kPatches && result)
    node_.folder->note(commit->inode);
  co_return result;
}

}  // namespace fermata::serverd
