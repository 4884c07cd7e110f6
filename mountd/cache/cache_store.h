// The client's whole-file cache: copies of files on local disk, kept over restarts.
//
// One directory (docs/format/cache.md) belongs to one mountd at a time. A copy is found by (inode,
// version); several versions of one inode live side by side while somebody holds an old one open.
// Clean, unpinned copies are evicted in LRU order to stay under a limit of allocated bytes and to
// keep a share of the disk free; whoever pins copies only to have them at hand lets go of them when
// eviction finds too little (on_pressure). A copy that may hold work nobody else has is never
// removed: not by eviction, not by a restart, not when its sidecar is damaged (it goes to
// lost+found then). When such copies have filled the disk, readers and sidecars still have a small
// reserve (disk_reserve.h).
//
// After the machine (not only mountd) went down, clean copies written without fsync may be wrong:
// find() does not return them until begin_fill() of the same version has checked their digests.
//
// Thread-safety: any thread. find() does no system call but reading the clock; the others may
// block. The store outlives its pins.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "mountd/cache/cached_copy.h"
#include "mountd/cache/disk_reserve.h"

namespace fermata::mountd {

struct CacheOptions {
  std::string dir;
  ClusterId cluster;
  std::uint64_t limit_bytes = 10ULL << 30;  ///< of allocated bytes; pinned and dirty ones count
  double free_ratio_min = 0.05;             ///< of the disk, kept free by evicting
  std::size_t open_files_max = 4096;        ///< descriptors kept for copies that nobody pins
  /// Whether a sidecar that says "maybe dirty" is synced, so that even a power cut of the client
  /// machine cannot turn a local write into a copy that looks clean. Costs an fdatasync per open.
  bool sync_dirty_marks = false;
};

struct CacheListing {
  InodeId inode;
  Version base;
  std::uint64_t serial = 0;
  std::string path_hint;
  std::string data_path;  ///< where its bytes are
  std::uint64_t size_bytes = 0;
  std::uint64_t allocated_bytes = 0;
  std::int64_t last_use_ns = 0;  ///< wall clock
  bool complete = false;
  bool maybe_dirty = false;
  bool conflict = false;
  bool open = false;  ///< by programs; for FileSystem to say
};

struct CacheStats {
  std::uint64_t files = 0;
  std::uint64_t bytes = 0;
  std::uint64_t limit_bytes = 0;
  std::uint64_t hits = 0;
  std::uint64_t misses = 0;
  std::uint64_t evictions = 0;
  std::uint64_t dirty_files = 0;
  std::uint64_t conflict_files = 0;
  std::uint64_t lost_found = 0;     ///< set aside by this start
  std::uint64_t verified = 0;       ///< copies checked after the machine went down
  std::uint64_t verify_failed = 0;  ///< of them, dropped
};

class CacheStore {
 public:
  /// Opens or makes the cache and scans it. Logs one clear line with each error: EBUSY (another
  /// mountd uses it); Errc::kWrongCluster; Errc::kVersionMismatch (a newer format); ENOTEMPTY (a
  /// directory of something else); or of the system. An error changes nothing on disk.
  static Result<std::unique_ptr<CacheStore>> open(CacheOptions options);
  /// Saves use times and stale sidecars. No pin is left.
  ~CacheStore();
  CacheStore(const CacheStore&) = delete;
  CacheStore& operator=(const CacheStore&) = delete;

  /// The copy of `version`, filling, complete or dirty with that base; empty if there is none.
  CachePin find(InodeId inode, Version version);
  /// Forgets a conflict's bytes for good, once it is not open any more. False: there is no such
  /// conflict.
  bool drop_conflict(const std::string& data_path);
  /// All copies of an inode, conflicts too.
  std::vector<CachePin> copies_of(InodeId inode);

  struct Fill {
    CachePin copy;
    /// True: the caller fills it. False: it is there, complete or being filled by another.
    bool created = false;
  };
  /// A copy of `version` to fill with `size_bytes`; room is made for `allocated_bytes` of them, the
  /// others being holes. Size 0 still wants finish_fill(). Errors: ENOSPC; EFBIG.
  Result<Fill> begin_fill(InodeId inode, Version version, std::uint64_t size_bytes,
                          std::uint64_t allocated_bytes, std::uint32_t mode, std::string path_hint);
  /// An empty, complete copy of a file that this client creates; marked maybe dirty on disk.
  /// `version` is what the creation committed, or 0 if nothing has been yet.
  Result<CachePin> create(InodeId inode, Version version, CachedCopy::Writes writes,
                          std::uint32_t mode, std::string path_hint);
  /// From now on found as `version`; the sidecar is written by the caller's next step.
  /// A clean copy that had that key leaves the cache.
  void adopt(CachedCopy& copy, Version version);
  /// Forgets a clean copy (its files go with the last pin). False if there is none or it is dirty.
  bool drop(InodeId inode, Version version);
  /// Forgets every clean, unpinned copy (`fermata cache flush`); returns how many.
  std::size_t drop_clean();
  /// The same of one inode.
  std::size_t drop_clean(InodeId inode);
  /// The name of all copies of an inode, for people.
  void rename(InodeId inode, const std::string& path);

  /// Evicts until `bytes` more fit under the limit and the free share of the disk. ENOSPC if what
  /// may not be evicted is in the way of the limit, or of the disk itself.
  Status reserve(std::uint64_t bytes);
  /// Whether `bytes` would fit into an empty cache.
  bool ever_fits(std::uint64_t bytes) const { return bytes <= options_.limit_bytes; }
  /// What the disk has free for a writer that nobody can make room for once it writes. Evicts for
  /// `bytes` of it only where that is a small part of the disk, or when `insist`. Blocking; 0 on an
  /// error.
  std::uint64_t make_free(std::uint64_t bytes, bool insist);
  /// `let_go(bytes)` is to unpin copies of about so many bytes if it can, touch()ing each first;
  /// false if there was none. It is called from any thread, one call at a time, without locks.
  /// Empty: nobody; on return no call is running.
  void on_pressure(std::function<bool(std::uint64_t bytes)> let_go);
  /// The most recently used one from now on; its time of use is what note_use() said.
  void touch(CachedCopy& copy);

  /// Copies left by an earlier mountd whose content differs from every committed version: to be
  /// committed or marked as conflicts. Those already marked are not among them.
  std::vector<CachePin> recovered_dirty();

  std::vector<CacheListing> list();
  CacheStats stats();

  const std::string& dir() const { return options_.dir; }
  /// Whether ctime of the backing filesystem changes with each write and mmap store (multigrain
  /// timestamps; not tmpfs). Found by a self-test at open. If not, untracked writers always count
  /// as having modified, and the digests decide.
  bool ctime_reliable() const { return ctime_reliable_; }

 private:
  friend class CachedCopy;
  struct Key {
    InodeId inode;
    Version version;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    std::size_t operator()(const Key& key) const noexcept {
      return std::hash<InodeId>()(key.inode) ^ (std::hash<Version>()(key.version) * 31);
    }
  };
  using Copies = std::list<std::shared_ptr<CachedCopy>>;

  explicit CacheStore(CacheOptions options) : options_(std::move(options)) {}
  Status start();
  Status lock_dir();
  Status check_format();
  Status note_boot();
  void size_reserve();
  std::vector<CopyMeta> scan();
  void scan_shard(const std::string& dir, std::vector<CopyMeta>& found);
  bool admit(const std::string& dir, const std::string& stem, std::vector<CopyMeta>& found);
  void set_aside(const std::string& dir, const std::string& stem, const std::string& reason);
  void load(std::vector<CopyMeta> found);
  void load_last_uses(std::vector<CopyMeta>& found);
  void save_last_uses();
  Status test_ctime();

  std::string data_path(InodeId inode, std::uint64_t serial) const;
  std::shared_ptr<CachedCopy> make_object(CopyMeta meta);
  void insert_locked(std::shared_ptr<CachedCopy> copy) FM_REQUIRES(mutex_);
  /// The copy of that key, made most recently used; suspects too.
  CachePin touch_locked(InodeId inode, Version version) FM_REQUIRES(mutex_);
  Result<Fill> new_copy(CopyMeta meta, std::uint64_t charged_bytes);
  /// Out of list and index; the files go with the last reference, which is returned.
  std::shared_ptr<CachedCopy> detach_locked(CachedCopy& copy) FM_REQUIRES(mutex_);
  void unindex_locked(CachedCopy& copy) FM_REQUIRES(mutex_);
  static bool evictable(const CachedCopy& copy);
  /// Evicts until `bytes` are freed or nothing is left; returns the bytes freed.
  std::uint64_t evict(std::uint64_t bytes, const CachedCopy* keep);
  std::uint64_t evict_unpinned(std::uint64_t bytes, const CachedCopy* keep);
  std::uint64_t keep_free_bytes(std::uint64_t disk_bytes) const;
  Result<bool> verify(CachedCopy& copy);

  // For CachedCopy.
  enum class For { kWriter, kReader };  // a writer has no part in the reserve
  /// After ENOSPC: true if some room was made, so that trying again makes sense.
  bool make_room(std::uint64_t bytes, const CachedCopy* keep, For whom);
  template <class Attempt>
  Status with_room(std::uint64_t bytes, const CachedCopy* keep, For whom, Attempt attempt);
  void recharge(CachedCopy& copy, std::uint64_t allocated_bytes);
  void forget(CachedCopy& copy);
  void unindex(CachedCopy& copy);
  void opened_descriptor();
  void closed_descriptors(std::size_t count) { open_files_.fetch_sub(count); }

  const CacheOptions options_;
  std::shared_ptr<Fd> lock_fd_;
  bool ctime_reliable_ = false;
  std::atomic<std::size_t> open_files_{0};
  DiskReserve disk_reserve_;

  Mutex pressure_mutex_;  // held during the call; before mutex_
  std::function<bool(std::uint64_t)> let_go_ FM_GUARDED_BY(pressure_mutex_);

  Mutex mutex_;                          // before any CachedCopy::mutex_
  Copies copies_ FM_GUARDED_BY(mutex_);  // least recently used first
  std::unordered_map<Key, CachedCopy*, KeyHash> index_ FM_GUARDED_BY(mutex_);
  std::unordered_multimap<InodeId, CachedCopy*> by_inode_ FM_GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<CachedCopy>> recovered_ FM_GUARDED_BY(mutex_);
  std::uint64_t bytes_ FM_GUARDED_BY(mutex_) = 0;
  std::uint64_t next_serial_ FM_GUARDED_BY(mutex_) = 1;
  std::uint64_t suspect_below_ FM_GUARDED_BY(mutex_) = 0;
  CacheStats counters_ FM_GUARDED_BY(mutex_);
};

template <class Attempt>
Status CacheStore::with_room(std::uint64_t bytes, const CachedCopy* keep, For whom,
                             Attempt attempt) {
  constexpr int kAttemptsMax = 8;  // others write, too
  Status done = attempt();
  for (int i = 1; i < kAttemptsMax && !done; ++i) {
    if (done.error() != std::errc::no_space_on_device || !make_room(bytes, keep, whom)) break;
    done = attempt();
  }
  return done;
}

}  // namespace fermata::mountd
