#include "serverd/service/chunk_durability.h"

#include <algorithm>
#include <utility>

#include "common/wire/message_codec.h"
#include "serverd/chunk/chunk_store.h"
#include "serverd/service/chunk_fetcher.h"
#include "serverd/service/peers.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr Duration kReplicateTimeout = 20s;
constexpr Duration kQueryTimeout = 3s;
/// Unanswered at one node: a slow one must not make this one hold everything that goes past it.
constexpr std::size_t kSendingBytesMax = std::size_t{64} << 20;
}  // namespace

/// One put() on its way to several nodes; the slow ones go on after a majority has answered.
struct ChunkDurability::Put {
  explicit Put(const asio::any_io_executor& executor) : changed(executor) {}
  ChunkId id;
  Buffer bytes;
  std::size_t wanted = 0;  ///< nodes that must have it
  std::size_t stored = 0;
  std::size_t running = 0;
  std::size_t full = 0;   ///< nodes that said so
  std::error_code error;  ///< the last other one
  Signal changed;
};

struct ChunkDurability::Query {
  explicit Query(const asio::any_io_executor& executor) : changed(executor) {}
  std::vector<ChunkId> ids;
  std::vector<std::size_t> have;
  std::size_t running = 0;
  std::size_t answers = 0;
  Signal changed;
};

ChunkDurability::Use::Use(ChunkDurability& of, std::vector<ChunkId> ids)
    : of_(of), ids_(std::move(ids)) {
  for (const ChunkId& id : ids_) ++of_.in_use_[id];
}
ChunkDurability::Use::~Use() {
  for (const ChunkId& id : ids_) {
    const auto it = of_.in_use_.find(id);
    if (--it->second == 0) of_.in_use_.erase(it);
  }
}

Task<void> ChunkDurability::put(ChunkId id, Buffer bytes) {
  while (dropping_.contains(id)) {
    if (const auto error = co_await dropped_.wait()) co_return error;
  }
  const Use use(*this, {id});
  const Term term = node_.term;
  auto put = std::make_shared<Put>(node_.env.executor());
  put->id = id;
  put->bytes = std::move(bytes);
  put->wanted = node_.majority();
  const auto voters = node_.peers->other_voters();
  put->running = voters.size() + 1;
  node_.tasks.spawn("store chunk", put_here(put));
  for (const NodeId peer : voters) node_.tasks.spawn("replicate chunk", put_there(put, peer));
  while (put->stored < put->wanted && put->running > 0) {
    if (const auto error = co_await put->changed.wait()) co_return error;
  }
  if (!node_.serves(term)) co_return Errc::kNotPrimary;
  if (put->stored >= put->wanted) {
    pin(id);
    co_return Status();
  }
  if (voters.size() + 1 - put->full < put->wanted) co_return std::errc::no_space_on_device;
  if (put->error == Errc::kHashMismatch) co_return put->error;
  co_return Errc::kNoQuorum;
}

asio::awaitable<void> ChunkDurability::put_here(std::shared_ptr<Put> put) {
  while (!node_.fetcher->vouch(put->id, node_.ns->applied_index())) {
    co_await node_.fetcher->deleted(put->id);
    if (node_.stopping) break;
  }
  Status stored = std::errc::no_space_on_device;
  if (node_.space->has_room_here()) stored = co_await node_.chunks->put(put->id, put->bytes);
  --put->running;
  if (stored) {
    if (++put->stored == put->wanted) sent_.notify_all();
  } else if (stored.error() == std::errc::no_space_on_device) {
    ++put->full;
    node_.space->note_no_space();
  } else {
    put->error = stored.error();
  }
  put->changed.notify_all();
}

/// Waits for its turn at a slow node, unless a majority has the chunk meanwhile: then that node is
/// left to fetch it.
Task<void> ChunkDurability::send(std::shared_ptr<Put> put, NodeId peer) {
  std::size_t& sending = sending_bytes_[peer];  // a map's places stay
  const std::size_t size = put->bytes.size();
  while (sending != 0 && sending + size > kSendingBytesMax) {
    if (put->stored >= put->wanted) {
      node_.count("chunk_replications_skipped");
      co_return std::errc::resource_unavailable_try_again;
    }
    if (const auto error = co_await sent_.wait()) co_return error;
  }
  ChunkRequest message;
  message.id = put->id;
  message.size_bytes = static_cast<std::uint32_t>(put->bytes.size());
  message.as_of = node_.ns->applied_index();
  Request request;
  request.method = static_cast<std::uint16_t>(Method::kReplicateChunk);
  request.body = encode(message);
  request.payload = put->bytes;
  sending += size;
  auto answer =
      co_await node_.peers->call(peer, Peers::Lane::kBulk, std::move(request), kReplicateTimeout);
  sending -= size;
  sent_.notify_all();
  if (!answer) co_return answer.error();
  co_return Status();
}

asio::awaitable<void> ChunkDurability::put_there(std::shared_ptr<Put> put, NodeId peer) {
  const Status sent = co_await send(put, peer);
  --put->running;
  if (sent) {
    if (++put->stored == put->wanted) sent_.notify_all();
  } else {
    if (sent.error() == std::errc::no_space_on_device) {
      ++put->full;
    } else {
      put->error = sent.error();
    }
    node_.count("chunk_replications_failed");
  }
  put->changed.notify_all();
}

Task<std::vector<bool>> ChunkDurability::query(std::vector<ChunkId> ids) {
  const Use use(*this, ids);
  const Term term = node_.term;
  auto query = std::make_shared<Query>(node_.env.executor());
  for (const ChunkId& id : ids) {
    if (is_pinned(id) || dropping_.contains(id)) continue;
    auto references = node_.ns->chunk_references(id);
    if (!references) co_return references.error();
    if (*references != 0) {
      pin(id);  // a commit that is applied was checked before
    } else {
      query->ids.push_back(id);
    }
  }
  if (!query->ids.empty()) {
    const auto here = node_.chunks->has(query->ids);
    for (std::size_t i = 0; i < query->ids.size(); ++i) {
      const bool mine = here[i] && node_.fetcher->vouch(query->ids[i], node_.ns->applied_index());
      query->have.push_back(mine ? 1 : 0);
    }
    const auto voters = node_.peers->other_voters();
    query->running = voters.size();
    for (const NodeId peer : voters) node_.tasks.spawn("find chunks", query_there(query, peer));
    const std::size_t wanted = node_.majority();
    const auto decided = [&] {
      // Each id is held by enough, or cannot be any more.
      return std::all_of(query->have.begin(), query->have.end(), [&](std::size_t have) {
        return have >= wanted || have + query->running < wanted;
      });
    };
    while (query->running > 0 && !decided()) {
      if (const auto error = co_await query->changed.wait()) co_return error;
    }
    if (!node_.serves(term)) co_return Errc::kNotPrimary;
    for (std::size_t i = 0; i < query->ids.size(); ++i) {
      if (query->have[i] >= wanted && !dropping_.contains(query->ids[i])) pin(query->ids[i]);
    }
  }
  std::vector<bool> flags;
  flags.reserve(ids.size());
  for (const ChunkId& id : ids) flags.push_back(is_pinned(id));
  co_return flags;
}

asio::awaitable<void> ChunkDurability::query_there(std::shared_ptr<Query> query, NodeId peer) {
  constexpr std::size_t kBatch = 1000;
  for (std::size_t first = 0; first < query->ids.size(); first += kBatch) {
    ChunkList list;
    const std::size_t last = std::min(first + kBatch, query->ids.size());
    list.as_of = node_.ns->applied_index();
    list.ids.assign(query->ids.begin() + static_cast<std::ptrdiff_t>(first),
                    query->ids.begin() + static_cast<std::ptrdiff_t>(last));
    Request request;
    request.method = static_cast<std::uint16_t>(Method::kHasChunks);
    request.body = encode(list);
    auto answer =
        co_await node_.peers->call(peer, Peers::Lane::kBulk, std::move(request), kQueryTimeout);
    if (!answer) break;
    auto flags = decode<ChunkFlags>(answer->body);
    if (!flags || flags->flags.size() != last - first) break;
    for (std::size_t i = first; i < last; ++i) query->have[i] += flags->flags[i - first] ? 1u : 0u;
  }
  --query->running;
  query->changed.notify_all();
}

Task<void> ChunkDurability::require(std::vector<ChunkId> ids) {
  FM_CO_TRY(const auto flags, co_await query(std::move(ids)));
  const bool all = std::find(flags.begin(), flags.end(), false) == flags.end();
  if (!all) co_return Errc::kMissingChunk;
  co_return Status();
}

void ChunkDurability::on_serving() {
  pins_.clear();
  offered_.clear();
}

bool ChunkDurability::is_pinned(ChunkId id) const {
  const auto it = pins_.find(id);
  return it != pins_.end() && it->second + node_.config.chunk_pin > node_.env.now() &&
         !dropping_.contains(id);
}

bool ChunkDurability::is_protected(ChunkId id) const {
  if (in_use_.contains(id) || dropping_.contains(id)) return true;
  const auto it = pins_.find(id);
  const Duration for_long =
      node_.space->low() ? node_.config.chunk_pin_low : node_.config.chunk_pin;
  return it != pins_.end() && it->second + for_long > node_.env.now();
}

void ChunkDurability::offer(const std::vector<ChunkId>& ids) {
  constexpr std::size_t kOfferedMax = 100'000;
  if (offered_.size() < kOfferedMax) offered_.insert(ids.begin(), ids.end());
}

std::vector<ChunkId> ChunkDurability::take_offered(std::size_t chunks_max) {
  std::vector<ChunkId> taken;
  while (!offered_.empty() && taken.size() < chunks_max) {
    const ChunkId id = *offered_.begin();
    offered_.erase(offered_.begin());
    const auto references = node_.ns->chunk_references(id);
    if (references && *references == 0 && !is_protected(id)) taken.push_back(id);
  }
  return taken;
}

void ChunkDurability::begin_drop(const std::vector<ChunkId>& ids) {
  dropping_.insert(ids.begin(), ids.end());
}

void ChunkDurability::end_drop(const std::vector<ChunkId>& ids) {
  for (const ChunkId& id : ids) {
    dropping_.erase(id);
    pins_.erase(id);
  }
  dropped_.notify_all();
}

void ChunkDurability::sweep() {
  const TimePoint now = node_.env.now();
  std::erase_if(pins_, [&](const auto& pin) { return pin.second + node_.config.chunk_pin <= now; });
}

}  // namespace fermata::serverd
