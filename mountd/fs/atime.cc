// Access times: noted here, shown here at once, and told to the cluster some time later, many at
// once. What is lost when the client dies is a second of them.
//
// The daemon sees directories listed, symlinks read and the reads that it serves. Reads that bypass
// it show in the backing file's own atime, which the kernel keeps by the cache's filesystem's own
// rule; the daemon's reads of it are O_NOATIME.
#include "mountd/fs/attributes.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;

Timestamp FileSystem::wall_time() const { return from_ns(loops_.front().env->clock().wall_ns()); }

bool FileSystem::wants_read(InodeId inode) {
  if (options_.atime == AtimeRule::kNever || options_.read_only) return false;
  return table_.wants_read(inode, wall_time(), options_.atime);
}

void FileSystem::note_read(InodeId inode) {
  constexpr std::size_t kPendingMax = 100'000;
  if (options_.atime == AtimeRule::kNever || options_.read_only) return;
  if (!table_.note_read(inode, wall_time(), options_.atime)) return;
  {
    MutexLock lock(reads_mutex_);
    if (reads_.size() >= kPendingMax) return;
    reads_.insert(inode);
    if (std::exchange(reads_running_, true)) return;
  }
  LoopContext& loop = loops_.front();
  background_on(loop.index, "note reads", [this, &loop] { return send_reads_later(loop); });
}

void FileSystem::note_backing_read(FileState& file) {
  CachePin copy;
  {
    MutexLock lock(file.mutex);
    if (file.mode != IoMode::kPassthrough) return;
    copy = file.copy;
  }
  if (!copy) return;
  const auto backing = copy->stat();
  if (!backing) return;
  {
    MutexLock lock(file.mutex);
    if (!(file.copy == copy) || file.atime_base_ns == backing->atime_ns) return;
    // Under the lock: who finds the base moved finds the read noted too.
    note_read(file.inode);
    file.atime_base_ns = backing->atime_ns;
  }
  if (options_.atime == AtimeRule::kAlways) expect_reads(file);
}

void FileSystem::expect_reads(FileState& file) {
  CachePin copy;
  {
    MutexLock lock(file.mutex);
    copy = file.copy;
  }
  if (!copy || !copy->arm_access_time()) return;
  const auto backing = copy->stat();
  if (!backing) return;
  MutexLock lock(file.mutex);
  if (file.copy == copy) file.atime_base_ns = backing->atime_ns;
}

asio::awaitable<void> FileSystem::send_reads_later(LoopContext& at) {
  constexpr auto kDelay = std::chrono::seconds(1);
  while (true) {
    const auto ended = co_await at.env->sleep_for(kDelay);
    if (ended) co_return;
    co_await send_reads(at);
    MutexLock lock(reads_mutex_);
    if (!reads_.empty()) continue;
    reads_running_ = false;
    co_return;
  }
}

asio::awaitable<void> FileSystem::send_reads_now(LoopContext& at, std::shared_ptr<Signal> done) {
  co_await send_reads(at);
  done->set({});
}

asio::awaitable<void> FileSystem::send_reads(LoopContext& at) {
  const Credentials nobody;
  while (true) {
    std::vector<InodeId> inodes;
    {
      MutexLock lock(reads_mutex_);
      while (!reads_.empty() && inodes.size() < NoteReadsOp::kReadsMax) {
        inodes.push_back(*reads_.begin());
        reads_.erase(reads_.begin());
      }
    }
    if (inodes.empty()) co_return;
    NoteReadsOp op;
    op.reads = table_.noted_reads(inodes);
    if (op.reads.empty()) continue;
    Mutation mutation = std::move(op);
    // An error loses them: that is all there is to it.
    (void)co_await at.client->mutate(nobody, std::move(mutation));
  }
}

}  // namespace fermata::mountd
