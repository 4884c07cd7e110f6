// fcntl(2) record locks: F_SETLK, F_SETLKW, F_GETLK, and the OFD ones.
#include <signal.h>
#include <sys/time.h>

#include <limits>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

struct flock range(short type, off_t start, off_t size) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = size;
  return lock;
}

int lock(int fd, short type, off_t start = 0, off_t size = 0, int command = F_SETLK) {
  struct flock wanted = range(type, start, size);
  return ::fcntl(fd, command, &wanted);
}

/// What another process gets when it tries.
Errno elsewhere(short type, off_t start = 0, off_t size = 0) {
  return {in_child([=] {
    const Fd fd = open_fd("f", O_RDWR);
    return outcome(lock(fd, type, start, size)).value;
  })};
}

/// The lock that would be in another process's way.
struct Found {
  short type = F_UNLCK;
  off_t start = 0, size = 0;
  bool operator==(const Found&) const = default;
};
Found seen_elsewhere(off_t start = 0, off_t size = 0) {
  int fds[2];
  OK(::pipe2(fds, O_CLOEXEC));
  const Fd in(fds[0]);
  const Fd out(fds[1]);
  in_child([&] {
    const Fd fd = open_fd("f", O_RDWR);
    struct flock probe = range(F_WRLCK, start, size);
    OK(::fcntl(fd, F_GETLK, &probe));
    const bool pid_right = probe.l_type == F_UNLCK || probe.l_pid == ::getppid();
    if (!pid_right) probe.l_type = 77;
    OK(::write(out, &probe, sizeof probe));
    return 0;
  });
  struct flock probe {};
  OK(::read(in, &probe, sizeof probe));
  if (probe.l_type == F_UNLCK) return {};
  return {probe.l_type, probe.l_start, probe.l_len};
}

TEST_CASE("fcntl lock: write locks exclude, read locks admit each other, on overlapping bytes") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 10, 10));
  CHECK(elsewhere(F_WRLCK, 0, 10) == Errno{});
  CHECK(elsewhere(F_WRLCK, 20, 0) == Errno{});
  CHECK(elsewhere(F_RDLCK, 19, 1) == Errno{EAGAIN});
  CHECK(elsewhere(F_WRLCK, 0, 11) == Errno{EAGAIN});
  OK(lock(fd, F_RDLCK, 10, 10));
  CHECK(elsewhere(F_RDLCK, 0, 0) == Errno{});
  CHECK(elsewhere(F_WRLCK, 10, 1) == Errno{EAGAIN});
  OK(lock(fd, F_UNLCK, 0, 0));
  CHECK(elsewhere(F_WRLCK) == Errno{});
}

TEST_CASE("fcntl lock: F_GETLK tells who is in the way, and where") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  CHECK(seen_elsewhere() == Found{});
  OK(lock(fd, F_RDLCK, 5, 10));
  CHECK(seen_elsewhere() == Found{F_RDLCK, 5, 10});
  CHECK(seen_elsewhere(15, 10) == Found{});
  OK(lock(fd, F_WRLCK, 100, 0));
  CHECK(seen_elsewhere(50, 0) == Found{F_WRLCK, 100, 0});
}

TEST_CASE("fcntl lock: one's own locks are never in the way, they are changed") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 0, 100));
  const Fd other = open_fd("f", O_RDWR);  // the same process
  OK(lock(other, F_RDLCK, 0, 100));
  CHECK(elsewhere(F_RDLCK, 0, 100) == Errno{});
  struct flock probe = range(F_WRLCK, 0, 100);
  OK(::fcntl(fd, F_GETLK, &probe));
  CHECK(probe.l_type == F_UNLCK);
}

TEST_CASE("fcntl lock: unlocking the middle splits, locking the gap merges") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 0, 100));
  OK(lock(fd, F_UNLCK, 40, 20));
  CHECK(seen_elsewhere(0, 0) == Found{F_WRLCK, 0, 40});
  CHECK(seen_elsewhere(40, 20) == Found{});
  CHECK(seen_elsewhere(40, 0) == Found{F_WRLCK, 60, 40});
  OK(lock(fd, F_WRLCK, 40, 20));
  CHECK(seen_elsewhere(0, 0) == Found{F_WRLCK, 0, 100});
}

TEST_CASE("fcntl lock: changing the type of the middle makes three") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 0, 90));
  OK(lock(fd, F_RDLCK, 30, 30));
  CHECK(seen_elsewhere(0, 30) == Found{F_WRLCK, 0, 30});
  CHECK(seen_elsewhere(30, 30) == Found{F_RDLCK, 30, 30});
  CHECK(seen_elsewhere(60, 30) == Found{F_WRLCK, 60, 30});
  CHECK(elsewhere(F_RDLCK, 30, 30) == Errno{});
}

TEST_CASE("fcntl lock: closing any descriptor of the file lets all of the process go") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK));
  OK(open_fd("f", O_RDONLY).close());
  CHECK(elsewhere(F_WRLCK) == Errno{});
}

TEST_CASE("fcntl lock: a child has none of its parent's, and takes none away when it ends") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK));
  CHECK(in_child([&] { return outcome(lock(fd, F_WRLCK)).value; }) == EAGAIN);
  CHECK(elsewhere(F_WRLCK) == Errno{EAGAIN});
}

TEST_CASE("fcntl lock: whence counts from the offset or the end; a negative length backwards") {
  make_file("f", std::string(100, 'x'));
  const Fd fd = open_fd("f", O_RDWR);
  OK(::lseek(fd, 30, SEEK_SET));
  struct flock wanted {};
  wanted.l_type = F_WRLCK;
  wanted.l_whence = SEEK_CUR;
  wanted.l_start = 5;
  wanted.l_len = 10;
  OK(::fcntl(fd, F_SETLK, &wanted));
  CHECK(seen_elsewhere() == Found{F_WRLCK, 35, 10});
  OK(lock(fd, F_UNLCK));
  wanted.l_whence = SEEK_END;
  wanted.l_start = -10;
  wanted.l_len = 0;
  OK(::fcntl(fd, F_SETLK, &wanted));
  CHECK(seen_elsewhere() == Found{F_WRLCK, 90, 0});
  OK(lock(fd, F_UNLCK));
  OK(lock(fd, F_WRLCK, 50, -20));
  CHECK(seen_elsewhere() == Found{F_WRLCK, 30, 20});
}

TEST_CASE("fcntl lock: F_SETLKW waits until the lock is free") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK));
  Child waiter([](Child& self) {
    const Fd mine = open_fd("f", O_RDWR);
    self.say();
    OK(lock(mine, F_WRLCK, 0, 0, F_SETLKW));
    self.say();
    self.await();
    return 0;
  });
  waiter.await();
  OK(lock(fd, F_UNLCK));
  waiter.await();
  FAILS(EAGAIN, lock(fd, F_WRLCK));
  waiter.say();
  CHECK(waiter.join() == 0);
  OK(lock(fd, F_WRLCK));
}

TEST_CASE("fcntl lock: a killed process has let go") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  Child holder([](Child& self) {
    const Fd mine = open_fd("f", O_RDWR);
    OK(lock(mine, F_WRLCK));
    self.say();
    ::pause();
    return 0;
  });
  holder.await();
  FAILS(EAGAIN, lock(fd, F_WRLCK));
  OK(::kill(holder.pid(), SIGKILL));
  CHECK(holder.join() == 128 + SIGKILL);
  OK(lock(fd, F_WRLCK, 0, 0, F_SETLKW));
}

TEST_CASE("fcntl lock: a signal interrupts the wait") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK));
  const int result = in_child([] {
    struct sigaction act {};
    act.sa_handler = [](int) {};
    OK(::sigaction(SIGALRM, &act, nullptr));
    const itimerval soon{{0, 20'000}, {0, 20'000}};
    OK(::setitimer(ITIMER_REAL, &soon, nullptr));
    const Fd mine = open_fd("f", O_RDWR);
    return lock(mine, F_WRLCK, 0, 0, F_SETLKW) == -1 ? errno : 0;
  });
  CHECK(Errno{result} == Errno{EINTR});
}

TEST_CASE("fcntl lock: two that wait for each other: one gets EDEADLK") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 0, 1));
  Child other([](Child& self) {
    const Fd mine = open_fd("f", O_RDWR);
    OK(lock(mine, F_WRLCK, 1, 1));
    self.say();
    return outcome(lock(mine, F_WRLCK, 0, 1, F_SETLKW)).value;  // waits for us, or EDEADLK
  });
  other.await();
  const Errno mine = outcome(lock(fd, F_WRLCK, 1, 1, F_SETLKW));
  OK(lock(fd, F_UNLCK));
  const Errno theirs{other.join()};
  CHECK(((mine == Errno{EDEADLK} && theirs == Errno{}) ||
         (mine == Errno{} && theirs == Errno{EDEADLK})));
}

TEST_CASE("fcntl lock: the descriptor must allow what is locked") {
  make_file("f");
  const Fd reader = open_fd("f", O_RDONLY);
  const Fd writer = open_fd("f", O_WRONLY);
  FAILS(EBADF, lock(reader, F_WRLCK));
  FAILS(EBADF, lock(writer, F_RDLCK));
  OK(lock(reader, F_RDLCK));
  OK(lock(writer, F_WRLCK));
  FAILS(EBADF, lock(-1, F_RDLCK));
}

TEST_CASE("fcntl lock: ranges before the start or beyond all offsets are refused") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  constexpr off_t kMax = std::numeric_limits<off_t>::max();
  FAILS(EINVAL, lock(fd, F_WRLCK, -1, 1));
  FAILS(EINVAL, lock(fd, F_WRLCK, 5, -6));
  FAILS(EOVERFLOW, lock(fd, F_WRLCK, kMax, 2));
  OK(lock(fd, F_WRLCK, kMax, 1));
  FAILS(EINVAL, lock(fd, 77));
}

// ------------------------------------------------------------- open file description locks

TEST_CASE("OFD lock: belongs to the open file: two opens of one process exclude each other") {
  const Fd one = open_fd("f", O_CREAT | O_RDWR);
  const Fd two = open_fd("f", O_RDWR);
  OK(lock(one, F_WRLCK, 0, 10, F_OFD_SETLK));
  FAILS(EAGAIN, lock(two, F_WRLCK, 5, 1, F_OFD_SETLK));
  OK(lock(two, F_WRLCK, 10, 1, F_OFD_SETLK));
  OK(lock(one, F_UNLCK, 0, 10, F_OFD_SETLK));
  OK(lock(two, F_WRLCK, 5, 1, F_OFD_SETLK));
}

TEST_CASE("OFD lock: closing another descriptor of the file does not let it go, the last does") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  Fd twin(OK(::dup(fd)));
  OK(lock(fd, F_WRLCK, 0, 0, F_OFD_SETLK));
  OK(open_fd("f", O_RDONLY).close());
  CHECK(elsewhere(F_WRLCK) == Errno{EAGAIN});
  OK(fd.close());
  CHECK(elsewhere(F_WRLCK) == Errno{EAGAIN});
  OK(twin.close());
  CHECK(elsewhere(F_WRLCK) == Errno{});
}

TEST_CASE("OFD lock: is inherited over fork") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 0, 0, F_OFD_SETLK));
  CHECK(in_child([&] { return outcome(lock(fd, F_WRLCK, 0, 0, F_OFD_SETLK)).value; }) == 0);
}

TEST_CASE("OFD lock: is in the way of process locks") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 0, 10, F_OFD_SETLK));
  const Fd other = open_fd("f", O_RDWR);
  struct flock probe = range(F_WRLCK, 0, 0);
  OK(::fcntl(other, F_GETLK, &probe));
  CHECK(probe.l_type == F_WRLCK);
  CHECK(probe.l_pid <= 0);  // of no process
  CHECK(probe.l_len == 10);
  FAILS(EAGAIN, lock(other, F_WRLCK, 0, 1, F_SETLK));
}

TEST_CASE("OFD lock: F_GETLK shows it with the process id -1") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 0, 10, F_OFD_SETLK));
  const Fd other = open_fd("f", O_RDWR);
  struct flock probe = range(F_WRLCK, 0, 0);
  OK(::fcntl(other, F_GETLK, &probe));
  CHECK(probe.l_pid == -1);
}

TEST_CASE("OFD lock: l_pid must be 0") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  struct flock wanted = range(F_WRLCK, 0, 0);
  wanted.l_pid = ::getpid();
  FAILS(EINVAL, ::fcntl(fd, F_OFD_SETLK, &wanted));
}

TEST_CASE("OFD lock: F_OFD_SETLKW waits until the lock is free") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(lock(fd, F_WRLCK, 0, 0, F_OFD_SETLK));
  Child waiter([](Child& self) {
    const Fd mine = open_fd("f", O_RDWR);
    self.say();
    OK(lock(mine, F_WRLCK, 0, 0, F_OFD_SETLKW));
    self.say();
    return 0;
  });
  waiter.await();
  OK(lock(fd, F_UNLCK, 0, 0, F_OFD_SETLK));
  waiter.await();
  CHECK(waiter.join() == 0);
}

}  // namespace
}  // namespace fermata::posix
