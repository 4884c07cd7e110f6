#include "serverd/store/mem_store.h"

#include "common/base/assert.h"
#include "common/base/checksum.h"
#include "serverd/store/format_file.h"

namespace fermata::serverd {
namespace {

constexpr std::uint64_t kImageBytesMax = 4ULL << 30;
constexpr const char* kImageName = "/image";

std::size_t slot(Family family) { return static_cast<std::size_t>(family) - 1; }

class MapIterator final : public KvIterator {
 public:
  MapIterator(std::shared_ptr<const MemStore::Map> map, std::string_view lower,
              std::string_view upper)
      : map_(std::move(map)),
        at_(map_->lower_bound(lower)),
        end_(upper.empty() ? map_->end() : map_->lower_bound(upper)) {
    if (!upper.empty() && upper <= lower) at_ = end_;
  }
  bool valid() const override { return at_ != end_; }
  void next() override { ++at_; }
  std::string_view key() const override { return at_->first; }
  std::string_view value() const override { return at_->second; }
  Status status() const override { return {}; }

 private:
  std::shared_ptr<const MemStore::Map> map_;
  MemStore::Map::const_iterator at_;
  MemStore::Map::const_iterator end_;
};

class StateReader final : public KvReader {
 public:
  explicit StateReader(MemStore::State state) : state_(std::move(state)) {}
  Result<std::optional<std::string>> get(Family family, std::string_view key) const override {
    const auto& map = *state_.maps[slot(family)];
    const auto at = map.find(key);
    if (at == map.end()) return std::optional<std::string>();
    return std::optional(at->second);
  }
  std::unique_ptr<KvIterator> iterate(Family family, std::string_view lower,
                                      std::string_view upper) const override {
    return std::make_unique<MapIterator>(state_.maps[slot(family)], lower, upper);
  }

 private:
  MemStore::State state_;
};

// The image: the FORMAT record, then (u8 family, u32 key size, u32 value size, key, value) in key
// order, a zero byte, and the CRC-32C of all before it.
std::string encode_image(const MemStore::State& state) {
  std::string out = encode_format({.cluster = state.cluster});
  for (const Family family : kFamilies) {
    for (const auto& [key, value] : *state.maps[slot(family)]) {
      append_le(out, static_cast<std::uint8_t>(family));
      append_le(out, static_cast<std::uint32_t>(key.size()));
      append_le(out, static_cast<std::uint32_t>(value.size()));
      out += key;
      out += value;
    }
  }
  out += '\0';
  append_le(out, crc32c(as_bytes(out)));
  return out;
}

Result<MemStore::State> decode_image(ByteView bytes) {
  const std::size_t head = encode_format({}).size();
  if (bytes.size() < 12) return Errc::kVersionMismatch;
  MemStore::State state;
  FM_TRY(const StoreFormat format, decode_format(bytes.first(std::min(head, bytes.size()))));
  state.cluster = format.cluster;
  if (bytes.size() < head + 5) return Errc::kCorruptStore;
  const ByteView body = bytes.first(bytes.size() - 4);
  if (crc32c(body) != load_le<std::uint32_t>(bytes.data() + body.size()))
    return Errc::kCorruptStore;
  std::array<MemStore::Map, kFamilyCount> maps;
  std::size_t at = head;
  while (at < body.size() && body[at] != std::byte{0}) {
    const auto family = static_cast<std::size_t>(body[at]);
    if (family > kFamilyCount || body.size() - at < 9) return Errc::kCorruptStore;
    const auto key_size = load_le<std::uint32_t>(body.data() + at + 1);
    const auto value_size = load_le<std::uint32_t>(body.data() + at + 5);
    at += 9;
    if (body.size() - at < std::size_t{key_size} + value_size) return Errc::kCorruptStore;
    auto& map = maps[family - 1];
    map.emplace_hint(map.end(), as_text(body.subspan(at, key_size)),
                     as_text(body.subspan(at + key_size, value_size)));
    at += std::size_t{key_size} + value_size;
  }
  if (at + 1 != body.size()) return Errc::kCorruptStore;
  for (std::size_t i = 0; i < maps.size(); ++i)
    state.maps[i] = std::make_shared<const MemStore::Map>(std::move(maps[i]));
  return state;
}

}  // namespace

Result<std::unique_ptr<MemStore>> MemStore::open(Disk& disk, const std::string& path,
                                                 ClusterId cluster) {
  std::unique_ptr<MemStore> store(new MemStore(disk, path));
  FM_CHECK(disk.make_dirs(path));
  FM_CHECK(disk.sync_dir(parent_of(path)));
  FM_TRY(const bool there, disk.exists(path + kImageName));
  State state;
  if (there) {
    FM_TRY(const Bytes bytes, read_file(disk, path + kImageName, kImageBytesMax));
    FM_TRY(state, decode_image(bytes));
    FM_CHECK(check_cluster(state.cluster, cluster));
  } else {
    for (auto& map : state.maps) map = std::make_shared<const Map>();
  }
  if (!state.cluster) state.cluster = cluster;
  {
    const MutexLock lock(store->mutex_);
    store->state_ = std::move(state);
  }
  return store;
}

MemStore::State MemStore::state() const {
  const MutexLock lock(mutex_);
  return state_;
}

Result<std::optional<std::string>> MemStore::get(Family family, std::string_view key) const {
  const MutexLock lock(mutex_);
  const Map& map = *state_.maps[slot(family)];
  const auto at = map.find(key);
  if (at == map.end()) return std::optional<std::string>();
  return std::optional(at->second);
}

std::unique_ptr<KvIterator> MemStore::iterate(Family family, std::string_view lower,
                                              std::string_view upper) const {
  const MutexLock lock(mutex_);
  return std::make_unique<MapIterator>(state_.maps[slot(family)], lower, upper);
}

Status MemStore::write(const KvBatch& batch) {
  const MutexLock lock(mutex_);
  for (const KvBatch::Write& write : batch.writes()) {
    auto& shared = state_.maps[slot(write.family)];
    // Nobody can take a new reference meanwhile: they are all taken under the mutex.
    if (shared.use_count() > 1) shared = std::make_shared<const Map>(*shared);
    Map& map = const_cast<Map&>(*shared);  // made non-const by this class, seen by nobody else
    if (write.value) {
      map.insert_or_assign(write.key, *write.value);
    } else {
      map.erase(write.key);
    }
  }
  return {};
}

std::unique_ptr<KvReader> MemStore::snapshot() const {
  return std::make_unique<StateReader>(state());
}

Status MemStore::flush() {
  return write_file_atomically(disk_, path_ + kImageName, as_bytes(encode_image(state())));
}

Result<std::unique_ptr<KvReader>> MemStore::checkpoint(const std::string& path) {
  State cut = state();
  FM_CHECK(disk_.make_dirs(path));
  FM_CHECK(write_file_atomically(disk_, path + kImageName, as_bytes(encode_image(cut))));
  FM_CHECK(disk_.sync_dir(parent_of(path)));
  return std::unique_ptr<KvReader>(std::make_unique<StateReader>(std::move(cut)));
}

Status MemStore::install(const std::string& path) {
  FM_TRY(const bool there, disk_.exists(path + kImageName));
  if (!there) return Errc::kCorruptStore;
  FM_TRY(const Bytes bytes, read_file(disk_, path + kImageName, kImageBytesMax));
  FM_TRY(State next, decode_image(bytes));
  const ClusterId own = cluster();
  FM_CHECK(check_cluster(next.cluster, own));
  if (!next.cluster) next.cluster = own;
  FM_CHECK(disk_.rename(path + kImageName, path_ + kImageName));
  FM_CHECK(disk_.sync_dir(path_));
  FM_CHECK(disk_.remove_all(path));
  FM_CHECK(disk_.sync_dir(parent_of(path)));
  const MutexLock lock(mutex_);
  state_ = std::move(next);
  return {};
}

ClusterId MemStore::cluster() const {
  const MutexLock lock(mutex_);
  return state_.cluster;
}

Status MemStore::bind_cluster(ClusterId cluster) {
  {
    const MutexLock lock(mutex_);
    FM_CHECK(check_cluster(state_.cluster, cluster));
    if (state_.cluster == cluster) return {};
    state_.cluster = cluster;
  }
  return flush();
}

std::uint64_t MemStore::approximate_bytes(Family family) const {
  const State cut = state();
  std::uint64_t bytes = 0;
  for (const auto& [key, value] : *cut.maps[slot(family)]) bytes += key.size() + value.size();
  return bytes;
}

}  // namespace fermata::serverd
