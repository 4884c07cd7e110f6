#include "serverd/meta/codec.h"

#include "common/base/bytes.h"

namespace fermata::serverd {
namespace {

constexpr std::uint8_t kFormat = 1;  // of every value today

/// Takes fields off the front of a value; `ok()` at the end tells whether all of them were there.
class Reader {
 public:
  explicit Reader(std::string_view value) : rest_(value) {}
  template <class T>
  T take() {
    if (rest_.size() < sizeof(T)) {
      ok_ = false;
      return T{};
    }
    const T value = load_le<T>(rest_.data());
    rest_.remove_prefix(sizeof(T));
    return value;
  }
  std::string_view take_bytes(std::size_t size) {
    if (rest_.size() < size) {
      ok_ = false;
      return {};
    }
    const auto bytes = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return bytes;
  }
  std::string take_string() { return std::string(take_bytes(take<std::uint16_t>())); }
  std::string_view take_rest() { return take_bytes(rest_.size()); }
  /// Reads the format byte.
  Status begin() {
    const auto format = take<std::uint8_t>();
    if (!ok_ || format == 0) return Errc::kCorruptStore;
    if (format > kFormat) return Errc::kVersionMismatch;
    return {};
  }
  bool good() const { return ok_; }
  bool done() const { return ok_ && rest_.empty(); }

 private:
  std::string_view rest_;
  bool ok_ = true;
};

std::string begin_value(std::size_t size) {
  std::string out;
  out.reserve(size);
  append_le(out, kFormat);
  return out;
}
std::string begin_value(LogIndex since, std::size_t size) {
  std::string out = begin_value(size);
  append_le(out, since.value());
  return out;
}
void append_string(std::string& out, std::string_view text) {
  text = text.substr(0, 0xffff);
  append_le(out, static_cast<std::uint16_t>(text.size()));
  out += text;
}
void append_chunk_id(std::string& out, const ChunkId& id) {
  append_le(out, id.algorithm);
  append_le(out, id.digest);
}
Result<ChunkId> parse_chunk_id(std::string_view bytes) {
  if (bytes.size() != ChunkId::kSizeBytes) return Errc::kCorruptStore;
  ChunkId id;
  id.algorithm = static_cast<std::uint8_t>(bytes[0]);
  if (id.algorithm != ChunkId::kSha256) return Errc::kCorruptStore;
  std::memcpy(id.digest.data(), bytes.data() + 1, id.digest.size());
  return id;
}
bool valid_type(std::uint8_t type) {
  return type >= static_cast<std::uint8_t>(FileType::kRegular) &&
         type <= static_cast<std::uint8_t>(FileType::kBlockDevice);
}

struct [[gnu::packed]] DiskTime {
  std::int64_t seconds;
  std::uint32_t nanoseconds;
};
DiskTime to_disk(const Timestamp& time) { return {time.seconds, time.nanoseconds}; }
Timestamp from_disk(const DiskTime& time) { return {time.seconds, time.nanoseconds}; }

// Of DiskInode::flags.
constexpr std::uint8_t kLinkable = 1;
constexpr std::uint8_t kHasQuota = 2;  // u64 inode follows

constexpr char kQuotaKey = 'q', kQuotaWalkKey = 'w';  // Family::kCounters

/// An inode's value; the tree whose quota counts it (if it has one) and a symlink's target follow.
struct [[gnu::packed]] DiskInode {
  std::uint8_t format;
  std::uint64_t since;
  std::uint8_t type;
  std::uint8_t content;
  std::uint8_t flags;
  std::uint32_t mode;
  std::uint32_t nlink;
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint64_t rdev;
  std::uint64_t size_bytes;
  std::uint64_t allocated_bytes;
  DiskTime atime, mtime, ctime, btime;
  std::uint64_t version;
  std::uint64_t parent;
  std::uint64_t entries;
  std::uint64_t next_cookie;
  std::uint64_t writer;
  std::uint32_t chunks;
  std::uint32_t patches;
  std::uint32_t patch_bytes;
  std::uint32_t xattr_name_bytes;
  std::uint32_t xattr_bytes;
};
static_assert(sizeof(DiskInode) == 12 + 4 * 4 + 3 * 8 + 4 * 12 + 5 * 8 + 5 * 4);

struct [[gnu::packed]] DiskState {
  std::uint8_t format;
  std::uint64_t applied;
  std::uint8_t cluster[16];
  std::uint64_t next_inode;
  std::uint64_t inodes;
  std::uint64_t chunks;
  std::uint64_t garbage;
  std::uint64_t conflicts;
  std::uint64_t history_start;
  // u64 quotas, if there are any
};
static_assert(sizeof(DiskState) == 1 + 8 + 16 + 6 * 8);

std::string be(std::uint64_t a) {
  std::string key;
  append_be64(key, a);
  return key;
}
std::string be(std::uint64_t a, std::uint64_t b) {
  std::string key;
  key.reserve(16);
  append_be64(key, a);
  append_be64(key, b);
  return key;
}

}  // namespace

std::string key_of(InodeId inode) { return be(inode.value()); }
std::string key_of(InodeId inode, std::string_view name) {
  std::string key;
  key.reserve(8 + name.size());
  append_be64(key, inode.value());
  key += name;
  return key;
}
std::string key_of(InodeId inode, Cookie cookie) { return be(inode.value(), cookie.value()); }
std::string key_of(InodeId inode, LogIndex index) { return be(inode.value(), index.value()); }
std::string key_of(InodeId inode, SessionId session) { return be(inode.value(), session.value()); }
std::string key_of(InodeId inode, LockSpace space) {
  return be(inode.value()) + static_cast<char>(space);
}
std::string key_of(SessionId session) { return be(session.value()); }
std::string key_of(SessionId session, Sequence sequence) {
  return be(session.value(), sequence.value());
}
std::string key_of(const ChunkId& chunk) {
  std::string key;
  key.reserve(ChunkId::kSizeBytes);
  append_chunk_id(key, chunk);
  return key;
}
std::string chunk_key(InodeId inode, std::uint32_t chunk_index) {
  std::string key = be(inode.value());
  append_le(key, __builtin_bswap32(chunk_index));
  return key;
}
std::string patch_key(InodeId inode, LogIndex index, std::uint32_t number) {
  std::string key = be(inode.value(), index.value());
  append_le(key, __builtin_bswap32(number));
  return key;
}
std::string quota_prefix(QuotaKind kind) { return {kQuotaKey, static_cast<char>(kind)}; }
std::string quota_key(QuotaKind kind, std::uint64_t id) {
  std::string key = quota_prefix(kind);
  append_be64(key, id);
  return key;
}
std::string quota_walk_key(InodeId tree) { return kQuotaWalkKey + be(tree.value()); }
std::string quota_walk_key(InodeId tree, InodeId directory) {
  return kQuotaWalkKey + be(tree.value(), directory.value());
}
std::string history_key(Family family, std::string_view key, LogIndex index) {
  // Names vary in length and hold no NUL: it keeps one key's records together and in the keys'
  // order.
  std::string out;
  out.reserve(11 + key.size());
  append_le(out, static_cast<std::uint8_t>(family));
  out += key;
  append_le(out, std::uint8_t{0});
  append_be64(out, index.value());
  return out;
}
std::string history_index_key(LogIndex index, Family family, std::string_view key) {
  std::string out = be(index.value());
  append_le(out, static_cast<std::uint8_t>(family));
  out += key;
  return out;
}
std::uint64_t number_in(std::string_view key, std::size_t offset) {
  return key.size() < offset + 8 ? 0 : load_be64(key.data() + offset);
}
std::uint32_t chunk_index_in(std::string_view key) {
  return key.size() < 12 ? 0 : __builtin_bswap32(load_le<std::uint32_t>(key.data() + 8));
}
std::uint32_t patch_number_in(std::string_view key) {
  return key.size() < 20 ? 0 : __builtin_bswap32(load_le<std::uint32_t>(key.data() + 16));
}
Result<HistoryIndexKey> parse_history_index_key(std::string_view key) {
  if (key.size() < 9) return Errc::kCorruptStore;
  return HistoryIndexKey{LogIndex(load_be64(key.data())), static_cast<Family>(key[8]),
                         key.substr(9)};
}

Result<LogIndex> since_of(std::string_view value) {
  if (value.size() < 9) return Errc::kCorruptStore;
  return LogIndex(load_le<std::uint64_t>(value.data() + 1));
}

std::string encode_state(const StateRecord& record) {
  DiskState disk{};
  disk.format = kFormat;
  disk.applied = record.applied.value();
  std::memcpy(disk.cluster, record.cluster.bytes.data(), sizeof disk.cluster);
  disk.next_inode = record.next_inode;
  disk.inodes = record.inodes;
  disk.chunks = record.chunks;
  disk.garbage = record.garbage;
  disk.conflicts = record.conflicts;
  disk.history_start = record.history_start.value();
  std::string out;
  append_le(out, disk);
  if (record.quotas != 0) append_le(out, record.quotas);
  return out;
}
Result<StateRecord> decode_state(std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  const bool quotas = value.size() == sizeof(DiskState) + sizeof(std::uint64_t);
  if (value.size() != sizeof(DiskState) && !quotas) return Errc::kCorruptStore;
  const auto disk = load_le<DiskState>(value.data());
  StateRecord record;
  if (quotas) record.quotas = load_le<std::uint64_t>(value.data() + sizeof(DiskState));
  record.applied = LogIndex(disk.applied);
  std::memcpy(record.cluster.bytes.data(), disk.cluster, sizeof disk.cluster);
  record.next_inode = disk.next_inode;
  record.inodes = disk.inodes;
  record.chunks = disk.chunks;
  record.garbage = disk.garbage;
  record.conflicts = disk.conflicts;
  record.history_start = LogIndex(disk.history_start);
  return record;
}

std::string encode_inode(const InodeRecord& record) {
  DiskInode disk{};
  disk.format = kFormat;
  disk.since = record.change.value();
  disk.type = static_cast<std::uint8_t>(record.type);
  disk.content = static_cast<std::uint8_t>(record.content);
  disk.flags =
      static_cast<std::uint8_t>((record.linkable ? kLinkable : 0) | (record.quota ? kHasQuota : 0));
  disk.mode = record.mode;
  disk.nlink = record.nlink;
  disk.uid = record.uid;
  disk.gid = record.gid;
  disk.rdev = record.rdev;
  disk.size_bytes = record.size_bytes;
  disk.allocated_bytes = record.allocated_bytes;
  disk.atime = to_disk(record.atime);
  disk.mtime = to_disk(record.mtime);
  disk.ctime = to_disk(record.ctime);
  disk.btime = to_disk(record.btime);
  disk.version = record.version.value();
  disk.parent = record.parent.value();
  disk.entries = record.entries;
  disk.next_cookie = record.next_cookie.value();
  disk.writer = record.writer.value();
  disk.chunks = record.chunks;
  disk.patches = record.patches;
  disk.patch_bytes = record.patch_bytes;
  disk.xattr_name_bytes = record.xattr_name_bytes;
  disk.xattr_bytes = record.xattr_bytes;
  std::string out;
  out.reserve(sizeof disk + sizeof(std::uint64_t) + record.symlink_target.size());
  append_le(out, disk);
  if (record.quota) append_le(out, record.quota.value());
  out += record.symlink_target;
  return out;
}
Result<InodeRecord> decode_inode(std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  if (value.size() < sizeof(DiskInode)) return Errc::kCorruptStore;
  const auto disk = load_le<DiskInode>(value.data());
  if (!valid_type(disk.type) || disk.content > 2) return Errc::kCorruptStore;
  InodeRecord record;
  record.type = static_cast<FileType>(disk.type);
  record.content = static_cast<ContentKind>(disk.content);
  record.linkable = (disk.flags & kLinkable) != 0;
  record.mode = disk.mode;
  record.nlink = disk.nlink;
  record.uid = disk.uid;
  record.gid = disk.gid;
  record.rdev = disk.rdev;
  record.size_bytes = disk.size_bytes;
  record.allocated_bytes = disk.allocated_bytes;
  record.atime = from_disk(disk.atime);
  record.mtime = from_disk(disk.mtime);
  record.ctime = from_disk(disk.ctime);
  record.btime = from_disk(disk.btime);
  record.version = Version(disk.version);
  record.change = LogIndex(disk.since);
  record.parent = InodeId(disk.parent);
  record.entries = disk.entries;
  record.next_cookie = Cookie(disk.next_cookie);
  record.writer = SessionId(disk.writer);
  record.chunks = disk.chunks;
  record.patches = disk.patches;
  record.patch_bytes = disk.patch_bytes;
  record.xattr_name_bytes = disk.xattr_name_bytes;
  record.xattr_bytes = disk.xattr_bytes;
  std::string_view rest = value.substr(sizeof(DiskInode));
  if ((disk.flags & kHasQuota) != 0) {
    if (rest.size() < sizeof(std::uint64_t)) return Errc::kCorruptStore;
    record.quota = InodeId(load_le<std::uint64_t>(rest.data()));
    rest.remove_prefix(sizeof(std::uint64_t));
  }
  record.symlink_target = rest;
  return record;
}

std::string encode_quota(const QuotaRecord& quota) {
  std::string out = begin_value(66);
  append_le(out, static_cast<std::uint8_t>(quota.phase));
  append_le(out, quota.parent.value());
  append_le(out, quota.bytes_max);
  append_le(out, quota.inodes_max);
  append_le(out, quota.bytes);
  append_le(out, quota.inodes);
  append_le(out, quota.next.value());
  append_le(out, quota.end.value());
  return out;
}
Result<QuotaRecord> decode_quota(std::string_view key, std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  QuotaRecord quota;
  if (key.size() != 10) return Errc::kCorruptStore;
  quota.kind = static_cast<QuotaKind>(key[1]);
  quota.id = number_in(key, 2);
  const auto phase = reader.take<std::uint8_t>();
  quota.parent = InodeId(reader.take<std::uint64_t>());
  quota.bytes_max = reader.take<std::uint64_t>();
  quota.inodes_max = reader.take<std::uint64_t>();
  quota.bytes = reader.take<std::uint64_t>();
  quota.inodes = reader.take<std::uint64_t>();
  quota.next = InodeId(reader.take<std::uint64_t>());
  quota.end = InodeId(reader.take<std::uint64_t>());
  if (!reader.done() || phase > 2) return Errc::kCorruptStore;
  quota.phase = static_cast<QuotaPhase>(phase);
  return quota;
}

std::string encode_dentry(const Dirent& entry) {
  std::string out = begin_value(entry.since, 26);
  append_le(out, static_cast<std::uint8_t>(entry.type));
  append_le(out, entry.inode.value());
  append_le(out, entry.cookie.value());
  return out;
}
Result<Dirent> decode_dentry(std::string_view name, std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  Dirent entry;
  entry.name = name;
  entry.since = LogIndex(reader.take<std::uint64_t>());
  const auto type = reader.take<std::uint8_t>();
  entry.inode = InodeId(reader.take<std::uint64_t>());
  entry.cookie = Cookie(reader.take<std::uint64_t>());
  if (!reader.done() || !valid_type(type)) return Errc::kCorruptStore;
  entry.type = static_cast<FileType>(type);
  return entry;
}

std::string encode_cookie(const Dirent& entry) {
  std::string out = begin_value(10 + entry.name.size());
  append_le(out, static_cast<std::uint8_t>(entry.type));
  append_le(out, entry.inode.value());
  out += entry.name;
  return out;
}
Result<Dirent> decode_cookie(Cookie cookie, std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  Dirent entry;
  entry.cookie = cookie;
  const auto type = reader.take<std::uint8_t>();
  entry.inode = InodeId(reader.take<std::uint64_t>());
  entry.name = reader.take_rest();
  if (!reader.done() || !valid_type(type)) return Errc::kCorruptStore;
  entry.type = static_cast<FileType>(type);
  return entry;
}

std::string encode_bytes(LogIndex since, std::string_view bytes) {
  std::string out = begin_value(since, 9 + bytes.size());
  out += bytes;
  return out;
}
Result<std::string> decode_bytes(std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  reader.take<std::uint64_t>();
  std::string bytes(reader.take_rest());
  if (!reader.done()) return Errc::kCorruptStore;
  return bytes;
}

std::string encode_chunk(LogIndex since, const ChunkId& id) {
  std::string out = begin_value(since, 9 + ChunkId::kSizeBytes);
  append_chunk_id(out, id);
  return out;
}
Result<ChunkId> decode_chunk(std::string_view value) {
  FM_TRY(const std::string bytes, decode_bytes(value));
  return parse_chunk_id(bytes);
}

std::string encode_patch(LogIndex since, std::uint64_t offset_bytes, std::string_view bytes) {
  std::string out = begin_value(since, 17 + bytes.size());
  append_le(out, offset_bytes);
  out += bytes;
  return out;
}
Result<PatchRecord> decode_patch(std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  reader.take<std::uint64_t>();
  PatchRecord patch;
  patch.offset_bytes = reader.take<std::uint64_t>();
  patch.bytes = reader.take_rest();
  if (!reader.done() || patch.bytes.empty()) return Errc::kCorruptStore;
  return patch;
}

std::string encode_session(const Session& session) {
  std::string out = begin_value(64);
  append_le(out, session.epoch.value());
  append_le(out, to_disk(session.opened));
  append_string(out, session.client_id);
  append_string(out, session.host);
  append_string(out, session.mount_point);
  if (session.lease_ms != 0 || !session.reserved.empty()) append_le(out, session.lease_ms);
  for (const Session::Reserve& range : session.reserved) {
    append_le(out, range.first);
    append_le(out, range.end);
  }
  return out;
}
Result<Session> decode_session(SessionId id, std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  Session session;
  session.id = id;
  session.epoch = Epoch(reader.take<std::uint64_t>());
  session.opened = from_disk(reader.take<DiskTime>());
  session.client_id = reader.take_string();
  session.host = reader.take_string();
  session.mount_point = reader.take_string();
  if (!reader.done()) session.lease_ms = reader.take<std::uint32_t>();
  while (reader.good() && !reader.done()) {
    Session::Reserve range;
    range.first = reader.take<std::uint64_t>();
    range.end = reader.take<std::uint64_t>();
    session.reserved.push_back(range);
  }
  if (!reader.done()) return Errc::kCorruptStore;
  return session;
}

std::string encode_result(const CommandResult& result) {
  std::string out = begin_value(53);
  append_le(out, result.error);
  append_le(out, result.inode.value());
  append_le(out, result.removed.value());
  append_le(out, result.session.value());
  append_le(out, result.epoch.value());
  append_le(out, result.version.value());
  append_le(out, result.count);
  return out;
}
Result<CommandResult> decode_result(std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  CommandResult result;
  result.error = reader.take<std::uint32_t>();
  result.inode = InodeId(reader.take<std::uint64_t>());
  result.removed = InodeId(reader.take<std::uint64_t>());
  result.session = SessionId(reader.take<std::uint64_t>());
  result.epoch = Epoch(reader.take<std::uint64_t>());
  result.version = Version(reader.take<std::uint64_t>());
  result.count = reader.take<std::uint64_t>();
  if (!reader.done()) return Errc::kCorruptStore;
  return result;
}

std::string encode_number(std::uint64_t number) {
  std::string out = begin_value(9);
  append_le(out, number);
  return out;
}
Result<std::uint64_t> decode_number(std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  const auto number = reader.take<std::uint64_t>();
  if (!reader.done()) return Errc::kCorruptStore;
  return number;
}
std::string encode_text(std::string_view text) {
  std::string out = begin_value(1 + text.size());
  out += text;
  return out;
}
Result<std::string> decode_text(std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  return std::string(reader.take_rest());
}

std::string encode_conflict(const Conflict& conflict) {
  std::string out = begin_value(64);
  append_le(out, conflict.base.value());
  append_le(out, conflict.replaced.value());
  append_le(out, conflict.writer.value());
  append_le(out, conflict.replaced_writer.value());
  append_le(out, to_disk(conflict.time));
  append_string(out, conflict.writer_host);
  append_string(out, conflict.replaced_host);
  append_string(out, conflict.path_hint);
  return out;
}
Result<Conflict> decode_conflict(std::string_view key, std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  Conflict conflict;
  conflict.inode = InodeId(number_in(key, 0));
  conflict.index = LogIndex(number_in(key, 8));
  conflict.base = Version(reader.take<std::uint64_t>());
  conflict.replaced = Version(reader.take<std::uint64_t>());
  conflict.writer = SessionId(reader.take<std::uint64_t>());
  conflict.replaced_writer = SessionId(reader.take<std::uint64_t>());
  conflict.time = from_disk(reader.take<DiskTime>());
  conflict.writer_host = reader.take_string();
  conflict.replaced_host = reader.take_string();
  conflict.path_hint = reader.take_string();
  if (!reader.done()) return Errc::kCorruptStore;
  return conflict;
}
Result<ChunkId> decode_chunk_key(std::string_view key) { return parse_chunk_id(key); }

std::string encode_locks(const LockList& locks) {
  std::string out = begin_value(1 + locks.size() * 37);
  for (const HeldLock& lock : locks) {
    append_le(out, lock.owner.session.value());
    append_le(out, lock.owner.number);
    append_le(out, lock.range.first);
    append_le(out, lock.range.last);
    append_le(out, static_cast<std::uint8_t>(lock.type));
    append_le(out, lock.pid);
  }
  return out;
}
Result<LockList> decode_locks(std::string_view value) {
  Reader reader(value);
  FM_CHECK(reader.begin());
  LockList locks;
  while (!reader.done()) {
    HeldLock lock;
    lock.owner.session = SessionId(reader.take<std::uint64_t>());
    lock.owner.number = reader.take<std::uint64_t>();
    lock.range.first = reader.take<std::uint64_t>();
    lock.range.last = reader.take<std::uint64_t>();
    const auto type = reader.take<std::uint8_t>();
    lock.pid = reader.take<std::uint32_t>();
    if (!reader.good() || type < 1 || type > 2) return Errc::kCorruptStore;
    lock.type = static_cast<LockType>(type);
    locks.push_back(lock);
  }
  return locks;
}

Attr to_attr(InodeId inode, const InodeRecord& record) {
  Attr attr;
  attr.inode = inode;
  attr.type = record.type;
  attr.mode = record.mode;
  attr.nlink = record.nlink;
  attr.uid = record.uid;
  attr.gid = record.gid;
  attr.rdev = record.rdev;
  attr.size_bytes = record.is_directory() ? record.entries * 32 : record.size_bytes;
  attr.allocated_bytes = record.allocated_bytes;
  attr.atime = record.atime;
  attr.mtime = record.mtime;
  attr.ctime = record.ctime;
  attr.btime = record.btime;
  attr.version = record.version;
  attr.change = record.change;
  attr.parent = record.parent;
  attr.symlink_target = record.symlink_target;
  attr.no_xattrs = record.xattr_name_bytes == 0;
  return attr;
}

}  // namespace fermata::serverd
