// The replicated log of one group on one node's disk.
//
// Entries live in segment files named by their first index; a record carries the CRC of the one
// before it, so the log is a chain from end to end (durable_log_format.h has the layout). Term and
// vote, the base (index and term of the last entry that only the snapshot has) and an index known
// durable are in `state`, two copies of one block, each written and synced in turn.
//
// append() changes memory only and is readable at once; persist() makes everything appended so far
// durable with one fdatasync. A driver keeps one persist() in flight, and what arrives meanwhile
// goes with the next: that is the group commit.
//
// Recovery must tell a torn tail (the power failed before a sync returned; nobody was told that
// these entries are durable; they are cut) from damage to what was acknowledged (refused:
// forgetting an acknowledged entry can lose a majority). A record names the start of the batch it
// was written in, and a batch is written only after the one before it was synced; so a bad record
// is damage if a valid record of a later batch follows it, if a later segment exists, or
// if `state` says that its index was durable. (Protocol-aware recovery: Alagappan et al., FAST
// 2018.)
//
// Behind the newest record a segment has some zeros, synced before: records written over them are
// durable after a flush of the data alone, without the filesystem's journal (three logs that sync
// 4.5 KB together: 0.35 to 0.5 of the time on ext4 with a journal, 0.5 to 0.6 without one).
// Recovery cuts them.
//
// An error of a write or a sync poisons the log: every later call fails with the same error, and
// the node must stop (Rebello et al., USENIX ATC 2020). One is harmless: a write that finds the
// disk full, before any sync. What it left is taken back, and persist() may be called again.
//
// Thread-safety: append(), set_hard_state() and the readers from the node's executor; persist(),
// compact() and reset() block, run on the pool, and may run beside those (they wait for each
// other). Entries that are no longer in the cache are read from the disk by the caller of read().
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/mutex.h"
#include "common/env/disk.h"
#include "serverd/raft/raft_core.h"

namespace fermata::serverd {

struct DurableLogOptions {
  std::string dir;
  ClusterId cluster;
  GroupId group = kFirstGroup;
  NodeId self;
  /// In force before the log's first entry; used only when the log is created. Encoded.
  std::string first_membership;
  /// This node had a log before, and lost it. Used only when the log is created.
  bool rejoining = false;
  std::uint32_t segment_bytes = 16U << 20;          ///< a new segment is begun when one is this big
  std::size_t cache_bytes = std::size_t{64} << 20;  ///< of newest entries kept in memory
  /// The disk is full: true if there is more room now than before. Called by persist().
  std::function<bool()> make_room = {};
};

class DurableLog final : public LogView {
 public:
  static constexpr std::size_t kEntryBytesMax = std::size_t{64} << 20;
  static constexpr std::size_t kMembershipBytesMax = 15U << 10;

  /// Opens the log in `options.dir`, or creates it if there is none. On an error `why` is a
  /// sentence for the operator and nothing on disk has changed. Errors: kWrongCluster (another
  /// cluster, group or node); kVersionMismatch (a newer format); kCorruptLog; errnos. Blocks.
  /// `disk` outlives the log.
  static Result<std::unique_ptr<DurableLog>> open(Disk& disk, DurableLogOptions options,
                                                  std::string& why);

  // LogView.
  LogIndex first_index() const override;
  LogIndex last_index() const override;
  std::optional<Term> term_at(LogIndex index) const override;
  /// Errors: kTruncatedHistory if `first` is before first_index(); kCorruptLog.
  Result<std::vector<LogEntry>> read(LogIndex first, LogIndex last,
                                     std::size_t bytes_max) const override;

  HardState hard_state() const;  ///< the newest, durable or not
  /// The index before first_index(), and what was in force there.
  LogIndex base_index() const;
  std::string base_membership() const;
  /// The lowest index (not below base_index()) above which entries make up at most `bytes`.
  LogIndex index_keeping(std::uint64_t bytes) const;
  /// What was in force at `index` (from base_index() to last_index()), encoded.
  Result<std::string> membership_at(LogIndex index) const;
  /// Everything up to here is durable and not being replaced.
  LogIndex durable_index() const;
  /// `state` does not say yet that everything durable is: until it does, damage to the last batch
  /// cannot be told from a torn write.
  bool has_unmarked() const;
  /// Says so. Blocks; for when nothing is written for a while, and for a clean stop.
  Status mark_durable();
  /// There is something for persist() to do.
  bool has_staged() const;

  void set_hard_state(HardState hard);
  /// Contiguous entries. The first may be at most last_index() + 1; at or below last_index() the
  /// log is first cut there. Never below first_index(). An error only if the log is poisoned.
  Status append(std::vector<LogEntry> entries);

  struct Persisted {
    LogIndex index;  ///< last_index() at the call: durable now (unless it was replaced meanwhile)
    Term term;       ///< of that entry
  };
  /// The hard state first, then the entries. Blocks. ENOSPC does not poison the log: some of the
  /// entries may be durable, the others are to be persisted again.
  Result<Persisted> persist();

  /// Forgets entries up to `up_to` (at most durable_index()); `membership` was in force there.
  /// Memory only, on the executor, so that the core never sees the log's beginning move during an
  /// event.
  void forget(LogIndex up_to, std::string membership);
  /// Makes what forget() did durable and removes whole segments. Blocks.
  Status compact();

  /// A snapshot that ends at (index, term) was installed: on disk the log becomes empty and stands
  /// there. An index at or below base_index() changes nothing. No append() until finish_reset().
  /// Blocks. Any error poisons the log, ENOSPC too.
  Status reset(LogIndex index, Term term, std::string membership);
  /// The same in memory, on the executor.
  void finish_reset();

 private:
  struct Segment {
    LogIndex first;
    std::string path;
    std::shared_ptr<File> file;
    std::uint32_t end = 0;     ///< where the next record goes
    std::uint32_t filled = 0;  ///< from `end` to here are zeros that the disk has
  };
  struct Slot {  // where an entry is; offset 0: not on the disk yet
    Term term;
    std::uint32_t offset = 0;
    std::uint32_t size = 0;  // of its data
    std::uint32_t crc = 0;
    EntryKind kind = EntryKind::kNoop;
  };
  struct State {  // what the state file says
    std::uint64_t sequence = 0;
    HardState hard;
    LogIndex durable;
    LogIndex base_index;
    Term base_term;
    std::string membership;
  };
  struct Recovery;  // durable_log_recovery.cc

  DurableLog(Disk& disk, DurableLogOptions options);

  std::string state_path() const { return options_.dir + "/state"; }
  Status check_poison() const FM_REQUIRES(mutex_);
  Status poison(std::error_code error);

  // On the pool, under io_mutex_.
  Status write_state(const State& state);
  Result<Persisted> do_persist();
  /// `end`: of the entry before `from`; not used if no segment has that entry.
  Status cut_on_disk(LogIndex from, std::uint32_t end);
  /// The entry before the first one had this term and CRC when the entries were taken: by now the
  /// memory may have another in its place.
  Status write_entries(const std::vector<LogEntry>& entries, Term prev_term,
                       std::uint32_t prev_crc);
  std::string segment_header(LogIndex first, Term prev_term, std::uint32_t prev_crc) const;
  Status begin_segment(LogIndex first);
  Status write_batch(bool fresh, LogIndex first, ByteView bytes);
  Status write_over_zeros(Segment& segment, ByteView bytes);
  Status cut_segment(Segment& segment, std::uint32_t end);
  Status take_back(bool fresh);
  Status remove_newest_segment();
  Status do_compact();
  Status do_mark_durable();
  Status do_reset(LogIndex index, Term term, std::string membership);

  const Slot& slot(LogIndex index) const FM_REQUIRES(mutex_);  ///< also of the base
  std::optional<Term> term_at_locked(LogIndex index) const FM_REQUIRES(mutex_);
  Result<std::vector<LogEntry>> read_run(LogIndex first, LogIndex last,
                                         std::size_t bytes_max) const;
  void drop_front(LogIndex up_to) FM_REQUIRES(mutex_);
  void shrink_cache() FM_REQUIRES(mutex_);

  Disk& disk_;
  const DurableLogOptions options_;
  Mutex io_mutex_;        // one of persist, compact, reset at a time; taken before mutex_
  State state_;           // as on the disk; under io_mutex_
  bool no_room_ = false;  // the last write found the disk full; under io_mutex_
  bool segment_unrecorded_ = false;  // state_.durable does not cover the newest one; the same
  mutable Mutex mutex_;
  std::error_code poison_ FM_GUARDED_BY(mutex_);
  HardState hard_ FM_GUARDED_BY(mutex_);
  LogIndex base_index_ FM_GUARDED_BY(mutex_);
  Term base_term_ FM_GUARDED_BY(mutex_);
  Slot base_slot_
      FM_GUARDED_BY(mutex_);  // of the entry at the base, while a segment has it; else only the CRC
  std::string base_membership_ FM_GUARDED_BY(mutex_);
  bool hard_staged_ FM_GUARDED_BY(mutex_) = false;
  std::optional<State> reset_to_ FM_GUARDED_BY(mutex_);  // the base that memory is to go to
  std::deque<Slot> slots_ FM_GUARDED_BY(mutex_);         // of base_index_ + 1 and on
  std::deque<LogEntry> cache_
      FM_GUARDED_BY(mutex_);  // the newest entries; all that are not on disk
  std::size_t cache_bytes_ FM_GUARDED_BY(mutex_) = 0;
  std::vector<LogIndex> memberships_ FM_GUARDED_BY(mutex_);  // where membership entries are
  LogIndex marked_ FM_GUARDED_BY(mutex_);                    // durable according to `state`
  LogIndex disk_last_ FM_GUARDED_BY(mutex_);     // the disk has the log up to here, durably
  LogIndex writing_last_ FM_GUARDED_BY(mutex_);  // or will, when the persist in flight ends
  std::optional<LogIndex> cut_
      FM_GUARDED_BY(mutex_);       // from here on, what the disk has was replaced
  std::vector<Segment> segments_;  // changed under both mutexes, read under either
};

}  // namespace fermata::serverd
