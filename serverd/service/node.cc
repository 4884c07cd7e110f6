#include "serverd/service/node.h"

#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <utility>

#include "common/wire/message_codec.h"
#include "serverd/chunk/chunk_store.h"
#include "serverd/raft/raft_node.h"
#include "serverd/service/admin_service.h"
#include "serverd/service/callbacks.h"
#include "serverd/service/chunk_durability.h"
#include "serverd/service/chunk_fetcher.h"
#include "serverd/service/chunk_service.h"
#include "serverd/service/history_keeper.h"
#include "serverd/service/lock_service.h"
#include "serverd/service/mutate_service.h"
#include "serverd/service/node_context.h"
#include "serverd/service/patch_folder.h"
#include "serverd/service/peers.h"
#include "serverd/service/quota_service.h"
#include "serverd/service/raft_service.h"
#include "serverd/service/read_service.h"
#include "serverd/service/session_service.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr Duration kTransferTimeout = 2s;
constexpr std::size_t kMethodsMax = 64;

/// Whatever is stored durably in `path` is lost with a name above it: the directories that had to
/// be made are made durable too, and so is DIR's own name, which a start that was cut short, or the
/// operator's mkdir, may have left pending.
Status make_durable_dirs(Disk& disk, const std::string& path) {
  std::vector<std::string> changed{parent_of(path), parent_of(parent_of(path))};
  for (std::string at = parent_of(path); at != "/" && at != "."; at = parent_of(at)) {
    FM_TRY(const bool exists, disk.exists(at));
    if (exists) break;
    changed.push_back(parent_of(at));
  }
  FM_CHECK(disk.make_dirs(path));
  for (const std::string& parent : changed) {
    const Status synced = disk.sync_dir(parent);
    // A directory above that this user may not read was not made here.
    if (!synced && synced.error() != std::errc::permission_denied) return synced.error();
  }
  return {};
}
}  // namespace

struct Node::Impl final : NamespaceListener {
  Impl(Env& env, Network& network, NodeConfig config, StoreFactory factory, Fatal on_fatal)
      : node(env, network, std::move(config)),
        make_store(std::move(factory)),
        fatal(std::move(on_fatal)),
        alive(std::make_shared<bool>(true)) {
    node.peers = &peers;
    node.callbacks = &callbacks;
    node.space = &space;
    node.fetcher = &fetcher;
    node.durability = &durability;
    node.locks = &locks;
    node.folder = &folder;
  }
  ~Impl() override { *alive = false; }

  // ---- NamespaceListener
  void on_chunks_referenced(std::span<const ChunkId> ids) override { fetcher.on_referenced(ids); }
  void on_chunks_dropped(std::span<const ChunkId> ids, LogIndex index) override {
    fetcher.on_dropped(ids, index);
  }
  void on_sessions_ended(std::span<const SessionId> ids) override {
    sessions.on_sessions_ended(ids);
    locks.on_sessions_ended(ids);
  }
  void on_digest_ordered(LogIndex) override { admin.on_digest_ordered(); }
  void on_role(Role role, Term term) override;
  void on_installed() override {
    run_here([this] { fetcher.compare_all(); });
  }

  /// For what may come on another thread: runs `action` on the executor, if the node still lives.
  template <class Action>
  void run_here(Action action) {
    asio::post(node.env.executor(), [still = alive, action = std::move(action)] {
      if (*still) action();
    });
  }
  void fail(const std::string& reason);
  void stop_serving();
  void serve(Term term);
  asio::awaitable<void> bootstrap(Term term);
  Task<void> open();
  asio::awaitable<void> hand_over(Request request);
  asio::awaitable<Response> dispatch(std::shared_ptr<Connection> from, Request request);

  Node* owner = nullptr;
  NodeContext node;
  StoreFactory make_store;
  Fatal fatal;
  std::string why;
  bool ready = false;
  bool failed_already = false;
  std::shared_ptr<bool> alive;
  std::array<std::uint64_t, kMethodsMax> calls{};

  std::shared_ptr<KvStore> store;
  std::unique_ptr<Namespace> ns;
  std::unique_ptr<ChunkStore> chunks;
  Peers peers{node};
  Callbacks callbacks{node};
  SpaceGuard space{node};
  ChunkFetcher fetcher{node};
  ChunkDurability durability{node};
  HistoryKeeper history{node};
  PatchFolder folder{node};
  QuotaService quotas{node};
  SessionService sessions{node};
  ReadService reads{node};
  LockService locks{node};
  MutateService mutations{node};
  ChunkService chunk_requests{node};
  AdminService admin{node};
  RaftService transport{node};
  std::unique_ptr<StateMachine> around_state;  // tests only
  std::unique_ptr<RaftNode> raft;
  std::unique_ptr<Listener> listener;
};

// ---------------------------------------------------------------- role

void Node::Impl::on_role(Role role, Term term) {
  if (role != Role::kPrimary) {
    stop_serving();
    return;
  }
  const ClusterId cluster = ns->counters().cluster;
  if (!cluster) {
    node.tasks.spawn("bootstrap", bootstrap(term));
  } else if (cluster != node.config.cluster) {
    fail("the stored state belongs to cluster " + cluster.hex());
  } else {
    serve(term);
  }
}

void Node::Impl::stop_serving() {
  if (!node.serving) return;
  spdlog::info("node {}: no longer primary of term {}", node.config.self.value(),
               node.term.value());
  node.serving = false;
  // At once, so that clients look for the next primary and bind their callbacks to it: it treats
  // them as holders of everything until they have, and mutations wait for that.
  for (const auto& channel : node.sessions.take_channels()) channel->close();
  callbacks.on_not_serving();
  node.serving_changed.notify_all();
}

void Node::Impl::serve(Term term) {
  if (node.stopping || failed_already) return;
  if (auto filled = sessions.start_term(term); !filled) {
    fail("sessions cannot be read: " + filled.error().message());
    return;
  }
  if (node.serving) callbacks.on_not_serving();  // of an older term: whoever waits must begin anew
  node.term = term;
  node.serving = true;
  node.count("terms_served");
  space.on_serving();
  history.on_serving();
  folder.on_serving();
  durability.on_serving();
  node.tasks.spawn("session expiry", sessions.expire(term));
  node.serving_changed.notify_all();
  spdlog::info("node {}: primary of term {}, {} sessions", node.config.self.value(), term.value(),
               node.sessions.size());
}

asio::awaitable<void> Node::Impl::bootstrap(Term term) {
  BootstrapCommand command;
  command.cluster = node.config.cluster;
  command.root_uid = node.config.root_uid;
  command.root_gid = node.config.root_gid;
  command.root_mode = node.config.root_mode;
  auto result = co_await node.propose_own(std::move(command));
  if (!result) {
    spdlog::info("node {}: not bootstrapped: {}", node.config.self.value(),
                 result.error().message());
    co_return;
  }
  const LogStatus status = node.log->status();
  if (status.role == Role::kPrimary && status.term == term && ns->counters().cluster) serve(term);
}

void Node::Impl::fail(const std::string& reason) {
  if (std::exchange(failed_already, true)) return;
  ready = false;
  node.stopping = true;
  stop_serving();
  if (fatal) fatal("node " + std::to_string(node.config.self.value()) + ": " + reason);
}

// ---------------------------------------------------------------- start and stop

Task<void> Node::Impl::open() {
  const NodeConfig& config = node.config;
  Disk* disk = &node.env.disk();

  Hello hello;
  hello.kind = Hello::Kind::kNode;
  hello.cluster = config.cluster;
  hello.node = config.self;
  hello.name = "fermata-serverd";
  why = "cannot listen on " + config.listen;
  FM_CO_TRY(listener, node.network.listen(config.listen, std::move(hello), *owner));

  const std::string meta = config.data_dir + "/meta";
  why = "cannot open the metadata store in " + meta;
  struct Opened {
    std::shared_ptr<KvStore> store;
    std::uint64_t disk_bytes = 0;
  };
  StoreFactory factory = make_store;
  const ClusterId cluster = config.cluster;
  // Closures have names: as a temporary of a coroutine g++ 12 would destroy one twice.
  const auto open_store = [disk, factory, meta, cluster,
                           dir = config.data_dir]() -> Result<Opened> {
    FM_CHECK(make_durable_dirs(*disk, meta));
    FM_CHECK(SpaceGuard::make_room_to_start(*disk, dir));
    FM_TRY(const DiskSpace room, disk->space(dir));
    FM_TRY(auto made, factory(meta));
    FM_CHECK(made->bind_cluster(cluster));
    return Opened{std::move(made), room.total_bytes};
  };
  auto opened = co_await blocking<Opened>(node.env, open_store);
  if (!opened) co_return opened.error();
  store = std::move(opened->store);
  const std::uint64_t disk_bytes = opened->disk_bytes;
  FM_CO_TRY(ns, Namespace::open(*store, this));
  node.ns = ns.get();
  if (const ClusterId bound = ns->counters().cluster; bound && bound != cluster) {
    co_return Errc::kWrongCluster;
  }

  why = "cannot open the chunk store in " + config.data_dir + "/chunks";
  const auto chunk_failed = [this](std::error_code error) {
    run_here([this, error] { fail("a write of a chunk failed: " + error.message()); });
  };
  chunks = std::make_unique<ChunkStore>(node.env, config.data_dir, cluster, chunk_failed);
  node.chunks = chunks.get();
  FM_CO_CHECK(co_await chunks->start());

  RaftNodeOptions options;
  options.raft.self = config.self;
  options.raft.heartbeat_interval = config.heartbeat;
  options.raft.election_timeout_min = config.election_timeout_min;
  options.raft.clock_drift_max = config.clock_drift_max;
  options.raft.seed = node.env.random().next();
  options.cluster = cluster;
  options.dir = config.data_dir;
  options.first_members.members = config.first_members;
  options.rejoining = config.rejoining;
  // On a small disk the log takes a small part.
  options.segment_bytes = std::min(
      config.log_segment_bytes,
      static_cast<std::uint32_t>(std::clamp<std::uint64_t>(disk_bytes / 64, 1 << 20, 1 << 30)));
  options.flush_bytes = std::min<std::uint64_t>(config.log_flush_bytes, disk_bytes / 32);
  options.trailing_entries = config.log_trailing_entries;
  options.trailing_bytes = std::min(config.log_trailing_bytes, disk_bytes / 16);
  options.make_room = space.room_maker();
  options.room_for = [this](std::uint64_t bytes) { return space.has_room_for(bytes); };
  options.apply_bytes_max = config.log_apply_bytes_max;
  options.raft.mutation = config.testing.raft_mutation;
  options.apply_uncommitted = config.testing.apply_uncommitted;
  why.clear();
  const auto log_failed = [this](std::string reason) { fail(reason); };
  if (config.testing.around_state) around_state = config.testing.around_state(*ns);
  StateMachine& machine = around_state ? *around_state : *ns;
  raft = std::make_unique<RaftNode>(node.env, std::move(options), machine, transport, log_failed);
  node.log = raft.get();
  transport.attach(raft.get());
  FM_CO_CHECK(co_await raft->start(&why));

  ready = true;
  node.tasks.spawn("watch space", space.watch());
  node.tasks.spawn("fetch chunks", fetcher.run());
  node.tasks.spawn("keep history", history.run());
  node.tasks.spawn("fold patches", folder.run());
  node.tasks.spawn("count quotas", quotas.run());
  co_return Status();
}

Node::Node(Env& env, Network& network, NodeConfig config, StoreFactory store, Fatal fatal)
    : impl_(std::make_unique<Impl>(env, network, std::move(config), std::move(store),
                                   std::move(fatal))) {
  impl_->owner = this;
}

Node::~Node() = default;

Task<void> Node::start() { co_return co_await impl_->open(); }

const std::string& Node::why() const { return impl_->why; }

asio::awaitable<void> Node::stop() {
  Impl& impl = *impl_;
  NodeContext& node = impl.node;
  if (impl.raft && node.serving) {
    auto request = Request{};
    TransferRequest to;
    request.body = encode(to);
    impl.node.tasks.spawn("hand over", impl.hand_over(std::move(request)));
    const TimePoint until = node.env.now() + kTransferTimeout;
    while (node.serving && node.env.now() < until) {
      if (const std::error_code stop = co_await node.env.sleep_for(5ms); stop) break;
    }
  }
  node.stopping = true;
  impl.ready = false;
  impl.stop_serving();
  impl.listener.reset();
  if (impl.raft) co_await impl.raft->stop();
  node.tasks.cancel_all();
  impl.peers.close();
  co_await node.tasks.join();
  if (impl.ns && !impl.failed_already) {
    Namespace* ns = impl.ns.get();
    const auto flush = [ns] { return ns->flush(); };
    auto flushed = co_await blocking<void>(node.env, flush);
    if (!flushed) spdlog::error("the last flush failed: {}", flushed.error().message());
  }
}

asio::awaitable<void> Node::Impl::hand_over(Request request) {
  co_await admin.transfer(std::move(request));
}

const std::string& Node::address() const {
  static const std::string kNone;
  return impl_->listener ? impl_->listener->address() : kNone;
}

NodeStatus Node::status() const {
  NodeStatus status = impl_->admin.status();
  if (impl_->raft) status.counters["stalls"] = impl_->raft->counters().stalls;
  for (std::size_t i = 0; i < kMethodsMax; ++i) {
    if (impl_->calls[i] == 0) continue;
    status.counters[std::string("rpc_") + to_string(static_cast<Method>(i))] = impl_->calls[i];
  }
  return status;
}

const Namespace& Node::state() const { return *impl_->ns; }

// ---------------------------------------------------------------- requests

Status Node::on_connect(const std::shared_ptr<Connection>& connection) {
  if (!impl_->ready) return Errc::kShuttingDown;
  const Hello& peer = connection->peer();
  if (peer.kind == Hello::Kind::kNode && peer.cluster != impl_->node.config.cluster) {
    return Errc::kWrongCluster;
  }
  return {};
}

void Node::on_disconnect(const std::shared_ptr<Connection>& connection) {
  impl_->sessions.on_disconnect(connection.get());
}

asio::awaitable<Response> Node::handle(std::shared_ptr<Connection> from, Request request) {
  co_await asio::this_coro::throw_if_cancelled(false);
  if (!impl_->ready) co_return failed(Errc::kShuttingDown);
  if (request.group != kFirstGroup || request.volume != VolumeId()) {
    co_return failed(Errc::kUnsupported);
  }
  if (request.method < kMethodsMax) ++impl_->calls[request.method];
  co_return co_await impl_->dispatch(std::move(from), std::move(request));
}

asio::awaitable<Response> Node::Impl::dispatch(std::shared_ptr<Connection> from, Request request) {
  switch (static_cast<Method>(request.method)) {
    case Method::kOpenSession:
      co_return co_await sessions.open(std::move(request));
    case Method::kRenewSession:
      co_return co_await sessions.renew(std::move(request));
    case Method::kCloseSession:
      co_return co_await sessions.close(std::move(request));
    case Method::kBindCallbacks:
      co_return sessions.bind(from, request);
    case Method::kLookup:
      co_return co_await reads.lookup(std::move(request));
    case Method::kGetAttr:
      co_return co_await reads.getattr(std::move(request));
    case Method::kReadDir:
      co_return co_await reads.readdir(std::move(request));
    case Method::kOpen:
      co_return co_await reads.open(std::move(request));
    case Method::kContent:
      co_return co_await reads.content(std::move(request));
    case Method::kGetXattrs:
      co_return co_await reads.xattrs(std::move(request));
    case Method::kStatFs:
      co_return co_await reads.statfs(std::move(request));
    case Method::kFindLock:
      co_return co_await locks.find(std::move(request));
    case Method::kWaitLock:
      co_return co_await locks.wait(std::move(request));
    case Method::kQuotas:
      co_return co_await quotas.list(std::move(request));
    case Method::kMutate:
      co_return co_await mutations.mutate(std::move(request));
    case Method::kQueryChunks:
      co_return co_await chunk_requests.query(std::move(request));
    case Method::kPutChunk:
      co_return co_await chunk_requests.put(std::move(request));
    case Method::kGetChunk:
      co_return co_await chunk_requests.get(std::move(from), std::move(request));
    case Method::kReplicateChunk:
      co_return co_await chunk_requests.replicate(std::move(request));
    case Method::kHasChunks:
      co_return chunk_requests.has(request);
    case Method::kOfferChunks:
      co_return chunk_requests.offer(*from, request);
    case Method::kRaft:
      co_return transport.receive(*from, request);
    case Method::kReadSnapshot:
      co_return co_await transport.serve_snapshot(std::move(request));
    case Method::kStatus: {
      Response response;
      response.body = encode(owner->status());
      co_return response;
    }
    case Method::kDigest:
      co_return co_await admin.digest(std::move(request));
    case Method::kTransferPrimary:
      co_return co_await admin.transfer(std::move(request));
    case Method::kSessions: {
      Response response;
      response.body = encode(sessions.list());
      co_return response;
    }
    case Method::kCallback:
      break;  // ours to send, not to receive
  }
  node.count("unsupported_requests");
  co_return failed(Errc::kUnsupported);
}

}  // namespace fermata::serverd
