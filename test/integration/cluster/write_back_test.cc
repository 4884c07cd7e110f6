// A write-back that fails: close says so, the bytes stay in the cache, are listed and go later.
#include <fcntl.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <set>
#include <system_error>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

namespace json = boost::json;

constexpr std::size_t kMiB = 1 << 20;

int close_error(Fd& fd) {
  try {
    fd.close();
  } catch (const std::system_error& error) {
    return error.code().value();
  }
  return 0;
}

/// The file's line of `fermata cache ls --json`, by its path; empty if it is not listed.
json::object listed(MiniCluster& cluster, const std::string& mnt, const std::string& path) {
  const RunResult result = cluster.fermata("cache ls --json " + mnt);
  std::error_code error;
  const json::value document = json::parse(result.out, error);
  if (error || !document.is_object()) throw std::runtime_error("no JSON: " + result.out);
  for (const json::value& file : document.as_object().at("files").as_array())
    if (file.as_object().at("path").as_string() == path) return file.as_object();
  return {};
}

bool is_dirty(MiniCluster& cluster, const std::string& mnt, const std::string& path) {
  const json::object file = listed(cluster, mnt, path);
  return !file.empty() && file.at("dirty").as_bool();
}

TEST_CASE(
    "faults: a close that the full nodes refuse fails; the bytes stay and go when there is room",
    "[faults]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options, {"96m", "96m", "96m"}});
  const std::string mnt = cluster.mnt();
  const std::string other = cluster.mount_another();
  REQUIRE(mkdir((mnt + "/d").c_str(), 0755) == 0);
  write_file(mnt + "/d/f", "old");
  std::vector<std::string> fillers;
  while (fillers.size() < 100) {
    const std::string name = other + "/filler" + std::to_string(fillers.size());
    if (write_error(name, random_bytes(4 * kMiB, fillers.size())) != 0) break;
    fillers.push_back(name);
  }
  REQUIRE(fillers.size() < 100);
  const std::string bytes = random_bytes(20 * kMiB, 77);
  {
    Fd fd(mnt + "/d/f", O_WRONLY | O_TRUNC);
    fd.pwrite(bytes, 0);
    CHECK(close_error(fd) == ENOSPC);
  }
  CHECK(is_dirty(cluster, mnt, "d/f"));
  CHECK((read_file(mnt + "/d/f") == bytes));
  CHECK(stat_of(mnt + "/d/f").st_size == static_cast<off_t>(bytes.size()));
  CHECK(read_file(other + "/d/f") == "old");
  const RunResult in_vain = cluster.fermata("cache flush " + mnt);
  CHECK(in_vain.exit_code != 0);
  CHECK(in_vain.out.find("  d/f (inode") != std::string::npos);
  CHECK(in_vain.out.find("No space left on device") != std::string::npos);
  CHECK(is_dirty(cluster, mnt, "d/f"));
  {
    // Nor is it lost with its daemon: the next one has it, under its name.
    cluster.kill_mount(mnt);
    REQUIRE(cluster.mount_with(mnt, cluster.dir() + "/cache", options).exit_code == 0);
    CHECK(eventually(
        [&] { return run("cat " + mnt + ".log").out.find("d/f (inode") != std::string::npos; }));
    CHECK(is_dirty(cluster, mnt, "d/f"));
    CHECK((read_file(mnt + "/d/f") == bytes));
  }
  for (const std::string& name : fillers) REQUIRE(unlink(name.c_str()) == 0);
  SECTION("by fermata cache flush") {
    CHECK(eventually([&] { return cluster.fermata("cache flush " + mnt).exit_code == 0; },
                     std::chrono::seconds(60)));
    CHECK(!is_dirty(cluster, mnt, "d/f"));
  }
  SECTION("by the next close") {
    CHECK(eventually(
        [&] {
          Fd fd(mnt + "/d/f", O_RDWR);
          return close_error(fd) == 0;
        },
        std::chrono::seconds(60)));
    CHECK(eventually([&] { return !is_dirty(cluster, mnt, "d/f"); }));
  }
  CHECK((read_file(other + "/d/f") == bytes));
  CHECK((read_file(mnt + "/d/f") == bytes));
  CHECK(cluster.fermata("umount --flush " + mnt).exit_code == 0);
}

TEST_CASE("faults: a soft mount's close fails without servers; the bytes go when they are back",
          "[faults]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster({3, true, "soft,soft_timeout=2"});
  const std::string mnt = cluster.mnt();
  const std::string bytes = random_bytes(3 * kMiB, 5);
  for (const char* name : {"/small", "/large"}) write_file(mnt + name, "old");
  {
    // Opened before: without servers, and once the leases are over, that fails as well.
    Fd small(mnt + "/small", O_WRONLY);
    Fd large(mnt + "/large", O_WRONLY);
    for (int node = 1; node <= 3; ++node) cluster.kill_node(node);
    small.pwrite("new", 0);
    large.pwrite(bytes, 0);
    CHECK(close_error(small) == ETIMEDOUT);
    CHECK(close_error(large) == ETIMEDOUT);
  }
  CHECK(is_dirty(cluster, mnt, "small"));
  CHECK(is_dirty(cluster, mnt, "large"));
  for (int node = 1; node <= 3; ++node) cluster.restart_node(node);
  CHECK(eventually([&] { return cluster.fermata("cache flush " + mnt).exit_code == 0; }));
  CHECK((read_file(mnt + "/large") == bytes));
  const std::string other = cluster.mount_another();
  CHECK(read_file(other + "/small") == "new");
  CHECK((read_file(other + "/large") == bytes));
  CHECK(!is_dirty(cluster, mnt, "small"));
}

TEST_CASE("cache ls names files by their path, also after renames", "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  REQUIRE(run("cd " + mnt +
              "; mkdir -p a/b; echo 1 > a/b/f; echo 2 > top; echo 3 > left; echo 4 > right")
              .exit_code == 0);
  CHECK(!listed(cluster, mnt, "a/b/f").empty());
  CHECK(!listed(cluster, mnt, "top").empty());
  REQUIRE(run("cd " + mnt + "; mv a/b/f a/g; mv top a/b/top").exit_code == 0);
  CHECK(!listed(cluster, mnt, "a/g").empty());
  CHECK(listed(cluster, mnt, "a/b/f").empty());
  CHECK(!listed(cluster, mnt, "a/b/top").empty());
  REQUIRE(run("cd " + mnt + "; mv a c").exit_code == 0);
  CHECK(!listed(cluster, mnt, "c/b/top").empty());
  const auto left = listed(cluster, mnt, "left").at("inode");
  REQUIRE(renameat2(AT_FDCWD, (mnt + "/left").c_str(), AT_FDCWD, (mnt + "/right").c_str(),
                    RENAME_EXCHANGE) == 0);
  CHECK(listed(cluster, mnt, "right").at("inode") == left);
  const RunResult text = cluster.fermata("cache ls " + mnt);
  CHECK(text.out.find("c/b/top ") != std::string::npos);
  // Fetched by another mount, found in a directory that was only listed; kept over a restart.
  const std::string other = cluster.mount_another();
  REQUIRE(run("cd " + other + "; ls -R . >/dev/null; cat c/g*; cat c/b/*").exit_code == 0);
  CHECK(!listed(cluster, other, "c/g").empty());
  CHECK(!listed(cluster, other, "c/b/top").empty());
  cluster.umount(other);
  REQUIRE(cluster.mount_with(other, other + ".cache").exit_code == 0);
  CHECK(!listed(cluster, other, "c/b/top").empty());
}

TEST_CASE("what is removed leaves the cache", "[smoke]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  const std::string other = cluster.mount_another();
  REQUIRE(run("cd " + mnt +
              "; mkdir d; for i in $(seq 20); do echo $i > d/$i; done; head -c 3000000 /dev/zero > "
              "d/large; echo new > new; echo kept > kept; echo old > old; cat d/* > /dev/null")
              .exit_code == 0);
  REQUIRE(run("cat " + other + "/d/* " + other + "/old > /dev/null").exit_code == 0);
  REQUIRE(run("cd " + mnt + "; rm -r d; mv new old").exit_code == 0);
  const auto names = [&](const std::string& at) {
    std::set<std::string> out;
    const json::value document = json::parse(cluster.fermata("cache ls --json " + at).out);
    for (const json::value& file : document.as_object().at("files").as_array())
      out.emplace(file.as_object().at("path").as_string());
    return out;
  };
  CHECK(eventually([&] { return names(mnt) == std::set<std::string>{"kept", "old"}; }));
  CHECK(eventually([&] { return names(other).empty(); }));
  CHECK(read_file(mnt + "/old") == "new\n");
}

}  // namespace
}  // namespace fermata::test
