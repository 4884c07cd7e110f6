#include "mountd/cache/cached_copy.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "common/base/assert.h"
#include "mountd/cache/cache_store.h"
#include "mountd/cache/counted.h"

namespace fermata::mountd {
namespace {

constexpr std::uint64_t kRechargeBytes = 8ULL << 20;
constexpr std::uint32_t kStepsMax = 1000;  // of a sidecar, before it is written anew

}  // namespace

CachedCopy::CachedCopy(CacheStore& store, CopyMeta meta, std::string data_path)
    : store_(store),
      inode_(meta.inode),
      serial_(meta.serial),
      data_path_(std::move(data_path)),
      meta_path_(data_path_.substr(0, data_path_.size() - 5) + ".meta"),  // ".data"
      base_(meta.base.value()),
      size_bytes_(meta.size_bytes),
      complete_(meta.complete),
      maybe_dirty_(meta.maybe_dirty),
      conflict_(meta.conflict),
      last_use_ns_(meta.last_use_ns),
      clean_known_(meta.clean_known),
      updating_(meta.updating),
      clean_(std::move(meta.clean)),
      chunks_(std::move(meta.chunks)),
      path_hint_(std::move(meta.path_hint)),
      mode_(meta.mode) {
  if (!meta.complete) {
    clean_.digests.assign(block_count_of(meta.size_bytes), kHoleDigest);
    digest_known_.assign(clean_.digests.size(), false);
  }
}

CachedCopy::~CachedCopy() {
  FM_ASSERT(pins_ == 0);
  store_.closed_descriptors((reader_ ? 1 : 0) + (writer_ ? 1 : 0) + (sidecar_ ? 1 : 0));
  if (!dropped_) return;
  // The sidecar first: data without one is rubbish to the next start, never the reverse.
  if (!posix::remove_file(meta_path_) || !posix::remove_file(data_path_)) {
    spdlog::warn("cache: cannot remove {}: {}", data_path_, last_errno().message());
  }
}

std::vector<ChunkId> CachedCopy::chunks() const {
  const MutexLock lock(mutex_);
  return chunks_;
}

PatchedBlocks CachedCopy::patched_blocks() const {
  const MutexLock lock(mutex_);
  return patched_;
}

void CachedCopy::set_patched_blocks(PatchedBlocks blocks) {
  const MutexLock lock(mutex_);
  patched_ = std::move(blocks);
}

CopyMeta CachedCopy::meta() const {
  const MutexLock lock(mutex_);
  return meta_locked();
}

CopyMeta CachedCopy::meta_locked() const {
  CopyMeta meta;
  meta.inode = inode_;
  meta.base = base();
  meta.serial = serial_;
  meta.size_bytes = size_bytes();
  meta.mode = mode_;
  meta.complete = complete();
  meta.maybe_dirty = maybe_dirty();
  meta.conflict = conflict();
  meta.updating = updating_;
  meta.clean_known = clean_known_;
  meta.last_use_ns = last_use_ns_;
  meta.clean = clean_;
  meta.chunks = chunks_;
  meta.path_hint = path_hint_;
  return meta;
}

void CachedCopy::note_use() { last_use_ns_.store(posix::wall_ns(), std::memory_order_relaxed); }

std::string CachedCopy::path_hint() const {
  const MutexLock lock(mutex_);
  return path_hint_;
}

Status CachedCopy::save_if_stale() {
  {
    const MutexLock lock(mutex_);
    if (!save_stale_ || !complete() || dropped_) return {};
  }
  return save_meta(posix::Durability::kNone);
}

void CachedCopy::set_path_hint(std::string path) {
  const MutexLock lock(mutex_);
  save_stale_ = save_stale_ || path_hint_ != path;
  path_hint_ = std::move(path);
}

void CachedCopy::set_mode(std::uint32_t mode) {
  const MutexLock lock(mutex_);
  save_stale_ = save_stale_ || mode_ != mode;
  mode_ = mode;
}

Status CachedCopy::save_meta(posix::Durability durability) {
  const MutexLock order(save_mutex_);
  CopyMeta meta;
  {
    const MutexLock lock(mutex_);
    meta = meta_locked();
    save_stale_ = false;
  }
  const std::string bytes = encode_copy_meta(meta);
  close_sidecar();
  const bool in_place = durability == posix::Durability::kNone && saved_bytes_ == kSectorBytes &&
                        bytes.size() == kSectorBytes;
  Status status = from_errno(ENOENT);
  if (in_place) status = posix::overwrite_file(meta_path_, as_bytes(bytes));
  if (!status) {
    status = store_.with_room(bytes.size(), this, CacheStore::For::kReader, [&] {
      return posix::replace_file(meta_path_, as_bytes(bytes), durability);
    });
  }
  saved_bytes_ = status ? bytes.size() : 0;
  const MutexLock lock(mutex_);
  if (status) {
    marked_on_disk_ = meta.maybe_dirty;
  } else {
    save_stale_ = true;
  }
  return status;
}

void CachedCopy::close_sidecar() {
  if (std::exchange(sidecar_, nullptr)) store_.closed_descriptors(1);
  steps_ = 0;
}

// A sidecar of a big file is big: where only a few blocks moved on, that is appended.
Status CachedCopy::save_step(const CommitStep& step) {
  {
    const MutexLock order(save_mutex_);
    bool marked = false;
    {
      const MutexLock lock(mutex_);
      marked = marked_on_disk_ && !save_stale_;
    }
    if (marked && !sidecar_) {
      auto opened = posix::open_file(meta_path_, O_WRONLY | O_APPEND);
      if (opened) {
        sidecar_ = std::move(*opened);
        store_.opened_descriptor();
      }
    }
    const std::string bytes = encode_step(step);
    if (marked && sidecar_ && steps_ < kStepsMax) {
      const ssize_t written = ::write(sidecar_->get(), bytes.data(), bytes.size());
      saved_bytes_ = 0;  // what stands behind the sidecar goes with the next whole one
      if (written == static_cast<ssize_t>(bytes.size())) {
        ++steps_;
        return {};
      }
    }
  }
  return save_meta(posix::Durability::kNone);
}

// --- descriptors ---------------------------------------------------------------------------------

Result<std::shared_ptr<Fd>> CachedCopy::descriptor(Open which) {
  std::shared_ptr<Fd> opened;
  {
    const MutexLock lock(mutex_);
    std::shared_ptr<Fd>& kept = which == Open::kReader ? reader_ : writer_;
    if (kept) return kept;
    // The file's atime is the applications': reads of our own are none.
    const int flags = which == Open::kReader ? O_RDONLY : O_RDWR;
    FM_TRY(kept, posix::open_file(data_path_, flags | O_NOATIME));
    opened = kept;
  }
  store_.opened_descriptor();
  return opened;
}

Result<std::shared_ptr<Fd>> CachedCopy::reader() { return descriptor(Open::kReader); }
Result<std::shared_ptr<Fd>> CachedCopy::writer() { return descriptor(Open::kWriter); }

void CachedCopy::close_writer() {
  std::shared_ptr<Fd> closing;
  {
    const MutexLock lock(mutex_);
    closing = std::move(writer_);
    writer_ = nullptr;
  }
  if (closing) store_.closed_descriptors(1);
}

void CachedCopy::take_descriptors(std::vector<std::shared_ptr<Fd>>& out) {
  const MutexLock lock(mutex_);
  for (std::shared_ptr<Fd>* kept : {&reader_, &writer_}) {
    if (*kept) out.push_back(std::move(*kept));
    *kept = nullptr;
  }
}

Result<bool> CachedCopy::has_writable_users() {
  close_writer();
  FM_TRY(const auto fd, reader());
  const MutexLock lock(mutex_);
  // Should another open come while the lease is held, the kernel sends a signal: it must be one
  // whose default is to be ignored (SIGIO would end the process). The end of a lease forgets it.
  ::fcntl(fd->get(), F_SETSIG, SIGURG);
  if (::fcntl(fd->get(), F_SETLEASE, F_RDLCK) == 0) {
    ::fcntl(fd->get(), F_SETLEASE, F_UNLCK);
    return false;
  }
  if (errno == EAGAIN) return true;
  return last_errno();
}

Result<BackingStat> CachedCopy::stat() {
  FM_TRY(const auto fd, reader());
  return posix::stat_file(*fd);
}

Status CachedCopy::arm_access_time() {
  FM_TRY(const auto fd, reader());
  const MutexLock lock(mutex_);
  if (!complete() || maybe_dirty() || updating_) return {};
  FM_TRY(const auto before, posix::stat_file(*fd));
  if (before.atime_ns <= before.mtime_ns || before.atime_ns <= before.ctime_ns) return {};
  const timespec times[2] = {{}, {0, UTIME_OMIT}};
  if (::futimens(fd->get(), times) != 0) return last_errno();
  if (before.ctime_ns != clean_.ctime_ns) return {};
  FM_TRY(const auto after, posix::stat_file(*fd));
  clean_.ctime_ns = after.ctime_ns;  // the bytes are the same
  save_stale_ = true;
  return {};
}

// --- filling -------------------------------------------------------------------------------------

Status CachedCopy::write_retrying(std::uint64_t offset_bytes, ByteView bytes) {
  FM_TRY(const auto fd, writer());
  const auto whom = complete() ? CacheStore::For::kWriter : CacheStore::For::kReader;
  return store_.with_room(bytes.size(), this, whom,
                          [&] { return posix::write_at(*fd, offset_bytes, bytes); });
}

Status CachedCopy::write_fill(std::uint64_t offset_bytes, ByteView bytes) {
  const std::uint64_t end = offset_bytes + bytes.size();
  {
    const MutexLock lock(mutex_);
    if (complete() || fill_error_) return from_errno(ECANCELED);
    if (end > size_bytes()) return std::errc::invalid_argument;
    ++fills_in_flight_;
  }
  const Status status = write_retrying(offset_bytes, bytes);
  // A chunk that arrives whole is digested while it is in the CPU's cache.
  const std::uint64_t block = offset_bytes / kBlockSizeBytes;
  const bool whole_block =
      offset_bytes % kBlockSizeBytes == 0 && !bytes.empty() &&
      (bytes.size() == kBlockSizeBytes || (bytes.size() < kBlockSizeBytes && end == size_bytes()));
  const std::uint64_t digest = whole_block && status ? block_digest(bytes) : 0;
  {
    const MutexLock lock(mutex_);
    --fills_in_flight_;
    if (status && !complete()) {
      present_.add(offset_bytes, end);
      if (whole_block) {
        clean_.digests[block] = digest;
        digest_known_[block] = true;
      }
    }
  }
  fills_done_.notify_all();
  FM_CHECK(status);
  wake_waiters();
  return {};
}

Status CachedCopy::fill_hole(std::uint64_t offset_bytes, std::uint64_t size_bytes_of_hole) {
  {
    const MutexLock lock(mutex_);
    if (complete() || fill_error_) return from_errno(ECANCELED);
    const std::uint64_t end = std::min(offset_bytes + size_bytes_of_hole, size_bytes());
    present_.add(offset_bytes, end);
    for (std::uint64_t block = (offset_bytes + kBlockSizeBytes - 1) / kBlockSizeBytes;
         block < clean_.digests.size() &&
         std::min((block + 1) * kBlockSizeBytes, size_bytes()) <= end;
         ++block) {
      digest_known_[block] = true;  // as kHoleDigest, which it was made with
    }
  }
  wake_waiters();
  return {};
}

Status CachedCopy::finish_fill(std::vector<ChunkId> chunks) {
  std::vector<std::uint64_t> unknown;
  {
    const MutexLock lock(mutex_);
    if (complete() || fill_error_) return from_errno(ECANCELED);
    if (!present_.contains(0, size_bytes())) return std::errc::invalid_argument;
    for (std::uint64_t block = 0; block < digest_known_.size(); ++block) {
      if (!digest_known_[block]) unknown.push_back(block);
    }
  }
  FM_TRY(const auto fd, reader());
  Bytes buffer(unknown.empty() ? 0 : kBlockSizeBytes);
  std::vector<std::uint64_t> digests;
  for (const std::uint64_t block : unknown) {
    FM_TRY(const auto size, posix::read_at(*fd, block * kBlockSizeBytes, buffer));
    digests.push_back(block_digest({buffer.data(), size}));
  }
  const std::int64_t taken = posix::wall_ns();
  FM_TRY(const auto st, posix::stat_file(*fd));
  {
    const MutexLock lock(mutex_);
    if (complete() || fill_error_) return from_errno(ECANCELED);
    if (st.size_bytes != size_bytes()) return std::errc::io_error;
    for (std::size_t i = 0; i < unknown.size(); ++i) clean_.digests[unknown[i]] = digests[i];
    clean_.ctime_ns = st.ctime_ns;
    clean_.taken_ns = taken;
    clean_.size_bytes = st.size_bytes;
    chunks_ = std::move(chunks);
    present_.clear();
    digest_known_ = {};
    complete_ = true;
  }
  // Without its sidecar the copy serves until the next start, which removes it. An empty one is
  // soon written to, or not worth it.
  if (st.size_bytes == 0) {
    const MutexLock lock(mutex_);
    save_stale_ = true;
  } else if (const Status saved = save_meta(posix::Durability::kNone); !saved) {
    spdlog::warn("cache: cannot write {}: {}", meta_path_, saved.error().message());
  }
  store_.recharge(*this, st.allocated_bytes);
  wake_waiters();
  return {};
}

void CachedCopy::fail_fill(std::error_code error) {
  {
    const MutexLock lock(mutex_);
    if (complete() || fill_error_) return;
    fill_error_ = error ? error : from_errno(EIO);
  }
  store_.forget(*this);
  wake_waiters();
}

Status CachedCopy::end_fill_by_truncation() {
  {
    std::unique_lock<Mutex> lock(mutex_);
    if (fill_error_) return fill_error_;
    if (complete()) return {};
    complete_ = true;  // no write_fill begins any more; wait for those under way
    maybe_dirty_ = true;
    clean_known_ = false;
    clean_ = {};
    chunks_.clear();
    fills_done_.wait(lock, [this] { return fills_in_flight_ == 0; });
    present_.clear();
    digest_known_ = {};
  }
  const auto cut = [this]() -> Status {
    FM_TRY(const auto fd, writer());
    if (::ftruncate(fd->get(), 0) != 0) return last_errno();
    size_bytes_ = 0;
    return save_meta(store_.options_.sync_dirty_marks ? posix::Durability::kSynced
                                                      : posix::Durability::kNone);
  };
  const Status done = cut();
  if (!done) {
    {
      const MutexLock lock(mutex_);
      complete_ = false;  // it holds neither the old version nor the new one
      maybe_dirty_ = false;
      fill_error_ = done.error();
    }
    store_.forget(*this);
  }
  wake_waiters();
  return done;
}

bool CachedCopy::present(std::uint64_t offset_bytes, std::uint64_t size) const {
  if (complete()) return true;
  const MutexLock lock(mutex_);
  return complete() || present_.contains(offset_bytes, std::min(offset_bytes + size, size_bytes()));
}

std::vector<ByteRange> CachedCopy::missing(std::uint64_t offset_bytes, std::uint64_t size) const {
  const MutexLock lock(mutex_);
  if (complete()) return {};
  return present_.gaps(offset_bytes, std::min(offset_bytes + size, size_bytes()));
}

void CachedCopy::when_present(std::uint64_t offset_bytes, std::uint64_t size,
                              std::function<void(std::error_code)> callback) {
  std::error_code error;
  {
    const MutexLock lock(mutex_);
    const ByteRange range{offset_bytes, std::min(offset_bytes + size, size_bytes())};
    if (!complete() && !fill_error_ && !present_.contains(range.begin_bytes, range.end_bytes)) {
      waiters_.push_back({range, std::move(callback)});
      return;
    }
    if (!complete()) error = fill_error_;
  }
  callback(error);
}

void CachedCopy::wake_waiters() {
  std::vector<Waiter> ready;
  std::error_code error;
  {
    const MutexLock lock(mutex_);
    if (waiters_.empty()) return;
    if (!complete()) error = fill_error_;
    const auto first_ready =
        std::partition(waiters_.begin(), waiters_.end(), [this](const Waiter& waiter) {
          return !complete() && !fill_error_ &&
                 !present_.contains(waiter.range.begin_bytes, waiter.range.end_bytes);
        });
    std::move(first_ready, waiters_.end(), std::back_inserter(ready));
    waiters_.erase(first_ready, waiters_.end());
  }
  for (Waiter& waiter : ready) waiter.callback(error);
}

// --- content -------------------------------------------------------------------------------------

Result<std::size_t> CachedCopy::read_at(std::uint64_t offset_bytes, MutableByteView out) {
  if (!present(offset_bytes, out.size())) return Errc::kRetry;
  FM_TRY(const auto fd, reader());
  return posix::read_at(*fd, offset_bytes, out);
}

Result<Buffer> CachedCopy::read_all(std::uint64_t size_max_bytes) {
  if (!complete()) return Errc::kRetry;
  FM_TRY(const auto fd, reader());
  FM_TRY(const auto st, posix::stat_file(*fd));
  if (st.size_bytes > size_max_bytes) return Errc::kTooLarge;
  Buffer buffer = Buffer::allocate(st.size_bytes);
  FM_TRY(const auto size, posix::read_at(*fd, 0, buffer.mutable_view()));
  return buffer.slice(0, size);
}

// Only after the write has ended: a scan in between may or may not have seen the bytes, so the next
// one must look again.
void CachedCopy::note_written(std::uint64_t begin_bytes, std::uint64_t end_bytes) {
  const MutexLock lock(mutex_);
  dirty_.add(begin_bytes, end_bytes);
}

void CachedCopy::recharge() {
  uncharged_bytes_ = 0;
  if (const auto st = stat()) store_.recharge(*this, st->allocated_bytes);
}

Status CachedCopy::write_at(std::uint64_t offset_bytes, ByteView bytes) {
  if (!complete()) return Errc::kRetry;
  FM_DASSERT(maybe_dirty() || meta().updating);
  if (bytes.empty()) return {};
  const std::uint64_t end = offset_bytes + bytes.size();
  if (end > kFileSizeMax) return std::errc::file_too_large;
  const Counted under_way(writes_under_way_);
  const Status status = write_retrying(offset_bytes, bytes);
  std::uint64_t size = size_bytes();
  if (status) {
    while (size < end && !size_bytes_.compare_exchange_weak(size, end)) {
    }
  } else if (const auto st = stat()) {
    size_bytes_ = st->size_bytes;  // a part may have been written
  }
  note_written(std::min(size, offset_bytes), end);
  if ((uncharged_bytes_ += bytes.size()) >= kRechargeBytes) recharge();
  return status;
}

Result<std::uint64_t> CachedCopy::append(ByteView bytes) {
  const MutexLock order(append_mutex_);
  FM_TRY(const auto st, stat());
  FM_CHECK(write_at(st.size_bytes, bytes));
  return st.size_bytes;
}

Status CachedCopy::truncate(std::uint64_t size) {
  if (size > kFileSizeMax) return std::errc::file_too_large;
  if (!complete()) {
    if (size != 0) return Errc::kRetry;
    FM_CHECK(end_fill_by_truncation());
  }
  FM_DASSERT(maybe_dirty() || meta().updating);
  FM_TRY(const auto fd, writer());
  FM_TRY(const auto before, posix::stat_file(*fd));
  const Counted under_way(writes_under_way_);
  if (::ftruncate(fd->get(), static_cast<off_t>(size)) != 0) return last_errno();
  size_bytes_ = size;
  note_written(std::min(before.size_bytes, size), std::max(before.size_bytes, size));
  recharge();
  return {};
}

Status CachedCopy::punch(std::uint64_t offset_bytes, std::uint64_t size) {
  if (!complete()) return Errc::kRetry;
  FM_DASSERT(maybe_dirty() || meta().updating);
  FM_TRY(const auto fd, writer());
  const Counted under_way(writes_under_way_);
  const Status status = ::fallocate(fd->get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                    static_cast<off_t>(offset_bytes), static_cast<off_t>(size)) == 0
                            ? Status()
                            : Status(last_errno());
  note_written(offset_bytes, std::min(offset_bytes + size, kFileSizeMax));
  recharge();
  return status;
}

Status CachedCopy::allocate(std::uint64_t offset_bytes, std::uint64_t size, bool keep_size) {
  if (!complete()) return Errc::kRetry;
  FM_DASSERT(maybe_dirty() || meta().updating);
  if (offset_bytes + size > kFileSizeMax) return std::errc::file_too_large;
  FM_TRY(const auto fd, writer());
  const Counted under_way(writes_under_way_);
  const auto attempt = [&]() -> Status {
    if (::fallocate(fd->get(), keep_size ? FALLOC_FL_KEEP_SIZE : 0,
                    static_cast<off_t>(offset_bytes), static_cast<off_t>(size)) == 0) {
      return {};
    }
    return last_errno();
  };
  const Status status = store_.with_room(size, this, CacheStore::For::kWriter, attempt);
  if (const auto st = posix::stat_file(*fd); st && st->size_bytes != size_bytes()) {
    note_written(std::min(st->size_bytes, size_bytes()), std::max(st->size_bytes, size_bytes()));
    size_bytes_ = st->size_bytes;
  }
  recharge();
  return status;
}

Status CachedCopy::sync() {
  FM_TRY(const auto fd, reader());
  if (::fdatasync(fd->get()) != 0) return last_errno();
  return {};
}

void CachedCopy::discard() { store_.forget(*this); }

}  // namespace fermata::mountd
