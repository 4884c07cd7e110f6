// What mountd knows of one regular file's node: its cached copy, its opens, its commits.
//
// A node is one lineage of versions of one inode (docs/FUSE.md rules 1 to 3): the kernel allows one
// backing file per node, so a newer remote version gets another node while this one has users.
// `holds` counts users: opens, operations under way, a mapping that outlived its close, a commit.
// While it is 0 the node is idle: it may take a newer version, be detached or be forgotten.
//
// Thread-safety: atomics anywhere, the rest under `mutex`. Lock order: NodeTable's mutex, this one,
// then the cache's. `holds` rises from 0 only under the NodeTable's mutex.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/ids.h"
#include "common/base/mutex.h"
#include "common/base/range_locks.h"
#include "mountd/cache/cache_store.h"
#include "mountd/fs/signal.h"
#include "mountd/fs/write_times.h"
#include "mountd/fuse/reply.h"

namespace fermata::mountd {

/// How the opens that live reach the content (docs/FUSE.md rule 2: one mode per node at a time).
enum class IoMode : std::uint8_t { kNone, kOrdinary, kPassthrough };

/// A commit of one copy that runs or is next, and who waits for it.
struct CommitJob {
  std::vector<std::shared_ptr<Signal>> waiters;
};

/// Content that streams in behind an open.
struct FillJob {
  Mutex mutex;
  bool done FM_GUARDED_BY(mutex) = false;
  std::error_code result FM_GUARDED_BY(mutex);
  std::vector<std::shared_ptr<Signal>> waiters FM_GUARDED_BY(mutex);
  std::vector<std::uint32_t> urgent FM_GUARDED_BY(mutex);  ///< chunks that a read waits for
};

/// What the nodes of an inode share: its locks are the cluster's by inode (docs/FUSE.md rule 4).
struct InodeLocks {
  std::atomic<bool> asked{false};  ///< somebody asked for a lock: every close must be heard of
  /// One request for a lock, or a return, on its way at a time. fcntl's and flock's apart, as they
  /// are delegated: a request may wait for another mount, whose own waits for a return of the other
  /// kind here.
  Gate& gate(LockSpace space) { return space == LockSpace::kFlock ? flock_gate : posix_gate; }
  Gate posix_gate;
  Gate flock_gate;
};

struct FileState {
  FileState(InodeId inode_id, NodeHandle handle, std::shared_ptr<InodeLocks> shared)
      : inode(inode_id), node(handle), locks(std::move(shared)) {}
  const InodeId inode;
  const NodeHandle node;
  const std::shared_ptr<InodeLocks> locks;

  std::atomic<std::uint32_t> holds{0};
  std::atomic<std::uint32_t> writers{0};  ///< writable opens
  /// Holds work that no commit has taken, as far as is known: the copy stays the mount's, whatever
  /// was committed elsewhere.
  std::atomic<bool> sticky{false};
  std::atomic<bool> unlinked_elsewhere{false};  ///< told to be open when it lost its last name
  std::atomic<bool> linkable{false};            ///< made without a name, and may still get one
  /// How many LINKs give it its first name just now: closes commit, and it is not let go of.
  std::atomic<std::uint32_t> naming{0};
  /// Made, and its open under way: the kernel will be told of it with what is valid then.
  std::atomic<bool> creating{false};
  /// Made here, and not known to the cluster: content_gate is held to send it.
  std::atomic<bool> unsent{false};
  /// Made here, and refused by the cluster for good: why (errno). Nothing of it is committed any
  /// more, and its bytes are kept as a conflict.
  std::atomic<int> lost{0};
  std::atomic<bool> mapped{false};       ///< a writable mapping outlived the last writable open
  std::atomic<std::uint32_t> syncs{0};   ///< commits before a close, since there is a writer
  std::atomic<std::uint64_t> writes{0};  ///< that passed the daemon, since there is a writer
  /// What it may allocate under its quotas, as last heard; all ones: not known, or no limit.
  std::atomic<std::uint64_t> allocated_max_bytes{UINT64_MAX};
  std::atomic<Duration::rep> room_asked{0};  ///< when that was asked for last
  /// One commit or update in place of the copy at a time: each takes what it finds there for one
  /// version. Taken before `gate`.
  Gate content_gate;
  /// Updates in place that hold or want `content_gate`: they may be waiting for `gate` inside it.
  std::atomic<std::uint32_t> updates_asked{0};
  Gate gate;  ///< serialises what attaches, fills and truncates

  Mutex mutex;
  CachePin copy FM_GUARDED_BY(mutex);
  std::int32_t backing_id FM_GUARDED_BY(mutex) = 0;
  IoMode mode FM_GUARDED_BY(mutex) = IoMode::kNone;
  std::uint32_t opens FM_GUARDED_BY(mutex) = 0;
  Version page_cache_version FM_GUARDED_BY(mutex);  ///< that the kernel's page cache may hold
  WriteTimes times FM_GUARDED_BY(mutex);
  /// The session under which what no commit has taken was begun; in another one the commit is
  /// fenced: it takes effect only if nobody else has committed since.
  SessionId work_session FM_GUARDED_BY(mutex);
  /// The backing file's atime as of the last read that was noted (atime.cc).
  std::int64_t atime_base_ns FM_GUARDED_BY(mutex) = 0;
  /// Who wrote what is to be committed, and Attr::change when that one opened it: see CommitOp.
  /// Nobody in particular (user 0): the daemon itself, for what an earlier one has left.
  struct Writer {
    Credentials who;
    LogIndex opened;
  };
  Writer writer FM_GUARDED_BY(mutex);
  bool fenced FM_GUARDED_BY(mutex) = false;  ///< written under a session that is over
  /// Written under a lock that was lost with its session: its commit is refused.
  bool lock_lost FM_GUARDED_BY(mutex) = false;
  bool kill_privileges FM_GUARDED_BY(mutex) = false;
  bool let_go FM_GUARDED_BY(mutex) = false;  ///< it had no name, and its last close ended it
  int watch FM_GUARDED_BY(mutex) = -1;       ///< inotify watch while `mapped`
  std::shared_ptr<FillJob> fill FM_GUARDED_BY(mutex);
  std::shared_ptr<CommitJob> commit_running FM_GUARDED_BY(mutex);
  std::shared_ptr<CommitJob> commit_next FM_GUARDED_BY(mutex);

  /// Where it is among the idle files that keep their copy, if it is; under FileSystem's
  /// idle_mutex_.
  std::optional<std::list<std::weak_ptr<FileState>>::iterator> idle_place;
};

}  // namespace fermata::mountd
