#include "serverd/raft/durable_log.h"

#include <algorithm>
#include <utility>

#include "common/base/assert.h"
#include "serverd/raft/durable_log_format.h"

namespace fermata::serverd {
namespace {

using namespace log_format;

LogIndex minus(LogIndex index, std::size_t count) { return LogIndex(index.value() - count); }

void append_record(std::string& out, const LogEntry& entry, std::uint32_t prev_crc,
                   std::uint32_t batch_start, std::uint32_t& crc) {
  RecordHeader header{.prev_crc = prev_crc,
                      .size = static_cast<std::uint32_t>(entry.data->size()),
                      .index = entry.index.value(),
                      .term = entry.term.value(),
                      .batch_start = batch_start,
                      .kind = static_cast<std::uint8_t>(entry.kind)};
  header.crc = crc = header_crc(header, as_bytes(*entry.data), prev_crc);
  append_le(out, header);
  out += *entry.data;
  out.append(record_bytes(header.size) - sizeof header - header.size, '\0');
}

}  // namespace

DurableLog::DurableLog(Disk& disk, DurableLogOptions options)
    : disk_(disk), options_(std::move(options)) {}

Status DurableLog::check_poison() const {
  if (poison_) return poison_;
  return {};
}

Status DurableLog::poison(std::error_code error) {
  // Not the harmless one: something may be lost.
  if (error == std::errc::no_space_on_device) error = from_errno(EIO);
  MutexLock lock(mutex_);
  if (!poison_) poison_ = error;
  return poison_;
}

// --- Reading -------------------------------------------------------------------------------------

LogIndex DurableLog::first_index() const {
  MutexLock lock(mutex_);
  return base_index_.next();
}

LogIndex DurableLog::last_index() const {
  MutexLock lock(mutex_);
  return LogIndex(base_index_.value() + slots_.size());
}

LogIndex DurableLog::base_index() const {
  MutexLock lock(mutex_);
  return base_index_;
}

LogIndex DurableLog::index_keeping(std::uint64_t bytes) const {
  MutexLock lock(mutex_);
  std::uint64_t kept = 0;
  std::size_t count = 0;
  for (; count < slots_.size(); ++count) {
    kept += record_bytes(slots_[slots_.size() - 1 - count].size);
    if (kept > bytes) break;
  }
  return LogIndex(base_index_.value() + slots_.size() - count);
}

std::string DurableLog::base_membership() const {
  MutexLock lock(mutex_);
  return base_membership_;
}

HardState DurableLog::hard_state() const {
  MutexLock lock(mutex_);
  return hard_;
}

LogIndex DurableLog::durable_index() const {
  MutexLock lock(mutex_);
  return cut_ ? std::min(disk_last_, cut_->prev()) : disk_last_;
}

bool DurableLog::has_unmarked() const {
  MutexLock lock(mutex_);
  return marked_ < (cut_ ? std::min(disk_last_, cut_->prev()) : disk_last_);
}

bool DurableLog::has_staged() const {
  MutexLock lock(mutex_);
  return hard_staged_ || cut_ || disk_last_.value() < base_index_.value() + slots_.size();
}

const DurableLog::Slot& DurableLog::slot(LogIndex index) const {
  if (index == base_index_) return base_slot_;
  FM_ASSERT(index > base_index_);
  return slots_.at(index.value() - base_index_.value() - 1);
}

std::optional<Term> DurableLog::term_at_locked(LogIndex index) const {
  if (index == base_index_) return base_term_;
  if (index < base_index_ || index.value() > base_index_.value() + slots_.size())
    return std::nullopt;
  return slot(index).term;
}

std::optional<Term> DurableLog::term_at(LogIndex index) const {
  MutexLock lock(mutex_);
  return term_at_locked(index);
}

Result<std::string> DurableLog::membership_at(LogIndex index) const {
  LogIndex since;
  {
    MutexLock lock(mutex_);
    const auto after = std::upper_bound(memberships_.begin(), memberships_.end(), index);
    if (after == memberships_.begin()) return base_membership_;
    since = *std::prev(after);
  }
  FM_TRY(const auto entries, read(since, since, 0));
  return *entries.front().data;
}

Result<std::vector<LogEntry>> DurableLog::read(LogIndex first, LogIndex last,
                                               std::size_t bytes_max) const {
  std::vector<LogEntry> entries;
  std::size_t bytes = 0;
  while (first <= last) {
    {
      MutexLock lock(mutex_);
      FM_CHECK(check_poison());
      if (first <= base_index_) return Errc::kTruncatedHistory;
      FM_ASSERT(last.value() <= base_index_.value() + slots_.size());
      const LogIndex cached =
          minus(LogIndex(base_index_.value() + slots_.size() + 1), cache_.size());
      if (first >= cached) {
        for (; first <= last; first = first.next()) {
          const LogEntry& entry = cache_[first.value() - cached.value()];
          if (!entries.empty() && bytes + entry.data->size() > bytes_max) break;
          bytes += entry.data->size();
          entries.push_back(entry);
        }
        return entries;
      }
    }
    FM_TRY(auto run, read_run(first, last, bytes_max - std::min(bytes, bytes_max)));
    for (LogEntry& entry : run) {
      if (!entries.empty() && bytes + entry.data->size() > bytes_max) return entries;
      bytes += entry.data->size();
      first = entry.index.next();
      entries.push_back(std::move(entry));
    }
    if (bytes >= bytes_max) return entries;
  }
  return entries;
}

/// Entries from the disk, as many as lie together in one segment and fit; at least one.
Result<std::vector<LogEntry>> DurableLog::read_run(LogIndex first, LogIndex last,
                                                   std::size_t bytes_max) const {
  std::vector<Slot> run;
  std::shared_ptr<File> file;
  {
    MutexLock lock(mutex_);
    auto next = std::upper_bound(
        segments_.begin(), segments_.end(), first,
        [](LogIndex index, const Segment& segment) { return index < segment.first; });
    if (next == segments_.begin())
      return Errc::kTruncatedHistory;  // between reset() and finish_reset()
    file = std::prev(next)->file;
    if (next != segments_.end()) last = std::min(last, next->first.prev());
    std::size_t bytes = 0;
    for (LogIndex index = first; index <= last; index = index.next()) {
      const Slot& at = slot(index);
      if (at.offset == 0) break;  // only in the cache
      if (!run.empty() && bytes + at.size > bytes_max) break;
      bytes += at.size;
      run.push_back(at);
    }
  }
  FM_ASSERT(!run.empty());
  const std::uint32_t start = run.front().offset;
  Bytes bytes(run.back().offset + record_bytes(run.back().size) - start);
  FM_TRY(const std::size_t count, file->read_at(start, bytes));
  std::vector<LogEntry> entries;
  for (std::size_t i = 0; i < run.size(); ++i) {
    const std::size_t offset = run[i].offset - start;
    if (offset + record_bytes(run[i].size) > count) return Errc::kCorruptLog;
    const auto header = load_le<RecordHeader>(bytes.data() + offset);
    const auto data = ByteView(bytes).subspan(offset + sizeof header, run[i].size);
    if (header.crc != run[i].crc || header.size != run[i].size ||
        header.index != first.value() + i ||
        header.crc != header_crc(header, data, header.prev_crc)) {
      return Errc::kCorruptLog;
    }
    entries.push_back({.index = LogIndex(header.index),
                       .term = Term(header.term),
                       .kind = static_cast<EntryKind>(header.kind),
                       .data = std::make_shared<const std::string>(as_text(data))});
  }
  return entries;
}

// --- Changing what is in memory ------------------------------------------------------------------

void DurableLog::set_hard_state(HardState hard) {
  MutexLock lock(mutex_);
  if (hard_ == hard) return;
  hard_ = hard;
  hard_staged_ = true;
}

Status DurableLog::append(std::vector<LogEntry> entries) {
  MutexLock lock(mutex_);
  FM_CHECK(check_poison());
  if (entries.empty()) return {};
  const LogIndex first = entries.front().index;
  FM_ASSERT(first > base_index_ && first.value() <= base_index_.value() + slots_.size() + 1);
  while (base_index_.value() + slots_.size() >= first.value()) {
    slots_.pop_back();
    if (cache_.empty()) continue;
    cache_bytes_ -= cache_.back().data->size();
    cache_.pop_back();
  }
  while (!memberships_.empty() && memberships_.back() >= first) memberships_.pop_back();
  if (first <= std::max(disk_last_, writing_last_)) cut_ = std::min(cut_.value_or(first), first);
  for (LogEntry& entry : entries) {
    FM_ASSERT(entry.index.value() == base_index_.value() + slots_.size() + 1);
    FM_ASSERT(entry.data != nullptr && entry.data->size() <= kEntryBytesMax);
    slots_.push_back({.term = entry.term,
                      .offset = 0,
                      .size = static_cast<std::uint32_t>(entry.data->size()),
                      .crc = 0,
                      .kind = entry.kind});
    if (entry.kind == EntryKind::kMembership) memberships_.push_back(entry.index);
    cache_bytes_ += entry.data->size();
    cache_.push_back(std::move(entry));
  }
  return {};
}

void DurableLog::drop_front(LogIndex up_to) {
  while (base_index_ < up_to) {
    base_slot_ = slots_.front();
    base_index_ = base_index_.next();
    base_term_ = base_slot_.term;
    slots_.pop_front();
  }
  while (cache_.size() > slots_.size()) {
    cache_bytes_ -= cache_.front().data->size();
    cache_.pop_front();
  }
  std::erase_if(memberships_, [&](LogIndex index) { return index <= up_to; });
}

void DurableLog::shrink_cache() {
  while (cache_bytes_ > options_.cache_bytes && !cache_.empty() &&
         cache_.front().index <= disk_last_ && slot(cache_.front().index).offset != 0) {
    cache_bytes_ -= cache_.front().data->size();
    cache_.pop_front();
  }
}

// --- Changing what is on disk --------------------------------------------------------------------

/// Both copies, one after the other: a torn one leaves the other, and damage to one is no loss.
Status DurableLog::write_state(const State& state) {
  StateBlock block{.cluster = options_.cluster.bytes,
                   .group = options_.group.value(),
                   .node = options_.self.value(),
                   .sequence = state.sequence + 1,
                   .term = state.hard.term.value(),
                   .durable_index = state.durable.value(),
                   .base_index = state.base_index.value(),
                   .base_term = state.base_term.value(),
                   .voted_for = state.hard.voted_for.value(),
                   .membership_size = static_cast<std::uint32_t>(state.membership.size()),
                   .flags = state.hard.rejoining ? kRejoining : 0,
                   .silence_ms = state.hard.silence_ms};
  block.crc = header_crc(block, as_bytes(state.membership), block.version);
  std::string bytes;
  append_le(bytes, block);
  bytes += state.membership;
  FM_TRY(const auto file, disk_.open(state_path(), Disk::Mode::kReadWrite));
  for (const std::size_t offset : {std::size_t{0}, kStateCopyBytes}) {
    FM_CHECK(file->write_at(offset, as_bytes(bytes)));
    FM_CHECK(file->sync());
  }
  state_ = state;
  ++state_.sequence;
  MutexLock lock(mutex_);
  marked_ = state.durable;
  return {};
}

Result<DurableLog::Persisted> DurableLog::persist() {
  MutexLock io(io_mutex_);
  auto done = do_persist();
  if (done) return done;
  if (!std::exchange(no_room_, false)) return poison(done.error()).error();
  // As if the rest had never been given to the disk.
  MutexLock lock(mutex_);
  writing_last_ = disk_last_;
  if (cut_ && *cut_ > disk_last_) cut_.reset();
  return done;
}

Result<DurableLog::Persisted> DurableLog::do_persist() {
  State state = state_;
  bool write_hard = false;
  std::optional<LogIndex> cut;
  std::uint32_t cut_end = 0;
  std::vector<LogEntry> entries;
  Term prev_term;
  std::uint32_t prev_crc = 0;
  Persisted target;
  {
    // Everything that memory knows is taken here: an append() may replace any of it while the disk
    // works. What is then written is not wanted any more, but is a chain all the same, and is cut.
    MutexLock lock(mutex_);
    FM_CHECK(check_poison());
    write_hard = std::exchange(hard_staged_, false);
    state.hard = hard_;
    cut = std::exchange(cut_, std::nullopt);
    if (cut) {
      disk_last_ = std::min(disk_last_, cut->prev());
      const Slot& before = slot(cut->prev());
      cut_end = before.offset + static_cast<std::uint32_t>(record_bytes(before.size));
    }
    prev_term = *term_at_locked(disk_last_);
    prev_crc = slot(disk_last_).crc;
    target.index = LogIndex(base_index_.value() + slots_.size());
    target.term = *term_at_locked(target.index);
    const std::size_t count = target.index.value() - disk_last_.value();
    entries.assign(cache_.end() - static_cast<std::ptrdiff_t>(count), cache_.end());
    writing_last_ = target.index;
  }
  if (cut && state.durable >= *cut) {
    state.durable = cut->prev();
    write_hard = true;
  }
  if (write_hard) FM_CHECK(write_state(state));
  if (cut) FM_CHECK(cut_on_disk(*cut, cut_end));
  FM_CHECK(write_entries(entries, prev_term, prev_crc));
  return target;
}

/// Removes what the disk has from `from` on. Synced before anything is written in its place: stale
/// records behind a torn new one would look like damage.
Status DurableLog::cut_on_disk(LogIndex from, std::uint32_t end) {
  while (!segments_.empty() && segments_.back().first >= from) FM_CHECK(remove_newest_segment());
  if (segments_.empty()) return {};
  Segment& segment = segments_.back();
  FM_ASSERT(end > sizeof(SegmentHeader) && end <= segment.end);
  if (end == segment.end) return {};
  FM_CHECK(cut_segment(segment, end));
  return segment.file->sync();
}

Status DurableLog::cut_segment(Segment& segment, std::uint32_t end) {
  FM_CHECK(segment.file->truncate(end));
  segment.end = segment.filled = end;
  return {};
}

/// Newest first, each durably, so that what is left never has a gap.
Status DurableLog::remove_newest_segment() {
  const std::string path = segments_.back().path;
  {
    MutexLock lock(mutex_);
    segments_.pop_back();
  }
  FM_CHECK(disk_.remove(path));
  return disk_.sync_dir(options_.dir);
}

std::string DurableLog::segment_header(LogIndex first, Term prev_term,
                                       std::uint32_t prev_crc) const {
  SegmentHeader header{.cluster = options_.cluster.bytes,
                       .group = options_.group.value(),
                       .node = options_.self.value(),
                       .first_index = first.value(),
                       .prev_term = prev_term.value(),
                       .prev_crc = prev_crc};
  header.crc = header_crc(header, {}, header.version);
  std::string bytes;
  append_le(bytes, header);
  return bytes;
}

Status DurableLog::begin_segment(LogIndex first) {
  Segment segment{
      .first = first, .path = options_.dir + "/" + segment_name(first), .file = nullptr, .end = 0};
  FM_TRY(segment.file, disk_.open(segment.path, Disk::Mode::kCreateNew));
  MutexLock lock(mutex_);
  segments_.push_back(std::move(segment));
  return {};
}

/// Writes `bytes` at the end of the newest segment, or into a new one that begins with `first`.
/// Nothing is synced yet, so that ENOSPC can be taken back.
Status DurableLog::write_batch(bool fresh, LogIndex first, ByteView bytes) {
  for (;;) {
    Status written;
    const std::size_t segments = segments_.size();
    if (fresh) written = begin_segment(first);
    if (written) written = write_over_zeros(segments_.back(), bytes);
    if (written || written.error() != std::errc::no_space_on_device) return written;
    if (!fresh || segments_.size() > segments) FM_CHECK(take_back(fresh));
    if (options_.make_room && options_.make_room()) continue;
    no_room_ = true;
    return written;
  }
}

/// With more zeros behind it where those that are there do not reach: they are synced with it.
Status DurableLog::write_over_zeros(Segment& segment, ByteView bytes) {
  constexpr std::uint32_t kStepsMax = 16;  // in a segment
  const std::uint64_t end = segment.end + bytes.size();
  const std::uint32_t step = std::max(options_.segment_bytes / kStepsMax, std::uint32_t{1});
  const std::uint64_t wanted =
      std::min<std::uint64_t>((end + step - 1) / step * step, options_.segment_bytes);
  if (end <= segment.filled || wanted <= end) return segment.file->write_at(segment.end, bytes);
  std::string padded(as_text(bytes));
  padded.resize(wanted - segment.end, '\0');
  const Status written = segment.file->write_at(segment.end, as_bytes(padded));
  if (written) {
    segment.filled = static_cast<std::uint32_t>(wanted);
    return {};
  }
  if (written.error() != std::errc::no_space_on_device) return written;
  FM_CHECK(cut_segment(segment, segment.end));  // perhaps there is room without them
  return segment.file->write_at(segment.end, bytes);
}

/// Durably: what is left of a batch would look like damage behind the one that comes in its place.
Status DurableLog::take_back(bool fresh) {
  if (fresh) return remove_newest_segment();
  Segment& segment = segments_.back();
  FM_CHECK(cut_segment(segment, segment.end));
  return segment.file->sync();
}

Status DurableLog::write_entries(const std::vector<LogEntry>& entries, Term prev_term,
                                 std::uint32_t prev_crc) {
  std::size_t next = 0;
  while (next < entries.size()) {
    const LogIndex first = entries[next].index;
    const bool fresh = segments_.empty() || segments_.back().end >= options_.segment_bytes;
    std::string buffer;
    if (fresh) buffer = segment_header(first, prev_term, prev_crc);
    const std::uint32_t batch_start = fresh ? 0 : segments_.back().end;
    std::vector<Slot> written;
    while (next < entries.size() &&
           (written.empty() || batch_start + buffer.size() < options_.segment_bytes)) {
      const LogEntry& entry = entries[next++];
      const auto offset = static_cast<std::uint32_t>(batch_start + buffer.size());
      append_record(buffer, entry, prev_crc, batch_start, prev_crc);
      prev_term = entry.term;
      written.push_back({.term = entry.term,
                         .offset = offset,
                         .size = static_cast<std::uint32_t>(entry.data->size()),
                         .crc = prev_crc,
                         .kind = entry.kind});
    }
    FM_CHECK(write_batch(fresh, first, as_bytes(buffer)));
    Segment& segment = segments_.back();
    FM_CHECK(segment.file->sync());
    if (fresh) FM_CHECK(disk_.sync_dir(options_.dir));
    segment.end = static_cast<std::uint32_t>(batch_start + buffer.size());
    segment_unrecorded_ |= fresh;

    MutexLock lock(mutex_);
    disk_last_ = LogIndex(first.value() + written.size() - 1);
    for (std::size_t i = 0; i < written.size(); ++i) {
      const LogIndex index(first.value() + i);
      if (cut_ && index >= *cut_) break;  // replaced while it was written
      slots_[index.value() - base_index_.value() - 1] = written[i];
    }
    shrink_cache();
  }
  // From here on a damaged header of the new segment cannot pass for one that was never finished.
  if (!segment_unrecorded_ || entries.empty()) return {};
  State state = state_;
  state.durable = entries.back().index;
  FM_CHECK(write_state(state));
  segment_unrecorded_ = false;
  return {};
}

void DurableLog::forget(LogIndex up_to, std::string membership) {
  FM_ASSERT(membership.size() <= kMembershipBytesMax);
  MutexLock lock(mutex_);
  if (up_to <= base_index_) return;
  FM_ASSERT(up_to <= disk_last_ && (!cut_ || up_to < *cut_) && slot(up_to).offset != 0);
  drop_front(up_to);
  base_membership_ = std::move(membership);
}

Status DurableLog::mark_durable() {
  MutexLock io(io_mutex_);
  Status done = do_mark_durable();
  return done ? done : poison(done.error());
}

Status DurableLog::do_mark_durable() {
  State state = state_;
  {
    MutexLock lock(mutex_);
    FM_CHECK(check_poison());
    state.durable = cut_ ? std::min(disk_last_, cut_->prev()) : disk_last_;
  }
  return state.durable > state_.durable ? write_state(state) : Status();
}

Status DurableLog::compact() {
  MutexLock io(io_mutex_);
  Status done = do_compact();
  return done ? done : poison(done.error());
}

Status DurableLog::do_compact() {
  State state = state_;
  {
    MutexLock lock(mutex_);
    FM_CHECK(check_poison());
    if (base_index_ <= state.base_index) return {};
    state.base_index = base_index_;
    state.base_term = base_term_;
    state.durable = cut_ ? std::min(disk_last_, cut_->prev()) : disk_last_;
    state.membership = base_membership_;
  }
  // First the promise, then the removal: a missing first segment is damage unless the base says so.
  FM_CHECK(write_state(state));
  std::vector<std::string> paths;
  {
    MutexLock lock(mutex_);
    std::size_t drop = 0;
    while (drop + 1 < segments_.size() && segments_[drop + 1].first <= state.base_index.next()) {
      paths.push_back(segments_[drop++].path);
    }
    segments_.erase(segments_.begin(), segments_.begin() + static_cast<std::ptrdiff_t>(drop));
  }
  for (const std::string& path : paths) FM_CHECK(disk_.remove(path));
  return paths.empty() ? Status() : disk_.sync_dir(options_.dir);
}

Status DurableLog::reset(LogIndex index, Term term, std::string membership) {
  MutexLock io(io_mutex_);
  Status done = do_reset(index, term, std::move(membership));
  no_room_ = false;  // half of a reset is no state to go on from, full disk or not
  if (!done) (void)poison(done.error());
  return done;
}

Status DurableLog::do_reset(LogIndex index, Term term, std::string membership) {
  FM_ASSERT(membership.size() <= kMembershipBytesMax);
  if (auto done = do_persist(); !done) return done.error();
  {
    MutexLock lock(mutex_);
    FM_ASSERT(!cut_);
    if (index <= base_index_) return {};
  }
  State state = state_;
  state.base_index = state.durable = index;
  state.base_term = term;
  state.membership = membership;
  FM_CHECK(write_state(state));
  while (!segments_.empty()) FM_CHECK(remove_newest_segment());
  MutexLock lock(mutex_);
  reset_to_ = std::move(state);
  return {};
}

void DurableLog::finish_reset() {
  MutexLock lock(mutex_);
  const auto to = std::exchange(reset_to_, std::nullopt);
  if (!to) return;
  slots_.clear();
  cache_.clear();
  cache_bytes_ = 0;
  memberships_.clear();
  base_index_ = disk_last_ = writing_last_ = to->base_index;
  base_term_ = to->base_term;
  base_slot_ = {};
  base_membership_ = to->membership;
}

}  // namespace fermata::serverd
