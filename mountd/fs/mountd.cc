#include "mountd/fs/mountd.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <boost/json.hpp>
#include <future>
#include <iterator>
#include <thread>

#include "common/wire/methods.h"
#include "mountd/fs/quota_verbs.h"
#include "mountd/fs/request_task.h"
#include "mountd/fuse/fuse_mount.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace json = boost::json;
namespace {

constexpr std::size_t kBlockingThreads = 4;  // per loop

// Runs a task on a loop and waits for it on this thread, which is none of the loops.
template <class T>
Result<T> run_on(asio::any_io_executor executor, Task<T> task) {
  auto promise = std::make_shared<std::promise<Result<T>>>();
  auto future = promise->get_future();
  asio::co_spawn(executor, std::move(task), [promise](std::exception_ptr thrown, Result<T> result) {
    promise->set_value(thrown ? Result<T>(Errc::kShuttingDown) : std::move(result));
  });
  return future.get();
}

template <class Fn>
void run_there(asio::any_io_executor executor, Fn fn) {
  std::promise<void> done;
  asio::post(executor, [&] {
    fn();
    done.set_value();
  });
  done.get_future().wait();
}

std::string random_id(Random& random) {
  std::uint64_t words[2] = {random.next(), random.next()};
  return to_hex(reinterpret_cast<const std::uint8_t*>(words), sizeof words);
}

bool lies_on_fermata(const std::string& path) {
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) return false;
  const auto mounted = find_mount(st.st_dev);
  return mounted && mounted->type == kFilesystemType;
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "unknown";
}

}  // namespace

Mountd::Mountd(MountdOptions options) : options_(std::move(options)), session_(clock_) {}

Mountd::~Mountd() { stop(Duration{0}); }

std::string Mountd::start() {
  struct stat st {};
  if (::stat(options_.mount_point.c_str(), &st) != 0) {
    return "mount point " + options_.mount_point + ": " + last_errno().message();
  }
  if (!S_ISDIR(st.st_mode)) return "mount point " + options_.mount_point + " is not a directory";
  std::string error = open_session();
  if (error.empty()) error = open_cache();
  if (error.empty()) error = mount();
  if (!error.empty()) stop(Duration{0});
  return error;
}

std::string Mountd::open_session() {
  loops_ = std::make_unique<Loops>(options_.loop_count);
  map_ = make_cluster_map(options_.servers);
  RealRandom random;
  ClientOptions client;
  client.servers = options_.servers;
  client.client_id = random_id(random);
  client.host = host_name();
  client.mount_point = options_.mount_point;
  client.soft = options_.soft;
  client.soft_timeout = options_.soft_timeout;
  client.asks_exclusive = options_.exclusive && !options_.read_only;
  NetworkOptions network;
  network.body_size_max = body_size_max;
  std::vector<LoopContext> contexts;
  for (unsigned i = 0; i < loops_->count(); ++i) {
    Loop loop;
    const auto executor = loops_->executor(i);
    loop.env = std::make_unique<RealEnv>(executor, kBlockingThreads);
    loop.network = std::make_unique<TcpNetwork>(executor, network);
    loop.client = std::make_unique<ClusterClient>(*loop.env, *loop.network, session_, map_, client);
    contexts.push_back({i, loop.env.get(), loop.client.get()});
    parts_.push_back(std::move(loop));
  }
  FsOptions fs;
  fs.read_only = options_.read_only;
  fs.atime = options_.atime;
  fs.passthrough = options_.passthrough;
  fs.lock_delegation = options_.lock_delegation;
  fs.exclusive = options_.exclusive;
  fs.attr_timeout = options_.attr_timeout;
  fs.entry_timeout = options_.entry_timeout;
  fs.identity = options_.identity;
  if (options_.soft) fs.patience = options_.soft_timeout;
  fs_ = std::make_unique<FileSystem>(std::move(contexts), session_, fs);
  Loop& first = parts_.front();
  keeper_ =
      std::make_unique<SessionKeeper>(*first.env, *first.network, *first.client, session_, *fs_);
  const auto opened = run_on<void>(loops_->executor(0), keeper_->start(options_.mount_timeout));
  if (opened) return {};
  std::string servers;
  for (const auto& server : options_.servers) servers += (servers.empty() ? "" : ", ") + server;
  return "no session with the cluster at " + servers + ": " + opened.error().message();
}

// A daemon whose cache is in a tree like its own would wait for that one, or for itself
// (docs/FUSE.md rule 12).
std::string Mountd::open_cache() {
  if (::mkdir(options_.cache_dir.c_str(), 0700) != 0 && errno != EEXIST) {
    return "cache directory " + options_.cache_dir + ": " + last_errno().message();
  }
  if (lies_on_fermata(options_.cache_dir)) {
    return "cache directory " + options_.cache_dir +
           " lies on a Fermata mount: it must be on a local disk";
  }
  CacheOptions cache;
  cache.dir = options_.cache_dir + "/files";
  cache.cluster = keeper_->cluster();
  cache.limit_bytes = options_.cache_size_bytes;
  auto store = CacheStore::open(cache);
  if (!store) {
    const auto error = store.error();
    std::string why = error.message();
    if (error == std::errc::device_or_resource_busy) why = "another mount uses it";
    if (error == make_error_code(Errc::kWrongCluster))
      why =
          "it belongs to another cluster: give another --cache-dir, or remove it if that cluster "
          "is gone";
    return "cache " + cache.dir + ": " + why;
  }
  store_ = std::move(*store);
  fs_->set_store(*store_);
  // Nobody else has the cache: who had it before is gone.
  const SessionFile session(cache.dir);
  if (const auto former = session.former()) fs_->end_former_session(*former);
  if (const auto saved = session.save({session_.id(), session_.epoch()}); !saved)
    spdlog::warn("the session cannot be noted in {}: {}", cache.dir, saved.error().message());
  return {};
}

std::string Mountd::mount() {
  MountOptions mount;
  mount.mount_point = options_.mount_point;
  mount.fs_name = options_.servers.front() + ":/";
  mount.read_only = options_.read_only;
  mount.no_atime = options_.atime == AtimeRule::kNever;
  mount.strict_atime = options_.atime == AtimeRule::kAlways;
  mount.no_suid = !options_.suid;
  mount.no_dev = !options_.dev;
  mount.no_exec = !options_.exec;
  mount.passthrough = options_.passthrough;
  mount.io_uring = options_.io_uring;
  mount.own_directories = {options_.cache_dir};
  MountError error;
  fuse_ = FuseSession::mount(mount, *loops_, *fs_, error);
  if (!fuse_) return error.message;
  notifier_ =
      std::make_unique<Notifier>(*fuse_, [this](NodeHandle node) { return fs_->granted(node); });
  fs_->attach(*fuse_, *notifier_);
  auto control = ControlSocket::open(
      options_.cache_dir + "/control.sock",
      [this](const std::string& verb, const std::string& request, const ControlSocket::Asker& who) {
        return this->control(verb, request, who);
      });
  if (!control) return "control socket in " + options_.cache_dir + ": " + control.error().message();
  control_ = std::move(*control);
  if (!options_.read_only) fs_->start_recovery();
  spdlog::info("mounted {} (session {}, passthrough {}, epochs {})", options_.mount_point,
               session_.id().value(), fuse_->has_passthrough(), fuse_->has_epoch());
  return {};
}

bool Mountd::wait_ended(std::chrono::milliseconds for_at_most) {
  return stop_asked_.load() || fuse_->wait_for(for_at_most) || stop_asked_.load();
}

std::future<Mountd::LeftFiles> Mountd::commit_all(Duration patience) {
  auto promise = std::make_shared<std::promise<LeftFiles>>();
  auto future = promise->get_future();
  fs_->commit_all(patience, [promise](LeftFiles failed) { promise->set_value(std::move(failed)); });
  return future;
}

json::object Mountd::told_of(const LeftFiles& files) {
  constexpr std::size_t kTold = 100;
  json::array left, conflicts;
  std::size_t refused = 0;
  for (const auto& [file, why, conflict] : files) {
    refused += conflict ? 1 : 0;
    if (!conflict && left.size() < kTold)
      left.push_back(json::object{{"file", file}, {"why", why.message()}});
  }
  for (const auto& copy : fs_->cached_files()) {
    if (!copy.conflict || conflicts.size() == kTold) continue;
    conflicts.push_back(json::object{{"file", copy.path_hint},
                                     {"inode", copy.inode.value()},
                                     {"version", copy.base.value()},
                                     {"bytes_at", copy.data_path}});
  }
  return json::object{{"uncommitted", files.size() - refused},
                      {"refused", refused},
                      {"files", std::move(left)},
                      {"conflict_files", store_->stats().conflict_files},
                      {"conflicts", std::move(conflicts)}};
}

std::size_t Mountd::stop(Duration patience) {
  if (stopped_ || !loops_) return 0;
  stopped_ = true;
  stop_asked_ = true;  // a verb that waits gives up
  std::size_t failed = 0;
  json::object told{{"uncommitted", 0}};
  // No new request first, so that what is committed is all there is; then what closing files left.
  if (fuse_) {
    const auto until = std::chrono::steady_clock::now() + patience;
    LeftFiles files;
    if (patience > Duration{0}) files = commit_all(patience).get();
    fuse_->stop();
    const Duration left = until - std::chrono::steady_clock::now();
    std::erase_if(files, [](const auto& file) { return !file.conflict; });
    if (patience > Duration{0}) {
      LeftFiles last = commit_all(std::max(left, patience / 4)).get();
      std::ranges::move(last, std::back_inserter(files));
    }
    // Also what recovery has not reached. Set aside as a conflict is another matter: that is said.
    if (store_) failed = store_->stats().dirty_files;
    if (failed != 0) {
      spdlog::error(
          "{} files could not be committed: they stay in {} and are committed at the next mount",
          failed, options_.cache_dir);
    }
    if (store_) told = told_of(files);
    told["uncommitted"] = failed;
    fs_->detach();
    notifier_.reset();
  }
  if (keeper_) {
    const auto bound = std::max<Duration>(std::min<Duration>(patience, std::chrono::seconds(2)),
                                          std::chrono::milliseconds(100));
    (void)run_on<void>(loops_->executor(0), keeper_->stop(bound));
  }
  left_.set_value(json::serialize(told));  // the verb that asked for this answers now
  control_.reset();
  stop_clients();
  return failed;
}

// The loops run dry before what lives on them is destroyed.
void Mountd::stop_clients() {
  for (unsigned i = 0; i < parts_.size(); ++i) {
    run_there(loops_->executor(i), [&] { parts_[i].client->stop(); });
  }
  if (fs_) {
    auto done = std::make_shared<std::promise<void>>();
    auto future = done->get_future();
    fs_->stop([done] { done->set_value(); });
    constexpr auto kPatience = std::chrono::seconds(5);
    if (future.wait_for(kPatience) != std::future_status::ready) {
      spdlog::warn("background work did not end; going on");
    }
    // Requests that wait for the cluster have been given up by client->stop().
    const auto until = std::chrono::steady_clock::now() + kPatience;
    while (live_requests.load() != 0 && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (live_requests.load() != 0) spdlog::warn("{} requests did not end", live_requests.load());
  }
  loops_->stop();
  keeper_.reset();
  fuse_.reset();
  fs_.reset();
  for (auto& part : parts_) {
    part.client.reset();
    part.network.reset();
    part.env.reset();
  }
  loops_.reset();
  store_.reset();
}

// ------------------------------------------------------------------------------- control verbs

std::string Mountd::list_cache() {
  json::array files;
  for (const auto& copy : fs_->cached_files()) {
    files.push_back(json::object{{"inode", copy.inode.value()},
                                 {"version", copy.base.value()},
                                 {"path", copy.path_hint},
                                 {"size_bytes", copy.size_bytes},
                                 {"allocated_bytes", copy.allocated_bytes},
                                 {"last_use_ns", copy.last_use_ns},
                                 {"complete", copy.complete},
                                 {"dirty", copy.maybe_dirty && !copy.conflict},
                                 {"bytes_at", copy.data_path},
                                 {"conflict", copy.conflict},
                                 {"open", copy.open}});
  }
  return json::serialize(json::object{{"files", std::move(files)}});
}

std::string Mountd::cache_numbers() {
  const auto cache = store_->stats();
  const auto fs = fs_->summary();
  const auto requests = fuse_->request_counts();
  json::object out{{"files", cache.files},
                   {"bytes", cache.bytes},
                   {"limit_bytes", cache.limit_bytes},
                   {"hits", cache.hits},
                   {"misses", cache.misses},
                   {"evictions", cache.evictions},
                   {"dirty_files", cache.dirty_files},
                   {"conflict_files", cache.conflict_files},
                   {"lost_found", cache.lost_found},
                   {"open_files", fs.open_files},
                   {"inodes_known", fs.nodes.inodes},
                   {"entries_known", fs.nodes.entries},
                   {"nodes", fs.nodes.nodes},
                   {"session", session_.id().value()},
                   {"epoch", session_.epoch().value()},
                   {"passthrough", fuse_->has_passthrough()},
                   {"io_uring", fuse_->has_io_uring()},
                   {"requests_over_io_uring", requests.over_io_uring},
                   {"requests_over_device", requests.over_device}};
  json::object rpcs;
  std::uint64_t total = 0;
  for (const auto& [method, count] : ClusterClient::call_counts()) {
    rpcs[method] = count;
    total += count;
  }
  json::object commits;
  for (const auto& [what, count] : fs.commits) commits[what] = count;
  json::array pending;
  for (const auto& request : fuse_->pending()) {
    pending.push_back(
        json::object{{"operation", request.operation}, {"age_ms", request.age.count()}});
  }
  out["rpc_total"] = total;
  out["rpcs"] = std::move(rpcs);
  out["commits"] = std::move(commits);
  out["pending"] = std::move(pending);
  return json::serialize(out);
}

/// Waits for a while: a cluster without a primary must not keep the socket's thread.
template <class T>
Result<T> Mountd::ask_cluster(Task<T> task) {
  constexpr auto kPatience = std::chrono::seconds(30);
  auto promise = std::make_shared<std::promise<Result<T>>>();
  auto future = promise->get_future();
  asio::co_spawn(loops_->executor(0), std::move(task),
                 [promise](std::exception_ptr thrown, Result<T> result) {
                   promise->set_value(thrown ? Result<T>(Errc::kShuttingDown) : std::move(result));
                 });
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (future.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready) {
    if (stop_asked_) return Errc::kShuttingDown;
    if (std::chrono::steady_clock::now() > until) return std::errc::timed_out;
  }
  return future.get();
}

std::string Mountd::control_quotas(const std::string& request, const ControlSocket::Asker& who) {
  const Identity& identity = options_.identity;
  const Credentials cred = identity.in_cluster(who.uid, who.gid, {});
  ClusterClient& client = *parts_.front().client;
  QuotaCalls calls;
  calls.set = [&](SetQuotaOp op) -> Status {
    FM_TRY(const MutationReply reply, ask_cluster(client.mutate(cred, std::move(op))));
    static_cast<void>(reply);
    fs_->note_quotas_changed();
    return {};
  };
  calls.list = [&](InodeId inode) { return ask_cluster(client.quotas(cred, inode)); };
  return answer_quota_verb(request, identity, calls);
}

std::string Mountd::control(const std::string& verb, const std::string& request,
                            const ControlSocket::Asker& who) {
  constexpr auto kPatience = std::chrono::minutes(9);
  if (verb.starts_with("quota-")) return control_quotas(request, who);
  if (verb == "cache-ls") return list_cache();
  if (verb == "cache-stat" || verb == "stats") return cache_numbers();
  if (verb == "shutdown") {
    ask_to_stop();
    return left_dirty_.get();
  }
  if (verb == "commit-all" || verb == "cache-flush") {
    const auto dirty = store_->stats().dirty_files;
    auto future = commit_all(kPatience);
    while (future.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready) {
      if (stop_asked_) return R"({"error":"the mount is being stopped"})";
    }
    const LeftFiles failed = future.get();
    json::object out = told_of(failed);
    out["committed"] = dirty - std::min<std::uint64_t>(dirty, failed.size());
    if (verb == "cache-flush") {
      fs_->drop_idle();
      out["dropped"] = store_->drop_clean();
    }
    return json::serialize(out);
  }
  if (verb == "cache-drop") {
    std::error_code error;
    const json::value asked = json::parse(request, error);
    const json::value* path =
        !error && asked.is_object() ? asked.as_object().if_contains("bytes_at") : nullptr;
    const bool dropped = path != nullptr && path->is_string() &&
                         store_->drop_conflict(std::string(path->as_string()));
    json::object out{{"dropped", 1}};
    if (!dropped) out = {{"error", "no conflict has its bytes there (fermata cache ls)"}};
    return json::serialize(out);
  }
  return json::serialize(json::object{{"error", "unknown verb " + verb}});
}

}  // namespace fermata::mountd
