// mkdir(2), mkdirat(2).
#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("mkdir: an empty directory of the caller with mode & ~umask") {
  ::umask(027);
  OK(::mkdir("d", 0777));
  const auto made = lstat_of("d");
  CHECK(S_ISDIR(made.st_mode));
  CHECK((made.st_mode & 07777) == 0750);
  CHECK(made.st_nlink == 2);
  CHECK(made.st_uid == ::geteuid());
  CHECK(made.st_gid == ::getegid());
  CHECK(names_in("d").empty());
}

TEST_CASE("mkdir: keeps the sticky bit of the mode, ignores setuid and setgid") {
  ::umask(0);
  OK(::mkdir("d", 07777));
  CHECK(mode_of("d") == 01777);
}

TEST_CASE("mkdir: the parent gets one link more") {
  const auto before = stat_of(".").st_nlink;
  OK(::mkdir("d", 0755));
  CHECK(stat_of(".").st_nlink == before + 1);
}

TEST_CASE("mkdir: an existing name is EEXIST, whatever it is") {
  make_file("file");
  make_dir("dir");
  OK(::symlink("nowhere", "dangling"));
  OK(::symlink("dir", "link"));
  for (const char* name : {"file", "dir", "dangling", "link", ".", "..", "dir/.", "dir/..", "/"}) {
    CAPTURE(name);
    FAILS(EEXIST, ::mkdir(name, 0755));
  }
  CHECK(!exists("nowhere"));
}

TEST_CASE("mkdir: a trailing slash is welcome") {
  OK(::mkdir("d/", 0755));
  OK(::mkdir("d/e///", 0755));
  CHECK(exists("d/e"));
}

TEST_CASE("mkdir: path errors") {
  make_file("f");
  OK(::symlink("loop", "loop"));
  FAILS(ENOENT, ::mkdir("missing/d", 0755));
  FAILS(ENOENT, ::mkdir("", 0755));
  FAILS(ENOTDIR, ::mkdir("f/d", 0755));
  FAILS(ELOOP, ::mkdir("loop/d", 0755));
  make_dir("gone");
  const Fd dir = open_fd("gone", O_RDONLY);
  OK(::rmdir("gone"));
  FAILS(ENOENT, ::mkdirat(dir, "d", 0755));
  const Fd file = open_fd("f", O_RDONLY);
  FAILS(ENOTDIR, ::mkdirat(file, "d", 0755));
  FAILS(EBADF, ::mkdirat(-1, "d", 0755));
}

TEST_CASE("mkdir: needs a writable parent; EEXIST comes before EACCES") {
  NEEDS_ROOT();
  make_dir("d", 0755);
  make_file("d/f");
  CHECK(as(kAlice, [] { return ::mkdir("d/new", 0755); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::mkdir("d/f", 0755); }) == Errno{EEXIST});
}

TEST_CASE("mkdir: exactly one winner among processes") {
  constexpr int kNames = 20;
  int won[2] = {};
  {
    std::vector<std::unique_ptr<Child>> racers;
    for (int i = 0; i < 2; ++i) {
      racers.push_back(std::make_unique<Child>([](Child& self) {
        self.await();
        int wins = 0;
        for (int n = 0; n < kNames; ++n) {
          if (::mkdir(("d" + std::to_string(n)).c_str(), 0755) == 0) ++wins;
        }
        return wins;
      }));
    }
    for (auto& racer : racers) racer->say();
    for (std::size_t i = 0; i < 2; ++i) won[i] = racers[i]->join();
  }
  CHECK(won[0] + won[1] == kNames);
}

}  // namespace
}  // namespace fermata::posix
