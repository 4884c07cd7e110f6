// setxattr(2), getxattr(2), listxattr(2), removexattr(2): user, trusted and security. ACLs are in
// acl_test.cc. Sizes stay within what ext4 keeps in one block; larger ones are its own limit.
#include <sys/xattr.h>

#include <algorithm>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

int set(const char* path, const char* name, const std::string& value, int flags = 0) {
  return ::setxattr(path, name, value.data(), value.size(), flags);
}
std::string get(const char* path, const char* name) {
  std::string value(65536, '\0');
  value.resize(static_cast<std::size_t>(OK(::getxattr(path, name, value.data(), value.size()))));
  return value;
}
std::vector<std::string> list(const char* path) {
  std::string all(65536, '\0');
  all.resize(static_cast<std::size_t>(OK(::listxattr(path, all.data(), all.size()))));
  std::vector<std::string> names;
  for (std::size_t at = 0; at < all.size(); at += names.back().size() + 1)
    names.push_back(all.c_str() + at);
  std::sort(names.begin(), names.end());
  return names;
}

TEST_CASE("xattr: set, get, list and remove, of files and directories") {
  make_file("f");
  make_dir("d");
  for (const char* path : {"f", "d"}) {
    CAPTURE(path);
    CHECK(list(path).empty());
    OK(set(path, "user.b", "two"));
    OK(set(path, "user.a", "one"));
    CHECK(get(path, "user.a") == "one");
    CHECK(list(path) == std::vector<std::string>{"user.a", "user.b"});
    OK(set(path, "user.a", "changed"));
    CHECK(get(path, "user.a") == "changed");
    OK(::removexattr(path, "user.a"));
    CHECK(list(path) == std::vector<std::string>{"user.b"});
    FAILS(ENODATA, ::getxattr(path, "user.a", nullptr, 0));
    FAILS(ENODATA, ::removexattr(path, "user.a"));
  }
}

TEST_CASE("xattr: values are bytes of any length, also none") {
  make_file("f");
  for (const std::size_t size : {0u, 1u, 7u, 100u, 1000u, 3000u}) {
    CAPTURE(size);
    const std::string value = pattern(size);
    OK(set("f", "user.a", value));
    CHECK((get("f", "user.a") == value));
  }
  const std::string zeros("\0x\0", 3);
  OK(set("f", "user.zeros", zeros));
  CHECK(get("f", "user.zeros") == zeros);
}

TEST_CASE("xattr: XATTR_CREATE wants a new name, XATTR_REPLACE an old one") {
  make_file("f");
  FAILS(ENODATA, set("f", "user.a", "x", XATTR_REPLACE));
  OK(set("f", "user.a", "x", XATTR_CREATE));
  FAILS(EEXIST, set("f", "user.a", "y", XATTR_CREATE));
  OK(set("f", "user.a", "y", XATTR_REPLACE));
  CHECK(get("f", "user.a") == "y");
  FAILS(EINVAL, set("f", "user.a", "z", 1 << 10));
}

TEST_CASE("xattr: size 0 asks for the size, too little room is ERANGE") {
  make_file("f");
  OK(set("f", "user.name", "value"));
  char buffer[5];
  CHECK(OK(::getxattr("f", "user.name", nullptr, 0)) == 5);
  CHECK(OK(::getxattr("f", "user.name", buffer, 5)) == 5);
  FAILS(ERANGE, ::getxattr("f", "user.name", buffer, 4));
  CHECK(OK(::listxattr("f", nullptr, 0)) == 10);
  FAILS(ERANGE, ::listxattr("f", buffer, 5));
}

TEST_CASE("xattr: names have a known prefix, something behind it, and at most 255 bytes") {
  make_file("f");
  FAILS(EOPNOTSUPP, set("f", "plain", "x"));
  FAILS(EOPNOTSUPP, set("f", "other.name", "x"));
  FAILS(EOPNOTSUPP, ::getxattr("f", "other.name", nullptr, 0));
  FAILS(EOPNOTSUPP, ::removexattr("f", "other.name"));
  FAILS(EINVAL, set("f", "user.", "x"));
  FAILS(EINVAL, ::getxattr("f", "user.", nullptr, 0));
  FAILS(ERANGE, set("f", "", "x"));
  FAILS(ERANGE, set("f", ("user." + std::string(251, 'n')).c_str(), "x"));
  const std::string longest = "user." + std::string(250, 'n');
  OK(set("f", longest.c_str(), "x"));
  CHECK(list("f") == std::vector<std::string>{longest});
}

TEST_CASE("xattr: a value above 64 KiB is E2BIG") {
  make_file("f");
  FAILS(E2BIG, set("f", "user.a", std::string(65537, 'x')));
  FAILS(ENODATA, ::getxattr("f", "user.a", nullptr, 0));
}

TEST_CASE("xattr: several on one file, each with its value") {
  make_file("f");
  for (int i = 0; i < 30; ++i) {
    const std::string name = "user.number-" + std::to_string(i);
    OK(set("f", name.c_str(), std::to_string(i)));
  }
  CHECK(list("f").size() == 30);
  for (int i = 0; i < 30; ++i) {
    CHECK(get("f", ("user.number-" + std::to_string(i)).c_str()) == std::to_string(i));
  }
}

TEST_CASE("xattr: belong to the file, whatever it is called, and end with it") {
  make_file("f");
  OK(set("f", "user.a", "x"));
  OK(::link("f", "g"));
  OK(::rename("f", "h"));
  CHECK(get("g", "user.a") == "x");
  OK(set("g", "user.a", "y"));
  CHECK(get("h", "user.a") == "y");
  OK(::unlink("g"));
  OK(::unlink("h"));
  make_file("f");
  CHECK(list("f").empty());
}

TEST_CASE("xattr: survive writing, truncating and replacing of content") {
  make_file("f", "abc");
  OK(set("f", "user.a", "x"));
  make_file("f", "longer content");
  OK(::truncate("f", 1));
  CHECK(get("f", "user.a") == "x");
}

TEST_CASE("xattr: through descriptors, also of unlinked files; O_PATH is EBADF") {
  make_file("f");
  const Fd fd = open_fd("f", O_RDONLY);
  OK(::fsetxattr(fd, "user.a", "x", 1, 0));
  OK(::unlink("f"));
  char byte = 0;
  CHECK(OK(::fgetxattr(fd, "user.a", &byte, 1)) == 1);
  CHECK(OK(::flistxattr(fd, nullptr, 0)) == 7);
  OK(::fremovexattr(fd, "user.a"));
  FAILS(ENODATA, ::fgetxattr(fd, "user.a", &byte, 1));
  make_file("g");
  const Fd place(OK(::open("g", O_PATH)));
  FAILS(EBADF, ::fgetxattr(place, "user.a", &byte, 1));
}

TEST_CASE("xattr: user. is for files and directories only") {
  NEEDS_ROOT();
  make_file("f");
  OK(::symlink("f", "l"));
  OK(::mkfifo("p", 0644));
  OK(set("l", "user.a", "through"));
  CHECK(get("f", "user.a") == "through");
  FAILS(EPERM, ::lsetxattr("l", "user.a", "x", 1, 0));
  FAILS(EPERM, ::setxattr("p", "user.a", "x", 1, 0));
  FAILS(ENODATA, ::lgetxattr("l", "user.a", nullptr, 0));
  OK(::lsetxattr("l", "trusted.a", "x", 1, 0));
  char byte = 0;
  CHECK(OK(::lgetxattr("l", "trusted.a", &byte, 1)) == 1);
  FAILS(ENODATA, ::getxattr("l", "trusted.a", &byte, 1));
}

TEST_CASE("xattr: user. asks for the file's permissions") {
  NEEDS_ROOT();
  make_file("f");
  OK(set("f", "user.a", "x"));
  const auto may = [](int mode) {
    OK(::chmod("f", static_cast<mode_t>(mode)));
    const Errno reads = as(kAlice, [] { return ::getxattr("f", "user.a", nullptr, 0); });
    const Errno writes = as(kAlice, [] { return set("f", "user.a", "x"); });
    return std::make_pair(reads, writes);
  };
  CHECK(may(0644) == std::make_pair(Errno{}, Errno{EACCES}));
  CHECK(may(0602) == std::make_pair(Errno{EACCES}, Errno{}));
  OK(::chmod("f", 0600));
  CHECK(as(kAlice, [] { return ::listxattr("f", nullptr, 0); }) == Errno{});
  CHECK(as(kAlice, [] { return ::removexattr("f", "user.a"); }) == Errno{EACCES});
}

TEST_CASE("xattr: in a sticky directory user. of the directory is its owner's") {
  NEEDS_ROOT();
  make_dir("d");
  OK(::chmod("d", 01777));
  CHECK(as(kAlice, [] { return set("d", "user.a", "x"); }) == Errno{EPERM});
  OK(::chmod("d", 0777));
  CHECK(as(kAlice, [] { return set("d", "user.a", "x"); }) == Errno{});
}

TEST_CASE("xattr: trusted. is root's and hidden from others") {
  NEEDS_ROOT();
  make_file("f", {}, 0666);
  OK(set("f", "trusted.a", "secret"));
  OK(set("f", "user.a", "x"));
  CHECK(get("f", "trusted.a") == "secret");
  CHECK(as(kAlice, [] { return set("f", "trusted.b", "x"); }) == Errno{EPERM});
  CHECK(as(kAlice, [] { return ::getxattr("f", "trusted.a", nullptr, 0); }) == Errno{ENODATA});
  CHECK(as(kAlice, [] { return ::removexattr("f", "trusted.a"); }) == Errno{EPERM});
  CHECK(list("f") == std::vector<std::string>{"trusted.a", "user.a"});
}

TEST_CASE("xattr: trusted. is left out of others' lists") {
  NEEDS_ROOT();
  make_file("f", {}, 0666);
  OK(set("f", "trusted.a", "secret"));
  OK(set("f", "user.a", "x"));
  CHECK(as(kAlice, [] { return list("f") == std::vector<std::string>{"user.a"} ? 0 : -1; }) ==
        Errno{});
}

TEST_CASE("xattr: security. is everybody's to read and root's to set") {
  NEEDS_ROOT();
  make_file("f", {}, 0666);
  OK(set("f", "security.test", "x"));
  CHECK(get("f", "security.test") == "x");
  CHECK(as(kAlice, [] { return ::getxattr("f", "security.test", nullptr, 0); }) == Errno{});
  CHECK(as(kAlice, [] { return set("f", "security.test", "y"); }) == Errno{EPERM});
  CHECK(as(kAlice, [] { return ::removexattr("f", "security.test"); }) == Errno{EPERM});
  CHECK(list("f") == std::vector<std::string>{"security.test"});
}

TEST_CASE("xattr: what one process sets another one sees at once") {
  make_file("f");
  OK(set("f", "user.a", "x"));
  CHECK(in_child([] {
          if (get("f", "user.a") != "x") return 1;
          OK(set("f", "user.a", "y"));
          OK(set("f", "user.b", "z"));
          return 0;
        }) == 0);
  CHECK(get("f", "user.a") == "y");
  CHECK(list("f").size() == 2);
}

TEST_CASE("xattr: path errors") {
  make_file("f");
  OK(::symlink("nowhere", "dangling"));
  FAILS(ENOENT, set("missing", "user.a", "x"));
  FAILS(ENOENT, set("dangling", "user.a", "x"));
  FAILS(ENOTDIR, ::getxattr("f/x", "user.a", nullptr, 0));
  FAILS(EBADF, ::fsetxattr(-1, "user.a", "x", 1, 0));
}

}  // namespace
}  // namespace fermata::posix
