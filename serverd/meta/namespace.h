// The namespace of one replica group: the state machine that the replicated log feeds.
//
// Every node applies the same commands in the same order and comes to the same bytes (Schneider,
// "Implementing Fault-Tolerant Services Using the State Machine Approach", 1990): times and ids
// come in the command or from counters in the state, digest() proves it. Each command's effects,
// its result in the duplicate-request table and the applied index are one atomic write. An
// overwritten or removed record moves to history under the index that ended it, so reads "as of" an
// index are possible; see docs/format/meta.md. Leases and durability of chunks are
// decided elsewhere.
//
// A client's mutation is checked against the credentials in its command when it is applied.
//
// Thread-safety: apply() and reads on the node's executor; flush() and checkpoint() may run on
// another thread beside them; install() beside reads, not beside apply(). Digest work runs
// anywhere.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/mutex.h"
#include "common/wire/commands.h"
#include "serverd/meta/records.h"
#include "serverd/meta/txn.h"
#include "serverd/raft/replicated_log.h"
#include "serverd/store/kv_store.h"

namespace fermata::serverd {

/// What others want to hear of, told on the executor after the effects are readable. On replay
/// after a restart the same events come again.
class NamespaceListener {
 public:
  virtual ~NamespaceListener() = default;
  /// Records came to name these chunks. One that was dropped later in the log may come up in a
  /// replay.
  virtual void on_chunks_referenced(std::span<const ChunkId>) {}
  /// Nothing refers to these and the log said at `index` that their files go.
  virtual void on_chunks_dropped(std::span<const ChunkId>, LogIndex /*index*/) {}
  virtual void on_sessions_ended(std::span<const SessionId>) {}
  /// digest_work() has something to run.
  virtual void on_digest_ordered(LogIndex) {}
  virtual void on_role(Role, Term) {}
  /// The whole state was replaced. Told on install()'s thread.
  virtual void on_installed() {}
};

/// One digest to compute: holds the state as it was at its index.
class DigestWork;

class Namespace final : public StateMachine {
 public:
  /// Reads where the store stands. `store` and `listener` (which may be null) outlive this.
  /// Errors: kCorruptStore; kVersionMismatch (written by a newer program).
  static Result<std::unique_ptr<Namespace>> open(KvStore& store,
                                                 NamespaceListener* listener = nullptr);
  ~Namespace() override;

  // ---- StateMachine
  /// kBadMessage for a command that this program cannot read: the node must stop rather than
  /// diverge.
  Result<std::vector<std::string>> apply(std::span<const StateMachine::Command> batch,
                                         LogIndex last) override;
  LogIndex applied_index() const override { return LogIndex(applied_.load()); }
  LogIndex durable_index() const override { return LogIndex(durable_.load()); }
  Status flush() override;
  Result<LogIndex> checkpoint(const std::string& path) override;
  Status install(const std::string& path) override;
  void on_role(Role role, Term term) override;

  // ---- the same without the codec: for tests and tools
  struct Entry {
    LogIndex index;
    fermata::Command command;
  };
  /// None for entries already applied, and for those behind applied_index(), see apply().
  Result<std::vector<std::optional<CommandResult>>> apply_entries(std::span<const Entry> batch,
                                                                  LogIndex last);

  // ---- reads of the applied state; ENOENT for an inode that is not there. Cheap, but may read the
  // disk.
  Result<Attr> attr(InodeId inode) const;
  /// ENOTDIR, ENOENT are about `parent`; no such entry is none.
  Result<std::optional<Dirent>> lookup(InodeId parent, std::string_view name) const;
  struct Listing {
    std::vector<Dirent> entries;  ///< in cookie order, without "." and ".."
    bool end = false;             ///< nothing comes after the last one
  };
  /// ENOTDIR; ENOENT.
  Result<Listing> readdir(InodeId directory, Cookie after, std::size_t entries_max) const;
  Result<std::map<std::string, std::string>> xattrs(InodeId inode) const;
  /// The newest content; chunk refs from `first_chunk` on, at most `chunks_max`. EISDIR, EINVAL for
  /// what has none.
  Result<Content> content(InodeId inode, std::uint32_t first_chunk, std::size_t chunks_max) const;
  /// The content of `version`, also if it is no longer the newest or the inode is gone.
  /// kTruncatedHistory if it is not kept (or never was).
  Result<Content> content_at(InodeId inode, Version version, std::uint32_t first_chunk,
                             std::size_t chunks_max) const;

  // ---- patches
  Result<PatchUse> patch_use(InodeId inode) const;
  /// Oldest first.
  Result<std::vector<StoredPatch>> patches(InodeId inode) const;
  /// Files that have any, in inode order above `after`.
  Result<std::vector<InodeId>> patched_files(InodeId after, std::size_t files_max) const;
  /// The chunk that patches of `index` lie over; none: a hole.
  Result<std::optional<ChunkId>> chunk(InodeId inode, std::uint32_t index) const;

  // ---- reads as of the moment after `at` was applied; kTruncatedHistory below history_start()
  Result<Attr> attr_at(InodeId inode, LogIndex at) const;
  Result<std::optional<Dirent>> lookup_at(InodeId parent, std::string_view name, LogIndex at) const;
  /// In name order; entries_max at most, names above `after`.
  Result<Listing> readdir_at(InodeId directory, LogIndex at, std::string_view after,
                             std::size_t entries_max) const;

  // ---- locks
  /// Of one kind, held on the file; empty if there is no such file.
  Result<LockList> locks(InodeId inode, LockSpace space) const;

  // ---- quotas
  /// All; trees first.
  Result<std::vector<QuotaRecord>> quotas() const;
  /// In force, that count the inode: trees from the nearest outwards, then its owner's.
  Result<std::vector<QuotaRecord>> quotas_of(InodeId inode) const;
  /// The next one to propose CountQuota for; none if all are exact.
  Result<std::optional<QuotaRecord>> unfinished_quota() const;
  /// What looking for directories' names has found, for the next one.
  struct KnownNames {
    std::map<InodeId, std::string> names;
    std::set<InodeId> listed;
    std::size_t entries_left = 50'000;  ///< that may still be looked at
  };
  /// A directory's, from the root; empty if it would take too long to find out.
  Result<std::string> path_of(InodeId directory, KnownNames& known) const;

  // ---- sessions and requests
  Result<std::optional<Session>> session(SessionId session) const;
  Result<std::vector<Session>> sessions() const;
  /// What a mutation of that number came to: a result; none if it is not applied; kStaleEpoch if
  /// the client has said that its answer arrived.
  Result<std::optional<CommandResult>> request_result(SessionId session, Sequence sequence) const;

  // ---- the whole
  struct Counters {
    ClusterId cluster;  ///< none before bootstrap
    std::uint64_t inodes = 0;
    std::uint64_t chunks = 0;   ///< distinct, that records refer to
    std::uint64_t garbage = 0;  ///< chunks that nothing refers to and that are not dropped
    std::uint64_t conflicts = 0;
    std::uint64_t quotas = 0;
    LogIndex history_start;  ///< reads as of lower indexes are refused
  };
  Counters counters() const;
  LogIndex history_start() const { return counters().history_start; }
  struct OrphanEntry {
    InodeId inode;
    SessionId session;
  };
  Result<std::vector<OrphanEntry>> orphans() const;
  struct ChunkUse {
    ChunkId id;
    std::uint64_t references = 0;  ///< 0: garbage
  };
  /// In id order above `after` (a none id: from the start).
  Result<std::vector<ChunkUse>> chunk_uses(ChunkId after, std::size_t chunks_max) const;
  Result<std::uint64_t> chunk_references(ChunkId id) const;
  /// Chunks to propose for DropChunks: nothing has referred to them since before `before`.
  Result<std::vector<ChunkId>> garbage(LogIndex before, std::size_t chunks_max) const;
  /// Newest last.
  Result<std::vector<Conflict>> conflicts(std::size_t conflicts_max) const;

  // ---- digests
  /// The next ordered digest to compute, none if there is none. Call work->run() on the blocking
  /// pool.
  std::shared_ptr<DigestWork> digest_work();
  /// Hexadecimal; of the last few indexes whose work has run.
  std::optional<std::string> digest(LogIndex index) const;

  const KvStore& store() const { return store_; }

 private:
  struct Digests;
  Namespace(KvStore& store, NamespaceListener* listener);
  Status load();
  Status write(Txn& txn, LogIndex applied);
  void tell_chunks(const std::vector<Txn::ChunkEvent>& events);
  Result<Content> read_content(InodeId inode, const InodeRecord& record, std::optional<LogIndex> at,
                               std::uint32_t first_chunk, std::size_t chunks_max) const;
  Result<InodeRecord> inode(InodeId inode) const;
  Result<InodeRecord> directory(InodeId inode) const;
  StateRecord state() const;

  KvStore& store_;
  NamespaceListener* listener_;
  mutable Mutex mutex_;
  StateRecord state_ FM_GUARDED_BY(mutex_);  ///< as in the store
  std::atomic<std::uint64_t> applied_{0};
  std::atomic<std::uint64_t> durable_{0};
  std::shared_ptr<Digests> digests_;  ///< shared with work under way
};

/// See Namespace::digest_work(). Outlives the Namespace if it must.
class DigestWork {
 public:
  virtual ~DigestWork() = default;
  virtual LogIndex index() const = 0;
  /// Reads the whole state: blocks for long. Afterwards Namespace::digest(index()) answers.
  virtual Status run() = 0;
};

}  // namespace fermata::serverd
