#include "serverd/service/quota_service.h"

#include <algorithm>
#include <utility>

#include "common/access/access.h"
#include "common/base/limits.h"
#include "common/wire/message_codec.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr std::uint32_t kRecordsPerCommand = 256;
constexpr Duration kBetweenCommands = 2ms;
constexpr Duration kBetweenLooks = 200ms;
constexpr std::size_t kPathsBytesMax = 2 << 20;  // in one answer

std::uint64_t room(std::uint64_t limit, std::uint64_t used) {
  return limit > used ? limit - used : 0;
}

QuotaList::Quota to_wire_form(const QuotaRecord& record) {
  QuotaList::Quota quota;
  quota.kind = record.kind;
  quota.id = record.id;
  quota.parent = record.parent;
  quota.bytes_max = record.bytes_max;
  quota.inodes_max = record.inodes_max;
  quota.bytes = record.bytes;
  quota.inodes = record.inodes;
  quota.phase = record.phase;
  return quota;
}
}  // namespace

Status keep_within_quotas(const Namespace& state, InodeId inode, StatFsReply& reply) {
  if (!inode) return {};
  const auto quotas = state.quotas_of(inode);
  if (!quotas && quotas.error() == std::errc::no_such_file_or_directory) return {};  // it is gone
  if (!quotas) return quotas.error();
  const QuotaRecord* bytes = nullptr;
  const QuotaRecord* inodes = nullptr;
  for (const QuotaRecord& quota : *quotas) {
    const std::uint64_t left = room(quota.bytes_max, quota.bytes);
    if (quota.bytes_max != 0) reply.room_bytes = std::min(reply.room_bytes, left);
    if (quota.kind != QuotaKind::kTree) continue;
    if (quota.bytes_max != 0 && (!bytes || left < room(bytes->bytes_max, bytes->bytes)))
      bytes = &quota;
    if (quota.inodes_max != 0 && (!inodes || room(quota.inodes_max, quota.inodes) <
                                                 room(inodes->inodes_max, inodes->inodes)))
      inodes = &quota;
  }
  if (bytes) {
    reply.free_bytes = std::min(reply.free_bytes, room(bytes->bytes_max, bytes->bytes));
    reply.total_bytes = bytes->bytes + reply.free_bytes;
  }
  if (inodes) {
    reply.inodes = inodes->inodes;
    reply.inodes_max = std::max(inodes->inodes_max, inodes->inodes);
  }
  return {};
}

asio::awaitable<void> QuotaService::run() {
  while (!node_.stopping) {
    Duration pause = kBetweenLooks;
    if (node_.serving) {
      const auto quota = node_.ns->unfinished_quota();
      if (quota && *quota) {
        CountQuotaCommand command{(*quota)->kind, (*quota)->id, kRecordsPerCommand};
        const auto result = co_await node_.propose_own(std::move(command));
        if (result) {
          node_.count("quota_records_counted", result->count);
          pause = kBetweenCommands;
        }
      }
    }
    if (const std::error_code stop = co_await node_.env.sleep_for(pause); stop) co_return;
  }
}

asio::awaitable<Response> QuotaService::list(Request request) {
  const auto message = decode<QuotasRequest>(request.body);
  if (!message) co_return failed(message.error());
  if (const Status status = co_await readable(node_); !status) {
    co_return status.error() == Errc::kNotPrimary ? not_primary(node_) : failed(status.error());
  }
  if (!message->inode && !is_superuser(message->header.cred))
    co_return failed(std::errc::operation_not_permitted);
  const auto quotas = message->inode ? node_.ns->quotas_of(message->inode) : node_.ns->quotas();
  if (!quotas) co_return failed(quotas.error());
  QuotaList reply;
  Namespace::KnownNames known;
  std::size_t paths_left = kPathsBytesMax;
  for (const QuotaRecord& record : *quotas) {
    QuotaList::Quota quota = to_wire_form(record);
    if (quota.kind == QuotaKind::kTree) {
      // A directory that is gone, or far down among many names, is known by its number alone.
      auto path = node_.ns->path_of(InodeId(quota.id), known);
      if (path && path->size() < std::min(kPathMax, paths_left)) {
        paths_left -= path->size();
        quota.path = std::move(*path);
      }
    }
    reply.quotas.push_back(std::move(quota));
  }
  Response response;
  response.body = encode(reply);
  co_return response;
}

}  // namespace fermata::serverd
