// Sessions at the primary: opening, renewing, binding callbacks, closing and expiring them.
//
// The end of a session is a command in the log, so that every node fences it at the same place;
// until it is applied the session holds up what waits for its callbacks. Thread-safety: the node's
// executor.
#pragma once

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class SessionService {
 public:
  explicit SessionService(NodeContext& node) : node_(node) {}

  boost::asio::awaitable<Response> open(Request request);
  boost::asio::awaitable<Response> renew(Request request);
  boost::asio::awaitable<Response> close(Request request);
  Response bind(const std::shared_ptr<Connection>& from, const Request& request);
  SessionList list() const;

  /// This node is primary of `term` and its state is complete: fills the tables. False: the state
  /// could not be read.
  Status start_term(Term term);
  /// Runs while the node serves in `term`: ends the sessions whose lease is over.
  boost::asio::awaitable<void> expire(Term term);
  void on_sessions_ended(std::span<const SessionId> sessions);
  void on_disconnect(const Connection* connection) { node_.sessions.unbind(connection); }

 private:
  /// A registration on its way. It goes on when the request that wanted it is given up: a session
  /// in the state that this primary does not count down would never end.
  struct Opening;
  boost::asio::awaitable<void> enter(std::shared_ptr<Opening> opening);
  Task<CommandResult> register_session(std::shared_ptr<Opening> opening);

  NodeContext& node_;
};

}  // namespace fermata::serverd
