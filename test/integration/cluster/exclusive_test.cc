// Files that a mount makes in a directory that it has alone: real at once where they are made, one
// log round to their close, and seen by everybody else as soon as anybody else looks.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <memory>
#include <set>
#include <thread>

#include "test/integration/cluster/alone.h"
#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

TEST_CASE("exclusive: create, write and close of a small file is one call", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string dir = cluster.mnt() + "/d";
  REQUIRE(mkdir(dir.c_str(), 0755) == 0);
  have_alone(cluster, cluster.mnt(), dir);
  auto before = cluster.rpc_counts(cluster.mnt());
  for (int i = 0; i < 100; ++i) write_file(dir + "/f" + std::to_string(i), "content");
  auto after = cluster.rpc_counts(cluster.mnt());
  CHECK(after["mutate"] - before["mutate"] == 100);
  CHECK(after["lookup"] == before["lookup"]);
  CHECK(after["getattr"] == before["getattr"]);
  // Empty ones, too.
  for (int i = 0; i < 20; ++i) write_file(dir + "/e" + std::to_string(i), "");
  before = after;
  after = cluster.rpc_counts(cluster.mnt());
  CHECK(after["mutate"] - before["mutate"] == 20);
  const std::string b = cluster.mount_another();
  CHECK(names_in(b + "/d").size() == 120);
  for (int i = 0; i < 100; ++i) REQUIRE(read_file(b + "/d/f" + std::to_string(i)) == "content");
  CHECK(stat_of(b + "/d/e7").st_size == 0);
  CHECK(cluster.digests_equal());
}

TEST_CASE("exclusive: a file that is not sent is real on its mount", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  const std::string path = two.a + "/d/f";
  const struct stat before = stat_of(two.a + "/d");
  const auto fd = two.make("f");
  const struct stat made = stat_of(path);
  CHECK(made.st_size == 0);
  CHECK(made.st_nlink == 1);
  const struct stat dir = stat_of(two.a + "/d");
  CHECK(dir.st_size == before.st_size + 32);
  CHECK((dir.st_mtim.tv_sec > before.st_mtim.tv_sec ||
         (dir.st_mtim.tv_sec == before.st_mtim.tv_sec &&
          dir.st_mtim.tv_nsec > before.st_mtim.tv_nsec)));
  fd->pwrite("abc", 0);
  CHECK(read_file(path) == "abc");
  CHECK(stat_of(path).st_size == 3);
  CHECK(stat_of(path).st_ino == made.st_ino);
  {
    const Fd again(path, O_RDWR);
    again.pwrite("X", 1);
  }
  CHECK(fd->pread(10, 0) == "aXc");
  CHECK(errno_of(open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644)) == EEXIST);
  fd->pwrite("!", 3);
  CHECK(fd->close() == 0);
  const struct stat closed = stat_of(path);
  CHECK(closed.st_ino == made.st_ino);
  CHECK(closed.st_mtim.tv_sec == closed.st_ctim.tv_sec);
  CHECK(closed.st_mtim.tv_nsec == closed.st_ctim.tv_nsec);
  CHECK(read_file(two.b + "/d/f") == "aXc!");
  CHECK(stat_of(two.b + "/d/f").st_ino == made.st_ino);
  CHECK(names_in(two.a + "/d") == std::set<std::string>{"f"});
}

TEST_CASE("exclusive: another mount sees a file that is still open, by name and in listings",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  {
    const auto fd = two.make("by-name");
    CHECK(exists(two.b + "/d/by-name"));
    CHECK(stat_of(two.b + "/d/by-name").st_ino == stat_of(two.a + "/d/by-name").st_ino);
    fd->pwrite("later", 0);
  }
  CHECK(read_file(two.b + "/d/by-name") == "later");
  have_alone(two.cluster, two.a, two.a + "/d");
  {
    const auto fd = two.make("listed");
    CHECK(names_in(two.b + "/d") == std::set<std::string>{"by-name", "listed"});
    fd->pwrite("x", 0);
  }
  have_alone(two.cluster, two.a, two.a + "/d");
  {
    const auto fd = two.make("counted");
    CHECK(stat_of(two.b + "/d").st_size == 3 * 32);  // the directory's attributes tell of it
  }
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: what another mount changes in the directory comes after what was made there",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  const auto f = two.make("f");
  f->pwrite("f", 0);
  CHECK(errno_of(mkdir((two.b + "/d/f").c_str(), 0755)) == EEXIST);
  have_alone(two.cluster, two.a, two.a + "/d");
  const auto g = two.make("g");
  REQUIRE(unlink((two.b + "/d/g").c_str()) == 0);
  CHECK(!exists(two.a + "/d/g"));
  CHECK(g->nlink() == 0);
  g->pwrite("still mine", 0);
  CHECK(g->pread(10, 0) == "still mine");
  have_alone(two.cluster, two.a, two.a + "/d");
  const auto h = two.make("h");
  h->pwrite("h", 0);
  REQUIRE(rename((two.b + "/d/h").c_str(), (two.b + "/moved").c_str()) == 0);
  CHECK(!exists(two.a + "/d/h"));
  CHECK(h->close() == 0);
  CHECK(read_file(two.b + "/moved") == "h");
  CHECK(read_file(two.a + "/moved") == "h");
  have_alone(two.cluster, two.a, two.a + "/d");
  const auto i = two.make("i");
  CHECK(errno_of(rmdir((two.b + "/d").c_str())) == ENOTEMPTY);
  CHECK(i->close() == 0);
  CHECK(f->close() == 0);
  CHECK(names_in(two.b + "/d") == std::set<std::string>{"f", "i"});
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: of two mounts that make the same names with O_EXCL one wins each",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  constexpr int kNames = 300;
  std::atomic<int> wins_a{0}, wins_b{0};
  std::atomic<int> strange{0};
  const auto run = [&](const std::string& mnt, std::atomic<int>& wins) {
    for (int i = 0; i < kNames; ++i) {
      const std::string path = mnt + "/d/n" + std::to_string(i);
      const int fd = open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644);
      if (fd < 0) {
        if (errno != EEXIST) ++strange;
        continue;
      }
      ++wins;
      if (write(fd, mnt.data(), mnt.size()) != static_cast<ssize_t>(mnt.size())) ++strange;
      if (close(fd) != 0) ++strange;
    }
  };
  std::thread other([&] { run(two.b, wins_b); });
  run(two.a, wins_a);
  other.join();
  CHECK(strange == 0);
  CHECK(wins_a + wins_b == kNames);
  int of_a = 0;
  for (int i = 0; i < kNames; ++i) {
    const std::string name = "/d/n" + std::to_string(i);
    const std::string content = read_file(two.b + name);
    REQUIRE((content == two.a || content == two.b));
    REQUIRE(read_file(two.a + name) == content);
    of_a += content == two.a ? 1 : 0;
  }
  CHECK(of_a == wins_a);
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: whatever needs the cluster to know the file sends it first", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  const std::string d = two.a + "/d/";
  std::vector<std::unique_ptr<Held>> open_files;
  const auto make = [&](const char* name) {
    open_files.push_back(two.make(name));
    return open_files.back().get();
  };
  make("chmod");
  CHECK(chmod((d + "chmod").c_str(), 0600) == 0);
  CHECK((stat_of(two.b + "/d/chmod").st_mode & 07777) == 0600);
  have_alone(two.cluster, two.a, two.a + "/d");
  make("old");
  CHECK(rename((d + "old").c_str(), (d + "new").c_str()) == 0);
  CHECK(exists(two.b + "/d/new"));
  CHECK(!exists(two.b + "/d/old"));
  have_alone(two.cluster, two.a, two.a + "/d");
  make("target");
  write_file(d + "source", "source");
  CHECK(rename((d + "source").c_str(), (d + "target").c_str()) == 0);
  CHECK(read_file(two.b + "/d/target") == "source");
  have_alone(two.cluster, two.a, two.a + "/d");
  make("one");
  CHECK(link((d + "one").c_str(), (d + "two").c_str()) == 0);
  CHECK(stat_of(d + "one").st_nlink == 2);
  CHECK(stat_of(two.b + "/d/two").st_nlink == 2);
  have_alone(two.cluster, two.a, two.a + "/d");
  make("xattr");
  CHECK(setxattr((d + "xattr").c_str(), "user.a", "v", 1, 0) == 0);
  char value[8];
  CHECK(getxattr((two.b + "/d/xattr").c_str(), "user.a", value, sizeof value) == 1);
  have_alone(two.cluster, two.a, two.a + "/d");
  CHECK(make("locked")->lock() == 0);
  {
    const Fd other(two.b + "/d/locked", O_RDWR);
    CHECK(errno_of(flock(other.get(), LOCK_EX | LOCK_NB)) == EWOULDBLOCK);
  }
  have_alone(two.cluster, two.a, two.a + "/d");
  make("in-moved");
  CHECK(rename((two.a + "/d").c_str(), (two.a + "/e").c_str()) == 0);
  CHECK(exists(two.b + "/e/in-moved"));
  open_files.clear();
  CHECK(names_in(two.b + "/e") == std::set<std::string>{"chmod", "new", "target", "one", "two",
                                                        "xattr", "locked", "in-moved"});
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: what its maker sets of a file goes with it", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  REQUIRE(chmod((two.a + "/d").c_str(), 0777) == 0);
  have_alone(two.cluster, two.a, two.a + "/d");
  const auto mutations = [&] { return two.cluster.rpc_counts(two.a)["mutate"]; };
  const auto same = [&](const std::string& name) {
    const struct stat here = stat_of(two.a + "/d/" + name), there = stat_of(two.b + "/d/" + name);
    CHECK(there.st_mode == here.st_mode);
    CHECK(there.st_uid == here.st_uid);
    CHECK(there.st_gid == here.st_gid);
    CHECK(there.st_size == here.st_size);
    CHECK(ns_of(there.st_mtim) == ns_of(here.st_mtim));
    CHECK(ns_of(there.st_atim) == ns_of(here.st_atim));
    CHECK(ns_of(there.st_ctim) == ns_of(here.st_ctim));
    return there;
  };
  const timespec times[2] = {{1'000'000, 5}, {2'000'000, 7}};
  const long before = mutations();
  {
    Fd fd(two.a + "/d/untarred", O_CREAT | O_EXCL | O_WRONLY);
    fd.pwrite("content", 0);
    REQUIRE(futimens(fd.get(), times) == 0);
    REQUIRE(fchown(fd.get(), 7, 8) == 0);
    REQUIRE(fchmod(fd.get(), 0440) == 0);
    const struct stat now = stat_of(two.a + "/d/untarred");
    CHECK(now.st_mtim.tv_sec == 2'000'000);
    CHECK(now.st_uid == 7);
    CHECK((now.st_mode & 07777) == 0440);
  }
  CHECK(mutations() == before + 1);
  const struct stat untarred = same("untarred");
  CHECK(untarred.st_mode == (S_IFREG | 0440));
  CHECK(untarred.st_uid == 7);
  CHECK(untarred.st_gid == 8);
  CHECK(untarred.st_mtim.tv_sec == 2'000'000);
  CHECK(untarred.st_mtim.tv_nsec == 7);
  CHECK(untarred.st_atim.tv_nsec == 5);

  have_alone(two.cluster, two.a, two.a + "/d");
  {
    // Written after its time was set; seen by another while it is open, without content.
    Held fd(two.a + "/d/open");
    REQUIRE(utimensat(AT_FDCWD, (two.a + "/d/open").c_str(), times, 0) == 0);
    REQUIRE(chmod((two.a + "/d/open").c_str(), 0600) == 0);
    CHECK(same("open").st_mtim.tv_sec == 2'000'000);
    fd.pwrite("later", 0);
  }
  CHECK(same("open").st_mtim.tv_sec > 2'000'000);

  // What is not its maker's to set, or takes other bits away, the cluster says.
  have_alone(two.cluster, two.a, two.a + "/d");
  const std::string as_user = "setpriv --reuid 1234 --regid 1234 --clear-groups ";
  const RunResult by_user = run(as_user + "bash -c 'cd " + two.a + R"(/d
    exec 3> mine; echo x >&3; chmod 0400 mine; touch -d @5 mine; chgrp 1234 mine
    ! chown 0 mine 2>/dev/null; ! chgrp 0 mine 2>/dev/null; chmod 4755 mine; chgrp 1234 mine
    exec 3>&-; stat -c %a:%u:%g:%Y mine')");
  CHECK(by_user.exit_code == 0);
  CHECK(by_user.out == "755:1234:1234:5\n");
  CHECK(same("mine").st_mode == (S_IFREG | 0755));
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: a file that goes before it was sent costs no call", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string dir = cluster.mnt() + "/d";
  REQUIRE(mkdir(dir.c_str(), 0755) == 0);
  have_alone(cluster, cluster.mnt(), dir);
  const auto before = cluster.rpc_counts(cluster.mnt());
  for (int i = 0; i < 50; ++i) {
    const std::string path = dir + "/tmp" + std::to_string(i);
    const Fd fd(path, O_CREAT | O_EXCL | O_RDWR);
    REQUIRE(unlink(path.c_str()) == 0);
    REQUIRE(!exists(path));
    fd.pwrite("scratch", 0);
    REQUIRE(fd.pread(7, 0) == "scratch");
    struct stat st {};
    REQUIRE(fstat(fd.get(), &st) == 0);
    REQUIRE(st.st_nlink == 0);
  }
  CHECK(cluster.rpc_counts(cluster.mnt()) == before);
  CHECK(happened(cluster, cluster.mnt(), "removed before they were sent") == 50);
  CHECK(names_in(dir).empty());
  {
    // What is asked of one that is open after all works as on any removed file.
    const Fd fd(dir + "/gone", O_CREAT | O_EXCL | O_RDWR);
    fd.pwrite("bytes", 0);
    REQUIRE(unlink((dir + "/gone").c_str()) == 0);
    struct stat before_it {
    }, st{};
    REQUIRE(fstat(fd.get(), &before_it) == 0);
    CHECK(fchmod(fd.get(), 0600) == 0);
    CHECK(fchown(fd.get(), 5, 6) == 0);
    CHECK(fsetxattr(fd.get(), "user.a", "v", 1, 0) == 0);
    CHECK(flock(fd.get(), LOCK_EX | LOCK_NB) == 0);
    REQUIRE(fstat(fd.get(), &st) == 0);
    CHECK(st.st_ino == before_it.st_ino);
    CHECK((st.st_mode & 07777) == 0600);
    CHECK(st.st_uid == 5);
    CHECK(st.st_nlink == 0);
    CHECK(st.st_size == 5);
    CHECK(fd.pread(10, 0) == "bytes");
    fd.pwrite("more", 5);
    CHECK(fd.pread(10, 0) == "bytesmore");
  }
  CHECK(rmdir(dir.c_str()) == 0);
  CHECK(cluster.digests_equal());
}

TEST_CASE("exclusive: a file removed right after its close costs a call to make and one to remove",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string dir = cluster.mnt() + "/d";
  REQUIRE(mkdir(dir.c_str(), 0777) == 0);
  have_alone(cluster, cluster.mnt(), dir);
  const auto mutations = [&] { return cluster.rpc_counts(cluster.mnt())["mutate"]; };
  constexpr int kFiles = 100;
  const long before = mutations();
  for (int i = 0; i < kFiles; ++i) {
    write_file(dir + "/temporary", "content");
    REQUIRE(unlink((dir + "/temporary").c_str()) == 0);
  }
  // The kernel may tell of a close after the unlink: then it is an orphan for a moment.
  CHECK(mutations() - before <= 2 * kFiles + kFiles / 2);
  CHECK(rmdir(dir.c_str()) == 0);
  CHECK(cluster.digests_equal());
}

TEST_CASE("exclusive: a file that came and went has changed its directory", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  const struct stat before = stat_of(two.b + "/d");
  have_alone(two.cluster, two.a, two.a + "/d");  // makes and removes some
  {
    const Fd fd(two.a + "/d/f", O_CREAT | O_EXCL | O_RDWR);
    REQUIRE(unlink((two.a + "/d/f").c_str()) == 0);
  }
  const struct stat here = stat_of(two.a + "/d");
  const struct stat there = stat_of(two.b + "/d");
  const struct stat later = stat_of(two.a + "/d");
  CHECK(ns_of(here.st_mtim) > ns_of(before.st_mtim));
  CHECK(ns_of(there.st_mtim) == ns_of(here.st_mtim));
  CHECK(ns_of(there.st_ctim) == ns_of(here.st_ctim));
  CHECK(ns_of(later.st_mtim) == ns_of(here.st_mtim));
}

TEST_CASE("exclusive: who made a file commits it, whoever owns it by then", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  REQUIRE(chmod((two.a + "/d").c_str(), 0777) == 0);
  have_alone(two.cluster, two.a, two.a + "/d");
  REQUIRE(seteuid(1001) == 0);
  Fd fd(two.a + "/d/hers", O_CREAT | O_EXCL | O_RDWR, 0444);
  REQUIRE(seteuid(0) == 0);
  CHECK(stat_of(two.a + "/d/hers").st_uid == 1001);
  REQUIRE(chown((two.a + "/d/hers").c_str(), 1000, -1) == 0);
  fd.pwrite("text", 0);
  CHECK_NOTHROW(fd.close());
  CHECK(read_file(two.b + "/d/hers") == "text");
}

TEST_CASE("exclusive: a file that is written and as empty as before is made", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  {
    const Fd fd(two.a + "/d/f", O_CREAT | O_EXCL | O_RDWR);
    REQUIRE(fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 283) == 0);
  }
  {
    const Fd fd(two.a + "/d/g", O_CREAT | O_EXCL | O_RDWR);
    fd.pwrite("x", 0);
    REQUIRE(ftruncate(fd.get(), 0) == 0);
    CHECK(errno_of(close(dup(fd.get()))) == 0);
  }
  CHECK(stat_of(two.b + "/d/f").st_size == 0);
  CHECK(stat_of(two.b + "/d/g").st_size == 0);
}

TEST_CASE("exclusive: a file that is locked here and one that is only here, asked for by another",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  const bool failover = GENERATE(false, true);
  CAPTURE(failover);
  Two two;
  const Fd mine(two.a + "/d/locked", O_CREAT | O_EXCL | O_RDWR);
  REQUIRE(eventually([&] {  // delegated
    const long before = two.cluster.rpc_count(two.a);
    REQUIRE(errno_of(flock(mine.get(), LOCK_EX)) == 0);
    return two.cluster.rpc_count(two.a) == before;
  }));
  mine.pwrite("written under the lock", 0);
  have_alone(two.cluster, two.a, two.a + "/d");
  const auto unsent = two.make("unsent");
  if (failover) two.cluster.restart_node(two.cluster.kill_primary());
  const Fd other(two.b + "/d/locked", O_RDWR);
  CHECK(errno_of(flock(other.get(), LOCK_EX | LOCK_NB)) == EWOULDBLOCK);
  CHECK(exists(two.b + "/d/unsent"));
  std::atomic<int> got{-1};
  std::thread waits([&] { got = errno_of(flock(other.get(), LOCK_EX)); });
  CHECK(errno_of(flock(mine.get(), LOCK_UN)) == 0);
  waits.join();
  CHECK(got == 0);
  CHECK(other.pread(22, 0) == "written under the lock");
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: two mounts make files and lock one between them all the time",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  write_file(two.a + "/d/counter", "10000");
  constexpr int kRounds = 100;
  std::atomic<int> errors{0};
  std::vector<std::thread> threads;
  for (const std::string& mnt : {two.a, two.b}) {
    threads.emplace_back([&, mnt] {
      try {
        const std::string mine = mnt + "/d/" + (mnt == two.a ? "a" : "b");
        for (int i = 0; i < kRounds; ++i) {
          // Now the counter first, now the file; and a lock on what nobody else knows.
          const Fd made(mine + std::to_string(i), O_CREAT | O_EXCL | O_RDWR);
          if (i % 3 == 0) made.pwrite("before", 0);
          const Fd counter(mnt + "/d/counter", O_RDWR);
          if (flock(counter.get(), LOCK_EX) != 0) throw std::runtime_error("lock");
          counter.pwrite(std::to_string(std::stoi(counter.pread(5, 0)) + 1), 0);
          if (i % 2 == 0 && flock(made.get(), LOCK_EX) != 0) throw std::runtime_error("own lock");
          if (flock(counter.get(), LOCK_UN) != 0) throw std::runtime_error("unlock");
        }
      } catch (const std::exception& e) {
        std::fprintf(stderr, "%s: %s\n", mnt.c_str(), e.what());
        ++errors;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(errors == 0);
  for (const std::string& mnt : {two.a, two.b}) {
    CHECK(read_file(mnt + "/d/counter") == std::to_string(10000 + 2 * kRounds));
    CHECK(names_in(mnt + "/d").size() == 2 * kRounds + 1);
  }
  CHECK(two.cluster.digests_equal());
}

TEST_CASE("exclusive: a listing that was there before is learnt, and stays right", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  for (int i = 0; i < 500; ++i) write_file(two.b + "/d/old" + std::to_string(i), "old");
  have_alone(two.cluster, two.a, two.a + "/d");
  for (int i = 0; i < 500; i += 50) {
    const std::string path = two.a + "/d/old" + std::to_string(i);
    REQUIRE(errno_of(open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644)) == EEXIST);
    REQUIRE(read_file(path) == "old");
  }
  for (int i = 0; i < 50; ++i) write_file(two.a + "/d/new" + std::to_string(i), "new");
  CHECK(names_in(two.a + "/d").size() == 550);
  CHECK(names_in(two.b + "/d").size() == 550);
}

TEST_CASE("exclusive: a large file is made before its content is sent", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  const std::string bytes = random_bytes(3 << 20, 1);
  const auto fd = two.make("large");
  for (std::size_t at = 0; at < bytes.size(); at += 4096)
    fd->pwrite(bytes.substr(at, 4096), static_cast<off_t>(at));
  CHECK(fd->close() == 0);
  CHECK(happened(two.cluster, two.a, "sent empty") == 1);
  CHECK(read_file(two.b + "/d/large") == bytes);
}

TEST_CASE("exclusive: setgid directories, modes and umask are as the cluster has them",
          "[exclusive]") {
  FM_NEEDS_MOUNTS();
  Two two;
  REQUIRE(chown((two.a + "/d").c_str(), 0, 1234) == 0);
  REQUIRE(chmod((two.a + "/d").c_str(), 02777) == 0);
  have_alone(two.cluster, two.a, two.a + "/d");
  const auto fd = two.make("f");
  const struct stat here = stat_of(two.a + "/d/f");
  const struct stat there = stat_of(two.b + "/d/f");
  CHECK(here.st_gid == 1234);
  CHECK(there.st_gid == 1234);
  CHECK(here.st_mode == there.st_mode);
  CHECK(here.st_ctim.tv_sec == there.st_ctim.tv_sec);
  CHECK(here.st_ctim.tv_nsec == there.st_ctim.tv_nsec);
}

TEST_CASE("exclusive: it can be turned off", "[exclusive]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "noexclusive"});
  const std::string dir = cluster.mnt() + "/d";
  REQUIRE(mkdir(dir.c_str(), 0755) == 0);
  auto before = cluster.rpc_counts(cluster.mnt());
  for (int i = 0; i < 50; ++i) write_file(dir + "/f" + std::to_string(i), "content");
  auto after = cluster.rpc_counts(cluster.mnt());
  CHECK(after["mutate"] - before["mutate"] == 100);
  CHECK(made_here(cluster, cluster.mnt()) == 0);
}

}  // namespace
}  // namespace fermata::test
