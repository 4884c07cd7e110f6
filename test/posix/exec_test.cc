// execve(2) from the directory, and ETXTBSY.
#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

void copy_program(const char* from, const char* to) { make_file(to, content_of(from), 0755); }

/// The exit code of `path`, run by a child process; the errno of a failed execve plus 1000.
int exit_code_of(const char* path, const char* argument = nullptr) {
  const pid_t pid = OK(::fork());
  if (pid == 0) {
    ::execl(path, path, argument, static_cast<char*>(nullptr));
    ::_exit(errno >= 100 ? 255 : 100 + errno);
  }
  int status = 0;
  OK(::waitpid(pid, &status, 0));
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return code >= 100 ? 900 + code : code;
}

TEST_CASE("exec: programs and scripts run, in place and after a rename") {
  copy_program("/bin/true", "yes");
  copy_program("/bin/false", "no");
  CHECK(exit_code_of("./yes") == 0);
  CHECK(exit_code_of("./no") == 1);
  OK(::rename("no", "yes"));
  CHECK(exit_code_of("./yes") == 1);
  make_file("script", "#!/bin/sh\nexit 7\n", 0755);
  CHECK(exit_code_of("./script") == 7);
}

TEST_CASE("exec: needs execute permission and a program") {
  copy_program("/bin/true", "f");
  OK(::chmod("f", 0644));
  CHECK(exit_code_of("./f") == 1000 + EACCES);
  make_file("text", "no program", 0755);
  CHECK(exit_code_of("./text") == 1000 + ENOEXEC);
  CHECK(exit_code_of("./missing") == 1000 + ENOENT);
  make_dir("d");
  CHECK(exit_code_of("./d") == 1000 + EACCES);
  if (is_root()) {
    OK(::chmod("f", 0700));
    CHECK(as(kAlice, [] { return ::execl("./f", "./f", nullptr); }) == Errno{EACCES});
  }
}

TEST_CASE("exec: setuid and setgid take effect") {
  NEEDS_ROOT();
  copy_program("/usr/bin/id", "id");
  OK(::chown("id", kBob.uid, kBob.gid));
  OK(::chmod("id", 06755));
  const int result = in_child([] {
    OK(::setresgid(kAlice.gid, kAlice.gid, kAlice.gid));
    OK(::setresuid(kAlice.uid, kAlice.uid, kAlice.uid));
    int fds[2];
    OK(::pipe(fds));
    if (OK(::fork()) == 0) {
      ::dup2(fds[1], STDOUT_FILENO);
      ::execl("./id", "./id", "-u", nullptr);
      ::_exit(1);
    }
    char text[32] = {};
    OK(::read(fds[0], text, sizeof text - 1));
    return std::atoi(text) == static_cast<int>(kBob.uid) ? 0 : 1;
  });
  CHECK(result == 0);
}

/// A copy of sleep that runs until this object ends.
class Running {
 public:
  Running() {
    copy_program("/bin/sleep", "running");
    int fds[2];
    OK(::pipe2(fds, O_CLOEXEC));
    pid_ = OK(::fork());
    if (pid_ == 0) {
      ::execl("./running", "./running", "60", nullptr);
      ::_exit(1);
    }
    ::close(fds[1]);
    char byte = 0;
    OK(::read(fds[0], &byte, 1));  // ends when execve has closed the other side
    ::close(fds[0]);
  }
  ~Running() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  bool lives() const { return ::waitpid(pid_, nullptr, WNOHANG) == 0; }

 private:
  pid_t pid_;
};

TEST_CASE("exec: a running program is ETXTBSY for writers") {
  const Running program;
  FAILS(ETXTBSY, ::open("running", O_WRONLY));
  FAILS(ETXTBSY, ::open("running", O_RDWR));
  FAILS(ETXTBSY, ::open("running", O_WRONLY | O_TRUNC));
  FAILS(ETXTBSY, ::truncate("running", 0));
  const Fd fd(OK(::open("running", O_RDONLY)));
  CHECK(program.lives());
}

TEST_CASE("exec: a running program may be renamed, replaced, unlinked and changed in mode") {
  const Running program;
  OK(::chmod("running", 0700));
  make_file("new", "new");
  OK(::rename("new", "running"));
  CHECK(content_of("running") == "new");
  OK(::unlink("running"));
  CHECK(program.lives());
}

TEST_CASE("exec: a file that is open for writing does not run") {
  copy_program("/bin/true", "f");
  {
    const Fd fd = open_fd("f", O_WRONLY);
    CHECK(exit_code_of("./f") == 1000 + ETXTBSY);
  }
  CHECK(exit_code_of("./f") == 0);
}

TEST_CASE("exec: a program that has just been written runs, again and again") {
  for (int i = 0; i < 5; ++i) {
    make_file("s", "#!/bin/sh\nexit " + std::to_string(i) + "\n", 0755);
    CHECK(exit_code_of("./s") == i);
  }
}

}  // namespace
}  // namespace fermata::posix
