#include "serverd/service/session_service.h"

#include <algorithm>
#include <utility>

#include "common/wire/message_codec.h"
#include "serverd/service/callbacks.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
/// How often expiry looks: sessions live for seconds, callbacks' impatience is rarer.
constexpr Duration kExpiryTick = 100ms;

std::uint32_t lease_ms(const NodeContext& node, SessionId session) {
  return static_cast<std::uint32_t>(node.sessions.lease(session) / 1ms);
}
}  // namespace

struct SessionService::Opening {
  explicit Opening(const asio::any_io_executor& executor) : changed(executor) {}
  OpenSessionCommand command;
  Term term;
  enum class Outcome : std::uint8_t { kOpened, kGone, kEnding } outcome = Outcome::kGone;
  std::optional<Result<CommandResult>> result;
  Signal changed;
};

asio::awaitable<void> SessionService::enter(std::shared_ptr<Opening> opening) {
  opening->result = co_await register_session(opening);
  opening->changed.notify_all();
}

Task<CommandResult> SessionService::register_session(std::shared_ptr<Opening> opening) {
  FM_CO_TRY(auto result, co_await node_.propose_own(opening->command));
  if (result.error != 0 || !node_.serves(opening->term)) co_return result;
  FM_CO_TRY(const auto registered, node_.ns->session(result.session));
  if (!registered) co_return result;  // closed before this coroutine came to see it
  const Duration lease = std::chrono::milliseconds(registered->lease_ms);
  if (!node_.sessions.opened(result.session, node_.env.now(), lease)) {
    opening->outcome = Opening::Outcome::kEnding;
    co_return result;
  }
  node_.leases.add_session(result.session);
  node_.epochs[result.session] = result.epoch;
  opening->outcome = Opening::Outcome::kOpened;
  co_return result;
}

asio::awaitable<Response> SessionService::open(Request request) {
  auto message = decode<OpenSessionRequest>(request.body);
  if (!message) co_return failed(message.error());
  for (;;) {
    if (!node_.serving) co_return not_primary(node_);
    if (node_.sessions.size() >= node_.config.sessions_max) {
      spdlog::warn("session of {} refused: {} sessions are open already", message->host,
                   node_.sessions.size());
      co_return failed(std::errc::too_many_files_open_in_system);
    }
    const Term term = node_.term;
    auto opening = std::make_shared<Opening>(node_.env.executor());
    opening->command = {message->client_id, message->host, message->mount_point,
                        static_cast<std::uint32_t>(node_.sessions.lease() / 1ms)};
    opening->term = term;
    node_.tasks.spawn("open session", enter(opening));
    while (!opening->result) {
      if (const std::error_code stop = co_await opening->changed.wait(); stop)
        co_return failed(stop);
    }
    const Result<CommandResult>& result = *opening->result;
    if (!result) co_return failed(result.error());
    if (result->error != 0) co_return failed(from_wire(result->error));
    if (!node_.serves(term)) co_return not_primary(node_);
    const SessionId session = result->session;
    if (opening->outcome == Opening::Outcome::kGone) continue;
    if (opening->outcome == Opening::Outcome::kEnding) {
      // The one that this client had is being ended: it shall get a new one.
      while (node_.serves(term) &&
             (node_.sessions.is_ending(session) || node_.sessions.is_doomed(session))) {
        if (const std::error_code stop = co_await node_.serving_changed.wait(); stop) {
          co_return failed(Errc::kShuttingDown);
        }
      }
      continue;
    }
    spdlog::debug("session {} opened for {} at {}", session.value(), message->host,
                  message->mount_point);
    OpenSessionReply reply;
    reply.session = session;
    reply.epoch = result->epoch;
    reply.lease_ms = lease_ms(node_, session);
    reply.term = node_.term;
    reply.stamp = node_.leases.next_stamp();
    reply.cluster = node_.config.cluster;
    reply.members = node_.log->status().membership.members;
    Response response;
    response.body = encode(reply);
    co_return response;
  }
}

asio::awaitable<Response> SessionService::renew(Request request) {
  auto message = decode<RenewSessionRequest>(request.body);
  if (!message) co_return failed(message.error());
  // A deposed primary must not prolong what its successor counts down: hence the barrier.
  if (auto status = co_await readable(node_); !status) {
    co_return status.error() == Errc::kNotPrimary ? not_primary(node_) : failed(status.error());
  }
  if (auto status = check_session(node_, message->session, message->epoch); !status) {
    co_return failed(status.error());
  }
  // Its client may count on what it was granted before, and asks again until its end is applied.
  if (!node_.sessions.renew(message->session, node_.env.now())) co_return failed(Errc::kRetry);
  if (message->given_up_before >= node_.term) node_.leases.given_up(message->session);
  RenewSessionReply reply;
  reply.lease_ms = lease_ms(node_, message->session);
  reply.term = node_.term;
  reply.members = node_.log->status().membership.members;
  reply.quotas = node_.ns->counters().quotas != 0;
  Response response;
  response.body = encode(reply);
  co_return response;
}

asio::awaitable<Response> SessionService::close(Request request) {
  auto message = decode<CloseSessionRequest>(request.body);
  if (!message) co_return failed(message.error());
  if (!node_.serving) co_return not_primary(node_);
  const auto known = node_.epochs.find(message->session);
  if (known == node_.epochs.end()) co_return ok();  // over already
  if (known->second != message->epoch) co_return failed(Errc::kStaleEpoch);
  node_.sessions.start_ending(message->session);
  node_.sessions.bind(message->session, nullptr);  // not to be closed: the answer goes over it
  EndSessionsCommand command;
  command.sessions.push_back(message->session);
  auto result = co_await node_.propose_own(std::move(command));
  if (!result) co_return failed(result.error());
  co_return failed(from_wire(result->error));
}

Response SessionService::bind(const std::shared_ptr<Connection>& from, const Request& request) {
  const auto message = decode<BindCallbacksRequest>(request.body);
  if (!message) return failed(message.error());
  if (!node_.serving) return not_primary(node_);
  if (auto status = check_session(node_, message->session, message->epoch); !status) {
    return failed(status.error());
  }
  node_.sessions.bind(message->session, from);
  return ok();
}

SessionList SessionService::list() const {
  SessionList result;
  auto sessions = node_.ns->sessions();
  if (!sessions) return result;
  const TimePoint now = node_.env.now();
  for (const auto& session : *sessions) {
    SessionList::Session item;
    item.session = session.id;
    item.epoch = session.epoch;
    item.host = session.host;
    item.mount_point = session.mount_point;
    if (node_.serving) {
      item.lease_left_ms =
          static_cast<std::uint64_t>(node_.sessions.lease_left(session.id, now) / 1ms);
      item.leases = node_.leases.leases_of(session.id);
    }
    result.sessions.push_back(std::move(item));
  }
  return result;
}

Status SessionService::start_term(Term term) {
  FM_TRY(const auto live, node_.ns->sessions());
  std::vector<SessionId> ids;
  std::vector<SessionId> makers;
  std::vector<SessionTable::Live> leases;
  node_.epochs.clear();
  for (const auto& session : live) {
    ids.push_back(session.id);
    if (!session.reserved.empty()) makers.push_back(session.id);
    leases.push_back({session.id, std::chrono::milliseconds(session.lease_ms)});
    node_.epochs[session.id] = session.epoch;
  }
  node_.leases.start_term(term, ids, makers);
  node_.sessions.start_term(leases, node_.env.now());
  return {};
}

asio::awaitable<void> SessionService::expire(Term term) {
  while (node_.serves(term) && !node_.stopping) {
    auto due = node_.sessions.due(node_.env.now());
    if (!due.empty()) {
      for (const SessionId session : due) {
        spdlog::info("session {}: its lease is over, ending it", session.value());
      }
      node_.count("sessions_expired", due.size());
      EndSessionsCommand command;
      command.sessions = due;
      auto result = co_await node_.propose_own(std::move(command));
      // kNotPrimary too may pass: it is also the answer while the role is handed over, which may
      // fail. They are due again at the next look.
      if (result && node_.serves(term))
        on_sessions_ended(due);  // also those the state did not know
    }
    for (const SessionId session : node_.sessions.all()) node_.callbacks->evict(session);
    if (const std::error_code stop = co_await node_.env.sleep_for(kExpiryTick); stop) co_return;
  }
}

void SessionService::on_sessions_ended(std::span<const SessionId> sessions) {
  for (const SessionId session : sessions) {
    node_.leases.remove_session(session);
    // Its client shall not wait for its next renewal to see that it must open another.
    if (const auto channel = node_.sessions.ended(session)) channel->close();
    node_.epochs.erase(session);
    node_.callbacks->on_session_ended(session);
  }
  node_.serving_changed.notify_all();
}

}  // namespace fermata::serverd
