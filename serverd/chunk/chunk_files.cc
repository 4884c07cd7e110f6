#include "serverd/chunk/chunk_files.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "common/base/assert.h"
#include "common/base/checksum.h"

namespace fermata::serverd {
namespace {

constexpr std::uint64_t kMagic = 0x31534b4843464dULL;  // "MFCHKS1"
constexpr std::uint32_t kFormatVersion = 1;
constexpr std::size_t kVerifiedMax = 4096;

struct FormatFile {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t checksum;  // CRC-32C of the file with this field as zero
  std::array<std::uint8_t, 16> cluster;
};
static_assert(sizeof(FormatFile) == 32);

ByteView object_bytes(const FormatFile& format) {
  return {reinterpret_cast<const std::byte*>(&format), sizeof format};
}

std::uint32_t checksum_of(FormatFile format) {
  format.checksum = 0;
  return crc32c(object_bytes(format));
}

int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// A file's name -> the chunk's; none for ".bad" and what is not ours.
ChunkId chunk_of(std::string_view name) {
  ChunkId id;
  if (name.size() != 2 * id.digest.size()) return {};
  for (std::size_t i = 0; i < id.digest.size(); ++i) {
    const int high = digit_of(name[2 * i]);
    const int low = digit_of(name[2 * i + 1]);
    if (high < 0 || low < 0) return {};
    id.digest[i] = static_cast<std::uint8_t>(high * 16 + low);
  }
  id.algorithm = ChunkId::kSha256;
  return id;
}

}  // namespace

ChunkFiles::ChunkFiles(Disk& disk, std::string dir, ClusterId cluster,
                       std::function<void(std::error_code)> fatal)
    : disk_(disk), dir_(std::move(dir) + "/chunks"), cluster_(cluster), fatal_(std::move(fatal)) {}

std::string ChunkFiles::shard_path(unsigned shard) const {
  const auto byte = static_cast<std::uint8_t>(shard);
  return dir_ + "/" + to_hex(&byte, 1);
}

std::string ChunkFiles::path_of(const ChunkId& id) const {
  return shard_path(id.digest[0]) + "/" + id.hex();
}

// --- start ---------------------------------------------------------------------------------------

Status ChunkFiles::start() {
  FM_CHECK(check_format());
  FM_CHECK(disk_.make_dirs(dir_ + "/tmp"));
  FM_TRY(const auto leftovers, disk_.list(dir_ + "/tmp"));
  for (const std::string& name : leftovers) FM_CHECK(disk_.remove(dir_ + "/tmp/" + name));
  for (unsigned shard = 0; shard < 256; ++shard) FM_CHECK(disk_.make_dirs(shard_path(shard)));
  // Each time: an earlier start may have died before it did.
  FM_CHECK(disk_.sync_dir(dir_));
  FM_CHECK(disk_.sync_dir(parent_of(dir_)));
  for (unsigned shard = 0; shard < 256; ++shard) FM_CHECK(load_shard(shard));
  return {};
}

Status ChunkFiles::check_format() {
  const std::string path = dir_ + "/FORMAT";
  const auto bytes = read_file(disk_, path, 4096);
  if (!bytes) {
    if (bytes.error() != std::errc::no_such_file_or_directory) return bytes.error();
    // FORMAT comes before all else: chunks without it are somebody else's.
    if (const auto names = disk_.list(dir_); names && !std::ranges::all_of(*names, [](auto& name) {
                                               return std::string_view(name).starts_with("FORMAT");
                                             })) {
      spdlog::error("{} is not empty and has no FORMAT: it is no chunk store", dir_);
      return Errc::kBadMessage;
    }
    FM_CHECK(disk_.make_dirs(dir_));
    FormatFile format{kMagic, kFormatVersion, 0, cluster_.bytes};
    format.checksum = checksum_of(format);
    return write_file_atomically(disk_, path, object_bytes(format));
  }
  const auto format =
      bytes->size() == sizeof(FormatFile) ? load_le<FormatFile>(bytes->data()) : FormatFile{};
  if (format.magic == kMagic && format.version > kFormatVersion) {
    spdlog::error("{} has format {}, this server knows {}: use a newer fermata-serverd", dir_,
                  format.version, kFormatVersion);
    return Errc::kVersionMismatch;
  }
  if (format.magic != kMagic || format.checksum != checksum_of(format)) {
    spdlog::error("{} is damaged or no chunk store's", path);
    return Errc::kBadMessage;
  }
  if (format.cluster != cluster_.bytes) {
    spdlog::error("{} belongs to cluster {}, not to {}: start the node with its own directory",
                  dir_, ClusterId{format.cluster}.hex(), cluster_.hex());
    return Errc::kWrongCluster;
  }
  return {};
}

Status ChunkFiles::load_shard(unsigned shard) {
  FM_TRY(const auto names, disk_.list(shard_path(shard)));
  if (names.empty()) return {};
  // A process that died between rename and sync left names that a power cut could still take; put()
  // takes what is listed as durable. Their bytes were synced before they got the name.
  if (const Status synced = disk_.sync_dir(shard_path(shard)); !synced) {
    return fail(synced.error());
  }
  for (const std::string& name : names) {
    const ChunkId id = chunk_of(name);
    if (!id || id.digest[0] != shard) continue;
    FM_TRY(const auto file, disk_.open(shard_path(shard) + "/" + name, Disk::Mode::kRead));
    FM_TRY(const auto size, file->size_bytes());
    const MutexLock lock(mutex_);
    sizes_.emplace(id, static_cast<std::uint32_t>(std::min<std::uint64_t>(size, UINT32_MAX)));
    stats_.bytes += size;
  }
  return {};
}

// --- put and remove ------------------------------------------------------------------------------

std::error_code ChunkFiles::fail(std::error_code error) {
  {
    const MutexLock lock(mutex_);
    if (failed_) return error;
    failed_ = error;
  }
  spdlog::critical(
      "chunks: a sync in {} failed ({}): what the disk holds is not known any more; "
      "the node stops. Check the disk, then restart or rebuild the node",
      dir_, error.message());
  if (fatal_) fatal_(error);
  return error;
}

void ChunkFiles::claim(Lock& lock, const ChunkId& id) {
  changed_.wait(lock, [&] { return !claimed_.contains(id); });
  claimed_.insert(id);
}

void ChunkFiles::release(const ChunkId& id) {
  {
    const MutexLock lock(mutex_);
    claimed_.erase(id);
  }
  changed_.notify_all();
}

Status ChunkFiles::put(const ChunkId& id, ByteView bytes) {
  if (bytes.size() > kChunkSizeMax) return Errc::kTooLarge;
  if (chunk_id_of(bytes) != id) return Errc::kHashMismatch;
  {
    Lock lock(mutex_);
    // Whoever waited for the same chunk finds it, or tries itself if the other one failed.
    changed_.wait(lock, [&] { return !claimed_.contains(id); });
    if (failed_) return std::errc::io_error;
    if (auto retired = retired_.extract(id)) {
      stats_.bytes += retired.mapped();
      sizes_.insert(std::move(retired));
    }
    if (sizes_.contains(id)) {
      ++stats_.dedup_hits;
      return {};
    }
    claim(lock, id);
  }
  const Status status = write_chunk(id, bytes);
  if (status) {
    const MutexLock lock(mutex_);
    sizes_.emplace(id, static_cast<std::uint32_t>(bytes.size()));
    stats_.bytes += bytes.size();
    ++stats_.puts;
  }
  release(id);
  return status;
}

Status ChunkFiles::write_temporary(const std::string& path, ByteView bytes) {
  FM_TRY(const auto file, disk_.open(path, Disk::Mode::kCreateNew));
  FM_CHECK(file->write_at(0, bytes));
  if (const Status synced = file->sync(); !synced) {
    // Delayed allocation can find the disk full only now; nobody has seen this file.
    if (synced.error() == std::errc::no_space_on_device) return synced;
    return fail(synced.error());
  }
  return {};
}

Status ChunkFiles::write_chunk(const ChunkId& id, ByteView bytes) {
  std::string temporary = dir_ + "/tmp/" + id.hex() + ".";
  {
    const MutexLock lock(mutex_);
    temporary += std::to_string(next_temporary_++);
  }
  Status status = write_temporary(temporary, bytes);
  if (status) status = disk_.rename(temporary, path_of(id));
  if (!status) {
    const Status removed = disk_.remove(temporary);
    if (!removed && removed.error() != std::errc::no_such_file_or_directory) {
      spdlog::debug("chunks: {} stays until the next start: {}", temporary,
                    removed.error().message());
    }
    return status;
  }
  return sync_shard(id.digest[0]);
}

// Group sync: who finds no sync running does one for all renames so far; the others wait for one
// that began after their rename.
Status ChunkFiles::sync_shard(unsigned shard) {
  Lock lock(mutex_);
  Shard& state = shards_[shard];
  const std::uint64_t mine = ++state.renames;
  while (state.durable < mine) {
    if (failed_) return std::errc::io_error;
    if (state.syncing) {
      changed_.wait(lock);
      continue;
    }
    state.syncing = true;
    ++stats_.dir_syncs;
    const std::uint64_t covered = state.renames;
    lock.unlock();
    const Status synced = disk_.sync_dir(shard_path(shard));
    if (!synced) fail(synced.error());
    lock.lock();
    state.syncing = false;
    if (synced) state.durable = covered;
    changed_.notify_all();
    if (!synced) return synced;
  }
  return {};
}

void ChunkFiles::retire(std::span<const ChunkId> ids) {
  const MutexLock lock(mutex_);
  for (const ChunkId& id : ids) {
    if (claimed_.contains(id)) continue;
    auto known = sizes_.extract(id);
    if (!known) continue;
    stats_.bytes -= known.mapped();
    retired_.insert(std::move(known));
  }
}

Status ChunkFiles::remove(std::span<const ChunkId> ids) {
  retire(ids);
  return remove_retired(ids);
}

Status ChunkFiles::remove_retired(std::span<const ChunkId> ids) {
  Status first_error;
  for (const ChunkId& id : ids) {
    {
      Lock lock(mutex_);
      if (retired_.erase(id) == 0) continue;
      claim(lock, id);
    }
    const Status removed = disk_.remove(path_of(id));
    if (!removed && removed.error() != std::errc::no_such_file_or_directory && first_error) {
      first_error = removed;
    }
    release(id);
  }
  return first_error;
}

// --- reading -------------------------------------------------------------------------------------

// Reads once more, alone with the chunk: another reader may have set it aside and a put repaired it
// meanwhile. What is bad then is out of the index, so that the next put writes it anew.
Result<Buffer> ChunkFiles::read_again_or_set_aside(const ChunkId& id) {
  {
    Lock lock(mutex_);
    changed_.wait(lock, [&] { return !claimed_.contains(id); });
    if (!sizes_.contains(id)) return std::errc::no_such_file_or_directory;
    claim(lock, id);
  }
  auto again = read_verified(id);
  if (!again) {
    {
      const MutexLock lock(mutex_);
      const auto known = sizes_.find(id);
      stats_.bytes -= known->second;
      sizes_.erase(known);
      if (const auto at = verified_at_.find(id); at != verified_at_.end()) {
        verified_.erase(at->second);
        verified_at_.erase(at);
      }
      ++stats_.corrupt;
    }
    const Status moved = disk_.rename(path_of(id), path_of(id) + ".bad");
    spdlog::error("chunks: {} cannot be read back ({}), {}; it is fetched from a peer again",
                  id.hex(), again.error().message(),
                  moved ? "set aside as .bad" : "and could not be set aside");
    again = Errc::kCorruptChunk;
  }
  release(id);
  return again;
}

void ChunkFiles::note_verified(const ChunkId& id) {
  const MutexLock lock(mutex_);
  if (const auto at = verified_at_.find(id); at != verified_at_.end()) {
    verified_.splice(verified_.end(), verified_, at->second);
    return;
  }
  verified_at_[id] = verified_.insert(verified_.end(), id);
  if (verified_.size() <= kVerifiedMax) return;
  verified_at_.erase(verified_.front());
  verified_.pop_front();
}

Result<Buffer> ChunkFiles::read_verified(const ChunkId& id) {
  FM_TRY(const auto file, disk_.open(path_of(id), Disk::Mode::kRead));
  FM_TRY(const auto size, file->size_bytes());
  if (size > kChunkSizeMax) return Errc::kCorruptChunk;
  Buffer buffer = Buffer::allocate(size);
  FM_TRY(const auto read, file->read_at(0, buffer.mutable_view()));
  if (read != size || chunk_id_of(buffer.view()) != id) return Errc::kCorruptChunk;
  return buffer;
}

Result<Buffer> ChunkFiles::get(const ChunkId& id) {
  {
    const MutexLock lock(mutex_);
    if (!sizes_.contains(id)) return std::errc::no_such_file_or_directory;
  }
  auto buffer = read_verified(id);
  if (buffer) {
    note_verified(id);
    return buffer;
  }
  // A sector that cannot be read, or a file that is gone, is as bad as one that reads wrong. Other
  // errors (no descriptors left, say) tell nothing about the chunk.
  const bool damaged = buffer.error() == Errc::kCorruptChunk ||
                       buffer.error() == std::errc::io_error ||
                       buffer.error() == std::errc::no_such_file_or_directory;
  return damaged ? read_again_or_set_aside(id) : buffer;
}

Result<Buffer> ChunkFiles::get_range(const ChunkId& id, std::uint64_t offset_bytes,
                                     std::size_t size_bytes) {
  bool trusted = false;
  std::uint64_t chunk_size = 0;
  {
    const MutexLock lock(mutex_);
    const auto known = sizes_.find(id);
    if (known == sizes_.end()) return std::errc::no_such_file_or_directory;
    chunk_size = known->second;
    trusted = verified_at_.contains(id);
  }
  const std::uint64_t begin = std::min(offset_bytes, chunk_size);
  const auto size =
      static_cast<std::size_t>(std::min<std::uint64_t>(size_bytes, chunk_size - begin));
  if (trusted && size < chunk_size) {
    if (const auto file = disk_.open(path_of(id), Disk::Mode::kRead)) {
      Buffer part = Buffer::allocate(size);
      const auto read = (*file)->read_at(begin, part.mutable_view());
      if (read && *read == size) return part;
    }
  }
  FM_TRY(const Buffer whole, get(id));
  if (begin + size > whole.size()) return Errc::kCorruptChunk;
  return whole.slice(begin, size);
}

std::vector<bool> ChunkFiles::has(std::span<const ChunkId> ids) const {
  std::vector<bool> out;
  out.reserve(ids.size());
  const MutexLock lock(mutex_);
  for (const ChunkId& id : ids) out.push_back(sizes_.contains(id));
  return out;
}

std::vector<ChunkId> ChunkFiles::list() const {
  const MutexLock lock(mutex_);
  std::vector<ChunkId> out;
  out.reserve(sizes_.size());
  for (const auto& [id, size] : sizes_) out.push_back(id);
  std::ranges::sort(out);
  return out;
}

ChunkStats ChunkFiles::stats() const {
  const MutexLock lock(mutex_);
  ChunkStats stats = stats_;
  stats.count = sizes_.size();
  return stats;
}

}  // namespace fermata::serverd
