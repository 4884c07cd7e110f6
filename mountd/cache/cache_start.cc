// CacheStore's start and stop: whose the directory is, what is in it, what of it can be trusted.
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <map>

#include "common/base/assert.h"
#include "common/base/checksum.h"
#include "common/base/file_lock.h"
#include "mountd/cache/cache_store.h"

namespace fermata::mountd {
namespace {

constexpr std::uint64_t kFormatMagic = 0x31454843414d46ULL;  // "FMACHE1"
constexpr std::uint32_t kFormatVersion = 1;
constexpr std::uint32_t kUsesMagic = 0x55434d46;  // "FMCU"
constexpr std::uint32_t kBootMagic = 0x42434d46;  // "FMCB"
constexpr std::uint64_t kMetaSizeMax = 4ULL << 30;

struct FormatFile {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t checksum;  // of the file with this field as zero
  std::array<std::uint8_t, 16> cluster;
};
static_assert(sizeof(FormatFile) == 32);

struct UsesHeader {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint32_t checksum;  // of the entries
  std::uint32_t count;
};
static_assert(sizeof(UsesHeader) == 16);
struct UseEntry {
  std::uint64_t serial;
  std::int64_t last_use_ns;
};
static_assert(sizeof(UseEntry) == 16);

template <class T>
ByteView object_bytes(const T& object) {
  return {reinterpret_cast<const std::byte*>(&object), sizeof object};
}

struct BootFile {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint64_t suspect_below;  // serials below it are suspects
  std::array<char, 40> id;      // the kernel's text
  std::uint32_t checksum;       // of the file with this field as zero
  std::uint32_t reserved;
};
static_assert(sizeof(BootFile) == 64);

template <class T>
std::uint32_t checksum_of(T file) {
  file.checksum = 0;
  return crc32c(object_bytes(file));
}

std::string shard_name(unsigned shard) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  return {kDigits[shard >> 4], kDigits[shard & 15]};
}

// "INODEHEX-SERIAL" -> SERIAL; 0 if it is no such name.
std::uint64_t serial_of(std::string_view stem) {
  if (stem.size() < 18 || stem[16] != '-') return 0;
  std::uint64_t serial = 0;
  const auto [end, error] = std::from_chars(stem.data() + 17, stem.data() + stem.size(), serial);
  return error == std::errc() && end == stem.data() + stem.size() ? serial : 0;
}

}  // namespace

Result<std::unique_ptr<CacheStore>> CacheStore::open(CacheOptions options) {
  std::unique_ptr<CacheStore> store(new CacheStore(std::move(options)));
  const Status status = store->start();
  if (!status) {
    store->lock_fd_ = nullptr;  // the destructor then writes nothing
    return status.error();
  }
  return store;
}

Status CacheStore::start() {
  FM_CHECK(lock_dir());
  FM_CHECK(check_format());
  FM_CHECK(disk_reserve_.open(options_.dir + "/reserve"));  // a full disk has room to start, then
  FM_CHECK(posix::make_dir(options_.dir + "/files"));
  FM_CHECK(posix::make_dir(options_.dir + "/lost+found"));
  for (unsigned shard = 0; shard < 256; ++shard) {
    FM_CHECK(posix::make_dir(options_.dir + "/files/" + shard_name(shard)));
  }
  FM_CHECK(test_ctime());
  auto found = scan();
  FM_CHECK(note_boot());
  load(std::move(found));
  size_reserve();
  return {};
}

void CacheStore::size_reserve() {
  constexpr std::uint64_t kReserveMax = 32ULL << 20;
  struct statvfs st {};
  if (::statvfs(options_.dir.c_str(), &st) != 0) return;
  const std::uint64_t disk_bytes = std::uint64_t{st.f_blocks} * st.f_frsize;
  disk_reserve_.set_size(std::min({kReserveMax, disk_bytes / 20, options_.limit_bytes / 64}));
}

Status CacheStore::lock_dir() {
  // A directory of something else stays as it is: without a FORMAT only an empty one is taken.
  const auto names = posix::list_dir(options_.dir);
  if (!names && names.error() != std::errc::no_such_file_or_directory) {
    spdlog::error("cache {}: {}", options_.dir, names.error().message());
    return names.error();
  }
  if (names) {
    const bool ours = std::ranges::find(*names, "FORMAT") != names->end();
    const bool unused = std::ranges::all_of(*names, [](const std::string& name) {
      return name == "lock" || name == "lost+found" || name == "FORMAT.tmp";
    });
    if (!ours && !unused) {
      spdlog::error("{} is neither empty nor a Fermata cache: choose another cache directory",
                    options_.dir);
      return std::errc::directory_not_empty;
    }
  } else if (const Status made = posix::make_dir(options_.dir); !made) {
    spdlog::error("cache {}: {}", options_.dir, made.error().message());
    return made;
  }
  FM_TRY(const auto fd, posix::open_file(options_.dir + "/lock", O_RDWR | O_CREAT));
  if (const Status locked = lock_exclusively(fd->get(), kLockPatience); !locked) {
    if (locked.error() != std::errc::operation_would_block) return locked;
    std::array<std::byte, 32> pid{};
    const auto size = posix::read_at(*fd, 0, pid);
    spdlog::error("cache {} is in use by another mountd (pid {}): give each mount its own cache",
                  options_.dir, size ? as_text({pid.data(), *size}) : "unknown");
    return std::errc::device_or_resource_busy;
  }
  lock_fd_ = fd;
  return {};
}

Status CacheStore::check_format() {
  const std::string path = options_.dir + "/FORMAT";
  const auto bytes = posix::read_whole(path, 4096);
  if (!bytes) {
    if (bytes.error() != std::errc::no_such_file_or_directory) return bytes.error();
    FormatFile format{kFormatMagic, kFormatVersion, 0, options_.cluster.bytes};
    format.checksum = checksum_of(format);
    FM_CHECK(posix::replace_file(path, object_bytes(format), posix::Durability::kSynced));
  } else {
    const auto format =
        bytes->size() >= sizeof(FormatFile) ? load_le<FormatFile>(bytes->data()) : FormatFile{};
    if (format.magic != kFormatMagic) {
      spdlog::error("{} is not a Fermata cache's: choose another cache directory", path);
      return Errc::kBadMessage;
    }
    if (format.version > kFormatVersion) {
      spdlog::error("cache {} has format {}, this mountd knows {}: use a newer mountd",
                    options_.dir, format.version, kFormatVersion);
      return Errc::kVersionMismatch;
    }
    if (format.checksum != checksum_of(format)) {
      spdlog::error("{} is damaged: move the cache directory away after saving files/", path);
      return Errc::kBadMessage;
    }
    if (format.cluster != options_.cluster.bytes) {
      spdlog::error("cache {} belongs to cluster {}, not to {}: choose another cache directory",
                    options_.dir, ClusterId{format.cluster}.hex(), options_.cluster.hex());
      return Errc::kWrongCluster;
    }
  }
  // Ours for good: say who holds it.
  const std::string pid = std::to_string(::getpid());
  if (::ftruncate(lock_fd_->get(), 0) != 0) return last_errno();
  return posix::write_at(*lock_fd_, 0, as_bytes(pid));
}

// Whether the machine, and not only mountd, went down since the last start: then what was written
// without fsync may be lost, and every clean copy of before is a suspect, also for later starts of
// this boot (one that was verified meanwhile is verified again). An orderly shutdown of the machine
// looks the same from here; it costs one read of each copy that is used again.
Status CacheStore::note_boot() {
  const std::string path = options_.dir + "/boot";
  BootFile boot{kBootMagic, 1, 0, {}, 0, 0};
  FM_TRY(boot.id, posix::boot_id());
  const MutexLock lock(mutex_);
  if (const auto bytes = posix::read_whole(path, 4096)) {
    const auto before =
        bytes->size() == sizeof boot ? load_le<BootFile>(bytes->data()) : BootFile{};
    const bool intact = before.magic == kBootMagic && before.checksum == checksum_of(before);
    suspect_below_ = intact && before.id == boot.id ? before.suspect_below : next_serial_;
    if (intact && before.id == boot.id) return {};
  } else {
    suspect_below_ = bytes.error() == std::errc::no_such_file_or_directory ? 0 : next_serial_;
  }
  boot.suspect_below = suspect_below_;
  boot.checksum = checksum_of(boot);
  return posix::replace_file(path, object_bytes(boot), posix::Durability::kSynced);
}

Status CacheStore::test_ctime() {
  constexpr int kRounds = 16;  // far faster than a tick of coarse timestamps
  const std::string path = options_.dir + "/ctime.tmp";
  FM_TRY(const auto fd, posix::open_file(path, O_RDWR | O_CREAT | O_TRUNC));
  posix::remove_file(path).has_value();
  ctime_reliable_ = true;
  std::int64_t last = 0;
  const std::byte byte{1};
  for (int round = 0; round < kRounds; ++round) {
    FM_CHECK(posix::write_at(*fd, 0, {&byte, 1}));
    FM_TRY(const auto st, posix::stat_file(*fd));
    ctime_reliable_ = ctime_reliable_ && st.ctime_ns != last;
    last = st.ctime_ns;
  }
  void* const map = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd->get(), 0);
  if (map == MAP_FAILED) return last_errno();
  Status status;
  for (int round = 0; status && round < 4; ++round) {
    *static_cast<volatile char*>(map) = static_cast<char>(round);
    const auto st = posix::stat_file(*fd);
    ctime_reliable_ = ctime_reliable_ && st && st->ctime_ns != last;
    if (st) last = st->ctime_ns;
    status = posix::write_pages_out(*fd);
  }
  ::munmap(map, 4096);
  if (!ctime_reliable_) {
    spdlog::info("cache {}: ctime does not tell each change; digests decide what was modified",
                 options_.dir);
  }
  return status;
}

// --- the scan ------------------------------------------------------------------------------------

std::vector<CopyMeta> CacheStore::scan() {
  std::vector<CopyMeta> found;
  for (unsigned shard = 0; shard < 256; ++shard) {
    scan_shard(options_.dir + "/files/" + shard_name(shard), found);
  }
  if (const auto names = posix::list_dir(options_.dir + "/lost+found")) {
    for (const std::string& name : *names) {  // so that no name there is ever made again
      const std::uint64_t serial = serial_of(std::string_view(name).substr(0, name.find('.')));
      const MutexLock lock(mutex_);
      next_serial_ = std::max(next_serial_, serial + 1);
    }
  }
  load_last_uses(found);
  return found;
}

void CacheStore::scan_shard(const std::string& dir, std::vector<CopyMeta>& found) {
  const auto names = posix::list_dir(dir);
  if (!names) {
    spdlog::error("cache: cannot list {}: {}", dir, names.error().message());
    return;
  }
  struct Parts {
    bool data = false;
    bool meta = false;
  };
  std::map<std::string, Parts> stems;
  for (const std::string& name : *names) {
    const std::size_t dot = name.find('.');
    const std::string stem = name.substr(0, dot);
    const std::string_view kind =
        dot == std::string::npos ? "" : std::string_view(name).substr(dot);
    const std::uint64_t serial = serial_of(stem);
    if (serial == 0) continue;  // not ours: leave it
    const MutexLock lock(mutex_);
    next_serial_ = std::max(next_serial_, serial + 1);
    if (kind == ".data") stems[stem].data = true;
    if (kind == ".meta") stems[stem].meta = true;
    if (kind == ".meta.tmp") posix::remove_file(dir + "/" + name).has_value();
  }
  for (const auto& [stem, parts] : stems) {
    const std::string path = dir + "/" + stem;
    if (parts.data && parts.meta && admit(dir, stem, found)) continue;
    // Data without a sidecar was still being filled: a writer's sidecar comes before the writer.
    if (parts.data && !parts.meta) posix::remove_file(path + ".data").has_value();
    if (parts.meta && !parts.data) posix::remove_file(path + ".meta").has_value();
  }
}

// False: nothing to load. A damaged pair has been set aside then, never removed.
bool CacheStore::admit(const std::string& dir, const std::string& stem,
                       std::vector<CopyMeta>& found) {
  const std::string path = dir + "/" + stem;
  const auto bytes = posix::read_whole(path + ".meta", kMetaSizeMax);
  auto meta = bytes ? decode_copy_meta(*bytes) : Result<CopyMeta>(bytes.error());
  if (meta && data_path(meta->inode, meta->serial) != path + ".data") meta = Errc::kBadMessage;
  if (!meta) {
    set_aside(dir, stem, "its sidecar cannot be used: " + meta.error().message());
    return false;
  }
  if (meta->conflict || (meta->complete && !meta->updating)) {
    found.push_back(std::move(*meta));
    return true;
  }
  posix::remove_file(path + ".meta").has_value();
  posix::remove_file(path + ".data").has_value();
  return false;
}

void CacheStore::set_aside(const std::string& dir, const std::string& stem,
                           const std::string& reason) {
  const std::string to = options_.dir + "/lost+found/" + stem;
  bool moved = true;
  for (const char* kind : {".data", ".meta"}) {
    const std::string from = dir + "/" + stem + kind;
    moved = ::rename(from.c_str(), (to + kind).c_str()) == 0 && moved;
  }
  spdlog::error("cache: {} {} {}.data: {}; it may hold work that was not committed: look at it",
                stem, moved ? "was moved to" : "could not be moved to", to, reason);
  const MutexLock lock(mutex_);
  ++counters_.lost_found;
}

void CacheStore::load(std::vector<CopyMeta> found) {
  std::ranges::sort(found, {},
                    [](const CopyMeta& meta) { return std::pair(meta.last_use_ns, meta.serial); });
  // Dirty ones take their key first: no clean copy of the same version may hide one.
  std::ranges::stable_partition(found, [](const CopyMeta& meta) { return meta.maybe_dirty; });
  std::vector<std::shared_ptr<CachedCopy>> unwanted, set_aside;
  for (CopyMeta& meta : found) {
    const auto copy = make_object(meta);
    const auto st = copy->stat();
    bool wanted = st.has_value();
    bool modified = false;
    if (wanted && meta.maybe_dirty && !meta.conflict) {
      const auto fd = copy->reader();
      const auto scan =
          fd ? copy->scan_blocks(**fd, nullptr, meta.clean) : Result<ChangeScan>(fd.error());
      modified = !scan || scan->modified() || !meta.clean_known;
    } else if (wanted && !meta.conflict) {
      wanted = st->size_bytes == meta.clean.size_bytes;  // else a power cut took a part
    }
    const char* why_aside = nullptr;
    if (wanted && meta.maybe_dirty && !meta.conflict) {
      const auto users = copy->has_writable_users();
      if (users && *users) {
        why_aside = "a program of an earlier mount still writes to it";  // past us: passthrough
      } else if (modified && meta.serial < suspect_below_) {
        // Its bytes may be older than its sidecar: no such guess replaces a good version.
        why_aside = "the machine went down before it was committed";
      }
    }
    if (why_aside != nullptr) {
      spdlog::warn("cache: local changes of inode {} are kept as a conflict in {} ({})",
                   meta.inode.value(), copy->data_path_, why_aside);
    }
    std::vector<std::shared_ptr<Fd>> closing;
    copy->take_descriptors(closing);
    closed_descriptors(closing.size());
    if (!wanted && (meta.maybe_dirty || meta.conflict)) {
      spdlog::error("cache: cannot read {}: {}", copy->data_path_, st.error().message());
      continue;  // left on disk as it is
    }
    const MutexLock lock(mutex_);
    if (!wanted ||
        (!meta.maybe_dirty && !meta.conflict && index_.contains(Key{meta.inode, meta.base}))) {
      copy->dropped_ = true;
      unwanted.push_back(copy);
      continue;
    }
    copy->suspect_ = meta.serial < suspect_below_ && !meta.maybe_dirty && !meta.conflict;
    copy->untracked_ = meta.maybe_dirty;  // who wrote what is forgotten: the digests decide
    {
      const MutexLock copy_lock(copy->mutex_);
      copy->marked_on_disk_ = meta.maybe_dirty;
      if (meta.maybe_dirty) copy->size_bytes_ = st->size_bytes;
      if (why_aside != nullptr) {
        copy->conflict_ = true;
        set_aside.push_back(copy);
      } else if (meta.maybe_dirty && !meta.conflict && !modified) {
        copy->maybe_dirty_ = false;
        copy->untracked_ = false;
        copy->save_stale_ = true;
      }
    }
    copy->charged_bytes_ = st->allocated_bytes;
    insert_locked(copy);
    if (modified && why_aside == nullptr) recovered_.push_back(copy);
  }
  for (const auto& copy : set_aside) {
    if (const Status kept = copy->mark_conflict(); !kept) {
      spdlog::error("cache: cannot write {}: {}", copy->meta_path_, kept.error().message());
    }
  }
  const MutexLock lock(mutex_);
  copies_.sort([](const auto& a, const auto& b) { return a->last_use_ns_ < b->last_use_ns_; });
}

// --- times of use, and the end -------------------------------------------------------------------

void CacheStore::load_last_uses(std::vector<CopyMeta>& found) {
  const auto bytes = posix::read_whole(options_.dir + "/uses", kMetaSizeMax);
  if (!bytes || bytes->size() < sizeof(UsesHeader)) return;
  const auto header = load_le<UsesHeader>(bytes->data());
  const ByteView entries = ByteView(*bytes).subspan(sizeof header);
  if (header.magic != kUsesMagic || header.version != 1 ||
      entries.size() != std::uint64_t{header.count} * sizeof(UseEntry) ||
      header.checksum != crc32c(entries)) {
    return;  // only an order of eviction is lost
  }
  std::unordered_map<std::uint64_t, std::int64_t> uses;
  for (std::size_t at = 0; at < entries.size(); at += sizeof(UseEntry)) {
    const auto entry = load_le<UseEntry>(entries.data() + at);
    uses[entry.serial] = entry.last_use_ns;
  }
  for (CopyMeta& meta : found) {
    if (const auto use = uses.find(meta.serial); use != uses.end()) {
      meta.last_use_ns = std::max(meta.last_use_ns, use->second);
    }
  }
}

void CacheStore::save_last_uses() {
  std::string entries;
  UsesHeader header{kUsesMagic, 1, 0, 0};
  {
    const MutexLock lock(mutex_);
    for (const auto& copy : copies_) {
      append_le(entries, UseEntry{copy->serial_, copy->last_use_ns_});
      ++header.count;
    }
  }
  header.checksum = crc32c(as_bytes(entries));
  std::string file;
  append_le(file, header);
  const Status saved = posix::replace_file(options_.dir + "/uses", as_bytes(file + entries),
                                           posix::Durability::kNone);
  if (!saved) spdlog::warn("cache: times of use are not kept: {}", saved.error().message());
}

CacheStore::~CacheStore() {
  if (lock_fd_) {
    save_last_uses();
    for (const auto& copy : copies_) {
      bool stale = false;
      {
        const MutexLock lock(copy->mutex_);
        stale = copy->save_stale_ && copy->complete();
      }
      if (stale && !copy->save_meta(posix::Durability::kNone)) {
        spdlog::warn("cache: {} is not up to date", copy->meta_path_);
      }
    }
  }
  recovered_.clear();
  for (const auto& copy : copies_) FM_ASSERT(copy->pins_ == 0);
  copies_.clear();
}

}  // namespace fermata::mountd
