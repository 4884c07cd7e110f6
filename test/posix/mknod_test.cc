// mknod(2), mkfifo(3), and sockets bound to a name.
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <cstring>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

sockaddr_un address_of(const char* path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::strncpy(name.sun_path, path, sizeof name.sun_path - 1);
  return name;
}
int bind_to(int fd, const char* path) {
  const sockaddr_un name = address_of(path);
  return ::bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name);
}
int connect_to(int fd, const char* path) {
  const sockaddr_un name = address_of(path);
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name);
}

TEST_CASE("mkfifo: processes talk through it") {
  OK(::mkfifo("fifo", 0640));
  const auto made = lstat_of("fifo");
  CHECK(S_ISFIFO(made.st_mode));
  CHECK((made.st_mode & 07777) == 0640);
  CHECK(made.st_size == 0);
  Child writer([](Child&) {
    const Fd fd = open_fd("fifo", O_WRONLY);
    return ::write(fd, "hello", 5) == 5 ? 0 : 1;
  });
  const Fd fd = open_fd("fifo", O_RDONLY);
  char buffer[9];
  CHECK(OK(::read(fd, buffer, sizeof buffer)) == 5);
  CHECK(std::string(buffer, 5) == "hello");
  CHECK(OK(::read(fd, buffer, sizeof buffer)) == 0);
  CHECK(writer.join() == 0);
}

TEST_CASE("mkfifo: all names of a FIFO are the same FIFO, also a renamed one") {
  OK(::mkfifo("fifo", 0644));
  OK(::link("fifo", "other"));
  const Fd fd = open_fd("fifo", O_RDWR);
  OK(::rename("fifo", "moved"));
  const Fd moved = open_fd("moved", O_RDWR | O_NONBLOCK);
  const Fd other = open_fd("other", O_RDWR | O_NONBLOCK);
  OK(::write(fd, "ab", 2));
  char byte = 0;
  CHECK(OK(::read(moved, &byte, 1)) == 1);
  CHECK(OK(::read(other, &byte, 1)) == 1);
  CHECK(byte == 'b');
}

TEST_CASE("mknod: a socket's name can be connected to, renamed and removed") {
  const Fd server(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
  OK(bind_to(server, "s"));
  OK(::listen(server, 1));
  CHECK(S_ISSOCK(lstat_of("s").st_mode));
  OK(::rename("s", "t"));
  const Fd client(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
  FAILS(ENOENT, connect_to(client, "s"));
  OK(connect_to(client, "t"));
  const Fd second(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
  FAILS(EADDRINUSE, bind_to(second, "t"));
  OK(::unlink("t"));
  FAILS(ENOENT, connect_to(second, "t"));
}

TEST_CASE("mknod: a socket's name without its socket refuses connections") {
  {
    const Fd server(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
    OK(bind_to(server, "s"));
  }
  const Fd client(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
  FAILS(ECONNREFUSED, connect_to(client, "s"));
}

TEST_CASE("mknod: connecting needs write permission on the socket's name") {
  NEEDS_ROOT();
  const Fd server(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
  OK(bind_to(server, "s"));
  OK(::listen(server, 1));
  OK(::chmod("s", 0600));
  CHECK(as(kAlice, [] {
          const Fd client(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
          return connect_to(client, "s");
        }) == Errno{EACCES});
}

TEST_CASE("mknod: regular files, FIFOs and sockets are everybody's to make") {
  NEEDS_ROOT();
  make_dir("d", 0777);
  CHECK(as(kAlice, [] { return ::mknod("d/file", S_IFREG | 0640, 0); }) == Errno{});
  CHECK(as(kAlice, [] { return ::mknod("d/plain", 0640, 0); }) == Errno{});
  CHECK(as(kAlice, [] { return ::mknod("d/fifo", S_IFIFO | 0640, 0); }) == Errno{});
  CHECK(as(kAlice, [] { return ::mknod("d/socket", S_IFSOCK | 0640, 0); }) == Errno{});
  CHECK(S_ISREG(lstat_of("d/file").st_mode));
  CHECK(S_ISREG(lstat_of("d/plain").st_mode));
  CHECK(S_ISFIFO(lstat_of("d/fifo").st_mode));
  CHECK(S_ISSOCK(lstat_of("d/socket").st_mode));
  CHECK(lstat_of("d/file").st_uid == kAlice.uid);
  CHECK(content_of("d/file").empty());
}

TEST_CASE("mknod: devices are root's to make, of any number") {
  NEEDS_ROOT();
  make_dir("d", 0777);
  const dev_t numbers[] = {makedev(1, 3), makedev(255, 255), makedev(256, 256),
                           makedev(4095, 1'048'575), makedev(0, 0)};
  int i = 0;
  for (const dev_t number : numbers) {
    CAPTURE(number);
    const std::string c = "c" + std::to_string(i);
    const std::string b = "b" + std::to_string(i++);
    OK(::mknod(c.c_str(), S_IFCHR | 0600, number));
    OK(::mknod(b.c_str(), S_IFBLK | 0600, number));
    CHECK(S_ISCHR(lstat_of(c).st_mode));
    CHECK(S_ISBLK(lstat_of(b).st_mode));
    CHECK(lstat_of(c).st_rdev == number);
    CHECK(lstat_of(b).st_rdev == number);
  }
  CHECK(as(kAlice, [] { return ::mknod("d/c", S_IFCHR | 0600, makedev(1, 3)); }) == Errno{EPERM});
}

TEST_CASE("mknod: a device is the device") {
  NEEDS_ROOT();
  OK(::mknod("null", S_IFCHR | 0666, makedev(1, 3)));
  OK(::mknod("zero", S_IFCHR | 0666, makedev(1, 5)));
  const int fd = ::open("null", O_RDWR);
  if (fd < 0 && errno == EACCES) SKIP("mounted with nodev");
  const Fd null(fd);
  REQUIRE(fd >= 0);
  char byte = 'x';
  CHECK(::write(null, "gone", 4) == 4);
  CHECK(::read(null, &byte, 1) == 0);
  const Fd zero = open_fd("zero", O_RDONLY);
  CHECK(::read(zero, &byte, 1) == 1);
  CHECK(byte == '\0');
}

TEST_CASE("mknod: existing names, other types, path errors") {
  make_file("f");
  FAILS(EEXIST, ::mknod("f", S_IFREG | 0644, 0));
  FAILS(EEXIST, ::mkfifo("f", 0644));
  FAILS(EPERM, ::mknod("d", S_IFDIR | 0755, 0));
  FAILS(EINVAL, ::mknod("l", S_IFLNK | 0755, 0));
  FAILS(EINVAL, ::mknod("x", S_IFMT | 0755, 0));
  FAILS(ENOENT, ::mkfifo("missing/p", 0644));
  FAILS(ENOENT, ::mkfifo("", 0644));
  FAILS(ENOENT, ::mkfifo("p/", 0644));
  FAILS(ENOTDIR, ::mkfifo("f/p", 0644));
  if (is_root()) {
    make_dir("closed", 0755);
    CHECK(as(kAlice, [] { return ::mkfifo("closed/p", 0644); }) == Errno{EACCES});
  }
}

}  // namespace
}  // namespace fermata::posix
