// Listings. A stream reads a window of consecutive names, usually the whole directory as of one
// moment, so names that others add or remove meanwhile can neither hide nor double another one.
//
// The kernel's cookies: 1 is after ".", 2 after "..", and n + 2 after the entry with cookie n.
#include <fcntl.h>

#include "common/access/access.h"
#include "mountd/fs/attributes.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {
constexpr std::uint64_t kDots = 2;
constexpr std::uint32_t kPageBytes = 256u << 10;
constexpr std::size_t kWindowMax = 200'000;  // names; larger directories are read in several

Cookie server_cookie(std::uint64_t kernel) { return Cookie(kernel > kDots ? kernel - kDots : 0); }

std::size_t first_after(const Listing& listing, Cookie cookie) {
  const auto at =
      std::upper_bound(listing.items.begin(), listing.items.end(), cookie,
                       [](Cookie value, const Listing::Item& item) { return value < item.cookie; });
  return static_cast<std::size_t>(at - listing.items.begin());
}
}  // namespace

void FileSystem::opendir(Ctx ctx, NodeHandle node, int flags, OpenReply reply) {
  if (!table_.inode_of(node)) return reply.error(ESTALE);
  if (!options_.identity.squashes(ctx.uid)) return reply.opened(open_directory(flags));
  auto task = check_squashed(at(reply), cred(ctx), node, kMayRead, true);
  run_request(ctx, std::move(reply), std::move(task),
              [this, flags](OpenReply& to) { to.opened(open_directory(flags)); });
}

OpenResult FileSystem::open_directory(int flags) {
  OpenResult result;
  result.fh = next_handle_.fetch_add(1);
  {
    MutexLock lock(handles_mutex_);
    const auto made = std::make_shared<DirHandle>();
    made->counts_reads = (flags & O_NOATIME) == 0;
    dirs_.emplace(result.fh, made);
  }
  return result;
}

void FileSystem::releasedir(Ctx, NodeHandle, std::uint64_t fh, StatusReply reply) {
  {
    MutexLock lock(handles_mutex_);
    dirs_.erase(fh);
  }
  reply.ok();
}

// Every change of the namespace is on a majority of disks before it is answered, but for files that
// were made here and not committed yet.
void FileSystem::fsyncdir(Ctx ctx, NodeHandle node, std::uint64_t, bool, StatusReply reply) {
  const auto directory = table_.inode_of(node);
  if (!directory || table_.unsent_in(*directory).empty()) return reply.ok();
  auto task = sync_names(at(reply), *directory);
  run_request(ctx, std::move(reply), std::move(task), [](StatusReply& to) { to.ok(); });
}

bool FileSystem::window_has(DirHandle& handle, InodeId directory, std::uint64_t cookie) {
  if (cookie == 0) {
    auto listing = table_.listing(directory);
    MutexLock lock(handle.mutex);
    handle.window = std::move(listing);
    handle.window_after = Cookie{};
    handle.window_ends = true;
    return handle.window != nullptr;
  }
  const Cookie after = server_cookie(cookie);
  MutexLock lock(handle.mutex);
  if (!handle.window || after < handle.window_after) return false;
  return handle.window_ends ||
         (!handle.window->items.empty() && after < handle.window->items.back().cookie);
}

void FileSystem::readdir(Ctx ctx, NodeHandle node, std::uint64_t fh, std::uint64_t cookie,
                         DirReply reply) {
  std::shared_ptr<DirHandle> handle;
  {
    MutexLock lock(handles_mutex_);
    const auto found = dirs_.find(fh);
    if (found != dirs_.end()) handle = found->second;
  }
  const auto view = table_.find(node);
  if (!view || !handle) return reply.error(view ? EBADF : ESTALE);
  if (cookie == 0 && handle->counts_reads) note_read(view->inode);
  if (view->attr_known && window_has(*handle, view->inode, cookie)) {
    return fill_reply(reply, *view, *handle, cookie);
  }
  auto task = load_window(at(reply), cred(ctx), node, handle, cookie, reply.plus());
  run_request(ctx, std::move(reply), std::move(task), [this, node, handle, cookie](DirReply& to) {
    const auto now = table_.find(node);
    if (!now) return to.error(ESTALE);
    fill_reply(to, *now, *handle, cookie);
  });
}

Task<void> FileSystem::load_window(LoopContext& at, Credentials who, NodeHandle node,
                                   std::shared_ptr<DirHandle> handle, std::uint64_t cookie,
                                   bool plus) {
  const auto directory = table_.inode_of(node);
  if (!directory) co_return from_errno(ESTALE);
  FM_CO_CHECK(co_await send_names(at, *directory));
  const auto token = table_.begin_listing(*directory);
  const Cookie start = server_cookie(cookie);
  auto listing = std::make_shared<Listing>();
  bool leased = true;
  bool end = false;
  Cookie after = start;
  while (!end && listing->items.size() < kWindowMax) {
    auto page = co_await at.client->readdir(who, *directory, after, kPageBytes, plus);
    if (!page) {
      if (!means_gone(page.error())) co_return page.error();
      leased = false;  // removed while open: it lists as empty
      break;
    }
    end = page->end || page->entries.empty();
    leased = leased && page->entries_leased;
    if (!listing->stamp || page->stamp < listing->stamp) listing->stamp = page->stamp;
    table_.apply(page->directory, page->stamp, page->directory_leased);
    for (auto& entry : page->entries) {
      if (entry.attr) table_.apply(*entry.attr, page->stamp, entry.leased);
      table_.set_entry(*directory, entry.name, entry.inode, page->stamp, page->entries_leased,
                       NodeTable::By::kRead);
      after = entry.cookie;
      listing->items.push_back({std::move(entry.name), entry.inode, entry.type, entry.cookie});
    }
  }
  if (leased && end && start == Cookie{}) table_.keep_listing(*directory, token, listing);
  MutexLock lock(handle->mutex);
  handle->window = std::move(listing);
  handle->window_after = start;
  handle->window_ends = end || !leased;
  if (!end && handle->window->items.size() >= kWindowMax) handle->window_ends = false;
  co_return Status{};
}

void FileSystem::fill_reply(DirReply& reply, const View& directory, DirHandle& handle,
                            std::uint64_t cookie) {
  std::shared_ptr<const Listing> window;
  {
    MutexLock lock(handle.mutex);
    window = handle.window;
  }
  const bool plus = reply.plus();
  const auto add = [&](std::string_view name, InodeId inode, FileType type, std::uint64_t next) {
    const DirEntry entry{name, inode.value(), mode_type(type), next};
    if (!plus) return reply.add(entry);
    Entry attributes;
    const bool dot = next <= kDots;
    NodeTable::Found found;
    if (!dot) found = table_.lookup(directory.inode, name);
    // The name may lead elsewhere by now; what this listing says of it stays as it was.
    const bool known = found.known == NodeTable::Known::kPresent;
    const bool same = known && found.child.inode == inode;
    if (same) {
      attributes = entry_of(found.child);
      attributes.entry_timeout = entry_timeout(directory.inode, true);
    }
    const bool added = reply.add(entry, attributes);
    if (known && !(same && added)) forget(found.child.node, 1);
    return added;
  };
  const InodeId parent = directory.attr.parent ? directory.attr.parent : directory.inode;
  if (cookie < 1 && !add(".", directory.inode, FileType::kDirectory, 1)) return reply.done();
  if (cookie < 2 && !add("..", parent, FileType::kDirectory, 2)) return reply.done();
  if (window) {
    for (auto i = first_after(*window, server_cookie(cookie)); i < window->items.size(); ++i) {
      const auto& item = window->items[i];
      if (!add(item.name, item.inode, item.type, item.cookie.value() + kDots)) break;
    }
  }
  reply.done();
}

}  // namespace fermata::mountd
