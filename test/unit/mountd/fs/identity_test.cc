// Who a local caller is for the cluster.
#include "mountd/fs/identity.h"

#include <unistd.h>

#include <catch2/catch_test_macros.hpp>

#include "common/access/acl.h"
#include "mountd/fs/options.h"
#include "mountd/fuse/caller.h"

using namespace fermata;
using namespace fermata::mountd;

namespace {

MountdOptions options(const std::string& text) {
  MountdOptions out;
  CHECK(apply_mount_options(out, text).empty());
  return out;
}
std::string wrong(const std::string& text) {
  MountdOptions out;
  return apply_mount_options(out, text);
}

TEST_CASE("identity: nobody is squashed unless it is asked for") {
  const Identity plain = options("").identity;
  CHECK(plain.in_cluster(0, 0, {}) == Credentials{0, 0, {}});
  CHECK(plain.in_cluster(7, 8, {0, 9}) == Credentials{7, 8, {0, 9}});
  CHECK(!plain.squashes(0));

  const Identity root = options("root_squash").identity;
  CHECK(root.squashes(0));
  CHECK(!root.squashes(7));
  CHECK(root.in_cluster(0, 0, {}) == Credentials{65534, 65534, {}});
  CHECK(root.in_cluster(7, 0, {0, 9}) == Credentials{7, 65534, {65534, 9}});

  const Identity all = options("all_squash,anonuid=5000,anongid=6000").identity;
  CHECK(all.squashes(7));
  CHECK(all.in_cluster(7, 8, {9}) == Credentials{5000, 6000, {}});
  CHECK(!options("root_squash,no_root_squash").identity.squashes(0));
}

TEST_CASE("identity: mapped ids go both ways, and none stands for two") {
  const Identity map = options("map_uid=1000:5000:10,map_uid=3:4,map_gid=100:200").identity;
  CHECK(map.maps());
  CHECK(map.cluster_uid(1009) == 5009);
  CHECK(map.cluster_uid(1010) == 1010);
  CHECK(map.local_uid(5000) == 1000);
  CHECK(map.cluster_uid(3) == 4);
  // 5000 here is nobody the cluster knows: its number there is 1000's here.
  CHECK(map.cluster_uid(5000) == 65534);
  CHECK(map.local_uid(1000) == 65534);
  CHECK(map.in_cluster(1001, 100, {100, 7}) == Credentials{5001, 200, {200, 7}});
  CHECK(map.local_gid(200) == 100);

  using Tag = AclEntry::Tag;
  const std::string here = encode_acl({{Tag::kOwner, 6, 0},
                                       {Tag::kUser, 6, 1001},
                                       {Tag::kGroup, 4, 0},
                                       {Tag::kNamedGroup, 4, 100},
                                       {Tag::kMask, 6, 0},
                                       {Tag::kOther, 0, 0}});
  const auto there = parse_acl(map.acl_to_cluster(here));
  REQUIRE(there.has_value());
  CHECK((*there)[1].id == 5001);
  CHECK((*there)[3].id == 200);
  CHECK(map.acl_to_local(encode_acl(*there)) == here);
  CHECK(map.acl_to_cluster("nonsense") == "nonsense");
}

TEST_CASE("identity: options that cannot be meant are refused") {
  for (const char* text :
       {"map_uid=1", "map_uid=1:", "map_uid=a:b", "map_uid=1:2:0", "map_uid=1:2:3:4",
        "map_uid=1:2x", "map_uid=4294967290:1:10", "map_uid=-1:2", "map_uid=1:2,map_uid=1:3",
        "map_uid=1:2,map_uid=3:2", "map_gid=1:10:5,map_gid=5:20", "anonuid=", "anonuid=x",
        "anonuid=4294967295", "root_squash=1"}) {
    CAPTURE(text);
    CHECK(!wrong(text).empty());
  }
}

TEST_CASE("identity: a caller's supplementary groups") {
  std::vector<gid_t> mine(static_cast<std::size_t>(::getgroups(0, nullptr)));
  if (!mine.empty()) REQUIRE(::getgroups(static_cast<int>(mine.size()), mine.data()) >= 0);
  const auto seen = groups_of(::getpid());
  CHECK(std::vector<gid_t>(seen.begin(), seen.end()) == mine);
  CHECK(groups_of(0).empty());
}

}  // namespace
