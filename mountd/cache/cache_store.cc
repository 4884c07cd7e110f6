#include "mountd/cache/cache_store.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>

#include "common/base/assert.h"

namespace fermata::mountd {
namespace {

// What one eviction frees at least, so that a filling cache does not evict for each file anew.
constexpr std::uint64_t kEvictBytesMin = 16ULL << 20;

struct Space {
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;
};

Result<Space> disk_space(const std::string& dir) {
  struct statvfs st {};
  if (::statvfs(dir.c_str(), &st) != 0) return last_errno();
  return Space{std::uint64_t{st.f_blocks} * st.f_frsize, std::uint64_t{st.f_bavail} * st.f_frsize};
}

}  // namespace

std::string CacheStore::data_path(InodeId inode, std::uint64_t serial) const {
  const auto hex = [](std::uint64_t value) {
    std::string text(16, '0');
    for (int digit = 15; digit >= 0; --digit, value >>= 4) {
      text[static_cast<std::size_t>(digit)] = "0123456789abcdef"[value & 15];
    }
    return text;
  };
  const std::string name = hex(inode.value());
  return options_.dir + "/files/" + name.substr(14) + "/" + name + "-" + std::to_string(serial) +
         ".data";
}

std::shared_ptr<CachedCopy> CacheStore::make_object(CopyMeta meta) {
  std::string path = data_path(meta.inode, meta.serial);
  return std::shared_ptr<CachedCopy>(new CachedCopy(*this, std::move(meta), std::move(path)));
}

// --- the index -----------------------------------------------------------------------------------

void CacheStore::insert_locked(std::shared_ptr<CachedCopy> copy) {
  CachedCopy& added = *copy;
  added.place_ = copies_.insert(copies_.end(), std::move(copy));
  by_inode_.emplace(added.inode_, &added);
  if (!added.conflict()) {
    added.indexed_ = index_.emplace(Key{added.inode_, added.base()}, &added).second;
  }
  bytes_ += added.charged_bytes_;
}

void CacheStore::unindex_locked(CachedCopy& copy) {
  if (!copy.indexed_) return;
  index_.erase(Key{copy.inode_, copy.base()});
  copy.indexed_ = false;
}

std::shared_ptr<CachedCopy> CacheStore::detach_locked(CachedCopy& copy) {
  if (copy.dropped_.exchange(true)) return nullptr;
  unindex_locked(copy);
  const auto [first, last] = by_inode_.equal_range(copy.inode_);
  for (auto it = first; it != last; ++it) {
    if (it->second != &copy) continue;
    by_inode_.erase(it);
    break;
  }
  bytes_ -= copy.charged_bytes_;
  copy.charged_bytes_ = 0;
  auto owned = std::move(*copy.place_);
  copies_.erase(copy.place_);
  return owned;
}

void CacheStore::unindex(CachedCopy& copy) {
  const MutexLock lock(mutex_);
  unindex_locked(copy);
}

void CacheStore::forget(CachedCopy& copy) {
  std::shared_ptr<CachedCopy> last;  // its files are removed without the lock
  const MutexLock lock(mutex_);
  last = detach_locked(copy);
}

CachePin CacheStore::touch_locked(InodeId inode, Version version) {
  const auto found = index_.find(Key{inode, version});
  if (found == index_.end()) return {};
  CachedCopy& copy = *found->second;
  copies_.splice(copies_.end(), copies_, copy.place_);
  copy.last_use_ns_.store(posix::wall_ns(), std::memory_order_relaxed);
  return CachePin(*copy.place_);
}

CachePin CacheStore::find(InodeId inode, Version version) {
  const MutexLock lock(mutex_);
  CachePin pin = touch_locked(inode, version);
  if (pin && pin->suspect_) pin = {};
  ++(pin ? counters_.hits : counters_.misses);
  return pin;
}

std::vector<CachePin> CacheStore::copies_of(InodeId inode) {
  const MutexLock lock(mutex_);
  std::vector<CachePin> out;
  const auto [first, last] = by_inode_.equal_range(inode);
  for (auto it = first; it != last; ++it) out.push_back(CachePin(*it->second->place_));
  return out;
}

void CacheStore::rename(InodeId inode, const std::string& path) {
  for (const CachePin& copy : copies_of(inode)) copy->set_path_hint(path);
}

void CacheStore::adopt(CachedCopy& copy, Version version) {
  std::shared_ptr<CachedCopy> replaced;
  const MutexLock lock(mutex_);
  if (copy.base() == version && copy.indexed_) return;
  unindex_locked(copy);
  copy.base_ = version.value();
  if (copy.dropped_ || copy.conflict()) return;
  if (const auto other = index_.find(Key{copy.inode_, version}); other != index_.end()) {
    CachedCopy& old = *other->second;
    unindex_locked(old);
    // Whoever has it open may write to it yet: it stays, found by nobody.
    const bool unused = old.pins_.load(std::memory_order_acquire) == 0;
    if (unused && !old.maybe_dirty() && !old.conflict()) replaced = detach_locked(old);
  }
  copy.indexed_ = index_.emplace(Key{copy.inode_, version}, &copy).second;
}

bool CacheStore::drop(InodeId inode, Version version) {
  std::shared_ptr<CachedCopy> last;
  const MutexLock lock(mutex_);
  const auto found = index_.find(Key{inode, version});
  if (found == index_.end() || found->second->maybe_dirty()) return false;
  last = detach_locked(*found->second);
  return true;
}

// --- room ----------------------------------------------------------------------------------------

bool CacheStore::evictable(const CachedCopy& copy) {
  return copy.pins_.load(std::memory_order_acquire) == 0 && copy.complete() &&
         !copy.maybe_dirty() && !copy.conflict();
}

std::uint64_t CacheStore::evict_unpinned(std::uint64_t bytes, const CachedCopy* keep) {
  std::vector<std::shared_ptr<CachedCopy>> victims;  // their files are removed without the lock
  std::uint64_t freed = 0;
  const MutexLock lock(mutex_);
  for (auto it = copies_.begin(); it != copies_.end() && freed < bytes;) {
    CachedCopy& copy = **it++;
    if (&copy == keep || !evictable(copy)) continue;
    freed += copy.charged_bytes_;
    victims.push_back(detach_locked(copy));
    ++counters_.evictions;
  }
  return freed;
}

std::uint64_t CacheStore::evict(std::uint64_t bytes, const CachedCopy* keep) {
  // What is let go need not be evictable, nor as large on the disk as it looks: again, while
  // anything is.
  for (std::uint64_t freed = 0;;) {
    freed += evict_unpinned(bytes - freed, keep);
    if (freed >= bytes) return freed;
    const MutexLock lock(pressure_mutex_);
    if (!let_go_ || !let_go_(bytes - freed)) return freed;
  }
}

void CacheStore::on_pressure(std::function<bool(std::uint64_t)> let_go) {
  const MutexLock lock(pressure_mutex_);
  let_go_ = std::move(let_go);
}

void CacheStore::touch(CachedCopy& copy) {
  const MutexLock lock(mutex_);
  if (!copy.dropped_) copies_.splice(copies_.end(), copies_, copy.place_);
}

bool CacheStore::make_room(std::uint64_t bytes, const CachedCopy* keep, For whom) {
  // A good piece at once, but on a small disk not all that is cached.
  const auto space = disk_space(options_.dir);
  const std::uint64_t piece = std::min(kEvictBytesMin, space ? space->total_bytes / 64 : 0);
  if (evict(std::max(bytes, piece), keep) > 0) return true;
  return whom == For::kReader && disk_reserve_.release(bytes) > 0;
}

std::size_t CacheStore::drop_clean() {
  std::vector<std::shared_ptr<CachedCopy>> victims;
  const MutexLock lock(mutex_);
  for (auto it = copies_.begin(); it != copies_.end();) {
    CachedCopy& copy = **it++;
    if (evictable(copy)) victims.push_back(detach_locked(copy));
  }
  return victims.size();
}

std::size_t CacheStore::drop_clean(InodeId inode) {
  std::vector<std::shared_ptr<CachedCopy>> victims;
  const MutexLock lock(mutex_);
  const auto [first, last] = by_inode_.equal_range(inode);
  std::vector<CachedCopy*> found;
  for (auto it = first; it != last; ++it) found.push_back(it->second);
  for (CachedCopy* copy : found) {
    if (evictable(*copy)) victims.push_back(detach_locked(*copy));
  }
  return victims.size();
}

bool CacheStore::drop_conflict(const std::string& data_path) {
  InodeId inode;
  {
    const MutexLock lock(mutex_);
    for (const auto& copy : copies_)
      if (copy->conflict() && copy->data_path_ == data_path) inode = copy->inode_;
  }
  for (const CachePin& copy : copies_of(inode)) {
    if (!copy->conflict() || copy->data_path() != data_path) continue;
    copy->discard();
    return true;
  }
  return false;
}

Status CacheStore::reserve(std::uint64_t bytes) {
  if (!ever_fits(bytes)) return std::errc::no_space_on_device;  // and keeps what is there
  const auto over_limit = [&]() -> std::uint64_t {
    const MutexLock lock(mutex_);
    const std::uint64_t wanted = bytes_ + bytes;
    return wanted > options_.limit_bytes ? wanted - options_.limit_bytes : 0;
  };
  if (const std::uint64_t excess = over_limit(); excess > 0) {
    // A share of the limit at once, but in a small cache no more than needed.
    evict(std::max(excess, std::min(kEvictBytesMin, options_.limit_bytes / 64)), nullptr);
    if (over_limit() > 0) return std::errc::no_space_on_device;
  }
  FM_TRY(auto space, disk_space(options_.dir));
  const std::uint64_t wanted_free = keep_free_bytes(space.total_bytes) + bytes;
  if (space.free_bytes < wanted_free) {
    evict(wanted_free - space.free_bytes, nullptr);
    FM_TRY(space, disk_space(options_.dir));
  }
  if (space.free_bytes + disk_reserve_.bytes() < bytes) return std::errc::no_space_on_device;
  disk_reserve_.refill(space.free_bytes - std::min(space.free_bytes, bytes));
  return {};
}

std::uint64_t CacheStore::keep_free_bytes(std::uint64_t disk_bytes) const {
  return static_cast<std::uint64_t>(static_cast<double>(disk_bytes) * options_.free_ratio_min);
}

std::uint64_t CacheStore::make_free(std::uint64_t bytes, bool insist) {
  constexpr std::uint64_t kSmallPart = 16;
  auto space = disk_space(options_.dir);
  if (!space) return 0;
  const std::uint64_t wanted = bytes + keep_free_bytes(space->total_bytes);
  const bool small = bytes <= space->total_bytes / kSmallPart;
  if (space->free_bytes < wanted && (small || insist)) {
    evict(wanted - space->free_bytes, nullptr);
    space = disk_space(options_.dir);
  }
  return space ? space->free_bytes : 0;
}

void CacheStore::recharge(CachedCopy& copy, std::uint64_t allocated_bytes) {
  std::uint64_t excess = 0;
  {
    const MutexLock lock(mutex_);
    if (copy.dropped_) return;
    bytes_ += allocated_bytes - copy.charged_bytes_;
    copy.charged_bytes_ = allocated_bytes;
    if (bytes_ > options_.limit_bytes) excess = bytes_ - options_.limit_bytes;
  }
  if (excess > 0) evict(excess, &copy);
}

void CacheStore::opened_descriptor() {
  if (open_files_.fetch_add(1) < options_.open_files_max) return;
  std::vector<std::shared_ptr<Fd>> closing;
  const MutexLock lock(mutex_);
  // A quarter at once: the walk past pinned copies is not paid for each open.
  const std::size_t count = std::max<std::size_t>(1, options_.open_files_max / 4);
  for (const auto& copy : copies_) {
    if (closing.size() >= count) break;
    if (copy->pins_.load(std::memory_order_acquire) == 0) copy->take_descriptors(closing);
  }
  closed_descriptors(closing.size());
}

// --- new copies ----------------------------------------------------------------------------------

Result<CacheStore::Fill> CacheStore::new_copy(CopyMeta meta, std::uint64_t charged_bytes) {
  {
    const MutexLock lock(mutex_);
    meta.serial = next_serial_++;
  }
  meta.last_use_ns = posix::wall_ns();
  const auto copy = make_object(meta);
  const auto make_file = [&]() -> Status {
    auto opened = posix::open_file(copy->data_path_, O_RDWR | O_CREAT | O_EXCL);
    if (!opened && opened.error() == std::errc::file_exists) {  // of an attempt without room
      FM_CHECK(posix::remove_file(copy->data_path_));
      opened = posix::open_file(copy->data_path_, O_RDWR | O_CREAT | O_EXCL);
    }
    FM_TRY(const auto fd, opened);
    if (meta.size_bytes > 0 && ::ftruncate(fd->get(), static_cast<off_t>(meta.size_bytes)) != 0) {
      return last_errno();
    }
    const MutexLock lock(copy->mutex_);
    copy->writer_ = fd;
    return {};
  };
  Status made = with_room(0, nullptr, For::kReader, make_file);
  if (made) opened_descriptor();
  // The sidecar of a copy that is dirty from the start is there before anybody can write to it.
  if (made && meta.maybe_dirty) {
    made = copy->save_meta(options_.sync_dirty_marks ? posix::Durability::kSynced
                                                     : posix::Durability::kNone);
  }
  if (!made) {
    copy->dropped_ = true;
    return made.error();
  }
  const MutexLock lock(mutex_);
  if (CachePin existing = touch_locked(meta.inode, meta.base)) {
    copy->dropped_ = true;  // another thread was faster
    return Fill{std::move(existing), false};
  }
  copy->charged_bytes_ = charged_bytes;
  insert_locked(copy);
  return Fill{CachePin(copy), true};
}

Result<CacheStore::Fill> CacheStore::begin_fill(InodeId inode, Version version,
                                                std::uint64_t size_bytes,
                                                std::uint64_t allocated_bytes, std::uint32_t mode,
                                                std::string path_hint) {
  if (size_bytes > kFileSizeMax) return std::errc::file_too_large;
  CachePin existing;
  {
    const MutexLock lock(mutex_);
    existing = touch_locked(inode, version);
  }
  if (existing && existing->suspect_) {
    FM_TRY(const bool good, verify(*existing));
    if (!good) {
      forget(*existing);
      existing = {};
    }
  }
  if (existing) return Fill{std::move(existing), false};
  const std::uint64_t wanted_bytes = std::min(size_bytes, allocated_bytes);
  FM_CHECK(reserve(wanted_bytes));
  CopyMeta meta;
  meta.inode = inode;
  meta.base = version;
  meta.size_bytes = size_bytes;
  meta.mode = mode;
  meta.path_hint = std::move(path_hint);
  return new_copy(std::move(meta), wanted_bytes);
}

Result<CachePin> CacheStore::create(InodeId inode, Version version, CachedCopy::Writes writes,
                                    std::uint32_t mode, std::string path_hint) {
  CopyMeta meta;
  meta.inode = inode;
  meta.base = version;
  meta.mode = mode;
  meta.complete = true;
  meta.maybe_dirty = true;
  meta.clean_known = static_cast<bool>(version);  // an empty file is what the creation committed
  meta.path_hint = std::move(path_hint);
  FM_TRY(auto made, new_copy(std::move(meta), 0));
  if (!made.created) return std::errc::file_exists;
  if (writes == CachedCopy::Writes::kUntracked) made.copy->untracked_ = true;
  return std::move(made.copy);
}

Result<bool> CacheStore::verify(CachedCopy& copy) {
  FM_TRY(const auto fd, copy.reader());
  const CopyMeta meta = copy.meta();
  FM_TRY(const auto scan, copy.scan_blocks(*fd, nullptr, meta.clean));
  const bool good = meta.complete && !scan.modified();
  if (good) copy.suspect_ = false;
  const MutexLock lock(mutex_);
  ++counters_.verified;
  if (!good) {
    ++counters_.verify_failed;
    spdlog::warn("cache: {} did not survive the power cut; it is fetched again", copy.data_path_);
  }
  return good;
}

// --- what people see -----------------------------------------------------------------------------

std::vector<CachePin> CacheStore::recovered_dirty() {
  const MutexLock lock(mutex_);
  std::vector<CachePin> out;
  for (const auto& copy : recovered_) {
    if (!copy->dropped_ && !copy->conflict()) out.push_back(CachePin(copy));
  }
  recovered_.clear();
  return out;
}

std::vector<CacheListing> CacheStore::list() {
  const MutexLock lock(mutex_);
  std::vector<CacheListing> out;
  out.reserve(copies_.size());
  for (const auto& copy : copies_) {
    CacheListing row;
    row.inode = copy->inode_;
    row.base = copy->base();
    row.serial = copy->serial_;
    row.size_bytes = copy->size_bytes();
    row.allocated_bytes = copy->charged_bytes_;
    row.last_use_ns = copy->last_use_ns_;
    row.complete = copy->complete();
    row.maybe_dirty = copy->maybe_dirty();
    row.conflict = copy->conflict();
    row.data_path = copy->data_path_;
    const MutexLock copy_lock(copy->mutex_);
    row.path_hint = copy->path_hint_;
    out.push_back(std::move(row));
  }
  return out;
}

CacheStats CacheStore::stats() {
  const MutexLock lock(mutex_);
  CacheStats stats = counters_;
  stats.files = copies_.size();
  stats.bytes = bytes_;
  stats.limit_bytes = options_.limit_bytes;
  for (const auto& copy : copies_) {
    stats.dirty_files += copy->maybe_dirty() && !copy->conflict() ? 1 : 0;
    stats.conflict_files += copy->conflict() ? 1 : 0;
  }
  return stats;
}

}  // namespace fermata::mountd
