// What the cluster takes back: caches here and in the kernel are dropped before the answer.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;

namespace {
/// Without epochs the kernel asks about every name each time (entry timeouts are 0), and expiring
/// one could wait for a directory that a request of another mount holds while it waits for us.
void drop_names(NodeTable::Invalidation& what) {
  std::erase_if(what.items, [](const Notifier::Item& item) {
    return item.kind != Notifier::Kind::kInvalidateInode;
  });
}
}  // namespace

asio::awaitable<void> FileSystem::invalidate(NodeTable::Invalidation what) {
  if (!epoch_.load()) drop_names(what);
  Notifier* notifier = notifier_.load();
  FuseSession* fuse = fuse_.load();
  if (notifier == nullptr || fuse == nullptr) co_return;
  if (what.all_entries && epoch_.load()) (void)fuse->invalidate_all_entries();
  if (what.items.empty()) co_return;
  const auto done = std::make_shared<Signal>(co_await asio::this_coro::executor);
  notifier->invalidate(std::move(what.items), [done] { done->set({}); });
  co_await done->wait();
}

void FileSystem::invalidate_later(NodeTable::Invalidation what) {
  if (!epoch_.load()) drop_names(what);
  Notifier* notifier = notifier_.load();
  FuseSession* fuse = fuse_.load();
  if (notifier == nullptr || fuse == nullptr) return;
  if (what.all_entries && epoch_.load()) (void)fuse->invalidate_all_entries();
  if (!what.items.empty()) notifier->invalidate(std::move(what.items), [] {});
}

asio::awaitable<CallbackReply> FileSystem::on_callback(CallbackRequest request) {
  LoopContext& here = loops_.front();
  // What was made in a directory is the cluster's before anybody else looks there.
  const auto had_alone = table_.begin_call_back(request);
  std::vector<std::shared_ptr<Signal>> waiters;
  for (const auto& item : request.items) {
    auto under_way = handing_over_.find(item.inode);
    const bool starts = under_way == handing_over_.end();
    if (starts && !std::ranges::count(had_alone, item.inode)) continue;
    if (starts) under_way = handing_over_.try_emplace(item.inode).first;
    waiters.push_back(std::make_shared<Signal>(here.env->executor()));
    under_way->second.push_back(waiters.back());
    if (starts) background(here, "hand over", hand_over(here, item.inode));
  }
  for (const auto& waiter : waiters) {
    const std::error_code given_up = co_await waiter->wait();
    if (given_up) co_return CallbackReply{};  // nobody hears it
  }
  auto dropped = table_.call_back(request);
  CallbackReply reply;
  reply.open = dropped.open;
  // Before the mount there are no copies in use, and no cache yet.
  for (const auto& item : fuse_.load() != nullptr ? request.items : decltype(request.items)()) {
    const bool open =
        std::find(reply.open.begin(), reply.open.end(), item.inode) != reply.open.end();
    if (!item.asks_open || open) continue;
    // Its last name goes: nobody can want its copies.
    co_await forget_copies(here, item.inode);
  }
  co_await invalidate(std::move(dropped));
  for (const auto& recall : request.recalls) begin_hand_back(recall.inode, recall.space);
  co_return reply;
}

void FileSystem::end_former_session(const SessionFile::Mark& mark) {
  LoopContext& loop = loops_.front();
  background_on(loop.index, "end former session",
                [&loop, mark] { return end_session_of(loop, mark); });
}

asio::awaitable<void> FileSystem::end_session_of(LoopContext& at, SessionFile::Mark mark) {
  const auto ended = co_await at.client->close_session(mark.session, mark.epoch);
  if (ended) {
    spdlog::info("session {} of an earlier run with this cache is ended", mark.session.value());
  } else {
    spdlog::warn("session {} of an earlier run with this cache ends with its lease: {}",
                 mark.session.value(), ended.error().message());
  }
}

asio::awaitable<void> FileSystem::note_session(LoopContext& at, SessionId session) {
  if (store_ == nullptr) co_return;  // not mounted yet
  const SessionFile file(store_->dir());
  const SessionFile::Mark mark{session, session_.epoch()};
  const auto job = [file, mark] { return file.save(mark); };
  const auto saved = co_await blocking<void>(*at.env, job);
  if (!saved) spdlog::warn("the session cannot be noted: {}", saved.error().message());
}

asio::awaitable<void> FileSystem::on_leases_void(Stamp) {
  // The stamps make everything here invalid; only the kernel has to be told.
  co_await invalidate(table_.everything());
}

asio::awaitable<void> FileSystem::on_new_session(SessionId fresh) {
  LoopContext& here = loops_.front();
  co_await note_session(here, fresh);
  co_await lose_all_of_others(here, fresh);
  std::size_t fenced = 0;
  std::size_t unlocked = 0;
  locks_.forget_delegations_but_of(fresh);
  for (const auto& file : table_.held_files()) {
    CachePin copy;
    {
      MutexLock lock(file->mutex);
      copy = file->copy;
      if (locks_.lost_exclusive(file->inode, fresh)) {
        file->lock_lost = true;
        ++unlocked;
      }
    }
    if (!copy) continue;
    bool dirty = file->sticky.load();
    if (!dirty) {
      const auto job = [copy] { return copy->is_modified(); };
      const auto modified = co_await blocking<bool>(*here.env, job);
      dirty = !modified || *modified;
    }
    if (!dirty) continue;
    MutexLock lock(file->mutex);
    file->fenced = true;
    ++fenced;
  }
  if (unlocked != 0) {
    spdlog::warn(
        "the session was over: write locks on {} files are lost, what was written under "
        "them and not committed is kept as a conflict",
        unlocked);
  }
  if (fenced != 0) {
    spdlog::warn(
        "the session was over: {} files with local changes are committed by session {} "
        "only if nobody else wrote them",
        fenced, fresh.value());
  }
  co_await invalidate(table_.everything());
}

}  // namespace fermata::mountd
