// Large files and large directories.
#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <future>
#include <set>
#include <thread>
#include <vector>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

TEST_CASE("a 2 GiB file goes in and out with equal SHA-256", "[big]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const RunResult in =
      run("openssl enc -aes-128-ctr -pass pass:fermata -nosalt -pbkdf2 < /dev/zero 2>/dev/null | "
          "head -c 2G | tee " +
              a + "/big | sha256sum; exit 0",
          std::chrono::seconds(600));
  CAPTURE(in.out);
  REQUIRE(stat_of(a + "/big").st_size == 2LL << 30);
  const std::string b = cluster.mount_another();
  const RunResult out = run("sha256sum < " + b + "/big", std::chrono::seconds(600));
  CHECK(out.out == in.out);
}

TEST_CASE("sparse files stay sparse on another mount", "[big]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  {
    Fd fd(a + "/sparse", O_RDWR | O_CREAT);
    REQUIRE(ftruncate(fd.get(), 100LL << 30) == 0);
    fd.pwrite("in the middle", 50LL << 30);
    fd.close();
  }
  const std::string b = cluster.mount_another();
  CHECK(stat_of(b + "/sparse").st_size == 100LL << 30);
  CHECK(stat_of(b + "/sparse").st_blocks < 20'000);
  const Fd fd(b + "/sparse", O_RDONLY);
  CHECK(fd.pread(13, 50LL << 30) == "in the middle");
  CHECK(fd.pread(4, 0) == std::string(4, '\0'));
}

std::set<std::string> names_in(const std::string& path, bool& duplicate) {
  std::set<std::string> names;
  DIR* dir = opendir(path.c_str());
  REQUIRE(dir != nullptr);
  while (const dirent* entry = readdir(dir)) duplicate |= !names.insert(entry->d_name).second;
  closedir(dir);
  return names;
}

TEST_CASE("20,000 files in a directory list correctly from two mounts while others come and go",
          "[big]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  REQUIRE(mkdir((a + "/many").c_str(), 0755) == 0);
  constexpr int kFiles = 20'000;
  constexpr int kMakers = 4;  // so that they share rounds of the log
  const auto make = [&](int maker) {
    const std::string many = (maker % 2 == 0 ? a : b) + "/many";
    for (int i = maker; i < kFiles; i += kMakers) {
      const std::string path = many + "/file" + std::to_string(i);
      const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
      if (fd < 0 || ::close(fd) != 0) return errno;
    }
    return 0;
  };
  std::vector<std::future<int>> makers;
  for (int maker = 0; maker < kMakers; ++maker)
    makers.push_back(std::async(std::launch::async, make, maker));
  for (auto& maker : makers) REQUIRE(maker.get() == 0);
  std::atomic<bool> done{false};
  std::atomic<int> changes{0};
  std::string failure;
  std::thread churn([&] {
    try {
      for (int i = 0; !done; ++i) {
        const std::string name = a + "/many/temp" + std::to_string(i % 50);
        if (exists(name)) {
          if (unlink(name.c_str()) != 0) throw std::runtime_error("unlink failed");
        } else {
          Fd(name, O_WRONLY | O_CREAT).close();
        }
        ++changes;
      }
    } catch (const std::exception& e) {
      failure = e.what();
    }
  });
  for (int round = 0; round < 6; ++round) {
    for (const std::string& mnt : {a, b}) {
      bool duplicate = false;
      const std::set<std::string> names = names_in(mnt + "/many", duplicate);
      CHECK(!duplicate);
      int missing = 0;
      for (int i = 0; i < kFiles; ++i)
        missing += names.count("file" + std::to_string(i)) == 0 ? 1 : 0;
      CHECK(missing == 0);
      for (const std::string& name : names)
        if (name.rfind("file", 0) != 0 && name.rfind("temp", 0) != 0 && name != "." && name != "..")
          FAIL(name);
    }
  }
  done = true;
  churn.join();
  CHECK(failure.empty());
  CHECK(changes > 20);
  bool duplicate = false;
  CHECK(names_in(a + "/many", duplicate) == names_in(b + "/many", duplicate));
}

}  // namespace
}  // namespace fermata::test
