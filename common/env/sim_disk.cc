#include "common/env/sim_disk.h"

#include <algorithm>
#include <cerrno>
#include <deque>
#include <map>
#include <optional>
#include <set>

#include "common/base/assert.h"
#include "common/base/mutex.h"

namespace fermata {
namespace {

constexpr std::size_t kSectorBytes = 512;

/// A change to a file that the medium may not have yet.
struct Pending {
  std::uint64_t offset = 0;
  Bytes data;
  std::optional<std::uint64_t> truncate_to;  // instead of a write
};

void write_into(Bytes& image, std::uint64_t offset, ByteView data) {
  if (data.empty()) return;
  if (image.size() < offset + data.size()) image.resize(offset + data.size());
  std::copy(data.begin(), data.end(), image.begin() + static_cast<std::ptrdiff_t>(offset));
}

void apply_change(Bytes& image, const Pending& change) {
  if (change.truncate_to) {
    image.resize(*change.truncate_to);
  } else {
    write_into(image, change.offset, change.data);
  }
}

struct Node {
  explicit Node(bool directory, std::shared_ptr<std::uint64_t> used_bytes)
      : is_dir(directory), used(used_bytes) {}
  ~Node() { *used -= current.size(); }
  Node(const Node&) = delete;
  Node& operator=(const Node&) = delete;

  const bool is_dir;
  std::shared_ptr<std::uint64_t> used;  // bytes in all files
  Bytes current;                        // what programs see
  Bytes durable;                        // what the medium has
  std::vector<Pending> pending;         // current = durable + pending, until a sync fails
  std::map<std::string, std::shared_ptr<Node>> entries;
  std::map<std::string, std::shared_ptr<Node>> durable_entries;

  void change(Pending what) {
    *used -= current.size();
    apply_change(current, what);
    *used += current.size();
    pending.push_back(std::move(what));
  }
};
using NodePtr = std::shared_ptr<Node>;

/// A change to directories that becomes durable as one: a rename edits two names.
struct DirChange {
  struct Edit {
    NodePtr dir;
    std::string name;
    NodePtr node;  // null: the name goes
  };
  std::vector<Edit> edits;
  bool touches(const std::set<Node*>& dirs) const {
    return std::any_of(edits.begin(), edits.end(),
                       [&](const Edit& e) { return dirs.contains(e.dir.get()); });
  }
  void add_dirs(std::set<Node*>& dirs) const {
    for (const Edit& e : edits) dirs.insert(e.dir.get());
  }
};

void edit(std::map<std::string, NodePtr>& entries, const DirChange::Edit& e) {
  if (e.node) {
    entries[e.name] = e.node;
  } else {
    entries.erase(e.name);
  }
}

std::vector<std::string> split(const std::string& path) {
  std::vector<std::string> parts;
  std::size_t at = 0;
  while (at < path.size()) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    if (end > at && path.compare(at, end - at, ".") != 0)
      parts.push_back(path.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

/// The medium's image of one file after a power cut.
Bytes survive(const Node& file, Random& random) {
  Bytes image = file.durable;
  const auto& pending = file.pending;
  if (pending.empty()) return image;
  switch (random.below(5)) {
    case 0:
      break;  // nothing was written back
    case 1:   // everything was
      for (const Pending& p : pending) apply_change(image, p);
      break;
    case 2: {  // a prefix, its last write torn at a byte
      const std::size_t whole = random.below(pending.size());
      for (std::size_t i = 0; i < whole; ++i) apply_change(image, pending[i]);
      const Pending& torn = pending[whole];
      if (!torn.truncate_to) {
        write_into(image, torn.offset,
                   ByteView(torn.data).first(random.below(torn.data.size() + 1)));
      }
      break;
    }
    case 3:  // any subset of sectors, in order
      for (const Pending& p : pending) {
        if (p.truncate_to) {
          if (random.chance(1, 2)) apply_change(image, p);
          continue;
        }
        std::uint64_t at = p.offset;
        const std::uint64_t end = p.offset + p.data.size();
        while (at < end) {
          const std::uint64_t next = std::min(end, (at / kSectorBytes + 1) * kSectorBytes);
          if (random.chance(1, 2))
            write_into(image, at, ByteView(p.data).subspan(at - p.offset, next - at));
          at = next;
        }
      }
      break;
    case 4:  // the size and none of the data
      image.resize(file.current.size());
      break;
  }
  return image;
}

}  // namespace

struct SimDisk::Impl {
  explicit Impl(std::uint64_t seed) : random(seed) {}

  mutable Mutex mutex;
  std::shared_ptr<std::uint64_t> used = std::make_shared<std::uint64_t>(0);
  NodePtr root = std::make_shared<Node>(true, used);
  std::deque<DirChange> journal;  // pending changes of directories, oldest first
  SeededRandom random;
  std::uint64_t boot = 0;  // files opened under another number are dead
  std::uint64_t operation_count = 0;
  std::uint64_t sync_count = 0;
  std::uint64_t torn_count = 0;
  bool syncs_ignored = false;
  std::optional<std::uint64_t> fault_at;
  Fault fault = Fault::kEio;
  bool off = false;
  std::uint64_t capacity = ~std::uint64_t{0};
  std::function<void()> power_off;

  NodePtr find(const std::string& path) const {
    NodePtr at = root;
    for (const std::string& part : split(path)) {
      if (!at->is_dir) return nullptr;
      const auto it = at->entries.find(part);
      if (it == at->entries.end()) return nullptr;
      at = it->second;
    }
    return at;
  }
  /// The directory that holds `path` and the name in it.
  Result<std::pair<NodePtr, std::string>> locate(const std::string& path) const {
    const auto parts = split(path);
    if (parts.empty()) return std::errc::invalid_argument;
    NodePtr at = root;
    for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto it = at->entries.find(parts[i]);
      if (it == at->entries.end()) return std::errc::no_such_file_or_directory;
      if (!it->second->is_dir) return std::errc::not_a_directory;
      at = it->second;
    }
    return std::pair(at, parts.back());
  }
  void change(DirChange what) {
    for (const auto& e : what.edits) edit(e.dir->entries, e);
    journal.push_back(std::move(what));
  }
  static void make_durable(const DirChange& what) {
    for (const auto& e : what.edits) edit(e.dir->durable_entries, e);
  }

  /// What becomes of the operation that begins now.
  std::optional<Fault> next_operation() {
    const std::uint64_t number = operation_count++;
    if (!fault_at || *fault_at != number) return std::nullopt;
    fault_at.reset();
    return fault;
  }

  /// Runs one operation under the armed fault. `perform` returns a Status; `perform_part` is what a
  /// failed one leaves behind.
  template <class Perform, class Part>
  Status operate(Perform perform, Part perform_part) {
    Status result;
    std::function<void()> cut;
    {
      MutexLock lock(mutex);
      if (off) return from_errno(EIO);
      const auto now = next_operation();
      if (!now) return perform();
      switch (*now) {
        case Fault::kEio:
          perform_part(false);
          return from_errno(EIO);
        case Fault::kEnospc:
          perform_part(false);
          return from_errno(ENOSPC);
        case Fault::kShortWrite:
          perform_part(true);
          return from_errno(ENOSPC);
        case Fault::kPowerCutBefore:
          result = from_errno(EIO);
          break;
        case Fault::kPowerCutAfter:
          result = perform();
          break;
      }
      off = true;
      cut = std::exchange(power_off, nullptr);
    }
    if (cut) cut();
    return result;
  }
  template <class Perform>
  Status operate(Perform perform) {
    return operate(perform, [](bool) {});
  }

  Status remove_tree(const NodePtr& dir, const std::string& name) {
    const NodePtr node = dir->entries.at(name);
    while (node->is_dir && !node->entries.empty()) {
      FM_CHECK(remove_tree(node, node->entries.begin()->first));
    }
    change({{{dir, name, nullptr}}});
    return {};
  }

  void settle(const NodePtr& node, Random& by) {
    node->entries = node->durable_entries;
    *node->used -= node->current.size();
    Bytes image = survive(*node, by);
    if (!node->pending.empty() && image != node->current && image != node->durable) ++torn_count;
    node->current = std::move(image);
    *node->used += node->current.size();
    node->durable = node->current;
    node->pending.clear();
    for (const auto& [name, child] : node->entries) settle(child, by);
  }
};

class SimDisk::SimFile final : public File {
 public:
  SimFile(std::shared_ptr<Impl> disk, NodePtr node, bool writable)
      : disk_(std::move(disk)), node_(std::move(node)), writable_(writable), boot_(disk_->boot) {}

  Result<std::size_t> read_at(std::uint64_t offset_bytes, MutableByteView out) const override {
    MutexLock lock(disk_->mutex);
    if (is_dead()) return from_errno(EIO);
    const Bytes& image = node_->current;
    if (offset_bytes >= image.size()) return std::size_t{0};
    const std::size_t count = std::min<std::uint64_t>(out.size(), image.size() - offset_bytes);
    std::copy_n(image.begin() + static_cast<std::ptrdiff_t>(offset_bytes), count, out.begin());
    return count;
  }

  Status write_at(std::uint64_t offset_bytes, ByteView bytes) override {
    const auto put = [&](std::size_t count) {
      const auto part = bytes.first(count);
      node_->change(
          {.offset = offset_bytes, .data = Bytes(part.begin(), part.end()), .truncate_to = {}});
    };
    return disk_->operate(
        [&]() -> Status {
          if (is_dead()) return from_errno(EIO);
          if (!writable_) return from_errno(EBADF);
          const std::uint64_t end = offset_bytes + bytes.size();
          const std::uint64_t growth =
              end > node_->current.size() ? end - node_->current.size() : 0;
          if (*disk_->used + growth > disk_->capacity) return from_errno(ENOSPC);
          put(bytes.size());
          return {};
        },
        [&](bool half) {
          if (is_dead() || !writable_) return;
          put(half ? bytes.size() / 2 : disk_->random.below(bytes.size() + 1));
        });
  }

  Status truncate(std::uint64_t size_bytes) override {
    return disk_->operate([&]() -> Status {
      if (is_dead()) return from_errno(EIO);
      if (!writable_) return from_errno(EBADF);
      if (size_bytes != node_->current.size())
        node_->change({.offset = 0, .data = {}, .truncate_to = size_bytes});
      return {};
    });
  }

  Status sync() override {
    return disk_->operate(
        [&]() -> Status {
          if (is_dead()) return from_errno(EIO);
          ++disk_->sync_count;
          if (disk_->syncs_ignored) return {};
          for (const Pending& p : node_->pending) apply_change(node_->durable, p);
          node_->pending.clear();
          return {};
        },
        [&](bool) {
          if (!is_dead())
            node_->pending.clear();  // the pages are clean now, and the medium never saw them
        });
  }

  Result<std::uint64_t> size_bytes() const override {
    MutexLock lock(disk_->mutex);
    if (is_dead()) return from_errno(EIO);
    return static_cast<std::uint64_t>(node_->current.size());
  }

 private:
  bool is_dead() const { return disk_->off || boot_ != disk_->boot; }

  std::shared_ptr<Impl> disk_;
  NodePtr node_;
  bool writable_;
  std::uint64_t boot_;
};

SimDisk::SimDisk(std::uint64_t seed) : impl_(std::make_shared<Impl>(seed)) {}
SimDisk::~SimDisk() = default;

Result<std::unique_ptr<File>> SimDisk::open(const std::string& path, Mode mode) {
  NodePtr node;
  bool create = false;
  {
    MutexLock lock(impl_->mutex);
    if (impl_->off) return from_errno(EIO);
    node = impl_->find(path);
    if (node && node->is_dir) return from_errno(EISDIR);
    if (node && mode == Mode::kCreateNew) return from_errno(EEXIST);
    if (!node && (mode == Mode::kRead || mode == Mode::kReadWrite)) return from_errno(ENOENT);
    create = !node;
  }
  if (create) {
    FM_CHECK(impl_->operate([&]() -> Status {
      FM_TRY(const auto place, impl_->locate(path));
      node = std::make_shared<Node>(false, impl_->used);
      impl_->change({{{place.first, place.second, node}}});
      return {};
    }));
  }
  MutexLock lock(impl_->mutex);
  return std::unique_ptr<File>(std::make_unique<SimFile>(impl_, node, mode != Mode::kRead));
}

Status SimDisk::rename(const std::string& from, const std::string& to) {
  return impl_->operate([&]() -> Status {
    const NodePtr node = impl_->find(from);
    if (!node) return from_errno(ENOENT);
    FM_TRY(const auto source, impl_->locate(from));
    FM_TRY(const auto target, impl_->locate(to));
    if (source == target) return {};
    const NodePtr replaced = impl_->find(to);
    if (replaced && replaced->is_dir != node->is_dir)
      return from_errno(replaced->is_dir ? EISDIR : ENOTDIR);
    if (replaced && !replaced->entries.empty()) return from_errno(ENOTEMPTY);
    impl_->change({{{target.first, target.second, node}, {source.first, source.second, nullptr}}});
    return {};
  });
}

Status SimDisk::remove(const std::string& path) {
  return impl_->operate([&]() -> Status {
    const NodePtr node = impl_->find(path);
    if (!node) return from_errno(ENOENT);
    if (!node->entries.empty()) return from_errno(ENOTEMPTY);
    FM_TRY(const auto place, impl_->locate(path));
    impl_->change({{{place.first, place.second, nullptr}}});
    return {};
  });
}

Status SimDisk::remove_all(const std::string& path) {
  return impl_->operate([&]() -> Status {
    if (!impl_->find(path)) return {};
    FM_TRY(const auto place, impl_->locate(path));
    return impl_->remove_tree(place.first, place.second);
  });
}

Status SimDisk::make_dirs(const std::string& path) {
  {
    MutexLock lock(impl_->mutex);
    if (impl_->off) return from_errno(EIO);
    const NodePtr node = impl_->find(path);
    if (node) return node->is_dir ? Status() : Status(from_errno(EEXIST));
  }
  return impl_->operate([&]() -> Status {
    NodePtr at = impl_->root;
    for (const std::string& part : split(path)) {
      const auto it = at->entries.find(part);
      if (it == at->entries.end()) {
        const NodePtr made = std::make_shared<Node>(true, impl_->used);
        impl_->change({{{at, part, made}}});
        at = made;
      } else {
        if (!it->second->is_dir) return from_errno(ENOTDIR);
        at = it->second;
      }
    }
    return {};
  });
}

Result<std::vector<std::string>> SimDisk::list(const std::string& path) {
  MutexLock lock(impl_->mutex);
  if (impl_->off) return from_errno(EIO);
  const NodePtr node = impl_->find(path);
  if (!node) return from_errno(ENOENT);
  if (!node->is_dir) return from_errno(ENOTDIR);
  std::vector<std::string> names;
  for (const auto& [name, child] : node->entries) names.push_back(name);
  return names;
}

Result<bool> SimDisk::exists(const std::string& path) {
  MutexLock lock(impl_->mutex);
  if (impl_->off) return from_errno(EIO);
  return impl_->find(path) != nullptr;
}

Status SimDisk::sync_dir(const std::string& path) {
  NodePtr node;
  const auto flush = [&] {
    // Backwards: a change drags along the older ones of every directory it touches.
    std::set<Node*> dirs{node.get()};
    std::vector<DirChange> chosen;
    for (std::size_t i = impl_->journal.size(); i-- > 0;) {
      if (!impl_->journal[i].touches(dirs)) continue;
      impl_->journal[i].add_dirs(dirs);
      chosen.push_back(std::move(impl_->journal[i]));
      impl_->journal.erase(impl_->journal.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return chosen;
  };
  return impl_->operate(
      [&]() -> Status {
        node = impl_->find(path);
        if (!node) return from_errno(ENOENT);
        if (!node->is_dir) return from_errno(ENOTDIR);
        ++impl_->sync_count;
        if (impl_->syncs_ignored) return {};
        const auto chosen = flush();
        for (auto it = chosen.rbegin(); it != chosen.rend(); ++it) Impl::make_durable(*it);
        return {};
      },
      [&](bool) {});
}

Result<DiskSpace> SimDisk::space(const std::string&) {
  MutexLock lock(impl_->mutex);
  if (impl_->off) return from_errno(EIO);
  const std::uint64_t total = std::min<std::uint64_t>(impl_->capacity, std::uint64_t{1} << 40);
  return DiskSpace{.total_bytes = total, .free_bytes = total - std::min(total, *impl_->used)};
}

std::uint64_t SimDisk::operations() const {
  MutexLock lock(impl_->mutex);
  return impl_->operation_count;
}

void SimDisk::fail_at(std::uint64_t operation, Fault fault) {
  MutexLock lock(impl_->mutex);
  impl_->fault_at = operation;
  impl_->fault = fault;
}

bool SimDisk::is_off() const {
  MutexLock lock(impl_->mutex);
  return impl_->off;
}

void SimDisk::on_power_off(std::function<void()> callback) {
  MutexLock lock(impl_->mutex);
  impl_->power_off = std::move(callback);
}

void SimDisk::power_cut(Random& random) {
  MutexLock lock(impl_->mutex);
  // A directory that loses one change loses every later one, and so does what these touch.
  std::set<Node*> cut;
  for (const DirChange& change : impl_->journal) {
    if (change.touches(cut) || random.chance(1, 4)) {
      change.add_dirs(cut);
    } else {
      Impl::make_durable(change);
    }
  }
  impl_->journal.clear();
  impl_->settle(impl_->root, random);
  ++impl_->boot;
  impl_->off = false;
  impl_->fault_at.reset();
  impl_->power_off = nullptr;
}

void SimDisk::close_all() {
  MutexLock lock(impl_->mutex);
  ++impl_->boot;
}

bool SimDisk::corrupt(const std::string& path, std::uint64_t offset_bytes, std::uint8_t mask) {
  MutexLock lock(impl_->mutex);
  const NodePtr node = impl_->find(path);
  if (!node || node->is_dir || offset_bytes >= node->current.size()) return false;
  node->current[offset_bytes] ^= std::byte{mask};
  if (offset_bytes < node->durable.size()) node->durable[offset_bytes] ^= std::byte{mask};
  return true;
}

void SimDisk::set_capacity(std::uint64_t bytes) {
  MutexLock lock(impl_->mutex);
  impl_->capacity = bytes;
}

std::uint64_t SimDisk::syncs() const {
  MutexLock lock(impl_->mutex);
  return impl_->sync_count;
}

std::uint64_t SimDisk::torn_files() const {
  MutexLock lock(impl_->mutex);
  return impl_->torn_count;
}

void SimDisk::ignore_syncs(bool ignore) {
  MutexLock lock(impl_->mutex);
  impl_->syncs_ignored = ignore;
}

}  // namespace fermata
