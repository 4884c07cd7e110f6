// One pass over everything a mount does, on both data paths. Short enough for the sanitizers.
#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

TEST_CASE("a mount does what a filesystem does", "[smoke]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string mnt = cluster.mnt();

  SECTION("names") {
    REQUIRE(mkdir((mnt + "/d").c_str(), 0750) == 0);
    CHECK((stat_of(mnt + "/d").st_mode & 07777) == (0750 & ~022));
    CHECK(stat_of(mnt + "/d").st_nlink == 2);
    CHECK(errno_of(mkdir((mnt + "/d").c_str(), 0750)) == EEXIST);
    write_file(mnt + "/d/f", "x");
    CHECK(errno_of(rmdir((mnt + "/d").c_str())) == ENOTEMPTY);
    CHECK(errno_of(rmdir((mnt + "/d/f").c_str())) == ENOTDIR);
    CHECK(errno_of(unlink((mnt + "/d").c_str())) == EISDIR);
    CHECK(errno_of(unlink((mnt + "/none").c_str())) == ENOENT);
    CHECK(errno_of(mkdir((mnt + "/" + std::string(256, 'n')).c_str(), 0755)) == ENAMETOOLONG);
    REQUIRE(mkdir((mnt + "/" + std::string(255, 'n')).c_str(), 0755) == 0);
    REQUIRE(link((mnt + "/d/f").c_str(), (mnt + "/hard").c_str()) == 0);
    CHECK(stat_of(mnt + "/hard").st_nlink == 2);
    CHECK(stat_of(mnt + "/hard").st_ino == stat_of(mnt + "/d/f").st_ino);
    REQUIRE(symlink("d/f", (mnt + "/soft").c_str()) == 0);
    CHECK(read_file(mnt + "/soft") == "x");
    REQUIRE(rename((mnt + "/hard").c_str(), (mnt + "/d/moved").c_str()) == 0);
    CHECK(!exists(mnt + "/hard"));
    write_file(mnt + "/a", "a");
    write_file(mnt + "/b", "b");
    CHECK(errno_of(renameat2(AT_FDCWD, (mnt + "/a").c_str(), AT_FDCWD, (mnt + "/b").c_str(),
                             RENAME_NOREPLACE)) == EEXIST);
    REQUIRE(renameat2(AT_FDCWD, (mnt + "/a").c_str(), AT_FDCWD, (mnt + "/b").c_str(),
                      RENAME_EXCHANGE) == 0);
    CHECK(read_file(mnt + "/a") == "b");
    CHECK(read_file(mnt + "/b") == "a");
    CHECK(errno_of(rename((mnt + "/d").c_str(), (mnt + "/d/inside").c_str())) == EINVAL);
    REQUIRE(mknod((mnt + "/fifo").c_str(), S_IFIFO | 0600, 0) == 0);
    CHECK(S_ISFIFO(stat_of(mnt + "/fifo").st_mode));
  }

  SECTION("bytes") {
    for (const std::size_t size :
         {0UL, 1UL, 4096UL, 65'536UL, 65'537UL, 1'048'576UL, 2'500'000UL}) {
      CAPTURE(size);
      const std::string bytes = random_bytes(size, size);
      write_file(mnt + "/f", bytes);
      CHECK(read_file(mnt + "/f") == bytes);
      CHECK(stat_of(mnt + "/f").st_size == static_cast<off_t>(size));
    }
    {
      Fd fd(mnt + "/f", O_RDWR);
      fd.pwrite("changed", 1'048'570);
      CHECK(fd.pread(7, 1'048'570) == "changed");
      REQUIRE(fsync(fd.get()) == 0);
      REQUIRE(ftruncate(fd.get(), 1'048'580) == 0);
      struct stat st {};
      REQUIRE(fstat(fd.get(), &st) == 0);
      CHECK(st.st_size == 1'048'580);
      fd.close();
    }
    CHECK(stat_of(mnt + "/f").st_size == 1'048'580);
    REQUIRE(truncate((mnt + "/f").c_str(), 10) == 0);
    CHECK(read_file(mnt + "/f") == random_bytes(2'500'000, 2'500'000).substr(0, 10));
    CHECK(run("cd " + mnt +
              "; echo one > log; echo two >> log; (echo three; echo four) >> log; cat log")
              .out == "one\ntwo\nthree\nfour\n");
  }

  SECTION("mmap, and stores after close") {
    write_file(mnt + "/m", std::string(8192, 'a'));
    {
      Fd fd(mnt + "/m", O_RDWR);
      void* map = mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
      REQUIRE(map != MAP_FAILED);
      static_cast<char*>(map)[5000] = 'b';
      fd.close();
      static_cast<char*>(map)[6000] = 'c';
      REQUIRE(munmap(map, 8192) == 0);
    }
    const std::string other = cluster.mount_another(options);
    CHECK(eventually([&] { return read_file(other + "/m")[6000] == 'c'; }));
    CHECK(read_file(other + "/m")[5000] == 'b');
  }

  SECTION("unlinked while open") {
    write_file(mnt + "/u", "still here");
    Fd fd(mnt + "/u", O_RDWR);
    REQUIRE(unlink((mnt + "/u").c_str()) == 0);
    CHECK(!exists(mnt + "/u"));
    fd.pwrite("STILL", 0);
    CHECK(fd.pread(10, 0) == "STILL here");
    REQUIRE(fsync(fd.get()) == 0);
    struct stat st {};
    REQUIRE(fstat(fd.get(), &st) == 0);
    CHECK(st.st_nlink == 0);
    fd.close();
  }

  SECTION("attributes and xattrs") {
    write_file(mnt + "/x", "x");
    REQUIRE(chmod((mnt + "/x").c_str(), 04711) == 0);
    CHECK((stat_of(mnt + "/x").st_mode & 07777) == 04711);
    REQUIRE(chown((mnt + "/x").c_str(), 1234, 4321) == 0);
    CHECK(stat_of(mnt + "/x").st_uid == 1234);
    const timespec times[2] = {{-1'000'000'000, 5}, {5'000'000'000, 999'999'999}};
    REQUIRE(utimensat(AT_FDCWD, (mnt + "/x").c_str(), times, 0) == 0);
    CHECK(stat_of(mnt + "/x").st_atim.tv_sec == -1'000'000'000);
    CHECK(stat_of(mnt + "/x").st_mtim.tv_nsec == 999'999'999);
    REQUIRE(setxattr((mnt + "/x").c_str(), "user.k", "v", 1, XATTR_CREATE) == 0);
    CHECK(errno_of(setxattr((mnt + "/x").c_str(), "user.k", "v", 1, XATTR_CREATE)) == EEXIST);
    char value[16];
    CHECK(getxattr((mnt + "/x").c_str(), "user.k", value, sizeof value) == 1);
    CHECK(getxattr((mnt + "/x").c_str(), "user.none", value, sizeof value) == -1);
    CHECK(errno == ENODATA);
    REQUIRE(removexattr((mnt + "/x").c_str(), "user.k") == 0);
    CHECK(listxattr((mnt + "/x").c_str(), nullptr, 0) == 0);
    struct statvfs fs {};
    REQUIRE(statvfs(mnt.c_str(), &fs) == 0);
    CHECK(fs.f_blocks > 0);
    CHECK(fs.f_namemax == 255);
  }

  SECTION("as another user") {
    REQUIRE(mkdir((mnt + "/open").c_str(), 0777) == 0);
    REQUIRE(chmod((mnt + "/open").c_str(), 02777) == 0);
    REQUIRE(chown((mnt + "/open").c_str(), 0, 4321) == 0);
    write_file(mnt + "/secret", "secret");
    REQUIRE(chmod((mnt + "/secret").c_str(), 0600) == 0);
    const std::string as_user = "setpriv --reuid 1234 --regid 1234 --clear-groups bash -c ";
    CHECK(run(as_user + "'cat " + mnt + "/secret'").exit_code != 0);
    REQUIRE(
        run(as_user + "'echo mine > " + mnt + "/open/f; mkdir " + mnt + "/open/sub'").exit_code ==
        0);
    CHECK(stat_of(mnt + "/open/f").st_uid == 1234);
    CHECK(stat_of(mnt + "/open/f").st_gid == 4321);  // of the setgid directory
    CHECK((stat_of(mnt + "/open/sub").st_mode & S_ISGID) != 0);
    CHECK(run(as_user + "'rm " + mnt + "/secret'").exit_code != 0);
  }

  SECTION("after a restart of the mount, from its cache") {
    const std::string other = cluster.mount_another(options);
    const std::string bytes = random_bytes(3'000'000, 7);
    write_file(other + "/kept", bytes);
    cluster.umount(other);
    REQUIRE(cluster.mount_with(other, other + ".cache").exit_code == 0);
    CHECK(read_file(other + "/kept") == bytes);
    const RunResult stat = cluster.fermata("cache stat --json " + other);
    CAPTURE(stat.out);
    CHECK(stat.out.find("get_chunk") == std::string::npos);  // nothing was fetched again
  }
}

}  // namespace
}  // namespace fermata::test
