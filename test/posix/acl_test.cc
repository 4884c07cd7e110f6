// POSIX ACLs, as setfacl and getfacl use them: the xattrs system.posix_acl_access and
// system.posix_acl_default (acl(5); the draft IEEE 1003.1e 17).
#include <linux/posix_acl_xattr.h>
#include <sys/xattr.h>

#include <cstring>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

constexpr const char* kAccess = "system.posix_acl_access";
constexpr const char* kDefault = "system.posix_acl_default";

constexpr std::uint16_t kUserObj = 0x01, kUser = 0x02, kGroupObj = 0x04, kGroup = 0x08,
                        kMask = 0x10, kOther = 0x20;

struct Entry {
  std::uint16_t tag;
  std::uint16_t perm;
  std::uint32_t id = 0xffffffff;
  bool operator==(const Entry&) const = default;
};
using Acl = std::vector<Entry>;

std::string packed(const Acl& acl) {
  std::string bytes(4 + acl.size() * 8, '\0');
  const std::uint32_t version = POSIX_ACL_XATTR_VERSION;
  std::memcpy(bytes.data(), &version, 4);
  for (std::size_t i = 0; i < acl.size(); ++i) {
    std::memcpy(bytes.data() + 4 + i * 8, &acl[i].tag, 2);
    std::memcpy(bytes.data() + 6 + i * 8, &acl[i].perm, 2);
    std::memcpy(bytes.data() + 8 + i * 8, &acl[i].id, 4);
  }
  return bytes;
}

int set(const char* path, const char* name, const Acl& acl) {
  const std::string bytes = packed(acl);
  return ::setxattr(path, name, bytes.data(), bytes.size(), 0);
}

/// Empty if the file has none.
Acl get(const char* path, const char* name) {
  char bytes[1024];
  const ssize_t size = ::getxattr(path, name, bytes, sizeof bytes);
  if (size < 0 && errno == ENODATA) return {};
  OK(size);
  Acl acl;
  for (ssize_t at = 4; at + 8 <= size; at += 8) {
    Entry entry{};
    std::memcpy(&entry.tag, bytes + at, 2);
    std::memcpy(&entry.perm, bytes + at + 2, 2);
    std::memcpy(&entry.id, bytes + at + 4, 4);
    acl.push_back(entry);
  }
  return acl;
}

/// user::rw-, user:alice:<perm>, group::r--, mask::<mask>, other::---
Acl for_alice(std::uint16_t perm, std::uint16_t mask = 6) {
  return {{kUserObj, 6}, {kUser, perm, kAlice.uid}, {kGroupObj, 4}, {kMask, mask}, {kOther, 0}};
}

Errno opens(const User& user, const char* path, int flags) {
  return as(user, [path, flags] { return ::open(path, flags); });
}

TEST_CASE("acl: a named user gets what his entry says") {
  NEEDS_ROOT();
  make_file("f", "x", 0600);
  OK(set("f", kAccess, for_alice(6)));
  CHECK(get("f", kAccess) == for_alice(6));
  CHECK(opens(kAlice, "f", O_RDWR) == Errno{});
  CHECK(opens(kBob, "f", O_RDONLY) == Errno{EACCES});
  OK(set("f", kAccess, for_alice(4)));
  CHECK(opens(kAlice, "f", O_RDONLY) == Errno{});
  CHECK(opens(kAlice, "f", O_RDWR) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::access("f", W_OK); }) == Errno{EACCES});
}

TEST_CASE("acl: a named group gets what its entry says, also through supplementary groups") {
  NEEDS_ROOT();
  make_file("f", "x", 0600);
  OK(set("f", kAccess,
         {{kUserObj, 6}, {kGroupObj, 0}, {kGroup, 6, kAlice.gid}, {kMask, 6}, {kOther, 0}}));
  CHECK(opens(kAlice, "f", O_RDWR) == Errno{});
  CHECK(opens(kCarol, "f", O_RDWR) == Errno{});
  CHECK(opens(kBob, "f", O_RDONLY) == Errno{EACCES});
}

TEST_CASE("acl: the mask bounds users, groups and the owning group, not the owner and others") {
  NEEDS_ROOT();
  make_file("f", "x", 0600);
  OK(::chown("f", kBob.uid, kCarol.gid));
  OK(set("f", kAccess,
         {{kUserObj, 6}, {kUser, 6, kAlice.uid}, {kGroupObj, 6}, {kMask, 4}, {kOther, 6}}));
  CHECK(opens(kBob, "f", O_RDWR) == Errno{});
  CHECK(opens(kAlice, "f", O_RDONLY) == Errno{});
  CHECK(opens(kAlice, "f", O_RDWR) == Errno{EACCES});
  CHECK(opens(User{61009, kCarol.gid, {}}, "f", O_RDWR) == Errno{EACCES});
  CHECK(opens(User{61009, 62009, {}}, "f", O_RDWR) == Errno{});
}

TEST_CASE("acl: the group bits of the mode are the mask, and chmod changes it") {
  NEEDS_ROOT();
  make_file("f", "x", 0600);
  OK(set("f", kAccess, for_alice(6, 6)));
  CHECK(mode_of("f") == 0660);
  OK(::chmod("f", 0640));
  CHECK(get("f", kAccess) == for_alice(6, 4));
  CHECK(opens(kAlice, "f", O_RDWR) == Errno{EACCES});
  OK(::chmod("f", 0664));
  Acl expected = for_alice(6, 6);
  expected.back().perm = 4;
  CHECK(get("f", kAccess) == expected);
  CHECK(opens(kAlice, "f", O_RDWR) == Errno{});
  OK(::chmod("f", 04751));
  CHECK(mode_of("f") == 04751);
  CHECK(get("f", kAccess) ==
        Acl{{kUserObj, 7}, {kUser, 6, kAlice.uid}, {kGroupObj, 4}, {kMask, 5}, {kOther, 1}});
}

TEST_CASE("acl: one that says no more than a mode becomes the mode") {
  make_file("f", "x", 0600);
  OK(set("f", kAccess, {{kUserObj, 7}, {kGroupObj, 5}, {kOther, 1}}));
  CHECK(mode_of("f") == 0751);
  CHECK(get("f", kAccess).empty());
  CHECK(::listxattr("f", nullptr, 0) == 0);
}

TEST_CASE("acl: setting one moves the mode, and keeps setuid and sticky") {
  NEEDS_ROOT();
  make_file("f", "x");
  OK(::chmod("f", 05644));
  OK(set("f", kAccess, for_alice(7, 7)));
  CHECK(mode_of("f") == 05670);
}

TEST_CASE("acl: removing it leaves the mode") {
  NEEDS_ROOT();
  make_file("f", "x", 0600);
  OK(set("f", kAccess, for_alice(6, 6)));
  OK(::removexattr("f", kAccess));
  CHECK(get("f", kAccess).empty());
  CHECK(opens(kAlice, "f", O_RDONLY) == Errno{EACCES});
  CHECK(mode_of("f") == 0660);
}

TEST_CASE("acl: is listed, and survives rename, link and new content") {
  make_file("f", "x", 0600);
  OK(set("f", kAccess, for_alice(6)));
  char names[256];
  CHECK(OK(::listxattr("f", names, sizeof names)) == 24);
  CHECK(std::string(names) == kAccess);
  OK(::link("f", "g"));
  OK(::rename("f", "h"));
  make_file("g", "new", 0660);
  CHECK(get("h", kAccess) == for_alice(6));
}

Acl default_acl() { return for_alice(6, 7); }

TEST_CASE("acl: a default ACL is a directory's, and gives nobody access to it") {
  NEEDS_ROOT();
  make_file("f");
  make_dir("d", 0700);
  FAILS(EACCES, set("f", kDefault, default_acl()));
  OK(set("d", kDefault, default_acl()));
  CHECK(get("d", kDefault) == default_acl());
  CHECK(get("d", kAccess).empty());
  CHECK(mode_of("d") == 0700);
  CHECK(opens(kAlice, "d", O_RDONLY) == Errno{EACCES});
  OK(::removexattr("d", kDefault));
  CHECK(get("d", kDefault).empty());
}

TEST_CASE("acl: a new file inherits the default ACL, bounded by its mode, the umask set aside") {
  make_dir("d");
  OK(set("d", kDefault, default_acl()));
  ::umask(077);
  OK(::close(OK(::open("d/f", O_CREAT | O_WRONLY, 0644))));
  CHECK(mode_of("d/f") == 0640);
  CHECK(get("d/f", kAccess) == for_alice(6, 4));
  CHECK(get("d/f", kDefault).empty());
  OK(::mkfifo("d/p", 0666));
  CHECK(mode_of("d/p") == 0660);
  OK(::mknod("d/n", S_IFREG | 0600, 0));
  CHECK(mode_of("d/n") == 0600);
  CHECK(get("d/n", kAccess) == for_alice(6, 0));
}

TEST_CASE("acl: a new directory inherits it as its own, and as its default") {
  make_dir("d");
  OK(set("d", kDefault, default_acl()));
  ::umask(077);
  OK(::mkdir("d/e", 0755));
  CHECK(mode_of("d/e") == 0650);
  CHECK(get("d/e", kAccess) == for_alice(6, 5));
  CHECK(get("d/e", kDefault) == default_acl());
  OK(::mkdir("d/e/deeper", 0777));
  CHECK(get("d/e/deeper", kDefault) == default_acl());
}

TEST_CASE("acl: a default ACL that says no more than a mode takes the umask's place") {
  make_dir("d");
  OK(set("d", kDefault, {{kUserObj, 7}, {kGroupObj, 7}, {kOther, 0}}));
  ::umask(077);
  OK(::close(OK(::open("d/f", O_CREAT | O_WRONLY, 0666))));
  CHECK(mode_of("d/f") == 0660);
  CHECK(get("d/f", kAccess).empty());
}

TEST_CASE("acl: symlinks inherit nothing, and have none") {
  NEEDS_ROOT();
  make_dir("d");
  OK(set("d", kDefault, default_acl()));
  OK(::symlink("x", "d/l"));
  CHECK(mode_of("d/l") == 0777);
  const std::string bytes = packed(for_alice(6));
  FAILS(EOPNOTSUPP, ::lsetxattr("d/l", kAccess, bytes.data(), bytes.size(), 0));
}

TEST_CASE("acl: what is renamed or linked into a directory inherits nothing") {
  make_dir("d");
  OK(set("d", kDefault, default_acl()));
  make_file("f", {}, 0640);
  OK(::link("f", "d/g"));
  OK(::rename("f", "d/f"));
  CHECK(get("d/f", kAccess).empty());
  CHECK(mode_of("d/f") == 0640);
}

TEST_CASE("acl: without a default ACL the umask applies as always") {
  make_dir("d");
  OK(set("d", kAccess, for_alice(7, 7)));
  ::umask(027);
  OK(::close(OK(::open("d/f", O_CREAT | O_WRONLY, 0666))));
  CHECK(mode_of("d/f") == 0640);
  CHECK(get("d/f", kAccess).empty());
}

TEST_CASE("acl: directories are searched and written by it") {
  NEEDS_ROOT();
  make_dir("d", 0700);
  make_file("d/f", "x", 0666);
  OK(set("d", kAccess,
         {{kUserObj, 7}, {kUser, 5, kAlice.uid}, {kGroupObj, 0}, {kMask, 7}, {kOther, 0}}));
  CHECK(opens(kAlice, "d/f", O_RDWR) == Errno{});
  CHECK(opens(kBob, "d/f", O_RDWR) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::unlink("d/f"); }) == Errno{EACCES});
  OK(set("d", kAccess,
         {{kUserObj, 7}, {kUser, 7, kAlice.uid}, {kGroupObj, 0}, {kMask, 7}, {kOther, 0}}));
  CHECK(as(kAlice, [] { return ::unlink("d/f"); }) == Errno{});
}

TEST_CASE("acl: is the owner's and root's to set, everybody's to read") {
  NEEDS_ROOT();
  make_file("f", "x", 0666);
  OK(::chown("f", kAlice.uid, kAlice.gid));
  CHECK(as(kBob, [] { return set("f", kAccess, for_alice(6)); }) == Errno{EPERM});
  CHECK(as(kAlice, [] { return set("f", kAccess, for_alice(6)); }) == Errno{});
  OK(::chmod("f", 0600));
  CHECK(as(kBob, [] { return ::getxattr("f", kAccess, nullptr, 0); }) == Errno{});
  CHECK(as(kBob, [] { return ::removexattr("f", kAccess); }) == Errno{EPERM});
}

TEST_CASE("acl: what is no valid ACL is EINVAL") {
  make_file("f", "x", 0600);
  const Acl bad[] = {
      {{kUserObj, 6}, {kGroupObj, 4}},                                       // others missing
      {{kUserObj, 6}, {kUser, 6, kAlice.uid}, {kGroupObj, 4}, {kOther, 0}},  // mask missing
      {{kUserObj, 6}, {kUserObj, 6}, {kGroupObj, 4}, {kOther, 0}},           // twice
      {{kGroupObj, 4}, {kUserObj, 6}, {kOther, 0}},                          // out of order
      {{kUserObj, 9}, {kGroupObj, 4}, {kOther, 0}},                          // unknown permission
      {{kUserObj, 6}, {kGroupObj, 4}, {kOther, 0}, {0x40, 0}},               // unknown tag
  };
  int number = 0;
  for (const Acl& acl : bad) {
    CAPTURE(number++);
    FAILS(EINVAL, set("f", kAccess, acl));
  }
  FAILS(EINVAL, ::setxattr("f", kAccess, packed(for_alice(6)).data(), 11, 0));  // half an entry
  std::string version = packed(for_alice(6));
  version[0] = 1;
  const Errno wrong = outcome(::setxattr("f", kAccess, version.data(), version.size(), 0));
  CHECK((wrong == Errno{EOPNOTSUPP} || wrong == Errno{EINVAL}));
  CHECK(mode_of("f") == 0600);
}

TEST_CASE("acl: setting it as an owner outside the group clears setgid") {
  NEEDS_ROOT();
  make_file("f", "x");
  OK(::chown("f", kAlice.uid, kBob.gid));
  OK(::chmod("f", 02755));
  CHECK(as(kAlice, [] { return set("f", kAccess, for_alice(7, 7)); }) == Errno{});
  CHECK((mode_of("f") & S_ISGID) == 0);
}

}  // namespace
}  // namespace fermata::posix
