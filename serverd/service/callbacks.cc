#include "serverd/service/callbacks.h"

#include <algorithm>
#include <utility>

#include "common/wire/message_codec.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
/// Of one attempt. The client invalidates its kernel's caches before it answers.
constexpr Duration kAttemptTimeout = 3s;
constexpr Duration kRetryAfter = 20ms;
}  // namespace

Patience::Patience(const NodeContext& node, SessionId session, double leases)
    : node_(node),
      ends_(node.env.now() +
            std::chrono::duration_cast<Duration>(node.sessions.lease(session) * leases)),
      seen_at_(node.env.now()),
      seen_(node.ns->applied_index()) {}

bool Patience::is_over() {
  const TimePoint now = node_.env.now();
  const LogIndex applied = node_.ns->applied_index();
  const bool stands_still = applied == seen_ && node_.log->status().last > applied;
  if (stands_still) ends_ += now - seen_at_;
  seen_at_ = now;
  seen_ = applied;
  return now >= ends_;
}

Callbacks::Callbacks(NodeContext& node) : node_(node) {}

Task<std::set<SessionId>> Callbacks::break_leases(std::map<SessionId, CallbackRequest> requests,
                                                  InodeId asked) {
  if (requests.empty() || node_.config.testing.skip_callbacks) co_return std::set<SessionId>();
  auto breaking = std::make_shared<Breaking>(node_.env.executor());
  breaking->asked = asked;
  const Term term = node_.term;
  for (auto& [session, request] : requests) {
    breaking->waiting.insert(session);
    node_.count("callbacks");
    node_.tasks.spawn("callback", deliver(session, std::move(request), breaking, term));
  }
  breakings_.push_back(breaking);
  Result<std::set<SessionId>> result = Errc::kNotPrimary;
  for (;;) {
    if (breaking->aborted) break;
    if (breaking->waiting.empty()) {
      result = breaking->open;
      break;
    }
    if (const auto error = co_await breaking->changed.wait()) {
      result = error;
      break;
    }
  }
  std::erase(breakings_, breaking);
  co_return result;
}

bool Callbacks::held_elsewhere(const std::vector<InodeId>& directories, SessionId caller) const {
  const auto& testing = node_.config.testing;
  if (testing.skip_recalls || testing.skip_callbacks) return false;  // they would be asked for ever
  return std::any_of(directories.begin(), directories.end(), [&](InodeId directory) {
    return node_.leases.held_elsewhere(directory, caller);
  });
}

Task<void> Callbacks::recall(std::vector<InodeId> directories, SessionId caller) {
  auto requests = node_.leases.recall(directories, caller, node_.env.now());
  node_.count("recalls");
  const Term term = node_.term;
  node_.leases.begin_recall(directories);
  const auto answered = co_await break_leases(std::move(requests), InodeId());
  if (node_.term == term) node_.leases.end_recall(directories);
  if (!answered) co_return answered.error();
  co_return Status();
}

asio::awaitable<void> Callbacks::deliver(SessionId session, CallbackRequest request,
                                         std::shared_ptr<Breaking> breaking, Term term) {
  Patience patience(node_, session, 1.5);
  const std::string body = encode(request);
  // On its own even when the mutation that wanted it is given up: the lease table learns the
  // answer.
  while (node_.serves(term) && node_.sessions.knows(session)) {
    if (patience.is_over()) give_up(session, "does not answer a callback");
    const auto channel = node_.sessions.channel(session);
    if (!channel || !channel->is_open() || node_.sessions.is_ending(session)) {
      if (const std::error_code stop = co_await node_.env.sleep_for(kRetryAfter); stop) co_return;
      continue;
    }
    Request call;
    call.method = static_cast<std::uint16_t>(Method::kCallback);
    call.body = body;
    auto answer = co_await channel->call(std::move(call), kAttemptTimeout);
    if (const bool stop = co_await cancelled(); stop) co_return;
    if (answer && !answer->error) {
      auto reply = decode<CallbackReply>(answer->body);
      if (reply) {
        if (!node_.serves(term)) co_return;
        node_.leases.answered(session, request, *reply);
        const auto& open = reply->open;
        if (breaking->asked && std::find(open.begin(), open.end(), breaking->asked) != open.end()) {
          breaking->open.insert(session);
        }
        breaking->waiting.erase(session);
        breaking->changed.notify_all();
        co_return;
      }
    }
    node_.count("callbacks_failed");
    spdlog::debug("session {}: callback failed: {}", session.value(),
                  answer ? answer->error.message() : answer.error().message());
    if (const std::error_code stop = co_await node_.env.sleep_for(kRetryAfter); stop) co_return;
  }
}

void Callbacks::give_up(SessionId session, std::string_view why) {
  if (node_.sessions.is_ending(session) || node_.sessions.is_doomed(session)) return;
  spdlog::warn("session {} {}: it is not renewed any more and ends with its lease in {} ms",
               session.value(), why, node_.sessions.lease_left(session, node_.env.now()) / 1ms);
  node_.count("sessions_ended_for_silence");
  node_.sessions.doom(session);
}

void Callbacks::evict(SessionId session) {
  if (node_.leases.leases_of(session) <= node_.config.leases_per_session) return;
  if (!evicting_.insert(session).second) return;
  node_.tasks.spawn("evict leases", do_evict(session, node_.term));
}

asio::awaitable<void> Callbacks::do_evict(SessionId session, Term term) {
  while (node_.serves(term)) {
    CallbackRequest request = node_.leases.evict(session);
    if (request.items.empty()) break;
    node_.count("leases_evicted", request.items.size());
    auto breaking = std::make_shared<Breaking>(node_.env.executor());
    co_await deliver(session, std::move(request), std::move(breaking), term);
    if (const bool stop = co_await cancelled(); stop) break;
  }
  evicting_.erase(session);
}

void Callbacks::on_session_ended(SessionId session) {
  for (const auto& breaking : breakings_) {
    if (breaking->waiting.erase(session) != 0) breaking->changed.notify_all();
  }
}

void Callbacks::on_not_serving() {
  for (const auto& breaking : breakings_) {
    breaking->aborted = true;
    breaking->changed.notify_all();
  }
}

}  // namespace fermata::serverd
