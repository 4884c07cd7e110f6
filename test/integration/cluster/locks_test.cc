// Locks across machines: two mounts, each a machine of its own for the cluster.
#include <sys/file.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>
#include <fstream>
#include <map>
#include <system_error>
#include <thread>

#include "test/integration/cluster/files.h"
#include "test/integration/cluster/lock_calls.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

using namespace std::chrono_literals;

std::string eight_digits(int number) {
  const std::string text = std::to_string(number);
  return std::string(8 - text.size(), '0') + text;
}

TEST_CASE("locks: flock excludes across mounts, close releases", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR);
  Fd other(b + "/f", O_RDWR);
  REQUIRE(flock(mine.get(), LOCK_EX) == 0);
  CHECK(errno_of(flock(other.get(), LOCK_SH | LOCK_NB)) == EWOULDBLOCK);
  REQUIRE(flock(mine.get(), LOCK_SH) == 0);
  CHECK(errno_of(flock(other.get(), LOCK_SH | LOCK_NB)) == 0);
  CHECK(errno_of(flock(mine.get(), LOCK_EX | LOCK_NB)) == EWOULDBLOCK);
  REQUIRE(flock(other.get(), LOCK_UN) == 0);
  REQUIRE(flock(mine.get(), LOCK_EX) == 0);

  std::atomic<int> got{-1};
  std::thread waits([&] { got = errno_of(flock(other.get(), LOCK_EX)); });
  CHECK_FALSE(eventually([&] { return got >= 0; }, 300ms));
  mine.close();
  CHECK(eventually([&] { return got >= 0; }, 20s));
  waits.join();
  CHECK(got == 0);
}

TEST_CASE("locks: fcntl ranges split, merge and are seen by F_GETLK on another mount", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", std::string(1000, 'x'));
  Fd mine(a + "/f", O_RDWR);
  Fd other(b + "/f", O_RDWR);
  REQUIRE(set_lock(mine, F_SETLK, F_WRLCK, 100, 200) == 0);
  REQUIRE(set_lock(mine, F_SETLK, F_UNLCK, 150, 50) == 0);
  CHECK(set_lock(other, F_SETLK, F_WRLCK, 150, 50) == 0);
  CHECK(set_lock(other, F_SETLK, F_RDLCK, 140, 20) == EAGAIN);
  CHECK(set_lock(other, F_SETLK, F_RDLCK, 0, 100) == 0);
  CHECK(set_lock(other, F_SETLK, F_RDLCK, 0, 101) == EAGAIN);
  const struct flock found = get_lock(other, F_RDLCK, 200, 0);
  CHECK(found.l_type == F_WRLCK);
  CHECK(found.l_start == 200);
  CHECK(found.l_len == 100);
  CHECK(get_lock(other, F_WRLCK, 300, 0).l_type == F_UNLCK);
  REQUIRE(set_lock(mine, F_SETLK, F_RDLCK, 200, 100) == 0);
  CHECK(set_lock(other, F_SETLK, F_RDLCK, 250, 10) == 0);
  CHECK(get_lock(other, F_WRLCK, 250, 10).l_type == F_RDLCK);
  // Any close of the file by the process releases all its locks on it (fcntl(2)).
  { Fd again(a + "/f", O_RDONLY); }
  CHECK(set_lock(other, F_SETLK, F_WRLCK, 0, 0) == 0);
}

TEST_CASE("locks: closing a newer version of the file releases them, too", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "old");
  Fd mine(a + "/f", O_RDONLY);
  REQUIRE(set_lock(mine, F_SETLK, F_RDLCK) == 0);
  write_file(b + "/f", "newer");  // without asking for the lock
  Fd other(b + "/f", O_RDWR);
  CHECK(set_lock(other, F_SETLK, F_WRLCK) == EAGAIN);
  {
    const Fd again(a + "/f", O_RDONLY);
    REQUIRE(again.pread(10, 0) == "newer");
    REQUIRE(mine.pread(10, 0) == "old");
  }
  CHECK(set_lock(other, F_SETLK, F_WRLCK) == 0);
}

TEST_CASE("locks: who locks sees the newest bytes of an open file, and loses no update",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  const std::size_t tail = GENERATE(0U, 3U << 20);  // inline content, chunks
  CAPTURE(options, tail);
  MiniCluster cluster({3, true, options});
  const std::string mounts[2] = {cluster.mnt(), cluster.mount_another(options)};
  const std::string rest = random_bytes(tail, 5);
  write_file(mounts[0] + "/counter", "00000000" + rest);
  constexpr int kEach = 25;
  std::atomic<int> errors{0};
  std::vector<std::thread> threads;
  for (int who = 0; who < 4; ++who) {
    threads.emplace_back([&, who] {
      try {
        Fd fd(mounts[who % 2] + "/counter", O_RDWR);
        for (int i = 0; i < kEach; ++i) {
          if (set_lock(fd, F_OFD_SETLKW, F_WRLCK) != 0) throw std::runtime_error("lock");
          fd.pwrite(eight_digits(std::stoi(fd.pread(8, 0)) + 1), 0);
          if (set_lock(fd, F_OFD_SETLKW, F_UNLCK) != 0) throw std::runtime_error("unlock");
        }
        fd.close();
      } catch (const std::exception& e) {
        std::fprintf(stderr, "thread %d: %s\n", who, e.what());
        ++errors;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(errors == 0);
  for (const auto& mnt : mounts)
    CHECK(read_file(mnt + "/counter") == eight_digits(4 * kEach) + rest);
  CHECK(cluster.digests_equal());
}

TEST_CASE("locks: a file that grows and shrinks under locks", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "");
  Fd fds[2] = {Fd(a + "/f", O_RDWR), Fd(b + "/f", O_RDWR)};
  std::string now;
  const std::size_t sizes[] = {10, 70'000, 2'500'000, 2'400'001, 65'536, 5, 0, 1'048'577, 3};
  int turn = 0;
  for (const std::size_t size : sizes) {
    CAPTURE(size);
    const Fd& fd = fds[turn++ % 2];
    REQUIRE(set_lock(fd, F_OFD_SETLKW, F_WRLCK) == 0);
    struct stat st {};
    REQUIRE(fstat(fd.get(), &st) == 0);
    CHECK(static_cast<std::size_t>(st.st_size) == now.size());
    CHECK(fd.pread(now.size() + 10, 0) == now);
    now = random_bytes(size, size);
    REQUIRE(ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
    if (size != 0) fd.pwrite(now, 0);
    REQUIRE(set_lock(fd, F_OFD_SETLKW, F_UNLCK) == 0);
  }
}

TEST_CASE("locks: fcntl finds deadlocks between machines", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/one", "1");
  write_file(a + "/two", "2");
  Fd a1(a + "/one", O_RDWR), a2(a + "/two", O_RDWR), b1(b + "/one", O_RDWR), b2(b + "/two", O_RDWR);
  check_deadlock_found(a1, a2, b2, b1);
}

TEST_CASE("locks: OFD locks have no deadlock error", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/one", "1");
  write_file(a + "/two", "2");
  Fd a1(a + "/one", O_RDWR), b2(b + "/two", O_RDWR);
  Fd a2(a + "/two", O_RDWR), b1(b + "/one", O_RDWR);
  REQUIRE(set_lock(a1, F_OFD_SETLK, F_WRLCK) == 0);
  REQUIRE(set_lock(b2, F_OFD_SETLK, F_WRLCK) == 0);
  std::atomic<int> first{-1}, second{-1};
  std::thread one([&] { first = set_lock(a2, F_OFD_SETLKW, F_WRLCK); });
  std::thread two([&] { second = set_lock(b1, F_OFD_SETLKW, F_WRLCK); });
  CHECK_FALSE(eventually([&] { return first >= 0 || second >= 0; }, 1s));
  CHECK(set_lock(a1, F_OFD_SETLK, F_UNLCK) == 0);
  CHECK(set_lock(b2, F_OFD_SETLK, F_UNLCK) == 0);
  one.join();
  two.join();
  CHECK(first == 0);
  CHECK(second == 0);
}

TEST_CASE("locks: a signal ends the wait, and the lock is not taken afterwards", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR);
  REQUIRE(set_lock(mine, F_SETLK, F_WRLCK) == 0);
  const int signal_number = GENERATE(SIGALRM, SIGKILL);
  Child child([&] {
    struct sigaction action {};
    action.sa_handler = [](int) {};
    sigaction(SIGALRM, &action, nullptr);
    const int fd = open((b + "/f").c_str(), O_RDWR);
    struct flock wanted = range(F_WRLCK);
    const bool failed = fcntl(fd, F_SETLKW, &wanted) != 0;
    return failed && errno == EINTR ? 7 : 1;
  });
  REQUIRE(eventually([&] { return sleeps_in(child.pid(), 72 /* fcntl */); }, 10s));
  std::this_thread::sleep_for(100ms);  // it may wait for the first answer only: both are right
  kill(child.pid(), signal_number);
  CHECK(child.wait() == (signal_number == SIGKILL ? 128 + SIGKILL : 7));
  REQUIRE(set_lock(mine, F_SETLK, F_UNLCK) == 0);
  Fd third(b + "/f", O_RDWR);
  CHECK(eventually([&] { return set_lock(third, F_OFD_SETLK, F_WRLCK) == 0; }, 5s));
}

TEST_CASE("locks: what a close has released is free for the mount's next request", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string path = cluster.mnt() + "/f";
  write_file(path, "x");
  for (int i = 0; i < 200; ++i) {
    CAPTURE(i);
    {
      Fd mine(path, O_RDWR);
      REQUIRE(errno_of(flock(mine.get(), LOCK_EX | LOCK_NB)) == 0);
      REQUIRE(set_lock(mine, F_OFD_SETLK, F_WRLCK) == 0);
    }
    Fd next(path, O_RDWR);
    if (i % 2 == 0) REQUIRE(get_lock(next, F_WRLCK).l_type == F_UNLCK);
    REQUIRE(errno_of(flock(next.get(), LOCK_EX | LOCK_NB)) == 0);
    REQUIRE(set_lock(next, F_OFD_SETLK, F_WRLCK) == 0);
  }
}

TEST_CASE("locks: a process' lock through one descriptor outlives the late end of another",
          "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  for (int i = 0; i < 100; ++i) {
    CAPTURE(i);
    Fd kept(a + "/f", O_RDWR);
    {
      Fd closed(a + "/f", O_RDWR);
      REQUIRE(set_lock(closed, F_SETLK, F_WRLCK) == 0);
    }
    REQUIRE(set_lock(kept, F_SETLK, F_WRLCK) == 0);
    Fd other(b + "/f", O_RDWR);
    REQUIRE(set_lock(other, F_SETLK, F_WRLCK) == EAGAIN);
  }
}

TEST_CASE("locks: a killed process and a killed client let go", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR);
  {
    Child child([&] {
      const int fd = open((b + "/f").c_str(), O_RDWR);
      struct flock wanted = range(F_WRLCK);
      if (fcntl(fd, F_SETLKW, &wanted) != 0) return 1;
      pause();
      return 0;
    });
    REQUIRE(eventually(
        [&] {
          return set_lock(mine, F_OFD_SETLK, F_RDLCK) == EAGAIN ||
                 (set_lock(mine, F_OFD_SETLK, F_UNLCK), false);
        },
        10s));
    kill(child.pid(), SIGKILL);
    (void)child.wait();
    CHECK(eventually([&] { return set_lock(mine, F_OFD_SETLK, F_RDLCK) == 0; }, 5s));
  }
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_UNLCK) == 0);
  {
    Fd other(b + "/f", O_RDWR);
    REQUIRE(flock(other.get(), LOCK_EX) == 0);
    cluster.kill_mount(b);
  }
  int got = -1;
  std::thread waits([&] { got = errno_of(flock(mine.get(), LOCK_EX)); });
  waits.join();  // granted when the dead client's session is over
  CHECK(got == 0);
}

TEST_CASE("locks: held locks outlive the primary", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "x");
  Fd mine(a + "/f", O_RDWR);
  Fd other(b + "/f", O_RDWR);
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_WRLCK, 0, 10) == 0);
  std::atomic<int> got{-1};
  std::thread waits([&] { got = set_lock(other, F_OFD_SETLKW, F_WRLCK, 5, 1); });
  cluster.restart_node(cluster.kill_primary());
  CHECK(set_lock(other, F_SETLK, F_RDLCK, 0, 1) == EAGAIN);
  CHECK(set_lock(other, F_SETLK, F_RDLCK, 10, 1) == 0);
  CHECK(got == -1);
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_UNLCK) == 0);
  waits.join();
  CHECK(got == 0);
  CHECK(cluster.digests_equal());
}

TEST_CASE("locks: a holder whose session is over is fenced", "[locks]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  write_file(a + "/f", "old");
  Fd mine(a + "/f", O_RDWR);
  REQUIRE(set_lock(mine, F_OFD_SETLK, F_WRLCK) == 0);
  mine.pwrite("bad", 0);
  write_file(a + "/read", "x");
  Fd reader(a + "/read", O_RDWR);
  REQUIRE(set_lock(reader, F_OFD_SETLK, F_RDLCK) == 0);
  const pid_t daemon = cluster.daemon_of(a);
  stop(daemon);
  {
    Fd other(b + "/f", O_RDWR);
    const int got = set_lock(other, F_OFD_SETLKW, F_WRLCK);  // when the session's lease is over
    CHECK(got == 0);
    CHECK(other.pread(10, 0) == "old");
  }
  REQUIRE(kill(daemon, SIGCONT) == 0);
  CHECK(errno_of(fsync(mine.get())) == ESTALE);
  // What was read under a lock that is gone is nothing to build on.
  CHECK(set_lock(reader, F_OFD_SETLK, F_WRLCK) == EIO);
  CHECK(set_lock(reader, F_OFD_SETLK, F_UNLCK) == 0);
  CHECK(set_lock(reader, F_OFD_SETLK, F_WRLCK) == 0);
  mine.pwrite("worse", 0);
  CHECK(errno_of(fsync(mine.get())) == ESTALE);  // once refused, refused for good
  CHECK(read_file(b + "/f") == "old");
  const RunResult kept = cluster.fermata("cache ls --json " + a);
  CHECK(kept.out.find("\"conflict\":true") != std::string::npos);
  CHECK(set_lock(mine, F_OFD_SETLK, F_UNLCK) == ESTALE);  // released, and its work was refused
  // Beside that descriptor and after it the file is again what it is on other mounts.
  for (const char* content : {"beside", "again"}) {
    CAPTURE(content);
    CHECK(read_file(a + "/f") == read_file(b + "/f"));
    CHECK(write_error(a + "/f", content) == 0);
    CHECK(read_file(b + "/f") == content);
  }
  CHECK_THROWS_AS(mine.close(), std::system_error);
  CHECK(write_error(a + "/f", "after") == 0);
  CHECK(read_file(b + "/f") == "after");
  // Who had let go of a lost lock before writing on loses nothing.
  reader.pwrite("y", 0);
  CHECK(errno_of(fsync(reader.get())) == 0);
}

// Each commit of another mount makes the node old that a name was looked up for, and each lock
// taken here makes it the newest again: open(2) tries twice and must not find both times that the
// other one is.
TEST_CASE("locks: others that lock and commit without a pause make no open fail", "[locks]") {
  FM_NEEDS_MOUNTS();
  constexpr auto kFor = 8s;
  MiniCluster cluster;
  const std::string a = cluster.mnt() + "/log";
  const std::string b = cluster.mount_another() + "/log";
  write_file(a, "x");
  std::atomic<bool> over{false};
  std::thread commits([&] {
    while (!over) {
      Fd log(a, O_WRONLY | O_APPEND);
      flock(log.get(), LOCK_EX);
      log.pwrite("y", 0);
      flock(log.get(), LOCK_UN);
    }
  });
  std::thread locks([&] {
    Fd log(b, O_WRONLY);
    while (!over) {
      flock(log.get(), LOCK_EX);
      flock(log.get(), LOCK_UN);
      std::this_thread::sleep_for(1ms);
    }
  });
  std::map<int, int> opens_by_error;
  const auto end = std::chrono::steady_clock::now() + kFor;
  for (int i = 0; std::chrono::steady_clock::now() < end; ++i) {
    const int fd = open(b.c_str(), i % 2 == 0 ? O_RDONLY : O_WRONLY);
    ++opens_by_error[fd < 0 ? errno : 0];
    if (fd >= 0) close(fd);
  }
  over = true;
  commits.join();
  locks.join();
  const int opens = opens_by_error[0];
  CHECK(opens > 0);
  CHECK(opens_by_error == std::map<int, int>{{0, opens}});
}

TEST_CASE("locks: SQLite from two mounts loses no transaction", "[locks]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  const bool killing = options.empty();
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  REQUIRE(run("sqlite3 " + a +
              "/db 'pragma journal_mode=delete; create table counter(n); insert into counter "
              "values(0); create table rows(who, i)'")
              .exit_code == 0);
  const int each = killing ? 100 : 50;
  std::atomic<int> done{0};
  std::vector<std::thread> writers;
  std::vector<RunResult> results(4);
  for (int who = 0; who < 4; ++who) {
    writers.emplace_back([&, who] {
      const std::string db = (who % 2 == 0 ? a : b) + "/db";
      std::string script = ".timeout 120000\n.bail on\n";
      for (int i = 0; i < each; ++i)
        script += "begin immediate; update counter set n = n + 1; insert into rows values(" +
                  std::to_string(who) + "," + std::to_string(i) + "); commit;\n";
      const std::string file = cluster.dir() + "/script" + std::to_string(who);
      std::ofstream(file) << script;
      results[static_cast<std::size_t>(who)] =
          run("sqlite3 " + db + " < " + file, std::chrono::seconds(600));
      ++done;
    });
  }
  if (killing) {
    for (int i = 0; i < 2; ++i) {
      std::this_thread::sleep_for(2s);  // somewhere in the middle
      cluster.restart_node(cluster.kill_primary());
    }
  }
  for (auto& writer : writers) writer.join();
  for (const RunResult& result : results) {
    CAPTURE(result.out);
    CHECK(result.exit_code == 0);
  }
  for (const std::string& mnt : {a, b}) {
    const RunResult sum = run("sqlite3 " + mnt +
                              "/db 'pragma integrity_check; select n from counter; select "
                              "count(*), count(distinct who * 10000 + i) from rows'");
    CHECK(sum.out == "ok\n" + std::to_string(4 * each) + "\n" + std::to_string(4 * each) + "|" +
                         std::to_string(4 * each) + "\n");
  }
  CHECK(cluster.digests_equal());
}

}  // namespace
}  // namespace fermata::test
