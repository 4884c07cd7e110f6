// Tells sessions to forget what they cached, and knows when they have.
//
// Each session's request is sent on the connection that it bound for callbacks, again after a
// failure, until it is answered or the session has ended. A session that keeps its lease but does
// not answer within one and a half leases is not renewed any more: else one stuck client could hold
// up everybody for ever. It ends when the lease that it has is over, since until then its client
// may answer from its caches. Time in which the log did not move does not count: what the client
// has to send before it answers waits for it.
//
// Thread-safety: the node's executor.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string_view>
#include <vector>

#include "serverd/service/node_context.h"

namespace fermata::serverd {

/// How long a session may keep others waiting for what it owes them.
class Patience {
 public:
  /// It lasts for so many of the session's leases.
  Patience(const NodeContext& node, SessionId session, double leases);
  /// To be asked every few seconds at least.
  bool is_over();

 private:
  const NodeContext& node_;
  TimePoint ends_, seen_at_;
  LogIndex seen_;  ///< how far the state was then
};

class Callbacks {
 public:
  explicit Callbacks(NodeContext& node);

  /// Sends `requests` and resumes when each is answered or its session has ended. Result: the
  /// sessions that have `asked` open (none: not asked). Errors: kNotPrimary when this node ceases
  /// to be the primary; operation_canceled.
  Task<std::set<SessionId>> break_leases(std::map<SessionId, CallbackRequest> requests,
                                         InodeId asked);
  /// Whether recall() has anybody to ask.
  bool held_elsewhere(const std::vector<InodeId>& directories, SessionId caller) const;
  /// Asks whoever may have made files in the directories by itself, `caller` excepted, and resumes
  /// when what each made is in the state, or its session is over. Errors: as above.
  Task<void> recall(std::vector<InodeId> directories, SessionId caller);
  /// The session is not renewed any more, and ends with the lease that it has; `why` is for the
  /// operator. Nothing for one that is known to end.
  void give_up(SessionId session, std::string_view why);
  /// Asks for the oldest leases of a session that has too many, in the background.
  void evict(SessionId session);

  void on_session_ended(SessionId session);
  void on_not_serving();

 private:
  /// One break_leases() under way.
  struct Breaking {
    explicit Breaking(const boost::asio::any_io_executor& executor) : changed(executor) {}
    std::set<SessionId> waiting;
    std::set<SessionId> open;
    InodeId asked;
    bool aborted = false;
    Signal changed;
  };
  boost::asio::awaitable<void> deliver(SessionId session, CallbackRequest request,
                                       std::shared_ptr<Breaking> breaking, Term term);
  boost::asio::awaitable<void> do_evict(SessionId session, Term term);

  NodeContext& node_;
  std::vector<std::shared_ptr<Breaking>> breakings_;  // in order of making: the same every run
  std::set<SessionId> evicting_;
};

}  // namespace fermata::serverd
