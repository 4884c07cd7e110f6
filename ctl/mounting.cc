#include "ctl/mounting.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "ctl/daemon_reply.h"
#include "ctl/node_client.h"
#include "ctl/process.h"

namespace fermata::ctl {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

constexpr auto kMountName = "fermata-mountd";
constexpr int kMountdExitDirty = 2;  // mountd/main.cc

std::vector<std::string> command_line(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/cmdline");
  std::vector<std::string> arguments;
  for (std::string argument; std::getline(file, argument, '\0');) arguments.push_back(argument);
  return arguments;
}

std::string normal(const std::string& path) {
  std::string result = fs::absolute(path).lexically_normal().string();
  while (result.size() > 1 && result.back() == '/') result.pop_back();
  return result;
}

/// The value of `flag` in a command line, as "--flag value" or "--flag=value".
std::string value_of(const std::vector<std::string>& arguments, const std::string& flag) {
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == flag && i + 1 < arguments.size()) return arguments[i + 1];
    if (arguments[i].rfind(flag + "=", 0) == 0) return arguments[i].substr(flag.size() + 1);
  }
  return {};
}

/// The command lines of the mount daemons that run.
std::vector<std::vector<std::string>> daemons() {
  std::vector<std::vector<std::string>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc", error)) {
    const std::string pid = entry.path().filename().string();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    auto arguments = command_line(pid);
    if (!arguments.empty() && fs::path(arguments[0]).filename() == kMountName)
      found.push_back(std::move(arguments));
  }
  return found;
}

}  // namespace

std::string default_cache_dir(const std::string& mount_point) {
  std::string name = normal(mount_point).substr(1);
  for (char& c : name)
    if (c == '/') c = '-';
  if (name.empty()) name = "root";
  if (geteuid() == 0) return "/var/cache/fermata/" + name;
  if (const char* base = std::getenv("XDG_CACHE_HOME"); base != nullptr && *base == '/')
    return std::string(base) + "/fermata/" + name;
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : "/tmp") + "/.cache/fermata/" + name;
}

int mount_in_background(const Context& context, const MountRequest& request) {
  if (request.path != "/") {
    complain("only the root of the tree can be mounted: use HOST:PORT:/ (not " + request.path +
             ")");
    return kExitMountFailed;
  }
  if (is_fermata_mount(request.mount_point)) {
    complain(request.mount_point +
             (is_dead_mount(request.mount_point)
                  ? " is a Fermata mount whose daemon is gone; nothing was changed. First: fermata "
                    "umount " +
                        request.mount_point
                  : " is a Fermata mount already; nothing was changed"));
    return kExitMountFailed;
  }
  if (const std::string why = unknown_hosts(request.servers); !why.empty()) {
    complain(why + "; nothing was changed");
    return kExitMountFailed;
  }
  std::error_code error;
  const bool made = fs::create_directories(request.mount_point, error);
  if (error) {
    complain("cannot make the mount point " + request.mount_point + ": " + error.message());
    return kExitMountFailed;
  }
  const std::string cache =
      request.cache_dir.empty() ? default_cache_dir(request.mount_point) : request.cache_dir;
  fs::create_directories(cache, error);
  if (error) {
    complain("cannot make the cache directory " + cache + ": " + error.message());
    return kExitMountFailed;
  }
  std::string servers;
  for (const std::string& server : request.servers)
    servers += (servers.empty() ? "" : ",") + server;
  std::vector<std::string> argv = {
      context.bin_dir + "/" + kMountName, "--servers",   servers,      "--mount-point",
      normal(request.mount_point),        "--cache-dir", normal(cache)};
  if (request.foreground) {
    argv.push_back("--foreground");
  } else {
    argv.insert(argv.end(),
                {"--pidfile", request.pidfile.empty() ? cache + "/mountd.pid" : request.pidfile});
    argv.insert(argv.end(), {"--log", request.log.empty() ? cache + "/mountd.log" : request.log});
  }
  for (const std::string& option : request.options) argv.insert(argv.end(), {"-o", option});
  std::optional<SlowNote> note;
  if (!request.foreground)
    note.emplace("waiting until the mount answers (the servers are " + servers +
                 "; they have 30 seconds)");
  const auto code = request.foreground ? run_in_foreground(argv) : run_program(argv);
  note.reset();
  if (code && *code == 0) return kExitOk;
  if (made && !is_fermata_mount(request.mount_point)) fs::remove(request.mount_point, error);
  if (!code) {
    complain("cannot run " + argv[0] + ": " + code.error().message());
    return kExitMountFailed;
  }
  // In the foreground this is the daemon's whole life: it may have ended with work uncommitted.
  return request.foreground && *code == kMountdExitDirty ? kExitError : kExitMountFailed;
}

Result<std::string> cache_dir_of(const std::string& mount_point) {
  const std::string wanted = normal(mount_point);
  for (const auto& arguments : daemons()) {
    const std::string target = value_of(arguments, "--mount-point");
    const std::string cache = value_of(arguments, "--cache-dir");
    if (!target.empty() && !cache.empty() && normal(target) == wanted) return cache;
  }
  return std::errc::no_such_process;
}

bool is_dead_mount(const std::string& mount_point) {
  struct stat found {};
  // A daemon that runs may not answer just now: it is not asked.
  return is_fermata_mount(mount_point) && !cache_dir_of(mount_point) &&
         stat(mount_point.c_str(), &found) != 0 && errno == ENOTCONN;
}

std::vector<std::string> mounts_of(const std::vector<std::string>& servers) {
  std::vector<std::string> found;
  for (const auto& arguments : daemons()) {
    const std::string given = "," + value_of(arguments, "--servers") + ",";
    const std::string target = value_of(arguments, "--mount-point");
    const bool ours = std::any_of(servers.begin(), servers.end(), [&](const std::string& server) {
      return given.find("," + server + ",") != std::string::npos;
    });
    if (ours && is_fermata_mount(target)) found.push_back(normal(target));
  }
  return found;
}

Result<std::string> ask_mount(const std::string& mount_point, const std::string& request_json,
                              std::chrono::milliseconds timeout) {
  FM_TRY(const std::string cache, cache_dir_of(mount_point));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = cache + "/control.sock";
  // sun_path holds 107 bytes: a longer path is reached through its directory's descriptor.
  int directory = -1;
  std::string short_path = path;
  if (path.size() >= sizeof address.sun_path) {
    directory = open(cache.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return last_errno();
    short_path = "/proc/self/fd/" + std::to_string(directory) + "/control.sock";
  }
  std::memcpy(address.sun_path, short_path.c_str(), short_path.size() + 1);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return last_errno();
  std::error_code error;
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) error = last_errno();
  const std::string line = request_json + "\n";
  if (!error &&
      send(fd, line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size()))
    error = last_errno();
  const auto until = std::chrono::steady_clock::now() + timeout;
  while (!error && (answer.empty() || answer.back() != '\n')) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
                          until - std::chrono::steady_clock::now())
                          .count();
    pollfd ready{fd, POLLIN, 0};
    if (left <= 0 || poll(&ready, 1, static_cast<int>(left)) == 0) {
      error = std::make_error_code(std::errc::timed_out);
      break;
    }
    char buffer[65536];
    const ssize_t size = recv(fd, buffer, sizeof buffer, 0);
    if (size < 0 && errno != EINTR) error = last_errno();
    if (size == 0) break;
    if (size > 0) answer.append(buffer, static_cast<std::size_t>(size));
  }
  close(fd);
  if (directory >= 0) close(directory);
  if (error) return error;
  if (answer.empty()) return Errc::kConnectionLost;
  return answer;
}

Result<json::object> end_mount(const std::string& mount_point, std::chrono::milliseconds patience) {
  const SlowNote note("waiting until everything that was written on " + mount_point +
                      " is committed");
  const auto until = std::chrono::steady_clock::now() + patience;
  const auto answer = ask_mount(mount_point, R"({"verb":"shutdown"})", patience);
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      until - std::chrono::steady_clock::now());
  if (!wait_until(left,
                  [&] { return !is_fermata_mount(mount_point) && !cache_dir_of(mount_point); }))
    return answer ? std::make_error_code(std::errc::timed_out) : answer.error();
  if (!answer) {
    const bool was_ending = answer.error() == std::errc::no_such_process ||
                            answer.error() == std::errc::no_such_file_or_directory ||
                            answer.error() == std::errc::connection_refused;
    return was_ending ? Result<json::object>(json::object{}) : answer.error();
  }
  std::error_code error;
  json::value reply = json::parse(*answer, error);
  return !error && reply.is_object() ? std::move(reply.as_object()) : json::object{};
}

bool complain_left(const json::object& told, const std::string& when) {
  constexpr std::size_t kNamed = 20;
  const auto count = number_of(told, "uncommitted");
  if (count != 0) {
    std::string text = std::to_string(count) + (count == 1 ? " file" : " files") +
                       " could not be committed: the work stays in the cache and is committed " +
                       when;
    const auto files = objects_of(told, "files");
    const std::size_t named = std::min(files.size(), kNamed);
    for (std::size_t i = 0; i < named; ++i)
      text += "\n  " + text_of(files[i], "file") + ": " + text_of(files[i], "why");
    if (count > named && named != 0) text += "\n  and " + std::to_string(count - named) + " more";
    complain(text);
  }
  const auto conflicts = number_of(told, "conflict_files");
  if (conflicts != 0) {
    std::string text = std::to_string(conflicts) +
                       (conflicts == 1 ? " conflict is" : " conflicts are") +
                       " kept in the cache: what was written here and refused, as the file had "
                       "changed or gone. Copy the bytes to where they belong, or forget them with "
                       "`fermata cache drop`";
    const auto files = objects_of(told, "conflicts");
    const std::size_t named = std::min(files.size(), kNamed);
    for (std::size_t i = 0; i < named; ++i)
      text += "\n  " + text_of(files[i], "file") + ": " + text_of(files[i], "bytes_at");
    if (conflicts > named) text += "\n  and " + std::to_string(conflicts - named) + " more";
    complain(text);
  }
  return count != 0 || number_of(told, "refused") != 0;
}

bool complain_left_in(const std::string& cache_dir, const json::object& told) {
  return complain_left(told, "at the next mount with that cache, " + cache_dir);
}

void complain_ended(const std::string& mount_point, const std::string& cache_dir) {
  complain("the daemon of " + mount_point +
           " ended without a word (see its log): what it had not "
           "committed is in " +
           cache_dir + " and is committed at the next mount with that cache");
}

bool in_use(const std::string& mount_point) {
  const bool busy = umount2(mount_point.c_str(), MNT_EXPIRE) != 0 && errno == EBUSY;
  // The mark that it has left there would let the next question unmount: a visit takes it away.
  if (const int visit = open(mount_point.c_str(), O_PATH | O_CLOEXEC); visit >= 0) close(visit);
  return busy;
}

bool detach(const std::string& mount_point) {
  if (umount2(mount_point.c_str(), MNT_DETACH) == 0) return true;
  if (errno == EINVAL) return true;  // not mounted any more
  const auto code = run_program({"/usr/bin/fusermount3", "-u", "-z", "-q", mount_point});
  return code && *code == 0;
}

}  // namespace fermata::ctl
