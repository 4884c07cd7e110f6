// The content under a lock: who takes one sees the newest version, in the copy that it has open.
#include <spdlog/spdlog.h>

#include "mountd/cache/counted.h"
#include "mountd/fs/fetch.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {

// The open copy becomes the newest version, under its users' feet. Local work that no commit has
// taken stays: then the last close wins, as without locks.
Task<void> FileSystem::update_in_place(LoopContext& at, Credentials who, FilePtr file) {
  CachePin copy;
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
  }
  auto view = table_.find(file->node);
  const auto is_newest = [&] {
    return view && copy && view->attr_valid && view->attr.version == copy->base() &&
           !copy->updating();
  };
  if (is_newest()) co_return fermata::Status{};
  const Counted asked(file->updates_asked);
  FM_CO_TRY(const auto still, co_await file->content_gate.enter());
  FM_CO_TRY(const auto pass, co_await file->gate.enter());
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
  }
  view = table_.find(file->node);
  if (!copy || !view || copy->conflict() || file->sticky.load()) co_return fermata::Status{};
  if (view->attr_known && view->attr.nlink == 0) co_return fermata::Status{};
  if (is_newest()) co_return fermata::Status{};
  FM_CO_TRY(auto newest, co_await at.client->open(who, file->inode, copy->base()));
  table_.apply(newest.attr, newest.stamp, newest.leased);
  if (newest.attr.version == copy->base()) co_return fermata::Status{};
  if (!copy->complete()) FM_CO_CHECK(co_await wait_filled(at, file, copy));

  const auto look = [copy]() -> Result<bool> {
    if (copy->updating()) return false;  // what an update that failed left is nobody's work
    return copy->surely_modified();
  };
  FM_CO_TRY(const bool modified, co_await blocking<bool>(*at.env, look));
  if (modified) {
    spdlog::warn(
        "inode {}: written without the lock while others committed: it is not brought up "
        "to version {}",
        file->inode.value(), newest.attr.version.value());
    file->sticky = true;
    co_return fermata::Status{};
  }
  const auto content = std::make_shared<const FileContent>(std::move(newest.content));
  const auto updated = co_await update_copy(*at.env, *at.client, copy, newest.attr, content);
  if (!updated && updated.error() == std::errc::text_file_busy) {
    file->sticky = true;  // written to without the lock, just now
    co_return fermata::Status{};
  }
  if (!updated) co_return updated.error();

  const auto backing = copy->stat();
  {
    MutexLock lock(file->mutex);
    if (backing) file->times.settle(backing->mtime_ns);
    file->page_cache_version = {};
  }
  count("updated in place");
  NodeTable::Invalidation stale;
  if (table_.committed(file->node, newest.attr.version)) {
    stale = table_.expire_names(file->inode);
  }
  Notifier::Item pages;
  pages.kind = Notifier::Kind::kInvalidateInode;
  pages.node = file->node;
  pages.offset_bytes = 0;
  stale.items.push_back(std::move(pages));
  co_await invalidate(std::move(stale));
  co_return fermata::Status{};
}

}  // namespace fermata::mountd
