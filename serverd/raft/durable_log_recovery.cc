// Opening a log: read and judge everything first, then repair.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "common/base/assert.h"
#include "serverd/raft/durable_log.h"
#include "serverd/raft/durable_log_format.h"

namespace fermata::serverd {

using namespace log_format;

namespace {

bool all_zero(ByteView bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](std::byte byte) { return byte == std::byte{0}; });
}

}  // namespace

struct DurableLog::Recovery {
  Disk& disk;
  DurableLog& log;
  std::string& why;
  std::vector<LogIndex> on_disk{};          // first indexes of the segments, sorted
  std::vector<std::string> remove{};        // oldest first
  std::optional<std::uint32_t> tail_cut{};  // of the last segment kept
  Bytes tail{};                             // the last segment kept, whole
  bool state_damaged = false;
  std::uint32_t chain = 0;  // CRC of the last good record
  LogIndex expected{};      // the next record's index
  Term last_term{};

  std::error_code refuse(Errc code, std::string sentence) {
    why = std::move(sentence);
    return code;
  }
  std::error_code corrupt(std::string sentence) {
    return refuse(
        Errc::kCorruptLog,
        sentence +
            "; nothing was changed: keep a copy of the directory, then empty it and start "
            "this node with --init --rejoin, so that it gets everything from the others");
  }
  std::error_code io(const std::string& path, std::error_code error) {
    why = path + ": " + error.message();
    return error;
  }
  std::string path_of(LogIndex first) const { return log.options_.dir + "/" + segment_name(first); }

  Status create();
  Status read_state();
  Result<std::optional<State>> parse_state_copy(ByteView copy, bool& newer);
  Status check_owner(const std::array<std::uint8_t, 16>& cluster, std::uint32_t group,
                     std::uint32_t node, const std::string& path);
  Status list_segments();
  Status scan();
  Status scan_segment(LogIndex first, bool is_last);
  Status judge_header(ByteView bytes, LogIndex first, bool is_last, bool& torn);
  Status judge_record(ByteView bytes, LogIndex first, std::size_t offset, bool is_last);
  bool later_batch_after(ByteView bytes, std::size_t offset) const;
  void take(ByteView bytes, std::size_t offset, const RecordHeader& header);
  Status settle_base();
  Status repair();
};

Status DurableLog::Recovery::create() {
  if (!on_disk.empty()) return corrupt(log.options_.dir + " has log segments but no state file");
  if (log.options_.first_membership.size() > kMembershipBytesMax) return Errc::kTooLarge;
  const std::string& dir = log.options_.dir;
  const auto make = [&]() -> Status {
    std::vector<std::string> changed;  // directories that get a new name in them
    for (std::string at = dir; at != "/" && at != "."; at = parent_of(at)) {
      FM_TRY(const bool exists, disk.exists(at));
      if (exists) break;
      changed.push_back(parent_of(at));
    }
    FM_CHECK(disk.make_dirs(dir));
    for (const std::string& parent : changed) FM_CHECK(disk.sync_dir(parent));
    // Two invalid copies would be refused, so the file appears only with two good ones in it.
    const std::string temporary = log.state_path() + ".tmp";
    FM_TRY(const auto file, disk.open(temporary, Disk::Mode::kCreate));
    FM_CHECK(file->truncate(0));
    StateBlock block{
        .cluster = log.options_.cluster.bytes,
        .group = log.options_.group.value(),
        .node = log.options_.self.value(),
        .sequence = 1,
        .membership_size = static_cast<std::uint32_t>(log.options_.first_membership.size()),
        .flags = log.options_.rejoining ? kRejoining : 0};
    block.crc = header_crc(block, as_bytes(log.options_.first_membership), block.version);
    std::string bytes;
    append_le(bytes, block);
    bytes += log.options_.first_membership;
    bytes.resize(kStateCopyBytes, '\0');
    FM_CHECK(file->write_at(0, as_bytes(bytes + bytes)));
    FM_CHECK(file->sync());
    FM_CHECK(disk.rename(temporary, log.state_path()));
    return disk.sync_dir(dir);
  };
  if (const Status made = make(); !made) return io(dir, made.error());
  return {};
}

Status DurableLog::Recovery::check_owner(const std::array<std::uint8_t, 16>& cluster,
                                         std::uint32_t group, std::uint32_t node,
                                         const std::string& path) {
  const auto& mine = log.options_;
  if (cluster != mine.cluster.bytes) {
    return refuse(Errc::kWrongCluster, path + " belongs to cluster " + ClusterId{cluster}.hex() +
                                           ", this node to " + mine.cluster.hex());
  }
  if (group != mine.group.value() || node != mine.self.value()) {
    return refuse(Errc::kWrongCluster, path + " belongs to node " + std::to_string(node) +
                                           " of group " + std::to_string(group) +
                                           ", this is node " + std::to_string(mine.self.value()) +
                                           " of group " + std::to_string(mine.group.value()));
  }
  return {};
}

Result<std::optional<DurableLog::State>> DurableLog::Recovery::parse_state_copy(ByteView copy,
                                                                                bool& newer) {
  const std::optional<State> none;
  if (copy.size() < sizeof(StateBlock)) return none;
  auto block = load_le<StateBlock>(copy.data());
  if (block.magic != kStateMagic) return none;
  newer |= block.version > kStateVersion;
  const std::size_t size = block.version < 2 ? kStateBlockBytesV1 : sizeof block;
  if (block.membership_size > std::min(kMembershipBytesMax, copy.size() - size)) return none;
  const auto membership = copy.subspan(size, block.membership_size);
  constexpr std::size_t kFrom = offsetof(StateBlock, crc) + sizeof block.crc;
  if (block.crc != crc32c(membership, crc32c(copy.subspan(kFrom, size - kFrom), block.version))) {
    return none;
  }
  if (block.version > kStateVersion) {
    return refuse(Errc::kVersionMismatch,
                  log.state_path() + " has format version " + std::to_string(block.version) +
                      ", this program knows " + std::to_string(kStateVersion));
  }
  if (block.version < 2) block.flags = block.silence_ms = 0;
  FM_CHECK(check_owner(block.cluster, block.group, block.node, log.state_path()));
  return std::optional(State{.sequence = block.sequence,
                             .hard = {.term = Term(block.term),
                                      .voted_for = NodeId(block.voted_for),
                                      .rejoining = (block.flags & kRejoining) != 0,
                                      .silence_ms = block.silence_ms},
                             .durable = LogIndex(block.durable_index),
                             .base_index = LogIndex(block.base_index),
                             .base_term = Term(block.base_term),
                             .membership = std::string(as_text(membership))});
}

Status DurableLog::Recovery::read_state() {
  const auto bytes = read_file(disk, log.state_path(), 2 * kStateCopyBytes);
  if (!bytes) return io(log.state_path(), bytes.error());
  bool newer = false;
  const ByteView all(*bytes);
  const std::size_t half = std::min(all.size(), kStateCopyBytes);
  FM_TRY(const auto first, parse_state_copy(all.first(half), newer));
  FM_TRY(const auto second, parse_state_copy(all.subspan(half), newer));
  if (!first && !second) {
    if (newer)
      return refuse(Errc::kVersionMismatch,
                    log.state_path() + " has a newer format than this program knows");
    return corrupt(log.state_path() + ": both copies of term and vote are damaged");
  }
  state_damaged = !first || !second;
  const bool use_second = !first || (second && second->sequence > first->sequence);
  log.state_ = use_second ? *second : *first;
  return {};
}

Status DurableLog::Recovery::list_segments() {
  const auto there = disk.exists(log.options_.dir);
  if (!there) return io(log.options_.dir, there.error());
  if (!*there) return {};
  const auto names = disk.list(log.options_.dir);
  if (!names) return io(log.options_.dir, names.error());
  for (const std::string& name : *names) {
    if (const auto first = segment_index(name)) on_disk.push_back(*first);
  }
  return {};  // the list is sorted, and so are fixed-width names
}

/// True if the bytes after `offset` hold a valid record that was written after those at `offset`
/// were synced.
bool DurableLog::Recovery::later_batch_after(ByteView bytes, std::size_t offset) const {
  for (std::size_t at = offset + kRecordAlign; at + sizeof(RecordHeader) <= bytes.size();
       at += kRecordAlign) {
    const auto record = record_at(bytes, at);
    if (record && record->batch_start > offset && record->index > expected.value()) return true;
  }
  return false;
}

Status DurableLog::Recovery::judge_header(ByteView bytes, LogIndex first, bool is_last,
                                          bool& torn) {
  const std::string path = path_of(first);
  SegmentHeader header;
  bool valid = bytes.size() >= sizeof header;
  if (valid) {
    header = load_le<SegmentHeader>(bytes.data());
    valid = header.magic == kSegmentMagic && header.crc == header_crc(header, {}, header.version);
  }
  if (!valid) {
    expected = first;
    if (!is_last || log.state_.durable >= first || later_batch_after(bytes, 0)) {
      return corrupt(path + ": the header of this log segment is damaged");
    }
    torn = true;
    return {};
  }
  if (header.version > kVersion) {
    return refuse(Errc::kVersionMismatch, path + " has format version " +
                                              std::to_string(header.version) +
                                              ", this program knows " + std::to_string(kVersion));
  }
  FM_CHECK(check_owner(header.cluster, header.group, header.node, path));
  if (header.first_index != first.value()) {
    return corrupt(path + ": by its header this segment begins with entry " +
                   std::to_string(header.first_index));
  }
  if (log.segments_.empty()) {
    if (first > log.state_.base_index.next()) {
      return corrupt(path + ": the log begins here, but entries from " +
                     std::to_string(log.state_.base_index.next().value()) + " on should be there");
    }
    expected = first;
    chain = header.prev_crc;
    last_term = Term(header.prev_term);
    if (first.prev() == log.base_index_) log.base_slot_.crc = chain;
  } else if (first != expected || header.prev_crc != chain ||
             header.prev_term != last_term.value()) {
    return corrupt(path + ": this segment does not follow entry " +
                   std::to_string(expected.prev().value()) + ", the last one before it");
  }
  return {};
}

/// A bad record: cuts the tail there if it may be torn.
Status DurableLog::Recovery::judge_record(ByteView bytes, LogIndex first, std::size_t offset,
                                          bool is_last) {
  const std::string place = path_of(first) + ": entry " + std::to_string(expected.value()) +
                            " at offset " + std::to_string(offset);
  if (!is_last) return corrupt(place + " is damaged, and a later segment exists");
  if (log.state_.durable >= expected) {
    return corrupt(place + " is damaged, and entries up to " +
                   std::to_string(log.state_.durable.value()) + " were durable");
  }
  if (later_batch_after(bytes, offset))
    return corrupt(place + " is damaged, and valid records follow it");
  spdlog::warn("{} was not completely written when the node stopped; the log is cut there", place);
  tail_cut = static_cast<std::uint32_t>(offset);
  return {};
}

void DurableLog::Recovery::take(ByteView bytes, std::size_t offset, const RecordHeader& header) {
  const Slot slot{.term = Term(header.term),
                  .offset = static_cast<std::uint32_t>(offset),
                  .size = header.size,
                  .crc = header.crc,
                  .kind = static_cast<EntryKind>(header.kind)};
  chain = header.crc;
  last_term = slot.term;
  if (expected > log.base_index_) {
    log.slots_.push_back(slot);
    const auto data = bytes.subspan(offset + sizeof header, header.size);
    log.cache_.push_back({.index = expected,
                          .term = slot.term,
                          .kind = slot.kind,
                          .data = std::make_shared<const std::string>(as_text(data))});
    log.cache_bytes_ += header.size;
    log.disk_last_ = expected;
    if (slot.kind == EntryKind::kMembership) log.memberships_.push_back(expected);
    log.shrink_cache();
  } else if (expected == log.base_index_) {
    log.base_slot_ = slot;
  }
  expected = expected.next();
}

Status DurableLog::Recovery::scan_segment(LogIndex first, bool is_last) {
  const std::string path = path_of(first);
  Segment segment{.first = first, .path = path, .file = nullptr, .end = sizeof(SegmentHeader)};
  const auto work = [&]() -> Status {
    FM_TRY(segment.file, disk.open(path, Disk::Mode::kReadWrite));
    FM_TRY(const std::uint64_t size, segment.file->size_bytes());
    if (size > 0xffffffff) return corrupt(path + " is larger than a segment can be");
    Bytes bytes(size);
    FM_TRY(const std::size_t count, segment.file->read_at(0, bytes));
    bytes.resize(count);
    bool torn = false;
    FM_CHECK(judge_header(bytes, first, is_last, torn));
    if (torn) {
      spdlog::warn("{} was not completely written when the node stopped; it is removed", path);
      remove.push_back(path);
      return {};
    }
    std::size_t offset = segment.end;
    while (offset < bytes.size()) {
      const auto record = record_at(bytes, offset);
      const bool good = record && record->prev_crc == chain && record->index == expected.value() &&
                        record->term >= last_term.value() && record->kind >= 1 &&
                        record->kind <= static_cast<std::uint8_t>(EntryKind::kMembership);
      if (!good && is_last && all_zero(ByteView(bytes).subspan(offset))) {
        tail_cut = static_cast<std::uint32_t>(offset);  // as if the file ended here
        break;
      }
      if (!good) {
        FM_CHECK(judge_record(bytes, first, offset, is_last));
        break;
      }
      take(bytes, offset, *record);
      offset += record_bytes(record->size);
    }
    segment.end = static_cast<std::uint32_t>(offset);
    bytes.resize(offset);
    tail = std::move(bytes);
    log.segments_.push_back(std::move(segment));
    return {};
  };
  const Status done = work();
  return done || !why.empty() ? done : Status(io(path, done.error()));
}

Status DurableLog::Recovery::scan() {
  const LogIndex base = log.state_.base_index;
  log.hard_ = log.state_.hard;
  log.base_index_ = log.disk_last_ = base;
  log.base_term_ = log.state_.base_term;
  log.base_membership_ = log.state_.membership;
  expected = base.next();
  for (std::size_t i = 0; i < on_disk.size(); ++i) {
    const bool is_last = i + 1 == on_disk.size();
    if (!is_last && on_disk[i + 1] <= base.next()) {
      remove.push_back(path_of(on_disk[i]));  // a compaction did not come to its end
      continue;
    }
    FM_CHECK(scan_segment(on_disk[i], is_last));
  }
  return settle_base();
}

/// What the segments say at the base must agree with it, unless a reset did not come to its end.
Status DurableLog::Recovery::settle_base() {
  const LogIndex base = log.base_index_;
  const LogIndex last = log.segments_.empty() ? base : expected.prev();
  if (log.state_.durable > std::max(last, base)) {
    return corrupt(log.options_.dir + ": the log ends at entry " + std::to_string(last.value()) +
                   ", but entries up to " + std::to_string(log.state_.durable.value()) +
                   " were durable");
  }
  if (log.segments_.empty()) return {};
  bool agrees = last >= base;
  if (agrees && log.segments_.front().first > base) {
    const SegmentHeader header = [&] {
      Bytes bytes(sizeof(SegmentHeader));
      (void)log.segments_.front().file->read_at(0, bytes);
      return load_le<SegmentHeader>(bytes.data());
    }();
    agrees = header.prev_term == log.base_term_.value();
  } else if (agrees) {
    agrees = log.base_slot_.term == log.base_term_;
  }
  if (agrees) return {};
  if (log.state_.durable != base) {
    return corrupt(log.options_.dir + ": the log does not agree with its snapshot at entry " +
                   std::to_string(base.value()));
  }
  for (const Segment& segment : log.segments_) remove.push_back(segment.path);
  std::sort(remove.begin(), remove.end());
  log.segments_.clear();
  log.slots_.clear();
  log.cache_.clear();
  log.cache_bytes_ = 0;
  log.memberships_.clear();
  log.base_slot_ = {};
  log.disk_last_ = base;
  tail_cut.reset();
  return {};
}

Status DurableLog::Recovery::repair() {
  if (state_damaged) spdlog::warn("{}: one copy was damaged and is written anew", log.state_path());
  const auto work = [&]() -> Status {
    for (auto path = remove.rbegin(); path != remove.rend(); ++path) {
      FM_CHECK(disk.remove(*path));
      FM_CHECK(disk.sync_dir(log.options_.dir));
    }
    FM_CHECK(disk.sync_dir(log.options_.dir));
    if (!log.segments_.empty()) {
      // What a stopped process left in the kernel's cache counts from now on, so it must become
      // durable. After a failed sync the cache calls it clean though the disk never got it: only
      // writing again helps.
      Segment& last = log.segments_.back();
      if (tail_cut) FM_CHECK(last.file->truncate(*tail_cut));
      FM_CHECK(last.file->write_at(0, tail));
      FM_CHECK(last.file->sync());
    }
    State state = log.state_;
    state.durable = log.disk_last_;
    return log.write_state(state);
  };
  const Status done = work();
  return done ? done : Status(io(log.options_.dir, done.error()));
}

Result<std::unique_ptr<DurableLog>> DurableLog::open(Disk& disk, DurableLogOptions options,
                                                     std::string& why) {
  why.clear();
  std::unique_ptr<DurableLog> log(new DurableLog(disk, std::move(options)));
  Recovery recovery{.disk = disk, .log = *log, .why = why};
  FM_CHECK(recovery.list_segments());
  const auto there = disk.exists(log->state_path());
  if (!there) return recovery.io(log->state_path(), there.error());
  if (!*there) FM_CHECK(recovery.create());
  FM_CHECK(recovery.read_state());
  FM_CHECK(recovery.scan());
  FM_CHECK(recovery.repair());
  log->writing_last_ = log->disk_last_;
  return log;
}

}  // namespace fermata::serverd
