#include "serverd/chunk/chunk_store.h"

#include <sys/mount.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/base/checksum.h"
#include "common/env/real_env.h"
#include "common/env/sim_disk.h"
#include "test/support/print.h"

namespace fermata::serverd {
namespace {

namespace fs = std::filesystem;
constexpr ClusterId kCluster{{1, 2, 3}};

struct TempDir {
  TempDir() {
    std::string name = (fs::temp_directory_path() / "fermata_chunk_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~TempDir() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  fs::path path;
};

Bytes bytes_of(std::uint64_t seed, std::size_t size = 3000) {
  SeededRandom random(seed);
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next() >> 9);
  return bytes;
}

bool equal(const Buffer& buffer, const Bytes& bytes) {
  return std::ranges::equal(buffer.view(), bytes);
}

fs::path file_of(const fs::path& dir, const ChunkId& id) {
  return dir / "chunks" / id.hex().substr(0, 2) / id.hex();
}

TEST_CASE("ChunkFiles: what was put is there, once, also after a restart", "[serverd][chunk]") {
  TempDir dir;
  RealDisk disk;
  const Bytes bytes = bytes_of(1);
  const ChunkId id = chunk_id_of(bytes);
  const ChunkId other = chunk_id_of(bytes_of(2));
  {
    ChunkFiles files(disk, dir.path, kCluster, {});
    REQUIRE(files.start());
    CHECK(files.get(id).error() == std::errc::no_such_file_or_directory);
    REQUIRE(files.put(id, bytes));
    REQUIRE(files.put(id, bytes));
    CHECK(files.put(other, bytes).error() == Errc::kHashMismatch);
    const Bytes large(kChunkSizeMax + 1);
    CHECK(files.put(chunk_id_of(large), large).error() == Errc::kTooLarge);
    CHECK(files.stats().puts == 1);
    CHECK(files.stats().dedup_hits == 1);
  }
  std::ofstream(dir.path / "chunks/tmp/leftover") << "x";
  ChunkFiles files(disk, dir.path, kCluster, {});
  REQUIRE(files.start());
  CHECK(fs::is_empty(dir.path / "chunks/tmp"));
  CHECK(equal(files.get(id).value(), bytes));
  const auto part = files.get_range(id, 2990, 100);
  REQUIRE(part);
  CHECK(std::ranges::equal(part->view(), ByteView(bytes).subspan(2990)));
  CHECK(files.get_range(id, 5000, 1).value().empty());
  const std::vector<ChunkId> ids{other, id};
  CHECK(files.has(ids) == std::vector<bool>{false, true});
  CHECK(files.stats().bytes == bytes.size());
  REQUIRE(files.remove(ids));
  CHECK(files.has(ids) == std::vector<bool>{false, false});
  CHECK_FALSE(fs::exists(file_of(dir.path, id)));
  CHECK(files.stats().bytes == 0);
  REQUIRE(files.put(id, bytes));
  CHECK(files.list() == std::vector<ChunkId>{id});
}

TEST_CASE("ChunkFiles: a damaged chunk is set aside and can be put again", "[serverd][chunk]") {
  TempDir dir;
  RealDisk disk;
  ChunkFiles files(disk, dir.path, kCluster, {});
  REQUIRE(files.start());
  const Bytes bytes = bytes_of(1);
  const ChunkId id = chunk_id_of(bytes);
  REQUIRE(files.put(id, bytes));
  const int damage = GENERATE(0, 1, 2, 3);
  CAPTURE(damage);
  const fs::path path = file_of(dir.path, id);
  if (damage == 0) fs::resize_file(path, 100);
  if (damage == 1) fs::resize_file(path, kChunkSizeMax + 1);
  if (damage == 2) fs::remove(path);
  if (damage == 3) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(500);
    file.put(static_cast<char>(~static_cast<int>(bytes[500])));
  }
  const auto read = GENERATE(false, true);
  CHECK((read ? files.get(id) : files.get_range(id, 0, 10)).error() == Errc::kCorruptChunk);
  CHECK(files.get(id).error() == std::errc::no_such_file_or_directory);
  CHECK(files.stats().corrupt == 1);
  CHECK(fs::exists(path.string() + ".bad") == (damage != 2));
  REQUIRE(files.put(id, bytes));
  CHECK(equal(files.get(id).value(), bytes));
}

TEST_CASE("ChunkFiles: refuses foreign, newer and other directories", "[serverd][chunk]") {
  TempDir dir;
  RealDisk disk;
  REQUIRE(ChunkFiles(disk, dir.path, kCluster, {}).start());
  CHECK(ChunkFiles(disk, dir.path, ClusterId{{9}}, {}).start().error() == Errc::kWrongCluster);
  {
    std::fstream file(dir.path / "chunks/FORMAT", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(8);
    file.put(2);
  }
  CHECK(ChunkFiles(disk, dir.path, kCluster, {}).start().error() == Errc::kVersionMismatch);
  TempDir other;
  fs::create_directories(other.path / "chunks/precious");
  CHECK(ChunkFiles(disk, other.path, kCluster, {}).start().error() == Errc::kBadMessage);
  CHECK_FALSE(fs::exists(other.path / "chunks/tmp"));
}

TEST_CASE("ChunkFiles: puts from many threads write each chunk once", "[serverd][chunk]") {
  TempDir dir;
  RealDisk disk;
  ChunkFiles files(disk, dir.path, kCluster, {});
  REQUIRE(files.start());
  constexpr std::uint64_t kChunks = 60;
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (std::uint64_t seed = 0; seed < kChunks; ++seed) {
        const Bytes bytes = bytes_of(seed);
        const ChunkId id = chunk_id_of(bytes);
        const auto put = files.put(id, bytes);
        const auto got = files.get(id);
        if (!put || !got || !equal(*got, bytes)) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failures == 0);
  const ChunkStats stats = files.stats();
  CHECK(stats.puts == kChunks);
  CHECK(stats.dedup_hits == 3 * kChunks);
  CHECK(stats.count == kChunks);
  CHECK(stats.dir_syncs <= kChunks);
}

void make_node_dir(Disk& disk) {
  REQUIRE(disk.make_dirs("/node"));
  REQUIRE(disk.sync_dir("/"));
}

// Runs a fixed piece of work on a new store and says which puts were acknowledged.
struct Run {
  std::vector<bool> acknowledged;
  int fatals = 0;
};
Run run_work(Disk& disk) {
  Run run{std::vector<bool>(4, false), 0};
  ChunkFiles files(disk, "/node", kCluster, [&](std::error_code) { ++run.fatals; });
  if (!files.start()) return run;
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    const Bytes bytes = bytes_of(seed);
    run.acknowledged[seed] = files.put(chunk_id_of(bytes), bytes).has_value();
  }
  return run;
}

TEST_CASE("ChunkFiles: a power cut at every disk operation leaves each chunk whole or absent",
          "[serverd][chunk]") {
  std::uint64_t made = 0;
  std::uint64_t operations = 0;
  std::uint64_t first_put = 0;
  {
    SimDisk disk(1);
    make_node_dir(disk);
    made = disk.operations();
    REQUIRE(ChunkFiles(disk, "/node", kCluster, {}).start());
    first_put = disk.operations();
  }
  {
    SimDisk disk(1);
    make_node_dir(disk);
    CHECK(run_work(disk).acknowledged == std::vector<bool>(4, true));
    operations = disk.operations();
  }
  int acknowledged = 0;
  int absent = 0;
  for (std::uint64_t at = made; at < operations; ++at) {
    const bool in_start = at < first_put;
    if (in_start && at % 16 != 0 && at > 16) continue;  // 256 directories, all the same
    for (const auto fault : {SimDisk::Fault::kPowerCutBefore, SimDisk::Fault::kPowerCutAfter}) {
      for (std::uint64_t seed = 0; seed < (in_start ? 1 : 6); ++seed) {
        CAPTURE(at, seed);
        SimDisk disk(seed);
        make_node_dir(disk);
        SeededRandom random(seed * 1000 + at);
        disk.fail_at(at, fault);
        const Run run = run_work(disk);
        disk.power_cut(random);
        ChunkFiles files(disk, "/node", kCluster, {});
        REQUIRE(files.start());
        for (std::uint64_t i = 0; i < 4; ++i) {
          const Bytes bytes = bytes_of(i);
          const auto got = files.get(chunk_id_of(bytes));
          if (run.acknowledged[i]) REQUIRE(got);
          if (got) REQUIRE(equal(*got, bytes));
          if (!got) REQUIRE(got.error() == std::errc::no_such_file_or_directory);
          acknowledged += run.acknowledged[i] ? 1 : 0;
          absent += got ? 0 : 1;
          REQUIRE(files.put(chunk_id_of(bytes), bytes));
        }
        REQUIRE(files.stats().corrupt == 0);
        REQUIRE(disk.list("/node/chunks/tmp").value().empty());
        // What start() found is durable, though an earlier process did not live to sync it.
        disk.power_cut(random);
        ChunkFiles again(disk, "/node", kCluster, {});
        REQUIRE(again.start());
        REQUIRE(again.stats().count == 4);
      }
    }
  }
  CHECK(acknowledged > 100);  // else the test proves nothing
  CHECK(absent > 100);
}

TEST_CASE("ChunkFiles: an error at every disk operation is an error or harmless",
          "[serverd][chunk]") {
  std::uint64_t first_put = 0;
  std::uint64_t operations = 0;
  {
    SimDisk disk(1);
    make_node_dir(disk);
    REQUIRE(ChunkFiles(disk, "/node", kCluster, {}).start());
    first_put = disk.operations();
  }
  {
    SimDisk disk(1);
    make_node_dir(disk);
    run_work(disk);
    operations = disk.operations();
  }
  const auto fault =
      GENERATE(SimDisk::Fault::kEio, SimDisk::Fault::kEnospc, SimDisk::Fault::kShortWrite);
  int fatals = 0;
  for (std::uint64_t at = first_put; at < operations; ++at) {
    CAPTURE(at);
    SimDisk disk(at);
    make_node_dir(disk);
    SeededRandom random(at);
    disk.fail_at(at, fault);
    const Run run = run_work(disk);
    fatals += run.fatals;
    CHECK(disk.list("/node/chunks/tmp").value().empty());
    disk.power_cut(random);
    ChunkFiles files(disk, "/node", kCluster, {});
    REQUIRE(files.start());
    for (std::uint64_t i = 0; i < 4; ++i) {
      const Bytes bytes = bytes_of(i);
      const auto got = files.get(chunk_id_of(bytes));
      if (run.acknowledged[i]) REQUIRE(got);
      if (got) REQUIRE(equal(*got, bytes));
    }
  }
  CHECK(fatals > 0);  // a failed sync stops the node
}

TEST_CASE("ChunkFiles: a full disk says ENOSPC, leaves nothing behind and stays readable",
          "[serverd][chunk]") {
  SimDisk disk(1);
  disk.set_capacity(10'000);
  int fatals = 0;
  ChunkFiles files(disk, "/node", kCluster, [&](std::error_code) { ++fatals; });
  REQUIRE(files.start());
  for (std::uint64_t seed = 0; seed < 3; ++seed) {
    REQUIRE(files.put(chunk_id_of(bytes_of(seed)), bytes_of(seed)));
  }
  const Bytes more = bytes_of(3);
  CHECK(files.put(chunk_id_of(more), more).error() == std::errc::no_space_on_device);
  CHECK(disk.list("/node/chunks/tmp").value().empty());
  CHECK(equal(files.get(chunk_id_of(bytes_of(1))).value(), bytes_of(1)));
  const std::vector<ChunkId> ids{chunk_id_of(bytes_of(1))};
  REQUIRE(files.remove(ids));
  REQUIRE(disk.sync_dir("/node/chunks/" + ids[0].hex().substr(0, 2)));  // gives the space back
  CHECK(files.put(chunk_id_of(more), more));
  CHECK(fatals == 0);
}

boost::asio::awaitable<void> use_store(ChunkStore& store, int& good) {
  const Bytes bytes = bytes_of(1);
  const ChunkId id = chunk_id_of(bytes);
  if (auto started = co_await store.start(); !started) co_return;
  if (auto put = co_await store.put(id, Buffer::copy_of(bytes)); put) ++good;
  if (auto got = co_await store.get(id); got && equal(*got, bytes)) ++good;
  if (auto part = co_await store.get_range(id, 10, 20); part && part->size() == 20) ++good;
  std::vector<ChunkId> ids(1, id);
  if (store.has(ids) == std::vector<bool>{true}) ++good;
  if (auto removed = co_await store.remove(ids); removed) ++good;
  if (store.stats().count == 0) ++good;
}

TEST_CASE("ChunkStore: the calls from a coroutine", "[serverd][chunk]") {
  TempDir dir;
  boost::asio::io_context context;
  RealEnv env(context.get_executor(), 2);
  ChunkStore store(env, dir.path, kCluster, {});
  int good = 0;
  boost::asio::co_spawn(context, use_store(store, good), [](std::exception_ptr) {});
  context.run();
  CHECK(good == 6);
}

TEST_CASE("ChunkStore: a chunk put while its removal is under way is there afterwards",
          "[serverd][chunk]") {
  TempDir dir;
  boost::asio::io_context context;
  RealEnv env(context.get_executor(), 1);  // one thread: neither may wait for the other
  ChunkStore store(env, dir.path, kCluster, {});
  const Bytes bytes = bytes_of(1);
  const ChunkId id = chunk_id_of(bytes);
  const auto start = [&](Task<void> task) {
    boost::asio::co_spawn(context, std::move(task),
                          [](std::exception_ptr, Result<void> done) { CHECK(done); });
  };
  const auto run = [&] {
    context.restart();
    context.run();
  };
  start(store.start());
  run();
  start(store.put(id, Buffer::copy_of(bytes)));
  run();
  const bool put_first = GENERATE(false, true);
  CAPTURE(put_first);
  auto removal = store.remove({id});
  CHECK(store.has(std::span(&id, 1)) == std::vector{false});  // before it runs
  CHECK(store.stats().bytes == 0);
  auto again = store.put(id, Buffer::copy_of(bytes));
  start(std::move(put_first ? again : removal));
  start(std::move(put_first ? removal : again));
  run();
  CHECK(store.has(std::span(&id, 1)) == std::vector{true});
  CHECK(store.stats().bytes == bytes.size());
  CHECK(fs::exists(file_of(dir.path, id)));
  CHECK(store.stats().puts == (put_first ? 1 : 2));
  start(store.remove({id}));
  run();
  CHECK_FALSE(fs::exists(file_of(dir.path, id)));
}

}  // namespace
}  // namespace fermata::serverd
