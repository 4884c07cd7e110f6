// Files that a mount has made in a directory that it has alone, when something ends before they are
// sent: the mount, its session, their directory, the primary.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>
#include <memory>

#include "test/integration/cluster/alone.h"
#include "test/integration/cluster/files.h"
#include "test/integration/cluster/lock_calls.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

namespace json = boost::json;

TEST_CASE("exclusive: a file that stays open is sent after a while, and by fsync at once",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  const auto synced = two.make("synced");
  synced->pwrite("synced", 0);
  REQUIRE(synced->fsync() == 0);
  const auto beside = two.make("beside");
  {
    const Fd dir(two.a + "/d", O_RDONLY | O_DIRECTORY);
    REQUIRE(fsync(dir.get()) == 0);
  }
  CHECK(happened(two.cluster, two.a, "sent empty") == 1);
  const auto left = two.make("left");
  left->pwrite("left", 0);
  CHECK(eventually([&] { return happened(two.cluster, two.a, "sent empty") == 2; }));
  two.cluster.kill_mount(two.a);
  CHECK(read_file(two.b + "/d/synced") == "synced");
  CHECK(stat_of(two.b + "/d/beside").st_size == 0);
  CHECK(stat_of(two.b + "/d/left").st_size == 0);
}

TEST_CASE(
    "exclusive: a mount that dies holds others up for its lease at most, and loses only what was "
    "not closed",
    "[exclusive]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string b = cluster.mnt();
  const std::string a = cluster.mount_another();
  REQUIRE(mkdir((a + "/d").c_str(), 0777) == 0);
  have_alone(cluster, a, a + "/d");
  write_file(a + "/d/closed", "closed");
  const long before = made_here(cluster, a);
  Held open_file(a + "/d/open");
  open_file.pwrite("never closed", 0);
  REQUIRE(made_here(cluster, a) == before + 1);
  cluster.kill_mount(a);
  const auto began = std::chrono::steady_clock::now();
  const auto names = names_in(b + "/d");
  CHECK(names.contains("closed"));
  write_file(b + "/d/mine", "mine");
  CHECK(std::chrono::steady_clock::now() - began < std::chrono::seconds(25));
  CHECK(read_file(b + "/d/closed") == "closed");
  // What it left is no trouble for the next one: it is committed if the cluster came to know the
  // file, and set aside otherwise.
  const RunResult again = cluster.mount_with(a, a + ".cache");
  CAPTURE(again.out);
  REQUIRE(again.exit_code == 0);
  CHECK(read_file(a + "/d/mine") == "mine");
  const bool known = names.contains("open");
  CHECK(eventually([&] {
    const RunResult stat = cluster.fermata("cache stat --json " + a);
    const json::value document = json::parse(stat.out);
    const long kept = document.as_object().at("conflict_files").to_number<long>();
    return known ? read_file(b + "/d/open") == "never closed" : kept == 1;
  }));
  CHECK(names_in(b + "/d").size() == (known ? 3U : 2U));
}

TEST_CASE("exclusive: what was written to a file that is lost is kept, after its close, too",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  const pid_t daemon = two.cluster.daemon_of(two.a);
  std::unique_ptr<Held> fd;
  // The daemon may have sent it already, when it is stopped: then it is not lost.
  for (int i = 0;; ++i) {
    REQUIRE(i < 10);
    have_alone(two.cluster, two.a, two.a + "/d");
    fd = two.make("lost" + std::to_string(i));
    fd->pwrite("written", 0);
    stop(daemon);
    const bool known = exists(two.b + "/d/lost" + std::to_string(i));  // when the session is over
    REQUIRE(kill(daemon, SIGCONT) == 0);
    if (!known) break;
    CHECK(fd->close() == 0);
  }
  REQUIRE(
      eventually([&] { return happened(two.cluster, two.a, "lost before they were sent") == 1; }));
  CHECK(fd->fsync() == ESTALE);
  CHECK(fd->close() == ESTALE);
  fd.reset();
  // Nothing is left open, and what close_writer() has to do is done.
  std::string bytes_at;
  CHECK(eventually([&] {
    const RunResult listed = two.cluster.fermata("cache ls --json " + two.a);
    const json::value rows = json::parse(listed.out);
    for (const json::value& row : rows.as_object().at("files").as_array()) {
      const json::object& file = row.as_object();
      if (!file.at("conflict").as_bool() || file.at("open").as_bool()) continue;
      bytes_at = file.at("bytes_at").as_string();
    }
    return !bytes_at.empty();
  }));
  two.cluster.umount(two.a);  // the last word of every task
  CHECK(read_file(bytes_at) == "written");
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: a file removed before it was sent outlives its directory", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  const auto fd = two.make("f");
  REQUIRE(unlink((two.a + "/d/f").c_str()) == 0);
  REQUIRE(rmdir((two.a + "/d").c_str()) == 0);
  CHECK(fd->lock() == 0);
  fd->pwrite("bytes", 0);
  CHECK(fd->fsync() == 0);
  CHECK(fd->pread(5, 0) == "bytes");
  CHECK(fd->close() == 0);
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: files made before a failover are there after it", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    have_alone(two.cluster, two.a, two.a + "/d");
    const std::string name = "r" + std::to_string(round);
    const auto one = two.make(name + "-seen");
    const auto other = two.make(name + "-closed");
    other->pwrite("content", 0);
    const auto gone = two.make(name + "-gone");
    const int dead = two.cluster.kill_primary();
    CHECK(exists(two.b + "/d/" + name + "-seen"));
    CHECK(other->close() == 0);
    CHECK(read_file(two.b + "/d/" + name + "-closed") == "content");
    REQUIRE(unlink((two.a + "/d/" + name + "-gone").c_str()) == 0);
    CHECK(!exists(two.b + "/d/" + name + "-gone"));
    two.cluster.restart_node(dead);
  }
  CHECK(two.cluster.digests_equal());
}

}  // namespace
}  // namespace fermata::test
