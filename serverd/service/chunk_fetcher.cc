#include "serverd/service/chunk_fetcher.h"

#include <algorithm>
#include <utility>

#include "common/wire/message_codec.h"
#include "serverd/chunk/chunk_store.h"
#include "serverd/service/peers.h"

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
/// Announcements beyond this are dropped for a comparison of everything.
constexpr std::size_t kAnnouncedMax = 1 << 20;
}  // namespace

ChunkFetcher::ChunkFetcher(NodeContext& node) : node_(node) {}

void ChunkFetcher::on_referenced(std::span<const ChunkId> ids) {
  if (announced_.size() + ids.size() > kAnnouncedMax) {
    announced_.clear();
    compare_wanted_ = true;
    return;
  }
  announced_.insert(announced_.end(), ids.begin(), ids.end());
}

void ChunkFetcher::on_dropped(std::span<const ChunkId> ids) {
  // What was vouched for before this start is forgotten, and may be about to be named.
  const TimePoint when =
      std::max(node_.env.now() + node_.config.chunk_drop_delay, node_.started + vouched_for());
  for (const ChunkId& id : ids) {
    to_delete_[id] = when;
    if (const auto it = missing_.find(id); it != missing_.end() && !it->second.busy)
      missing_.erase(it);
  }
}

void ChunkFetcher::compare_all() { compare_wanted_ = true; }

void ChunkFetcher::expect(ChunkId id) { missing_.try_emplace(id); }

void ChunkFetcher::repair(ChunkId id) {
  expect(id);
  missing_[id].damaged = true;
}

void ChunkFetcher::vouch(ChunkId id) { vouched_[id] = node_.env.now() + vouched_for(); }

Duration ChunkFetcher::vouched_for() const { return 3 * node_.config.chunk_pin; }

asio::awaitable<void> ChunkFetcher::run() {
  while (!node_.stopping) {
    if (std::exchange(compare_wanted_, false)) co_await compare();
    look_for_new();
    start_fetches();
    co_await delete_due();
    if (const std::error_code stop = co_await node_.env.sleep_for(kTick); stop) co_return;
  }
}

void ChunkFetcher::look_for_new() {
  const auto ids = std::exchange(announced_, {});
  const auto here = node_.chunks->has(ids);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (here[i]) continue;
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
    here = !missing_[id].damaged && node_.chunks->has(std::span(&id, 1))[0];
    if (!here) {
      auto bytes = co_await fetch(id);
      here = bytes.has_value();
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

Task<Buffer> ChunkFetcher::fetch(ChunkId id) {
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
    Buffer bytes = std::move(answer->payload);
    auto stored = co_await node_.chunks->put(id, bytes);
    if (!stored) {
      error = stored.error();
      if (stored.error() == Errc::kHashMismatch) {
        spdlog::warn("node {}: node {} sent other bytes for chunk {}", node_.config.self.value(),
                     peer.value(), id.hex());
        continue;
      }
      break;
    }
    node_.count("chunks_fetched");
    co_return bytes;
  }
  co_return error;
}

asio::awaitable<void> ChunkFetcher::delete_due() {
  const TimePoint now = node_.env.now();
  if (now >= next_sweep_) {
    std::erase_if(vouched_, [&](const auto& entry) { return entry.second <= now; });
    next_sweep_ = now + 1min;
  }
  std::vector<ChunkId> due;
  for (const auto& [id, when] : to_delete_) {
    if (due.size() >= kDeletesPerTick) break;
    if (when <= now && !vouched_.contains(id)) due.push_back(id);
  }
  if (due.empty()) co_return;
  // Only one who knows the newest state may judge: a commit may be about to name it again.
  const LogStatus status = node_.log->status();
  if (!status.primary || status.applied < status.commit) co_return;
  std::vector<ChunkId> unused;
  for (const ChunkId& id : due) {
    auto references = node_.ns->chunk_references(id);
    if (!references) co_return;
    if (*references == 0) unused.push_back(id);
    to_delete_.erase(id);
  }
  // Since the look at what is vouched for there was no await, and from remove() on the store denies
  // them: nobody was told, or will be, that one is here which then is not.
  const std::size_t count = unused.size();
  if (auto removed = co_await node_.chunks->remove(std::move(unused)); removed) {
    node_.count("chunks_deleted", count);
  }
}

}  // namespace fermata::serverd
