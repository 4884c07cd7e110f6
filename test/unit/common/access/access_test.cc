// The rules of access, beside the kernel's own answers about files on the local disk.
#include "common/access/access.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <random>

using namespace fermata;
using Tag = AclEntry::Tag;

namespace {

constexpr std::uint32_t kIds[] = {1001, 1002, 1003, 2001, 2002, 2003};

struct Case {
  std::string path;
  Permissions permissions;
};

class Files {
 public:
  Files() {
    char name[] = "/tmp/fermata-access.XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    dir = name;
    ::chmod(name, 0755);
  }
  ~Files() { std::filesystem::remove_all(dir); }
  std::string dir;
};

std::uint32_t pick(std::mt19937& random, std::size_t from, std::size_t count) {
  return kIds[from + random() % count];
}

Acl random_acl(std::mt19937& random) {
  const auto bits = [&] { return static_cast<std::uint16_t>(random() % 8); };
  Acl acl{{Tag::kOwner, bits(), 0}};
  for (std::size_t i = 0; i < 3; ++i)
    if (random() % 2 == 0) acl.push_back({Tag::kUser, bits(), kIds[i]});
  acl.push_back({Tag::kGroup, bits(), 0});
  for (std::size_t i = 3; i < 6; ++i)
    if (random() % 2 == 0) acl.push_back({Tag::kNamedGroup, bits(), kIds[i]});
  acl.push_back({Tag::kMask, bits(), 0});
  acl.push_back({Tag::kOther, bits(), 0});
  return acl;
}

/// What the kernel grants `who` of each case: bits of 4, 2, 1, asked one by one and all at once
/// (bit 8). Empty if this process may not become somebody else.
std::vector<int> kernel_says(const Credentials& who, const std::vector<Case>& cases) {
  int ends[2];
  if (::pipe(ends) != 0) return {};
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<gid_t> groups(who.groups.begin(), who.groups.end());
    if (::setgroups(groups.size(), groups.data()) != 0 ||
        ::setresgid(who.gid, who.gid, who.gid) != 0 || ::setresuid(who.uid, who.uid, who.uid) != 0)
      ::_exit(1);
    for (const Case& each : cases) {
      unsigned char granted = 0;
      for (const int right : {4, 2, 1})
        if (::faccessat(AT_FDCWD, each.path.c_str(), right, AT_EACCESS) == 0)
          granted = static_cast<unsigned char>(granted | right);
      if (::faccessat(AT_FDCWD, each.path.c_str(), R_OK | W_OK, AT_EACCESS) == 0) granted |= 8;
      if (::write(ends[1], &granted, 1) != 1) ::_exit(1);
    }
    ::_exit(0);
  }
  ::close(ends[1]);
  std::vector<int> answers;
  for (unsigned char granted = 0; ::read(ends[0], &granted, 1) == 1;) answers.push_back(granted);
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  return status == 0 ? answers : std::vector<int>();
}

TEST_CASE("access: what mode bits and ACLs grant is what the kernel grants") {
  if (::geteuid() != 0) SKIP("only root can become others");
  Files files;
  std::mt19937 random(7);
  std::vector<Case> cases;
  bool acls = true;
  for (int i = 0; i < 400; ++i) {
    Case made;
    made.path = files.dir + "/" + std::to_string(i);
    Permissions& p = made.permissions;
    const bool directory = random() % 4 == 0;
    p.type = directory ? FileType::kDirectory : FileType::kRegular;
    p.uid = pick(random, 0, 3);
    p.gid = pick(random, 3, 3);
    p.mode = random() % 01000;
    if (directory) {
      REQUIRE(::mkdir(made.path.c_str(), 0700) == 0);
    } else {
      ::close(::open(made.path.c_str(), O_CREAT | O_WRONLY, 0600));
    }
    REQUIRE(::chown(made.path.c_str(), p.uid, p.gid) == 0);
    REQUIRE(::chmod(made.path.c_str(), p.mode) == 0);
    if (acls && i % 2 == 0) {
      Acl acl = random_acl(random);
      const std::string bytes = encode_acl(acl);
      const std::string name(kAclAccess);
      acls = ::setxattr(made.path.c_str(), name.c_str(), bytes.data(), bytes.size(), 0) == 0;
      if (acls) {
        p.mode = mode_of(acl);
        p.acl = std::move(acl);
      }
    }
    cases.push_back(std::move(made));
  }
  for (int i = 0; i < 60; ++i) {
    Credentials who;
    who.uid = i % 12 == 0 ? 0 : i % 7 == 0 ? 9999 : pick(random, 0, 3);
    who.gid = i % 5 == 0 ? 9999 : pick(random, 3, 3);
    for (std::size_t g = 3; g < 6; ++g)
      if (random() % 3 == 0) who.groups.push_back(kIds[g]);
    const auto answers = kernel_says(who, cases);
    REQUIRE(answers.size() == cases.size());
    for (std::size_t at = 0; at < cases.size(); ++at) {
      const Permissions& p = cases[at].permissions;
      int ours = 0;
      for (const std::uint32_t right : {kMayRead, kMayWrite, kMayExecute})
        if (may(who, p, right)) ours |= static_cast<int>(right);
      if (may(who, p, kMayRead | kMayWrite)) ours |= 8;
      CAPTURE(who.uid, who.gid, who.groups, p.uid, p.gid, p.mode, p.acl.has_value());
      REQUIRE(ours == answers[at]);
    }
  }
  if (!acls) WARN("the local disk has no ACLs: only modes were compared");
}

TEST_CASE("access: in a sticky directory only owners remove") {
  const Credentials alice{1001, 2001, {}};
  CHECK(!sticky_forbids(alice, 0777, 0, 1002));
  CHECK(sticky_forbids(alice, 01777, 0, 1002));
  CHECK(!sticky_forbids(alice, 01777, 0, 1001));
  CHECK(!sticky_forbids(alice, 01777, 1001, 1002));
  CHECK(!sticky_forbids({}, 01777, 1001, 1002));
}

}  // namespace
