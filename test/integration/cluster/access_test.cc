// Access through the mount: who the cluster takes a caller for, and what it lets him do.
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <system_error>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

/// A command as user and group `id`, with these supplementary groups.
RunResult as_user(int id, const std::string& groups, const std::string& command) {
  const std::string numbers = groups.empty() ? "--clear-groups" : "--groups " + groups;
  const std::string user = std::to_string(id);
  return run("setpriv --reuid " + user + " --regid " + user + " " + numbers + " bash -c '" +
             command + "'");
}

void make_dir(const std::string& path, mode_t mode, uid_t uid, gid_t gid) {
  REQUIRE(mkdir(path.c_str(), 0700) == 0);
  REQUIRE(chown(path.c_str(), uid, gid) == 0);
  REQUIRE(chmod(path.c_str(), mode) == 0);
}

TEST_CASE("access: users work with all their groups, and keep what open granted", "[access]") {
  FM_NEEDS_MOUNTS();
  const std::string options = GENERATE(std::string(), std::string("nopassthrough"));
  CAPTURE(options);
  MiniCluster cluster({3, true, options});
  const std::string mnt = cluster.mnt();
  make_dir(mnt + "/team", 0770, 0, 4000);
  // Only a supplementary group lets him in.
  const RunResult work = as_user(1234, "3999,4000,4001",
                                 "cd " + mnt +
                                     "/team && echo one > f && mkdir d && mv f d/g && ln d/g l && "
                                     "chmod 600 l && setfacl -m u:77:r l 2>/dev/null; cat d/g && "
                                     "chgrp 4001 d && rm l && touch -d 2001-01-01 d/g");
  CAPTURE(work.out);
  CHECK(work.exit_code == 0);
  CHECK(stat_of(mnt + "/team/d/g").st_uid == 1234);
  CHECK(stat_of(mnt + "/team/d").st_gid == 4001);
  CHECK(as_user(1234, "3999", "ls " + mnt + "/team").exit_code != 0);
  CHECK(as_user(1234, "4000", "chgrp 4002 " + mnt + "/team/d").exit_code != 0);

  // As git does: made read-only, and written through the descriptor that made it.
  const RunResult object =
      as_user(1234, "4000",
              "cd " + mnt +
                  "/team && umask 0333 && head -c 3000000 /dev/zero > object && "
                  "stat -c %a-%s object");
  CAPTURE(object.out);
  CHECK(object.out.find("444-3000000") != std::string::npos);

  // Opened while it was allowed, closed when it is not any more.
  const std::string log = mnt + "/team/log";
  write_file(log, "old\n");
  REQUIRE(chown(log.c_str(), 0, 4000) == 0);
  REQUIRE(chmod(log.c_str(), 0660) == 0);
  const std::string go = cluster.dir() + "/go", up = cluster.dir() + "/up";
  REQUIRE(chmod(cluster.root().c_str(), 0777) == 0);
  REQUIRE(chmod(cluster.dir().c_str(), 0777) == 0);
  const std::string pid = run("(setpriv --reuid 1234 --regid 1234 --groups 4000 bash -c 'exec 3>>" +
                              log + "; touch " + up + "; while [ ! -e " + go +
                              " ]; do sleep 0.01; done; echo late >&3; exec 3>&-; echo $? > " + up +
                              "' > /dev/null 2>&1 & echo $!)")
                              .out;
  REQUIRE(eventually([&] { return exists(up); }));
  REQUIRE(chmod(log.c_str(), 0600) == 0);
  write_file(go, "");
  CHECK(eventually([&] { return exists(up) && read_file(up) == "0\n"; }));
  const std::string other = cluster.mount_another(options);
  CHECK(read_file(other + "/team/log") == "old\nlate\n");
  CHECK(as_user(1234, "4000", "echo more >> " + log).exit_code != 0);
}

TEST_CASE("access: a squashed root is nobody for the cluster", "[access]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  write_file(mnt + "/secret", "secret");
  REQUIRE(chmod((mnt + "/secret").c_str(), 0600) == 0);
  write_file(mnt + "/public", "public");
  REQUIRE(setxattr((mnt + "/secret").c_str(), "user.a", "1", 1, 0) == 0);
  REQUIRE(setxattr((mnt + "/secret").c_str(), "trusted.a", "1", 1, 0) == 0);
  make_dir(mnt + "/private", 0700, 1234, 1234);
  write_file(mnt + "/private/f", "f");
  make_dir(mnt + "/drop", 01777, 0, 0);
  make_dir(mnt + "/home", 0755, 1234, 1234);
  const std::string root = cluster.mount_another("root_squash,anonuid=5555,anongid=5556");

  CHECK(read_file(root + "/public") == "public");
  CHECK(read_error(root + "/secret") == EACCES);
  CHECK(write_error(root + "/public", "mine") == EACCES);
  CHECK(errno_of(truncate((root + "/public").c_str(), 1)) == EACCES);
  CHECK(errno_of(unlink((root + "/public").c_str())) == EACCES);
  CHECK(errno_of(chmod((root + "/public").c_str(), 0777)) == EPERM);
  CHECK(errno_of(chown((root + "/public").c_str(), 1, 1)) == EPERM);
  CHECK(errno_of(mkdir((root + "/made").c_str(), 0755)) == EACCES);
  CHECK(errno_of(mknod((root + "/drop/device").c_str(), S_IFCHR | 0666, 0x103)) == EPERM);
  CHECK(run("ls " + root + "/private").exit_code != 0);
  CHECK(read_error(root + "/private/f") == EACCES);
  char value[8];
  const auto xattr_error = [&](const std::string& path, const char* name) {
    return errno_of(getxattr(path.c_str(), name, value, sizeof value) < 0 ? -1 : 0);
  };
  CHECK(xattr_error(root + "/secret", "user.a") == EACCES);
  CHECK(xattr_error(root + "/secret", "trusted.a") == ENODATA);
  CHECK(errno_of(setxattr((root + "/public").c_str(), "user.b", "1", 1, 0)) == EACCES);
  // What nobody may do, it does, as nobody.
  write_file(root + "/drop/f", "nobody's");
  CHECK(stat_of(mnt + "/drop/f").st_uid == 5555);
  CHECK(stat_of(mnt + "/drop/f").st_gid == 5556);
  CHECK(read_file(mnt + "/drop/f") == "nobody's");
  // The contents are in the cache now, by somebody's right; root still has none.
  CHECK(as_user(1234, "", "cat " + root + "/private/f").out == "f");
  CHECK(read_error(root + "/private/f") == EACCES);
  // Nothing that was refused has changed anything, nor waits in the cache for a commit.
  CHECK(read_file(mnt + "/public") == "public");
  CHECK(cluster.fermata("cache ls --json " + root).out.find("\"dirty\":true") == std::string::npos);
  // Others are themselves.
  CHECK(as_user(1234, "", "echo x > " + root + "/home/f").exit_code == 0);
  CHECK(stat_of(mnt + "/home/f").st_uid == 1234);

  const std::string all = cluster.mount_another("all_squash");
  CHECK(as_user(1234, "", "cat " + all + "/private/f").exit_code != 0);
  CHECK(as_user(1234, "", "echo x > " + all + "/home/g").exit_code != 0);
  CHECK(as_user(1234, "", "echo x > " + all + "/drop/g").exit_code == 0);
  CHECK(stat_of(mnt + "/drop/g").st_uid == 65534);
}

TEST_CASE("access: mapped ids are others in the cluster", "[access]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  const std::string mnt = cluster.mnt();
  make_dir(mnt + "/home", 0700, 5000, 6000);
  make_dir(mnt + "/drop", 01777, 0, 0);
  const std::string mapped =
      cluster.mount_another("map_uid=1234:5000,map_gid=1234:6000,map_uid=2000:7000:10");
  CHECK(stat_of(mapped + "/home").st_uid == 1234);
  CHECK(stat_of(mapped + "/home").st_gid == 1234);
  const RunResult work =
      as_user(1234, "", "cd " + mapped + "/home && echo x > f && chmod 640 f && stat -c %u:%g f");
  CAPTURE(work.out);
  CHECK(work.out == "1234:1234\n");
  CHECK(stat_of(mnt + "/home/f").st_uid == 5000);
  CHECK(stat_of(mnt + "/home/f").st_gid == 6000);
  REQUIRE(chown((mapped + "/home/f").c_str(), 2003, 1234) == 0);
  CHECK(stat_of(mnt + "/home/f").st_uid == 7003);
  CHECK(as_user(5000, "", "echo x > " + mapped + "/drop/f").exit_code == 0);
  CHECK(stat_of(mnt + "/drop/f").st_uid == 65534);  // 5000 there is 1234 here

  CHECK(cluster.mount_with(cluster.dir() + "/bad", cluster.dir() + "/bad.cache", "map_uid=1:2:x")
            .exit_code == 32);
}

}  // namespace
}  // namespace fermata::test
