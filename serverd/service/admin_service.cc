#include "serverd/service/admin_service.h"

#include <algorithm>
#include <utility>

#include "common/wire/command_codec.h"
#include "common/wire/message_codec.h"
#include "serverd/chunk/chunk_store.h"
#include "serverd/service/chunk_fetcher.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
const char* role_name(Role role) {
  switch (role) {
    case Role::kBackup:
      return "backup";
    case Role::kCandidate:
      return "candidate";
    case Role::kPrimary:
      return "primary";
    case Role::kLearner:
      return "learner";
  }
  return "unknown";
}
}  // namespace

NodeStatus AdminService::status() const {
  const LogStatus log = node_.log->status();
  NodeStatus status;
  status.node = node_.config.self;
  for (const auto& member : log.membership.members) {
    if (member.id == node_.config.self) status.address = member.address;
  }
  status.cluster = node_.config.cluster;
  status.version = FERMATA_VERSION;
  status.role = role_name(log.role);
  status.term = log.term;
  status.primary = log.primary;
  status.first = log.first;
  status.last = log.last;
  status.commit = log.commit;
  status.applied = log.applied;
  status.members = log.membership.members;
  for (const auto& [id, progress] : log.peers) {
    status.peers.push_back({id, progress.match, progress.recently_active});
  }
  const ChunkStats chunks = node_.chunks->stats();
  status.chunk_count = chunks.count;
  status.chunk_bytes = chunks.bytes;
  status.chunks_missing = node_.fetcher->missing();
  status.chunks_corrupt = chunks.corrupt;
  const auto counters = node_.ns->counters();
  status.inode_count = counters.inodes;
  if (auto sessions = node_.ns->sessions()) status.session_count = sessions->size();
  status.disk_total_bytes = node_.space->own().total_bytes;
  status.disk_free_bytes = node_.space->own().free_bytes;
  status.disk_full = !node_.space->has_room_here();
  status.disk_low = node_.space->low_here();
  status.command_level = kCommandLevel;
  status.uptime_ms = static_cast<std::uint64_t>((node_.env.now() - node_.started) / 1ms);
  status.counters = node_.counters;
  if (log.rejoining) status.counters["rejoining"] = 1;
  const NetworkStats& net = node_.network.stats();
  status.counters["net_accepted"] = net.accepted;
  status.counters["net_accept_errors"] = net.accept_errors;
  status.counters["net_dead"] = net.dead;
  status.counters["net_malformed"] = net.malformed;
  status.counters["net_refused"] = net.refused;
  status.counters["net_silent"] = net.silent;
  status.counters["conflicts"] = counters.conflicts;
  status.counters["garbage_chunks"] = counters.garbage;
  if (node_.serving) status.counters["leases"] = node_.leases.lease_count();
  return status;
}

Response AdminService::digest_answer(LogIndex at) const {
  const auto digest = node_.ns->digest(at);
  if (!digest) return failed(Errc::kTruncatedHistory);
  DigestReply reply;
  reply.at = at;
  reply.digest = *digest;
  Response response;
  response.body = encode(reply);
  return response;
}

asio::awaitable<Response> AdminService::digest(Request request) {
  auto message = decode<DigestRequest>(request.body);
  if (!message) co_return failed(message.error());
  LogIndex at = message->at;
  if (!at) {
    if (!node_.serving) co_return not_primary(node_);
    Command command;
    command.body = DigestCommand{};
    command.time = wall_time(node_.env);
    std::string bytes = encode(command);
    auto outcome = co_await node_.log->propose(std::move(bytes));
    if (!outcome) co_return failed(outcome.error());
    at = outcome->index;
  }
  // Until this node has come that far and its work has run; the caller's deadline bounds it.
  while (!node_.ns->digest(at)) {
    const bool due = node_.ns->applied_index() < at || computing_;
    if (!due) co_return failed(Errc::kTruncatedHistory);
    if (const std::error_code stop = co_await node_.env.sleep_for(5ms); stop)
      co_return failed(Errc::kShuttingDown);
  }
  co_return digest_answer(at);
}

void AdminService::on_digest_ordered() {
  if (std::exchange(computing_, true)) return;
  node_.tasks.spawn("digest", compute_digests());
}

asio::awaitable<void> AdminService::compute_digests() {
  while (auto work = node_.ns->digest_work()) {
    const auto run = [work] { return work->run(); };
    auto done = co_await blocking<void>(node_.env, run);
    if (!done) {
      spdlog::error("node {}: the digest at index {} failed: {}", node_.config.self.value(),
                    work->index().value(), done.error().message());
      break;
    }
  }
  computing_ = false;
}

asio::awaitable<Response> AdminService::transfer(Request request) {
  auto message = decode<TransferRequest>(request.body);
  if (!message) co_return failed(message.error());
  const LogStatus log = node_.log->status();
  if (log.role != Role::kPrimary) co_return not_primary(node_);
  NodeId to = message->to;
  if (!to) {
    LogIndex best;
    for (const auto& [id, progress] : log.peers) {
      if (progress.recently_active && (!to || progress.match > best)) {
        to = id;
        best = progress.match;
      }
    }
  }
  if (!to) co_return failed(Errc::kNoQuorum);
  auto done = co_await node_.log->transfer_leadership(to);
  if (!done) co_return failed(done.error());
  co_return ok();
}

}  // namespace fermata::serverd
