// Requests over io_uring: when it is used, and what it must not do worse than /dev/fuse. Everything
// else about sessions is tested over both ways (FERMATA_TEST_IO_URING, see fixture.h).
#include <sched.h>
#include <sys/xattr.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include "test/integration/fuse/fixture.h"

namespace fermata::test {
namespace {

using Catch::Matchers::ContainsSubstring;
using mountd::IoUring;

/// A MirrorFs, mounted if `wish` can be had.
struct Attempt {
  explicit Attempt(IoUring wish, MirrorFs::Options fs_options = {}, unsigned loop_count = 2)
      : loops(loop_count), fs(back.path(), fs_options) {
    mountd::MountOptions options;
    options.mount_point = mnt.path();
    options.passthrough = false;
    options.allow_own_process = true;
    options.io_uring = wish;
    session = mountd::FuseSession::mount(options, loops, fs, error);
    if (session) fs.attach(*session);
  }
  ~Attempt() {
    if (session) session->stop(200ms);
  }
  ScratchDir back, mnt;
  mountd::Loops loops;
  TestFs fs;
  mountd::MountError error;
  std::unique_ptr<mountd::FuseSession> session;
};

/// The program's own wish about all mounts would meet the test's.
void skip_unless_free() {
  skip_without_fuse();
  if (tests_use_io_uring()) SKIP("runs where FERMATA_TEST_IO_URING is not set");
}

bool stay_on_cpu(unsigned cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  return ::sched_setaffinity(0, sizeof one, &one) == 0;
}

int stat_error(const std::string& path) {
  struct stat attr {};
  return ::stat(path.c_str(), &attr) == 0 ? 0 : errno;
}

}  // namespace

TEST_CASE("io_uring: where the kernel has it off, auto uses /dev/fuse and on says why not",
          "[integration][fuse][io_uring]") {
  skip_unless_free();
  IoUringSwitch off(IoUringSwitch::To::kOff);
  if (!off.trouble().empty()) SKIP(off.trouble());
  Attempt automatic(IoUring::kAuto);
  REQUIRE(automatic.session);
  CHECK_FALSE(automatic.session->has_io_uring());
  put(automatic.mnt / "a", "text");
  CHECK(get(automatic.mnt / "a") == "text");
  CHECK(automatic.session->request_counts().over_io_uring == 0);
  CHECK(automatic.session->request_counts().over_device > 0);

  Attempt demanded(IoUring::kOn);
  CHECK_FALSE(demanded.session);
  CHECK_THAT(demanded.error.message, ContainsSubstring("io_uring=on is not possible"));
  CHECK_FALSE(mountd::find_mount(demanded.mnt.path()));
}

TEST_CASE("io_uring: where the kernel offers it, auto uses it, and off does not",
          "[integration][fuse][io_uring]") {
  skip_unless_free();
  IoUringSwitch on(IoUringSwitch::To::kOn);
  if (!on.trouble().empty()) SKIP(on.trouble());
  Attempt automatic(IoUring::kAuto);
  REQUIRE(automatic.session);
  CHECK(automatic.session->has_io_uring());
  put(automatic.mnt / "a", "text");
  CHECK(get(automatic.mnt / "a") == "text");
  const auto counts = automatic.session->request_counts();
  CHECK(counts.over_io_uring >= 5);
  // INIT, and what has no answer.
  CHECK(
      eventually([&] { return ::unlink((automatic.mnt / "a").c_str()) == 0 || errno == ENOENT; }));
  CHECK(eventually([&] { return automatic.fs.lookup_count() == 0; }));

  Attempt refused(IoUring::kOff);
  REQUIRE(refused.session);
  CHECK_FALSE(refused.session->has_io_uring());
  put(refused.mnt / "a", "text");
  CHECK(refused.session->request_counts().over_io_uring == 0);
}

TEST_CASE("io_uring: one loop serves the queues of all CPUs", "[integration][fuse][io_uring]") {
  skip_unless_free();
  IoUringSwitch on(IoUringSwitch::To::kOn);
  if (!on.trouble().empty()) SKIP(on.trouble());
  Attempt m(IoUring::kOn, {}, 1);
  INFO(m.error.message);
  REQUIRE(m.session);
  const auto cpu_count = std::thread::hardware_concurrency();
  for (unsigned cpu = 0; cpu < cpu_count; ++cpu) {
    const auto child = in_child([&] {
      if (!stay_on_cpu(cpu)) return 99;
      return stat_error(m.mnt / ("none-" + std::to_string(cpu)));
    });
    const int status = wait_child(child);
    CHECK((WEXITSTATUS(status) == ENOENT || WEXITSTATUS(status) == 99));
  }
}

TEST_CASE("io_uring: large writes and reads pass the daemon unaltered",
          "[integration][fuse][io_uring]") {
  skip_unless_free();
  IoUringSwitch on(IoUringSwitch::To::kOn);
  if (!on.trouble().empty()) SKIP(on.trouble());
  MirrorFs::Options options;
  options.open_flags = mountd::kOpenDirectIo;
  Attempt m(IoUring::kOn, options);
  INFO(m.error.message);
  REQUIRE(m.session);
  std::string big(33u << 20, '\0');
  for (std::size_t i = 0; i < big.size(); i += 8) {
    const std::uint64_t word = i * 0x9e3779b97f4a7c15ULL;
    std::memcpy(big.data() + i, &word, 8);
  }
  const int fd = ::open((m.mnt / "f").c_str(), O_RDWR | O_CREAT, 0600);
  REQUIRE(fd >= 0);
  REQUIRE(::pwrite(fd, big.data(), big.size(), 0) == static_cast<ssize_t>(big.size()));
  CHECK((get(m.back / "f") == big));
  std::string again(big.size(), '\0');
  REQUIRE(::pread(fd, again.data(), again.size(), 0) == static_cast<ssize_t>(again.size()));
  CHECK((again == big));
  // Odd places and sizes, and the end of the file.
  for (const std::size_t at : {1ul, 4095ul, (1ul << 20) - 1, big.size() - 5}) {
    CAPTURE(at);
    const auto got = ::pread(fd, again.data(), (1u << 20) + 3, static_cast<off_t>(at));
    const auto expected = std::min<std::size_t>((1u << 20) + 3, big.size() - at);
    CHECK(got == static_cast<ssize_t>(expected));
    CHECK((big.compare(at, expected, again, 0, expected) == 0));
  }
  CHECK(::close(fd) == 0);
  CHECK(m.fs.count("write") <= 34);  // a MiB each
  // The longest value and list that the kernel asks for.
  const std::string value(60'000, 'v');
  const auto path = m.back / "f";
  if (::setxattr(path.c_str(), "user.long", value.data(), 3000, 0) == 0) {
    std::string got(65536, '\0');
    CHECK(::getxattr((m.mnt / "f").c_str(), "user.long", got.data(), got.size()) == 3000);
    CHECK(::listxattr((m.mnt / "f").c_str(), got.data(), got.size()) >= 10);
  }
}

// All of one CPU, so of one queue; more than it has entries at the start.
TEST_CASE("io_uring: a queue whose requests wait still serves", "[integration][fuse][io_uring]") {
  skip_unless_free();
  IoUringSwitch on(IoUringSwitch::To::kOn);
  if (!on.trouble().empty()) SKIP(on.trouble());
  Attempt m(IoUring::kOn);
  INFO(m.error.message);
  REQUIRE(m.session);
  const unsigned cpu = m.loops.cpu(1).value_or(0);
  put(m.back / "file", "x");
  CHECK(get(m.mnt / "file") == "x");  // what is stirred with
  constexpr std::size_t kWaiting = 300;
  // A burst: all of them come between two turns of the loop.
  int gate[2];
  REQUIRE(::pipe(gate) == 0);
  std::vector<pid_t> children;
  for (std::size_t i = 0; i < kWaiting; ++i) {
    children.push_back(in_child([&, i] {
      char byte = 0;
      ::close(gate[1]);
      if (!stay_on_cpu(cpu) || ::read(gate[0], &byte, 1) != 0) return 99;
      return stat_error(m.mnt / ("hang-" + std::to_string(i)));
    }));
  }
  ::close(gate[0]);
  ::close(gate[1]);
  CHECK(eventually([&] { return m.session->pending().size() == kWaiting; }, 10s));
  const auto late = in_child([&] {
    if (!stay_on_cpu(cpu)) return 99;
    return stat_error(m.mnt / "none");
  });
  CHECK(WEXITSTATUS(wait_child(late)) == ENOENT);
  for (const auto child : children) ::kill(child, SIGKILL);
  for (const auto child : children) CHECK(wait_child(child, 10s) == SIGKILL);
  CHECK(eventually([&] { return m.session->pending().empty(); }));
}

}  // namespace fermata::test
