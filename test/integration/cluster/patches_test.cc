// Small changes to big files: what was fsynced is what every mount reads, whoever dies meanwhile,
// and it costs no more than it must.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <random>

#include "test/integration/cluster/files.h"
#include "test/integration/cluster/lock_calls.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

constexpr std::size_t kMiB = 1 << 20;

void sync(const Fd& fd) {
  if (::fsync(fd.get()) != 0) throw std::system_error(errno, std::generic_category(), "fsync");
}

/// The file as it must be, and random changes to both.
class Scribbler {
 public:
  Scribbler(std::string bytes, std::uint64_t seed) : bytes_(std::move(bytes)), random_(seed) {}
  void write(const Fd& fd, std::size_t size_max = 5000) {
    const std::size_t size = 1 + random_() % size_max;
    const std::size_t offset = random_() % (bytes_.size() + 1);
    const std::string some = random_bytes(size, random_());
    fd.pwrite(some, static_cast<off_t>(offset));
    if (bytes_.size() < offset + size) bytes_.resize(offset + size);
    bytes_.replace(offset, size, some);
  }
  std::uint64_t random() { return random_(); }
  const std::string& bytes() const { return bytes_; }
  std::string& bytes() { return bytes_; }

 private:
  std::string bytes_;
  std::mt19937_64 random_;
};

long folded(MiniCluster& cluster) {
  const std::string out = cluster.fermata("status --json --no-digest " + cluster.servers()).out;
  long total = 0;
  const std::string name = "\"patched_chunks_folded\":";
  for (auto at = out.find(name); at != std::string::npos; at = out.find(name, at + 1))
    total += std::stol(out.substr(at + name.size()));
  return total;
}

/// A file that a mount of default options writes through its daemon, for it was synced before.
void teach(MiniCluster& cluster, const std::string& path) {
  const std::string mnt = path.substr(0, path.rfind('/'));
  REQUIRE(eventually([&] {
    {
      Fd fd(path, O_RDWR);
      for (int i = 0; i < 6; ++i) {
        fd.pwrite(fd.pread(1, i * 10), i * 10);
        fd.pwrite(std::string(1, static_cast<char>('a' + i)), 0);
        sync(fd);
      }
      fd.close();
    }
    Fd fd(path, O_RDWR);
    auto before = cluster.rpc_counts(mnt);
    fd.pwrite("z", 0);
    sync(fd);
    auto after = cluster.rpc_counts(mnt);
    return after["put_chunk"] == before["put_chunk"] && after["mutate"] == before["mutate"] + 1;
  }));
}

TEST_CASE("patches: an fsync of a few bytes in a big file is one message, and all mounts read it",
          "[patches]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "nopassthrough"});
  const std::string path = cluster.mnt() + "/f";
  const std::string other = cluster.mount_another();
  Scribbler file(random_bytes(12 * kMiB + 77, 1), 2);
  write_file(path, file.bytes());
  Fd fd(path, O_RDWR);
  file.write(fd);
  sync(fd);
  auto before = cluster.rpc_counts(cluster.mnt());
  constexpr int kRounds = 60;
  for (int i = 0; i < kRounds; ++i) {
    CAPTURE(i);
    file.write(fd);
    if (i % 3 == 0) file.write(fd);
    sync(fd);
    if (i % 4 == 0) REQUIRE((read_file(other + "/f") == file.bytes()));
  }
  auto after = cluster.rpc_counts(cluster.mnt());
  CHECK(after["mutate"] - before["mutate"] == kRounds);
  CHECK(after["put_chunk"] == before["put_chunk"]);
  CHECK(after["query_chunks"] == before["query_chunks"]);
  // Not only little by little.
  file.bytes().replace(3 * kMiB, 2 * kMiB, random_bytes(2 * kMiB, 9));
  fd.pwrite(file.bytes().substr(3 * kMiB, 2 * kMiB), 3 * kMiB);
  file.write(fd);
  sync(fd);
  REQUIRE((read_file(other + "/f") == file.bytes()));
  REQUIRE(ftruncate(fd.get(), 7 * kMiB + 5) == 0);
  file.bytes().resize(7 * kMiB + 5);
  sync(fd);
  REQUIRE((read_file(other + "/f") == file.bytes()));
  file.write(fd);
  fd.close();
  CHECK((read_file(other + "/f") == file.bytes()));
  const std::string fresh = cluster.mount_another();
  CHECK((read_file(fresh + "/f") == file.bytes()));
  CHECK(cluster.digests_equal());
}

TEST_CASE("patches: they become chunks when the file is left alone, or has too many", "[patches]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "nopassthrough"});
  const std::string path = cluster.mnt() + "/f";
  Scribbler file(random_bytes(5 * kMiB, 1), 3);
  write_file(path, file.bytes());
  Fd fd(path, O_RDWR);
  SECTION("left alone") {
    for (int i = 0; i < 20; ++i) {
      file.write(fd);
      sync(fd);
    }
    REQUIRE(folded(cluster) == 0);
    const bool done = eventually([&] { return folded(cluster) >= 5; }, std::chrono::seconds(60));
    REQUIRE(done);
  }
  SECTION("too many") {
    for (int i = 0; i < 2500; ++i) {
      file.write(fd, 60);
      sync(fd);
    }
    CHECK(folded(cluster) > 0);
  }
  const std::string fresh = cluster.mount_another();
  CHECK((read_file(fresh + "/f") == file.bytes()));
  file.write(fd);
  sync(fd);
  CHECK((read_file(fresh + "/f") == file.bytes()));
  CHECK(cluster.digests_equal());
}

TEST_CASE("patches: what was fsynced outlives primaries and the client", "[patches]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "nopassthrough"});
  const std::string mnt = cluster.mnt();
  const std::string other = cluster.mount_another();
  Scribbler file(random_bytes(6 * kMiB, 1), 4);
  write_file(mnt + "/f", file.bytes());
  {
    Fd fd(mnt + "/f", O_RDWR);
    for (int i = 0; i < 120; ++i) {
      CAPTURE(i);
      file.write(fd);
      if (i % 40 == 20) {
        const int dead = cluster.kill_primary();
        sync(fd);
        REQUIRE((read_file(other + "/f") == file.bytes()));
        cluster.restart_node(dead);
      } else {
        sync(fd);
      }
    }
    cluster.kill_mount(mnt);
  }
  CHECK((read_file(other + "/f") == file.bytes()));
  REQUIRE(cluster.mount_with(mnt, cluster.dir() + "/cache", "nopassthrough").exit_code == 0);
  CHECK((read_file(mnt + "/f") == file.bytes()));
  // What the old daemon had committed is no local change, nor a conflict.
  const RunResult flushed = cluster.fermata("cache flush " + mnt);
  CHECK(flushed.exit_code == 0);
  CHECK(run("cat " + mnt + ".log").out.find("conflict") == std::string::npos);
  {
    Fd fd(mnt + "/f", O_RDWR);
    file.write(fd);
    fd.close();
  }
  CHECK((read_file(other + "/f") == file.bytes()));
  CHECK(eventually([&] { return cluster.digests_equal(); }));
}

TEST_CASE("patches: onto a version that was replaced the whole file goes, and both are kept",
          "[patches]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "nopassthrough"});
  const std::string path = cluster.mnt() + "/f";
  const std::string other = cluster.mount_another();
  Scribbler file(random_bytes(3 * kMiB, 1), 5);
  write_file(path, file.bytes());
  Fd fd(path, O_RDWR);
  file.write(fd);
  sync(fd);
  file.write(fd);  // and before it is committed
  write_file(other + "/f", random_bytes(2 * kMiB, 6));
  sync(fd);
  CHECK((read_file(other + "/f") == file.bytes()));
  file.write(fd);
  sync(fd);
  CHECK((read_file(other + "/f") == file.bytes()));
}

// What lies outstanding of patches, or was folded, is no reason to fetch chunks again.
TEST_CASE("patches: a lock's next holder fetches no chunk for a few bytes", "[patches]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string mounts[] = {cluster.mnt(), cluster.mount_another()};
  Scribbler file(random_bytes(8 * kMiB, 1), 6);
  write_file(mounts[0] + "/f", file.bytes());
  teach(cluster, mounts[0] + "/f");
  teach(cluster, mounts[1] + "/f");
  file.bytes() = read_file(mounts[0] + "/f");
  Fd fds[] = {Fd(mounts[0] + "/f", O_RDWR), Fd(mounts[1] + "/f", O_RDWR)};
  std::map<std::string, long> before[2];
  const auto turns = [&](int count) {
    for (int i = 0; i < count; ++i) {
      CAPTURE(i);
      const Fd& fd = fds[i % 2];
      REQUIRE(set_lock(fd, F_SETLKW, F_WRLCK) == 0);
      REQUIRE((fd.pread(file.bytes().size() + 1, 0) == file.bytes()));
      const std::size_t offset = file.random() % (8 * kMiB - 100);
      const std::string some = random_bytes(100, file.random());
      fd.pwrite(some, static_cast<off_t>(offset));
      file.bytes().replace(offset, 100, some);
      REQUIRE(set_lock(fd, F_SETLK, F_UNLCK) == 0);
    }
  };
  turns(10);
  for (int i = 0; i < 2; ++i) before[i] = cluster.rpc_counts(mounts[i]);
  turns(40);
  const long folded_before = folded(cluster);
  const bool done =
      eventually([&] { return folded(cluster) >= folded_before + 4; }, std::chrono::seconds(60));
  REQUIRE(done);
  turns(20);
  for (int i = 0; i < 2; ++i) {
    CAPTURE(i);
    auto after = cluster.rpc_counts(mounts[i]);
    // One holder lacked the other's last bytes when they were folded.
    CHECK(after["get_chunk"] - before[i]["get_chunk"] <= 1);
    CHECK(after["put_chunk"] == before[i]["put_chunk"]);
  }
}

TEST_CASE("patches: a file that is synced again and again is written through the daemon",
          "[patches]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string path = cluster.mnt() + "/f";
  const std::string other = cluster.mount_another();
  write_file(path, random_bytes(4 * kMiB, 1));
  teach(cluster, path);
  Scribbler file(read_file(other + "/f"), 8);
  {
    Fd fd(path, O_RDWR);
    for (int i = 0; i < 20; ++i) {
      file.write(fd);
      sync(fd);
      REQUIRE((read_file(other + "/f") == file.bytes()));
      REQUIRE((fd.pread(file.bytes().size() + 1, 0) == file.bytes()));
    }
    // Stores through mappings are no less.
    void* const at = mmap(nullptr, 4 * kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    REQUIRE(at != MAP_FAILED);
    for (int i = 0; i < 5; ++i) {
      const std::size_t place = file.random() % (4 * kMiB);
      static_cast<volatile char*>(at)[place] = file.bytes()[place] = static_cast<char>(i);
      file.write(fd);
      sync(fd);
      REQUIRE((read_file(other + "/f") == file.bytes()));
    }
    static_cast<volatile char*>(at)[99] = file.bytes()[99] = 'm';
    fd.close();
    static_cast<volatile char*>(at)[kMiB] = file.bytes()[kMiB] = 'n';
    munmap(at, 4 * kMiB);
  }
  CHECK(eventually([&] { return read_file(other + "/f") == file.bytes(); }));
}

TEST_CASE("patches: a few bytes changed in a very large file cost one message", "[patches]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string path = cluster.mnt() + "/f";
  const std::string other = cluster.mount_another();
  constexpr off_t kPlace = 700 << 20;
  {
    Fd fd(path, O_RDWR | O_CREAT);
    REQUIRE(ftruncate(fd.get(), (1 << 30) + 5) == 0);
    fd.pwrite("begin", 0);
    fd.close();
  }
  std::string some;
  std::uint64_t rounds = 0;
  const auto changed = [&] {
    some = random_bytes(4096, ++rounds);
    Fd fd(path, O_RDWR);
    auto before = cluster.rpc_counts(cluster.mnt());
    fd.pwrite(some, kPlace);
    fd.close();
    auto after = cluster.rpc_counts(cluster.mnt());
    return after["put_chunk"] == before["put_chunk"] && after["mutate"] == before["mutate"] + 1;
  };
  REQUIRE(eventually(changed));  // once what the first opening left behind is done
  Fd fd(other + "/f", O_RDONLY);
  CHECK((fd.pread(4096, kPlace) == some));
  CHECK(fd.pread(5, 0) == "begin");
  CHECK((fd.pread(4096, kPlace + 4096) == std::string(4096, '\0')));
}

TEST_CASE("patches: a write to a file opened with O_DSYNC is committed when it returns",
          "[patches]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string path = cluster.mnt() + "/f";
  const std::string other = cluster.mount_another();
  Scribbler file(random_bytes(2 * kMiB, 1), 9);
  write_file(path, file.bytes());
  const bool beside = GENERATE(false, true);
  CAPTURE(beside);
  std::optional<Fd> reader;
  if (beside) reader.emplace(path, O_RDONLY);  // with passthrough, where there is that
  Fd fd(path, O_RDWR | O_DSYNC);
  for (int i = 0; i < 10; ++i) {
    file.write(fd);
    REQUIRE((read_file(other + "/f") == file.bytes()));
    REQUIRE((read_file(path) == file.bytes()));
    if (reader) REQUIRE((reader->pread(file.bytes().size() + 1, 0) == file.bytes()));
  }
}

}  // namespace
}  // namespace fermata::test
