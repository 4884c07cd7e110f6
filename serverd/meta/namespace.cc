#include "serverd/meta/namespace.h"

#include <cerrno>

#include "common/base/assert.h"
#include "common/wire/command_codec.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/digest.h"
#include "serverd/meta/ops/ops.h"
#include "serverd/meta/quota.h"

namespace fermata::serverd {
namespace {

/// A refusal of the caller itself, or of the attempt: not the request's answer.
bool is_answer(const CommandResult& result) {
  return result.error != to_wire(make_error_code(Errc::kRetry));
}

/// So many requests are erased without asking which of them are there: opening an iterator costs
/// more.
constexpr std::uint64_t kForgetEachMax = 64;

/// A session's client has got its answers to all requests below `answered_below`: forget them.
Status forget_answered(Txn& txn, SessionId session, Sequence known, Sequence answered_below) {
  if (answered_below <= known) return {};
  const Sequence first = std::max(known, Sequence(1));  // 0 is the mark itself
  if (answered_below.value() - first.value() <= kForgetEachMax) {
    for (Sequence at = first; at < answered_below; at = at.next())
      txn.erase(Family::kRequests, key_of(session, at));
  } else {
    FM_TRY(const auto records,
           txn.scan(Family::kRequests, key_of(session, first), key_of(session, answered_below)));
    for (const auto& record : records) txn.erase(Family::kRequests, record.key);
  }
  txn.put(Family::kRequests, key_of(session, kAnsweredBelow),
          encode_number(answered_below.value()));
  return {};
}

Result<Sequence> answered_below(Txn& txn, SessionId session) {
  FM_TRY(const auto value, txn.get(Family::kRequests, key_of(session, kAnsweredBelow)));
  if (!value) return Sequence();
  FM_TRY(const std::uint64_t sequence, decode_number(*value));
  return Sequence(sequence);
}

Outcome apply_mutation(Txn& txn, const fermata::Command& command, const MutateCommand& mutate) {
  const LogIndex index = txn.index();
  FM_TRY(const auto session, txn.session(command.session));
  if (!session) return refuse(Errc::kSessionExpired);
  if (session->epoch != command.epoch) return refuse(Errc::kStaleEpoch);
  if (!command.sequence) return refuse(std::errc::invalid_argument);
  FM_TRY(const Sequence below, answered_below(txn, command.session));
  if (command.sequence < below) return refuse(Errc::kStaleEpoch);
  std::string key = key_of(command.session, command.sequence);
  FM_TRY(const auto done, txn.get(Family::kRequests, key));
  if (done) return decode_result(*done);
  // A client cannot have the answer to what it asks here.
  FM_CHECK(forget_answered(txn, command.session, below,
                           std::min(command.answered_below, command.sequence)));
  txn.begin(index);  // what is above stays, whatever comes of the operation
  if (mutate.no_history) txn.keep_no_history();
  OpContext context{txn, command, mutate};
  FM_TRY(CommandResult result,
         std::visit([&](const auto& op) { return apply_op(context, op); }, mutate.op));
  if (result.error == 0) {
    FM_TRY(const bool exceeds, exceeds_quota(txn));
    if (exceeds) {
      result = {};
      result.error = to_wire(from_errno(EDQUOT));
    }
  }
  if (result.error != 0) txn.rollback();
  if (is_answer(result)) txn.put(Family::kRequests, std::move(key), encode_result(result));
  return result;
}

Outcome apply_command(Txn& txn, const fermata::Command& command, std::vector<SessionId>& ended) {
  if (command.volume.value() != 0) return refuse(Errc::kUnsupported);
  if (const auto* body = std::get_if<BootstrapCommand>(&command.body))
    return apply_bootstrap(txn, command, *body);
  if (!txn.state().cluster) return refuse(std::errc::no_such_file_or_directory);
  if (const auto* body = std::get_if<MutateCommand>(&command.body))
    return apply_mutation(txn, command, *body);
  if (const auto* body = std::get_if<OpenSessionCommand>(&command.body))
    return apply_open_session(txn, command, *body);
  if (const auto* body = std::get_if<EndSessionsCommand>(&command.body))
    return apply_end_sessions(txn, *body, ended);
  if (const auto* body = std::get_if<PruneHistoryCommand>(&command.body))
    return apply_prune_history(txn, *body);
  if (const auto* body = std::get_if<DropChunksCommand>(&command.body))
    return apply_drop_chunks(txn, *body);
  if (const auto* body = std::get_if<FoldPatchesCommand>(&command.body))
    return apply_fold_patches(txn, *body);
  if (const auto* body = std::get_if<CountQuotaCommand>(&command.body))
    return apply_count_quota(txn, *body);
  return CommandResult{};  // DigestCommand: see apply_entries()
}

}  // namespace

Namespace::Namespace(KvStore& store, NamespaceListener* listener)
    : store_(store), listener_(listener), digests_(std::make_shared<Digests>()) {}
Namespace::~Namespace() = default;

Result<std::unique_ptr<Namespace>> Namespace::open(KvStore& store, NamespaceListener* listener) {
  std::unique_ptr<Namespace> machine(new Namespace(store, listener));
  FM_CHECK(machine->load());
  return machine;
}

Status Namespace::load() {
  FM_TRY(const auto value, store_.get(Family::kCounters, kStateKey));
  StateRecord state;
  if (value) {
    FM_TRY(state, decode_state(*value));
  }
  const MutexLock lock(mutex_);
  state_ = state;
  applied_ = state.applied.value();
  durable_ = state.applied.value();  // just read from files, or just installed
  return {};
}

StateRecord Namespace::state() const {
  const MutexLock lock(mutex_);
  return state_;
}

Status Namespace::write(Txn& txn, LogIndex applied) {
  FM_CHECK(store_.write(txn.take_batch(applied)));
  const MutexLock lock(mutex_);
  state_ = txn.state();
  applied_ = applied.value();
  return {};
}

void Namespace::tell_chunks(const std::vector<Txn::ChunkEvent>& events) {
  if (!listener_) return;
  std::vector<ChunkId> run;
  for (std::size_t i = 0; i < events.size(); ++i) {  // runs of one kind, in order
    run.push_back(events[i].id);
    const bool more = i + 1 < events.size() && events[i + 1].referenced == events[i].referenced &&
                      events[i + 1].index == events[i].index;
    if (more) continue;
    if (events[i].referenced) {
      listener_->on_chunks_referenced(run);
    } else {
      listener_->on_chunks_dropped(run, events[i].index);
    }
    run.clear();
  }
}

Result<std::vector<std::optional<CommandResult>>> Namespace::apply_entries(
    std::span<const Entry> batch, LogIndex last) {
  std::vector<std::optional<CommandResult>> results(batch.size());
  const LogIndex before = applied_index();
  if (last <= before) return results;
  Txn txn(store_, state());
  std::vector<SessionId> ended;
  std::vector<LogIndex> digests;
  std::size_t ended_written = 0;  // of `ended`
  LogIndex previous = before;
  Status written;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const Entry& entry = batch[i];
    if (entry.index <= before) continue;
    FM_ASSERT(entry.index > previous);
    previous = entry.index;
    txn.begin(entry.index);
    FM_TRY(const CommandResult result, apply_command(txn, entry.command, ended));
    if (result.error != 0 && !std::holds_alternative<MutateCommand>(entry.command.body))
      txn.rollback();
    results[i] = result;
    if (std::holds_alternative<DigestCommand>(entry.command.body)) {
      written = write(txn, entry.index);  // a cut right here
      if (!written) break;
      digests_->order(entry.index, store_.snapshot());
      digests.push_back(entry.index);
      ended_written = ended.size();
    }
  }
  FM_ASSERT(previous <= last);
  auto events = txn.take_chunk_events();
  if (written && applied_index() < last) written = write(txn, last);
  if (!written) {
    // Up to a digest's order it is done.
    const bool partly = written.error() == std::errc::no_space_on_device && !digests.empty();
    if (!partly) return written.error();
    std::erase_if(events, [&](const auto& event) { return event.index > applied_index(); });
    ended.resize(ended_written);
  }
  tell_chunks(events);
  if (listener_ && !ended.empty()) listener_->on_sessions_ended(ended);
  if (listener_)
    for (const LogIndex index : digests) listener_->on_digest_ordered(index);
  return results;
}

Result<std::vector<std::string>> Namespace::apply(std::span<const StateMachine::Command> batch,
                                                  LogIndex last) {
  const LogIndex before = applied_index();
  std::vector<Entry> entries;
  entries.reserve(batch.size());
  for (const StateMachine::Command& command : batch) {
    Entry entry;
    entry.index = command.index;
    if (command.index > before) {
      // The log's checksum holds, so this is a command of a newer program: guessing would diverge.
      FM_TRY(entry.command, decode_command(as_bytes(*command.data)));
    }
    entries.push_back(std::move(entry));
  }
  FM_TRY(const auto results, apply_entries(entries, last));
  std::vector<std::string> encoded;
  encoded.reserve(results.size());
  for (const auto& result : results) encoded.push_back(result ? encode(*result) : std::string());
  return encoded;
}

Status Namespace::flush() {
  const std::uint64_t applied = applied_;  // read first: what comes meanwhile is not promised
  FM_CHECK(store_.flush());
  std::uint64_t durable = durable_;
  while (durable < applied && !durable_.compare_exchange_weak(durable, applied)) {
  }
  return {};
}

Result<LogIndex> Namespace::checkpoint(const std::string& path) {
  FM_TRY(const auto reader, store_.checkpoint(path));
  FM_TRY(const auto value, reader->get(Family::kCounters, kStateKey));
  if (!value) return LogIndex();  // nothing was applied yet
  FM_TRY(const StateRecord state, decode_state(*value));
  return state.applied;
}

Status Namespace::install(const std::string& path) {
  FM_CHECK(store_.install(path));
  digests_->clear();
  FM_CHECK(load());
  if (listener_) listener_->on_installed();
  return {};
}

void Namespace::on_role(Role role, Term term) {
  if (listener_) listener_->on_role(role, term);
}

std::shared_ptr<DigestWork> Namespace::digest_work() { return digests_->next(digests_); }
std::optional<std::string> Namespace::digest(LogIndex index) const { return digests_->find(index); }

}  // namespace fermata::serverd
