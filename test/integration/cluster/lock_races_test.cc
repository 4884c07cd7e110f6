// Locks where two things happen at once: a late close, a signal, a lost session, a commit.
#include <sys/file.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <fstream>
#include <memory>
#include <thread>
#include <vector>

#include "test/integration/cluster/files.h"
#include "test/integration/cluster/lock_calls.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

using namespace std::chrono_literals;
constexpr long kFcntl = 72;  // its number, as sleeps_in() wants it

pid_t number_in(const std::string& file) {
  std::ifstream in(file);
  pid_t pid = 0;
  REQUIRE(in >> pid);
  return pid;
}

/// Joins when it goes, so that a failed assertion ends the test and not the program.
class Thread {
 public:
  template <class Fn>
  explicit Thread(Fn body) : thread_(std::move(body)) {}
  ~Thread() { thread_.join(); }

 private:
  std::thread thread_;
};

bool stays_locked(const Fd& other, std::chrono::milliseconds time) {
  return !eventually([&] { return flock(other.get(), LOCK_EX | LOCK_NB) == 0; }, time);
}

TEST_CASE("locks: the late end of one open file takes nothing from the next one", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd other(b + "/f", O_RDWR);
  for (int i = 0; i < 60; ++i) {
    CAPTURE(i);
    {
      Fd first(a + "/f", O_RDWR);  // the kernel tends to use its memory for the next one
      REQUIRE(flock(first.get(), LOCK_EX) == 0);
    }
    Fd next(a + "/f", O_RDONLY);
    REQUIRE(flock(next.get(), LOCK_EX) == 0);
    REQUIRE(stays_locked(other, 20ms));
  }
  for (int i = 0; i < 60; ++i) {
    CAPTURE(i);
    {
      Fd first(a + "/f", O_RDWR);
      REQUIRE(set_lock(first, F_OFD_SETLKW, F_WRLCK) == 0);
    }
    Fd next(a + "/f", O_RDWR);
    REQUIRE(set_lock(next, F_OFD_SETLKW, F_WRLCK) == 0);
    REQUIRE_FALSE(eventually([&] { return set_lock(other, F_OFD_SETLK, F_WRLCK) == 0; }, 20ms));
  }
}

TEST_CASE("locks: a close beside an update in place commits no mix of two versions", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  const auto content = [](int version) {
    return std::string(3U << 20, static_cast<char>('a' + version % 26));
  };
  constexpr int kVersions = 80;
  write_file(a + "/f", content(0));
  Fd locks(a + "/f", O_RDWR);
  Fd closes(a + "/f", O_RDWR);
  std::atomic<bool> stop{false};
  const Thread thread([&] {
    // Each close commits, written or not: the kernel tells nobody what was written.
    while (!stop) close(dup(closes.get()));
  });
  for (int version = 1; version <= kVersions; ++version) {
    CAPTURE(version);
    const std::string bytes = content(version);
    write_file(b + "/f", bytes);
    const int got = set_lock(locks, F_OFD_SETLKW, F_RDLCK);
    const bool seen = locks.pread(bytes.size(), 0) == bytes;
    set_lock(locks, F_OFD_SETLK, F_UNLCK);
    const bool kept = read_file(b + "/f") == bytes;
    stop = !(got == 0 && seen && kept) || version == kVersions;
    REQUIRE(got == 0);
    REQUIRE(seen);
    REQUIRE(kept);
  }
}

TEST_CASE("locks: one that is asked for while the session is renewed is held by the new one",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  constexpr int kFiles = 40;
  std::vector<std::unique_ptr<Fd>> fds;
  for (int i = 0; i < kFiles; ++i) {
    const std::string path = a + "/f" + std::to_string(i);
    write_file(path, "old");
    fds.push_back(std::make_unique<Fd>(path, O_RDWR));
  }
  REQUIRE(set_lock(*fds[0], F_OFD_SETLK, F_RDLCK) == 0);
  Fd other(b + "/f0", O_RDWR);
  const pid_t daemon = cluster.daemon_of(cluster.mnt());
  stop(daemon);
  const int waited = set_lock(other, F_OFD_SETLKW, F_WRLCK);  // until the session is over
  REQUIRE(kill(daemon, SIGCONT) == 0);
  REQUIRE(waited == 0);
  std::vector<int> results(kFiles, -1);
  {
    std::vector<std::unique_ptr<Thread>> threads;
    for (int i = 1; i < kFiles; ++i) {
      threads.push_back(std::make_unique<Thread>([&, i] {
        const Fd& mine = *fds[static_cast<std::size_t>(i)];
        int& result = results[static_cast<std::size_t>(i)];
        std::this_thread::sleep_for(std::chrono::milliseconds(4 * i));
        result = set_lock(mine, F_OFD_SETLKW, F_WRLCK);
        if (result == 0) result = pwrite(mine.get(), "new", 3, 0) == 3 ? 0 : errno;
        if (result == 0) result = errno_of(fsync(mine.get()));
        if (result == 0) result = set_lock(mine, F_OFD_SETLK, F_UNLCK);
      }));
    }
  }
  for (int i = 1; i < kFiles; ++i) {
    CAPTURE(i);
    CHECK(results[static_cast<std::size_t>(i)] == 0);
    CHECK(read_file(b + "/f" + std::to_string(i)) == "new");
  }
}

TEST_CASE("locks: a killed holder's lock goes after its work", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  const bool unlocking = GENERATE(false, true);  // killed in F_UNLCK, or before
  CAPTURE(unlocking);
  constexpr std::size_t kSize = 200U << 20;
  write_file(a + "/f", "none");
  int ready[2];
  REQUIRE(pipe(ready) == 0);
  Child child([&] {
    const int fd = open((a + "/f").c_str(), O_RDWR);
    struct flock wanted = range(F_WRLCK);
    if (fcntl(fd, F_SETLKW, &wanted) != 0) return 1;
    const std::string bytes = random_bytes(kSize, 7);
    if (write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) return 2;
    if (write(ready[1], "y", 1) != 1) return 3;
    struct flock none = range(F_UNLCK);
    if (unlocking) fcntl(fd, F_SETLK, &none);
    pause();
    return 0;
  });
  char said = 0;
  REQUIRE(read(ready[0], &said, 1) == 1);
  if (unlocking) {
    REQUIRE(eventually([&] { return sleeps_in(child.pid(), kFcntl); }, 10s));
  }
  kill(child.pid(), SIGKILL);
  {
    Fd other(b + "/f", O_RDWR);
    REQUIRE(set_lock(other, F_OFD_SETLKW, F_WRLCK) == 0);
    struct stat now {};
    REQUIRE(fstat(other.get(), &now) == 0);
    CHECK(static_cast<std::size_t>(now.st_size) == kSize);
    other.pwrite("appended", now.st_size);
    other.close();
  }
  (void)child.wait();
  const std::string expected = random_bytes(kSize, 7) + "appended";
  const bool same_here = read_file(a + "/f") == expected;
  const bool same_there = read_file(b + "/f") == expected;
  CHECK(same_here);
  CHECK(same_there);
  close(ready[0]);
  close(ready[1]);
}

TEST_CASE("locks: a signal while the newest version is fetched leaves no lock behind", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  constexpr std::size_t kSize = 48U << 20;
  write_file(a + "/f", random_bytes(kSize, 1));
  int told[2];
  REQUIRE(pipe(told) == 0);
  for (unsigned round = 0; round < 6; ++round) {
    CAPTURE(round);
    Fd mine(a + "/f", O_RDWR);
    REQUIRE(set_lock(mine, F_OFD_SETLKW, F_WRLCK) == 0);
    Child child([&] {
      struct sigaction action {};
      action.sa_handler = [](int) {};
      sigaction(SIGALRM, &action, nullptr);
      const int fd = open((b + "/f").c_str(), O_RDWR);
      struct flock wanted = range(F_WRLCK);
      const int error = errno_of(fcntl(fd, F_SETLKW, &wanted));
      const char answer = error == 0 ? 'g' : error == EINTR ? 'i' : '?';
      if (write(told[1], &answer, 1) != 1) return 1;
      while (true) pause();  // it relies on what it was told, and does not let go
    });
    REQUIRE(eventually([&] { return sleeps_in(child.pid(), kFcntl); }, 10s));
    std::this_thread::sleep_for(100ms);
    mine.pwrite(random_bytes(kSize, round + 2), 0);
    REQUIRE(set_lock(mine, F_OFD_SETLK, F_UNLCK) == 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(10 + 15 * round));
    kill(child.pid(), SIGALRM);
    char answer = 0;
    REQUIRE(read(told[0], &answer, 1) == 1);
    CHECK(answer != '?');
    if (answer == 'g') continue;
    CHECK(eventually([&] { return set_lock(mine, F_OFD_SETLK, F_WRLCK) == 0; }, 10s));
  }
  close(told[0]);
  close(told[1]);
}

TEST_CASE("locks: of two descriptors, the late end of the one takes nothing from the other",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  for (int i = 0; i < 60; ++i) {
    CAPTURE(i);
    const std::string name = "/f" + std::to_string(i);  // no lock was ever asked for on it
    write_file(a + name, "x");
    Fd other(b + name, O_RDWR);
    Fd read(a + name, O_RDONLY);
    Fd write(a + name, O_RDWR);
    REQUIRE(set_lock(read, F_SETLK, F_RDLCK) == 0);
    REQUIRE(set_lock(write, F_SETLK, F_WRLCK) == 0);
    read.close();
    REQUIRE(set_lock(write, F_SETLK, F_WRLCK) == 0);
    REQUIRE_FALSE(eventually([&] { return set_lock(other, F_OFD_SETLK, F_WRLCK) == 0; }, 20ms));
    REQUIRE(set_lock(write, F_SETLK, F_UNLCK) == 0);
    REQUIRE(set_lock(other, F_OFD_SETLK, F_WRLCK) == 0);
  }
}

TEST_CASE("locks: any close lets go of a process' locks, whatever version it had opened",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR);
  REQUIRE(set_lock(mine, F_SETLK, F_RDLCK) == 0);
  write_file(b + "/f", "y");
  {
    Fd newer(a + "/f", O_RDONLY);
    CHECK(newer.pread(1, 0) == "y");
    CHECK(mine.pread(1, 0) == "x");
  }
  Fd other(b + "/f", O_RDWR);
  CHECK(set_lock(other, F_OFD_SETLK, F_WRLCK) == 0);
}

TEST_CASE("locks: a request that a soft mount gave up holds nothing", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const bool first = GENERATE(false, true);  // a delegation is in doubt, too
  CAPTURE(first);
  const std::string soft =
      cluster.mount_another(first ? "soft,soft_timeout=1" : "soft,soft_timeout=1,nolockdelegation");
  write_file(a + "/f", "x");
  Fd mine(soft + "/f", O_RDWR);
  Fd other(a + "/f", O_RDWR);
  if (!first) REQUIRE(set_lock(mine, F_OFD_SETLK, F_RDLCK, 0, 1) == 0);
  const int primary = cluster.primary();
  std::vector<pid_t> backups;
  for (int node = 1; node <= 3; ++node) {
    const std::string pidfile = cluster.dir() + "/node" + std::to_string(node) + ".pid";
    if (node != primary) backups.push_back(number_in(pidfile));
  }
  for (const pid_t pid : backups) stop(pid);
  const int got = set_lock(mine, F_OFD_SETLK, F_WRLCK, 100, 10);
  for (const pid_t pid : backups) kill(pid, SIGCONT);
  CHECK(got == ETIMEDOUT);
  CHECK(eventually([&] { return set_lock(other, F_OFD_SETLK, F_WRLCK, 100, 10) == 0; }, 20s));
  // What it held before it still has.
  CHECK(set_lock(other, F_OFD_SETLK, F_WRLCK, 0, 1) == (first ? 0 : EAGAIN));
}

TEST_CASE("locks: disjoint ranges divide a file among programs of one mount, not among mounts",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  const auto write_halves = [&](const std::string& first_mount, const std::string& second_mount) {
    write_file(a + "/f", "........");
    Fd first(first_mount + "/f", O_RDWR);
    Fd second(second_mount + "/f", O_RDWR);
    REQUIRE(set_lock(first, F_OFD_SETLK, F_WRLCK, 0, 4) == 0);
    REQUIRE(set_lock(second, F_OFD_SETLK, F_WRLCK, 4, 4) == 0);
    first.pwrite("1111", 0);
    second.pwrite("2222", 4);
    CHECK(set_lock(first, F_OFD_SETLK, F_UNLCK, 0, 4) == 0);
    CHECK(set_lock(second, F_OFD_SETLK, F_UNLCK, 4, 4) == 0);
    return read_file(b + "/f");
  };
  CHECK(write_halves(a, a) == "11112222");
  CHECK(write_halves(a, b) == "....2222");  // as docs/PROTOCOL.md says: whole, never a mix
}

TEST_CASE("locks: what several programs of a mount write is not kept from the others' versions",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "0");
  for (int round = 0; round < 10; ++round) {
    CAPTURE(round);
    std::atomic<int> running{2};
    std::vector<std::thread> threads;
    for (int who = 0; who < 2; ++who) {
      threads.emplace_back([&] {
        const int fd = open((a + "/f").c_str(), O_RDWR);
        for (int i = 0; i < 60; ++i) {
          struct flock wanted = range(F_WRLCK);
          fcntl(fd, F_OFD_SETLKW, &wanted);
          (void)pwrite(fd, &i, sizeof i, 0);
          wanted = range(F_UNLCK);
          fcntl(fd, F_OFD_SETLK, &wanted);
        }
        close(fd);
        --running;
      });
    }
    for (int who = 0; who < 2; ++who) {
      threads.emplace_back([&] {
        while (running != 0) {
          struct stat st {};
          (void)stat((a + "/f").c_str(), &st);
          close(open((a + "/f").c_str(), O_RDONLY));
        }
      });
    }
    for (auto& thread : threads) thread.join();
    const std::string now = "round " + std::to_string(round);
    write_file(b + "/f", now);
    CHECK(read_file(a + "/f") == now);
  }
}

TEST_CASE("locks: a request that is killed while another lock is in its way waits for nothing",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  write_file(a + "/f", "x");
  Fd holder(a + "/f", O_RDWR);
  REQUIRE(flock(holder.get(), LOCK_EX) == 0);
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    // Several, which could wait for each other; their answers come when they are gone.
    const auto nodes = [&](const char* signal) {
      REQUIRE(run("for n in 1 2 3; do kill -" + std::string(signal) + " $(cat " + cluster.dir() +
                  "/node$n.pid); done")
                  .exit_code == 0);
    };
    nodes("STOP");
    const RunResult killed =
        run("for i in 1 2 3; do timeout -s KILL 1 flock -n " + a + "/f true & done; wait");
    nodes("CONT");
    REQUIRE(
        eventually([&] { return cluster.fermata("status " + cluster.servers()).exit_code == 0; }));
    const RunResult next = run("timeout 20 flock -n " + a + "/f true");
    CAPTURE(killed.out, next.out);
    REQUIRE(next.exit_code == 1);  // EWOULDBLOCK, and an answer
    const RunResult query = run("timeout 20 flock -n " + a + "/f true");
    REQUIRE(query.exit_code == 1);
  }
  REQUIRE(flock(holder.get(), LOCK_UN) == 0);
  Fd next(a + "/f", O_RDWR);
  CHECK(flock(next.get(), LOCK_EX | LOCK_NB) == 0);
}

TEST_CASE("locks: of a process that ended while a soft mount's servers were away go in the end",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "soft,soft_timeout=1"});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  {
    Fd holder(a + "/f", O_RDWR);
    Fd process(a + "/f", O_RDWR);
    REQUIRE(flock(holder.get(), LOCK_EX) == 0);
    for (const int node : {1, 2}) cluster.kill_node(node);
  }
  // Longer than the mount is patient, and shorter than the session lives.
  std::this_thread::sleep_for(3s);
  for (const int node : {1, 2}) cluster.restart_node(node);
  Fd other(b + "/f", O_RDWR);
  CHECK(eventually([&] { return flock(other.get(), LOCK_EX | LOCK_NB) == 0; }, 8s));
}

}  // namespace
}  // namespace fermata::test
