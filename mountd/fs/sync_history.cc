#include "mountd/fs/sync_history.h"

#include <utility>

#include "common/base/bytes.h"
#include "common/base/checksum.h"
#include "mountd/cache/posix_file.h"

namespace fermata::mountd {
namespace {

constexpr std::uint32_t kMagic = 0x48434d46;  // "FMCH"
constexpr std::uint32_t kFormatVersion = 1;

struct Header {
  std::uint32_t magic;
  std::uint32_t version;
  std::uint32_t checksum;  // of the inode ids
  std::uint32_t count;
};
static_assert(sizeof(Header) == 16);

}  // namespace

void SyncHistory::load(std::string path) {
  path_ = std::move(path);
  const auto bytes = posix::read_whole(path_, sizeof(Header) + kFilesMax * sizeof(std::uint64_t));
  if (!bytes || bytes->size() < sizeof(Header)) return;
  const auto header = load_le<Header>(bytes->data());
  const ByteView ids = ByteView(*bytes).subspan(sizeof header);
  if (header.magic != kMagic || header.version != kFormatVersion ||
      ids.size() != header.count * sizeof(std::uint64_t) || header.checksum != crc32c(ids)) {
    return;
  }
  const MutexLock lock(mutex_);
  for (std::size_t at = ids.size(); at >= sizeof(std::uint64_t); at -= sizeof(std::uint64_t))
    synced_.add(InodeId(load_le<std::uint64_t>(ids.data() + at - sizeof(std::uint64_t))));
}

Status SyncHistory::save() {
  if (path_.empty()) return {};
  const MutexLock order(save_mutex_);
  std::string ids;
  Header header{kMagic, kFormatVersion, 0, 0};
  {
    const MutexLock lock(mutex_);
    for (const InodeId inode : synced_.all()) append_le(ids, inode.value());
    header.count = static_cast<std::uint32_t>(synced_.all().size());
  }
  header.checksum = crc32c(as_bytes(ids));
  std::string file;
  append_le(file, header);
  return posix::replace_file(path_, as_bytes(file + ids), posix::Durability::kNone);
}

void SyncHistory::Files::add(InodeId inode) {
  remove(inode);
  files_.push_front(inode);
  places_.emplace(inode, files_.begin());
  if (files_.size() <= kFilesMax) return;
  places_.erase(files_.back());
  files_.pop_back();
}

bool SyncHistory::Files::remove(InodeId inode) {
  const auto known = places_.find(inode);
  if (known == places_.end()) return false;
  files_.erase(known->second);
  places_.erase(known);
  return true;
}

bool SyncHistory::note_opening(InodeId inode, std::uint64_t syncs, std::uint64_t writes,
                               bool tracked) {
  const bool synced = syncs >= kSyncsMin;
  const bool bulk = tracked && writes > kWritesPerSyncMax * (syncs + 1);
  if (!synced && !bulk) return false;
  const MutexLock lock(mutex_);
  if (bulk) {
    bulk_.add(inode);
    return synced_.remove(inode);
  }
  const bool news = !synced_.contains(inode);
  bulk_.remove(inode);
  synced_.add(inode);
  return news;
}

bool SyncHistory::wants_tracking(InodeId inode, std::uint64_t update_bytes) const {
  const MutexLock lock(mutex_);
  return synced_.contains(inode) || (update_bytes >= kLargeBytes && !bulk_.contains(inode));
}

}  // namespace fermata::mountd
