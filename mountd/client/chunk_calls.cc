// Chunks: fetched from any node and verified here, put and queried at the primary.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "common/base/checksum.h"
#include "common/wire/message_codec.h"
#include "mountd/client/router.h"

namespace fermata::mountd {
namespace {

constexpr Duration kChunkTimeout = std::chrono::seconds(20);
constexpr std::size_t kQueryMax = 1000;

Task<bool> matches(Env& env, ChunkId id, Buffer bytes) {
  const auto job = [id, bytes]() -> Result<bool> { return chunk_id_of(bytes.view()) == id; };
  return blocking<bool>(env, job);
}

}  // namespace

Task<Buffer> ClusterClient::get_chunk(ChunkId id) {
  const auto router = this->router();
  const TimePoint begin = router->env().now();
  Backoff backoff(router->env(), router->options());
  const std::string body = encode(ChunkRequest{id, 0});
  // Spread over the nodes, the same chunk always first at the same one: its page cache has it.
  std::size_t first = id.digest[0];
  for (;;) {
    const std::vector<std::string> nodes = router->map().addresses();
    unsigned absent = 0;
    unsigned corrupt = 0;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      const std::string& node = nodes[(first + i) % nodes.size()];
      auto response = co_await router->call_node(node, Method::kGetChunk, body, {},
                                                 Router::Lane::kBulk, kChunkTimeout);
      if (const bool stop = co_await is_cancelled(); stop) co_return std::errc::interrupted;
      if (!response) continue;
      if (response->error == std::errc::no_such_file_or_directory) ++absent;
      if (response->error == Errc::kCorruptChunk) ++corrupt;
      if (response->error) continue;
      FM_CO_TRY(const bool good, co_await matches(router->env(), id, response->payload));
      if (good) co_return response->payload;
      ++corrupt;
      spdlog::error("node {} sent wrong bytes for chunk {}: trying another one", node, id.hex());
    }
    if (router->stopped()) co_return Errc::kShuttingDown;
    if (absent + corrupt >= nodes.size()) {
      spdlog::error(
          "no node has a good copy of chunk {} ({} without it, {} corrupt): the file cannot be "
          "read",
          id.hex(), absent, corrupt);
      co_return Errc::kCorruptChunk;
    }
    if (router->options().soft && router->env().now() - begin > router->options().soft_timeout)
      co_return std::errc::timed_out;
    FM_CO_CHECK(co_await backoff.wait());
  }
}

Task<void> ClusterClient::put_chunk(ChunkId id, Buffer bytes) {
  const auto router = this->router();
  std::string body = encode(ChunkRequest{id, static_cast<std::uint32_t>(bytes.size())});
  FM_CO_TRY(const Router::Answer answer,
            co_await router->call_primary(Method::kPutChunk, std::move(body), std::move(bytes),
                                          Router::Lane::kBulk));
  if (answer.response.error) co_return answer.response.error;
  co_return Status();
}

Task<std::vector<bool>> ClusterClient::query_chunks(std::vector<ChunkId> ids) {
  const auto router = this->router();
  std::vector<bool> flags;
  for (std::size_t at = 0; at < ids.size(); at += kQueryMax) {
    const std::size_t end = std::min(ids.size(), at + kQueryMax);
    ChunkList list{{ids.begin() + static_cast<std::ptrdiff_t>(at),
                    ids.begin() + static_cast<std::ptrdiff_t>(end)}};
    FM_CO_TRY(const Router::Answer answer,
              co_await router->call_primary(Method::kQueryChunks, encode(list), {}));
    if (answer.response.error) co_return answer.response.error;
    FM_CO_TRY(const ChunkFlags page, decode<ChunkFlags>(answer.response.body));
    if (page.flags.size() != list.ids.size()) co_return Errc::kBadMessage;
    flags.insert(flags.end(), page.flags.begin(), page.flags.end());
  }
  co_return flags;
}

}  // namespace fermata::mountd
