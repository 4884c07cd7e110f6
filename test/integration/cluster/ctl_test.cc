// The command `fermata` where something is in its way: it says so, ends with a code that tells, and
// what it could not do does not come back at the next start.
#include <fcntl.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>

#include "common/base/mount_table.h"
#include "common/base/process.h"
#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

namespace json = boost::json;

bool is_mounted(const std::string& path) {
  for (const auto& mount : mount_table())
    if (mount.mount_point == path) return true;
  return false;
}

bool says(const RunResult& result, const std::string& words) {
  return result.out.find(words) != std::string::npos;
}

TEST_CASE("ctl: a mount in use is not taken away, and what is not committed is said", "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  const std::string other = cluster.mount_another();
  {
    const Fd busy(other + "/busy", O_CREAT | O_WRONLY);
    const RunResult refused = cluster.fermata("umount " + other);
    CHECK(refused.exit_code == 32);
    CHECK(says(refused, "is in use"));
    busy.pwrite("kept", 0);
  }
  CHECK(read_file(other + "/busy") == "kept");
  write_file(other + "/left", "old");
  for (const int node : {1, 2}) cluster.kill_node(node);
  // No majority: this close waits, until its writer is killed.
  write_file(cluster.dir() + "/new", "new\n");
  (void)run("timeout -s KILL 1 cp " + cluster.dir() + "/new " + other + "/left");
  for (int i = 0; i < 2; ++i) {  // also the second time
    const RunResult refused =
        run("timeout -s KILL 2 " + cluster.bin("fermata") + " umount --flush " + other);
    CHECK(refused.exit_code != 0);
    CHECK(run("grep -c " + other + " /proc/self/mounts").out == "1\n");
  }
  RunResult ended;
  // The killed writer may still be on its way out.
  const bool unused = eventually([&] {
    ended = cluster.fermata("umount " + other);
    return !says(ended, "is in use");
  });
  CAPTURE(ended.out, run("fuser -vm " + other).out);
  CHECK(unused);
  CHECK(ended.exit_code == 1);
  CHECK(says(ended, "waiting until everything"));
  CHECK(says(ended, "1 file could not be committed"));
  CHECK(says(ended, other + ".cache"));
  for (const int node : {1, 2}) cluster.restart_node(node);
  REQUIRE(cluster.mount_with(other, other + ".cache").exit_code == 0);
  CHECK(eventually([&] { return read_file(mnt + "/left") == "new\n"; }));
}

TEST_CASE("ctl: mini stop says what else is mounted; --force does not wait for the nodes",
          "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  const std::string other = cluster.mount_another();
  write_file(mnt + "/f", "old");
  for (const int node : {1, 2}) cluster.kill_node(node);
  write_file(cluster.dir() + "/new", "new\n");
  (void)run("timeout -s KILL 1 cp " + cluster.dir() + "/new " + mnt + "/f");
  const RunResult stopped = cluster.fermata("mini stop --force --dir " + cluster.dir());
  CAPTURE(stopped.out);
  CHECK(stopped.exit_code == 0);
  CHECK(says(stopped, other + " is a mount of this cluster too"));
  CHECK(!says(stopped, "waiting until"));
  const RunResult again = cluster.fermata("mini start --dir " + cluster.dir());
  CAPTURE(again.out);
  REQUIRE(again.exit_code == 0);
  CHECK(eventually([&] { return read_file(mnt + "/f") == "new\n"; }));
  CHECK(eventually([&] { return read_file(other + "/f") == "new\n"; }));
}

TEST_CASE("ctl: a start that could not mount is not repeated by the next one", "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "ro"});
  const std::string dir = cluster.dir();
  // Mounted elsewhere already.
  const RunResult second = cluster.fermata("mini start --dir " + dir + " --mount " + dir + "/mnt2");
  CHECK(second.exit_code == 32);
  CHECK(says(second, "is mounted on " + cluster.mnt()));
  const RunResult other = cluster.fermata("mini start --dir " + dir + " -o noatime");
  CHECK(other.exit_code == 32);
  CHECK(says(other, "with other options"));
  REQUIRE(cluster.fermata("mini stop --dir " + dir).exit_code == 0);
  write_file(dir + "/file", "no directory");
  const RunResult failed = cluster.fermata("mini start --dir " + dir + " --mount " + dir + "/file");
  CAPTURE(failed.out);
  CHECK(failed.exit_code == 32);
  CHECK(says(failed, dir + "/file"));
  const RunResult bad = cluster.fermata("mini start --dir " + dir + " -o no_such_option");
  CHECK(bad.exit_code == 32);
  const RunResult started = cluster.fermata("mini start --dir " + dir);
  CAPTURE(started.out);
  REQUIRE(started.exit_code == 0);
  CHECK(says(started, "mounted on " + cluster.mnt()));
  CHECK(write_error(cluster.mnt() + "/f", "x") == EROFS);  // mounted as before
}

TEST_CASE("ctl: mini start mounts again after its daemon died, and keeps off others' mounts",
          "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  write_file(mnt + "/f", "kept");
  REQUIRE(run("kill -9 $(cat " + cluster.dir() + "/mount.pid)").exit_code == 0);
  REQUIRE(eventually([&] { return run("stat " + mnt).exit_code != 0; }));
  const RunResult second = cluster.fermata("mount " + cluster.dir() + "/servers " + mnt);
  CHECK(second.exit_code == 32);
  CHECK(says(second, "whose daemon is gone"));
  const RunResult again = cluster.fermata("mini start --dir " + cluster.dir());
  CAPTURE(again.out);
  REQUIRE(again.exit_code == 0);
  CHECK(read_file(mnt + "/f") == "kept");

  const std::string dir = cluster.root() + "/other";
  const RunResult taken = cluster.fermata("mini start --nodes 1 --dir " + dir + " --mount " + mnt);
  CHECK(taken.exit_code == 32);
  CHECK(says(taken, "is another Fermata mount"));
  const RunResult started = cluster.fermata("mini start --nodes 1 --dir " + dir);
  CAPTURE(started.out);
  REQUIRE(started.exit_code == 0);
  CHECK(says(started, "1 storage node runs"));
  CHECK(cluster.fermata("mini start --nodes 3 --dir " + dir).exit_code != 0);
  // Its mount point has become another's meanwhile.
  const std::string point = cluster.root() + "/point";
  REQUIRE(cluster.fermata("mini start --dir " + dir + " --mount " + point).exit_code == 0);
  REQUIRE(cluster.fermata("umount " + point).exit_code == 0);
  REQUIRE(cluster.mount_with(point, cluster.root() + "/point.cache").exit_code == 0);
  REQUIRE(cluster.fermata("mini stop --dir " + dir).exit_code == 0);
  CHECK(read_file(point + "/f") == "kept");
}

TEST_CASE("ctl: mini start does without a node that cannot start", "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  write_file(mnt + "/f", "kept");
  REQUIRE(cluster.fermata("mini stop --dir " + cluster.dir()).exit_code == 0);
  write_file(cluster.dir() + "/node1/node.toml", "damaged");
  const RunResult started = cluster.fermata("mini start --dir " + cluster.dir());
  CAPTURE(started.out);
  CHECK(started.exit_code == 1);
  CHECK(says(started, "node 1 did not start"));
  CHECK(says(started, "2 storage nodes run"));
  CHECK(read_file(mnt + "/f") == "kept");
}

TEST_CASE("ctl: a mount that cannot be leaves nothing; one in the foreground ends as it is told",
          "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, false, {}});
  const std::string mnt = cluster.root() + "/mnt";
  const std::string cache = cluster.root() + "/cache";
  // Nodes that found each other not ready yet are no attack.
  CHECK(run(cluster.bin("fermata") + " status --json " + cluster.servers() +
            " | grep -o '\"refused\":[0-9]*' | sort | uniq -c | tr -d ' '")
            .out == "3\"refused\":0\n");
  const RunResult unknown =
      cluster.fermata("mount bad..name:7000:/ " + mnt + " --cache-dir " + cache);
  CAPTURE(unknown.out);
  CHECK(unknown.exit_code == 32);
  CHECK(says(unknown, "bad..name"));
  CHECK(run("test -e " + mnt + " -o -e " + cache).exit_code == 1);
  const RunResult refused = cluster.mount_with(mnt, cache, "no_such_option");
  CHECK(refused.exit_code != 0);
  CHECK(run("test -e " + mnt).exit_code == 1);

  const std::string started = run(cluster.bin("fermata") + " mount -f " + cluster.servers() + " " +
                                  mnt + " --cache-dir " + cache + " >/dev/null 2>&1 & echo $!")
                                  .out;
  CHECK(eventually([&] { return is_mounted(mnt) && write_error(mnt + "/f", "x") == 0; }));
  CHECK(run("kill -TERM " + started).exit_code == 0);
  CHECK(eventually([&] { return !is_mounted(mnt); }));
  CHECK(eventually([&] { return !is_alive(std::stoi(started)); }));
}

TEST_CASE("ctl: a node whose port is taken says so in its log, and a mount what it waits for",
          "[smoke]") {
  MiniCluster cluster({3, false, {}});
  const std::string list = read_file(cluster.servers());
  const std::string first = list.substr(0, list.find(','));
  cluster.kill_node(1);
  const std::string port = first.substr(first.find(':') + 1);
  const std::string blocker =
      "python3 -c \"import socket,time; s=socket.socket(); "
      "s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1); s.bind(('127.0.0.1'," +
      port + ")); s.listen(); print('up',flush=True); time.sleep(600)\"";
  const RunResult result =
      run("exec 3< <(exec " + blocker + "); blocker=$!; read -r word <&3; " +
          cluster.bin("fermata") + " mini restart --dir " + cluster.dir() +
          " --node 1 && code=0 || code=$?; "
          "timeout 4 " +
          cluster.bin("fermata") + " mount " + first + ":/ " + cluster.dir() + "/m --cache-dir " +
          cluster.dir() + "/cache || true; kill $blocker; exit $code");
  CAPTURE(result.out);
  CHECK(result.exit_code != 0);
  CHECK(read_file(cluster.dir() + "/node1.log").find("in use") != std::string::npos);
  CHECK(says(result, "waiting until the mount answers (the servers are " + first));
  cluster.restart_node(1);
}

TEST_CASE("ctl: a cache on a mount of ours, or of another cluster, is refused", "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const RunResult inside = cluster.mount_with(cluster.dir() + "/m", cluster.mnt() + "/cache");
  CHECK(inside.exit_code == 32);
  CHECK(says(inside, "must be on a local disk"));
  const std::string other = cluster.mount_another();
  cluster.umount(other);
  MiniCluster second({3, false, {}});
  const RunResult foreign = second.fermata("mount " + second.servers() + " " + second.dir() +
                                           "/m --cache-dir " + other + ".cache");
  CHECK(foreign.exit_code == 32);
  CHECK(says(foreign, "another --cache-dir"));
}

TEST_CASE("ctl: cache ls says what is open, and shows nothing that was removed elsewhere",
          "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  const std::string other = cluster.mount_another();
  const auto row = [&](const std::string& path) {
    const json::value rows = json::parse(cluster.fermata("cache ls --json " + other).out);
    for (const json::value& each : rows.as_object().at("files").as_array())
      if (each.as_object().at("path").as_string() == path) return each.as_object();
    return json::object{};
  };
  for (const char* name : {"/stays", "/goes", "/replaced"}) write_file(mnt + name, name);
  for (const char* name : {"/stays", "/goes", "/replaced"}) CHECK(read_file(other + name) == name);
  CHECK(!row("stays").at("open").as_bool());
  {
    const Fd open(other + "/stays", O_RDONLY);
    CHECK(row("stays").at("open").as_bool());
  }
  CHECK(eventually([&] { return !row("stays").at("open").as_bool(); }));
  REQUIRE(unlink((mnt + "/goes").c_str()) == 0);
  REQUIRE(rename((mnt + "/stays").c_str(), (mnt + "/replaced").c_str()) == 0);
  CHECK(row("goes").empty());
  CHECK(row("replaced").empty());
  CHECK(read_file(other + "/replaced") == "/stays");
  CHECK(row("stays").empty());
}

TEST_CASE("ctl: what is mistyped is named, with what there is instead", "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const auto says = [&](const std::string& arguments, int code, const std::string& what) {
    const RunResult result = cluster.fermata(arguments);
    CAPTURE(arguments, result.out);
    CHECK(result.exit_code == code);
    CHECK(result.out.find(what) != std::string::npos);
  };
  REQUIRE(mkdir((cluster.mnt() + "/sub").c_str(), 0755) == 0);
  says("cache foo " + cluster.mnt(), 2, "no verb 'foo'; it has: ls, stat, flush, drop");
  says("foo", 2, "no verb 'foo'; it has: mini, mount,");
  says("cache ls " + cluster.mnt() + "/sub", 69, "below the mount point: say " + cluster.mnt());
  says("primary transfer --to 9 " + cluster.servers(), 1, "no node 9 answers; those that do: 1, 2");
  says("status " + cluster.dir(), 0, "HEALTH_OK");  // its list of servers is in a file there
  const std::string config = cluster.root() + "/node.toml";
  write_file(config, "listen = \"127.0.0.1:0\"\n misspelt = 1\n");
  const RunResult refused =
      run(cluster.bin("fermata-serverd") + " --config " + config + " || true");
  CHECK(refused.out.find(config + ":2: 'misspelt' is no option") != std::string::npos);
  const RunResult other = run("setpriv --reuid 1234 --regid 1234 --clear-groups " +
                              cluster.bin("fermata") + " cache ls " + cluster.mnt() + " || true");
  CHECK(other.out.find("only root, and who mounted it, may ask") != std::string::npos);
}

}  // namespace
}  // namespace fermata::test
