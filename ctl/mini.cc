// fermata mini: a whole cluster on one machine, its daemons in the background.
//
// DIR/servers     the addresses, as `fermata mount` takes them
// DIR/mini.json   what was started: cluster id, nodes, ports, mount point
// DIR/node1 ...   the nodes' data, node1.log and node1.pid beside them
// DIR/cache       the mount's cache; mount.log, mount.pid
#include <signal.h>
#include <sys/random.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <optional>

#include "common/net/free_port.h"
#include "ctl/commands.h"
#include "ctl/mounting.h"
#include "ctl/node_client.h"
#include "ctl/process.h"

namespace fermata::ctl {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;
using namespace std::chrono_literals;

constexpr auto kServerName = "fermata-serverd";
constexpr auto kMountName = "fermata-mountd";
constexpr std::size_t kNodes = 3;

struct Mini {
  std::string dir;
  std::string cluster;
  std::vector<std::string> addresses;  ///< of node 1, 2, ...
  std::string mount_point;
  std::vector<std::string> options;  ///< of the mount

  std::string node_dir(std::size_t node) const { return dir + "/node" + std::to_string(node); }
  std::string pidfile(std::size_t node) const { return node_dir(node) + ".pid"; }
  std::string log(std::size_t node) const { return node_dir(node) + ".log"; }
  std::string cache_dir() const { return dir + "/cache"; }
  /// The daemon that serves the mount point is its own.
  bool serves() const {
    const auto cache = cache_dir_of(mount_point);
    return cache && *cache == cache_dir();
  }
  bool is_mounted() const { return serves() && is_fermata_mount(mount_point); }
  pid_t pid(std::size_t node) const { return running_pid(pidfile(node), kServerName); }
  std::string servers() const {
    std::string list;
    for (const std::string& address : addresses) list += (list.empty() ? "" : ",") + address;
    return list;
  }
};

std::string random_hex(std::size_t bytes) {
  std::vector<std::uint8_t> data(bytes);
  if (getrandom(data.data(), data.size(), 0) != static_cast<ssize_t>(data.size())) std::abort();
  return to_hex(data.data(), data.size());
}

Status save(const Mini& mini) {
  json::array nodes;
  for (const std::string& address : mini.addresses) nodes.emplace_back(address);
  json::array options;
  for (const std::string& option : mini.options) options.emplace_back(option);
  const json::object document{{"version", 1},
                              {"cluster", mini.cluster},
                              {"nodes", nodes},
                              {"mount", mini.mount_point},
                              {"options", options}};
  const std::string temporary = mini.dir + "/mini.json.tmp";
  {
    std::ofstream file(temporary, std::ios::trunc);
    file << json::serialize(document) << "\n";
    std::ofstream servers(mini.dir + "/servers", std::ios::trunc);
    servers << mini.servers() << "\n";
    if (!file.flush() || !servers.flush()) return std::errc::io_error;
  }
  std::error_code error;
  fs::rename(temporary, mini.dir + "/mini.json", error);
  if (error) return error;
  return {};
}

std::string absolute_of(const std::string& path) {
  std::string wanted = fs::absolute(path).lexically_normal().string();
  while (wanted.size() > 1 && wanted.back() == '/') wanted.pop_back();
  return wanted;
}

Result<Mini> load(const std::string& dir) {
  Mini mini;
  mini.dir = absolute_of(dir);
  std::ifstream file(mini.dir + "/mini.json");
  if (!file) return std::errc::no_such_file_or_directory;
  std::string text((std::istreambuf_iterator<char>(file)), {});
  std::error_code error;
  const json::value document = json::parse(text, error);
  if (error || !document.is_object()) return Errc::kBadMessage;
  const json::object& object = document.as_object();
  const json::value* version = object.if_contains("version");
  if (version == nullptr || !version->is_int64() || version->as_int64() != 1)
    return Errc::kVersionMismatch;
  try {
    mini.cluster = object.at("cluster").as_string().c_str();
    mini.mount_point = object.at("mount").as_string().c_str();
    for (const json::value& node : object.at("nodes").as_array())
      mini.addresses.emplace_back(node.as_string().c_str());
    if (const json::value* options = object.if_contains("options"))
      for (const json::value& option : options->as_array())
        mini.options.emplace_back(option.as_string().c_str());
  } catch (const std::exception&) {
    return Errc::kBadMessage;
  }
  return mini;
}

std::string count_of_nodes(std::size_t count) {
  return std::to_string(count) + (count == 1 ? " storage node" : " storage nodes");
}

bool start_node(const Context& context, const Mini& mini, std::size_t node) {
  std::string peers;
  for (std::size_t i = 0; i < mini.addresses.size(); ++i)
    peers += (i == 0 ? "" : ",") + std::to_string(i + 1) + "=" + mini.addresses[i];
  std::error_code error;
  fs::create_directories(mini.node_dir(node), error);
  std::vector<std::string> argv = {context.bin_dir + "/" + kServerName,
                                   "--data-dir",
                                   mini.node_dir(node),
                                   "--listen",
                                   mini.addresses[node - 1],
                                   "--node-id",
                                   std::to_string(node),
                                   "--peers",
                                   peers,
                                   "--cluster-id",
                                   mini.cluster,
                                   "--pidfile",
                                   mini.pidfile(node),
                                   "--log",
                                   mini.log(node),
                                   "--background"};
  if (!fs::exists(mini.node_dir(node) + "/node.toml")) argv.push_back("--init");
  const auto code = run_program(argv);
  if (!code) {
    complain("cannot run " + argv[0] + ": " + code.error().message());
    return false;
  }
  if (*code != 0)
    complain("node " + std::to_string(node) + " did not start (exit code " + std::to_string(*code) +
             "): see " + mini.log(node));
  return *code == 0;
}

bool has_primary(NodeClient& client, const Mini& mini) {
  return look(client, mini.addresses, 500ms).primary() != nullptr;
}

// ---------------------------------------------------------------- start

struct StartFlags {
  std::string dir;
  std::optional<std::size_t> nodes;
  std::string mount_point;
  std::vector<std::string> options;
};

/// Where to mount, and how: as the flags say, else as the last time. A message and a code if that
/// cannot be.
int choose_mount(Mini& mini, const StartFlags& flags) {
  const bool runs = running_pid(mini.dir + "/mount.pid", kMountName) != 0;
  if (runs && !flags.options.empty() && flags.options != mini.options) {
    complain(mini.dir + " is mounted on " + mini.mount_point +
             " already, with other options; nothing was changed. To change them: fermata mini stop "
             "--dir " +
             mini.dir + ", then start");
    return kExitMountFailed;
  }
  if (!flags.options.empty()) mini.options = flags.options;
  const std::string before = mini.mount_point;
  if (!flags.mount_point.empty()) mini.mount_point = absolute_of(flags.mount_point);
  const std::string& wanted = mini.mount_point;
  if (wanted != before && runs) {
    complain(mini.dir + " is mounted on " + before +
             " already; nothing was changed. A second mount: fermata mount " + mini.dir +
             "/servers " + wanted);
    return kExitMountFailed;
  }
  // What its own daemon has left there, start takes away.
  const bool left = wanted == before && is_dead_mount(wanted);
  if (!wanted.empty() && is_fermata_mount(wanted) && !mini.is_mounted() && !left) {
    complain(wanted + " is another Fermata mount; nothing was changed. Give another --mount, or " +
             "first: fermata umount " + wanted);
    return kExitMountFailed;
  }
  return kExitOk;
}

void print_next(const Mini& mini) {
  const std::string dir = mini.dir;
  std::vector<std::pair<std::string, std::string>> lines;
  if (!mini.mount_point.empty())
    lines.emplace_back("cd " + mini.mount_point, "use it");
  else
    lines.emplace_back("fermata mount " + dir + "/servers MOUNTPOINT", "use it");
  lines.emplace_back("fermata status " + dir + "/servers", "how the nodes are");
  lines.emplace_back("fermata mini kill --dir " + dir + " --node primary", "what happens then?");
  lines.emplace_back("fermata mini stop --dir " + dir, "the data stays");
  std::size_t width = 0;
  for (const auto& line : lines) width = std::max(width, line.first.size());
  std::printf("\nNext:\n");
  for (const auto& [command, meaning] : lines)
    std::printf("  %-*s  # %s\n", static_cast<int>(width), command.c_str(), meaning.c_str());
}

int start(Context& context, const StartFlags& flags) {
  std::error_code error;
  const bool existed = fs::exists(flags.dir + "/mini.json", error);
  Mini mini;
  if (existed) {
    auto loaded = load(flags.dir);
    if (!loaded) {
      complain(flags.dir + "/mini.json cannot be used (" + loaded.error().message() +
               "); nothing was changed. Start in another --dir");
      return kExitError;
    }
    mini = std::move(*loaded);
    if (flags.nodes && *flags.nodes != mini.addresses.size()) {
      complain(flags.dir + " holds a cluster of " + count_of_nodes(mini.addresses.size()) +
               ", not " + std::to_string(*flags.nodes) + "; nothing was changed");
      return kExitError;
    }
  } else {
    if (fs::exists(flags.dir, error) && !fs::is_directory(flags.dir, error)) {
      complain(flags.dir + " is not a directory");
      return kExitError;
    }
    if (fs::exists(flags.dir, error) && !fs::is_empty(flags.dir, error)) {
      // An empty mount point inside it is no reason to refuse.
      for (const auto& entry : fs::directory_iterator(flags.dir, error)) {
        if (entry.is_directory() && fs::is_empty(entry.path(), error)) continue;
        complain(flags.dir +
                 " is not empty and holds no cluster of `fermata mini`: choose another --dir");
        return kExitError;
      }
    }
    fs::create_directories(flags.dir, error);
    if (error) {
      complain("cannot make " + flags.dir + ": " + error.message());
      return kExitError;
    }
    mini.dir = absolute_of(flags.dir);
    mini.cluster = random_hex(16);
    const auto ports = free_loopback_ports(flags.nodes.value_or(kNodes));
    if (!ports) {
      complain("no free ports on the loopback address: " + ports.error().message());
      return kExitError;
    }
    for (const std::uint16_t port : *ports)
      mini.addresses.push_back("127.0.0.1:" + std::to_string(port));
  }
  const Mini before = mini;
  if (const int code = choose_mount(mini, flags); code != kExitOk) return code;
  if (const Status saved = save(mini); !saved) {
    complain("cannot write in " + mini.dir + ": " + saved.error().message());
    return kExitError;
  }
  // Without one of them the others can do.
  std::size_t failed = 0;
  for (std::size_t node = 1; node <= mini.addresses.size(); ++node)
    if (mini.pid(node) == 0 && !start_node(context, mini, node)) ++failed;
  if (failed * 2 > mini.addresses.size()) return kExitError;

  NodeClient client;
  if (!wait_until(30s, [&] { return has_primary(client, mini); })) {
    complain("the nodes run but elected no primary within 30 s: see the logs in " + mini.dir);
    return kExitUnavailable;
  }
  const std::size_t running = mini.addresses.size() - failed;
  std::printf("%s %s in %s: %s\n", count_of_nodes(running).c_str(), running == 1 ? "runs" : "run",
              mini.dir.c_str(), mini.servers().c_str());
  if (is_dead_mount(mini.mount_point)) detach(mini.mount_point);
  if (!mini.mount_point.empty() && !mini.is_mounted()) {
    MountRequest request;
    request.servers = mini.addresses;
    request.mount_point = mini.mount_point;
    request.cache_dir = mini.cache_dir();
    request.pidfile = mini.dir + "/mount.pid";
    request.log = mini.dir + "/mount.log";
    request.options = mini.options;
    if (const int code = mount_in_background(context, request); code != kExitOk) {
      complain("the nodes run; nothing is mounted");
      (void)save(before);  // the next start is not to fail for this mount point again
      return code;
    }
  }
  if (!mini.mount_point.empty()) std::printf("mounted on %s\n", mini.mount_point.c_str());
  print_next(mini);
  return failed == 0 ? kExitOk : kExitError;
}

// ---------------------------------------------------------------- stop, kill, restart

Result<Mini> load_or_complain(const std::string& dir) {
  auto mini = load(dir);
  if (!mini)
    complain(dir + " holds no cluster of `fermata mini` (" + mini.error().message() +
             "): start one with `fermata mini start --dir " + dir + "`");
  return mini;
}

void complain_killed(const std::string& cache) {
  complain("the mount daemon did not end and was killed; what it had not committed is in " + cache +
           " and is committed at the next mount");
}

/// Ends the mount; what could not be committed is said and stays in the cache.
int stop_mount(const Mini& mini, bool force) {
  const std::string cache = mini.cache_dir();
  if (mini.is_mounted() && in_use(mini.mount_point))
    complain(mini.mount_point + " is in use (fuser -vm " + mini.mount_point +
             " says by whom): what is written there from now on is not committed");
  const pid_t pid = running_pid(mini.dir + "/mount.pid", kMountName);
  int code = kExitOk;
  if (pid != 0 && force) {
    kill(pid, SIGKILL);
    wait_until(10s, [pid] { return !is_alive(pid); });
  } else if (pid != 0 && mini.serves()) {
    const auto left = end_mount(mini.mount_point, 60s);
    if (left) {
      if (complain_left_in(cache, *left)) code = kExitError;
    } else if (!is_fermata_mount(mini.mount_point) && !is_alive(pid)) {
      complain_ended(mini.mount_point, cache);
      code = kExitError;
    } else if (!stop_process(pid, 10s)) {
      complain_killed(cache);
      code = kExitError;
    }
  } else if (pid != 0 && !stop_process(pid, 10s)) {
    complain_killed(cache);
    code = kExitError;
  }
  // Another mount may be there meanwhile.
  const bool left = is_fermata_mount(mini.mount_point) && !cache_dir_of(mini.mount_point);
  if (left && (pid != 0 || is_dead_mount(mini.mount_point))) detach(mini.mount_point);
  return code;
}

int stop(const std::string& dir, bool force) {
  const auto mini = load_or_complain(dir);
  if (!mini) return kExitError;
  int code = mini->mount_point.empty() ? kExitOk : stop_mount(*mini, force);
  for (const std::string& other : mounts_of(mini->addresses))
    complain(other +
             " is a mount of this cluster too: it waits until the nodes run again (fermata "
             "umount " +
             other + " ends it)");
  for (std::size_t node = 1; node <= mini->addresses.size(); ++node)
    if (const pid_t pid = mini->pid(node); pid != 0) kill(pid, SIGTERM);
  for (std::size_t node = 1; node <= mini->addresses.size(); ++node) {
    const pid_t pid = mini->pid(node);
    if (pid != 0 && !stop_process(pid, 20s)) {
      complain("node " + std::to_string(node) + " did not end in 20 s and was killed");
      code = kExitError;
    }
  }
  std::printf("stopped; the data stays in %s\n", mini->dir.c_str());
  return code;
}

/// "1", "2", ... or "primary"; 0 and a message if it is none.
std::size_t resolve_node(const Mini& mini, const std::string& which) {
  if (which == "primary") {
    NodeClient client;
    const ClusterView view = look(client, mini.addresses, 1s);
    const auto* primary = view.primary();
    if (primary == nullptr) {
      complain(view.nodes.empty() ||
                       std::none_of(view.nodes.begin(), view.nodes.end(),
                                    [](const auto& n) { return n.status.has_value(); })
                   ? "no node runs"
                   : "no node is primary just now");
      return 0;
    }
    return primary->status->node.value();
  }
  char* end = nullptr;
  const unsigned long node = std::strtoul(which.c_str(), &end, 10);
  if (which.empty() || *end != '\0' || node < 1 || node > mini.addresses.size()) {
    complain("no node '" + which + "': give 1 to " + std::to_string(mini.addresses.size()) +
             ", or primary");
    return 0;
  }
  return node;
}

int kill_node(const std::string& dir, const std::string& which) {
  const auto mini = load_or_complain(dir);
  if (!mini) return kExitError;
  const std::size_t node = resolve_node(*mini, which);
  if (node == 0) return kExitUsage;
  const pid_t pid = mini->pid(node);
  if (pid == 0) {
    complain("node " + std::to_string(node) + " does not run");
    return kExitError;
  }
  kill(pid, SIGKILL);
  wait_until(10s, [pid] { return !is_alive(pid); });
  std::printf("node %zu (pid %d) was killed\n", node, pid);
  return kExitOk;
}

int restart_node(Context& context, const std::string& dir, const std::string& which) {
  const auto mini = load_or_complain(dir);
  if (!mini) return kExitError;
  const std::size_t node = resolve_node(*mini, which);
  if (node == 0) return kExitUsage;
  if (const pid_t pid = mini->pid(node); pid != 0) stop_process(pid, 20s);
  if (!start_node(context, *mini, node)) return kExitError;
  std::printf("node %zu runs (pid %d)\n", node, mini->pid(node));
  return kExitOk;
}

}  // namespace

void add_mini(CLI::App& app, Context& context) {
  CLI::App* mini = app.add_subcommand("mini", "A whole cluster on this machine");
  mini->require_subcommand(1);

  auto* verb = mini->add_subcommand(
      "start", "Start the nodes, and the mount if --mount is given; again after a stop");
  auto flags = std::make_shared<StartFlags>();
  verb->add_option("--dir", flags->dir, "Directory for everything: data, cache, logs")->required();
  verb->add_option("--nodes", flags->nodes, "Storage nodes of a new cluster (1, 3 or 5)")
      ->default_str(std::to_string(kNodes))
      ->check(CLI::IsMember({std::size_t{1}, std::size_t{3}, std::size_t{5}}));
  verb->add_option("--mount", flags->mount_point, "Mount the tree here; made if it is missing");
  verb->add_option("-o", flags->options, "Mount options, as `fermata mount` takes them")
      ->delimiter(',');
  verb->callback([flags, &context] { context.exit_code = start(context, *flags); });

  auto* stop_verb = mini->add_subcommand(
      "stop", "Unmount, also a mount that is in use, and stop the nodes; the data stays");
  auto dir = std::make_shared<std::string>();
  stop_verb->add_option("--dir", *dir, "Directory of `mini start`")->required();
  auto force = std::make_shared<bool>(false);
  stop_verb->add_flag("--force", *force,
                      "Do not wait until what was written is committed: it stays in DIR/cache");
  stop_verb->callback([dir, force, &context] { context.exit_code = stop(*dir, *force); });

  auto node = std::make_shared<std::string>();
  auto* kill_verb = mini->add_subcommand("kill", "SIGKILL a node");
  kill_verb->add_option("--dir", *dir, "Directory of `mini start`")->required();
  kill_verb->add_option("--node", *node, "1, 2, ... or primary")->required();
  kill_verb->callback([dir, node, &context] { context.exit_code = kill_node(*dir, *node); });

  auto* restart_verb =
      mini->add_subcommand("restart", "Start a node again, after stopping it if it runs");
  restart_verb->add_option("--dir", *dir, "Directory of `mini start`")->required();
  restart_verb->add_option("--node", *node, "1, 2, ...")->required();
  restart_verb->callback(
      [dir, node, &context] { context.exit_code = restart_node(context, *dir, *node); });
}

}  // namespace fermata::ctl
