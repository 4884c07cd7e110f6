#include "serverd/service/space_guard.h"

#include <algorithm>
#include <vector>

#include "common/wire/message_codec.h"
#include "serverd/service/peers.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

std::uint64_t SpaceGuard::reserve(const DiskSpace& space) const {
  return std::min(node_.config.space_reserve_bytes, space.total_bytes / 100);
}

bool SpaceGuard::has_room() const {
  if (!has_room_here()) return false;
  const auto voters = node_.peers->other_voters();
  std::size_t full = 0;
  for (const NodeId voter : voters) {
    const auto it = others_.find(voter);  // unknown: give it the benefit of the doubt
    if (it != others_.end() && it->second.free_bytes <= reserve(it->second)) ++full;
  }
  return voters.size() + 1 - full >= node_.majority();
}

DiskSpace SpaceGuard::cluster() const {
  std::vector<DiskSpace> known{own_};
  for (const auto& [node, space] : others_) known.push_back(space);
  std::sort(known.begin(), known.end(),
            [](const DiskSpace& a, const DiskSpace& b) { return a.free_bytes > b.free_bytes; });
  return known[std::min(node_.majority(), known.size()) - 1];
}

asio::awaitable<void> SpaceGuard::watch() {
  while (!node_.stopping) {
    co_await look();
    if (node_.serving) {
      for (const NodeId peer : node_.peers->others()) node_.tasks.spawn("ask for space", ask(peer));
    }
    co_await keep_reserve_file();
    if (const std::error_code stop = co_await node_.env.sleep_for(node_.config.space_interval);
        stop)
      co_return;
  }
}

asio::awaitable<void> SpaceGuard::look() {
  Disk* disk = &node_.env.disk();
  // Closures have names: as a temporary of a coroutine g++ 12 would destroy one twice.
  const auto work = [disk, dir = node_.config.data_dir] { return disk->space(dir); };
  auto space = co_await blocking<DiskSpace>(node_.env, work);
  if (!space) co_return;
  const bool had_room = has_room_here();
  own_ = *space;
  own_known_ = true;
  if (had_room && !has_room_here()) {
    spdlog::warn(
        "node {}: only {} MiB are free under {}: writes are refused (ENOSPC); free some room",
        node_.config.self.value(), own_.free_bytes >> 20, node_.config.data_dir);
  } else if (!had_room && has_room_here()) {
    spdlog::info("node {}: there is room again under {}", node_.config.self.value(),
                 node_.config.data_dir);
  }
}

asio::awaitable<void> SpaceGuard::ask(NodeId peer) {
  Request request;
  request.method = static_cast<std::uint16_t>(Method::kStatus);
  auto response = co_await node_.peers->call(peer, Peers::Lane::kBulk, std::move(request), 2s);
  if (!response) co_return;
  auto status = decode<NodeStatus>(response->body);
  if (status) others_[peer] = {status->disk_total_bytes, status->disk_free_bytes};
}

asio::awaitable<void> SpaceGuard::keep_reserve_file() {
  const std::uint64_t size = node_.config.reserve_file_bytes;
  if (size == 0 || !own_known_) co_return;
  Disk* disk = &node_.env.disk();
  const std::string path = node_.config.data_dir + "/reserve";
  if (own_.free_bytes < reserve(own_) / 2) {
    reserve_file_ = false;
    const auto work = [disk, path]() -> Status {
      FM_TRY(const bool there, disk->exists(path));
      return there ? disk->remove(path) : Status();
    };
    auto removed = co_await blocking<void>(node_.env, work);
    if (!removed) spdlog::warn("{}: {}", path, removed.error().message());
  } else if (!reserve_file_ && own_.free_bytes > 4 * (reserve(own_) + size)) {
    reserve_file_ = true;
    const auto work = [disk, path, size]() -> Status {
      FM_TRY(const bool there, disk->exists(path));
      if (there) return {};
      FM_TRY(auto file, disk->open(path, Disk::Mode::kCreate));
      const Bytes zeros(1 << 20);
      for (std::uint64_t at = 0; at < size; at += zeros.size()) FM_CHECK(file->write_at(at, zeros));
      return {};
    };
    auto made = co_await blocking<void>(node_.env, work);
    if (!made) spdlog::warn("{}: {}", path, made.error().message());
  }
}

}  // namespace fermata::serverd
