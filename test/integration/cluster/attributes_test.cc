// What belongs to a file beside its bytes, over several mounts and a failover: access control
// lists.
#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

constexpr uid_t kAlice = 61001;

/// What open(2) of `path` for reading ends with for another user: 0 or its errno.
int open_as(uid_t uid, const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgroups(0, nullptr) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0) ::_exit(255);
    ::_exit(::open(path.c_str(), O_RDONLY) >= 0 ? 0 : errno);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

TEST_CASE("two mounts: an access control list set on one is obeyed by the other at once",
          "[attributes]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string a = cluster.mnt();
  const std::string b = cluster.mount_another();
  REQUIRE(::mkdir((a + "/d").c_str(), 0755) == 0);
  write_file(a + "/d/f", "content");
  REQUIRE(::chmod((a + "/d/f").c_str(), 0600) == 0);
  const std::string user = "u:" + std::to_string(kAlice);
  for (int i = 0; i < 50; ++i) {
    CAPTURE(i);
    const std::string& here = i % 2 == 0 ? a : b;
    const std::string& there = i % 2 == 0 ? b : a;
    REQUIRE(open_as(kAlice, there + "/d/f") == EACCES);  // there the kernel keeps the old one
    REQUIRE(run("setfacl -m " + user + ":r " + here + "/d/f").exit_code == 0);
    REQUIRE(open_as(kAlice, there + "/d/f") == 0);
    const RunResult shown = run("getfacl -cnp " + there + "/d/f");
    CAPTURE(shown.out);
    REQUIRE(shown.out.find("user:" + std::to_string(kAlice) + ":r--") != std::string::npos);
    // chmod changes the mask, so it takes away what the list gives.
    REQUIRE(::chmod((here + "/d/f").c_str(), 0600) == 0);
    REQUIRE(open_as(kAlice, there + "/d/f") == EACCES);
    REQUIRE(run("setfacl -b " + here + "/d/f").exit_code == 0);
  }
  REQUIRE(run("setfacl -d -m " + user + ":rwx " + a + "/d").exit_code == 0);
  write_file(b + "/d/inherits", "content");
  CHECK(open_as(kAlice, a + "/d/inherits") == 0);
  CHECK(cluster.digests_equal());
}

}  // namespace fermata::test
