// What takes setuid, setgid and file capabilities away: content changed by somebody who is not
// trusted with them.
#include <linux/capability.h>
#include <sys/sendfile.h>
#include <sys/xattr.h>

#include <cstring>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

/// A setuid and setgid program that anybody may write.
void make_program() {
  make_file("f", pattern(8192));
  OK(::chmod("f", 06777));
}

/// `change` runs as Alice with the file open for writing.
mode_t mode_after(const std::function<long(int)>& change) {
  make_program();
  CHECK(as(kAlice, [&] {
          Fd fd = open_fd("f", O_RDWR);
          const long result = change(fd);
          return result == -1 ? result : long{fd.close()};
        }) == Errno{});
  return mode_of("f");
}

TEST_CASE("killpriv: a stranger's write clears setuid and setgid") {
  NEEDS_ROOT();
  CHECK(mode_after([](int fd) { return ::write(fd, "x", 1); }) == 0777);
}

TEST_CASE("killpriv: the bits are gone before the file is closed") {
  NEEDS_ROOT();
  make_program();
  CHECK(as(kAlice, [] {
          const Fd fd = open_fd("f", O_RDWR);
          OK(::write(fd, "x", 1));
          if (mode_of("f") != 0777) return -1;
          return (fstat_of(fd).st_mode & 07777) == 0777 ? 0 : -1;
        }) == Errno{});
}

TEST_CASE("killpriv: the owner's own write clears them too") {
  NEEDS_ROOT();
  make_file("f", "abc");
  OK(::chown("f", kAlice.uid, kAlice.gid));
  OK(::chmod("f", 06755));
  CHECK(as(kAlice, [] {
          const Fd fd = open_fd("f", O_WRONLY);
          return ::write(fd, "x", 1);
        }) == Errno{});
  CHECK(mode_of("f") == 0755);
}

TEST_CASE("killpriv: root's write keeps them") {
  NEEDS_ROOT();
  make_program();
  Fd fd = open_fd("f", O_RDWR);
  OK(::write(fd, "x", 1));
  OK(fd.close());
  CHECK(mode_of("f") == 06777);
  OK(::truncate("f", 1));
  CHECK(mode_of("f") == 06777);
}

TEST_CASE("killpriv: opening for writing alone clears nothing") {
  NEEDS_ROOT();
  CHECK(mode_after([](int) { return 0; }) == 06777);
}

TEST_CASE("killpriv: setgid without group execute stays") {
  NEEDS_ROOT();
  make_file("f", "abc");
  OK(::chown("f", kAlice.uid, kAlice.gid));
  OK(::chmod("f", 02646));
  CHECK(as(kAlice, [] {
          const Fd fd = open_fd("f", O_WRONLY);
          return ::write(fd, "x", 1);
        }) == Errno{});
  CHECK(mode_of("f") == 02646);
}

TEST_CASE("killpriv: ftruncate, truncate and O_TRUNC clear them") {
  NEEDS_ROOT();
  CHECK(mode_after([](int fd) { return ::ftruncate(fd, 1); }) == 0777);
  CHECK(mode_after([](int) { return ::truncate("f", 1); }) == 0777);
  CHECK(mode_after([](int) { return ::open("f", O_WRONLY | O_TRUNC); }) == 0777);
}

TEST_CASE("killpriv: fallocate clears them") {
  NEEDS_ROOT();
  CHECK(mode_after([](int fd) { return ::fallocate(fd, 0, 0, 100'000); }) == 0777);
  CHECK(mode_after([](int fd) {
          return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096);
        }) == 0777);
}

TEST_CASE("killpriv: copy_file_range, sendfile and splice clear them") {
  NEEDS_ROOT();
  make_file("in", "abc");
  CHECK(mode_after([](int fd) {
          const Fd in = open_fd("in", O_RDONLY);
          return ::copy_file_range(in, nullptr, fd, nullptr, 3, 0);
        }) == 0777);
  CHECK(mode_after([](int fd) {
          const Fd in = open_fd("in", O_RDONLY);
          return ::sendfile(fd, in, nullptr, 3);
        }) == 0777);
}

// security.capability of revision 2, with CAP_NET_RAW permitted.
std::string capability() {
  vfs_cap_data data{};
  data.magic_etc = VFS_CAP_REVISION_2 | VFS_CAP_FLAGS_EFFECTIVE;
  data.data[0].permitted = 1u << 13;
  std::string bytes(XATTR_CAPS_SZ_2, '\0');
  std::memcpy(bytes.data(), &data, bytes.size());
  return bytes;
}

bool has_capability() {
  char buffer[64];
  return ::getxattr("f", "security.capability", buffer, sizeof buffer) > 0;
}

TEST_CASE("killpriv: a write takes file capabilities away, also root's") {
  NEEDS_ROOT();
  const std::string value = capability();
  make_file("f", "abc", 0777);
  OK(::setxattr("f", "security.capability", value.data(), value.size(), 0));
  REQUIRE(has_capability());
  {
    Fd fd = open_fd("f", O_WRONLY);
    OK(::write(fd, "x", 1));
    OK(fd.close());
  }
  CHECK_FALSE(has_capability());
}

TEST_CASE("killpriv: chown takes file capabilities away, chmod does not") {
  NEEDS_ROOT();
  const std::string value = capability();
  make_file("f", "abc", 0777);
  OK(::setxattr("f", "security.capability", value.data(), value.size(), 0));
  OK(::chmod("f", 0755));
  CHECK(has_capability());
  OK(::chown("f", 1, 1));
  CHECK_FALSE(has_capability());
}

TEST_CASE("killpriv: truncate takes file capabilities away") {
  NEEDS_ROOT();
  const std::string value = capability();
  make_file("f", "abc", 0777);
  OK(::setxattr("f", "security.capability", value.data(), value.size(), 0));
  OK(::truncate("f", 1));
  CHECK_FALSE(has_capability());
}

}  // namespace
}  // namespace fermata::posix
