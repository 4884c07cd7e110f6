#include "serverd/service/raft_service.h"

#include <utility>

#include "common/wire/message_codec.h"
#include "common/wire/raft_codec.h"
#include "serverd/service/peers.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr Duration kSnapshotTimeout = 15s;
}

void RaftService::send(NodeId to, RaftMessage message) {
  Request request;
  request.method = static_cast<std::uint16_t>(Method::kRaft);
  request.payload = Buffer::copy_of(as_bytes(encode(message)));
  node_.peers->send(to, std::move(request));
}

Task<Buffer> RaftService::read_snapshot(NodeId from, std::uint64_t id, std::string file,
                                        std::uint64_t offset_bytes, std::uint32_t size_bytes) {
  ReadSnapshotRequest message;
  message.snapshot_id = id;
  message.file = std::move(file);
  message.offset_bytes = offset_bytes;
  message.size_bytes = size_bytes;
  Request request;
  request.method = static_cast<std::uint16_t>(Method::kReadSnapshot);
  request.body = encode(message);
  FM_CO_TRY(auto answer, co_await node_.peers->call(from, Peers::Lane::kBulk, std::move(request),
                                                    kSnapshotTimeout));
  co_return std::move(answer.payload);
}

Response RaftService::receive(const Connection& from, const Request& request) {
  if (from.peer().kind != Hello::Kind::kNode) return failed(std::errc::operation_not_permitted);
  auto message = decode_raft_message(request.payload.view());
  if (!message) {
    node_.count("malformed_raft_messages");
    return failed(message.error());
  }
  // Who speaks was said at the connection's start; a message under another name is not believed.
  if (message->from != from.peer().node || message->to != node_.config.self) {
    node_.count("misdirected_raft_messages");
    return failed(Errc::kBadMessage);
  }
  raft_->receive(*message);
  return ok();
}

asio::awaitable<Response> RaftService::serve_snapshot(Request request) {
  auto message = decode<ReadSnapshotRequest>(request.body);
  if (!message) co_return failed(message.error());
  auto piece = co_await raft_->read_snapshot_file(message->snapshot_id, std::move(message->file),
                                                  message->offset_bytes, message->size_bytes);
  if (!piece) co_return failed(piece.error());
  Response response;
  response.payload = std::move(*piece);
  co_return response;
}

}  // namespace fermata::serverd
