// What is true in a simulated cluster, and whether what clients are told can be.
//
// The nodes' state machines are watched: the first application of a log index decides what that
// index is, every later one (another node, a replay) must be the same bytes and give the same
// answer. The oracle applies the log to a state of its own, one command at a time, and keeps how
// each inode, entry, set of xattrs and content changed by index. So the log's order is the order of
// mutations, and checking a client's history is near-linear instead of a search:
//
//   a mutation that was acknowledged is in the log once, and its index lies after all that was
//   acknowledged before it began;
//   a read shows the state at some index between what had been acknowledged when it began and now.
//
// For every finished operation the smallest possible index is chosen; the greatest chosen so far is
// the *floor* of whatever begins later. Choosing the smallest never hides a linearization (the
// floor only bounds from below), so the check is exact: a history passes if and only if it is
// linearizable with the mutations in log order. Operations without an answer stay open for ever.
//
// Thread-safety: none; one thread.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/base/buffer.h"
#include "common/env/sim_disk.h"
#include "common/wire/commands.h"
#include "serverd/meta/namespace.h"
#include "serverd/store/mem_store.h"

namespace fermata::test {

class Oracle {
 public:
  Oracle();
  ~Oracle();

  bool failed() const { return !violation_.empty(); }
  const std::string& violation() const { return violation_; }
  /// The first violation counts.
  void fail(std::string what);

  // ---- the nodes

  /// `node` went from `before` to `last` with `batch`; `results` are its answers.
  void on_apply(NodeId node, std::span<const serverd::StateMachine::Command> batch, LogIndex before,
                LogIndex last, const std::vector<std::string>& results);
  /// `node` serves as primary of `term`: nobody else ever does.
  void on_primary(NodeId node, Term term);
  /// The newest index that any node has applied.
  LogIndex applied() const { return applied_; }
  /// A node's whole state at applied(): equal to the oracle's, byte for byte.
  void check_digest(NodeId node, const serverd::KvReader& store);
  const serverd::Namespace& truth() const { return *truth_; }

  // ---- clients' operations

  /// The floor of an operation that begins now.
  LogIndex begin() const { return floor_; }
  /// The same for a read that a client answers from its cache while mutations of its own are on
  /// their way. These call back nobody's leases but other clients', so the client (and its kernel)
  /// shows the state before them until they have returned: what was acknowledged to others after
  /// they took effect does not bound such a read.
  LogIndex begin_cached(const std::set<std::uint64_t>& own) const;
  /// A read's answer; `how` says where it came from. False: nothing like it was ever true in time.
  bool saw_attr(LogIndex floor, const std::string& how, const Attr& attr);
  /// The inode was not there.
  bool saw_no_inode(LogIndex floor, const std::string& how, InodeId inode);
  /// None: no such entry. `attr`, if not null, is the child's.
  bool saw_entry(LogIndex floor, const std::string& how, InodeId parent, const std::string& name,
                 InodeId child, const Attr* attr);
  bool saw_listing(LogIndex floor, const std::string& how, InodeId directory,
                   const std::map<std::string, InodeId>& entries);
  bool saw_xattrs(LogIndex floor, const std::string& how, InodeId inode,
                  const std::map<std::string, std::string>& xattrs);
  /// What an open was given as the content of a version.
  bool saw_content(const std::string& how, InodeId inode, const serverd::Content& content);

  /// Registers a mutation; its number travels in Credentials::groups.
  /// `under`: the session it is for, if it is for one only.
  std::uint64_t begin_mutation(Mutation op, ByteView payload, SessionId under);
  bool end_mutation(std::uint64_t id, const Result<MutationReply>& answer);
  /// Its index in the log, none while there is none.
  LogIndex index_of(std::uint64_t id) const;
  /// For traces.
  std::string describe(std::uint64_t id) const;
  bool is_newest(InodeId inode, Version version) const;
  /// From now on a disk may be full: an operation may be refused for want of room.
  void allow_no_space() { may_lack_space_ = true; }
  /// As committed; null if it never was.
  const serverd::Content* content_of(Version version) const;
  /// A client is about to put this chunk.
  void note_chunk(ChunkId id, const Buffer& bytes) { chunk_bytes_.emplace(id, bytes); }
  /// The newest content of the inode names the chunk: folding may have put another in its place.
  bool names_chunk(InodeId inode, ChunkId id) const;

  /// A client takes it that one of its programs holds the lock from here on. Two that conflict may
  /// do so only if the session of the first is over. `here`: it did not ask, so its own is not.
  void locked(const std::string& who, InodeId inode, LockSpace space, const HeldLock& lock,
              bool here);
  /// The owner is about to release what it holds there.
  void unlocked(InodeId inode, LockSpace space, const LockOwner& owner);
  // ---- files that a mount has made without asking: whoever asks about their names from then on
  // is told of them, unless they went with the mount's session

  std::uint64_t promise(InodeId parent, const std::string& name, InodeId inode, SessionId session);
  /// It was removed again, or had to be given up for `why`: never for want of telling in time.
  void end_promise(std::uint64_t id, std::error_code why);
  /// Those that are not in the log.
  std::vector<std::uint64_t> promises() const;
  /// The floor of an answer about `name` (empty: all names) to a question that was asked when
  /// `promised` were open.
  LogIndex floor_of(LogIndex floor, const std::vector<std::uint64_t>& promised,
                    const std::string& how, InodeId parent, const std::string& name);

  struct Counts {
    std::uint64_t made_here = 0;       ///< promises
    std::uint64_t kept = 0;            ///< of them, in the log
    std::uint64_t commands = 0;        ///< in the log
    std::uint64_t duplicates = 0;      ///< of them, applied before
    std::uint64_t retries = 0;         ///< overtaken: kRetry
    std::uint64_t fenced = 0;          ///< of sessions that had ended
    std::uint64_t stale_bases = 0;     ///< commits
    std::uint64_t replaced_newer = 0;  ///< commits over a version that their writer had not seen
    std::uint64_t folded = 0;          ///< chunks that took the place of patches
    std::uint64_t quota_records = 0;   ///< looked at to count what was there, or to let it go
    std::uint64_t orphaned = 0;        ///< inodes that lost their last name and were kept
    std::uint64_t digests = 0;         ///< compared
    std::uint64_t checks = 0;
    std::uint64_t acknowledged = 0;  ///< mutations
    std::uint64_t unknown = 0;       ///< mutations whose client does not know
  };
  const Counts& counts() const { return counts_; }

 private:
  template <class T>
  class History {
   public:
    /// As of `index`; a default T before the first change.
    const T& at(LogIndex index) const;
    void note(LogIndex index, T value);
    void add_points(std::vector<LogIndex>& to) const;
    const std::vector<std::pair<LogIndex, T>>& changes() const { return changes_; }

   private:
    std::vector<std::pair<LogIndex, T>> changes_;
    T none_{};
  };
  using Attrs = History<std::optional<Attr>>;
  using Entry = History<InodeId>;
  using Xattrs = History<std::map<std::string, std::string>>;
  struct Op {
    Mutation op;
    SessionId under;
    std::uint64_t payload_hash = 0;
    LogIndex floor;
    std::vector<std::uint64_t> promised;
    enum class State : std::uint8_t {
      kOpen,
      kAcknowledged,
      kFailed,
      kUnknown
    } state = State::kOpen;
    LogIndex index;  ///< where it took effect or was refused for good
    CommandResult result;
  };

  struct Promise {
    InodeId parent;
    std::string name;
    InodeId inode;
    SessionId session;
    LogIndex kept;
    bool over = false;
  };

  void keep_promise(LogIndex index, InodeId inode);
  void apply(const serverd::StateMachine::Command& raw);
  /// What is put in the place of patches must read as they do. Before it is applied.
  void check_fold(LogIndex index, const FoldPatchesCommand& fold);
  void on_mutation(LogIndex index, const Command& command, const MutateCommand& mutate,
                   const CommandResult& result);
  void note_effects(LogIndex index, const MutateCommand& mutate, const CommandResult& result);
  bool is_delegated(const ReturnLocksOp& list, SessionId session) const;
  void refresh(LogIndex index, InodeId inode);
  void refresh_entry(LogIndex index, InodeId parent, const std::string& name);
  void refresh_xattrs(LogIndex index, InodeId inode);
  InodeId entry_at(InodeId parent, const std::string& name, LogIndex index) const;
  std::error_code refusal_at(const Mutation& op, LogIndex index) const;
  template <class Holds>
  bool settle(LogIndex floor, std::vector<LogIndex> points, Holds holds);
  bool explain(const std::string& what);
  std::string story(InodeId inode) const;
  std::string story(InodeId parent, const std::string& name) const;
  const Attrs* attrs(InodeId inode) const;

  std::string violation_;
  SimDisk disk_;
  std::unique_ptr<serverd::MemStore> store_;
  std::unique_ptr<serverd::Namespace> truth_;
  LogIndex applied_;
  LogIndex floor_;
  struct Applied {
    std::uint64_t hash = 0;
    std::string result;
  };
  std::map<LogIndex, Applied> log_;
  std::map<Term, NodeId> primaries_;
  std::set<SessionId> live_;
  std::map<std::pair<InodeId, LockSpace>, LockList> locked_;
  std::map<std::pair<SessionId, Sequence>, LogIndex> requests_;
  std::unordered_map<std::uint64_t, Op> ops_;
  std::uint64_t next_op_ = 1;
  std::unordered_map<InodeId, Attrs> attrs_;
  std::unordered_map<InodeId, std::map<std::string, Entry>> entries_;
  std::unordered_map<InodeId, Xattrs> xattrs_;
  std::map<Version, serverd::Content> contents_;
  std::map<Version, std::vector<serverd::Content>> folded_contents_;  ///< the same, folded
  std::map<ChunkId, Buffer> chunk_bytes_;
  std::set<InodeId> unlinked_;
  std::map<std::uint64_t, Promise> promises_;
  std::map<InodeId, std::uint64_t> promise_of_;
  std::uint64_t next_promise_ = 1;
  Counts counts_;
  bool may_lack_space_ = false;
};

}  // namespace fermata::test
