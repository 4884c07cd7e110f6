// What belongs to a file beside its bytes, over several mounts and a failover: access control
// lists, access times, birth times, files without a name.
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <thread>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

constexpr uid_t kAlice = 61001;

/// What open(2) of `path` for reading ends with for another user: 0 or its errno.
int open_as(uid_t uid, const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgroups(0, nullptr) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0) ::_exit(255);
    ::_exit(::open(path.c_str(), O_RDONLY) >= 0 ? 0 : errno);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

std::int64_t atime_of(const std::string& path) { return ns_of(stat_of(path).st_atim); }

void link_descriptor(int fd, const std::string& to) {
  const std::string from = "/proc/self/fd/" + std::to_string(fd);
  REQUIRE(::linkat(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), AT_SYMLINK_FOLLOW) == 0);
}

}  // namespace

TEST_CASE("two mounts: an access control list set on one is obeyed by the other at once",
          "[attributes]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  REQUIRE(::mkdir((a + "/d").c_str(), 0755) == 0);
  write_file(a + "/d/f", "content");
  REQUIRE(::chmod((a + "/d/f").c_str(), 0600) == 0);
  const std::string user = "u:" + std::to_string(kAlice);
  for (int i = 0; i < 50; ++i) {
    CAPTURE(i);
    const std::string& here = i % 2 == 0 ? a : b;
    const std::string& there = i % 2 == 0 ? b : a;
    REQUIRE(open_as(kAlice, there + "/d/f") == EACCES);  // there the kernel keeps the old one
    REQUIRE(run("setfacl -m " + user + ":r " + here + "/d/f").exit_code == 0);
    REQUIRE(open_as(kAlice, there + "/d/f") == 0);
    const RunResult shown = run("getfacl -cnp " + there + "/d/f");
    CAPTURE(shown.out);
    REQUIRE(shown.out.find("user:" + std::to_string(kAlice) + ":r--") != std::string::npos);
    // chmod changes the mask, so it takes away what the list gives.
    REQUIRE(::chmod((here + "/d/f").c_str(), 0600) == 0);
    REQUIRE(open_as(kAlice, there + "/d/f") == EACCES);
    REQUIRE(run("setfacl -b " + here + "/d/f").exit_code == 0);
  }
  REQUIRE(run("setfacl -d -m " + user + ":rwx " + a + "/d").exit_code == 0);
  write_file(b + "/d/inherits", "content");
  CHECK(open_as(kAlice, a + "/d/inherits") == 0);
  CHECK(cluster.digests_equal());
}

TEST_CASE("access times: many reads cost few messages, and the cluster keeps them",
          "[attributes]") {
  FM_NEEDS_MOUNTS();
  const bool passthrough = GENERATE(true, false);
  CAPTURE(passthrough);
  MiniCluster cluster({3, true, passthrough ? "" : "nopassthrough"});
  const std::string a = cluster.mnt();
  constexpr int kFiles = 200;
  const auto path = [&](int i) { return a + "/f" + std::to_string(i); };
  for (int i = 0; i < kFiles; ++i) {
    write_file(path(i), "content");
    const timespec old[2] = {{1000, 0}, {2000, 0}};
    REQUIRE(::utimensat(AT_FDCWD, path(i).c_str(), old, 0) == 0);
  }
  const long before = cluster.rpc_count(a);
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < kFiles; ++i) REQUIRE(read_file(path(i)) == "content");
  }
  for (int i = 0; i < kFiles; ++i) REQUIRE(atime_of(path(i)) > ns_of({2000, 0}));
  REQUIRE(cluster.fermata("cache flush " + a).exit_code == 0);
  CHECK(cluster.rpc_count(a) - before <= 20);
  const std::string b = cluster.mount_another();
  for (int i = 0; i < kFiles; ++i) {
    CAPTURE(i);
    REQUIRE(atime_of(b + "/f" + std::to_string(i)) == atime_of(path(i)));
    REQUIRE(ns_of(stat_of(b + "/f" + std::to_string(i)).st_mtim) == ns_of({2000, 0}));
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE("access times: noatime notes none, strictatime each", "[attributes]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "noatime"});
  const std::string none = cluster.mnt();
  const std::string each = cluster.mount_another("strictatime,nopassthrough");
  write_file(none + "/f", "content");
  const timespec old[2] = {{1000, 0}, {2000, 0}};
  REQUIRE(::utimensat(AT_FDCWD, (none + "/f").c_str(), old, 0) == 0);
  REQUIRE(read_file(none + "/f") == "content");
  CHECK(atime_of(none + "/f") == ns_of({1000, 0}));
  std::int64_t last = ns_of({2000, 0});
  for (int i = 0; i < 3; ++i) {
    REQUIRE(read_file(each + "/f") == "content");
    const std::int64_t now = atime_of(each + "/f");
    CHECK(now > last);
    last = now;
  }
}

TEST_CASE("access times: what was set counts, not what was read before", "[attributes]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "content");
  REQUIRE(read_file(a + "/f") == "content");
  const timespec old[2] = {{1000, 0}, {0, UTIME_OMIT}};
  REQUIRE(::utimensat(AT_FDCWD, (b + "/f").c_str(), old, 0) == 0);
  CHECK(atime_of(a + "/f") == ns_of({1000, 0}));
  REQUIRE(cluster.fermata("cache flush " + a).exit_code == 0);
  CHECK(atime_of(b + "/f") == ns_of({1000, 0}));
}

TEST_CASE("birth times: the same on every mount", "[attributes]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string b = cluster.mount_another();
  write_file(cluster.mnt() + "/f", "content");
  const auto birth_on = [](const std::string& path) {
    struct statx found {};
    REQUIRE(::statx(AT_FDCWD, path.c_str(), 0, STATX_BTIME, &found) == 0);
    REQUIRE((found.stx_mask & STATX_BTIME) != 0);
    return ns_of({found.stx_btime.tv_sec, found.stx_btime.tv_nsec});
  };
  const std::int64_t birth = birth_on(cluster.mnt() + "/f");
  write_file(b + "/f", "other");
  CHECK(birth_on(b + "/f") == birth);
  CHECK(birth_on(cluster.mnt() + "/f") == birth);
}

TEST_CASE("O_TMPFILE: named after a failover it has all that was written, on every mount",
          "[attributes]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  for (const std::size_t size : {std::size_t{100}, std::size_t{3'000'000}}) {
    CAPTURE(size);
    const std::string name = "/named" + std::to_string(size);
    const std::string bytes = random_bytes(2 * size, size);
    Fd fd(a, O_TMPFILE | O_RDWR, 0644);
    fd.pwrite(bytes.substr(0, size), 0);
    REQUIRE(::fsync(fd.get()) == 0);
    const int dead = cluster.kill_primary();
    fd.pwrite(bytes.substr(size), static_cast<off_t>(size));
    CHECK(fd.pread(2 * size, 0) == bytes);
    link_descriptor(fd.get(), a + name);
    CHECK(read_file(b + name) == bytes);  // while it is open there
    CHECK(stat_of(b + name).st_nlink == 1);
    fd.pwrite("later", 0);
    fd.close();
    CHECK(read_file(b + name) == "later" + bytes.substr(5));
    cluster.restart_node(dead);
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE("O_TMPFILE: written and closed while it is given a name, it has what was written",
          "[attributes]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string b = cluster.mount_another();
  int named = 0;
  for (int i = 0; i < 150; ++i) {
    CAPTURE(i);
    const std::string name = "/t" + std::to_string(i);
    Fd fd(cluster.mnt(), O_TMPFILE | O_RDWR, 0644);
    fd.pwrite("first", 0);
    const std::string from = "/proc/self/fd/" + std::to_string(fd.get());
    const std::string to = cluster.mnt() + name;
    int linked = -1;
    std::thread links([&] {
      linked = ::linkat(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), AT_SYMLINK_FOLLOW);
    });
    std::this_thread::sleep_for(std::chrono::microseconds(i * 20));
    fd.pwrite("later", 0);
    fd.close();
    links.join();
    if (linked != 0) continue;  // it was closed already
    ++named;
    REQUIRE(read_file(b + name) == "later");
    REQUIRE(read_file(to) == "later");
  }
  CHECK(named > 0);
}

TEST_CASE("O_TMPFILE: one that never got a name leaves nothing behind", "[attributes]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const auto inodes = [&] {
    const RunResult status = cluster.fermata("status --json --no-digest " + cluster.servers());
    const auto at = status.out.find("\"inodes\"");
    REQUIRE(at != std::string::npos);
    return std::stol(status.out.substr(status.out.find(':', at) + 1));
  };
  const long before = inodes();
  {
    Fd fd(cluster.mnt(), O_TMPFILE | O_RDWR, 0600);
    fd.pwrite(random_bytes(200'000, 1), 0);
    REQUIRE(::fsync(fd.get()) == 0);
    CHECK(eventually([&] { return inodes() == before + 1; }));
  }
  CHECK(eventually([&] { return inodes() == before; }));
  // A client that dies takes them with it.
  REQUIRE(run("python3 -c 'import os; os.open(\"" + cluster.mnt() +
              "\", os.O_TMPFILE | os.O_RDWR); os.kill(os.getpid(), 9)' || true")
              .exit_code == 0);
  CHECK(eventually([&] { return inodes() == before; }));
  CHECK(cluster.digests_equal());
}

}  // namespace fermata::test
