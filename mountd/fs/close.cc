// Release: the last word of a file's writers, and mappings that outlive them.
#include <spdlog/spdlog.h>

#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;

std::shared_ptr<FileSystem::Handle> FileSystem::handle(std::uint64_t fh) {
  MutexLock lock(handles_mutex_);
  const auto found = handles_.find(fh);
  return found == handles_.end() ? nullptr : found->second;
}

std::shared_ptr<FileSystem::Handle> FileSystem::remove_handle(std::uint64_t fh) {
  MutexLock lock(handles_mutex_);
  const auto found = handles_.find(fh);
  if (found == handles_.end()) return nullptr;
  auto removed = std::move(found->second);
  handles_.erase(found);
  return removed;
}

void FileSystem::release(Ctx, NodeHandle, const ReleaseRequest& request, StatusReply reply) {
  LoopContext& loop = at(reply);
  if (const auto open = handle(request.fh); open && open->file->locks->asked.load()) {
    release_locks(loop, open, request);
  }
  close_handle(loop, request.fh);
  reply.ok();
}

// Runs on the loop `at`. The handle's hold goes on to close_writer() or is given back here.
void FileSystem::close_handle(LoopContext& at, std::uint64_t fh) {
  const auto closed = remove_handle(fh);
  if (!closed) return;
  const FilePtr file = closed->file;
  if (closed->writable && closed->mode == IoMode::kPassthrough) passthrough_writers_.fetch_sub(1);
  if (closed->counts_reads && wants_read(file->inode)) note_backing_read(*file);
  bool last = false;
  {
    MutexLock lock(file->mutex);
    last = --file->opens == 0;
  }
  if (last) expect_hand_back(at, file->inode);
  const bool last_writer = closed->writable && file->writers.fetch_sub(1) == 1;
  if (last_writer) {
    const bool tracked = closed->mode == IoMode::kOrdinary;
    const auto syncs = file->syncs.load();
    if (sync_history_.note_opening(file->inode, syncs, file->writes.load(), tracked))
      background(at, "save sync history", save_sync_history(at));
    background(at, "close writer", close_writer(at, file));
    return;
  }
  const auto view = last ? table_.find(file->node) : std::nullopt;
  if (view && view->attr_known && view->attr.nlink == 0 && file->writers.load() == 0) {
    background(at, "close unlinked", close_writer(at, file));  // lets the orphan and its copy go
    return;
  }
  unhold(file);
}

// After the last writable open: commits what came after the last flush, and sees whether a mapping
// lives on that can write more (docs/FUSE.md rule 5). Owns one hold.
asio::awaitable<void> FileSystem::close_writer(LoopContext& at, FilePtr file) {
  struct Probe {
    bool modified = false;
    bool writable_users = false;
  };
  Hold hold(this, file);
  constexpr int kRounds = 4;
  for (int round = 0; round < kRounds; ++round) {
    auto still = co_await file->content_gate.enter();
    if (!still) co_return;
    auto pass = co_await file->gate.enter();
    if (!pass || file->writers.load() != 0) co_return;
    CachePin copy;
    bool passthrough = false;
    {
      MutexLock lock(file->mutex);
      copy = file->copy;
      passthrough = file->mode == IoMode::kPassthrough;
    }
    if (!copy) co_return;
    const auto job = [copy, passthrough]() -> Result<Probe> {
      Probe out;
      if (passthrough) {
        FM_TRY(out.writable_users, copy->has_writable_users());
      }
      FM_TRY(out.modified, copy->is_modified());  // last: what a mapping that just went has stored
      if (out.modified && !out.writable_users) {
        FM_TRY(const bool clean, copy->settle_closed());
        out.modified = !clean;
      } else if (!out.modified) {
        FM_CHECK(copy->settle_digests());
      }
      return out;
    };
    const auto probe = co_await blocking<Probe>(*at.env, job);
    const bool users = probe && probe->writable_users;
    if (users && !file->mapped.exchange(true)) {
      const auto watch = mapped_.add(copy->data_path(), [this, file] { on_mapping_closed(file); });
      if (watch) {
        file->holds.fetch_add(1);
        {
          MutexLock lock(file->mutex);
          file->watch = *watch;
        }
        continue;  // it may have gone before the watch was there: look again
      }
      file->mapped = false;
      file->sticky = true;
      spdlog::error("inode {}: a writable mapping outlives its close and cannot be watched: {}",
                    file->inode.value(), watch.error().message());
    } else if (!users && file->mapped.exchange(false)) {
      {
        MutexLock lock(file->mutex);
        mapped_.remove(std::exchange(file->watch, -1));
      }
      unhold(file);
    }
    {
      MutexLock lock(file->mutex);
      if (file->naming.load() != 0) co_return;  // who gives it a name comes here again
      file->let_go = file->linkable.load() && !users;
    }
    const auto view = table_.find(file->node);
    const bool unlinked = view && view->attr_known && view->attr.nlink == 0;
    if (unlinked) {
      if (!users && detach_copy(file)) {
        const bool lost = file->lost.load() != 0;
        if (!lost) release_orphan(file->inode);
        file->sticky = false;
        if (!lost && !copy->conflict()) copy->discard();  // else people want it
        co_return;
      }
      MutexLock lock(file->mutex);
      file->let_go = false;
      co_return;
    }
    if (!probe) co_return;
    if (!probe->modified && !file->unsent.load()) {
      const bool lost = locks_.lost_exclusive(file->inode, session_.id());
      MutexLock lock(file->mutex);
      if (users || file->writers.load() != 0) co_return;
      if (!lost) file->lock_lost = false;
      if (!file->commit_running) file->sticky = false;
      if (!file->sticky.load()) copy->note_closed();
      co_return;
    }
    pass->release();
    still->release();
    const auto committed = co_await commit(at, file, 0);
    if (!committed) co_return;
  }
}

void FileSystem::on_mapping_closed(const FilePtr& file) {
  if (!file->mapped.load()) return;
  file->holds.fetch_add(1);  // the mapping has one, so it was not idle
  LoopContext& loop = loops_.front();
  background_on(loop.index, "mapping closed",
                [this, &loop, file] { return close_writer(loop, file); });
}

}  // namespace fermata::mountd
