#include "serverd/service/chunk_service.h"

#include <utility>

#include "common/base/limits.h"
#include "common/wire/message_codec.h"
#include "serverd/chunk/chunk_store.h"
#include "serverd/service/chunk_durability.h"
#include "serverd/service/chunk_fetcher.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;

namespace {

Result<ChunkRequest> with_payload(const Request& request) {
  FM_TRY(auto message, decode<ChunkRequest>(request.body));
  if (message.size_bytes != request.payload.size()) return Errc::kBadMessage;
  if (request.payload.size() > kChunkSizeMax) return Errc::kTooLarge;
  if (!message.id || request.payload.empty()) return Errc::kBadMessage;
  return message;
}

}  // namespace

asio::awaitable<Response> ChunkService::put(Request request) {
  auto message = with_payload(request);
  if (!message) co_return failed(message.error());
  if (!node_.serving) co_return not_primary(node_);
  if (const auto room = node_.space->room(); !room) co_return failed(room.error());
  const SpaceGuard::Admission admission(*node_.space, request.payload.size());
  auto stored = co_await node_.durability->put(message->id, std::move(request.payload));
  if (!stored) co_return failed(stored.error());
  co_return ok();
}

asio::awaitable<Response> ChunkService::query(Request request) {
  auto message = decode<ChunkList>(request.body);
  if (!message) co_return failed(message.error());
  if (auto status = co_await readable(node_); !status) {
    co_return status.error() == Errc::kNotPrimary ? not_primary(node_) : failed(status.error());
  }
  auto flags = co_await node_.durability->query(std::move(message->ids));
  if (!flags) co_return failed(flags.error());
  ChunkFlags reply;
  reply.flags = std::move(*flags);
  Response response;
  response.body = encode(reply);
  co_return response;
}

asio::awaitable<Response> ChunkService::get(std::shared_ptr<Connection> from, Request request) {
  auto message = decode<ChunkRequest>(request.body);
  if (!message) co_return failed(message.error());
  Response response;
  auto bytes = co_await node_.chunks->get(message->id);
  if (!bytes) {
    const bool damaged = bytes.error() == Errc::kCorruptChunk;
    if (damaged) {
      spdlog::warn("node {}: chunk {} is damaged here; fetching it from another node",
                   node_.config.self.value(), message->id.hex());
      node_.count("chunks_found_corrupt");
      node_.fetcher->repair(message->id);
    }
    // Nodes that ask each other must not wait for each other.
    if (from->peer().kind == Hello::Kind::kNode) co_return failed(bytes.error());
    auto references = node_.ns->chunk_references(message->id);
    if (!damaged && references && *references == 0) co_return failed(bytes.error());
    auto fetched = co_await node_.fetcher->fetch(message->id);
    if (!fetched) co_return failed(fetched.error());
    bytes = std::move(fetched->bytes);
  }
  response.payload = std::move(*bytes);
  co_return response;
}

asio::awaitable<Response> ChunkService::replicate(Request request) {
  auto message = with_payload(request);
  if (!message) co_return failed(message.error());
  if (!node_.space->has_room_here()) co_return failed(from_errno(ENOSPC));
  if (!node_.fetcher->vouch(message->id, message->as_of)) {
    co_await node_.fetcher->deleted(message->id);
    // Still not: the sender does not know yet that it is to go.
    if (!node_.fetcher->vouch(message->id, message->as_of)) co_return failed(Errc::kRetry);
  }
  const SpaceGuard::Admission admission(*node_.space, request.payload.size());
  auto stored = co_await node_.chunks->put(message->id, std::move(request.payload));
  if (!stored) {
    if (stored.error() == std::errc::no_space_on_device) node_.space->note_no_space();
    co_return failed(stored.error());
  }
  co_return ok();
}

Response ChunkService::has(const Request& request) {
  auto message = decode<ChunkList>(request.body);
  if (!message) return failed(message.error());
  ChunkFlags reply;
  reply.flags = node_.chunks->has(message->ids);
  for (std::size_t i = 0; i < message->ids.size(); ++i) {
    reply.flags[i] = reply.flags[i] && node_.fetcher->vouch(message->ids[i], message->as_of);
  }
  Response response;
  response.body = encode(reply);
  return response;
}

Response ChunkService::offer(const Connection& from, const Request& request) {
  if (from.peer().kind != Hello::Kind::kNode) return failed(std::errc::operation_not_permitted);
  auto message = decode<ChunkList>(request.body);
  if (!message) return failed(message.error());
  if (!node_.serving) return not_primary(node_);
  node_.durability->offer(message->ids);
  return ok();
}

}  // namespace fermata::serverd
