// Who may cache what: the leases that the primary has granted, and whom a mutation has to call
// back.
//
// A lease lets one session answer from its cache about one inode: attributes, xattrs and the newest
// content version, and for a directory every entry and every absence it was told under it (Gray and
// Cheriton, "Leases", SOSP 1989; callbacks as in Howard et al., "Scale and Performance in a
// Distributed File System", TOCS 1988). The rule that this table keeps: *once a mutation is
// acknowledged, no other session holds a valid lease on the state before it.* A mutation does
//
//   mark(touched)                       no new lease on what it touches from here on
//   break_leases(touched, caller)       one request per other holder
//   answered(...) or remove_session()   for each of them, in any order
//   ... the change is committed and applied ...
//   unmark(touched)                     only then grant() answers yes again
//
// A holder leaves the table when it has *answered*, not when it is asked: a second mutation of the
// same inode that comes meanwhile must ask it too. What a client received late is put right by
// stamps: an answer stamped below the last callback of its inode is not cached.
//
// Opens. An inode that loses its last link lives on while somebody has it open, so the table also
// knows who may have: holders (they open without asking), openers (they opened without getting a
// lease, or said in a callback's answer that it is open), and untracked sessions: those that are
// older than this primary and of whose opens it knows nothing.
//
// Exclusive leases. A session that has made something in a directory may be granted it for itself
// (docs/adr/0010-exclusive-directories.md): it then makes files there without asking, and tells
// later. So nobody else's question about the directory's names or attributes is answered, and
// nobody else's change of it planned, before the holder has given it up: it tells what it made
// before it answers the callback. Any callback that names the directory takes it back; one that
// asks for nothing else (an item without anything set) leaves the holder what it has cached.
//
// A new primary knows no leases: every live session is a *wildcard* holder, of everything, until it
// has given up the older terms' leases. One that has ids of inodes in reserve may have made files
// in any directory, so until then others' reads of a directory ask it first, too. In memory only;
// sans I/O.
//
// Thread-safety: none; the node's executor.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "common/base/ids.h"
#include "common/env/clock.h"
#include "common/wire/messages.h"

namespace fermata::serverd {

/// What a mutation may change of one inode.
struct Touch {
  InodeId inode;
  bool directory = false;
  bool attributes = true;          ///< attributes, xattrs, content version
  bool all_entries = false;        ///< directories: every entry (it is removed)
  std::vector<std::string> names;  ///< directories: these entries
  bool last_link = false;          ///< not a directory, and about to have no name left
};
using TouchSet = std::vector<Touch>;

class LeaseTable {
 public:
  struct Options {
    std::size_t leases_per_session = 200'000;  ///< above it the oldest should be called back;
                                               ///< grants end at a quarter more
    std::size_t items_per_callback = 4096;     ///< of evict()
    /// A directory that somebody else has asked about so lately is not granted to one alone.
    Duration exclusive_after = std::chrono::seconds(1);
    /// So many creations of one session, with nobody else's question in between, take others'
    /// leases of the directory away.
    std::uint32_t exclusive_creates = 4;
  };
  LeaseTable();
  explicit LeaseTable(Options options);

  // ---- sessions

  /// This node became primary of `term`: forgets everything; `live` are wildcards and untracked.
  /// Of them `makers` have ids in reserve.
  void start_term(Term term, const std::vector<SessionId>& live,
                  const std::vector<SessionId>& makers = {});
  /// A session that this primary registered. Known already: nothing.
  void add_session(SessionId session);
  /// The session has given up what older terms granted: no wildcard any more.
  void given_up(SessionId session);
  /// Its end was applied. Whoever waits for its answers need not.
  void remove_session(SessionId session);
  bool has_session(SessionId session) const;
  bool is_wildcard(SessionId session) const;
  std::size_t leases_of(SessionId session) const;

  /// Orders answers and callbacks of this term: take it with no co_await between it and the
  /// reading.
  Stamp next_stamp();

  // ---- grants: true if `session` may cache it under a stamp taken now

  bool grant(SessionId session, InodeId inode);
  bool grant_entry(SessionId session, InodeId parent, std::string_view name);
  /// The whole listing: no name may be pending.
  bool grant_entries(SessionId session, InodeId directory);
  /// It opened `inode`; `granted`: with a lease, which is note enough.
  void opened(SessionId session, InodeId inode, bool granted);
  /// A mutation that takes the last link of `inode` is on its way: an open must wait for its end.
  bool losing_last_link(InodeId inode) const;

  // ---- exclusive leases of directories

  /// After a creation of `session` in `directory` (or of it) was applied. True: it is the only one
  /// that may know anything of it, from a stamp taken now.
  bool grant_exclusive(SessionId session, InodeId directory, TimePoint now);
  /// Before a creation of `session`: others' leases of the directory are to be broken whole, so
  /// that it can be granted.
  bool wants_alone(SessionId session, InodeId directory, TimePoint now);
  /// Somebody else than `caller` may have made files there that the state does not know.
  bool held_elsewhere(InodeId directory, SessionId caller) const;
  /// Those, each with what to ask it; `caller` has asked about the directories at `now`.
  std::map<SessionId, CallbackRequest> recall(const std::vector<InodeId>& directories,
                                              SessionId caller, TimePoint now);
  /// From asking until all have answered: nobody is granted the directories meanwhile.
  void begin_recall(const std::vector<InodeId>& directories);
  void end_recall(const std::vector<InodeId>& directories);
  /// `caller` has asked about names or attributes of the directory.
  void note_asked(InodeId directory, SessionId caller, TimePoint now);

  // ---- mutations

  void mark(const TouchSet& touched, SessionId by = {});
  void unmark(const TouchSet& touched, SessionId by = {});
  /// The requests to send, by session, all with one fresh stamp.
  std::map<SessionId, CallbackRequest> break_leases(const TouchSet& touched, SessionId caller);
  /// Ids were reserved for it. One that still trusts older terms' grants may use them under these.
  void note_maker(SessionId session);
  /// `session` answered `request` (of break_leases or evict).
  void answered(SessionId session, const CallbackRequest& request, const CallbackReply& reply);
  /// Sessions known to have `inode` open without a lease, but for `caller`.
  std::vector<SessionId> openers(InodeId inode, SessionId caller) const;
  /// The inode is gone for good.
  void forget_inode(InodeId inode);

  // ---- bounds

  /// Over its limit: ask it to give these back. Empty: within it.
  CallbackRequest evict(SessionId session);
  std::size_t lease_count() const { return lease_count_; }

 private:
  struct Holder {
    SessionId session;
    Stamp granted;  ///< the newest grant
  };
  struct Inode {
    std::vector<Holder> holders;
    std::vector<Holder> openers;
    std::uint32_t pending_attributes = 0;
    std::uint32_t pending_entries = 0;  ///< mutations that touch all of them
    std::uint32_t pending_last_link = 0;
    std::map<std::string, std::uint32_t, std::less<>> pending_names;
    std::vector<std::pair<SessionId, std::uint32_t>> pending_by;  ///< whose those are
    SessionId exclusive;                                          ///< held by it alone
    Stamp exclusive_since;
    SessionId creator;  ///< whose the last creations are, and how many with none else in between
    std::uint32_t creates = 0;
    TimePoint asked{};  ///< when somebody else than the creator last asked
    bool unused() const;
  };
  struct Session {
    bool wildcard = false;
    bool maker = false;                   ///< as a wildcard: of exclusive leases, too
    std::unordered_set<InodeId> cleared;  ///< as a maker: it has given these up
    bool untracked = false;  ///< of its opens too little is known: it is asked at every last link
    std::size_t leases = 0;
    std::size_t opens = 0;      ///< inodes of which it is an opener
    std::deque<InodeId> order;  ///< in order of first grant; may name what it holds no more
  };

  Inode* find(InodeId inode);
  const Inode* find(InodeId inode) const;
  void drop_if_unused(InodeId inode);
  bool hold(SessionId session, InodeId inode, Inode& state);
  static bool others_pend(const Inode& state, SessionId but);
  static bool own_only(const Inode& state, SessionId session);
  void give_up_exclusive(SessionId session, InodeId inode, Stamp before);
  void release(SessionId session, InodeId inode, Stamp before);
  void forget_open(SessionId session, Inode& state, Stamp before);
  void compact(SessionId id, Session& session);

  Options options_;
  Term term_;
  std::uint64_t stamp_count_ = 0;
  std::map<SessionId, Session> sessions_;  // ordered: callbacks go out in the same order every run
  std::unordered_map<InodeId, Inode> inodes_;
  std::map<InodeId, std::uint32_t> recalls_;  ///< under way
  std::size_t lease_count_ = 0;
  std::size_t makers_ = 0;  ///< sessions that are
};

}  // namespace fermata::serverd
