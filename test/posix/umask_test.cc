// umask(2): which calls obey it.
#include <sys/socket.h>
#include <sys/un.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("umask: applies to open, mkdir, mkfifo, mknod and bind") {
  ::umask(0137);
  const Fd fd(OK(::open("f", O_CREAT | O_RDWR, 0777)));
  OK(::mkdir("d", 0777));
  OK(::mkfifo("p", 0777));
  OK(::mknod("n", S_IFREG | 0777, 0));
  const Fd socket(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  name.sun_path[0] = 's';
  OK(::bind(socket, reinterpret_cast<const sockaddr*>(&name), sizeof name));
  for (const char* path : {"f", "d", "p", "n", "s"}) {
    CAPTURE(path);
    CHECK(mode_of(path) == 0640);
  }
}

TEST_CASE("umask: does not apply to symlinks and chmod") {
  ::umask(0777);
  OK(::symlink("x", "l"));
  CHECK(mode_of("l") == 0777);
  make_file("f");
  OK(::chmod("f", 0666));
  CHECK(mode_of("f") == 0666);
}

TEST_CASE("umask: clears permissions only, not setuid and sticky") {
  ::umask(07777);
  CHECK(::umask(0777) == 0777);
  const Fd fd(OK(::open("f", O_CREAT | O_RDWR, 05777)));
  CHECK(mode_of("f") == 05000);
}

}  // namespace
}  // namespace fermata::posix
