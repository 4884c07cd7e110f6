// A MirrorFs mounted on a scratch directory, served by this very process: over /dev/fuse, or over
// io_uring with FERMATA_TEST_IO_URING=1 in the environment.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch_test_macros.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <thread>

#include "mountd/fuse/fuse_mount.h"
#include "mountd/fuse/fuse_session.h"
#include "mountd/fuse/loops.h"
#include "test/support/fuse/mirror_fs.h"
#include "test/support/io_uring_switch.h"

namespace fermata::test {

using namespace std::chrono_literals;

inline void skip_without_fuse() {
  if (std::getenv("FERMATA_DEBUG") != nullptr) spdlog::set_level(spdlog::level::debug);
  if (::geteuid() != 0) SKIP("needs root: mounting is a privilege");
  if (::access("/dev/fuse", R_OK | W_OK) != 0) SKIP("needs /dev/fuse");
  if (const auto why = why_no_io_uring(); !why.empty()) SKIP(why);
}

class ScratchDir {
 public:
  ScratchDir() {
    std::string name = (std::filesystem::temp_directory_path() / "fermata-fuse-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = std::filesystem::canonical(name).string();
  }
  ~ScratchDir() {
    // Never walk into a mount that a failed test left.
    while (mountd::find_mount(path_)) ::umount2(path_.c_str(), MNT_DETACH);
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

/// The mirror with names that misbehave: lookup of "hang..." answers only when interrupted,
/// "forever" never, "thread" from another thread, "dropped" not at all; mkdir of "held" waits for
/// let_go().
class TestFs : public MirrorFs {
 public:
  using MirrorFs::MirrorFs;
  ~TestFs() override {
    for (auto& each : threads_) each.join();
  }

  void lookup(Ctx context, NodeHandle parent, std::string_view name,
              mountd::EntryReply reply) override {
    if (name.starts_with("hang")) {
      auto kept = std::make_shared<mountd::EntryReply>(std::move(reply));
      kept->on_interrupt([this, kept] {
        counted("interrupt");
        kept->error(EINTR);
      });
      counted("hang");
    } else if (name == "forever") {
      MutexLock lock(mutex_);
      kept_.push_back(std::move(reply));
      waiting_.store(true);
    } else if (name == "thread") {
      MutexLock lock(mutex_);
      threads_.emplace_back([this, context, parent, r = std::move(reply)]() mutable {
        std::this_thread::sleep_for(5ms);
        MirrorFs::lookup(context, parent, "thread", std::move(r));
      });
    } else if (name == "dropped") {
      auto gone = std::move(reply);
    } else {
      MirrorFs::lookup(context, parent, name, std::move(reply));
    }
  }

  void mkdir(Ctx context, NodeHandle parent, std::string_view name, mode_t mode,
             mountd::EntryReply reply) override {
    if (name != "held") return MirrorFs::mkdir(context, parent, name, mode, std::move(reply));
    MutexLock lock(mutex_);
    kept_.push_back(std::move(reply));
    waiting_.store(true);
  }
  bool waiting() const { return waiting_.load(); }
  void let_go() {
    MutexLock lock(mutex_);
    for (auto& each : kept_) each.error(EPERM);
    kept_.clear();
  }

 private:
  Mutex mutex_;
  std::vector<mountd::EntryReply> kept_;
  std::vector<std::thread> threads_;
  std::atomic<bool> waiting_{false};
};

struct Mounted {
  explicit Mounted(MirrorFs::Options options = {}, unsigned readers = 0)
      : loops(2), fs(back.path(), options) {
    mountd::MountOptions mount_options;
    mount_options.mount_point = mnt.path();
    mount_options.fs_name = "mirror,of \\" + back.path();
    mount_options.no_suid = false;
    mount_options.passthrough = options.passthrough;
    mount_options.reader_count = readers;
    mount_options.allow_own_process = true;
    mount_options.io_uring = tests_use_io_uring() ? mountd::IoUring::kOn : mountd::IoUring::kOff;
    mountd::MountError error;
    session = mountd::FuseSession::mount(mount_options, loops, fs, error);
    INFO(error.message);
    REQUIRE(session);
    REQUIRE(session->has_io_uring() == tests_use_io_uring());
    fs.attach(*session);
  }
  ~Mounted() {
    if (session) session->stop(200ms);
  }
  bool is_mounted() const { return mountd::find_mount(mnt.path()).has_value(); }

  ScratchDir back, mnt;
  mountd::Loops loops;
  TestFs fs;
  std::unique_ptr<mountd::FuseSession> session;
};

inline void put(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}
inline std::string get(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}
inline bool eventually(const std::function<bool()>& condition,
                       std::chrono::milliseconds patience = 3s) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

/// Runs `work` in a child process; its exit status is the result. Only system calls in `work`.
inline pid_t in_child(const std::function<int()>& work) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGTERM, SIG_DFL);  // Catch2 has taken it
  // An inherited descriptor of the device, or of a ring, would keep the connection alive.
  for (int fd = 3; fd < 256; ++fd) {
    char target[64] = {};
    const auto link = "/proc/self/fd/" + std::to_string(fd);
    if (::readlink(link.c_str(), target, sizeof target - 1) > 0 &&
        (std::string_view(target) == "/dev/fuse" ||
         std::string_view(target) == "anon_inode:[io_uring]")) {
      ::close(fd);
    }
  }
  ::_exit(work());
}
/// The wait status, or -1 when the child did not end in time.
inline int wait_child(pid_t child, std::chrono::milliseconds patience = 5s) {
  int status = -1;
  const bool ended =
      eventually([&] { return ::waitpid(child, &status, WNOHANG) == child; }, patience);
  return ended ? status : -1;
}

}  // namespace fermata::test
