// fermata-serverd: one storage node as a process. Exit codes: 0 a clean stop, 2 wrong usage, 1 it
// could not start, 70 it stopped because going on could have lost what it had acknowledged.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <csignal>
#include <cstdio>
#include <fstream>

#include "common/base/file_lock.h"
#include "common/cli/cli.h"
#include "common/env/real_env.h"
#include "common/net/tcp_network.h"
#include "common/wire/message_codec.h"
#include "common/wire/methods.h"
#include "serverd/service/node.h"
#include "serverd/service/node_file.h"
#include "serverd/store/rocks_store.h"
#include "spdlog/sinks/basic_file_sink.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace asio = boost::asio;
using namespace fermata;
using namespace fermata::serverd;
using namespace std::chrono_literals;

namespace {

constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr int kExitFatal = 70;
constexpr std::size_t kBlockingThreads = 6;

bool logs_to_file = false;

struct Flags {
  std::string data_dir, listen, peers, cluster_id, log_file, log_level = "info", pidfile;
  std::uint32_t node_id = 0;
  bool init = false, rejoin = false, background = false;
  std::uint32_t lease_ms = 10'000, heartbeat_ms = 75, election_ms = 400;
  int ready_fd = -1;
};

/// To whoever started it and, where that is another place, to the log.
void complain(const std::string& message) {
  std::fprintf(stderr, "fermata-serverd: %s\n", message.c_str());
  if (logs_to_file) spdlog::error("{}", message);
}

void add_flags(CLI::App& app, Flags& flags) {
  app.add_option("--data-dir", flags.data_dir, "Directory of this node's data")->required();
  app.add_option("--listen", flags.listen, "HOST:PORT to listen on; default: as in --peers");
  app.add_option("--node-id", flags.node_id, "This node's number, from 1")
      ->check(CLI::PositiveNumber);
  app.add_option("--peers", flags.peers, "All nodes, this one too: 1=HOST:PORT,2=HOST:PORT,...");
  app.add_flag("--init", flags.init, "Make the (empty) data directory this node's");
  app.add_flag(
      "--rejoin", flags.rejoin,
      "With --init: this node had a directory before and lost it. It does not vote until it "
      "has everything again. Found out without the flag if another node answers");
  app.add_option(
      "--cluster-id", flags.cluster_id,
      "32 hexadecimal digits, the same on all nodes; --init without it makes one and prints it");
  app.add_option("--lease-ms", flags.lease_ms, "Lease of clients' sessions")
      ->check(CLI::Range(500, 600'000))
      ->capture_default_str();
  app.add_option("--heartbeat-ms", flags.heartbeat_ms, "Between the primary's heartbeats")
      ->check(CLI::Range(5, 10'000))
      ->capture_default_str();
  app.add_option("--election-ms", flags.election_ms,
                 "A silence of one to two times this starts an election")
      ->check(CLI::Range(20, 60'000))
      ->capture_default_str();
  app.add_option("--log", flags.log_file, "Log to this file instead of stderr");
  app.add_option("--log-level", flags.log_level, "trace, debug, info, warn or error")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error"}))
      ->capture_default_str();
  app.add_option("--pidfile", flags.pidfile, "Write the process id here");
  app.add_flag("--background", flags.background,
               "Return when it listens and go on in the background");
  app.add_option("--ready-fd", flags.ready_fd,
                 "Write \"ready\" and a newline here when it listens");
  app.set_config("--config", "", "Read these options from a TOML file")->type_name("FILE");
  app.allow_config_extras(false);  // a misspelt option there must not leave a default in force
}

/// The exclusive lock of the data directory, held until the process ends; -1 with a message.
int lock_data_dir(const std::string& dir) {
  const int fd = ::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    complain("data directory " + dir + ": " + last_errno().message() +
             (errno == ENOENT ? "; create it first" : ""));
    return -1;
  }
  if (const Status locked = lock_exclusively(fd, kLockPatience); !locked) {
    complain(locked.error() == std::errc::operation_would_block
                 ? dir + " is in use by a running fermata-serverd"
                 : "lock of " + dir + ": " + locked.error().message());
    ::close(fd);
    return -1;
  }
  return fd;
}

/// Nobody else listens there. Binding again a moment later is what counts; this one is for the
/// message, before anything on the disk changes.
bool port_is_free(const std::string& address) {
  asio::io_context io(1);  // of its own: the process may fork afterwards
  struct Nobody final : Handler {
    asio::awaitable<Response> handle(std::shared_ptr<Connection>, Request) override {
      co_return Response();
    }
  } nobody;
  TcpNetwork probe(io.get_executor());
  auto listener = probe.listen(address, Hello{}, nobody);
  if (!listener) complain("cannot listen on " + address + ": " + listener.error().message());
  return listener.has_value();
}

/// A node of this cluster answers that it has a log already.
Task<bool> has_history(TcpNetwork& network, std::string address, ClusterId cluster) {
  Hello hello;
  hello.kind = Hello::Kind::kClient;
  hello.name = "fermata-serverd --init";
  FM_CO_TRY(const auto peer, co_await network.connect(address, std::move(hello), nullptr, 1s));
  Request request;
  request.method = static_cast<std::uint16_t>(Method::kStatus);
  FM_CO_TRY(const auto answer, co_await peer->call(std::move(request), 1s));
  if (answer.error) co_return answer.error;
  FM_CO_TRY(const auto status, decode<NodeStatus>(answer.body));
  co_return status.cluster == cluster && (status.term || status.applied);
}

asio::awaitable<void> ask_peers(TcpNetwork& network, const NodeFile& identity, bool& found) {
  for (const auto& peer : identity.peers) {
    if (peer.id == identity.node || found) continue;
    const auto answer = co_await has_history(network, peer.address, identity.cluster);
    found = answer.has_value() && *answer;
  }
  co_await network.stop();
}

/// Whether the cluster that this new directory is for exists. A node of its number may then have
/// promised what an empty log knows nothing of.
bool cluster_exists(const NodeFile& identity) {
  asio::io_context io(1);  // of its own: the process may fork afterwards
  NetworkOptions options;
  options.body_size_max = body_size_max;
  TcpNetwork network(io.get_executor(), options);
  bool found = false;
  asio::co_spawn(io, ask_peers(network, identity, found), asio::detached);
  io.run();
  return found;
}

/// What the directory and the flags say together. False with a message.
bool settle_identity(const Flags& flags, Disk& disk, NodeFile& identity, bool& fresh) {
  std::string why;
  auto file = read_node_file(disk, flags.data_dir, why);
  if (!file && !(flags.init && file.error() == std::errc::no_such_file_or_directory)) {
    complain(why);
    return false;
  }
  std::optional<ClusterId> wanted;
  if (!flags.cluster_id.empty()) wanted = *parse_cluster_id(flags.cluster_id);
  fresh = !file;
  if (file) {
    if (wanted && *wanted != file->cluster) {
      complain(flags.data_dir + " belongs to cluster " + file->cluster.hex() + ", not " +
               wanted->hex());
      return false;
    }
    if (flags.node_id != 0 && NodeId(flags.node_id) != file->node) {
      complain(flags.data_dir + " is the directory of node " + std::to_string(file->node.value()) +
               ", not of node " + std::to_string(flags.node_id));
      return false;
    }
    if (flags.init && !wanted) {
      complain(flags.data_dir + " is already the directory of node " +
               std::to_string(file->node.value()) + "; start it without --init");
      return false;
    }
    identity = *file;
    return true;
  }
  for (const char* part : {"log", "meta", "chunks"}) {
    if (auto there = disk.exists(flags.data_dir + "/" + part); there && *there) {
      complain(flags.data_dir + " has a " + part +
               "/ but no node.toml: --init wants an empty directory");
      return false;
    }
  }
  identity.node = NodeId(flags.node_id);
  identity.peers = *parse_peers(flags.peers);
  if (wanted) {
    identity.cluster = *wanted;
  } else {
    RealRandom random;
    for (auto& byte : identity.cluster.bytes) byte = static_cast<std::uint8_t>(random.next());
  }
  return true;
}

/// Usage that CLI11 cannot check. Empty: fine.
std::string usage_error(const Flags& flags) {
  if (!flags.cluster_id.empty() && !parse_cluster_id(flags.cluster_id)) {
    return "--cluster-id wants 32 hexadecimal digits, not all zero";
  }
  if (flags.init && (flags.node_id == 0 || flags.peers.empty())) {
    return "--init needs --node-id and --peers";
  }
  if (flags.rejoin && !flags.init) return "--rejoin goes with --init";
  if (!flags.peers.empty()) {
    const auto peers = parse_peers(flags.peers);
    if (!peers) return "--peers wants 1=HOST:PORT,2=HOST:PORT,... with each number once";
    const bool listed = flags.node_id == 0 ||
                        std::any_of(peers->begin(), peers->end(),
                                    [&](const Member& m) { return m.id == NodeId(flags.node_id); });
    if (!listed) return "--peers does not list node " + std::to_string(flags.node_id);
  }
  if (!flags.listen.empty() && !parse_address(flags.listen)) return "--listen wants HOST:PORT";
  if (flags.election_ms < 3 * flags.heartbeat_ms) {
    return "--election-ms must be at least three times --heartbeat-ms";
  }
  return {};
}

/// Forks; the parent returns only when the child has said how its start went: see announce().
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

/// The start went well: stdin, stdout and stderr are let go too, so that nobody waits for their
/// end.
void announce(int parent_fd, const Flags& flags) {
  if (flags.ready_fd >= 0) {
    [[maybe_unused]] const auto written = ::write(flags.ready_fd, "ready\n", 6);
    ::close(flags.ready_fd);
  }
  if (parent_fd < 0) {
    std::printf("ready\n");
    std::fflush(stdout);
    return;
  }
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, fd);
  const char code = 0;
  [[maybe_unused]] const auto written = ::write(parent_fd, &code, 1);
  ::close(parent_fd);
}

bool set_up_log(const Flags& flags) {
  try {
    auto logger = flags.log_file.empty() ? spdlog::stderr_logger_mt("serverd")
                                         : spdlog::basic_logger_mt("serverd", flags.log_file);
    logger->flush_on(spdlog::level::info);
    spdlog::set_default_logger(std::move(logger));
    spdlog::set_level(spdlog::level::from_str(flags.log_level));
    logs_to_file = !flags.log_file.empty();
    return true;
  } catch (const spdlog::spdlog_ex& error) {
    complain(error.what());
    return false;
  }
}

struct Outcome {
  bool started = false;
  std::error_code error;
};

asio::awaitable<void> shut_down(Node& node, TcpNetwork& network, asio::io_context& io) {
  co_await node.stop();
  co_await network.stop();
  io.stop();
}

asio::awaitable<void> start(Node& node, TcpNetwork& network, asio::io_context& io, int parent_fd,
                            const Flags& flags, Outcome& outcome) {
  auto started = co_await node.start();
  if (started) {
    outcome.started = true;
    announce(parent_fd, flags);
    co_return;
  }
  outcome.error = started.error();
  co_await shut_down(node, network, io);
}

NodeConfig config_of(const Flags& flags, const NodeFile& identity, std::string listen) {
  NodeConfig config;
  config.cluster = identity.cluster;
  config.self = identity.node;
  config.listen = std::move(listen);
  config.first_members = identity.peers;
  config.rejoining = identity.rejoining;
  config.data_dir = flags.data_dir;
  config.root_uid = ::getuid();
  config.root_gid = ::getgid();
  config.heartbeat = std::chrono::milliseconds(flags.heartbeat_ms);
  config.election_timeout_min = std::chrono::milliseconds(flags.election_ms);
  config.clock_drift_max = config.election_timeout_min / 10;
  config.lease = std::chrono::milliseconds(flags.lease_ms);
  config.reserve_file_bytes = 32ULL << 20;
  return config;
}

int run(const Flags& flags) {
  RealDisk disk;
  NodeFile identity;
  bool fresh = false;
  if (!set_up_log(flags)) return kExitFailed;
  const int lock = lock_data_dir(flags.data_dir);
  if (lock < 0 || !settle_identity(flags, disk, identity, fresh)) return kExitFailed;
  std::string listen = flags.listen;
  for (const auto& peer : identity.peers) {
    if (listen.empty() && peer.id == identity.node) listen = peer.address;
  }
  if (!port_is_free(listen)) return kExitFailed;
  if (fresh) {
    identity.rejoining = flags.rejoin || cluster_exists(identity);
    if (identity.rejoining && !flags.rejoin) {
      complain("the other nodes run already: this one votes once it has what they have");
    }
    if (auto written = write_node_file(disk, flags.data_dir, identity); !written) {
      complain(flags.data_dir + "/node.toml: " + written.error().message());
      return kExitFailed;
    }
    if (flags.cluster_id.empty()) std::printf("cluster-id %s\n", identity.cluster.hex().c_str());
    std::fflush(stdout);
  }

  const int parent_fd = flags.background ? go_to_background() : -1;
  if (!flags.pidfile.empty()) std::ofstream(flags.pidfile, std::ios::trunc) << ::getpid() << "\n";

  asio::io_context io(1);
  RealEnv env(io.get_executor(), kBlockingThreads);
  NetworkOptions network_options;
  network_options.body_size_max = body_size_max;
  TcpNetwork network(io.get_executor(), network_options);
  const auto open_store =
      [cluster = identity.cluster](const std::string& dir) -> Result<std::unique_ptr<KvStore>> {
    RocksOptions options;
    options.cluster = cluster;
    if (const auto space = RealDisk().space(dir.substr(0, dir.rfind('/')))) {
      options.table_bytes =
          std::clamp<std::uint64_t>(space->total_bytes / 128, 1 << 20, options.table_bytes);
      options.memtable_bytes =
          std::clamp<std::uint64_t>(space->total_bytes / 24, 4 << 20, options.memtable_bytes);
    }
    FM_TRY(auto store, RocksStore::open(dir, options));
    return std::unique_ptr<KvStore>(std::move(store));
  };
  const auto fatal = [](const std::string& reason) {
    spdlog::critical("{}; this node stops so that nothing acknowledged is at risk", reason);
    spdlog::shutdown();
    ::_exit(kExitFatal);
  };
  Node node(env, network, config_of(flags, identity, listen), open_store, fatal);

  asio::signal_set signals(io, SIGTERM, SIGINT);
  signals.async_wait([&](std::error_code error, int) {
    if (error) return;
    spdlog::info("node {}: stopping", identity.node.value());
    ::alarm(20);  // whatever hangs, the process ends
    asio::co_spawn(io, shut_down(node, network, io), asio::detached);
  });
  Outcome outcome;
  asio::co_spawn(io, start(node, network, io, parent_fd, flags, outcome), asio::detached);
  io.run();
  if (!outcome.started) {
    const std::string why = node.why() + (outcome.error ? ": " + outcome.error.message() : "");
    logs_to_file ? complain(why) : spdlog::error("{}", why);
  }
  if (!flags.pidfile.empty()) ::unlink(flags.pidfile.c_str());
  spdlog::info("node {}: stopped", identity.node.value());
  return outcome.started ? 0 : kExitFailed;
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  CLI::App app("A storage node of a Fermata cluster.");
  app.set_version_flag("--version", FERMATA_VERSION);
  add_flags(app, flags);
  if (const auto code = parse_command_line(app, argc, argv, kExitUsage)) return *code;
  if (const auto error = usage_error(flags); !error.empty()) {
    complain(error);
    return kExitUsage;
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGHUP, SIG_IGN);
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  return run(flags);
}
