// One copy of a file's content in the cache on local disk, and what is known about its state.
//
// A copy is one backing file. It is *filling* while its version streams in, then *complete*. Before
// the first writable open is answered, mark_maybe_dirty() says so on disk; from then on the copy is
// never evicted nor dropped until note_clean() has bound it to a committed version. Which bytes
// changed is known exactly for writes that pass the daemon (a set of ranges); for the kernel's own
// writes (FUSE passthrough, mmap) it is found by comparing XXH3 digests per block with those of the
// last clean state. Holes stay holes: they are skipped by SEEK_DATA and never filled.
//
// Thread-safety: every method may be called from any thread, while the caller holds a CachePin.
// Methods marked "blocking" do I/O and belong on the blocking pool. One commit (changed_blocks()
// to note_clean()) of a copy runs at a time: that is the caller's rule.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/base/buffer.h"
#include "common/base/mutex.h"
#include "mountd/cache/copy_meta.h"
#include "mountd/cache/interval_set.h"
#include "mountd/cache/posix_file.h"

namespace fermata::mountd {

class CacheStore;

/// The copy at one instant, compared with its last clean state. `digests` has one entry per block.
/// A committer that reads block i again to upload it stores block_digest() of what it really sent
/// in digests[i] before note_clean(): a writer may have been faster than it.
struct ChangeScan {
  std::uint64_t size_bytes = 0;
  bool size_changed = false;
  std::vector<std::uint64_t> changed;  ///< indices of blocks, ascending; digests[i] says if a hole
  std::vector<std::uint64_t> digests;
  std::int64_t ctime_ns = 0;
  std::int64_t taken_ns = 0;
  bool modified() const { return size_changed || !changed.empty(); }
};

/// What was written since the last clean state, exactly.
struct DirtyBytes {
  std::vector<ByteRange> ranges;  ///< ascending, apart, within the size; at least one
  Buffer bytes;                   ///< of the ranges, one after the other
  std::uint64_t size_bytes = 0;   ///< of the file
  std::int64_t ctime_ns = 0;
  std::int64_t taken_ns = 0;
};
struct DirtyLimits {
  std::size_t ranges_max = 0;
  std::uint64_t bytes_max = 0;
};

/// What a block with patches over its chunk is made of: as long as the cluster says the same, or
/// the same and more patches, a newer version needs no chunk.
struct PatchedBlock {
  ChunkId base;               ///< none: a hole
  std::uint64_t patches = 0;  ///< with_patch() of each in turn, from 0
  bool operator==(const PatchedBlock&) const = default;
};
using PatchedBlocks = std::map<std::uint32_t, PatchedBlock>;
/// `patches` and one more, of a part of one block. Not kept on disk.
std::uint64_t with_patch(std::uint64_t patches, std::uint64_t offset_bytes, ByteView bytes);

class CachedCopy {
 public:
  /// How a writer's bytes reach the backing file.
  enum class Writes {
    kTracked,    ///< only through write_at, truncate and punch
    kUntracked,  ///< also straight from the kernel: passthrough or mmap
  };
  enum class After {
    kStillWritable,  ///< writable opens or mappings live on
    kClosed,         ///< nobody can write any more
  };

  ~CachedCopy();
  CachedCopy(const CachedCopy&) = delete;
  CachedCopy& operator=(const CachedCopy&) = delete;

  InodeId inode() const { return inode_; }
  std::uint64_t serial() const { return serial_; }
  const std::string& data_path() const { return data_path_; }
  Version base() const { return Version(base_.load(std::memory_order_acquire)); }
  bool complete() const { return complete_.load(std::memory_order_acquire); }
  bool maybe_dirty() const { return maybe_dirty_.load(std::memory_order_acquire); }
  bool conflict() const { return conflict_.load(std::memory_order_acquire); }
  /// As of the last fill, tracked write or scan; stat() asks the file.
  std::uint64_t size_bytes() const { return size_bytes_.load(std::memory_order_acquire); }
  Result<BackingStat> stat();
  /// Of version base(), one per block; empty if inline or unknown.
  std::vector<ChunkId> chunks() const;
  /// Of version base(), as far as is known: blocks that are kPatchedChunk.
  PatchedBlocks patched_blocks() const;
  /// Before finish_fill() or note_clean() of the version that it is said of.
  void set_patched_blocks(PatchedBlocks blocks);
  CopyMeta meta() const;

  /// Descriptors, opened at first use and kept. The cache closes those of unpinned copies when it
  /// holds too many. Register passthrough from the reader (docs/FUSE.md rule 1).
  Result<std::shared_ptr<Fd>> reader();
  Result<std::shared_ptr<Fd>> writer();
  void close_writer();
  /// Whether somebody holds the backing file open for writing or mapped writable, beside this
  /// object; closes the writer to know. A read lease is tried: the kernel refuses it beside
  /// writers.
  Result<bool> has_writable_users();

  // --- filling -----------------------------------------------------------------------------------
  /// Blocking. Errors: ENOSPC (after eviction did not help); ECANCELED when no longer filling.
  Status write_fill(std::uint64_t offset_bytes, ByteView bytes);
  /// A range known to be a hole: present, without a write.
  Status fill_hole(std::uint64_t offset_bytes, std::uint64_t size_bytes);
  /// Blocking. All is present: digests are completed, the sidecar is written, waiters are called.
  /// Errors: EINVAL when something is missing.
  Status finish_fill(std::vector<ChunkId> chunks);
  /// Gives up: waiters get `error`, the copy leaves the cache with its last pin.
  void fail_fill(std::error_code error);
  bool present(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;
  std::vector<ByteRange> missing(std::uint64_t offset_bytes, std::uint64_t size_bytes) const;
  /// Calls back once, when the range (cut at the file's end) is present or the fill failed: at once
  /// on this thread, or later on the thread that fills. No lock is held in the callback.
  void when_present(std::uint64_t offset_bytes, std::uint64_t size_bytes,
                    std::function<void(std::error_code)> callback);

  // --- content -----------------------------------------------------------------------------------
  /// Blocking. Fewer bytes than `out` only at the end. Errc::kRetry if not all is present yet.
  Result<std::size_t> read_at(std::uint64_t offset_bytes, MutableByteView out);
  /// Blocking. Errors: Errc::kTooLarge; Errc::kRetry while filling.
  Result<Buffer> read_all(std::uint64_t size_max_bytes = kInlineBytesMax);
  /// Blocking. mark_maybe_dirty() came before. Errors: ENOSPC; EFBIG.
  Status write_at(std::uint64_t offset_bytes, ByteView bytes);
  /// Appends at the end, wherever that is; returns the offset. Appends exclude each other.
  Result<std::uint64_t> append(ByteView bytes);
  /// Blocking. Truncating to 0 is allowed while filling and ends the fill.
  Status truncate(std::uint64_t size_bytes);
  /// Blocking. Makes a hole; the size stays.
  Status punch(std::uint64_t offset_bytes, std::uint64_t size_bytes);
  /// Blocking. Reserves space as fallocate(2); `keep_size` as FALLOC_FL_KEEP_SIZE.
  Status allocate(std::uint64_t offset_bytes, std::uint64_t size_bytes, bool keep_size);
  /// Blocking; fdatasync of the backing file.
  Status sync();

  // --- dirty or clean ----------------------------------------------------------------------------
  /// Before the answer to the first writable open. Blocking the first time (a sidecar is written;
  /// no further I/O while it stays maybe dirty). Errc::kRetry while filling.
  Status mark_maybe_dirty(Writes writes);
  /// Blocking for untracked writers only. False is certain; true may be a false alarm (the same
  /// bytes were written again, or a large file was touched): changed_blocks() knows.
  Result<bool> is_modified();
  /// Blocking. Finds the changed blocks; reads only those that may have changed. Ranges written
  /// from now on belong to the next scan. Errc::kRetry while filling.
  Result<ChangeScan> changed_blocks();
  /// What a commit of a few bytes needs, without a look at the rest: cheap enough for any thread.
  /// None if it is not known exactly or is more than `limits` (ask changed_blocks()), if nothing
  /// was written, or if the content was or is inline or has shrunk. Ranges written from now on
  /// belong to the next commit.
  Result<std::optional<DirtyBytes>> dirty_bytes(const DirtyLimits& limits);
  /// `sent` over base() is version `version`. Cheap: the digests of the blocks that it touched are
  /// left to settle_digests().
  Status note_patched(Version version, const DirtyBytes& sent);
  /// Blocking. Digests blocks that note_patched() left, unless they were written to since; writers
  /// must all be tracked.
  Status settle_digests();
  /// Blocking. The block's bytes if they surely are those of the clean state.
  Result<std::optional<Buffer>> clean_block(std::uint32_t index);
  /// Blocking. The state of `scan` is version `version` (which may be the old one, when nothing had
  /// changed). `chunks` as in finish_fill. With kClosed the copy stays maybe dirty if something was
  /// written since the scan: ask maybe_dirty().
  Status note_clean(Version version, const ChangeScan& scan, std::vector<ChunkId> chunks,
                    After after);
  /// A writer that does not pass the daemon was let in after all. Before its open is answered.
  void expect_untracked_writes() { untracked_.store(true, std::memory_order_release); }
  bool untracked_writes_expected() const { return untracked_.load(std::memory_order_acquire); }
  /// The last writer is gone and nothing was modified: the copy may be evicted again. No I/O; if
  /// the client dies now, the next start finds out by the digests.
  void note_closed();
  /// Blocking. is_modified() without its false alarms: then the copy is noted clean as it is now.
  /// No other scan of it may be under way.
  Result<bool> surely_modified();
  /// Blocking. The last writer is gone, and is_modified() may have raised a false alarm: true if
  /// the digests say so; the copy is clean then.
  Result<bool> settle_closed();
  /// Before a newer version is written in place over a clean copy (write_at, truncate; then
  /// note_clean): a crash in between drops the copy instead of taking the mix for somebody's work.
  /// Errors: ETXTBSY when it has been written to.
  Status begin_update();
  /// begin_update() was called and no note_clean() has followed: the content is no version.
  bool updating() const { return updates() % 2 != 0; }
  /// Grows by one when an update in place begins and when it ends: odd while one is under way.
  std::uint64_t updates() const { return updates_.load(std::memory_order_acquire); }
  /// Blocking. Its commit was refused for good: found by no lookup any more, kept and listed.
  Status mark_conflict();
  /// Its content is not wanted any more (unlinked and closed, or a conflict resolved by people):
  /// leaves the cache with its last pin, dirty or not.
  void discard();

  /// Lets the kernel's next read of the backing file show in its atime: a filesystem that keeps
  /// them by relatime would note none after the first. Leaves a copy alone that may be written to;
  /// there every write has the same effect.
  Status arm_access_time();
  /// Used until now; counts for eviction after CacheStore::touch().
  void note_use();
  /// What people call it: the path when that was last known.
  std::string path_hint() const;
  void set_path_hint(std::string path);
  /// Blocking. Writes the sidecar if it is behind what is known here.
  Status save_if_stale();
  void set_mode(std::uint32_t mode);

 private:
  friend class CacheStore;
  friend class CachePin;
  CachedCopy(CacheStore& store, CopyMeta meta, std::string data_path);

  enum class Open { kReader, kWriter };
  Result<std::shared_ptr<Fd>> descriptor(Open which);
  /// Gives up the descriptors, for the caller to close without a lock.
  void take_descriptors(std::vector<std::shared_ptr<Fd>>& out);
  Status write_retrying(std::uint64_t offset_bytes, ByteView bytes);
  Status save_meta(posix::Durability durability) FM_EXCLUDES(mutex_);
  Status save_step(const CommitStep& step) FM_EXCLUDES(mutex_);
  void close_sidecar() FM_REQUIRES(save_mutex_);
  Status end_fill_by_truncation();
  void note_patched_blocks(const DirtyBytes& sent) FM_REQUIRES(mutex_);
  void note_written(std::uint64_t begin_bytes, std::uint64_t end_bytes);
  void recharge();
  void wake_waiters();
  Result<ChangeScan> scan_blocks(const Fd& fd, const IntervalSet* candidates,
                                 const Fingerprint& clean) const;
  CopyMeta meta_locked() const FM_REQUIRES(mutex_);

  struct Waiter {
    ByteRange range;
    std::function<void(std::error_code)> callback;
  };

  CacheStore& store_;  // outlives this
  const InodeId inode_;
  const std::uint64_t serial_;
  const std::string data_path_;
  const std::string meta_path_;

  std::atomic<std::uint64_t> base_;
  std::atomic<std::uint64_t> size_bytes_;
  std::atomic<bool> complete_;
  std::atomic<bool> maybe_dirty_;
  std::atomic<bool> conflict_;
  std::atomic<bool> untracked_{false};  // a writer that does not pass the daemon was let in
  std::atomic<bool> suspect_{false};    // the machine went down since: verify before use
  std::atomic<bool> dropped_{false};    // the destructor removes the files
  std::atomic<std::uint32_t> pins_{0};
  std::atomic<std::uint64_t> updates_{0};
  std::atomic<std::int64_t> last_use_ns_;
  std::atomic<std::uint32_t> writes_under_way_{0};  // tracked ones that are not noted yet
  std::atomic<std::uint64_t> uncharged_bytes_{0};   // written since the last recharge()

  // Lock order: CacheStore::mutex_, then these; save_mutex_ before mutex_. No I/O under mutex_ but
  // the opening of a descriptor, has_writable_users() and arm_access_time().
  Mutex append_mutex_;
  Mutex save_mutex_;                                        // orders writes of the sidecar
  std::shared_ptr<Fd> sidecar_ FM_GUARDED_BY(save_mutex_);  // open while steps are appended
  std::uint32_t steps_ FM_GUARDED_BY(save_mutex_) = 0;      // appended to it
  std::size_t saved_bytes_ FM_GUARDED_BY(save_mutex_) = 0;  // of the sidecar; 0: not known
  mutable Mutex mutex_;
  std::shared_ptr<Fd> reader_ FM_GUARDED_BY(mutex_);
  std::shared_ptr<Fd> writer_ FM_GUARDED_BY(mutex_);
  IntervalSet present_ FM_GUARDED_BY(mutex_);
  std::vector<bool> digest_known_ FM_GUARDED_BY(mutex_);  // while filling
  std::uint32_t fills_in_flight_ FM_GUARDED_BY(mutex_) = 0;
  std::condition_variable_any fills_done_;
  std::error_code fill_error_ FM_GUARDED_BY(mutex_);
  std::vector<Waiter> waiters_ FM_GUARDED_BY(mutex_);
  IntervalSet dirty_ FM_GUARDED_BY(mutex_);    // tracked writes since the last scan
  IntervalSet scanned_ FM_GUARDED_BY(mutex_);  // those of scans that no commit has followed
  bool clean_known_ FM_GUARDED_BY(mutex_);     // false: clean_ was never a version
  bool updating_ FM_GUARDED_BY(mutex_) = false;
  bool marked_on_disk_ FM_GUARDED_BY(mutex_) = false;  // the sidecar says maybe dirty
  bool save_stale_ FM_GUARDED_BY(mutex_) = false;      // it is behind what is known here
  Fingerprint clean_ FM_GUARDED_BY(mutex_);
  std::uint64_t clean_states_ FM_GUARDED_BY(mutex_) = 0;  // that it has been, while writers lived
  std::vector<ChunkId> chunks_ FM_GUARDED_BY(mutex_);
  PatchedBlocks patched_ FM_GUARDED_BY(mutex_);
  std::string path_hint_ FM_GUARDED_BY(mutex_);
  std::uint32_t mode_ FM_GUARDED_BY(mutex_);

  // Guarded by CacheStore::mutex_.
  std::list<std::shared_ptr<CachedCopy>>::iterator place_;
  std::uint64_t charged_bytes_ = 0;
  bool indexed_ = false;
};

/// Keeps a copy in the cache (never evicted) and alive.
class CachePin {
 public:
  CachePin() = default;
  CachePin(const CachePin& other) : CachePin(other.copy_) {}
  CachePin(CachePin&& other) noexcept : copy_(std::move(other.copy_)) { other.copy_ = nullptr; }
  CachePin& operator=(CachePin other) noexcept {
    std::swap(copy_, other.copy_);
    return *this;
  }
  ~CachePin() {
    if (copy_) copy_->pins_.fetch_sub(1, std::memory_order_acq_rel);
  }
  explicit operator bool() const { return copy_ != nullptr; }
  CachedCopy* operator->() const { return copy_.get(); }
  CachedCopy& operator*() const { return *copy_; }
  bool operator==(const CachePin& other) const { return copy_ == other.copy_; }

 private:
  friend class CacheStore;
  // The caller holds a pin of it or CacheStore::mutex_, so that it is not being evicted.
  explicit CachePin(std::shared_ptr<CachedCopy> copy) : copy_(std::move(copy)) {
    if (copy_) copy_->pins_.fetch_add(1, std::memory_order_acq_rel);
  }
  std::shared_ptr<CachedCopy> copy_;
};

}  // namespace fermata::mountd
