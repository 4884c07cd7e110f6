// What a close must have committed, however the file was changed.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <cstring>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

using namespace std::chrono_literals;

TEST_CASE("commit: a file that is not cached here is emptied by open and by truncate", "[commit]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  for (const std::size_t size : {std::size_t{5}, std::size_t{3} << 20}) {
    CAPTURE(size);
    write_file(a + "/opened", random_bytes(size, 1));
    write_file(a + "/cut", random_bytes(size, 2));
    write_file(a + "/shortened", random_bytes(size, 3));
    Fd(b + "/opened", O_WRONLY | O_TRUNC).close();
    REQUIRE(truncate((b + "/cut").c_str(), 0) == 0);
    REQUIRE(truncate((b + "/shortened").c_str(), 3) == 0);
    for (const std::string& mnt : {a, b}) {
      CHECK(read_file(mnt + "/opened").empty());
      CHECK(read_file(mnt + "/cut").empty());
      CHECK(read_file(mnt + "/shortened") == random_bytes(size, 3).substr(0, 3));
    }
  }
  CHECK(cluster.digests_equal());
}

TEST_CASE("commit: opening for writing without writing changes nothing", "[commit]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  write_file(a + "/f", random_bytes(200'000, 1));
  const timespec then[2] = {{1'000'000'000, 5}, {1'000'000'000, 7}};
  REQUIRE(utimensat(AT_FDCWD, (a + "/f").c_str(), then, 0) == 0);
  for (int round = 0; round < 2; ++round) {
    Fd fd(b + "/f", O_RDWR);
    CHECK(fd.pread(3, 0).size() == 3);
    struct stat open_stat {};
    REQUIRE(fstat(fd.get(), &open_stat) == 0);
    CHECK(open_stat.st_mtim.tv_nsec == 7);
    fd.close();
    CHECK(stat_of(b + "/f").st_mtim.tv_sec == 1'000'000'000);
    CHECK(stat_of(a + "/f").st_mtim.tv_nsec == 7);
  }
  // A mount that is stopped while somebody reads does not touch what is read.
  {
    const Fd reader(b + "/f", O_RDONLY);
    CHECK(cluster.fermata("cache flush " + b).exit_code == 0);
    CHECK(stat_of(a + "/f").st_mtim.tv_nsec == 7);
  }
}

class Mapping {
 public:
  Mapping(const Fd& fd, std::size_t size)
      : size_(size),
        bytes_(static_cast<char*>(
            mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0))) {
    if (bytes_ == MAP_FAILED) throw std::runtime_error("mmap failed");
  }
  ~Mapping() { unmap(); }
  char& operator[](std::size_t at) { return bytes_[at]; }
  void unmap() {
    if (bytes_ != nullptr) munmap(bytes_, size_);
    bytes_ = nullptr;
  }

 private:
  std::size_t size_;
  char* bytes_;
};

TEST_CASE("commit: a store through a mapping after an fsync is the next close's", "[commit]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another(options);
  constexpr std::size_t kSize = 1 << 20;
  for (int round = 0; round < 10; ++round) {
    const std::string name = "/f" + std::to_string(round);
    Fd fd(a + name, O_RDWR | O_CREAT);
    fd.pwrite(std::string(kSize, 'a'), 0);
    Mapping map(fd, kSize);
    map[1000] = 'b';
    REQUIRE(fsync(fd.get()) == 0);
    CHECK(read_file(b + name)[1000] == 'b');
    map[1000] = 'c';
    REQUIRE(msync(&map[0], kSize, MS_SYNC) == 0);
    fd.close();
    CHECK(read_file(b + name)[1000] == 'c');
  }
}

TEST_CASE("commit: what a mapping stored after the close is committed when it goes", "[commit]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  constexpr std::size_t kSize = 200'000;
  write_file(a + "/f", std::string(kSize, 'a'));
  for (int round = 0; round < 100; ++round) {
    CAPTURE(round);
    const char mark = static_cast<char>('A' + round % 26);
    Fd fd(a + "/f", O_RDWR);
    Mapping map(fd, kSize);
    fd.close();
    map[100'000] = mark;
    map.unmap();
    REQUIRE(eventually([&] { return read_file(b + "/f")[100'000] == mark; }, 20s));
  }
}

TEST_CASE("commit: a file unlinked elsewhere while open here goes with its last close",
          "[commit]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  const auto inodes = [&] {
    struct statvfs st {};
    return statvfs(a.c_str(), &st) == 0 ? st.f_files - st.f_ffree : 0;
  };
  write_file(a + "/keeps", "x");
  write_file(a + "/f", "content");
  std::uint64_t before = 0;
  REQUIRE(eventually([&] { return (before = inodes()) >= 3; }, 20s));
  {
    const Fd reader(a + "/f", O_RDONLY);
    REQUIRE(unlink((b + "/f").c_str()) == 0);
    CHECK(reader.pread(7, 0) == "content");
    CHECK_FALSE(exists(a + "/f"));
  }
  CHECK(eventually([&] { return inodes() == before - 1; }, 20s));
}

TEST_CASE("commit: O_CREAT on what another user made meanwhile checks its mode", "[commit]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  REQUIRE(mkdir((a + "/open").c_str(), 0777) == 0);
  REQUIRE(chmod((a + "/open").c_str(), 0777) == 0);
  int denied = 0;
  for (int round = 0; round < 40; ++round) {
    const std::string name = "/open/f" + std::to_string(round);
    CHECK_FALSE(exists(b + name));  // so that the kernel believes so
    { Fd(a + name, O_WRONLY | O_CREAT | O_EXCL, 0600).pwrite("secret", 0); }
    REQUIRE(seteuid(12345) == 0);
    const int fd = ::open((b + name).c_str(), O_RDWR | O_CREAT | O_TRUNC, 0644);
    const int error = errno;
    REQUIRE(seteuid(0) == 0);
    if (fd >= 0) close(fd);
    denied += fd < 0 && error == EACCES ? 1 : 0;
    CHECK(read_file(a + name) == "secret");
  }
  CHECK(denied == 40);
}

}  // namespace
}  // namespace fermata::test
