// Full disks: the client's cache, one node, all nodes. Applications get ENOSPC and nothing else,
// what is there stays readable, and what frees room makes writes work again.
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <system_error>

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

/// The errno of writing a whole file, 0 for success.
int write_error(const std::string& path, const std::string& bytes) {
  try {
    write_file(path, bytes);
  } catch (const std::system_error& error) {
    return error.code().value();
  }
  return 0;
}

int read_error(const std::string& path) {
  try {
    read_file(path);
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
  const std::string other = cluster.mount_another();
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

}  // namespace
}  // namespace fermata::test
