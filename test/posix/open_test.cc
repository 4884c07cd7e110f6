// open(2): creating, truncating, and every errno with its precedence. Other flags have files of
// their own (o_append, o_direct, o_path, o_tmpfile), other starting points too (openat).
#include <sys/socket.h>
#include <sys/un.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("open: O_CREAT makes an empty regular file of the caller with mode & ~umask") {
  ::umask(027);
  const Fd fd(OK(::open("f", O_CREAT | O_RDWR, 0666)));
  const auto made = fstat_of(fd);
  CHECK(S_ISREG(made.st_mode));
  CHECK((made.st_mode & 07777) == 0640);
  CHECK(made.st_size == 0);
  CHECK(made.st_blocks == 0);
  CHECK(made.st_nlink == 1);
  CHECK(made.st_uid == ::geteuid());
  CHECK(made.st_gid == ::getegid());
}

TEST_CASE("open: O_CREAT keeps setuid, setgid and sticky bits of the mode") {
  ::umask(0);
  const Fd fd(OK(::open("f", O_CREAT | O_RDWR, 07755)));
  CHECK(mode_of("f") == 07755);
}

TEST_CASE("open: O_CREAT of an existing file opens it and changes nothing") {
  make_file("f", "content", 0604);
  const Fd fd(OK(::open("f", O_CREAT | O_RDWR, 0777)));
  CHECK(content_of("f") == "content");
  CHECK(mode_of("f") == 0604);
}

TEST_CASE("open: the creator may write through its descriptor whatever the mode says") {
  NEEDS_ROOT();
  make_dir("d", 0777);
  CHECK(as(kAlice, [] {
          const Fd fd(::open("d/f", O_CREAT | O_RDWR, 0));
          return fd < 0 ? -1 : ::write(fd, "x", 1);
        }) == Errno{});
  CHECK(as(kAlice, [] { return ::open("d/f", O_RDWR); }) == Errno{EACCES});
  CHECK(content_of("d/f") == "x");
}

TEST_CASE("open: O_CREAT|O_EXCL refuses every kind of existing name") {
  make_file("file");
  make_dir("dir");
  OK(::symlink("file", "link"));
  OK(::symlink("nowhere", "dangling"));
  OK(::mkfifo("fifo", 0644));
  for (const char* name : {"file", "dir", "link", "dangling", "fifo"}) {
    CAPTURE(name);
    FAILS(EEXIST, ::open(name, O_CREAT | O_EXCL | O_RDWR, 0644));
  }
  CHECK(!exists("nowhere"));
}

TEST_CASE("open: O_CREAT|O_EXCL has exactly one winner among processes") {
  constexpr int kNames = 40;
  constexpr int kProcesses = 4;
  int won[kProcesses] = {};
  {
    std::vector<std::unique_ptr<Child>> racers;
    for (int i = 0; i < kProcesses; ++i) {
      racers.push_back(std::make_unique<Child>([](Child& self) {
        self.await();
        int wins = 0;
        for (int n = 0; n < kNames; ++n) {
          const std::string name = "n" + std::to_string(n);
          const Fd fd(::open(name.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644));
          if (fd >= 0) ++wins;
          if (fd < 0 && errno != EEXIST) return 255;
        }
        return wins;
      }));
    }
    for (auto& racer : racers) racer->say();
    for (int i = 0; i < kProcesses; ++i) won[i] = racers[static_cast<std::size_t>(i)]->join();
  }
  int total = 0;
  for (const int wins : won) total += wins;
  CHECK(total == kNames);
  CHECK(names_in(".").size() == kNames);
}

TEST_CASE("open: O_CREAT follows a dangling symlink and makes its target") {
  make_dir("d");
  OK(::symlink("d/target", "link"));
  const Fd fd(OK(::open("link", O_CREAT | O_WRONLY, 0644)));
  CHECK(S_ISREG(lstat_of("d/target").st_mode));
  CHECK(S_ISLNK(lstat_of("link").st_mode));
}

TEST_CASE("open: O_CREAT does not make a name that ends with a slash") {
  FAILS(EISDIR, ::open("new/", O_CREAT | O_RDWR, 0644));
  make_file("f");
  FAILS(EISDIR, ::open("f/", O_CREAT | O_RDWR, 0644));
}

TEST_CASE("open: a directory opens for reading only") {
  make_dir("d");
  const Fd fd(OK(::open("d", O_RDONLY)));
  FAILS(EISDIR, ::open("d", O_WRONLY));
  FAILS(EISDIR, ::open("d", O_RDWR));
  FAILS(EISDIR, ::open("d", O_RDONLY | O_CREAT, 0644));
  FAILS(EISDIR, ::open("d", O_RDONLY | O_TRUNC));
}

TEST_CASE("open: O_TRUNC empties the file and keeps inode, mode and owner") {
  make_file("f", "content", 0640);
  const auto before = stat_of("f");
  const Fd fd(OK(::open("f", O_WRONLY | O_TRUNC)));
  const auto after = fstat_of(fd);
  CHECK(after.st_size == 0);
  CHECK(after.st_blocks == 0);
  CHECK(after.st_ino == before.st_ino);
  CHECK(after.st_mode == before.st_mode);
}

TEST_CASE("open: O_TRUNC works with O_RDONLY, as on Linux") {
  make_file("f", "content");
  const Fd fd(OK(::open("f", O_RDONLY | O_TRUNC)));
  CHECK(fstat_of(fd).st_size == 0);
}

TEST_CASE("open: O_TRUNC is seen at once through descriptors that were open before") {
  make_file("f", "content");
  const Fd before = open_fd("f", O_RDONLY);
  const Fd fd = open_fd("f", O_WRONLY | O_TRUNC);
  CHECK(fstat_of(before).st_size == 0);
  CHECK(read_at(before, 7).empty());
  write_at(fd, "new");
  CHECK(read_at(before, 7) == "new");
}

TEST_CASE("open: O_TRUNC of a FIFO changes nothing") {
  OK(::mkfifo("fifo", 0644));
  const Fd fd(OK(::open("fifo", O_RDWR | O_TRUNC | O_NONBLOCK)));
  CHECK(fd >= 0);
}

TEST_CASE("open: O_DIRECTORY wants a directory") {
  make_file("f");
  make_dir("d");
  OK(::symlink("d", "to-dir"));
  OK(::symlink("f", "to-file"));
  const Fd fd(OK(::open("d", O_DIRECTORY)));
  const Fd through(OK(::open("to-dir", O_DIRECTORY)));
  FAILS(ENOTDIR, ::open("f", O_DIRECTORY));
  FAILS(ENOTDIR, ::open("to-file", O_DIRECTORY));
  FAILS(ENOENT, ::open("missing", O_DIRECTORY));
}

TEST_CASE("open: O_NOFOLLOW refuses a symlink as the last component only") {
  make_dir("d");
  make_file("d/f");
  OK(::symlink("d", "dirlink"));
  OK(::symlink("d/f", "link"));
  FAILS(ELOOP, ::open("link", O_RDONLY | O_NOFOLLOW));
  FAILS(ELOOP, ::open("link", O_RDWR | O_CREAT | O_NOFOLLOW, 0644));
  FAILS(ENOTDIR, ::open("dirlink", O_RDONLY | O_NOFOLLOW | O_DIRECTORY));
  const Fd fd(OK(::open("dirlink/f", O_RDONLY | O_NOFOLLOW)));
  const Fd plain(OK(::open("d/f", O_RDONLY | O_NOFOLLOW)));
}

TEST_CASE("open: O_NOATIME is for the owner") {
  NEEDS_ROOT();
  make_file("f", "x", 0666);
  CHECK(as(kAlice, [] { return ::open("f", O_RDONLY | O_NOATIME); }) == Errno{EPERM});
  OK(::chown("f", kAlice.uid, kAlice.gid));
  CHECK(as(kAlice, [] { return ::open("f", O_RDONLY | O_NOATIME); }) == Errno{});
}

TEST_CASE("open: O_SYNC and O_DSYNC are kept and obeyed") {
  const Fd sync(OK(::open("s", O_CREAT | O_RDWR | O_SYNC, 0644)));
  const Fd data(OK(::open("d", O_CREAT | O_RDWR | O_DSYNC, 0644)));
  CHECK((OK(::fcntl(sync, F_GETFL)) & O_SYNC) == O_SYNC);
  CHECK((OK(::fcntl(data, F_GETFL)) & O_DSYNC) == O_DSYNC);
  write_at(sync, "synced");
  write_at(data, "synced");
  CHECK(content_of("s") == "synced");
  CHECK(content_of("d") == "synced");
}

TEST_CASE("open: a missing name, directory or target is ENOENT") {
  OK(::symlink("nowhere", "dangling"));
  FAILS(ENOENT, ::open("missing", O_RDONLY));
  FAILS(ENOENT, ::open("missing/f", O_CREAT | O_RDWR, 0644));
  FAILS(ENOENT, ::open("dangling", O_RDONLY));
  FAILS(ENOENT, ::open("dangling/f", O_CREAT | O_RDWR, 0644));
  FAILS(ENOENT, ::open("", O_RDONLY));
  FAILS(ENOENT, ::open("missing/../f", O_CREAT | O_RDWR, 0644));
}

TEST_CASE("open: a component that is no directory is ENOTDIR") {
  make_file("f");
  OK(::mkfifo("fifo", 0644));
  FAILS(ENOTDIR, ::open("f/x", O_RDONLY));
  FAILS(ENOTDIR, ::open("f/x", O_CREAT | O_RDWR, 0644));
  FAILS(ENOTDIR, ::open("fifo/x", O_RDONLY));
  FAILS(ENOTDIR, ::open("f/", O_RDONLY));
  FAILS(ENOTDIR, ::open("f/.", O_RDONLY));
  FAILS(ENOTDIR, ::open("f/..", O_RDONLY));
}

TEST_CASE("open: a removed directory takes no new file") {
  make_dir("d");
  const Fd dir = open_fd("d", O_RDONLY);
  OK(::rmdir("d"));
  FAILS(ENOENT, ::openat(dir, "f", O_CREAT | O_RDWR, 0644));
  FAILS(ENOENT, ::openat(dir, "f", O_RDONLY));
}

TEST_CASE("open: permission is asked of owner, group or others, the first that applies") {
  NEEDS_ROOT();
  make_file("f", "x");
  OK(::chown("f", kAlice.uid, kAlice.gid));
  const auto opens = [](const User& user, int flags) {
    return as(user, [flags] { return ::open("f", flags); });
  };
  OK(::chmod("f", 0077));  // the owner has less than everybody else
  CHECK(opens(kAlice, O_RDONLY) == Errno{EACCES});
  CHECK(opens(kCarol, O_RDWR) == Errno{});
  CHECK(opens(kBob, O_RDWR) == Errno{});
  OK(::chmod("f", 0604));
  CHECK(opens(kAlice, O_RDWR) == Errno{});
  CHECK(opens(kCarol, O_RDONLY) == Errno{EACCES});  // in the group, through a supplementary one
  CHECK(opens(kBob, O_RDONLY) == Errno{});
  CHECK(opens(kBob, O_WRONLY) == Errno{EACCES});
  CHECK(opens(kBob, O_RDWR) == Errno{EACCES});
  CHECK(opens(kBob, O_RDONLY | O_TRUNC) == Errno{EACCES});
  CHECK(stat_of("f").st_size == 1);
}

TEST_CASE("open: every directory on the way must be searchable") {
  NEEDS_ROOT();
  make_dir("d", 0666);
  make_file("d/f", "x", 0666);
  CHECK(as(kAlice, [] { return ::open("d/f", O_RDONLY); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::open("d/missing", O_RDONLY); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::open("d", O_RDONLY); }) == Errno{});
  OK(::chmod("d", 0711));
  CHECK(as(kAlice, [] { return ::open("d/f", O_RDONLY); }) == Errno{});
  CHECK(as(kAlice, [] { return ::open("d", O_RDONLY); }) == Errno{EACCES});
}

TEST_CASE("open: creating needs a writable directory, opening what exists does not") {
  NEEDS_ROOT();
  make_dir("d", 0555);
  OK(::chown("d", kAlice.uid, kAlice.gid));
  make_file("d/f", "x", 0666);
  CHECK(as(kAlice, [] { return ::open("d/new", O_CREAT | O_RDWR, 0644); }) == Errno{EACCES});
  CHECK(as(kAlice, [] { return ::open("d/f", O_CREAT | O_RDWR, 0644); }) == Errno{});
}

TEST_CASE("open: EEXIST comes before EACCES of the directory, EACCES before ENAMETOOLONG behind") {
  NEEDS_ROOT();
  make_dir("d", 0555);
  make_file("d/f");
  CHECK(as(kAlice, [] { return ::open("d/f", O_CREAT | O_EXCL | O_RDWR, 0644); }) == Errno{EEXIST});
  make_dir("closed", 0600);
  const std::string behind = "closed/" + std::string(256, 'n');
  CHECK(as(kAlice, [&] { return ::open(behind.c_str(), O_RDONLY); }) == Errno{EACCES});
  make_file("f", {}, 0600);
  CHECK(as(kAlice, [] { return ::open("f/x", O_RDONLY); }) == Errno{ENOTDIR});
}

TEST_CASE("open: writing a FIFO without a reader is ENXIO when non-blocking") {
  OK(::mkfifo("fifo", 0644));
  FAILS(ENXIO, ::open("fifo", O_WRONLY | O_NONBLOCK));
  const Fd reader(OK(::open("fifo", O_RDONLY | O_NONBLOCK)));
  const Fd writer(OK(::open("fifo", O_WRONLY | O_NONBLOCK)));
}

TEST_CASE("open: a socket is ENXIO") {
  const Fd fd(OK(::socket(AF_UNIX, SOCK_STREAM, 0)));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  name.sun_path[0] = 's';
  OK(::bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name));
  FAILS(ENXIO, ::open("s", O_RDONLY));
}

TEST_CASE("open: two opens have two offsets and one content") {
  make_file("f", "abcdef");
  const Fd one = open_fd("f", O_RDWR);
  const Fd two = open_fd("f", O_RDWR);
  char byte = 0;
  OK(::read(one, &byte, 1));
  CHECK(::lseek(two, 0, SEEK_CUR) == 0);
  OK(::write(two, "X", 1));
  CHECK(read_at(one, 6) == "Xbcdef");
}

TEST_CASE("open: creat is O_CREAT|O_WRONLY|O_TRUNC") {
  make_file("f", "content", 0640);
  const Fd fd(OK(::creat("f", 0777)));
  CHECK((OK(::fcntl(fd, F_GETFL)) & O_ACCMODE) == O_WRONLY);
  CHECK(stat_of("f").st_size == 0);
  CHECK(mode_of("f") == 0640);
}

}  // namespace
}  // namespace fermata::posix
