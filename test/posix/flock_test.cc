// flock(2), between descriptors and between processes.
#include <signal.h>
#include <sys/file.h>
#include <sys/time.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

constexpr int kTryEx = LOCK_EX | LOCK_NB;
constexpr int kTrySh = LOCK_SH | LOCK_NB;

/// What another process gets when it tries.
Errno elsewhere(int operation) {
  return {in_child([operation] {
    const Fd fd = open_fd("f", O_RDWR);
    return outcome(::flock(fd, operation)).value;
  })};
}

TEST_CASE("flock: an exclusive lock excludes, shared ones admit each other") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(::flock(fd, LOCK_EX));
  CHECK(elsewhere(kTryEx) == Errno{EWOULDBLOCK});
  CHECK(elsewhere(kTrySh) == Errno{EWOULDBLOCK});
  OK(::flock(fd, LOCK_SH));
  CHECK(elsewhere(kTrySh) == Errno{});
  CHECK(elsewhere(kTryEx) == Errno{EWOULDBLOCK});
  OK(::flock(fd, LOCK_UN));
  CHECK(elsewhere(kTryEx) == Errno{});
}

TEST_CASE("flock: belongs to the open file: two opens of one process exclude each other") {
  const Fd one = open_fd("f", O_CREAT | O_RDWR);
  const Fd two = open_fd("f", O_RDWR);
  OK(::flock(one, LOCK_EX));
  FAILS(EWOULDBLOCK, ::flock(two, kTryEx));
  OK(::flock(one, LOCK_EX));  // again: nothing happens
  OK(::flock(one, LOCK_UN));
  OK(::flock(two, kTryEx));
}

TEST_CASE("flock: lives until the last duplicate is closed, over fork too") {
  Fd fd = open_fd("f", O_CREAT | O_RDWR);
  Fd twin(OK(::dup(fd)));
  OK(::flock(fd, LOCK_EX));
  Child keeper([&](Child& self) {
    self.say();
    self.await();
    return 0;
  });
  keeper.await();
  OK(fd.close());
  CHECK(elsewhere(kTryEx) == Errno{EWOULDBLOCK});
  OK(twin.close());
  CHECK(elsewhere(kTryEx) == Errno{EWOULDBLOCK});  // the child has it still
  keeper.say();
  CHECK(keeper.join() == 0);
  CHECK(elsewhere(kTryEx) == Errno{});
}

TEST_CASE("flock: unlocking through a duplicate unlocks") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  const Fd twin(OK(::dup(fd)));
  OK(::flock(fd, LOCK_EX));
  OK(::flock(twin, LOCK_UN));
  CHECK(elsewhere(kTryEx) == Errno{});
}

TEST_CASE("flock: a waiter gets the lock when it is free") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(::flock(fd, LOCK_EX));
  Child waiter([](Child& self) {
    const Fd mine = open_fd("f", O_RDWR);
    self.say();
    OK(::flock(mine, LOCK_EX));
    self.say();
    self.await();
    return 0;
  });
  waiter.await();
  OK(::flock(fd, LOCK_UN));
  waiter.await();
  FAILS(EWOULDBLOCK, ::flock(fd, kTryEx));
  waiter.say();
  CHECK(waiter.join() == 0);
  OK(::flock(fd, kTryEx));
}

TEST_CASE("flock: a killed process has let go") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  Child holder([](Child& self) {
    const Fd mine = open_fd("f", O_RDWR);
    OK(::flock(mine, LOCK_EX));
    self.say();
    ::pause();
    return 0;
  });
  holder.await();
  FAILS(EWOULDBLOCK, ::flock(fd, kTryEx));
  OK(::kill(holder.pid(), SIGKILL));
  CHECK(holder.join() == 128 + SIGKILL);
  OK(::flock(fd, LOCK_EX));  // waits for what is left of the process
}

TEST_CASE("flock: a signal interrupts the wait") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(::flock(fd, LOCK_EX));
  const int result = in_child([] {
    struct sigaction act {};
    act.sa_handler = [](int) {};
    OK(::sigaction(SIGALRM, &act, nullptr));
    const itimerval soon{{0, 20'000}, {0, 20'000}};  // again and again: one may come too early
    OK(::setitimer(ITIMER_REAL, &soon, nullptr));
    const Fd mine = open_fd("f", O_RDWR);
    return ::flock(mine, LOCK_EX) == -1 ? errno : 0;
  });
  CHECK(Errno{result} == Errno{EINTR});
}

TEST_CASE("flock: any open file will do, also for reading, and directories") {
  make_file("f");
  make_dir("d");
  const Fd reader = open_fd("f", O_RDONLY);
  OK(::flock(reader, LOCK_EX));
  const Fd dir = open_fd("d", O_RDONLY);
  const Fd same = open_fd("d", O_RDONLY);
  OK(::flock(dir, LOCK_EX));
  FAILS(EWOULDBLOCK, ::flock(same, kTrySh));
}

TEST_CASE("flock: follows the file, not its name") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(::flock(fd, LOCK_EX));
  OK(::link("f", "g"));
  OK(::rename("f", "h"));
  const Fd other = open_fd("g", O_RDWR);
  FAILS(EWOULDBLOCK, ::flock(other, kTryEx));
  make_file("f");
  CHECK(elsewhere(kTryEx) == Errno{});
}

TEST_CASE("flock: does not disturb fcntl locks") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  OK(::flock(fd, LOCK_EX));
  CHECK(in_child([] {
          const Fd mine = open_fd("f", O_RDWR);
          struct flock range {};
          range.l_type = F_WRLCK;
          return outcome(::fcntl(mine, F_SETLK, &range)).value;
        }) == 0);
}

TEST_CASE("flock: errors") {
  const Fd fd = open_fd("f", O_CREAT | O_RDWR);
  FAILS(EBADF, ::flock(-1, LOCK_EX));
  FAILS(EINVAL, ::flock(fd, 0));
  FAILS(EINVAL, ::flock(fd, LOCK_SH | LOCK_EX));
}

}  // namespace
}  // namespace fermata::posix
