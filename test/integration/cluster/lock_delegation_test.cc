// Locks of a file that one mount uses alone: decided there, until another one asks.
#include <sys/file.h>

#include <atomic>
#include <barrier>
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

pid_t daemon_of(const std::string& pid_file) {
  std::ifstream in(pid_file);
  pid_t pid = 0;
  REQUIRE(in >> pid);
  return pid;
}

int flock_and_unlock(const Fd& fd) {
  if (const int error = errno_of(flock(fd.get(), LOCK_EX))) return error;
  return errno_of(flock(fd.get(), LOCK_UN));
}
int fcntl_and_unlock(const Fd& fd) {
  for (const int command : {F_SETLKW, F_OFD_SETLK}) {
    for (const short type : std::initializer_list<short>{F_RDLCK, F_WRLCK, F_UNLCK}) {
      if (const int error = set_lock(fd, command, type, 5, 10)) return error;
    }
  }
  return 0;
}
/// One of each kind, taken and released.
int lock_and_unlock(const Fd& fd) {
  const int error = fcntl_and_unlock(fd);
  return error != 0 ? error : flock_and_unlock(fd);
}

/// Waits until the mount decides on the file's locks, as far as `lock` takes and releases some.
/// Others have asked for them a while ago.
bool becomes_delegated(MiniCluster& cluster, const std::string& mnt, const Fd& fd,
                       int (*lock)(const Fd&) = lock_and_unlock) {
  return eventually([&] {
    const long before = cluster.rpc_count(mnt);
    REQUIRE(lock(fd) == 0);
    return cluster.rpc_count(mnt) == before;
  });
}

TEST_CASE("locks: of a file that one mount uses they cost no round trip", "[locks]") {
  FM_NEEDS_MOUNTS();
  const bool delegating = GENERATE(true, false);
  CAPTURE(delegating);
  MiniCluster cluster({3, true, delegating ? "" : "nolockdelegation"});
  const std::string a = cluster.mnt();
  write_file(a + "/f", "x");
  Fd fd(a + "/f", O_RDWR);
  if (delegating) REQUIRE(becomes_delegated(cluster, a, fd));  // all nodes have to be heard of
  const long before = cluster.rpc_count(a);
  constexpr int kPairs = 1000;
  for (int i = 0; i < kPairs; ++i) {
    REQUIRE(set_lock(fd, i % 2 == 0 ? F_SETLKW : F_SETLK, i % 3 == 0 ? F_RDLCK : F_WRLCK) == 0);
    REQUIRE(set_lock(fd, F_SETLK, F_UNLCK) == 0);
  }
  const long asked = cluster.rpc_count(a) - before;
  if (delegating) {
    CHECK(asked <= 3);
  } else {
    CHECK(asked >= 2 * kPairs);
  }
  REQUIRE(errno_of(flock(fd.get(), LOCK_EX)) == 0);
  const long flocked = cluster.rpc_count(a);
  for (int i = 0; i < 100; ++i) {
    REQUIRE(errno_of(flock(fd.get(), LOCK_SH)) == 0);
    REQUIRE(errno_of(flock(fd.get(), LOCK_EX)) == 0);
    REQUIRE(get_lock(fd, F_WRLCK).l_type == F_UNLCK);
  }
  if (delegating) CHECK(cluster.rpc_count(a) == flocked);
}

TEST_CASE("locks: programs of the mount that answers for a file exclude each other", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string path = cluster.mnt() + "/f";
  write_file(path, "x");
  Fd mine(path, O_RDWR), other(path, O_RDWR);
  REQUIRE(becomes_delegated(cluster, cluster.mnt(), mine));
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_WRLCK, 10, 10) == 0);
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_RDLCK, 15, 5) == 0);
  CHECK(set_lock(other, F_OFD_SETLK, F_RDLCK, 14, 1) == EAGAIN);
  CHECK(set_lock(other, F_OFD_SETLK, F_RDLCK, 15, 5) == 0);
  CHECK(set_lock(other, F_SETLK, F_WRLCK, 19, 1) == EAGAIN);
  CHECK(set_lock(other, F_OFD_SETLK, F_WRLCK, 20, 0) == 0);
  const struct flock found = get_lock(other, F_WRLCK, 0, 12);
  CHECK(found.l_type == F_WRLCK);
  CHECK(found.l_start == 10);
  CHECK(found.l_len == 5);
  CHECK(errno_of(flock(mine.get(), LOCK_SH | LOCK_NB)) == 0);
  CHECK(errno_of(flock(other.get(), LOCK_EX | LOCK_NB)) == EWOULDBLOCK);
  CHECK(errno_of(flock(other.get(), LOCK_SH | LOCK_NB)) == 0);

  std::atomic<int> got{-1};
  std::thread waits([&] { got = set_lock(other, F_OFD_SETLKW, F_WRLCK, 10, 1); });
  CHECK_FALSE(eventually([&] { return got >= 0; }, 300ms));
  mine.close();
  waits.join();
  CHECK(got == 0);
}

TEST_CASE("locks: a file that another mount answers for and nobody has locked is free", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR), other(b + "/f", O_RDWR);
  for (int i = 0; i < 3; ++i) {
    CAPTURE(i);
    REQUIRE(becomes_delegated(cluster, a, mine));
    CHECK(get_lock(other, F_WRLCK).l_type == F_UNLCK);
    REQUIRE(becomes_delegated(cluster, a, mine));
    CHECK(set_lock(other, F_SETLK, F_WRLCK) == 0);
    CHECK(errno_of(flock(other.get(), LOCK_EX | LOCK_NB)) == 0);
    CHECK(set_lock(mine, F_SETLK, F_RDLCK) == EAGAIN);
    CHECK(errno_of(flock(mine.get(), LOCK_SH | LOCK_NB)) == EWOULDBLOCK);
    CHECK(set_lock(other, F_SETLK, F_UNLCK) == 0);
    CHECK(errno_of(flock(other.get(), LOCK_UN)) == 0);
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE("locks: what is held where a file is delegated holds for everybody", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "old");
  Fd mine(a + "/f", O_RDWR), other(b + "/f", O_RDWR);
  REQUIRE(becomes_delegated(cluster, a, mine));
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_WRLCK, 5, 10) == 0);
  const struct flock found = get_lock(other, F_RDLCK);
  CHECK(found.l_type == F_WRLCK);
  CHECK(found.l_start == 5);
  CHECK(found.l_len == 10);
  CHECK(set_lock(other, F_SETLK, F_WRLCK, 0, 6) == EAGAIN);
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_UNLCK) == 0);

  REQUIRE(becomes_delegated(cluster, a, mine));
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_WRLCK) == 0);
  std::atomic<int> got{-1};
  std::string seen;
  std::thread waits([&] {
    got = set_lock(other, F_OFD_SETLKW, F_RDLCK);
    seen = other.pread(10, 0);
  });
  CHECK_FALSE(eventually([&] { return got >= 0; }, 300ms));
  mine.pwrite("new", 0);
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_UNLCK) == 0);
  waits.join();
  CHECK(got == 0);
  CHECK(seen == "new");
}

TEST_CASE("locks: what was written under a lock that a mount gave itself is seen by the next",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  write_file(a + "/f", "0000");
  Fd fds[] = {Fd(a + "/f", O_RDWR), Fd(b + "/f", O_RDWR)};
  const std::string mounts[] = {a, b};
  for (int turn = 0; turn < 6; ++turn) {
    CAPTURE(turn);
    const std::size_t who = static_cast<std::size_t>(turn % 2);
    REQUIRE(becomes_delegated(cluster, mounts[who], fds[who]));
    for (int i = 0; i < 5; ++i) {
      REQUIRE(set_lock(fds[who], F_OFD_SETLKW, F_WRLCK) == 0);
      const std::string now = std::to_string(std::stoi("1" + fds[who].pread(4, 0)) + 1).substr(1);
      fds[who].pwrite(now, 0);
      REQUIRE(set_lock(fds[who], F_OFD_SETLK, F_UNLCK) == 0);
    }
  }
  CHECK(read_file(a + "/f") == "0030");
  CHECK(read_file(b + "/f") == "0030");
}

TEST_CASE("locks: two mounts that want a file all the time lose no update", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mounts[2] = {cluster.mnt(), cluster.mount_another()};
  write_file(mounts[0] + "/counter", "10000");
  constexpr int kRounds = 500;
  std::atomic<int> errors{0};
  std::vector<std::thread> threads;
  for (const std::string& mnt : mounts) {
    threads.emplace_back([&, mnt] {
      try {
        Fd fd(mnt + "/counter", O_RDWR);
        for (int i = 0; i < kRounds; ++i) {
          int got = EAGAIN;
          // Now by asking again and again, now by waiting.
          while (got == EAGAIN) got = set_lock(fd, i % 4 < 2 ? F_OFD_SETLK : F_OFD_SETLKW, F_WRLCK);
          if (got != 0) throw std::runtime_error("lock");
          fd.pwrite(std::to_string(std::stoi(fd.pread(5, 0)) + 1), 0);
          if (set_lock(fd, F_OFD_SETLK, F_UNLCK) != 0) throw std::runtime_error("unlock");
        }
      } catch (const std::exception& e) {
        std::fprintf(stderr, "%s: %s\n", mnt.c_str(), e.what());
        ++errors;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(errors == 0);
  for (const auto& mnt : mounts)
    CHECK(read_file(mnt + "/counter") == std::to_string(10000 + 2 * kRounds));
  CHECK(cluster.digests_equal());
}

TEST_CASE("locks: two mounts that each want what the other answers for do not wait for each other",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR), other(b + "/f", O_RDWR);
  const auto sessions = [&] {
    return std::pair(cluster.rpc_counts(a)["open_session"], cluster.rpc_counts(b)["open_session"]);
  };
  const auto before = sessions();
  for (int i = 0; i < 3; ++i) {
    CAPTURE(i);
    REQUIRE(becomes_delegated(cluster, a, mine, flock_and_unlock));
    REQUIRE(becomes_delegated(cluster, b, other, fcntl_and_unlock));
    std::barrier both(2);
    const auto begin = std::chrono::steady_clock::now();
    int first = -1;
    std::thread asks([&] {
      both.arrive_and_wait();
      first = fcntl_and_unlock(mine);
    });
    both.arrive_and_wait();
    const int second = flock_and_unlock(other);
    asks.join();
    CHECK(first == 0);
    CHECK(second == 0);
    CHECK(std::chrono::steady_clock::now() - begin < 5s);  // a session's lease is 10 s
  }
  CHECK(sessions() == before);
}

TEST_CASE("locks: fcntl finds a deadlock over files that two mounts answer for", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/one", "1");
  write_file(a + "/two", "2");
  Fd a1(a + "/one", O_RDWR), a2(a + "/two", O_RDWR), b1(b + "/one", O_RDWR), b2(b + "/two", O_RDWR);
  REQUIRE(becomes_delegated(cluster, a, a1));
  REQUIRE(becomes_delegated(cluster, b, b2));
  check_deadlock_found(a1, a2, b2, b1);
}

TEST_CASE("locks: a signal ends the wait for a lock of another mount's delegation", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR);
  REQUIRE(becomes_delegated(cluster, a, mine));
  const Fd known(b + "/f", O_RDWR);  // a mount that has the directory alone would be asked first
  const pid_t daemon = cluster.daemon_of(a);
  stop(daemon);  // it cannot hand it back
  const std::string mark = cluster.dir() + "/interrupted";
  Child child([&] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    sigaction(SIGALRM, &action, nullptr);
    const int fd = open((b + "/f").c_str(), O_RDWR);
    struct flock wanted = range(F_WRLCK);
    if (fcntl(fd, F_SETLKW, &wanted) == 0 || errno != EINTR) return 1;
    write_file(mark, "");
    return 0;  // closes `mine`, too, for which the daemon has to go on
  });
  CHECK(eventually([&] { return sleeps_in(child.pid(), 72 /* fcntl */); }, 10s));
  kill(child.pid(), SIGALRM);
  const bool ended = eventually([&] { return exists(mark); }, 5s);
  REQUIRE(kill(daemon, SIGCONT) == 0);
  CHECK(ended);
  CHECK(child.wait() == 0);
  CHECK(eventually([&] { return set_lock(mine, F_OFD_SETLK, F_WRLCK) == 0; }));
}

TEST_CASE("locks: a program or a mount that is killed lets go of what it had not asked for",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR);
  {
    Fd keeps(b + "/f", O_RDWR);
    REQUIRE(becomes_delegated(cluster, b, keeps));
    const std::string mark = cluster.dir() + "/locked";
    Child child([&] {
      const int fd = open((b + "/f").c_str(), O_RDWR);
      struct flock wanted = range(F_WRLCK);
      if (fcntl(fd, F_SETLKW, &wanted) != 0) return 1;
      write_file(mark, "");
      pause();
      return 0;
    });
    REQUIRE(eventually([&] { return exists(mark); }));
    CHECK(set_lock(mine, F_OFD_SETLK, F_RDLCK) == EAGAIN);
    kill(child.pid(), SIGKILL);
    (void)child.wait();
    CHECK(eventually([&] { return set_lock(mine, F_OFD_SETLK, F_RDLCK) == 0; }, 5s));
    REQUIRE(set_lock(mine, F_OFD_SETLK, F_UNLCK) == 0);

    REQUIRE(becomes_delegated(cluster, b, keeps));
    REQUIRE(errno_of(flock(keeps.get(), LOCK_EX)) == 0);
    cluster.kill_mount(b);
  }
  CHECK(errno_of(flock(mine.get(), LOCK_EX)) == 0);  // when its session is over
}

TEST_CASE("locks: a delegation and what is held under it outlive the primary", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  write_file(a + "/idle", "x");
  Fd mine(a + "/f", O_RDWR), idle(a + "/idle", O_RDWR);
  Fd other(b + "/f", O_RDWR), wants_idle(b + "/idle", O_RDWR);
  REQUIRE(becomes_delegated(cluster, a, mine));
  REQUIRE(becomes_delegated(cluster, a, idle));
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_WRLCK, 0, 10) == 0);
  cluster.restart_node(cluster.kill_primary());
  CHECK(set_lock(wants_idle, F_SETLK, F_WRLCK) == 0);
  CHECK(set_lock(other, F_SETLK, F_RDLCK, 0, 1) == EAGAIN);
  CHECK(set_lock(other, F_SETLK, F_RDLCK, 10, 1) == 0);
  std::atomic<int> got{-1};
  std::thread waits([&] { got = set_lock(other, F_OFD_SETLKW, F_WRLCK, 5, 1); });
  CHECK_FALSE(eventually([&] { return got >= 0; }, 300ms));
  mine.pwrite("y", 0);
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_UNLCK) == 0);
  waits.join();
  CHECK(got == 0);
  CHECK(other.pread(1, 0) == "y");
  CHECK(cluster.digests_equal());
}

TEST_CASE("locks: a mount gives itself none after its session's lease", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR), other(b + "/f", O_RDWR);
  REQUIRE(becomes_delegated(cluster, a, mine));
  const pid_t daemon = cluster.daemon_of(a);
  stop(daemon);
  std::atomic<int> late{-1};
  std::thread asks([&] { late = set_lock(mine, F_SETLK, F_WRLCK); });  // read when it goes on
  const int got = set_lock(other, F_OFD_SETLKW, F_WRLCK);              // when the session is over
  REQUIRE(kill(daemon, SIGCONT) == 0);
  asks.join();
  CHECK(got == 0);
  CHECK(late == EAGAIN);
  REQUIRE(set_lock(other, F_OFD_SETLK, F_UNLCK) == 0);
  CHECK(set_lock(mine, F_SETLK, F_WRLCK) == 0);
}

TEST_CASE("locks: a delegation goes back after the last close", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd other(b + "/f", O_RDWR);
  long mutations = 0;
  {
    Fd mine(a + "/f", O_RDWR);
    REQUIRE(becomes_delegated(cluster, a, mine, fcntl_and_unlock));
    REQUIRE(set_lock(mine, F_OFD_SETLK, F_WRLCK) == 0);
    mutations = cluster.rpc_counts(a)["mutate"];
  }
  REQUIRE(eventually([&] { return cluster.rpc_counts(a)["mutate"] > mutations; }));
  const pid_t daemon = cluster.daemon_of(a);
  stop(daemon);
  const auto begin = std::chrono::steady_clock::now();
  const int got = set_lock(other, F_OFD_SETLK, F_WRLCK);
  const auto took = std::chrono::steady_clock::now() - begin;
  REQUIRE(kill(daemon, SIGCONT) == 0);
  CHECK(got == 0);
  CHECK(took < 2s);  // a session's lease is 10 s
}

TEST_CASE("locks: a delegation that is granted after the last close goes back, too", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  write_file(a + "/f", "x");
  write_file(a + "/g", "x");
  Fd fd(a + "/g", O_RDWR);
  REQUIRE(becomes_delegated(cluster, a, fd));  // the primary has heard of all nodes
  const long mutations = cluster.rpc_counts(a)["mutate"];
  const std::string node = cluster.dir() + "/node" + std::to_string(cluster.primary()) + ".pid";
  const pid_t primary = daemon_of(node);
  Child child([&] {
    const int locks = open((a + "/f").c_str(), O_RDWR);
    kill(primary, SIGSTOP);  // for less than it takes the others to miss it, as a rule
    return flock(locks, LOCK_EX);
  });
  const bool asked = eventually([&] { return sleeps_in(child.pid(), 73 /* flock */); });
  kill(child.pid(), SIGKILL);
  (void)child.wait();
  kill(primary, SIGCONT);
  REQUIRE(asked);
  // The lock, and what gives it back.
  CHECK(eventually([&] { return cluster.rpc_counts(a)["mutate"] >= mutations + 2; }, 10s));
}

TEST_CASE("locks: many delegations go back, each once", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  constexpr int kFiles = 300;
  const auto path = [&](int i) { return a + "/f" + std::to_string(i); };
  for (int i = 0; i < kFiles; ++i) write_file(path(i), "x");
  Fd fd(path(0), O_RDWR);
  REQUIRE(becomes_delegated(cluster, a, fd));
  const auto mutations = [&] { return cluster.rpc_counts(a)["mutate"]; };
  const long before = mutations();
  for (int i = 1; i < kFiles; ++i) {
    Fd lock(path(i), O_RDWR);
    REQUIRE(errno_of(flock(lock.get(), LOCK_EX)) == 0);
  }
  const long both = before + 2L * (kFiles - 1);
  CHECK(eventually([&] { return mutations() >= both; }));
  CHECK_FALSE(eventually([&] { return mutations() > both; }, 1500ms));
  CHECK(cluster.digests_equal());
}

}  // namespace
}  // namespace fermata::test
