// What one mount has open while another changes it: attributes of now, versions that stay, devices
// and FIFOs that were unlinked.
#include <fcntl.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <thread>
#include <vector>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

using namespace std::chrono_literals;

struct stat status(const Fd& fd) {
  struct stat out {};
  REQUIRE(fstat(fd.get(), &out) == 0);
  return out;
}

std::string either_path() {
  return GENERATE(std::string("dev,suid"), std::string("dev,suid,nopassthrough"));
}

TEST_CASE("two versions open on one mount show mode, owner and links of now", "[coherence]") {
  FM_NEEDS_MOUNTS();
  const std::string options = either_path();
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  write_file(a + "/f", "old");
  const Fd old_one(a + "/f", O_RDONLY);
  REQUIRE(status(old_one).st_size == 3);
  write_file(b + "/f", "newer");
  const Fd new_one(a + "/f", O_RDONLY);
  REQUIRE(status(new_one).st_size == 5);
  REQUIRE(status(old_one).st_size == 3);

  REQUIRE(fchmod(old_one.get(), 0600) == 0);
  CHECK((status(new_one).st_mode & 07777) == 0600);
  CHECK((stat_of(a + "/f").st_mode & 07777) == 0600);
  REQUIRE(fchown(new_one.get(), 12, 34) == 0);
  CHECK(status(old_one).st_uid == 12);
  REQUIRE(link((a + "/f").c_str(), (a + "/g").c_str()) == 0);
  CHECK(status(old_one).st_nlink == 2);
  REQUIRE(unlink((a + "/f").c_str()) == 0);
  CHECK(status(new_one).st_nlink == 1);
  REQUIRE(unlink((b + "/g").c_str()) == 0);
  CHECK(status(old_one).st_nlink == 0);
  CHECK(status(new_one).st_nlink == 0);
}

TEST_CASE("an open that a lock has made the newest version shows that the file is unlinked",
          "[coherence][locks]") {
  FM_NEEDS_MOUNTS();
  const std::string options = either_path();
  const bool here = GENERATE(true, false);
  CAPTURE(options, here);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  const Fd writer(a + "/f", O_RDWR | O_CREAT);
  REQUIRE(truncate((b + "/f").c_str(), 23'615) == 0);
  const Fd reader(a + "/f", O_RDONLY);
  REQUIRE(flock(writer.get(), LOCK_SH | LOCK_NB) == 0);
  REQUIRE(status(reader).st_nlink == 1);
  REQUIRE(status(writer).st_nlink == 1);
  REQUIRE(unlink(((here ? a : b) + "/f").c_str()) == 0);
  CHECK(status(reader).st_nlink == 0);
  CHECK(status(writer).st_nlink == 0);
}

TEST_CASE("a device or FIFO that is unlinked while it is open can be changed, and goes at last",
          "[coherence]") {
  FM_NEEDS_MOUNTS();
  const bool here = GENERATE(true, false);
  CAPTURE(here);
  MiniCluster cluster({3, true, "dev,suid"});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another("dev,suid");
  const auto inodes = [&] {
    struct statvfs of {};
    REQUIRE(statvfs(a.c_str(), &of) == 0);
    return of.f_files - of.f_ffree;
  };
  const auto before = inodes();
  REQUIRE(mknod((a + "/null").c_str(), S_IFCHR | 0666, makedev(1, 3)) == 0);
  REQUIRE(mkfifo((a + "/fifo").c_str(), 0666) == 0);
  {
    const Fd device(a + "/null", O_RDWR);
    const Fd fifo(a + "/fifo", O_RDWR | O_NONBLOCK);
    for (const auto& name : {"/null", "/fifo"}) {
      REQUIRE(unlink(((here ? a : b) + name).c_str()) == 0);
      CHECK(!exists(a + name));
    }
    for (const Fd* fd : {&device, &fifo}) {
      CHECK(status(*fd).st_nlink == 0);
      CHECK(errno_of(fchmod(fd->get(), 0600)) == 0);
      CHECK(errno_of(fchown(fd->get(), 12, 34)) == 0);
      CHECK((status(*fd).st_mode & 07777) == 0600);
      CHECK(status(*fd).st_uid == 12);
    }
  }
  // The kernel may keep what nobody has open until it is told to let go.
  CHECK(eventually(
      [&] {
        run("echo 2 > /proc/sys/vm/drop_caches");
        return inodes() == before;
      },
      30s));
  CHECK(cluster.digests_equal());
}

TEST_CASE("times set on an open file do not hold it back from newer versions", "[coherence]") {
  FM_NEEDS_MOUNTS();
  const std::string options = either_path();
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  write_file(a + "/f", random_bytes(200'000, 1));
  Fd writer(a + "/f", O_RDWR);
  const timespec times[] = {{1'000'000'000, 5}, {1'000'000'000, 6}};
  REQUIRE(futimens(writer.get(), times) == 0);
  const std::string newer = random_bytes(100'000, 2);
  write_file(b + "/f", newer);
  CHECK(stat_of(a + "/f").st_size == 100'000);
  CHECK((read_file(a + "/f") == newer));
  CHECK(status(writer).st_size == 200'000);  // what was opened
  writer.close();
  CHECK((read_file(a + "/f") == newer));
  CHECK((read_file(b + "/f") == newer));
}

TEST_CASE("what a close has made the newest version again is what its name shows next",
          "[coherence]") {
  FM_NEEDS_MOUNTS();
  const std::string options = either_path();
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  for (int round = 0; round < 40; ++round) {
    CAPTURE(round);
    const std::string name = "/f" + std::to_string(round);
    write_file(a + name, "x");
    Fd writer(a + name, O_RDWR);
    write_file(b + name, "newer");
    const Fd reader(a + name, O_RDONLY);  // another node of the same inode
    REQUIRE(status(reader).st_size == 5);
    writer.pwrite("the last close wins", 0);
    writer.close();
    REQUIRE(stat_of(a + name).st_size == 19);
    REQUIRE(read_file(a + name) == "the last close wins");
    REQUIRE(stat_of(b + name).st_size == 19);
    REQUIRE(status(reader).st_size == 5);
  }
}

TEST_CASE("chown to nobody new does not take setuid away for a stranger", "[coherence]") {
  FM_NEEDS_MOUNTS();
  const std::string options = either_path();
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  write_file(a + "/f", "x");
  REQUIRE((stat_of(a + "/f").st_mode & 07777) == 0644);
  REQUIRE(chmod((b + "/f").c_str(), 04755) == 0);
  setfsuid(1001);  // of this thread; takes the capabilities over files along
  const int error = errno_of(chown((a + "/f").c_str(), uid_t(-1), gid_t(-1)));
  setfsuid(0);
  CHECK(error == EPERM);
  CHECK((stat_of(b + "/f").st_mode & 07777) == 04755);
  // The owner may, and it does.
  REQUIRE(chown((a + "/f").c_str(), 1001, gid_t(-1)) == 0);
  REQUIRE(chmod((b + "/f").c_str(), 04755) == 0);
  setfsuid(1001);
  CHECK(errno_of(chown((a + "/f").c_str(), uid_t(-1), gid_t(-1))) == 0);
  setfsuid(0);
  CHECK((stat_of(b + "/f").st_mode & 07777) == 0755);
}

// A process that the scheduler leaves waiting takes in the answer to its lookup late: also what it
// then remembers must not be older than a change that was made in between.
TEST_CASE("a lookup whose answer is taken in late leaves nothing old behind", "[coherence]") {
  FM_NEEDS_MOUNTS();
  constexpr int kRounds = 100;
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  for (int i = 0; i < kRounds; ++i) {
    REQUIRE(mkdir((a + "/d" + std::to_string(i)).c_str(), 0755) == 0);
  }
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (unsigned i = 0; i < std::thread::hardware_concurrency(); ++i) {
    busy.emplace_back([&] {
      while (!stop) {
      }
    });
  }
  std::atomic<int> asked{-1};
  std::atomic<int> seen{-1};
  std::thread looks([&] {
    const sched_param none{};
    sched_setscheduler(0, SCHED_IDLE, &none);  // of this thread
    for (int i = 0; i < kRounds; ++i) {
      while (asked < i) std::this_thread::sleep_for(100us);
      (void)exists(b + "/d" + std::to_string(i));
      seen = i;
    }
  });
  int old = 0;
  for (int i = 0; i < kRounds; ++i) {
    const std::string name = "/d" + std::to_string(i);
    asked = i;
    std::this_thread::sleep_for(std::chrono::microseconds(i * 37 % 5000));
    REQUIRE(chmod((a + name).c_str(), 0700) == 0);
    REQUIRE(eventually([&] { return seen >= i; }, 60s));
    if ((stat_of(b + name).st_mode & 07777) != 0700) ++old;
  }
  stop = true;
  looks.join();
  for (auto& thread : busy) thread.join();
  CHECK(old == 0);
}

}  // namespace
}  // namespace fermata::test
