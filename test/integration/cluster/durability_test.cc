// What close() acknowledged is never missing, whoever dies.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cstdio>

#include "common/env/random.h"
#include "test/integration/cluster/files.h"
#include "test/integration/cluster/lock_calls.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

TEST_CASE("200 rounds of write, close, SIGKILL a random node, restart it, read back elsewhere",
          "[durability]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  SeededRandom random(20'261);
  std::vector<std::size_t> sizes;
  int kills = 0;
  for (int round = 0; round < 200; ++round) {
    CAPTURE(round);
    const std::size_t size = random.chance(1, 4) ? random.below(3'000'000) : random.below(70'000);
    sizes.push_back(size);
    const std::string name = "/r" + std::to_string(round);
    write_file(a + name, random_bytes(size, static_cast<std::uint64_t>(round)));
    const int node = static_cast<int>(random.below(3)) + 1;
    cluster.kill_node(node);
    ++kills;
    REQUIRE(read_file(b + name) == random_bytes(size, static_cast<std::uint64_t>(round)));
    cluster.restart_node(node);
    const auto earlier = random.below(static_cast<std::uint64_t>(round) + 1);
    REQUIRE(read_file(b + "/r" + std::to_string(earlier)) == random_bytes(sizes[earlier], earlier));
  }
  CHECK(kills == 200);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    CAPTURE(i);
    CHECK(read_file(b + "/r" + std::to_string(i)) == random_bytes(sizes[i], i));
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE("all three nodes killed at once lose no acknowledged close", "[durability]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  int acknowledged = 0;
  for (int crash = 0; crash < 5; ++crash) {
    for (int i = 0; i < 40; ++i, ++acknowledged)
      write_file(mnt + "/f" + std::to_string(acknowledged),
                 random_bytes(static_cast<std::size_t>(acknowledged) * 791 % 120'000,
                              static_cast<std::uint64_t>(acknowledged)));
    REQUIRE(run("kill -KILL $(cat " + cluster.dir() + "/node{1,2,3}.pid)").exit_code == 0);
    for (int node = 1; node <= 3; ++node) cluster.restart_node(node);
  }
  const std::string fresh = cluster.mount_another();
  for (int i = 0; i < acknowledged; ++i) {
    CAPTURE(i);
    REQUIRE(
        read_file(fresh + "/f" + std::to_string(i)) ==
        random_bytes(static_cast<std::size_t>(i) * 791 % 120'000, static_cast<std::uint64_t>(i)));
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE(
    "a client killed by SIGKILL: closed files are whole, its session is gone within the lease term",
    "[durability]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  for (int i = 0; i < 50; ++i)
    write_file(b + "/k" + std::to_string(i), random_bytes(65'536, static_cast<std::uint64_t>(i)));
  const Fd held(b + "/k0", O_RDONLY);  // leases and an open file go with the client
  cluster.kill_mount(b);
  const auto killed = std::chrono::steady_clock::now();
  for (int i = 0; i < 50; ++i) {
    CAPTURE(i);
    REQUIRE(read_file(a + "/k" + std::to_string(i)) ==
            random_bytes(65'536, static_cast<std::uint64_t>(i)));
  }
  write_file(a + "/k0", "changed");  // needs the dead client's lease to end
  const double waited =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - killed).count();
  std::printf("a dead client held a conflicting change back for %.1f s\n", waited);
  CHECK(waited < 15.0);
  CHECK(eventually(
      [&] {
        return cluster.fermata("session ls " + cluster.servers()).out.find(b) == std::string::npos;
      },
      std::chrono::seconds(15)));
}

TEST_CASE(
    "what was written and not closed when the client died is kept and committed by the next mount",
    "[durability]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(b + "/d", "old");
  {
    const Fd fd(b + "/d", O_RDWR);
    fd.pwrite("new bytes, never closed", 0);
    cluster.kill_mount(b);
  }
  CHECK(read_file(a + "/d") == "old");  // not acknowledged: not there
  REQUIRE(cluster.mount_with(b, b + ".cache").exit_code == 0);
  CHECK(eventually([&] { return read_file(a + "/d") == "new bytes, never closed"; },
                   std::chrono::seconds(30)));
}

TEST_CASE("a commit whose answer the client did not live to see is no conflict at the next mount",
          "[durability]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  const std::vector<std::string> names = {"/inline", "/chunks", "/beaten"};
  const auto content = [](const std::string& name) {
    return random_bytes(name == "/chunks" ? 3'200'000 : 300, name.size());
  };
  for (const auto& name : names) write_file(b + name, "old");
  {
    std::vector<std::unique_ptr<Fd>> open;
    for (const auto& name : names) {
      open.push_back(std::make_unique<Fd>(b + name, O_RDWR));
      open.back()->pwrite(content(name), 0);
    }
    cluster.kill_mount(b);
  }
  // The copy is the cache as it would be, had the daemon died once more before the answers.
  REQUIRE(run("cp -a " + b + ".cache " + b + ".kept").exit_code == 0);
  REQUIRE(cluster.mount_with(b, b + ".cache").exit_code == 0);
  for (const auto& name : names)
    REQUIRE(eventually([&] { return read_file(a + name) == content(name); }));
  write_file(a + "/beaten", "somebody else's");
  cluster.umount(b);
  REQUIRE(cluster.mount_with(b, b + ".kept").exit_code == 0);
  const auto row_of = [&](const std::string& name) {
    const auto rows = boost::json::parse(cluster.fermata("cache ls --json " + b).out);
    for (const auto& row : rows.as_object().at("files").as_array())
      if (row.as_object().at("path").as_string() == name.substr(1)) return row.as_object();
    return boost::json::object{};
  };
  REQUIRE(eventually([&] { return row_of("/beaten").at("conflict").as_bool(); }));
  for (const auto& name : {"/inline", "/chunks"}) {
    CAPTURE(name);
    CHECK(eventually([&] {
      const auto row = row_of(name);
      return row.empty() || (!row.at("dirty").as_bool() && !row.at("conflict").as_bool());
    }));
    CHECK((read_file(b + name) == content(name)));
    CHECK((read_file(a + name) == content(name)));
  }
  CHECK(read_file(b + "/beaten") == "somebody else's");
  // People find the bytes of the conflict, and forget them.
  const std::string bytes_at(row_of("/beaten").at("bytes_at").as_string());
  CHECK(read_file(bytes_at) == content("/beaten"));
  const RunResult flushed = cluster.fermata("cache flush " + b);
  CHECK(flushed.exit_code == 0);
  CHECK(flushed.out.find("  beaten: " + bytes_at) != std::string::npos);
  CHECK(cluster.fermata("cache ls " + b).out.find("is in " + bytes_at) != std::string::npos);
  CHECK(cluster.fermata("cache drop " + b + " " + bytes_at + "x").exit_code == 1);
  REQUIRE(cluster.fermata("cache drop " + b + " " + bytes_at).exit_code == 0);
  CHECK(eventually([&] { return !exists(bytes_at); }));
  CHECK(cluster.fermata("cache ls " + b).out.find("beaten") == std::string::npos);
  CHECK(cluster.fermata("cache flush " + b).out.find("conflict") == std::string::npos);
  CHECK(read_file(b + "/beaten") == "somebody else's");
}

TEST_CASE("a mount that was killed and comes again ends its former session", "[durability]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  const auto log_says = [&](const std::string& mnt, const char* what) {
    return run("cat " + mnt + ".log").out.find(what) != std::string::npos;
  };
  write_file(b + "/f", "content");
  {
    const Fd open(b + "/f", O_RDWR);
    cluster.kill_mount(b);
  }
  REQUIRE(cluster.mount_with(b, b + ".cache").exit_code == 0);
  CHECK(eventually([&] { return log_says(b, "of an earlier run with this cache is ended"); }));
  const auto sessions =
      boost::json::parse(cluster.fermata("session ls --json " + cluster.servers()).out);
  CHECK(sessions.as_object().at("sessions").as_array().size() == 2);
  CHECK(read_file(b + "/f") == "content");
  // A copy of the cache says nothing about the mount that has the original.
  REQUIRE(run("cp -a " + b + ".cache " + b + ".copy").exit_code == 0);
  const std::string c = b + ".second";
  REQUIRE(cluster.mount_with(c, b + ".copy").exit_code == 0);
  write_file(c + "/g", "through another one");
  CHECK(read_file(b + "/g") == "through another one");
  CHECK_FALSE(log_says(c, "of an earlier run"));
  CHECK_FALSE(log_says(b, "is over at the cluster"));
  CHECK(cluster.digests_equal());
}

TEST_CASE("a flush that makes a conflict does not end as if all were well", "[durability]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "old");
  const pid_t daemon = cluster.daemon_of(a);
  // In a process of its own: what this one starts closes what it inherits, which commits.
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  const pid_t writer = fork();
  if (writer == 0) {
    const int fd = open((a + "/f").c_str(), O_RDWR | O_CLOEXEC);
    if (write(fd, "mine", 4) == 4 && write(ready[1], "y", 1) == 1) pause();
    _exit(1);
  }
  close(ready[1]);
  char said = 0;
  REQUIRE(read(ready[0], &said, 1) == 1);
  close(ready[0]);
  stop(daemon);
  write_file(b + "/f", "somebody else's");  // when the session is over
  REQUIRE(kill(daemon, SIGCONT) == 0);
  const RunResult flushed = cluster.fermata("cache flush " + a);
  CHECK(flushed.exit_code == 1);
  CHECK(flushed.out.find("1 conflict is kept") != std::string::npos);
  CHECK(flushed.out.find("0 files committed") != std::string::npos);
  CHECK(cluster.fermata("cache flush " + a).exit_code == 0);  // it is known by now
  kill(writer, SIGKILL);
  REQUIRE(waitpid(writer, nullptr, 0) == writer);
  CHECK(read_file(b + "/f") == "somebody else's");
}

}  // namespace
}  // namespace fermata::test
