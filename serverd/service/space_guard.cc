#include "serverd/service/space_guard.h"

#include <algorithm>
#include <vector>

#include "common/wire/message_codec.h"
#include "serverd/service/peers.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr Duration kTick = 100ms;
constexpr Duration kAskTimeout = 2s;
constexpr Duration kCareInterval = 2s;  // between flushes that shorten the log
constexpr Duration kSeenLately = 10s;
constexpr Duration kHandOverInterval = 2s;
/// So long clients are asked to wait for the role to go to a node with room.
constexpr Duration kHandOverPatience = 10s;
}  // namespace

SpaceGuard::SpaceGuard(NodeContext& node)
    : node_(node), reserve_file_(std::make_shared<ReserveFile>()) {
  reserve_file_->disk = &node.env.disk();
  reserve_file_->path = node.config.data_dir + "/reserve";
}

Status SpaceGuard::make_room_to_start(Disk& disk, const std::string& data_dir) {
  const std::string path = data_dir + "/reserve";
  FM_TRY(const bool there, disk.exists(path));
  return there ? disk.remove(path) : Status();
}

std::function<bool()> SpaceGuard::room_maker() {
  return [file = reserve_file_] {
    return file->there.exchange(false) && file->disk->remove(file->path).has_value();
  };
}

// ---------------------------------------------------------------- judging

std::uint64_t SpaceGuard::reserve(const DiskSpace& space) const {
  return std::min(node_.config.space_reserve_bytes, space.total_bytes / 8);
}

std::uint64_t SpaceGuard::reserve_file_bytes() const {
  return std::min(node_.config.reserve_file_bytes, own_.total_bytes / 16);
}

/// Until its file is there the reserve is that much larger.
std::uint64_t SpaceGuard::reserve_here() const {
  return reserve(own_) + (reserve_file_->there ? 0 : reserve_file_bytes());
}

std::uint64_t SpaceGuard::free_now() const {
  return own_.free_bytes - std::min(own_.free_bytes, pending_bytes_ + taken_bytes_);
}

bool SpaceGuard::full_here() const {
  if (node_.log->stalled()) return true;
  if (!own_known_) return false;
  const std::uint64_t limit = reserve_here();
  return free_now() <= (was_full_ ? limit + limit / 4 : limit);  // not to and fro
}

bool SpaceGuard::is_fresh(const Other& other) const {
  return node_.env.now() - other.seen <= kSeenLately;
}

bool SpaceGuard::has_room_for(std::uint64_t bytes) const {
  return !own_known_ || free_now() >= reserve_here() / 4 + bytes;
}

/// What is written here goes to every node that is up.
std::uint64_t SpaceGuard::free_of(const Other& other) const {
  const std::uint64_t since = is_fresh(other) ? taken_ever_bytes_ - other.taken_before : 0;
  return other.space.free_bytes - std::min(other.space.free_bytes, pending_bytes_ + since);
}

bool SpaceGuard::is_full(const Other& other) const {
  return other.full || free_of(other) <= reserve(other.space);
}

bool SpaceGuard::is_low(const Other& other) const {
  return other.full || free_of(other) < 2 * reserve(other.space);
}

void SpaceGuard::on_serving() {
  others_.clear();
  full_since_ = {};
  doubt_since_ = {};
  next_look_ = {};
  trailing_since_ = {};
  waits_for_trailing_ = false;
}

/// Of this node, or as primary of any.
bool SpaceGuard::near_limit() const {
  if (own_known_ && free_now() < 4 * reserve_here()) return true;
  if (!node_.serving) return false;
  return std::any_of(others_.begin(), others_.end(), [&](const auto& each) {
    const Other& other = each.second;
    return is_fresh(other) && (other.full || free_of(other) < 4 * reserve(other.space));
  });
}

SpaceGuard::Others SpaceGuard::judge(bool (SpaceGuard::*wants)(const Other&) const) const {
  Others all;
  for (const NodeId voter : node_.peers->other_voters()) {
    const auto it = others_.find(voter);
    if (it == others_.end() || !is_fresh(it->second)) {
      ++all.unknown;
    } else {
      ++((this->*wants)(it->second) ? all.wanting : all.fine);
    }
  }
  return all;
}

/// Unknown ones get the benefit of the doubt, unless one that is known is wanting: together with it
/// a silent one would make a majority that cannot take anything.
std::size_t SpaceGuard::fine_of(const Others& others) {
  return others.fine + (others.wanting == 0 ? others.unknown : 0);
}

std::size_t SpaceGuard::others_with_room() const { return fine_of(judge(&SpaceGuard::is_full)); }

bool SpaceGuard::doubtful() const {
  const Others others = judge(&SpaceGuard::is_full);
  const std::size_t here = full_here() ? 0 : 1;
  return fine_of(others) + here < node_.majority() &&
         others.fine + others.unknown + here >= node_.majority();
}

Status SpaceGuard::room() const {
  const std::size_t others = others_with_room();
  const bool here = !full_here();
  if (others + (here ? 1u : 0u) < node_.majority()) {
    // The silent one may be back at once, or the full one have room again.
    const bool waits = doubtful() && (doubt_since_ == TimePoint{} ||
                                      node_.env.now() - doubt_since_ < kHandOverPatience);
    return waits ? Status(Errc::kRetry) : Status(std::errc::no_space_on_device);
  }
  if (here) return waits_for_trailing_ ? Status(Errc::kRetry) : Status();
  const bool waits =
      full_since_ != TimePoint{} && node_.env.now() - full_since_ < kHandOverPatience;
  return waits || full_since_ == TimePoint{} ? Status(Errc::kRetry)
                                             : Status(std::errc::no_space_on_device);
}

Status SpaceGuard::room_to_free() const {
  const Status any = room();
  if (any || node_.log->stalled()) return any;
  // What is removed would be copied to history: of the reserve, in which nothing gives it back.
  const bool waits = any.error() == std::errc::no_space_on_device && !node_.no_history;
  return waits ? Status(Errc::kRetry) : Status();
}

bool SpaceGuard::low_here() const {
  return own_known_ && (full_here() || free_now() < 2 * reserve_here());
}

bool SpaceGuard::low() const {
  return fine_of(judge(&SpaceGuard::is_low)) + (low_here() ? 0u : 1u) < node_.majority();
}

DiskSpace SpaceGuard::cluster() const {
  std::vector<DiskSpace> known{own_};
  for (const auto& [node, other] : others_) known.push_back(other.space);
  std::sort(known.begin(), known.end(),
            [](const DiskSpace& a, const DiskSpace& b) { return a.free_bytes > b.free_bytes; });
  return known[std::min(node_.majority(), known.size()) - 1];
}

// ---------------------------------------------------------------- looking

asio::awaitable<void> SpaceGuard::watch() {
  while (!node_.stopping) {
    if (node_.env.now() >= next_look_) {
      co_await look();
      if (node_.serving) {
        for (const NodeId peer : node_.peers->others())
          node_.tasks.spawn("ask for space", ask(peer));
      }
      co_await keep_reserve_file();
      // Near the limit a look a tick: ENOSPC shall neither come late nor stay for long.
      next_look_ = node_.env.now() + (near_limit() ? kTick : node_.config.space_interval);
    }
    care();
    if (!node_.serving || !doubtful()) {
      doubt_since_ = {};
    } else if (doubt_since_ == TimePoint{}) {
      doubt_since_ = node_.env.now();
    }
    wait_for_trailing();
    hand_over_if_full();
    if (const std::error_code stop = co_await node_.env.sleep_for(kTick); stop) co_return;
  }
}

asio::awaitable<void> SpaceGuard::look() {
  Disk* disk = &node_.env.disk();
  const std::uint64_t taken_before = taken_bytes_;
  // Closures have names: as a temporary of a coroutine g++ 12 would destroy one twice.
  const auto work = [disk, dir = node_.config.data_dir] { return disk->space(dir); };
  auto space = co_await blocking<DiskSpace>(node_.env, work);
  if (!space) co_return;
  own_ = *space;
  own_known_ = true;
  taken_bytes_ -= taken_before;
  const bool full = full_here();
  if (full == was_full_) co_return;
  was_full_ = full;
  if (full) {
    spdlog::warn(
        "node {}: only {} MiB are free under {}: writes are refused (ENOSPC); free some room",
        node_.config.self.value(), own_.free_bytes >> 20, node_.config.data_dir);
  } else {
    spdlog::info("node {}: there is room again under {}", node_.config.self.value(),
                 node_.config.data_dir);
  }
}

asio::awaitable<void> SpaceGuard::ask(NodeId peer) {
  const std::uint64_t taken_before = taken_ever_bytes_;
  Request request;
  request.method = static_cast<std::uint16_t>(Method::kStatus);
  auto response =
      co_await node_.peers->call(peer, Peers::Lane::kBulk, std::move(request), kAskTimeout);
  if (!response) co_return;
  auto status = decode<NodeStatus>(response->body);
  if (!status) co_return;
  node_.command_levels.heard(peer, status->command_level);
  Other& other = others_[peer];
  other.space = {status->disk_total_bytes, status->disk_free_bytes};
  other.full = status->disk_full;
  other.taken_before = taken_before;
  other.seen = node_.env.now();
}

// ---------------------------------------------------------------- acting

asio::awaitable<void> SpaceGuard::keep_reserve_file() {
  const std::uint64_t size = reserve_file_bytes();
  if (size == 0 || !own_known_ || reserve_file_->there) co_return;
  if (own_.free_bytes < 2 * (reserve(own_) + size)) co_return;
  const auto work = [file = reserve_file_, size]() -> Status {
    const auto fill = [&]() -> Status {
      FM_TRY(auto out, file->disk->open(file->path, Disk::Mode::kCreate));
      const Bytes zeros(1 << 20);
      for (std::uint64_t at = 0; at < size; at += zeros.size()) FM_CHECK(out->write_at(at, zeros));
      return {};
    };
    const Status filled = fill();
    if (filled) {
      file->there = true;
    } else {
      (void)file->disk->remove(file->path);
    }
    return filled;
  };
  auto made = co_await blocking<void>(node_.env, work);
  if (!made) spdlog::warn("{}: {}", reserve_file_->path, made.error().message());
}

/// While room is scarce the log is kept short.
void SpaceGuard::care() {
  if (node_.env.now() < next_care_) return;
  next_care_ = node_.env.now() + kCareInterval;
  node_.log->spare_room(low_here());
}

/// A node whose disk was full for a moment shall find in the log what it missed: for a snapshot it
/// has no room. So what takes room waits for it, for a while.
void SpaceGuard::wait_for_trailing() {
  const bool trails = std::any_of(others_.begin(), others_.end(), [&](const auto& each) {
    return is_fresh(each.second) && is_low(each.second) && node_.log->trails(each.first);
  });
  if (!node_.serving || !trails) {
    trailing_since_ = {};
    waits_for_trailing_ = false;
    return;
  }
  if (trailing_since_ == TimePoint{}) trailing_since_ = node_.env.now();
  waits_for_trailing_ = node_.env.now() - trailing_since_ < kHandOverPatience;
}

void SpaceGuard::hand_over_if_full() {
  const TimePoint now = node_.env.now();
  const bool others_can = others_with_room() >= node_.majority();
  if (!node_.serving || !full_here() || !others_can) {
    full_since_ = {};
    return;
  }
  if (full_since_ == TimePoint{}) full_since_ = now;
  if (handing_over_ || now < next_hand_over_) return;
  for (const NodeId voter : node_.peers->other_voters()) {
    const auto it = others_.find(voter);
    if (it == others_.end() || is_full(it->second) || !is_fresh(it->second)) continue;
    handing_over_ = true;
    node_.tasks.spawn("hand over", hand_over(voter));
    return;
  }
}

asio::awaitable<void> SpaceGuard::hand_over(NodeId to) {
  spdlog::info("node {}: its disk is full: handing the role over to node {}",
               node_.config.self.value(), to.value());
  auto done = co_await node_.log->transfer_leadership(to);
  if (!done) {
    spdlog::warn("node {}: node {} did not take the role: {}", node_.config.self.value(),
                 to.value(), done.error().message());
  }
  handing_over_ = false;
  next_hand_over_ = node_.env.now() + kHandOverInterval;
}

}  // namespace fermata::serverd
