// Opens the session, renews its lease, answers callbacks, follows new primaries.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "common/io/task_group.h"
#include "common/io/waiter.h"
#include "common/wire/message_codec.h"
#include "mountd/client/router.h"

namespace fermata::mountd {

namespace asio = boost::asio;

struct SessionKeeper::Impl final : Handler, std::enable_shared_from_this<SessionKeeper::Impl> {
  Impl(Env& env_in, Network& network_in, std::shared_ptr<Router> router_in,
       ClientSession& session_in, Events& events_in)
      : env(env_in),
        network(network_in),
        router(std::move(router_in)),
        session(session_in),
        events(events_in),
        tasks(env_in.executor()),
        wake(env_in.executor()) {}

  Env& env;
  Network& network;
  std::shared_ptr<Router> router;
  ClientSession& session;
  Events& events;
  TaskGroup tasks;
  Waiter wake;
  std::shared_ptr<Connection> connection;  ///< to the primary; carries the callbacks
  std::string address;                     ///< its
  Term term;                               ///< newest accepted: leases of older ones are given up
  Duration lease = std::chrono::seconds(10);
  bool had_session = false;
  bool stopping = false;
  std::error_code last_error = make_error_code(Errc::kNotPrimary);

  // ------------------------------------------------------------ callbacks

  asio::awaitable<Response> handle(std::shared_ptr<Connection> from, Request request) override {
    Response response;
    if (request.method != static_cast<std::uint16_t>(Method::kCallback) || from != connection) {
      response.error = Errc::kUnsupported;
      co_return response;
    }
    auto callback = decode<CallbackRequest>(request.body);
    if (!callback) {
      response.error = callback.error();
      co_return response;
    }
    count_call(Method::kCallback);
    const CallbackReply reply = co_await events.on_callback(std::move(*callback));
    response.body = encode(reply);
    co_return response;
  }

  void on_disconnect(const std::shared_ptr<Connection>& gone) override {
    if (gone == connection) wake.notify();
  }

  // ------------------------------------------------------------ the loop

  asio::awaitable<void> run() {
    Backoff backoff(env, router->options());
    while (!stopping) {
      const Status done = co_await step();
      if (stopping || (co_await is_cancelled())) break;
      if (!done) {
        last_error = done.error();
        if (!co_await backoff.wait()) break;
        continue;
      }
      last_error = {};
      backoff.reset(router->options().retry_min);
      co_await pause(lease / 3);
    }
  }

  /// Sleeps, but no longer than until the connection breaks or somebody reports the session lost.
  asio::awaitable<void> pause(Duration duration) {
    sleeping_until = env.now() + duration;
    tasks.spawn("session alarm", alarm(shared_from_this(), sleeping_until));
    co_await wake.wait();
  }
  static asio::awaitable<void> alarm(std::shared_ptr<Impl> self, TimePoint when) {
    co_await self->env.sleep_until(when);
    if (self->sleeping_until == when) self->wake.notify();
  }
  TimePoint sleeping_until{};

  /// One round: a connection to the primary, a session, its callbacks bound, its lease renewed.
  Task<void> step() {
    if (!connection || !connection->is_open()) FM_CO_CHECK(co_await reconnect());
    if (!session.id()) {
      FM_CO_CHECK(co_await open_session());
    } else {
      FM_CO_CHECK(co_await renew());
    }
    co_return Status();
  }

  Task<void> reconnect() {
    const std::string to = router->map().address_for(attempt++);
    if (to.empty()) co_return std::errc::host_unreachable;
    Hello hello = router->hello();
    auto connected = co_await network.connect(to, std::move(hello), this, std::chrono::seconds(2));
    if (!connected) {
      router->map().forget_primary(to);
      co_return connected.error();
    }
    connection = *connected;
    address = to;
    bound = SessionId();
    co_return Status();
  }
  unsigned attempt = 0;
  SessionId bound;

  /// A call on the callback connection. A node that is not the primary is left.
  Task<Response> ask(Method method, std::string body) {
    const auto to = connection;
    Request request;
    request.method = static_cast<std::uint16_t>(method);
    request.body = std::move(body);
    count_call(method);
    auto response = co_await to->call(std::move(request), router->options().attempt_timeout);
    if (response && (!response->error || response->error == Errc::kSessionExpired ||
                     response->error == Errc::kStaleEpoch)) {
      router->map().learn_primary(address);
      co_return std::move(*response);
    }
    const std::error_code error = response ? response->error : response.error();
    router->map().forget_primary(address);
    if (response && error == Errc::kNotPrimary) {
      const auto hint = decode<PrimaryHint>(response->body);
      if (hint && !hint->address.empty() && hint->address != address)
        router->map().learn_primary(hint->address);
    }
    drop_connection();
    co_return error;
  }

  void drop_connection() {
    if (const auto old = std::exchange(connection, nullptr)) old->close();
  }

  Task<void> open_session() {
    const ClientOptions& options = router->options();
    const TimePoint sent = env.now();
    const OpenSessionRequest request{options.client_id, options.host, options.mount_point};
    std::string body = encode(request);
    FM_CO_TRY(const Response response, co_await ask(Method::kOpenSession, std::move(body)));
    if (response.error) co_return response.error;
    FM_CO_TRY(const OpenSessionReply reply, decode<OpenSessionReply>(response.body));
    router->map().learn_cluster(reply.cluster);
    router->map().learn_members(reply.members);
    lease = std::chrono::milliseconds(reply.lease_ms);
    FM_CO_CHECK(co_await bind(reply.session, reply.epoch));
    term = std::max(term, reply.term);
    // Whatever an earlier session of ours was granted is void: only later stamps count.
    session.opened(reply.session, reply.epoch, std::max(make_stamp(term, 0), reply.stamp),
                   sent + lease);
    spdlog::info("session {} is open at {} (term {}, lease {} ms)", reply.session.value(), address,
                 reply.term.value(), reply.lease_ms);
    if (std::exchange(had_session, true)) co_await events.on_new_session(reply.session);
    co_return co_await renew();  // tells a fresh primary at once that nothing old is trusted
  }

  Task<void> bind(SessionId id, Epoch epoch) {
    std::string body = encode(BindCallbacksRequest{id, epoch});
    FM_CO_TRY(const Response response, co_await ask(Method::kBindCallbacks, std::move(body)));
    if (response.error) co_return response.error;
    bound = id;
    co_return Status();
  }

  Task<void> renew() {
    const SessionId id = session.id();
    if (bound != id) {
      const Status done = co_await bind(id, session.epoch());
      if (!done) {
        if (is_over(done.error())) co_await lose(id);
        co_return done.error();
      }
    }
    const TimePoint sent = env.now();
    std::string body = encode(RenewSessionRequest{id, session.epoch(), term});
    FM_CO_TRY(const Response response, co_await ask(Method::kRenewSession, std::move(body)));
    if (is_over(response.error)) co_await lose(id);
    if (response.error) co_return response.error;
    FM_CO_TRY(const RenewSessionReply reply, decode<RenewSessionReply>(response.body));
    router->map().learn_members(reply.members);
    lease = std::chrono::milliseconds(reply.lease_ms);
    session.note_quotas(reply.quotas);
    if (reply.term > term) {
      const Stamp stamp = make_stamp(reply.term, 0);
      session.void_leases_below(stamp);
      co_await events.on_leases_void(stamp);
      session.renewed(sent + lease);
      // The session lives on meanwhile.
      const bool given_up = co_await events.give_up_alone(lease / 10);
      if (given_up) term = reply.term;
      co_return co_await renew();  // now it may be told that they are given up
    }
    session.renewed(sent + lease);
    co_return Status();
  }

  static bool is_over(const std::error_code& error) {
    return error == Errc::kSessionExpired || error == Errc::kStaleEpoch;
  }

  asio::awaitable<void> lose(SessionId id) {
    spdlog::warn("session {} is over at the cluster (its lease ran out); opening a new one",
                 id.value());
    session.lost();
    bound = SessionId();
    co_await events.on_leases_void(make_stamp(Term(term.value() + 1), 0));
  }

  static asio::awaitable<void> void_caches_of(std::shared_ptr<Impl> self);

  void on_lost(SessionId id) {
    if (id && id == session.id()) wake.notify();  // the renewal finds out what is true
  }
};

asio::awaitable<void> SessionKeeper::Impl::void_caches_of(std::shared_ptr<Impl> self) {
  co_await self->events.on_leases_void(make_stamp(Term(self->term.value() + 1), 0));
}

SessionKeeper::SessionKeeper(Env& env, Network& network, ClusterClient& client,
                             ClientSession& session, Events& events)
    : impl_(std::make_shared<Impl>(env, network, client.router(), session, events)) {
  impl_->router->map().set_on_lost(
      [weak = std::weak_ptr<Impl>(impl_), executor = env.executor()](SessionId id) {
        asio::post(executor, [weak, id] {
          if (const auto impl = weak.lock()) impl->on_lost(id);
        });
      });
  impl_->router->map().set_on_unsettled(
      [weak = std::weak_ptr<Impl>(impl_), executor = env.executor()] {
        asio::post(executor, [weak] {
          if (const auto impl = weak.lock()) {
            impl->tasks.spawn("void kernel caches", Impl::void_caches_of(impl));
          }
        });
      });
}

SessionKeeper::~SessionKeeper() {
  impl_->stopping = true;
  impl_->router->map().set_on_lost({});
  impl_->router->map().set_on_unsettled({});
  impl_->tasks.cancel_all();
  impl_->drop_connection();
}

ClusterId SessionKeeper::cluster() const { return impl_->router->map().cluster(); }

Task<void> SessionKeeper::start(Duration timeout) {
  const auto impl = impl_;
  impl->tasks.spawn("session keeper", [](std::shared_ptr<Impl> self) -> asio::awaitable<void> {
    co_await self->run();
  }(impl));
  const TimePoint until = impl->env.now() + timeout;
  while (!impl->session.id() || !impl->bound) {
    if (const bool stop = co_await is_cancelled(); stop) co_return std::errc::interrupted;
    if (impl->stopping) co_return Errc::kShuttingDown;
    // What waiting cannot mend is said at once.
    if (impl->last_error == Errc::kWrongCluster || impl->last_error == Errc::kVersionMismatch)
      co_return impl->last_error;
    if (impl->env.now() >= until)
      co_return impl->last_error ? impl->last_error : std::make_error_code(std::errc::timed_out);
    co_await impl->env.sleep_for(std::chrono::milliseconds(5));
  }
  co_return Status();
}

Task<void> SessionKeeper::stop(Duration timeout) {
  const auto impl = impl_;
  impl->stopping = true;
  impl->wake.notify();
  Status result;
  if (impl->session.id() && impl->connection && impl->connection->is_open()) {
    Request request;
    request.method = static_cast<std::uint16_t>(Method::kCloseSession);
    request.body = encode(CloseSessionRequest{impl->session.id(), impl->session.epoch()});
    auto response = co_await impl->connection->call(std::move(request), timeout);
    if (!response) result = response.error();
    if (response && response->error) result = response->error;
  }
  impl->tasks.cancel_all();
  impl->drop_connection();
  co_return result;
}

}  // namespace fermata::mountd
