// Quotas as programs and operators meet them: EDQUOT at the right call, df, fermata quota.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <system_error>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

namespace json = boost::json;

constexpr std::size_t kMiB = 1 << 20;

/// What quotas do is the same on both paths, unless a case says otherwise.
struct World {
  explicit World(const std::string& options) : cluster({3, true, options}), mnt(cluster.mnt()) {
    REQUIRE(mkdir(tree.c_str(), 0755) == 0);
  }
  void quota(const std::string& arguments) {
    const RunResult result = cluster.fermata("quota " + arguments);
    CAPTURE(arguments, result.out);
    REQUIRE(result.exit_code == 0);
  }
  /// The nearest quota that counts `path`.
  json::object quota_of(const std::string& path) {
    const RunResult result = cluster.fermata("quota get --json " + path);
    CAPTURE(result.out);
    REQUIRE(result.exit_code == 0);
    const json::value parsed = json::parse(result.out);
    const json::array& all = parsed.as_object().at("quotas").as_array();
    REQUIRE(!all.empty());
    return all.front().as_object();
  }
  std::uint64_t number(const std::string& path, const char* what) {
    return quota_of(path).at(what).to_number<std::uint64_t>();
  }
  void wait_counted(const std::string& path) {
    CHECK(eventually([&] { return quota_of(path).at("state").as_string() == "exact"; }));
  }
  MiniCluster cluster;
  const std::string mnt;
  const std::string tree = mnt + "/tree";
};

int create_error(const std::string& path, int flags = O_CREAT | O_EXCL | O_WRONLY) {
  const int fd = open(path.c_str(), flags, 0644);
  if (fd < 0) return errno;
  ::close(fd);
  return 0;
}

struct statvfs statvfs_of(const std::string& path) {
  struct statvfs st {};
  REQUIRE(statvfs(path.c_str(), &st) == 0);
  return st;
}

TEST_CASE("quota: a full tree says EDQUOT at the call that makes something", "[quota]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  World world(options);
  const std::string& tree = world.tree;
  world.quota("set " + tree + " --inodes 3");
  world.wait_counted(tree);
  write_file(tree + "/f", "x");
  REQUIRE(mkdir((tree + "/d").c_str(), 0755) == 0);
  CHECK(create_error(tree + "/g") == EDQUOT);
  CHECK(create_error(tree + "/d", O_TMPFILE | O_WRONLY) == EDQUOT);
  CHECK(errno_of(mkdir((tree + "/d/e").c_str(), 0755)) == EDQUOT);
  CHECK(errno_of(symlink("f", (tree + "/s").c_str())) == EDQUOT);
  CHECK(errno_of(mkfifo((tree + "/p").c_str(), 0644)) == EDQUOT);
  write_file(world.mnt + "/outside", "x");
  CHECK(errno_of(rename((world.mnt + "/outside").c_str(), (tree + "/in").c_str())) == EDQUOT);
  CHECK(errno_of(link((world.mnt + "/outside").c_str(), (tree + "/in").c_str())) == EXDEV);
  CHECK(errno_of(link((tree + "/f").c_str(), (tree + "/d/f").c_str())) == 0);
  CHECK(create_error(tree + "/f") == EEXIST);
  const struct statvfs st = statvfs_of(tree);
  CHECK(st.f_files == 3);
  CHECK(st.f_ffree == 0);
  CHECK(statvfs_of(world.mnt).f_ffree > 1000);
  REQUIRE(unlink((tree + "/f").c_str()) == 0);
  CHECK(create_error(tree + "/g") == EDQUOT);  // it has another name
  REQUIRE(unlink((tree + "/d/f").c_str()) == 0);
  CHECK(eventually([&] { return create_error(tree + "/g") == 0; }));
  world.quota("rm " + tree);
  CHECK(create_error(tree + "/h") == 0);
  CHECK(eventually([&] { return statvfs_of(tree).f_ffree > 1000; }));
  CHECK(world.cluster.digests_equal());
}

TEST_CASE("quota: a close that is refused keeps the bytes until there is room", "[quota]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  World world(options);
  const std::string& tree = world.tree;
  const std::string other = world.cluster.mount_another(options);
  world.quota("set " + tree + " --bytes 1M");
  constexpr std::size_t kMost = kMiB - (32 << 10);
  write_file(tree + "/most", random_bytes(kMost, 1));
  const struct statvfs st = statvfs_of(tree);
  CHECK(st.f_blocks * st.f_frsize == kMiB);
  CHECK(st.f_bavail * st.f_frsize == kMiB - kMost);
  CHECK(eventually([&] {
    const struct statvfs there = statvfs_of(other + "/tree");
    return there.f_blocks * there.f_frsize == kMiB &&
           there.f_bavail * there.f_frsize == kMiB - kMost;
  }));
  CHECK(statvfs_of(world.mnt).f_blocks > st.f_blocks);

  const std::string wanted = random_bytes(60'000, 2);
  CHECK(write_error(tree + "/more", wanted) == EDQUOT);
  CHECK(read_file(tree + "/more") == wanted);  // here; the others have what was committed
  CHECK(read_file(other + "/tree/more").empty());
  const RunResult listed = world.cluster.fermata("cache ls " + world.mnt);
  CAPTURE(listed.out);
  CHECK(run("printf '%s' '" + listed.out + "' | grep more | grep -q dirty").exit_code == 0);
  CHECK(world.number(tree, "bytes") == kMost);
  // What needs no more room goes on.
  write_file(tree + "/most", random_bytes(kMost, 3));
  CHECK(write_error(other + "/tree/small", random_bytes(50'000, 4)) == EDQUOT);
  world.quota("set " + tree + " --bytes 2M");
  REQUIRE(world.cluster.fermata("cache flush " + world.mnt).exit_code == 0);
  REQUIRE(world.cluster.fermata("cache flush " + other).exit_code == 0);
  CHECK(read_file(other + "/tree/more") == wanted);
  CHECK(read_file(tree + "/small") == random_bytes(50'000, 4));
  CHECK(world.number(tree, "bytes") == kMost + 61'440 + 53'248);
  CHECK(world.cluster.digests_equal());
}

TEST_CASE("quota: what has no room is not stored on the nodes first", "[quota]") {
  FM_NEEDS_MOUNTS();
  World world("");
  const std::string& tree = world.tree;
  world.quota("set " + tree + " --bytes 16M");
  auto before = world.cluster.rpc_counts(world.mnt);
  CHECK(write_error(tree + "/large", random_bytes(24 * kMiB, 1)) == EDQUOT);
  auto after = world.cluster.rpc_counts(world.mnt);
  CHECK(after["put_chunk"] == before["put_chunk"]);
  CHECK(world.number(tree, "bytes") == 0);
  // Zeros take nothing, and what is there already is no news.
  write_file(tree + "/large", random_bytes(12 * kMiB, 2) + std::string(12 * kMiB, '\0'));
  CHECK(world.number(tree, "bytes") == 12 * kMiB);
  write_file(tree + "/large", random_bytes(12 * kMiB, 3) + std::string(12 * kMiB, '\0'));
  after = world.cluster.rpc_counts(world.mnt);
  CHECK(after["put_chunk"] > before["put_chunk"]);
}

TEST_CASE("quota: a few bytes of a sparse file are changed in a full tree", "[quota]") {
  FM_NEEDS_MOUNTS();
  World world("nopassthrough");
  const std::string path = world.tree + "/sparse";
  write_file(path, random_bytes(2 * kMiB, 1));
  REQUIRE(truncate(path.c_str(), 64 * kMiB) == 0);
  world.quota("set " + world.tree + " --bytes 2M");
  REQUIRE(eventually([&] { return world.number(world.tree, "bytes") == 2 * kMiB; }));
  const Fd file(path, O_RDWR);
  const std::string few = random_bytes(4096, 2);
  file.pwrite(few, 8192);
  CHECK(fsync(file.get()) == 0);
  file.pwrite(few, 32 * kMiB);
  CHECK(errno_of(fsync(file.get())) == EDQUOT);  // into the hole
}

TEST_CASE("quota: on the ordinary path a write says so itself", "[quota]") {
  FM_NEEDS_MOUNTS();
  World world("nopassthrough");
  world.quota("set " + world.tree + " --bytes 4M");
  {
    const Fd full(world.tree + "/full", O_CREAT | O_RDWR);
    int error = 0;
    std::size_t written = 0;
    const std::string piece = random_bytes(64 << 10, 1);
    CHECK(eventually([&] {
      for (int i = 0; i < 16 && error == 0; ++i) {
        try {
          full.pwrite(piece, static_cast<off_t>(written));
          written += piece.size();
        } catch (const std::system_error& failed) {
          error = failed.code().value();
        }
      }
      return error != 0;
    }));
    CHECK(error == EDQUOT);
    CHECK(errno_of(fallocate(full.get(), 0, 0, 64 << 20)) == EDQUOT);
    REQUIRE(ftruncate(full.get(), kMiB) == 0);
    CHECK(fsync(full.get()) == 0);
    CHECK(errno_of(fallocate(full.get(), 0, 0, 2 << 20)) == 0);
  }
  CHECK(world.number(world.tree, "bytes") <= 2 * kMiB);
}

TEST_CASE("quota: what was there is counted, also when the primary dies meanwhile", "[quota]") {
  FM_NEEDS_MOUNTS();
  World world("");
  const RunResult made =
      run("cd " + world.tree +
              "; for d in $(seq 30); do mkdir d$d; for f in $(seq 50); do echo $f > d$d/f$f; done; "
              "done; ln d1/f1 d2/linked",
          std::chrono::seconds(300));
  REQUIRE(made.exit_code == 0);
  world.quota("set " + world.tree + " --inodes 5000");
  world.cluster.kill_primary();
  write_file(world.tree + "/d7/during", "x");
  REQUIRE(unlink((world.tree + "/d9/f9").c_str()) == 0);
  world.wait_counted(world.tree);
  const std::uint64_t inodes = 1 + 30 + 30 * 50;
  CHECK(world.number(world.tree, "inodes") == inodes);
  CHECK(world.number(world.tree, "bytes") == 30 * 50 * 4096);
  CHECK(statvfs_of(world.tree + "/d3").f_ffree == 5000 - inodes);
  for (int node = 1; node <= 3; ++node)
    if (!world.cluster.runs(node)) world.cluster.restart_node(node);
  CHECK(eventually([&] { return world.cluster.digests_equal(); }));
  // Beyond the tree's edge: a file is moved, a directory too.
  REQUIRE(rename((world.tree + "/d5/f5").c_str(), (world.mnt + "/f5").c_str()) == 0);
  REQUIRE(rename((world.tree + "/d6").c_str(), (world.mnt + "/d6").c_str()) == 0);
  CHECK(errno_of(rename((world.tree + "/d2").c_str(), (world.mnt + "/d2").c_str())) == EXDEV);
  CHECK(world.number(world.tree, "inodes") == inodes - 1 - 51);
  const RunResult moved = run("mv " + world.tree + "/d2 " + world.mnt + "/");
  CAPTURE(moved.out);
  CHECK(moved.exit_code == 0);
}

TEST_CASE("quota: a user's files, and who may set a quota", "[quota]") {
  FM_NEEDS_MOUNTS();
  World world("");
  for (const char* name : {"a", "b", "c"}) {
    write_file(world.tree + "/" + name, "x");
    REQUIRE(chown((world.tree + "/" + name).c_str(), 4321, 4321) == 0);
  }
  world.quota("set " + world.mnt + " --uid 4321 --inodes 4 --bytes 20K");
  CHECK(eventually([&] { return world.number(world.tree + "/a", "inodes") == 3; }));
  write_file(world.tree + "/d", "x");
  CHECK(chown((world.tree + "/d").c_str(), 4321, 4321) == 0);
  write_file(world.tree + "/e", "x");
  CHECK(errno_of(chown((world.tree + "/e").c_str(), 4321, 4321)) == EDQUOT);
  CHECK(write_error(world.tree + "/a", std::string(8192, 'x')) == 0);
  CHECK(write_error(world.tree + "/b", std::string(8192, 'x')) == EDQUOT);
  const RunResult listed = world.cluster.fermata("quota ls " + world.mnt);
  CAPTURE(listed.out);
  CHECK(listed.out.find("user 4321") != std::string::npos);
  world.quota("rm " + world.mnt + " --uid 4321");
  CHECK(world.cluster.fermata("cache flush " + world.mnt).exit_code == 0);

  const std::string squashed = world.cluster.mount_another("root_squash");
  const RunResult refused = world.cluster.fermata("quota set " + squashed + "/tree --inodes 1");
  CHECK(refused.exit_code == 1);
  CHECK(refused.out.find("only root") != std::string::npos);
  CHECK(world.cluster.fermata("quota set " + world.tree).exit_code == 2);
  CHECK(world.cluster.fermata("quota set " + world.tree + "/a --inodes 1").exit_code == 1);
  CHECK(world.cluster.fermata("quota rm " + world.tree).exit_code == 1);
  CHECK(world.cluster.fermata("quota ls /").exit_code == 1);
}

TEST_CASE("quota: programs at the limit say so and lose nothing", "[quota]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  World world(options);
  world.quota("set " + world.tree + " --bytes 2M");
  write_file(world.mnt + "/large", random_bytes(8 * kMiB, 1));
  const RunResult copied = run("cp " + world.mnt + "/large " + world.tree + "/copy");
  CHECK(copied.exit_code != 0);
  CHECK(copied.out.find("quota exceeded") != std::string::npos);
  REQUIRE(unlink((world.tree + "/copy").c_str()) == 0);
  const RunResult filled =
      run("cd " + world.tree +
          "; sqlite3 db 'create table t(a, b)'; for i in $(seq 100); do "
          "sqlite3 db \"insert into t values($i, randomblob(100000))\" || exit 3; done");
  CAPTURE(filled.out);
  CHECK(filled.exit_code == 3);
  world.quota("set " + world.tree + " --bytes 64M");
  const RunResult checked = run("cd " + world.tree +
                                "; sqlite3 db 'pragma integrity_check'; "
                                "sqlite3 db \"insert into t values(0, randomblob(100000))\"; "
                                "sqlite3 db 'select count(*) > 5 from t'");
  CAPTURE(checked.out);
  CHECK(checked.out == "ok\n1\n");
}

}  // namespace
}  // namespace fermata::test
