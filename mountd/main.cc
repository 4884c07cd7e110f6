// fermata-mountd: one mount of a cluster's tree. Exit codes: 0 a clean end, 1 it could not start or
// wrong usage, 2 it ended with changes that could not be committed (they stay in the cache).
#include <fcntl.h>
#include <signal.h>
#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/cli/cli.h"
#include "mountd/fs/mountd.h"

using namespace fermata;
using namespace fermata::mountd;

namespace {

constexpr int kExitFailed = 1;
constexpr int kExitDirty = 2;

struct Flags {
  MountdOptions options;
  std::string servers;
  std::string cache_size;
  std::vector<std::string> mount_options;
};

void complain(const std::string& message) {
  std::fprintf(stderr, "fermata-mountd: %s\n", message.c_str());
}

void add_flags(CLI::App& app, Flags& flags) {
  auto& options = flags.options;
  app.add_option("--servers", flags.servers,
                 "Storage nodes, HOST:PORT,...; one that answers is enough")
      ->required();
  app.add_option("--mount-point", options.mount_point, "An existing directory")->required();
  app.add_option("--cache-dir", options.cache_dir,
                 "Directory for copies of files; of this mount alone")
      ->required();
  app.add_option("--cache-size", flags.cache_size,
                 "Of the copies together, such as 10G (the default)");
  app.add_option("-o", flags.mount_options, mount_option_names());
  app.add_flag("--foreground,-f", options.foreground, "Stay in the foreground");
  app.add_option("--pidfile", options.pidfile, "Write the process id here");
  app.add_option("--log", options.log_file, "Log to this file instead of stderr");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warn or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_option("--loops", options.loop_count, "Event loops; 0 is one per CPU");
}

std::string absolute(const std::string& path) {
  std::string out = std::filesystem::absolute(path).lexically_normal().string();
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  return out;
}

/// Empty, or what is wrong.
std::string finish_options(Flags& flags) {
  auto& options = flags.options;
  for (std::size_t begin = 0; begin < flags.servers.size();) {
    const auto comma = std::min(flags.servers.find(',', begin), flags.servers.size());
    const auto server = flags.servers.substr(begin, comma - begin);
    if (!parse_address(server)) return "--servers wants HOST:PORT,..., not \"" + server + "\"";
    options.servers.push_back(server);
    begin = comma + 1;
  }
  if (options.servers.empty()) return "--servers wants at least one HOST:PORT";
  if (!flags.cache_size.empty()) {
    const auto size = parse_size(flags.cache_size);
    if (!size) return "--cache-size wants a size such as 10G, not \"" + flags.cache_size + "\"";
    options.cache_size_bytes = *size;
  }
  for (const auto& text : flags.mount_options) {
    const auto error = apply_mount_options(options, text);
    if (!error.empty()) return error;
  }
  options.mount_point = absolute(options.mount_point);
  options.cache_dir = absolute(options.cache_dir);
  if (!options.log_file.empty()) options.log_file = absolute(options.log_file);
  if (!options.pidfile.empty()) options.pidfile = absolute(options.pidfile);
  return {};
}

/// Forks; the parent ends when the child has said how its start went. Before any thread is made.
int go_to_background() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    complain("pipe: " + last_errno().message());
    std::exit(kExitFailed);
  }
  const pid_t pid = ::fork();
  if (pid < 0) {
    complain("fork: " + last_errno().message());
    std::exit(kExitFailed);
  }
  if (pid > 0) {
    ::close(ends[1]);
    char code = kExitFailed;  // an end without a word
    const auto got = ::read(ends[0], &code, 1);
    ::_exit(got == 1 ? code : kExitFailed);
  }
  ::close(ends[0]);
  ::setsid();
  return ends[1];
}

/// The mount answers: the terminal is let go, so that nobody waits for the end of our output.
void announce(int parent_fd) {
  if (parent_fd < 0) return;
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, fd);
  ::close(null);
  const char code = 0;
  [[maybe_unused]] const auto written = ::write(parent_fd, &code, 1);
  ::close(parent_fd);
}

bool set_up_log(const MountdOptions& options) {
  try {
    auto logger = options.log_file.empty() ? spdlog::stderr_logger_mt("mountd")
                                           : spdlog::basic_logger_mt("mountd", options.log_file);
    logger->flush_on(spdlog::level::info);
    spdlog::set_default_logger(std::move(logger));
    spdlog::set_level(spdlog::level::from_str(options.log_level));
    return true;
  } catch (const spdlog::spdlog_ex& error) {
    complain(error.what());
    return false;
  }
}

void raise_file_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

/// SIGTERM and SIGINT, read from a descriptor: no handler runs anywhere.
class StopSignals {
 public:
  StopSignals() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
    fd_ = ::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    ::signal(SIGPIPE, SIG_IGN);
    ::signal(SIGHUP, SIG_IGN);
  }
  bool arrived() {
    signalfd_siginfo info{};
    return ::read(fd_, &info, sizeof info) == sizeof info;
  }

 private:
  int fd_ = -1;
};

int run(const MountdOptions& options, int parent_fd) {
  constexpr auto kLook = std::chrono::milliseconds(100);
  constexpr auto kPatience = std::chrono::seconds(20);
  constexpr int kQuickExitMs = 3000;
  StopSignals signals;
  auto mountd = std::make_unique<Mountd>(options);
  const std::string error = mountd->start();
  if (!error.empty()) {
    complain(error);
    if (!options.log_file.empty()) spdlog::error("{}", error);
    return kExitFailed;
  }
  if (!options.pidfile.empty()) std::ofstream(options.pidfile) << ::getpid() << "\n";
  announce(parent_fd);
  while (!mountd->wait_ended(kLook)) {
    if (signals.arrived()) break;
  }
  spdlog::info("stopping");
  // A second signal while we commit: give up on what is not committed yet, it stays in the cache.
  std::atomic<bool> stopped{false};
  std::thread watchdog([&] {
    bool again = false;
    for (int waited_ms = 0; !stopped;) {
      std::this_thread::sleep_for(kLook);
      again = again || signals.arrived();
      if (again) waited_ms += static_cast<int>(kLook.count());
      if (waited_ms < kQuickExitMs) continue;
      spdlog::warn("second signal: ending at once; what is dirty stays in the cache");
      ::umount2(options.mount_point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
      ::_exit(kExitDirty);
    }
  });
  const auto failed = mountd->stop(kPatience);
  mountd.reset();
  stopped = true;
  watchdog.join();
  if (!options.pidfile.empty()) ::unlink(options.pidfile.c_str());
  spdlog::info("ended");
  return failed == 0 ? 0 : kExitDirty;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("fermata-mountd: mounts a Fermata cluster's tree");
  app.set_version_flag("--version", FERMATA_VERSION);
  Flags flags;
  add_flags(app, flags);
  if (const auto code = parse_command_line(app, argc, argv, kExitFailed)) return *code;
  if (const auto wrong = finish_options(flags); !wrong.empty()) {
    complain(wrong);
    return kExitFailed;
  }
  const auto& options = flags.options;
  const int parent_fd = options.foreground ? -1 : go_to_background();
  if (!set_up_log(options)) return kExitFailed;
  raise_file_limit();
  return run(options, parent_fd);
}
