// What quotas leave, as far as a mount can tell before the commit.
//
// The nodes decide, when a file is committed. So that a program hears of it while it writes, and
// not at its close only, the mount asks now and then what a file that grows may still take, and
// refuses what goes beyond: EDQUOT at the call. What others write meanwhile, and what fills holes,
// is for the commit to find.
#include <algorithm>

#include "common/base/limits.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {
constexpr auto kAskedFor = std::chrono::seconds(1);
constexpr std::uint64_t kPage = 4096;

bool fits(FileState& file, CachedCopy& copy, std::uint64_t offset, std::uint64_t size) {
  const std::uint64_t allocated_max = file.allocated_max_bytes.load();
  if (allocated_max == UINT64_MAX) return true;
  const auto backing = copy.stat();
  if (!backing || offset + size <= backing->size_bytes) return true;
  const std::uint64_t more = offset + size - std::max(offset, backing->size_bytes);
  // What the cache's filesystem has allocated ahead of the end is not the file's.
  const std::uint64_t allocated = std::min(backing->allocated_bytes, backing->size_bytes);
  return allocated + more <= allocated_max;
}
}  // namespace

void FileSystem::note_quotas_changed() {
  session_.note_quotas(true);  // the next renewal knows better
  quotas_changed_at_ = loops_.front().env->now().time_since_epoch().count();
  MutexLock lock(statfs_mutex_);
  statfs_within_.clear();
}

bool FileSystem::fits_quotas(LoopContext& at, const std::shared_ptr<Handle>& handle,
                             std::uint64_t offset, std::uint64_t size) {
  if (!session_.has_quotas()) return true;
  // Small files are not worth a question: their close answers.
  if (offset + size <= kInlineBytesMax) return true;
  FileState& file = *handle->file;
  const Duration::rep now = at.env->now().time_since_epoch().count();
  Duration::rep asked = file.room_asked.load();
  const bool old = asked <= quotas_changed_at_.load() || now - asked > Duration(kAskedFor).count();
  if (old) file.allocated_max_bytes = UINT64_MAX;  // not known until it is answered
  if (old && file.room_asked.compare_exchange_strong(asked, now)) {
    file.holds.fetch_add(1);
    background(at, "room", ask_room_behind(at, handle->file));
  }
  return fits(file, *handle->copy, offset, size);
}

Task<bool> FileSystem::surely_fits_quotas(LoopContext& at, std::shared_ptr<Handle> handle,
                                          std::uint64_t offset, std::uint64_t size) {
  if (!session_.has_quotas() || offset + size <= kInlineBytesMax) co_return true;
  const auto max = co_await ask_allocated_max(at, handle->file);
  if (!max) co_return true;  // the commit will tell
  handle->file->allocated_max_bytes = *max;
  co_return fits(*handle->file, *handle->copy, offset, size);
}

Task<std::uint64_t> FileSystem::ask_allocated_max(LoopContext& at, FilePtr file) {
  const Credentials nobody;
  FM_CO_TRY(const auto reply, co_await at.client->statfs(nobody, file->inode));
  const auto view = table_.find(file->node);
  if (!view || !view->attr_known || reply.room_bytes == UINT64_MAX) co_return UINT64_MAX;
  const std::uint64_t counted = (view->attr.allocated_bytes + kPage - 1) / kPage * kPage;
  co_return counted + std::min(reply.room_bytes, kFileSizeMax);
}

// Owns one hold.
asio::awaitable<void> FileSystem::ask_room_behind(LoopContext& at, FilePtr file) {
  Hold hold(this, file);
  const auto max = co_await ask_allocated_max(at, file);
  if (max) file->allocated_max_bytes = *max;
}

}  // namespace fermata::mountd
