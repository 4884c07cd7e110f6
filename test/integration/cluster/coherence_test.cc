// Two mounts see each other's changes at once, readers keep what they opened, and unchanged trees
// cost no RPC.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdio>

#include "test/integration/cluster/files.h"
#include "test/support/io_uring_switch.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

TEST_CASE("two mounts: after close on one, open on the other sees it at once, 1,000 times",
          "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  const int rounds = tests_use_io_uring() ? 300 : 1000;
  for (int round = 0; round < rounds; ++round) {
    const std::string content =
        "round " + std::to_string(round) + std::string(static_cast<std::size_t>(round % 700), 'x');
    const bool from_a = round % 2 == 0;
    write_file((from_a ? a : b) + "/shared", content);
    const std::string seen = read_file((from_a ? b : a) + "/shared");
    REQUIRE(seen == content);
    REQUIRE(stat_of((from_a ? b : a) + "/shared").st_size == static_cast<off_t>(content.size()));
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE("two mounts: a reader keeps the version that it opened", "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  for (const std::size_t size : {std::size_t{100}, std::size_t{200'000}, std::size_t{5'000'000}}) {
    CAPTURE(size);
    const std::string old_bytes = random_bytes(size, size);
    const std::string new_bytes = random_bytes(size / 2, size + 1);
    write_file(a + "/f", old_bytes);
    const Fd reader(b + "/f", O_RDONLY);
    REQUIRE(reader.pread(10, 0) == old_bytes.substr(0, 10));
    write_file(a + "/f", new_bytes);
    CHECK(reader.pread(size, 0) == old_bytes);  // still what was opened
    CHECK(read_file(b + "/f") == new_bytes);    // a new open is new
    CHECK(stat_of(b + "/f").st_ino == stat_of(a + "/f").st_ino);
    REQUIRE(unlink((a + "/f").c_str()) == 0);
    CHECK(!exists(b + "/f"));
    CHECK(reader.pread(size, 0) == old_bytes);  // unlinked elsewhere, open here
  }
}

TEST_CASE(
    "two mounts: names, modes and xattrs changed on one are seen by the next call on the other",
    "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  REQUIRE(mkdir((a + "/d").c_str(), 0755) == 0);
  write_file(a + "/d/x0", "content");
  REQUIRE(exists(b + "/d/x0"));
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    const std::string from = "/d/x" + std::to_string(i);
    const std::string to = "/d/x" + std::to_string(i + 1);
    REQUIRE(!exists(b + to));  // the kernel of b caches the absence
    REQUIRE(rename((a + from).c_str(), (a + to).c_str()) == 0);
    REQUIRE(exists(b + to));
    REQUIRE(!exists(b + from));
    const mode_t mode = i % 2 == 0 ? 0600 : 0644;
    REQUIRE(chmod((a + to).c_str(), mode) == 0);
    REQUIRE((stat_of(b + to).st_mode & 07777) == mode);
    const std::string value = std::to_string(i);
    REQUIRE(setxattr((a + to).c_str(), "user.n", value.data(), value.size(), 0) == 0);
    char seen[32];
    REQUIRE(getxattr((b + to).c_str(), "user.n", seen, sizeof seen) ==
            static_cast<ssize_t>(value.size()));
    REQUIRE(std::string(seen, value.size()) == value);
    // And the other way round.
    REQUIRE(symlink("there", (b + "/d/s").c_str()) == 0);
    REQUIRE(exists(a + "/d/s"));
    REQUIRE(unlink((b + "/d/s").c_str()) == 0);
    REQUIRE(!exists(a + "/d/s"));
  }
}

TEST_CASE("a stat-heavy loop over an unchanged tree makes no RPC", "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  REQUIRE(run("mkdir -p " + a + "/t/{1..10}; for d in {1..10}; do for f in {1..20}; do echo $f > " +
              a + "/t/$d/$f; done; done")
              .exit_code == 0);
  for (const std::string& mnt : {a, b}) {
    const std::string walk = "for i in 1 2 3; do find " + mnt +
                             "/t -printf '%p %s %m %T@\\n' > /dev/null; "
                             "ls -lR " +
                             mnt + "/t > /dev/null; stat " + mnt +
                             "/t/nothing 2>/dev/null || true; "
                             "cat " +
                             mnt + "/t/*/* > /dev/null; done";
    REQUIRE(run(walk).exit_code == 0);
    REQUIRE(cluster.fermata("cache flush " + mnt).exit_code == 0);  // tells access times
    REQUIRE(run(walk).exit_code == 0);                              // warms up
    // A machine too busy to renew its session in time asks again after that: the best of three.
    std::string calls;
    for (int attempt = 0; attempt < 3; ++attempt) {
      const auto before = cluster.rpc_counts(mnt);
      REQUIRE(run(walk).exit_code == 0);
      calls.clear();
      for (const auto& [method, count] : cluster.rpc_counts(mnt)) {
        // find(1) wants it, and it is asked again, in the background, when it is 2 s old.
        if (method == "statfs") continue;
        const auto old = before.find(method);
        const long more = count - (old == before.end() ? 0 : old->second);
        if (more != 0) calls += method + " " + std::to_string(more) + " ";
      }
      if (calls.empty()) break;
      std::printf("RPCs on an unchanged tree: %s\n", calls.c_str());
    }
    CHECK(calls.empty());
  }
}

TEST_CASE("two mounts: a change of mode shows what the other mount has written", "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt() + "/f";
  const std::string b = cluster.mount_another() + "/f";
  for (int round = 0; round < 20; ++round) {
    CAPTURE(round);
    write_file(a, std::string(9000, 'a'));
    CHECK(stat_of(a).st_size == 9000);
    write_file(b, "from the other mount");
    REQUIRE(chmod(a.c_str(), 0600) == 0);
    CHECK(stat_of(a).st_size == 20);
  }
}

TEST_CASE("two mounts: a change through a descriptor of an older version shows in the newer one",
          "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt() + "/f";
  const std::string b = cluster.mount_another() + "/f";
  write_file(a, "first");
  const Fd older(a, O_RDWR);
  write_file(b, "the other mount's");
  for (const mode_t mode : {0600, 0640, 0644}) {
    CAPTURE(mode);
    CHECK(stat_of(a).st_size == 17);  // the kernel has the newer version's attributes
    REQUIRE(fchmod(older.get(), mode) == 0);
    CHECK((stat_of(a).st_mode & 07777) == mode);
  }
  // u::rwx,u:1:rwx,g::---,m::rwx,o::--- (include/uapi/linux/posix_acl_xattr.h)
  const unsigned char acl[] = {2,    0,    0,    0,    1,    0,    7,  0,    0xff, 0xff, 0xff,
                               0xff, 2,    0,    7,    0,    1,    0,  0,    0,    4,    0,
                               0,    0,    0xff, 0xff, 0xff, 0xff, 16, 0,    7,    0,    0xff,
                               0xff, 0xff, 0xff, 32,   0,    0,    0,  0xff, 0xff, 0xff, 0xff};
  REQUIRE(fsetxattr(older.get(), "system.posix_acl_access", acl, sizeof acl, 0) == 0);
  CHECK((stat_of(a).st_mode & 07777) == 0770);
  REQUIRE(fremovexattr(older.get(), "system.posix_acl_access") == 0);
  REQUIRE(fchown(older.get(), 12, 34) == 0);
  CHECK(stat_of(a).st_uid == 12);
  CHECK(link(a.c_str(), (a + "2").c_str()) == 0);
  struct stat now {};
  REQUIRE(fstat(older.get(), &now) == 0);
  CHECK(now.st_nlink == 2);
}

TEST_CASE("two mounts: what a killed process wrote is everywhere when it has been waited for",
          "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  for (int i = 0; i < 30; ++i) {
    CAPTURE(i);
    const std::string bytes = random_bytes(i % 2 == 0 ? 100 : 300'000, static_cast<unsigned>(i));
    int ready[2];
    REQUIRE(pipe(ready) == 0);
    const pid_t writer = fork();
    if (writer == 0) {
      const int fd = open((a + "/f").c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0644);
      const bool done = write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
      if (write(ready[1], done ? "y" : "n", 1) == 1) pause();
      _exit(1);
    }
    char said = 0;
    REQUIRE(read(ready[0], &said, 1) == 1);
    REQUIRE(said == 'y');
    const auto killed = std::chrono::steady_clock::now();
    kill(writer, SIGKILL);
    REQUIRE(waitpid(writer, nullptr, 0) == writer);
    // A dying process is held for two seconds at most; what it wrote goes on without it.
    const bool given_up = std::chrono::steady_clock::now() - killed >= std::chrono::seconds(2);
    close(ready[0]);
    close(ready[1]);
    const auto is_there = [&] { return read_file(b + "/f") == bytes; };
    REQUIRE((given_up ? eventually(is_there) : is_there()));
    REQUIRE((read_file(a + "/f") == bytes));
  }
}

TEST_CASE("two mounts write the same file: the last close wins whole", "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  for (const std::size_t size : {std::size_t{1000}, std::size_t{3'000'000}}) {
    CAPTURE(size);
    const std::string base = random_bytes(size, 1);
    const std::string from_a = random_bytes(size, 2);
    const std::string from_b = random_bytes(size, 3);
    write_file(a + "/c", base);
    Fd fa(a + "/c", O_RDWR);
    Fd fb(b + "/c", O_RDWR);
    fa.pwrite(from_a.substr(0, size / 2), 0);
    fb.pwrite(from_b.substr(size / 2), static_cast<off_t>(size / 2));
    fa.close();
    fb.close();
    const std::string expected = base.substr(0, size / 2) + from_b.substr(size / 2);
    CHECK(read_file(a + "/c") == expected);
    CHECK(read_file(b + "/c") == expected);
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE("two mounts create in one directory at once: nothing hangs, every name has one winner",
          "[coherence]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  const auto race = [](const std::string& mnt, const std::string& won) {
    return "for i in $(seq 1 300); do (set -o noclobber; echo " + won + " > " + mnt +
           "/race.$i) 2>/dev/null && echo $i; done; true";
  };
  const RunResult both =
      run("(" + race(a, "a") + ") > /tmp/fm-race-a.$$ & (" + race(b, "b") +
              ") > /tmp/fm-race-b.$$ & wait; sort /tmp/fm-race-a.$$ /tmp/fm-race-b.$$ | uniq -c | "
              "awk '$1 != 1 {bad++} {n++} END {print n, bad+0}'; rm -f /tmp/fm-race-?.$$",
          std::chrono::seconds(300));
  CAPTURE(both.out);
  CHECK(both.out == "300 0\n");
  CHECK(run("ls " + b + " | grep -c race").out == "300\n");
}

}  // namespace
}  // namespace fermata::test
