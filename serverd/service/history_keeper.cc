#include "serverd/service/history_keeper.h"

#include <algorithm>
#include <utility>

#include "common/base/checksum.h"
#include "serverd/service/chunk_durability.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr std::uint32_t kKeysPerPrune = 1000;
constexpr std::size_t kChunksPerDrop = 500;
constexpr int kCommandsPerRound = 50;
constexpr Duration kBetweenCommands = 20ms;
constexpr std::size_t kSamplesMax = 4096;
constexpr Duration kLowInterval = 1s;                         // between rounds while room is scarce
constexpr std::uint64_t kTimesMagic = 0x3153'454d'4954'4d46;  // "FMTIMES1"
}  // namespace

asio::awaitable<void> HistoryKeeper::run() {
  co_await load();
  while (!node_.stopping) {
    co_await sample();
    if (node_.serving) co_await prune();
    if (node_.serving) co_await drop_chunks();
    node_.durability->sweep();
    const TimePoint next = node_.env.now() + node_.config.prune_interval;
    while (node_.env.now() < next && !node_.stopping) {
      const Duration tick = std::min<Duration>(kLowInterval, next - node_.env.now());
      if (const std::error_code stop = co_await node_.env.sleep_for(tick); stop) co_return;
      if (node_.space->low()) break;
    }
  }
}

// The file: magic, then (index, nanoseconds) pairs, then a CRC-32C of all that. It is a
// convenience: a bad one is as good as none, history is then kept for longer.
asio::awaitable<void> HistoryKeeper::load() {
  Disk* disk = &node_.env.disk();
  const std::string path = node_.config.data_dir + "/times";
  const auto work = [disk, path] { return read_file(*disk, path, 1 << 20); };
  auto bytes = co_await blocking<Bytes>(node_.env, work);
  if (!bytes || bytes->size() < 12 || (bytes->size() - 12) % 16 != 0) co_return;
  const auto body = ByteView(*bytes).first(bytes->size() - 4);
  if (load_le<std::uint64_t>(body.data()) != kTimesMagic) co_return;
  if (load_le<std::uint32_t>(bytes->data() + body.size()) != crc32c(body)) co_return;
  for (std::size_t at = 8; at < body.size(); at += 16) {
    samples_.push_back({LogIndex(load_le<std::uint64_t>(body.data() + at)),
                        load_le<std::int64_t>(body.data() + at + 8)});
  }
}

asio::awaitable<void> HistoryKeeper::sample() {
  const Sample now{node_.ns->applied_index(), node_.env.clock().wall_ns()};
  const auto spacing =
      node_.space->low() ? 1s : std::max<Duration>(node_.config.history_retention_low / 4, 1s);
  if (!samples_.empty() && (samples_.back().index >= now.index ||
                            now.wall_ns - samples_.back().wall_ns < spacing.count())) {
    co_return;
  }
  samples_.push_back(now);
  const LogIndex start = node_.ns->history_start();
  while (samples_.size() > kSamplesMax || (samples_.size() > 1 && samples_[1].index <= start)) {
    samples_.pop_front();
  }
  std::string text;
  append_le(text, kTimesMagic);
  for (const Sample& each : samples_) {
    append_le(text, each.index.value());
    append_le(text, each.wall_ns);
  }
  append_le(text, crc32c(as_bytes(text)));
  Disk* disk = &node_.env.disk();
  const std::string path = node_.config.data_dir + "/times";
  const auto work = [disk, path, text] {
    return write_file_atomically(*disk, path, as_bytes(text));
  };
  auto written = co_await blocking<void>(node_.env, work);
  if (!written) spdlog::debug("{}: {}", path, written.error().message());
}

LogIndex HistoryKeeper::applied_before(Duration age) const {
  const std::int64_t then = node_.env.clock().wall_ns() - age.count();
  LogIndex found;
  for (const Sample& each : samples_) {
    if (each.wall_ns <= then) found = std::max(found, each.index);
  }
  return found;
}

/// From the samples: at least so old is the oldest that is kept.
Duration HistoryKeeper::kept() const {
  const LogIndex start = node_.ns->history_start();
  for (const Sample& each : samples_) {
    if (each.index > start)
      return Duration(std::max<std::int64_t>(0, node_.env.clock().wall_ns() - each.wall_ns));
  }
  return Duration::zero();
}

/// Where the primary before left off, if room was scarce.
void HistoryKeeper::on_serving() {
  serving_since_ = node_.env.now();
  node_.no_history = false;
  low_retention_ = std::min(node_.config.history_retention_low, kept());
}

Duration HistoryKeeper::retention() {
  if (!node_.space->low()) {
    low_retention_ = node_.config.history_retention_low;
    node_.no_history = false;
    return node_.config.history_retention;
  }
  const Duration now = std::min(low_retention_, node_.config.history_retention);
  low_retention_ = now > 1s ? now / 4 : Duration::zero();
  node_.no_history = now == Duration::zero();
  return now;
}

asio::awaitable<void> HistoryKeeper::prune() {
  const Duration age = retention();
  const LogIndex now = node_.ns->applied_index().prev();
  const LogIndex before = age == Duration::zero() ? now : applied_before(age);
  // Commands that kept no history have ended what was before them, too.
  const LogIndex up_to = std::max(before, std::min(now, node_.ns->history_start()));
  if (up_to <= pruned_) co_return;
  for (int i = 0; i < kCommandsPerRound && node_.serving; ++i) {
    PruneHistoryCommand command;
    command.up_to = up_to;
    command.keys_max = kKeysPerPrune;
    auto result = co_await node_.propose_own(std::move(command));
    if (!result || result->error != 0) co_return;
    node_.count("history_keys_pruned", result->count);
    if (result->count < kKeysPerPrune) {
      pruned_ = up_to;
      co_return;
    }
    if (const std::error_code stop = co_await node_.env.sleep_for(kBetweenCommands); stop)
      co_return;
  }
}

asio::awaitable<void> HistoryKeeper::drop_chunks() {
  // What an older primary's clients have put they need not put again: it waits for them.
  const bool early = node_.env.now() - serving_since_ < node_.config.chunk_pin;
  if (early && !node_.space->low()) co_return;
  for (int i = 0; i < kCommandsPerRound && node_.serving; ++i) {
    auto garbage = node_.ns->garbage(node_.ns->applied_index().next(), kChunksPerDrop);
    if (!garbage) co_return;
    const bool more = garbage->size() == kChunksPerDrop;
    std::erase_if(*garbage, [&](const ChunkId& id) { return node_.durability->is_protected(id); });
    const auto offered = node_.durability->take_offered(kChunksPerDrop - garbage->size());
    garbage->insert(garbage->end(), offered.begin(), offered.end());
    if (garbage->empty()) co_return;
    const std::vector<ChunkId> ids = *garbage;
    DropChunksCommand command;
    command.chunks = ids;
    node_.durability->begin_drop(ids);
    auto result = co_await node_.propose_own(std::move(command));
    node_.durability->end_drop(ids);
    if (!result || result->error != 0) co_return;
    node_.count("chunks_dropped", result->count);
    if (!more) co_return;
    if (const std::error_code stop = co_await node_.env.sleep_for(kBetweenCommands); stop)
      co_return;
  }
}

}  // namespace fermata::serverd
