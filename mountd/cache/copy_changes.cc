// What of a copy is dirty: its fingerprint since it was clean, the digests of its blocks, and the
// blocks whose changes the cluster has as patches.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <span>

#include "common/base/assert.h"
#include "common/base/checksum.h"
#include "mountd/cache/cache_store.h"
#include "mountd/cache/cached_copy.h"

namespace fermata::mountd {

std::uint64_t with_patch(std::uint64_t patches, std::uint64_t offset_bytes, ByteView bytes) {
  const std::uint64_t parts[3] = {patches, offset_bytes, xxh3(bytes)};
  return xxh3(std::as_bytes(std::span(parts)));
}

Status CachedCopy::mark_maybe_dirty(Writes writes) {
  {
    const MutexLock lock(mutex_);
    if (!complete()) return Errc::kRetry;
    if (writes == Writes::kUntracked) untracked_ = true;
    maybe_dirty_ = true;
    if (marked_on_disk_) return {};
  }
  // On an error it stays marked here: that only keeps it from being evicted until note_closed().
  return save_meta(store_.options_.sync_dirty_marks ? posix::Durability::kSynced
                                                    : posix::Durability::kNone);
}

Result<bool> CachedCopy::is_modified() {
  Fingerprint clean;
  {
    const MutexLock lock(mutex_);
    if (!complete() || (!maybe_dirty() && !updating_)) return false;
    if (!clean_known_ || !dirty_.empty() || !scanned_.empty()) return true;
    if (size_bytes() != clean_.size_bytes) return true;
    if (!untracked_) return false;
    clean.ctime_ns = clean_.ctime_ns;
    clean.size_bytes = clean_.size_bytes;
    if (clean.size_bytes <= kInlineBytesMax) clean.digests = clean_.digests;
  }
  FM_TRY(const auto fd, reader());
  FM_TRY(const auto st, posix::stat_file(*fd));
  if (st.size_bytes != clean.size_bytes) return true;
  if (st.size_bytes > kInlineBytesMax) {
    return st.ctime_ns != clean.ctime_ns || !store_.ctime_reliable();
  }
  // A small file's pages were not written out when it was noted clean, so a store through a mapping
  // may leave ctime as it was: only its bytes tell.
  if (st.size_bytes == 0) return false;
  std::array<std::byte, kInlineBytesMax> buffer;
  FM_TRY(const auto size, posix::read_at(*fd, 0, {buffer.data(), st.size_bytes}));
  return size != clean.size_bytes || block_digest({buffer.data(), size}) != clean.digests.at(0);
}

Result<ChangeScan> CachedCopy::scan_blocks(const Fd& fd, const IntervalSet* candidates,
                                           const Fingerprint& clean) const {
  ChangeScan scan;
  scan.taken_ns = posix::wall_ns();
  FM_TRY(const auto st, posix::stat_file(fd));
  scan.ctime_ns = st.ctime_ns;
  scan.size_bytes = st.size_bytes;
  scan.size_changed = st.size_bytes != clean.size_bytes;
  scan.digests.assign(block_count_of(st.size_bytes), kHoleDigest);
  // The block in which the shorter of the two ends has other bytes now, written to or not.
  const std::uint64_t end_block = std::min(st.size_bytes, clean.size_bytes) / kBlockSizeBytes;
  Bytes buffer;
  std::uint64_t data_at = 0;  // no data lies between the block looked at and here
  for (std::uint64_t block = 0; block < scan.digests.size(); ++block) {
    const std::uint64_t begin = block * kBlockSizeBytes;
    const std::uint64_t end = std::min(begin + kBlockSizeBytes, st.size_bytes);
    const bool known = block < clean.digests.size();
    const std::uint64_t before = known ? clean.digests[block] : kHoleDigest;
    if (known && candidates != nullptr && !candidates->intersects(begin, end) &&
        !(scan.size_changed && block == end_block)) {
      scan.digests[block] = before;
      continue;
    }
    if (data_at <= begin) {
      FM_TRY(data_at, posix::seek_data(fd, begin, st.size_bytes));
    }
    if (data_at < end) {
      buffer.resize(kBlockSizeBytes);
      FM_TRY(const auto size, posix::read_at(fd, begin, {buffer.data(), end - begin}));
      scan.digests[block] = block_digest({buffer.data(), size});
    }
    if (scan.digests[block] != before) scan.changed.push_back(block);
  }
  return scan;
}

Result<ChangeScan> CachedCopy::changed_blocks() {
  IntervalSet candidates;
  Fingerprint clean;
  const bool untracked = untracked_;
  bool clean_known = true;
  {
    const MutexLock lock(mutex_);
    if (!complete()) return Errc::kRetry;
    scanned_.add_all(dirty_);
    dirty_.clear();
    candidates = scanned_;
    clean = clean_;
    clean_known = clean_known_;
  }
  FM_TRY(const auto fd, reader());
  // The file's time from before its pages are protected: a store that falls between the two is
  // taken for a later one, which costs a scan; the other way round it would be lost.
  FM_TRY(const auto before, posix::stat_file(*fd));
  // So that a later store through a mapping changes ctime (docs/FUSE.md rule 6). Small files do
  // without: is_modified() reads them.
  if (untracked && before.size_bytes > kInlineBytesMax) FM_CHECK(posix::write_pages_out(*fd));
  FM_TRY(auto scan, scan_blocks(*fd, untracked ? nullptr : &candidates, clean));
  scan.ctime_ns = before.ctime_ns;
  // What was never a version differs from all, also when it is empty.
  if (!clean_known) scan.size_changed = true;
  if (untracked) size_bytes_ = scan.size_bytes;
  return scan;
}

Result<std::optional<DirtyBytes>> CachedCopy::dirty_bytes(const DirtyLimits& limits) {
  std::optional<DirtyBytes> none;
  DirtyBytes out;
  std::uint64_t total = 0;
  {
    const MutexLock lock(mutex_);
    const bool exact = complete() && !untracked_ && !updating_ && clean_known_;
    if (!exact || clean_.size_bytes <= kInlineBytesMax || size_bytes() < clean_.size_bytes)
      return none;
    scanned_.add_all(dirty_);
    dirty_.clear();
    out.ranges = scanned_.ranges();
    if (out.ranges.empty() || out.ranges.size() > limits.ranges_max) return none;
    // What grew the file is in the ranges. A write that has not ended yet is not.
    out.size_bytes = std::min(std::max(clean_.size_bytes, out.ranges.back().end_bytes),
                              size_bytes_.load(std::memory_order_acquire));
    for (ByteRange& range : out.ranges) {
      range.end_bytes = std::min(range.end_bytes, out.size_bytes);
      if (range.begin_bytes >= range.end_bytes) return none;  // it was cut there: rare
      total += range.end_bytes - range.begin_bytes;
    }
    if (total > limits.bytes_max) return none;
  }
  FM_TRY(const auto fd, reader());
  out.taken_ns = posix::wall_ns();
  FM_TRY(const auto st, posix::stat_file(*fd));
  out.ctime_ns = st.ctime_ns;
  out.bytes = Buffer::allocate(total);
  std::uint64_t at = 0;
  for (const ByteRange& range : out.ranges) {
    const auto part = out.bytes.mutable_view().subspan(at, range.end_bytes - range.begin_bytes);
    FM_TRY(const auto size, posix::read_at(*fd, range.begin_bytes, part));
    if (size != part.size()) return none;  // cut just now
    at += size;
  }
  return std::optional(std::move(out));
}

Status CachedCopy::note_patched(Version version, const DirtyBytes& sent) {
  CommitStep step{version, sent.size_bytes, sent.ctime_ns, sent.taken_ns, {}};
  for (const ByteRange& range : sent.ranges) {
    auto block = static_cast<std::uint32_t>(range.begin_bytes / kBlockSizeBytes);
    const auto last = static_cast<std::uint32_t>((range.end_bytes - 1) / kBlockSizeBytes);
    if (!step.blocks.empty() && step.blocks.back() == block) ++block;
    for (; block <= last; ++block) step.blocks.push_back(block);
  }
  store_.adopt(*this, version);
  {
    const MutexLock lock(mutex_);
    note_patched_blocks(sent);
    Version base;
    apply_step(step, base, clean_, chunks_);
    ++clean_states_;
    scanned_.clear();
  }
  // The cluster has it: what the sidecar says is of use to the next start only.
  if (const Status saved = save_step(step); !saved) {
    spdlog::warn("cache: cannot write {}: {}", meta_path_, saved.error().message());
  }
  return {};
}

/// As the cluster keeps them: cut where a block ends, one after the other.
void CachedCopy::note_patched_blocks(const DirtyBytes& sent) {
  std::uint64_t at = 0;
  for (const ByteRange& range : sent.ranges) {
    for (std::uint64_t begin = range.begin_bytes; begin < range.end_bytes;) {
      const std::uint64_t block = begin / kBlockSizeBytes;
      const std::uint64_t end = std::min(range.end_bytes, (block + 1) * kBlockSizeBytes);
      const auto index = static_cast<std::uint32_t>(block);
      const bool whole = index < chunks_.size() && chunks_[index] != kPatchedChunk;
      if (whole) patched_.insert_or_assign(index, PatchedBlock{chunks_[index], 0});
      // Beyond the former end there was nothing, where the list of chunks is known at all.
      if (!chunks_.empty() && index >= chunks_.size()) patched_.try_emplace(index);
      if (const auto known = patched_.find(index); known != patched_.end()) {
        const ByteView bytes = sent.bytes.view().subspan(at, end - begin);
        known->second.patches = with_patch(known->second.patches, begin, bytes);
        if (whole) chunks_[index] = kPatchedChunk;
      }
      at += end - begin;
      begin = end;
    }
  }
}

Result<std::optional<Buffer>> CachedCopy::clean_block(std::uint32_t index) {
  const std::uint64_t begin = std::uint64_t{index} * kBlockSizeBytes;
  std::uint64_t end = 0;
  {
    const MutexLock lock(mutex_);
    if (!complete() || !clean_known_ || index >= clean_.digests.size())
      return std::optional<Buffer>();
    end = std::min(begin + kBlockSizeBytes, clean_.size_bytes);
  }
  FM_TRY(const auto fd, reader());
  Buffer bytes = Buffer::allocate(end - begin);
  FM_TRY(const auto size, posix::read_at(*fd, begin, bytes.mutable_view()));
  const std::uint64_t digest = block_digest(bytes.view());
  const MutexLock lock(mutex_);
  if (index >= clean_.digests.size()) return std::optional<Buffer>();
  const std::uint64_t known = clean_.digests[index];
  // A write that came meanwhile has been noted, or is under way.
  const bool unwritten = !untracked_ && writes_under_way_ == 0 && !dirty_.intersects(begin, end) &&
                         !scanned_.intersects(begin, end);
  const bool clean =
      size == bytes.size() && (known == digest || (known == kStaleDigest && unwritten));
  if (!clean) return std::optional<Buffer>();
  return std::optional(std::move(bytes));
}

Status CachedCopy::settle_digests() {
  std::vector<std::uint64_t> stale;
  std::uint64_t size_bytes = 0;
  std::uint64_t clean_state = 0;
  {
    const MutexLock lock(mutex_);
    if (!complete() || untracked_ || updating_ || !clean_known_) return {};
    size_bytes = clean_.size_bytes;
    clean_state = clean_states_;
    for (std::uint64_t block = 0; block < clean_.digests.size(); ++block) {
      if (clean_.digests[block] == kStaleDigest) stale.push_back(block);
    }
  }
  if (stale.empty()) return {};
  FM_TRY(const auto fd, reader());
  Bytes buffer(kBlockSizeBytes);
  for (const std::uint64_t block : stale) {
    const std::uint64_t begin = block * kBlockSizeBytes;
    const std::uint64_t end = std::min(begin + kBlockSizeBytes, size_bytes);
    FM_TRY(const auto size, posix::read_at(*fd, begin, {buffer.data(), end - begin}));
    const std::uint64_t digest = block_digest({buffer.data(), size});
    const MutexLock lock(mutex_);
    if (clean_states_ != clean_state) return {};  // what was read may be of the one before
    // It may hold a write that came since: such a write has been noted, or is under way.
    const bool same = writes_under_way_ == 0 && !dirty_.intersects(begin, end) &&
                      !scanned_.intersects(begin, end);
    if (same) clean_.digests[block] = digest;
  }
  return save_meta(posix::Durability::kNone);
}

Status CachedCopy::note_clean(Version version, const ChangeScan& scan, std::vector<ChunkId> chunks,
                              After after) {
  FM_ASSERT(scan.digests.size() == block_count_of(scan.size_bytes));
  bool written_since = false;
  BackingStat now;
  FM_TRY(now, stat());
  if (untracked_)
    written_since = now.ctime_ns != scan.ctime_ns || now.size_bytes != scan.size_bytes;
  store_.adopt(*this, version);
  {
    const MutexLock lock(mutex_);
    clean_.ctime_ns = scan.ctime_ns;
    clean_.taken_ns = scan.taken_ns;
    clean_.size_bytes = scan.size_bytes;
    clean_.digests = scan.digests;
    clean_known_ = true;
    ++clean_states_;
    chunks_ = std::move(chunks);
    std::erase_if(patched_, [&](const auto& block) FM_REQUIRES(mutex_) {
      return block.first >= chunks_.size() || chunks_[block.first] != kPatchedChunk;
    });
    scanned_.clear();
    if (std::exchange(updating_, false)) ++updates_;
    if (after == After::kClosed && dirty_.empty() && !written_since) {
      maybe_dirty_ = false;
      untracked_ = false;
    }
  }
  store_.recharge(*this, now.allocated_bytes);
  // The cluster has it: what the sidecar says is of use to the next start only.
  if (const Status saved = save_meta(posix::Durability::kNone); !saved) {
    spdlog::warn("cache: cannot write {}: {}", meta_path_, saved.error().message());
    const MutexLock lock(mutex_);
    save_stale_ = true;
  }
  return {};
}

void CachedCopy::note_closed() {
  const MutexLock lock(mutex_);
  if (!clean_known_ || !dirty_.empty() || !scanned_.empty() || !maybe_dirty()) return;
  maybe_dirty_ = false;
  untracked_ = false;
  save_stale_ = true;
}

Result<bool> CachedCopy::surely_modified() {
  FM_TRY(const bool maybe, is_modified());
  if (!maybe) return false;
  FM_TRY(const auto scan, changed_blocks());
  if (scan.modified()) return true;
  FM_CHECK(note_clean(base(), scan, chunks(), After::kStillWritable));
  return false;
}

Result<bool> CachedCopy::settle_closed() {
  {
    const MutexLock lock(mutex_);
    // What passed the daemon is surely news.
    if (!untracked_ || !clean_known_ || !dirty_.empty() || !scanned_.empty()) return false;
  }
  FM_TRY(const auto scan, changed_blocks());
  if (scan.modified()) return false;
  FM_CHECK(note_clean(base(), scan, chunks(), After::kClosed));
  return !maybe_dirty();
}

Status CachedCopy::begin_update() {
  {
    const MutexLock lock(mutex_);
    if (!complete()) return Errc::kRetry;
    // Somebody wrote since the caller looked: that is to be kept.
    if (!updating_ && !(dirty_.empty() && scanned_.empty())) return std::errc::text_file_busy;
    if (!std::exchange(updating_, true)) ++updates_;
  }
  return save_meta(posix::Durability::kNone);
}

Status CachedCopy::mark_conflict() {
  conflict_ = true;
  store_.unindex(*this);
  return save_meta(posix::Durability::kSynced);
}

}  // namespace fermata::mountd
