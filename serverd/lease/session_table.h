// The sessions as the primary sees them: when each one's lease ends, and how to reach it.
//
// Which sessions exist is replicated state (serverd/meta); this is the primary's memory of time,
// which no log can carry. A client counts its lease from when it *sent* the request that renewed
// it, the primary from when it answers, plus a margin for clocks that run at different rates (Gray
// and Cheriton, "Leases", SOSP 1989): so the client stops trusting its caches before the primary
// acts on the end. A session found due is *ending* from then on and cannot be renewed: its end goes
// through the log, and nobody may trust its lease again. A session that must go although its client
// still renews (it does not answer callbacks) is *doomed*: it is not prolonged any more, and is due
// when the lease that its client was last granted is over, not before. A new primary gives every
// live session a full term, since it knows no better.
//
// Thread-safety: none; the node's executor. Sans I/O.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "common/base/ids.h"
#include "common/env/clock.h"

namespace fermata {
class Connection;
}

namespace fermata::serverd {

class SessionTable {
 public:
  struct Options {
    Duration lease = std::chrono::seconds(10);
    int drift_percent = 5;
    Duration margin_min = std::chrono::milliseconds(50);
  };
  SessionTable();
  explicit SessionTable(Options options);

  /// A session's lease is of the same length all its life, so that a primary which is configured
  /// otherwise ends it no earlier than its client was told.
  struct Live {
    SessionId id;
    Duration lease{};  ///< zero: as in the options
  };
  /// This node became primary: `live` are all sessions, each with a full lease from `now`.
  void start_term(const std::vector<Live>& live, TimePoint now);
  /// Registered, or found registered again by its client. False: it is ending or doomed.
  bool opened(SessionId session, TimePoint now, Duration lease = {});
  /// False: unknown here, ending or doomed; the lease is not longer than before.
  bool renew(SessionId session, TimePoint now);
  /// Its end was applied; its callback channel is returned, for closing.
  std::shared_ptr<Connection> ended(SessionId session);

  bool knows(SessionId session) const { return sessions_.contains(session); }
  bool is_ending(SessionId session) const;
  bool is_doomed(SessionId session) const;
  /// The client itself asked for its end and trusts nothing any more: as if due.
  void start_ending(SessionId session);
  /// Its lease shall not be prolonged; what was granted still holds.
  void doom(SessionId session);
  /// Those whose lease is over and those already ending, until ended(). They are ending from here
  /// on.
  std::vector<SessionId> due(TimePoint now);
  /// When due() will next find more; nothing while there are no sessions that can expire.
  std::optional<TimePoint> next_due() const;
  /// From the primary's view, margin included; zero if over or unknown.
  Duration lease_left(SessionId session, TimePoint now) const;

  /// The connection that carries this session's callbacks; it replaces an older one. False:
  /// unknown.
  bool bind(SessionId session, std::shared_ptr<Connection> connection);
  /// A connection broke: no session is bound to it any more.
  void unbind(const Connection* connection);
  /// All of them, for closing; no session is bound any more.
  std::vector<std::shared_ptr<Connection>> take_channels();
  /// Null: none.
  std::shared_ptr<Connection> channel(SessionId session) const;

  std::vector<SessionId> all() const;
  std::size_t size() const { return sessions_.size(); }
  Duration lease() const { return options_.lease; }
  Duration lease(SessionId session) const;

 private:
  struct Session {
    TimePoint until;
    Duration lease{};
    bool ending = false;
    bool doomed = false;
    std::shared_ptr<Connection> channel;
  };
  TimePoint lease_end(const Session& session, TimePoint now) const;

  Options options_;
  std::map<SessionId, Session> sessions_;
};

}  // namespace fermata::serverd
