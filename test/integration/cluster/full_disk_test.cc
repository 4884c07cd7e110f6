// Full disks: the client's cache, one node, all nodes. Applications get ENOSPC and nothing else,
// what is there stays readable, and what frees room makes writes work again.
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <system_error>
#include <thread>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

constexpr std::size_t kMiB = 1 << 20;

std::size_t free_bytes(const std::string& path) {
  struct statvfs st {};
  REQUIRE(statvfs(path.c_str(), &st) == 0);
  return st.f_bavail * st.f_frsize;
}

/// Writes up to `size` bytes; the errno that ended it, 0 if nothing did.
int fill(const Fd& fd, std::size_t size) {
  const std::string piece = random_bytes(kMiB, 1);
  try {
    for (std::size_t at = 0; at < size; at += piece.size())
      fd.pwrite(piece, static_cast<off_t>(at));
  } catch (const std::system_error& error) {
    return error.code().value();
  }
  return 0;
}

TEST_CASE("faults: a full cache disk gives ENOSPC, keeps what is there and recovers", "[faults]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, false, {}});
  const std::string disk = cluster.small_disk("disk", "48m");
  const std::string mnt = cluster.root() + "/mnt";
  REQUIRE(cluster.mount_with(mnt, disk + "/cache", options).exit_code == 0);
  const std::string other = cluster.mount_another();
  const std::string before = random_bytes(2 * kMiB, 7);
  write_file(mnt + "/small", "kept");
  write_file(mnt + "/before", before);
  REQUIRE(cluster.fermata("cache flush " + mnt).exit_code == 0);  // so that reading wants room
  {
    Fd huge(mnt + "/huge", O_CREAT | O_RDWR);
    CHECK(fill(huge, 64 * kMiB) == ENOSPC);
    // While the disk is full of what nobody else has yet.
    CHECK(read_file(mnt + "/small") == "kept");
    CHECK(huge.pread(kMiB, 0) == random_bytes(kMiB, 1));
    CHECK_NOTHROW(huge.close());  // what fitted is a file like any other
  }
  CHECK(read_file(mnt + "/before") == before);
  REQUIRE(unlink((mnt + "/huge").c_str()) == 0);
  CHECK(eventually([&] { return free_bytes(disk) > 36 * kMiB; }, std::chrono::seconds(5)));
  {
    Fd open_and_gone(mnt + "/gone", O_CREAT | O_RDWR);
    CHECK(fill(open_and_gone, 64 * kMiB) == ENOSPC);
    REQUIRE(unlink((mnt + "/gone").c_str()) == 0);
    CHECK_NOTHROW(open_and_gone.close());
  }
  CHECK(eventually([&] { return free_bytes(disk) > 36 * kMiB; }, std::chrono::seconds(5)));
  {
    // Even on a disk full of what was never closed a new daemon starts, and commits it.
    Fd left(mnt + "/left", O_CREAT | O_RDWR);
    CHECK(fill(left, 64 * kMiB) == ENOSPC);
    CHECK(stat_of(other + "/left").st_nlink == 1);  // or it may be this mount's alone for a second
    cluster.kill_mount(mnt);
    const RunResult again = cluster.mount_with(mnt, disk + "/cache", options);
    CAPTURE(again.out);
    REQUIRE(again.exit_code == 0);
  }
  CHECK(eventually([&] { return stat_of(mnt + "/left").st_size > 36 * static_cast<off_t>(kMiB); }));
  REQUIRE(unlink((mnt + "/left").c_str()) == 0);
  CHECK(eventually([&] { return free_bytes(disk) > 36 * kMiB; }));
  // Together far more than the disk: clean copies make room, also those that were just in use.
  for (unsigned i = 0; i < 30; ++i)
    write_file(mnt + "/f" + std::to_string(i), random_bytes(3 * kMiB, i));
  for (unsigned i = 0; i < 30; ++i)
    CHECK(read_file(mnt + "/f" + std::to_string(i)) == random_bytes(3 * kMiB, i));
  CHECK(read_file(mnt + "/small") == "kept");
  // Too large to be brought here; the others are not harmed by the attempt.
  write_file(other + "/large", random_bytes(60 * kMiB, 9));
  CHECK(read_error(mnt + "/large") == ENOSPC);
  CHECK(read_file(mnt + "/f3") == random_bytes(3 * kMiB, 3));
  const RunResult ended = cluster.fermata("umount --flush " + mnt);
  CAPTURE(ended.out);
  CHECK(ended.exit_code == 0);
}

TEST_CASE("faults: a writer that the kernel lets past the daemon meets a full cache disk",
          "[faults]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, false, {}});
  // Large enough that writers begin on the passthrough path.
  const std::string disk = cluster.small_disk("disk", "400m");
  const std::string mnt = cluster.root() + "/mnt";
  REQUIRE(cluster.mount_with(mnt, disk + "/cache").exit_code == 0);
  write_file(mnt + "/small", "kept");
  REQUIRE(cluster.fermata("cache flush " + mnt).exit_code == 0);
  {
    Fd huge(mnt + "/huge", O_CREAT | O_RDWR);
    CHECK(fill(huge, 500 * kMiB) == ENOSPC);
    CHECK(free_bytes(disk) < kMiB);
    CHECK(read_file(mnt + "/small") == "kept");
    REQUIRE(ftruncate(huge.get(), 3 * kMiB) == 0);
    CHECK_NOTHROW(huge.close());
  }
  CHECK(stat_of(mnt + "/huge").st_size == 3 * kMiB);
  CHECK(eventually([&] { return free_bytes(disk) > 350 * kMiB; }, std::chrono::seconds(5)));
  CHECK(write_error(mnt + "/after", random_bytes(20 * kMiB, 3)) == 0);
  CHECK(read_file(mnt + "/after") == random_bytes(20 * kMiB, 3));
  // What is committed and closed may be evicted, also where ctime does not tell what was written.
  CHECK(eventually([&] {
    return cluster.fermata("cache stat --json " + mnt).out.find(R"("dirty_files":0,)") !=
           std::string::npos;
  }));
  // A disk full of one file that nobody has committed: it can still be cut, and removed.
  {
    Fd huge(mnt + "/huge", O_RDWR);
    CHECK(fill(huge, 500 * kMiB) == ENOSPC);
    REQUIRE(unlink((mnt + "/huge").c_str()) == 0);
  }
  CHECK(eventually([&] { return free_bytes(disk) > 350 * kMiB; }, std::chrono::seconds(5)));
  CHECK(read_file(mnt + "/after") == random_bytes(20 * kMiB, 3));
}

/// Shell commands at a mount that must end by themselves, whatever becomes of them.
RunResult at(const std::string& mnt, const std::string& command) {
  RunResult result = run("cd " + mnt + "; " + command, std::chrono::seconds(60));
  if (result.exit_code == 137) throw std::runtime_error("hangs: " + command + "\n" + result.out);
  return result;
}

bool says_no_space(const RunResult& result) {
  return result.exit_code != 0 && result.out.find("No space left on device") != std::string::npos &&
         result.out.find("Input/output error") == std::string::npos;
}

std::string status_of(MiniCluster& cluster) {
  return cluster.fermata("status --no-digest " + cluster.servers()).out;
}

// Large files are chunks, small ones metadata.
void fill_all_disks_and_remove(bool small_files) {
  MiniCluster cluster({3, true, {}, {"96m", "96m", "96m"}});
  const std::string mnt = cluster.mnt();
  const std::string size = small_files ? "60000" : "3000000";
  const auto write = [&](const std::string& name) {
    return at(mnt, "head -c " + size + " /dev/urandom > " + name);
  };
  REQUIRE(at(mnt, "mkdir d; echo kept > d/small").exit_code == 0);
  int written = 0;
  RunResult full;
  const auto one_more = [&] {
    full = write("f" + std::to_string(written));
    if (full.exit_code == 0) ++written;
    return full.exit_code == 0;
  };
  // Room comes back for a while when history goes and the log is cut.
  do {
    while (written < 5000 && one_more()) {
    }
  } while (written < 5000 && eventually(one_more, std::chrono::seconds(12)));
  // What a failed close left here nobody else has: it goes, so that both mounts see the same.
  REQUIRE(at(mnt, "rm -f f" + std::to_string(written)).exit_code == 0);
  CAPTURE(full.out, written);
  REQUIRE(written > 0);
  CHECK(says_no_space(full));
  CHECK(written * std::stoi(size) > 40 * static_cast<int>(kMiB));
  // Not once, but for as long as it is so.
  for (int i = 0; i < 5; ++i) {
    CHECK(says_no_space(write("more")));
    CHECK(says_no_space(at(mnt, "mkdir more.d")));
    CHECK(at(mnt, "mv d/small d/moved && mv d/moved d/small").exit_code == 0);
  }
  for (int node = 1; node <= 3; ++node) CHECK(cluster.runs(node));
  const std::string status = status_of(cluster);
  CAPTURE(status);
  CHECK(status.starts_with("HEALTH_WARN"));
  // A file may be too large for what is left just above the limit.
  CHECK((status.find("disk is full") != std::string::npos ||
         status.find("disk is nearly full") != std::string::npos));

  // Reads, on a new mount too; another primary; the old one comes back on its full disk.
  REQUIRE(at(mnt, "rm -f more").exit_code == 0);
  const std::string sums = at(mnt, "find . -type f -size +0 | sort | xargs sha256sum").out;
  const int before = cluster.kill_primary();
  CHECK(cluster.primary() != before);
  const std::string other = cluster.mount_another();
  CHECK(at(other, "find . -type f -size +0 | sort | xargs sha256sum").out == sums);
  cluster.restart_node(before);
  CHECK(cluster.digests_equal());
  const RunResult more = write("more");  // the other primary may have let something go
  CHECK((more.exit_code == 0 || says_no_space(more)));

  // Half of it goes: what is written then fits again, as the nodes get to it.
  REQUIRE(at(other, "ls | grep '^f.*[0246]$' | xargs rm -f; rm -rf more*").exit_code == 0);
  REQUIRE(at(other, "ls | grep '^f.*8$' | while read -r f; do : > $f || exit; done").exit_code ==
          0);
  int refilled = 0;
  RunResult again;
  const auto one_again = [&] {
    again = write("g" + std::to_string(refilled));
    return again.exit_code == 0;
  };
  while (refilled < written / 4 && eventually(one_again, std::chrono::seconds(60))) ++refilled;
  CAPTURE(again.out);
  CHECK(refilled == written / 4);
  CHECK(at(other, "cat d/small").out == "kept\n");
  for (int node = 1; node <= 3; ++node) CHECK(cluster.runs(node));
  CHECK(cluster.digests_equal());
}

TEST_CASE("faults: all nodes' disks full: ENOSPC, reads and elections go on, removing frees room",
          "[faults]") {
  FM_NEEDS_MOUNTS();
  fill_all_disks_and_remove(false);
}

// What is removed would go to history first, for which there is no room.
TEST_CASE("faults: all nodes' disks full of small files: the same", "[faults]") {
  FM_NEEDS_MOUNTS();
  fill_all_disks_and_remove(true);
}

TEST_CASE("faults: one node's disk full: the others go on, status says why", "[faults]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, {}, {"96m", "96m", "96m"}});
  const std::string mnt = cluster.mnt();
  REQUIRE(at(mnt, "echo kept > small").exit_code == 0);
  // By something else on that disk, to the last byte; the primary's is the hardest.
  const int node = GENERATE(0, 1) == 0 ? cluster.primary() : cluster.primary() % 3 + 1;
  const std::string filler = cluster.dir() + "/node" + std::to_string(node) + "/filler";
  CHECK(run("head -c 200M /dev/zero > " + filler).exit_code != 0);
  for (int i = 0; i < 10; ++i) {
    const RunResult written = at(mnt, "head -c 2000000 /dev/urandom > f" + std::to_string(i) +
                                          "; echo x > s" + std::to_string(i));
    CAPTURE(written.out);
    CHECK(written.exit_code == 0);
  }
  CHECK(cluster.runs(node));
  const auto warns = [&] {
    const std::string status = status_of(cluster);
    return status.starts_with("HEALTH_WARN") &&
           status.find("node " + std::to_string(node) + "'s disk is full") != std::string::npos;
  };
  CHECK(eventually(warns));
  REQUIRE(run("rm " + filler).exit_code == 0);
  CHECK(eventually([&] { return status_of(cluster).starts_with("HEALTH_OK"); }));
  CHECK(cluster.digests_equal());
  // It has again what it could not take: the others may fail now.
  cluster.kill_node(node % 3 + 1);
  const std::string other = cluster.mount_another();
  CHECK(at(other, "cat f* | wc -c").out == "20000000\n");
}

TEST_CASE("faults: a node full to its reserve passes on what it is asked for, and counts as full",
          "[faults]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, {}, {"96m", "96m", "96m"}});
  const std::string mnt = cluster.mnt();
  const int full = cluster.primary() % 3 + 1;
  const int third = full % 3 + 1;
  const std::string disk = cluster.dir() + "/node" + std::to_string(full);
  const std::size_t left = 8 * kMiB;  // below the reserve
  REQUIRE(
      run("head -c " + std::to_string(free_bytes(disk) - left) + " /dev/zero > " + disk + "/filler")
          .exit_code == 0);
  CHECK(eventually([&] { return status_of(cluster).find("disk is full") != std::string::npos; }));

  // A majority has room, though one of it is away for a moment.
  const auto write = [&](int i) {
    return at(mnt, "head -c 2000000 /dev/urandom > f" + std::to_string(i));
  };
  for (int i = 0; i < 4; ++i) {
    cluster.kill_node(third);
    std::thread back([&] { cluster.restart_node(third); });
    const RunResult written = write(i);
    back.join();
    CAPTURE(i, written.out);
    CHECK(written.exit_code == 0);
  }
  for (int i = 4; i < 12; ++i) CHECK(write(i).exit_code == 0);
  const std::string sums = at(mnt, "sha256sum f*").out;
  const std::size_t free_before = free_bytes(disk);
  const std::string other = cluster.mount_another();
  CHECK(at(other, "sha256sum f*").out == sums);
  CHECK(free_bytes(disk) + kMiB > free_before);

  // With the third gone each majority has the full one. What frees room goes on.
  cluster.kill_node(third);
  RunResult refused;
  CHECK(eventually([&] {
    refused = at(mnt, "head -c 100 /dev/urandom > s");
    return refused.exit_code != 0;
  }));
  CHECK(says_no_space(refused));
  CHECK(at(mnt, "rm f0 f1").exit_code == 0);
  cluster.restart_node(third);
  CHECK(eventually([&] { return at(mnt, "head -c 100 /dev/urandom > s").exit_code == 0; }));
  REQUIRE(run("rm " + disk + "/filler").exit_code == 0);
  CHECK(eventually([&] { return status_of(cluster).starts_with("HEALTH_OK"); }));
  CHECK(cluster.digests_equal());
}

}  // namespace
}  // namespace fermata::test
