#include "mountd/fuse/notifier.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "mountd/fuse/fuse_session.h"

namespace fermata::mountd {
namespace {

using SteadyTime = std::chrono::steady_clock::time_point;

struct Batch {
  std::atomic<int> parts_left{0};  ///< names as one part, pages as another
  std::atomic<bool> names_done{false};
  std::function<void()> done;
  SteadyTime overtake_at;

  void finish_part() {
    if (parts_left.fetch_sub(1, std::memory_order_acq_rel) == 1) done();
  }
  void finish_names() {
    if (!names_done.exchange(true)) finish_part();
  }
};

struct Job {
  std::shared_ptr<Batch> batch;
  std::vector<Notifier::Item> items;
};

bool is_name(const Notifier::Item& item) { return item.kind != Notifier::Kind::kInvalidateInode; }

}  // namespace

struct Notifier::State {
  State(FuseSession& s, Granted g) : session(s), granted(std::move(g)) {}
  void run_names();
  void run_pages();
  void run_patience();
  /// False: it is of a node that the kernel does not know yet.
  bool perform(const Item& item);
  void perform_late(const Item& item);

  FuseSession& session;
  const Granted granted;
  std::mutex mutex;
  std::condition_variable names_ready, pages_ready, watch_ready;
  std::deque<Job> names, pages;
  std::deque<std::shared_ptr<Batch>> watched;  ///< oldest first
  std::atomic<bool> stopping{false};           ///< set under the mutex
  std::atomic<std::uint64_t> batch_count{0}, epoch_count{0};
  std::thread names_thread, pages_thread, watch_thread;
};

bool Notifier::State::perform(const Item& item) {
  Status status;
  switch (item.kind) {
    case Kind::kExpireEntry:
      status = session.expire_entry(item.node, item.name);
      break;
    case Kind::kInvalidateEntry:
      status = session.invalidate_entry(item.node, item.name);
      break;
    case Kind::kDeleteEntry:
      status = session.delete_entry(item.node, item.child, item.name);
      break;
    case Kind::kInvalidateInode: {
      const auto known = session.invalidate_inode(item.node, item.offset_bytes, item.size_bytes);
      if (!known) status = known.error();
      if (known && !*known && granted && granted(item.node)) return false;
      break;
    }
  }
  // ENOTEMPTY and EBUSY: a directory in use, which the kernel keeps but has expired.
  if (!status && status.error() != std::errc::directory_not_empty &&
      status.error() != std::errc::device_or_resource_busy) {
    spdlog::warn("fuse: the kernel refused to invalidate '{}' of node {}: {}", item.name,
                 static_cast<std::uint64_t>(item.node), status.error().message());
  }
  return true;
}

// The process only has to run, or the FORGET to be read.
void Notifier::State::perform_late(const Item& item) {
  constexpr auto kPause = std::chrono::microseconds(200);
  constexpr auto kAtMost = std::chrono::seconds(5);
  const auto until = std::chrono::steady_clock::now() + kAtMost;
  while (!perform(item) && !stopping.load()) {
    if (std::chrono::steady_clock::now() > until) {
      spdlog::warn("fuse: node {} was granted {} s ago and the kernel does not know it",
                   static_cast<std::uint64_t>(item.node), kAtMost.count());
      return;
    }
    std::this_thread::sleep_for(kPause);
  }
}

void Notifier::State::run_names() {
  std::unique_lock lock(mutex);
  for (;;) {
    names_ready.wait(lock, [&] { return stopping || !names.empty(); });
    if (names.empty()) return;
    auto job = std::move(names.front());
    names.pop_front();
    lock.unlock();
    for (const auto& item : job.items) perform(item);
    job.batch->finish_names();
    job = {};
    lock.lock();
  }
}

void Notifier::State::run_pages() {
  std::unique_lock lock(mutex);
  for (;;) {
    pages_ready.wait(lock, [&] { return stopping || !pages.empty(); });
    if (pages.empty()) return;
    auto job = std::move(pages.front());
    pages.pop_front();
    lock.unlock();
    for (const auto& item : job.items) perform_late(item);
    job.batch->finish_part();
    job = {};
    lock.lock();
  }
}

void Notifier::State::run_patience() {
  std::unique_lock lock(mutex);
  for (;;) {
    watch_ready.wait(lock, [&] { return stopping || !watched.empty(); });
    if (watched.empty()) return;
    const auto oldest = watched.front();
    if (!stopping && !oldest->names_done.load() &&
        std::chrono::steady_clock::now() < oldest->overtake_at) {
      watch_ready.wait_until(lock, oldest->overtake_at, [&] { return stopping.load(); });
      continue;
    }
    if (oldest->names_done.load()) {
      watched.pop_front();
      continue;
    }
    // One epoch serves every batch that was handed in before it.
    std::deque<std::shared_ptr<Batch>> overtaken;
    overtaken.swap(watched);
    lock.unlock();
    if (session.invalidate_all_entries()) {
      epoch_count.fetch_add(overtaken.size());
      for (const auto& batch : overtaken) batch->finish_names();
    }  // else each is done when its precise calls are
    overtaken.clear();
    lock.lock();
  }
}

Notifier::Notifier(FuseSession& session, Granted granted)
    : state_(std::make_unique<State>(session, std::move(granted))) {
  auto* state = state_.get();
  state->names_thread = std::thread([state] { state->run_names(); });
  state->pages_thread = std::thread([state] { state->run_pages(); });
  state->watch_thread = std::thread([state] { state->run_patience(); });
}

Notifier::~Notifier() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->names_ready.notify_all();
  state_->pages_ready.notify_all();
  state_->watch_ready.notify_all();
  state_->names_thread.join();
  state_->pages_thread.join();
  state_->watch_thread.join();
}

void Notifier::invalidate(std::vector<Item> items, std::function<void()> done) {
  state_->batch_count.fetch_add(1);
  Job names, pages;
  for (auto& item : items) {
    if (is_name(item)) {
      names.items.push_back(std::move(item));
    } else if (item.offset_bytes >= 0 || !state_->perform(item)) {  // attributes take no lock
      pages.items.push_back(std::move(item));
    }
  }
  auto batch = std::make_shared<Batch>();
  batch->done = std::move(done);
  batch->overtake_at = std::chrono::steady_clock::now() + kPatience;
  // Too many for one call each: the epoch first, and nothing is left to be precise about.
  if (names.items.size() > kBatchPrecise && state_->session.invalidate_all_entries()) {
    state_->epoch_count.fetch_add(1);
    names.items.clear();
  }
  const bool has_names = !names.items.empty();
  const bool has_pages = !pages.items.empty();
  if (!has_names && !has_pages) return batch->done();
  batch->parts_left = (has_names ? 1 : 0) + (has_pages ? 1 : 0);
  {
    std::lock_guard lock(state_->mutex);
    if (has_names) {
      names.batch = batch;
      state_->names.push_back(std::move(names));
      if (state_->session.has_epoch()) state_->watched.push_back(batch);
    }
    if (has_pages) {
      pages.batch = batch;
      state_->pages.push_back(std::move(pages));
    }
  }
  if (has_names) {
    state_->names_ready.notify_one();
    state_->watch_ready.notify_one();
  }
  if (has_pages) state_->pages_ready.notify_one();
}

Notifier::Counters Notifier::counters() const {
  return {state_->batch_count.load(), state_->epoch_count.load()};
}

}  // namespace fermata::mountd
