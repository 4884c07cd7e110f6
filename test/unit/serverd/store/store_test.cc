// One suite for both stores, then what each one's files must refuse.
#include <sys/mount.h>
#include <unistd.h>

#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstdlib>
#include <map>

#include "common/env/real_env.h"
#include "common/env/sim_disk.h"
#include "serverd/store/mem_store.h"
#include "serverd/store/rocks_store.h"
#include "test/support/print.h"

using namespace fermata;
using namespace fermata::serverd;

namespace {

constexpr auto kF = Family::kInodes;
constexpr auto kG = Family::kDentries;

ClusterId cluster(std::uint8_t n) {
  ClusterId id;
  id.bytes[0] = n;
  return id;
}

struct OnRocks {
  OnRocks() {
    char name[] = "/tmp/fermata_store_XXXXXX";
    root = ::mkdtemp(name);
  }
  ~OnRocks() {
    store.reset();
    (void)disk.remove_all(root);
  }
  Status open(ClusterId id = {}) {
    store.reset();
    FM_TRY(store, RocksStore::open(root + "/meta", {.cluster = id}));
    return {};
  }
  /// What was not flushed is lost.
  void crash() { REQUIRE(open()); }
  RealDisk disk;
  std::string root;
  std::unique_ptr<KvStore> store;
};
struct OnMemory {
  OnMemory() : disk(7), random(7) {
    REQUIRE(disk.make_dirs(root));
    REQUIRE(disk.sync_dir("/"));
  }
  Status open(ClusterId id = {}) {
    store.reset();
    FM_TRY(store, MemStore::open(disk, root + "/meta", id));
    return {};
  }
  void crash() {
    store.reset();
    disk.power_cut(random);
    REQUIRE(open());
  }
  SimDisk disk;
  SeededRandom random;
  std::string root = "/sim";
  std::unique_ptr<KvStore> store;
};

std::map<std::string, std::string> all(const KvReader& reader, Family family,
                                       std::string_view lower = {}, std::string_view upper = {}) {
  std::map<std::string, std::string> records;
  const auto it = reader.iterate(family, lower, upper);
  std::string last;
  for (; it->valid(); it->next()) {
    CHECK((records.empty() || last < it->key()));
    last = it->key();
    records.emplace(it->key(), it->value());
  }
  REQUIRE(it->status());
  return records;
}
using Records = std::map<std::string, std::string>;

void put(KvStore& store, Family family, const std::string& key, const std::string& value) {
  KvBatch batch;
  batch.put(family, key, value);
  REQUIRE(store.write(batch));
}
std::optional<std::string> get(const KvReader& reader, Family family, std::string_view key) {
  auto value = reader.get(family, key);
  REQUIRE(value);
  return *value;
}

}  // namespace

TEMPLATE_TEST_CASE("KvStore: batches, order and bounds", "[serverd][store]", OnRocks, OnMemory) {
  TestType on;
  REQUIRE(on.open());
  KvStore& store = *on.store;
  KvBatch batch;
  batch.put(kF, "b", "1");
  batch.put(kF, "a", "0");
  batch.put(kG, "b", "other");
  batch.put(kF, std::string("a\0\xff", 3), "binary");
  batch.put(kF, "c", "gone");
  batch.erase(kF, "c");
  batch.erase(kF, "never there");
  REQUIRE(store.write(batch));
  CHECK(get(store, kF, "b") == "1");
  CHECK(get(store, kG, "b") == "other");
  CHECK(!get(store, kF, "c"));
  CHECK(all(store, kF) == Records{{"a", "0"}, {std::string("a\0\xff", 3), "binary"}, {"b", "1"}});
  CHECK(all(store, kF, "a", "b").size() == 2);
  CHECK(all(store, kF, "aa", "").size() == 1);
  CHECK(all(store, kF, "b", "a").empty());
  CHECK(all(store, kF, prefix_end("a"), prefix_end("b")).size() == 1);
  CHECK(prefix_end("a\xff\xff") == "b");
  CHECK(prefix_end("\xff").empty());
}

TEMPLATE_TEST_CASE("KvStore: a snapshot and an iterator do not move", "[serverd][store]", OnRocks,
                   OnMemory) {
  TestType on;
  REQUIRE(on.open());
  put(*on.store, kF, "k", "old");
  const auto snapshot = on.store->snapshot();
  const auto it = on.store->iterate(kF, {}, {});
  KvBatch batch;
  batch.put(kF, "k", "new");
  batch.put(kF, "l", "new");
  REQUIRE(on.store->write(batch));
  CHECK(get(*snapshot, kF, "k") == "old");
  CHECK(all(*snapshot, kF) == Records{{"k", "old"}});
  REQUIRE(it->valid());
  CHECK(it->value() == "old");
  it->next();
  CHECK(!it->valid());
  CHECK(all(*on.store, kF) == Records{{"k", "new"}, {"l", "new"}});
  on.store.reset();
  CHECK(all(*snapshot, kF) == Records{{"k", "old"}});
}

TEMPLATE_TEST_CASE("KvStore: a crash goes back to a flush, whole", "[serverd][store]", OnRocks,
                   OnMemory) {
  TestType on;
  REQUIRE(on.open());
  KvBatch batch;
  batch.put(kF, "k", "1");
  batch.put(kG, "k", "1");
  REQUIRE(on.store->write(batch));
  REQUIRE(on.store->flush());
  put(*on.store, kF, "k", "2");
  put(*on.store, kG, "k", "2");
  on.crash();
  CHECK(get(*on.store, kF, "k") == "1");
  CHECK(get(*on.store, kG, "k") == "1");
  put(*on.store, kF, "k", "3");
  REQUIRE(on.store->flush());
  on.crash();
  CHECK(get(*on.store, kF, "k") == "3");
}

TEMPLATE_TEST_CASE("KvStore: a checkpoint becomes another store's state", "[serverd][store]",
                   OnRocks, OnMemory) {
  TestType from, to;
  REQUIRE(from.open(cluster(1)));
  REQUIRE(to.open());
  for (int i = 0; i < 1000; ++i) put(*from.store, kF, std::to_string(i), std::string(100, 'x'));
  const std::string path = from.root + "/checkpoint";
  const auto reader = from.store->checkpoint(path);
  REQUIRE(reader);
  put(*from.store, kF, "later", "no");
  CHECK(all(**reader, kF).size() == 1000);

  // Carried over as files, as between nodes.
  const std::string there = to.root + "/received";
  REQUIRE(to.disk.make_dirs(there));
  const auto names = from.disk.list(path);
  REQUIRE(names);
  for (const std::string& name : *names) {
    const auto bytes = read_file(from.disk, path + "/" + name, 1u << 30);
    REQUIRE(bytes);
    REQUIRE(write_file_atomically(to.disk, there + "/" + name, *bytes));
  }
  put(*to.store, kG, "own", "lost");
  const auto before = to.store->snapshot();
  REQUIRE(to.store->install(there));
  CHECK(all(*to.store, kF).size() == 1000);
  CHECK(all(*to.store, kG).empty());
  CHECK(get(*before, kG, "own") == "lost");
  CHECK(to.store->cluster() == cluster(1));
  to.crash();  // an install is durable at once
  CHECK(all(*to.store, kF).size() == 1000);
  put(*to.store, kF, "more", "yes");
  REQUIRE(to.store->flush());
  CHECK(!*to.disk.exists(there));
  // A second one on top.
  REQUIRE(to.store->checkpoint(to.root + "/again"));
  REQUIRE(to.store->install(to.root + "/again"));
  CHECK(all(*to.store, kF).size() == 1001);
}

TEMPLATE_TEST_CASE("KvStore: what must not be opened or installed is not", "[serverd][store]",
                   OnRocks, OnMemory) {
  TestType on, other;
  REQUIRE(on.open(cluster(1)));
  put(*on.store, kF, "k", "v");
  REQUIRE(on.store->flush());
  CHECK(on.open(cluster(2)).error() == Errc::kWrongCluster);
  REQUIRE(on.open(cluster(1)));
  CHECK(on.store->bind_cluster(cluster(2)).error() == Errc::kWrongCluster);
  CHECK(get(*on.store, kF, "k") == "v");

  REQUIRE(other.open());
  REQUIRE(other.store->bind_cluster(cluster(2)));
  REQUIRE(other.open());
  CHECK(other.store->cluster() == cluster(2));
  REQUIRE(other.store->checkpoint(other.root + "/c"));
  const auto names = other.disk.list(other.root + "/c");
  REQUIRE(names);
  REQUIRE(on.disk.make_dirs(on.root + "/c"));
  for (const std::string& name : *names)
    REQUIRE(write_file_atomically(on.disk, on.root + "/c/" + name,
                                  *read_file(other.disk, other.root + "/c/" + name, 1u << 30)));
  CHECK(on.store->install(on.root + "/c").error() == Errc::kWrongCluster);
  CHECK(on.store->install(on.root + "/nothing").error() == Errc::kCorruptStore);
  CHECK(get(*on.store, kF, "k") == "v");
}

TEST_CASE("RocksStore: foreign, newer and damaged directories are refused unchanged",
          "[serverd][store]") {
  OnRocks on;
  const std::string meta = on.root + "/meta";
  REQUIRE(on.disk.make_dirs(meta));
  REQUIRE(write_file_atomically(on.disk, meta + "/letter.txt", as_bytes("dear")));
  CHECK(on.open().error() == Errc::kVersionMismatch);
  REQUIRE(on.disk.remove(meta + "/letter.txt"));
  REQUIRE(on.open());
  for (int i = 0; i < 5000; ++i) put(*on.store, kF, std::to_string(i), std::string(50, 'x'));
  REQUIRE(on.store->flush());
  on.store.reset();

  Bytes format = *read_file(on.disk, meta + "/db-1/FORMAT", 4096);
  Bytes newer = format;
  newer[8] = std::byte{99};
  REQUIRE(write_file_atomically(on.disk, meta + "/db-1/FORMAT", newer));
  CHECK(on.open().error() == Errc::kVersionMismatch);
  Bytes flipped = format;
  flipped[20] ^= std::byte{1};
  REQUIRE(write_file_atomically(on.disk, meta + "/db-1/FORMAT", flipped));
  CHECK(on.open().error() == Errc::kCorruptStore);
  REQUIRE(write_file_atomically(on.disk, meta + "/db-1/FORMAT", format));
  REQUIRE(on.open());
  on.store.reset();

  // Damage in a table is found when its block is read.
  const auto names = on.disk.list(meta + "/db-1");
  for (const std::string& name : *names) {
    if (!name.ends_with(".sst")) continue;
    Bytes table = *read_file(on.disk, meta + "/db-1/" + name, 1u << 30);
    for (std::size_t i = 0; i < table.size() / 2; i += 64) table[i] ^= std::byte{0x10};
    REQUIRE(write_file_atomically(on.disk, meta + "/db-1/" + name, table));
  }
  const Status opened = on.open();
  if (opened) {
    bool found = false;
    for (int i = 0; i < 5000 && !found; ++i) {
      const auto value = on.store->get(kF, std::to_string(i));
      if (!value) {
        CHECK(value.error() == Errc::kCorruptStore);
        found = true;
      }
    }
    CHECK(found);
  } else {
    CHECK(opened.error() == Errc::kCorruptStore);
  }
}

TEST_CASE("RocksStore: an install cut short leaves the old state or the new", "[serverd][store]") {
  OnRocks on;
  REQUIRE(on.open());
  put(*on.store, kF, "k", "v");
  REQUIRE(on.store->checkpoint(on.root + "/c"));
  on.store.reset();
  // As a crash between the rename and the switch of ACTIVE leaves it.
  REQUIRE(on.disk.rename(on.root + "/c", on.root + "/meta/db-2"));
  REQUIRE(on.open());
  CHECK(get(*on.store, kF, "k") == "v");
  CHECK(!*on.disk.exists(on.root + "/meta/db-2"));
}

TEST_CASE("MemStore: a power cut at any operation of a flush keeps one state whole",
          "[serverd][store]") {
  for (std::uint64_t cut = 0; cut < 8; ++cut) {
    CAPTURE(cut);
    OnMemory on;
    REQUIRE(on.open());
    put(*on.store, kF, "k", "1");
    REQUIRE(on.store->flush());
    put(*on.store, kF, "k", "2");
    put(*on.store, kG, "k", "2");
    on.disk.fail_at(on.disk.operations() + cut, SimDisk::Fault::kPowerCutBefore);
    const bool flushed = on.store->flush().has_value();
    on.crash();
    const auto value = get(*on.store, kF, "k");
    CHECK((value == "1" || value == "2"));
    if (flushed) CHECK(value == "2");
    CHECK(get(*on.store, kG, "k").has_value() == (value == "2"));
  }
}

namespace {
/// A small disk of its own; empty if that needs rights that are not there.
struct SmallDisk {
  explicit SmallDisk(const char* size) {
    char name[] = "/tmp/fermata_store_XXXXXX";
    path = ::mkdtemp(name);
    const std::string data = std::string("mode=0700,size=") + size;
    if (::geteuid() != 0 || ::mount("tmpfs", path.c_str(), "tmpfs", 0, data.c_str()) != 0) {
      ::rmdir(path.c_str());
      path.clear();
    }
  }
  ~SmallDisk() {
    if (path.empty()) return;
    ::umount2(path.c_str(), MNT_DETACH);
    ::rmdir(path.c_str());
  }
  std::uint64_t free_bytes() { return disk.space(path)->free_bytes; }
  RealDisk disk;
  std::string path;
};

RocksOptions small_options() {
  RocksOptions options;
  options.memtable_bytes = 4 << 20;
  options.table_bytes = 1 << 20;
  return options;
}

std::string incompressible(std::uint64_t seed) {
  SeededRandom random(seed);
  std::string text(50'000, '\0');
  for (char& c : text) c = static_cast<char>(random.next());
  return text;
}
}  // namespace

TEST_CASE("RocksStore: a full disk loses nothing, and is over once there is room",
          "[serverd][store]") {
  // Larger memtables than there is room, then and later, too.
  const RocksOptions options = GENERATE(small_options(), RocksOptions());
  SmallDisk small("48m");
  if (small.path.empty()) SKIP("needs a mount of its own");
  auto opened = RocksStore::open(small.path + "/meta", options);
  REQUIRE(opened);
  RocksStore& store = **opened;
  {
    const Bytes zeros(1 << 20);
    for (const auto& [name, leave] : {std::pair{"/filler", 10u << 20}, {"/more", 2u << 20}}) {
      const auto filler = small.disk.open(small.path + name, Disk::Mode::kCreate);
      REQUIRE(filler);
      for (std::uint64_t at = 0; small.free_bytes() > leave; at += zeros.size())
        REQUIRE((*filler)->write_at(at, zeros));
    }
  }
  std::uint64_t written = 0;
  Status status;
  for (; written < 1000; ++written) {
    KvBatch batch;
    batch.put(kF, std::to_string(written), incompressible(written));
    if (status = store.write(batch); !status) break;
    if (written % 10 == 9) status = store.flush();
    if (!status) {
      ++written;
      break;
    }
  }
  REQUIRE_FALSE(status);
  CHECK(status.error() == std::errc::no_space_on_device);
  CHECK(store.flush().error() == std::errc::no_space_on_device);
  for (std::uint64_t i = 0; i < written; ++i)
    CHECK(store.get(kF, std::to_string(i))->value() == incompressible(i));
  REQUIRE(small.disk.remove(small.path + "/more"));
  REQUIRE(store.flush());
  for (int i = 0; i < 5; ++i) {
    KvBatch batch;
    batch.put(kF, "after" + std::to_string(i), "x");
    REQUIRE(store.write(batch));
    REQUIRE(store.flush());
  }
  opened->reset();
  opened = RocksStore::open(small.path + "/meta", options);
  REQUIRE(opened);
  for (std::uint64_t i = 0; i < written; ++i)
    CHECK((*opened)->get(kF, std::to_string(i))->value() == incompressible(i));
  for (int i = 0; i < 5; ++i) CHECK((*opened)->get(kF, "after" + std::to_string(i))->has_value());
}

// A compaction that meets the full disk while a flush is at work must not keep the next flush out.
TEST_CASE("RocksStore: flushes go on after compactions met a full disk beside them",
          "[serverd][store]") {
  SmallDisk small("64m");
  if (small.path.empty()) SKIP("needs a mount of its own");
  const auto opened = RocksStore::open(small.path + "/meta", small_options());
  REQUIRE(opened);
  RocksStore& store = **opened;
  constexpr std::uint64_t kKeys = 300;  // 15 MB that are written anew all the time
  std::vector<std::uint64_t> last(kKeys);
  SeededRandom random(7);
  const std::string filler = small.path + "/filler";
  std::uint64_t stamp = 0;
  int full = 0;
  for (int round = 0; round < 40; ++round) {
    {
      const auto file = small.disk.open(filler, Disk::Mode::kCreate);
      REQUIRE(file);
      const std::uint64_t leave = (3 + random.next() % 10) << 20;
      const Bytes zeros(256 << 10);
      for (std::uint64_t at = 0; small.free_bytes() > leave; at += zeros.size()) {
        if (!(*file)->write_at(at, zeros)) break;
      }
    }
    Status status;
    for (int writes = 0; status && writes < 200; ++writes) {
      const std::uint64_t key = random.next() % kKeys;
      KvBatch batch;
      batch.put(kF, std::to_string(key), incompressible(++stamp));
      if (status = store.write(batch); status) last[key] = stamp;
      if (status && writes % 20 == 19) status = store.flush();
    }
    if (!status) {
      REQUIRE(status.error() == std::errc::no_space_on_device);
      ++full;
    }
    REQUIRE(small.disk.remove(filler));
    // Room may take a moment: the files of what failed go first.
    Status flushed;
    for (int i = 0; i < 200 && !(flushed = store.flush()); ++i) ::usleep(50'000);
    REQUIRE(flushed);
  }
  CHECK(full > 3);
  for (std::uint64_t key = 0; key < kKeys; ++key) {
    if (last[key] == 0) continue;
    CHECK(store.get(kF, std::to_string(key))->value() == incompressible(last[key]));
  }
}

TEST_CASE(
    "RocksStore: while a flush waits for room the log keeps some, and the store can be closed",
    "[serverd][store]") {
  SmallDisk small("48m");
  if (small.path.empty()) SKIP("needs a mount of its own");
  auto opened = RocksStore::open(small.path + "/meta", small_options());
  REQUIRE(opened);
  {
    const Bytes zeros(1 << 20);
    const auto filler = small.disk.open(small.path + "/filler", Disk::Mode::kCreate);
    REQUIRE(filler);
    for (std::uint64_t at = 0; small.free_bytes() > (3u << 20); at += zeros.size())
      REQUIRE((*filler)->write_at(at, zeros));
  }
  Status status;
  for (std::uint64_t i = 0; status && i < 200; ++i) {
    KvBatch batch;
    batch.put(kF, std::to_string(i), incompressible(i));
    status = (*opened)->write(batch);
  }
  CHECK(status.error() == std::errc::no_space_on_device);
  CHECK((*opened)->flush().error() == std::errc::no_space_on_device);
  CHECK(small.free_bytes() >= (256u << 10));
  opened->reset();
  REQUIRE(small.disk.remove(small.path + "/filler"));
  opened = RocksStore::open(small.path + "/meta", small_options());
  REQUIRE(opened);
  REQUIRE((*opened)->flush());
}

TEST_CASE("RocksStore: what was removed gives its room back soon after a flush",
          "[serverd][store]") {
  SmallDisk small("64m");
  if (small.path.empty()) SKIP("needs a mount of its own");
  auto opened = RocksStore::open(small.path + "/meta", small_options());
  REQUIRE(opened);
  RocksStore& store = **opened;
  const std::uint64_t before = small.free_bytes();
  constexpr std::uint64_t kCount = 600;  // 30 MB
  for (std::uint64_t i = 0; i < kCount; ++i) {
    KvBatch batch;
    batch.put(kF, std::to_string(i), incompressible(i));
    REQUIRE(store.write(batch));
    if (i % 50 == 49) REQUIRE(store.flush());
  }
  REQUIRE(store.flush());
  CHECK(small.free_bytes() < before - (25 << 20));
  for (std::uint64_t i = 0; i < kCount; ++i) {
    KvBatch batch;
    batch.erase(kF, std::to_string(i));
    REQUIRE(store.write(batch));
  }
  REQUIRE(store.flush());
  for (int i = 0; i < 200 && small.free_bytes() < before - (8 << 20); ++i) ::usleep(50'000);
  CHECK(small.free_bytes() > before - (8 << 20));
}
