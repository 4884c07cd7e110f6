#include "serverd/service/chunk_fetcher.h"

#include <algorithm>
#include <utility>

#include "common/base/checksum.h"
#include "common/wire/message_codec.h"
#include "serverd/chunk/chunk_store.h"
#include "serverd/service/chunk_durability.h"
#include "serverd/service/peers.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr Duration kTick = 100ms;
constexpr Duration kBackoffMin = 200ms;
constexpr Duration kBackoffMax = 10s;
constexpr Duration kFetchTimeout = 10s;
constexpr std::size_t kCompareBatch = 512;
constexpr Duration kBetweenBatches = 1ms;
constexpr std::size_t kDeletesPerTick = 64;
constexpr Duration kSweepIntervalLow = 3s;
constexpr std::size_t kOfferMax = 500;
/// Announcements beyond this are dropped for a comparison of everything.
constexpr std::size_t kAnnouncedMax = 1 << 20;
}  // namespace

ChunkFetcher::ChunkFetcher(NodeContext& node) : node_(node), deletions_(node.env.executor()) {}

void ChunkFetcher::on_referenced(std::span<const ChunkId> ids) {
  if (announced_.size() + ids.size() > kAnnouncedMax) {
    announced_.clear();
    compare_wanted_ = true;
    return;
  }
  announced_.insert(announced_.end(), ids.begin(), ids.end());
}

void ChunkFetcher::on_dropped(std::span<const ChunkId> ids, LogIndex index) {
  const TimePoint now = node_.env.now();
  for (const ChunkId& id : ids) {
    if (const auto it = missing_.find(id); it != missing_.end() && !it->second.busy)
      missing_.erase(it);
    // What this process vouched for before its start it does not know. Offered again later.
    if (!caught_up_ || now - *caught_up_ < node_.config.chunk_start_grace) continue;
    const auto vouched = vouched_.find(id);
    if (vouched == vouched_.end() || vouched->second < index) to_delete_[id] = {index, now};
  }
}

void ChunkFetcher::compare_all() { compare_wanted_ = true; }

void ChunkFetcher::expect(ChunkId id) { missing_.try_emplace(id); }

void ChunkFetcher::repair(ChunkId id) {
  expect(id);
  missing_[id].damaged = true;
}

bool ChunkFetcher::vouch(ChunkId id, LogIndex as_of) {
  if (const auto doomed = to_delete_.find(id); doomed != to_delete_.end()) {
    if (doomed->second.ordered > as_of) return false;
    to_delete_.erase(doomed);
  }
  if (as_of > node_.ns->applied_index()) {
    LogIndex& newest = vouched_[id];
    newest = std::max(newest, as_of);
  }
  unnamed_.erase(id);
  return !deleting_.contains(id);
}

asio::awaitable<void> ChunkFetcher::deleted(ChunkId id) {
  while (deleting_.contains(id)) {
    if (const std::error_code stop = co_await deletions_.wait(); stop) co_return;
  }
}

bool ChunkFetcher::knows_newest() {
  node_.log->apply_now();
  const LogStatus status = node_.log->status();
  return status.primary && status.applied >= status.commit;
}

asio::awaitable<void> ChunkFetcher::run() {
  while (!node_.stopping) {
    if (!caught_up_ && knows_newest()) caught_up_ = node_.env.now();
    if (std::exchange(compare_wanted_, false)) co_await compare();
    look_for_new();
    if (node_.space->has_room_here()) start_fetches();
    co_await delete_due();
    // Asked each time: room may become scarce at any.
    const Duration interval = node_.space->low_here() ? kSweepIntervalLow : node_.config.chunk_pin;
    if (!sweeping_ && node_.env.now() - swept_ >= interval) {
      sweeping_ = true;
      node_.tasks.spawn("sweep chunks", sweep());
    }
    if (const std::error_code stop = co_await node_.env.sleep_for(kTick); stop) co_return;
  }
}

void ChunkFetcher::look_for_new() {
  const auto ids = std::exchange(announced_, {});
  const auto here = node_.chunks->has(ids);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (here[i] && !deleting_.contains(ids[i])) continue;
    auto references = node_.ns->chunk_references(ids[i]);
    if (references && *references != 0) expect(ids[i]);
  }
}

asio::awaitable<void> ChunkFetcher::compare() {
  ChunkId after;
  std::size_t seen = 0;
  const std::size_t before = missing_.size();
  while (!node_.stopping) {
    auto uses = node_.ns->chunk_uses(after, kCompareBatch);
    if (!uses || uses->empty()) break;
    std::vector<ChunkId> ids;
    for (const auto& use : *uses) {
      after = use.id;
      if (use.references != 0) ids.push_back(use.id);
    }
    const auto here = node_.chunks->has(ids);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (!here[i]) expect(ids[i]);
    }
    seen += ids.size();
    if (const std::error_code stop = co_await node_.env.sleep_for(kBetweenBatches); stop)
      co_return;  // others want to run, too
  }
  if (missing_.size() > before) {
    spdlog::info("node {}: {} of {} chunks are missing here and will be fetched",
                 node_.config.self.value(), missing_.size(), seen);
  }
}

void ChunkFetcher::start_fetches() {
  const TimePoint now = node_.env.now();
  std::vector<ChunkId> due;  // first all, then begin: a fetch may end, and leave the map, at once
  for (auto& [id, missing] : missing_) {
    if (busy_ >= node_.config.fetch_parallel) break;
    if (missing.busy || missing.not_before > now) continue;
    missing.busy = true;
    ++busy_;
    due.push_back(id);
  }
  for (const ChunkId& id : due) node_.tasks.spawn("fetch chunk", fetch_one(id));
}

asio::awaitable<void> ChunkFetcher::fetch_one(ChunkId id) {
  bool here = false;
  auto references = node_.ns->chunk_references(id);
  const bool wanted = !references || *references != 0;
  if (wanted) {
    co_await deleted(id);
    here = !missing_[id].damaged && node_.chunks->has(std::span(&id, 1))[0];
    if (!here) {
      const auto fetched = co_await fetch(id);
      here = fetched && fetched->stored;
    }
  }
  --busy_;
  const auto it = missing_.find(id);
  if (it == missing_.end()) co_return;
  if (here || !wanted) {
    missing_.erase(it);
    co_return;
  }
  it->second.busy = false;
  it->second.backoff = std::clamp(it->second.backoff * 2, kBackoffMin, kBackoffMax);
  it->second.not_before = node_.env.now() + it->second.backoff;
}

/// A full disk's reserve is not for what others have.
Task<void> ChunkFetcher::store(ChunkId id, Buffer bytes) {
  co_await deleted(id);
  if (node_.space->has_room_here()) {
    const SpaceGuard::Admission admission(*node_.space, bytes.size());
    const Status stored = co_await node_.chunks->put(id, bytes);
    if (!stored && stored.error() == std::errc::no_space_on_device) node_.space->note_no_space();
    co_return stored;
  }
  const auto check = [id, bytes]() -> Status {
    return chunk_id_of(bytes.view()) == id ? Status(std::errc::no_space_on_device)
                                           : Status(Errc::kHashMismatch);
  };
  co_return co_await blocking<void>(node_.env, check);
}

Task<ChunkFetcher::Fetched> ChunkFetcher::fetch(ChunkId id) {
  auto peers = node_.peers->others();
  if (!peers.empty()) {
    const auto first = static_cast<std::ptrdiff_t>(node_.env.random().below(peers.size()));
    std::rotate(peers.begin(), peers.begin() + first, peers.end());
  }
  std::error_code error = std::make_error_code(std::errc::no_such_file_or_directory);
  for (const NodeId peer : peers) {
    ChunkRequest message;
    message.id = id;
    Request request;
    request.method = static_cast<std::uint16_t>(Method::kGetChunk);
    request.body = encode(message);
    auto answer =
        co_await node_.peers->call(peer, Peers::Lane::kBulk, std::move(request), kFetchTimeout);
    if (!answer) {
      error = answer.error();
      continue;
    }
    Fetched fetched;
    fetched.bytes = std::move(answer->payload);
    const Status stored = co_await store(id, fetched.bytes);
    if (!stored && stored.error() == Errc::kHashMismatch) {
      error = stored.error();
      spdlog::warn("node {}: node {} sent other bytes for chunk {}", node_.config.self.value(),
                   peer.value(), id.hex());
      continue;
    }
    if (!stored && stored.error() != std::errc::no_space_on_device) co_return stored.error();
    fetched.stored = static_cast<bool>(stored);
    node_.count(stored ? "chunks_fetched" : "chunks_passed_on");
    co_return fetched;
  }
  co_return error;
}

asio::awaitable<void> ChunkFetcher::delete_due() {
  const LogIndex applied = node_.ns->applied_index();
  std::erase_if(vouched_, [&](const auto& entry) { return entry.second <= applied; });
  const Duration delay =
      node_.space->low_here() ? node_.config.chunk_drop_delay_low : node_.config.chunk_drop_delay;
  const TimePoint before = node_.env.now() - delay;
  std::vector<ChunkId> due;
  for (const auto& [id, doomed] : to_delete_) {
    if (due.size() >= kDeletesPerTick) break;
    if (doomed.since <= before) due.push_back(id);
  }
  if (due.empty()) co_return;
  // Only one who knows the newest state may judge: a commit may be about to name it again.
  if (!knows_newest()) co_return;
  std::vector<ChunkId> unused;
  for (const ChunkId& id : due) {
    auto references = node_.ns->chunk_references(id);
    if (!references) co_return;
    if (*references == 0) unused.push_back(id);
    to_delete_.erase(id);
  }
  if (unused.empty()) co_return;
  deleting_.insert(unused.begin(), unused.end());
  const std::vector<ChunkId> ids = unused;
  const auto removed = co_await node_.chunks->remove(std::move(unused));
  for (const ChunkId& id : ids) deleting_.erase(id);
  deletions_.notify_all();
  if (removed) node_.count("chunks_deleted", ids.size());
}

/// Finds what is stored here and named by nothing, and offers what has been so for long: a commit
/// may still come.
asio::awaitable<void> ChunkFetcher::sweep() {
  const bool low = node_.space->low_here();
  const Duration age = low ? node_.config.chunk_pin_low : 3 * node_.config.chunk_pin;
  const std::vector<ChunkId> all = node_.chunks->list();
  std::map<ChunkId, TimePoint> unnamed;
  std::vector<ChunkId> old;
  for (std::size_t i = 0; i < all.size() && !node_.stopping; ++i) {
    if (i % kCompareBatch == kCompareBatch - 1) {
      if (const std::error_code stop = co_await node_.env.sleep_for(kBetweenBatches); stop)
        co_return;  // others want to run, too
    }
    const ChunkId& id = all[i];
    const auto references = node_.ns->chunk_references(id);
    if (!references) break;
    if (*references != 0 || to_delete_.contains(id) || deleting_.contains(id)) continue;
    const auto known = unnamed_.find(id);
    const TimePoint since = known == unnamed_.end() ? node_.env.now() : known->second;
    unnamed.emplace(id, since);
    if (node_.env.now() - since >= age && old.size() < kOfferMax) old.push_back(id);
  }
  unnamed_ = std::move(unnamed);
  if (!old.empty()) co_await offer(std::move(old));
  swept_ = node_.env.now();
  sweeping_ = false;
}

asio::awaitable<void> ChunkFetcher::offer(std::vector<ChunkId> ids) {
  if (node_.serving) {
    node_.durability->offer(ids);
    co_return;
  }
  const NodeId primary = node_.log->status().primary;
  if (!primary || primary == node_.config.self) co_return;
  ChunkList list;
  list.ids = std::move(ids);
  Request request;
  request.method = static_cast<std::uint16_t>(Method::kOfferChunks);
  request.body = encode(list);
  (void)co_await node_.peers->call(primary, Peers::Lane::kBulk, std::move(request), kFetchTimeout);
}

}  // namespace fermata::serverd
