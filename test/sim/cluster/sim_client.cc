#include "test/sim/cluster/sim_client.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

namespace fermata::test {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr unsigned kNames = 5;
constexpr unsigned kBurstNames = 12;
constexpr unsigned kDirectories = 2;
constexpr std::size_t kOpenMax = 3;
}  // namespace

SimClient::SimClient(World& world, unsigned number, Role role)
    : world_(world),
      number_(number),
      role_(role),
      host_("c" + std::to_string(number)),
      disk_(number),
      random_(world.random.next()) {}

SimClient::~SimClient() {
  if (up()) crash();
}

void SimClient::start(unsigned processes) {
  ++lives_;
  stopped_ = verified_ = false;
  running_ = 0;
  SimEnvOptions options;
  options.seed = random_.next();
  const auto ppm = world_.character.clock_ppm_max;
  options.clock_rate_ppm =
      static_cast<std::int64_t>(random_.below(static_cast<std::uint64_t>(2 * ppm + 1))) - ppm;
  env_ = std::make_unique<SimEnv>(world_.scheduler, disk_, options);
  network_ = world_.fabric.make_network(host_, env_->executor(), world_.network_options());
  session_ = std::make_unique<mountd::ClientSession>(env_->clock());
  mountd::ClientOptions client;
  client.servers = world_.addresses();
  client.client_id = "simulated-client-" + host_ + "-" + std::to_string(lives_);
  client.host = host_;
  client.mount_point = "/sim";
  client.soft = world_.character.soft && number_ == 0;
  client.soft_timeout = 2s;
  client.asks_exclusive = true;
  client.attempt_timeout = world_.character.attempt_timeout;
  auto map = mountd::make_cluster_map(client.servers);
  client_ =
      std::make_unique<mountd::ClusterClient>(*env_, *network_, *session_, std::move(map), client);
  mount_ = std::make_unique<SimMount>(world_, *env_, *client_, *session_,
                                      host_ + "." + std::to_string(lives_));
  keeper_ = std::make_unique<mountd::SessionKeeper>(*env_, *network_, *client_, *session_, *mount_);
  doing_.assign(processes, "nothing");
  files_.assign(processes, {});
  asio::co_spawn(env_->executor(), connect(processes), asio::detached);
}

void SimClient::crash() {
  if (!up()) return;
  world_.note(host_, "crashes");
  env_->crash();
  world_.fabric.kill(host_, SimFabric::Notice::kAtOnce);
  keeper_.reset();
  files_.clear();
  mount_.reset();
  client_.reset();
  session_.reset();
  network_.reset();
  env_.reset();
  running_ = 0;
}

std::string SimClient::doing() const {
  std::string out;
  for (const auto& what : doing_) out += " " + what;
  return out;
}

asio::awaitable<void> SimClient::connect(unsigned processes) {
  running_ = processes;
  if (!is_visitor()) {
    const Status done = co_await keeper_->start(1h);
    if (!done) {
      running_ = 0;
      co_return;
    }
  }
  for (std::size_t i = 0; i < processes; ++i)
    asio::co_spawn(env_->executor(), run_process(i), asio::detached);
}

asio::awaitable<void> SimClient::run_process(std::size_t number) {
  while (!world_.load_over && !world_.oracle.failed()) {
    (void)co_await step(number);
    doing_[number] = "nothing";
    const auto think = static_cast<std::uint64_t>(world_.character.think.count());
    (void)co_await env_->sleep_for(Duration(static_cast<Duration::rep>(random_.below(think))));
  }
  --running_;
}

Task<void> SimClient::step(std::size_t process) {
  if (is_visitor()) co_return co_await visit();
  const std::uint64_t dice = random_.below(100);
  if (dice < 28) co_return co_await write_file(process);
  if (dice < 48) co_return co_await read_file(process);
  if (dice < 56) co_return co_await close_one(process);
  if (dice < 75) co_return co_await change_tree();
  if (dice < 80) co_return co_await burst(process);
  if (dice < 85) co_return co_await lock_file(process);
  co_return co_await look_around();
}

std::string SimClient::name() {
  if (random_.chance(1, 4)) return burst_name();
  return "f" + std::to_string(random_.below(kNames));
}

std::string SimClient::burst_name() { return "b" + std::to_string(random_.below(kBurstNames)); }

/// Files made one after the other in one directory, some of which go again at once.
Task<void> SimClient::burst(std::size_t process) {
  doing_[process] = "burst";
  FM_CO_TRY(const InodeId parent, co_await directory());
  for (std::uint64_t left = 3 + random_.below(6); left != 0 && !world_.load_over; --left) {
    const std::string in = burst_name();
    if (random_.chance(1, 3)) {
      (void)co_await mount_->unlink(parent, in);
      continue;
    }
    const auto attr = co_await mount_->create(parent, in, FileType::kRegular, true);
    if (!attr) continue;
    FM_CO_TRY(const auto file, co_await mount_->open(attr->inode));
    files_[process].push_back(file);
    const std::uint64_t then = random_.below(4);
    if (then == 0) (void)co_await mount_->unlink(parent, in);
    if (then == 1) (void)co_await env_->sleep_for(Duration(50ms));
    if (then != 2) {
      const auto shape = random_.chance(1, 5) ? SimMount::Shape::kChunks : SimMount::Shape::kInline;
      (void)co_await mount_->commit(file, shape, false);
    }
    if (files_[process].size() > kOpenMax) FM_CO_CHECK(co_await close_one(process));
  }
  co_return Status();
}

/// The root, or one of a few directories below it.
Task<InodeId> SimClient::directory() {
  const std::uint64_t which = random_.below(kDirectories + 1);
  if (which == kDirectories) co_return kRootInode;
  std::string name = "d" + std::to_string(which);
  FM_CO_TRY(const auto found, co_await mount_->lookup(kRootInode, name));
  if (!found || found->type != FileType::kDirectory) co_return kRootInode;
  co_return found->inode;
}

Task<void> SimClient::write_file(std::size_t process) {
  doing_[process] = "write";
  auto& mine = files_[process];
  std::shared_ptr<SimMount::Open> file;
  if (!mine.empty() && random_.chance(1, 3)) {
    file = mine[random_.below(mine.size())];  // again, over what it opened or wrote before
  } else {
    FM_CO_TRY(const InodeId parent, co_await directory());
    const std::string in = name();
    const bool exclusive = random_.chance(1, 4);
    FM_CO_TRY(const Attr attr, co_await mount_->create(parent, in, FileType::kRegular, exclusive));
    if (attr.type != FileType::kRegular) co_return Status();
    FM_CO_TRY(file, co_await mount_->open(attr.inode));
    mine.push_back(file);
  }
  doing_[process] = "commit of inode " + std::to_string(file->inode.value());
  auto shape = SimMount::Shape::kInline;
  if (world_.character.chunks && random_.chance(1, 3)) shape = SimMount::Shape::kChunks;
  if (random_.chance(1, 6)) shape = SimMount::Shape::kPatch;
  const bool replace = random_.chance(1, 2);
  FM_CO_CHECK(co_await mount_->commit(file, shape, replace));
  if (files_[process].size() > kOpenMax || random_.chance(1, 2))
    co_return co_await close_one(process);
  co_return Status();
}

Task<void> SimClient::read_file(std::size_t process) {
  doing_[process] = "read";
  std::shared_ptr<SimMount::Open> file;
  auto& mine = files_[process];
  if (!mine.empty() && random_.chance(1, 4)) {
    file = mine[random_.below(mine.size())];
  } else {
    FM_CO_TRY(const InodeId parent, co_await directory());
    const std::string in = name();
    FM_CO_TRY(const auto attr, co_await mount_->lookup(parent, in));
    if (!attr || attr->type != FileType::kRegular) co_return Status();
    FM_CO_TRY(file, co_await mount_->open(attr->inode));
    files_[process].push_back(file);
  }
  FM_CO_CHECK(co_await mount_->read(file));
  if (files_[process].size() > kOpenMax || random_.chance(1, 2))
    co_return co_await close_one(process);
  co_return Status();
}

Task<void> SimClient::close_one(std::size_t process) {
  auto& mine = files_[process];
  if (mine.empty()) co_return Status();
  doing_[process] = "close";
  const std::size_t which = random_.below(mine.size());
  const auto file = mine[which];
  mine.erase(mine.begin() + static_cast<std::ptrdiff_t>(which));
  co_return co_await mount_->close(file);
}

Task<void> SimClient::change_tree() {
  const std::uint64_t dice = random_.below(20);
  if (dice == 0) {
    if (random_.chance(1, 3)) co_return co_await change_quota();
    std::string sub = "d" + std::to_string(random_.below(kDirectories));
    if (random_.chance(1, 3)) co_return co_await mount_->rmdir(kRootInode, sub);
    FM_CO_TRY(const Attr made,
              co_await mount_->create(kRootInode, sub, FileType::kDirectory, true));
    co_return Status();
  }
  FM_CO_TRY(const InodeId parent, co_await directory());
  const std::string in = name();
  if (dice < 6) co_return co_await mount_->unlink(parent, in);
  if (dice < 11) {
    RenameOp op;
    op.parent = parent;
    op.name = in;
    FM_CO_TRY(op.new_parent, co_await directory());
    op.new_name = name();
    const std::uint64_t flags = random_.below(8);
    if (flags == 0) op.flags = RenameOp::kNoReplace;
    if (flags == 1) op.flags = RenameOp::kExchange;
    co_return co_await mount_->rename(op);
  }
  FM_CO_TRY(const auto attr, co_await mount_->lookup(parent, in));
  if (!attr) co_return Status();
  const InodeId inode = attr->inode;
  if (dice < 14) {
    FM_CO_TRY(const InodeId to, co_await directory());
    const std::string as = name();
    co_return co_await mount_->link(inode, to, as);
  }
  if (dice < 16) {
    const auto mode = static_cast<std::uint32_t>(0600 + random_.below(64));
    co_return co_await mount_->chmod(inode, mode);
  }
  const std::string xattr = "user.x" + std::to_string(random_.below(3));
  if (dice < 19) co_return co_await mount_->setxattr(inode, xattr);
  co_return co_await mount_->removexattr(inode, xattr);
}

/// Of a directory, tight enough to be met now and then.
Task<void> SimClient::change_quota() {
  SetQuotaOp op;
  FM_CO_TRY(const InodeId tree, co_await directory());
  op.id = tree.value();
  op.remove = random_.chance(1, 2);
  if (random_.chance(1, 2)) op.bytes_max = (1 + random_.below(8)) << 20;
  if (random_.chance(1, 2)) op.inodes_max = 3 + random_.below(20);
  co_return co_await mount_->set_quota(std::move(op));
}

Task<void> SimClient::look_around() {
  FM_CO_TRY(const InodeId parent, co_await directory());
  if (random_.chance(1, 4)) {
    FM_CO_TRY(const auto listing, co_await mount_->readdir(parent));
    co_return Status();
  }
  const std::string in = name();
  FM_CO_TRY(const auto attr, co_await mount_->lookup(parent, in));
  if (!attr) co_return Status();
  const InodeId inode = attr->inode;
  if (random_.chance(1, 3)) {
    FM_CO_TRY(const auto xattrs, co_await mount_->getxattrs(inode));
    co_return Status();
  }
  FM_CO_TRY(const auto again, co_await mount_->getattr(inode));
  co_return Status();
}

/// Again and again, as long as nobody else holds it.
Task<void> SimClient::lock_file(std::size_t process) {
  doing_[process] = "lock";
  std::string in = "f" + std::to_string(random_.below(2));
  FM_CO_TRY(const auto attr, co_await mount_->lookup(kRootInode, in));
  if (!attr || attr->type != FileType::kRegular) co_return Status();
  LockOp op;
  op.inode = attr->inode;
  op.space = random_.chance(1, 3) ? LockSpace::kFlock : LockSpace::kPosix;
  op.owner = 1 + process;
  const bool ranges = op.space == LockSpace::kPosix && random_.chance(1, 2);
  for (std::uint64_t left = 1 + random_.below(6); left > 0; --left) {
    Result<bool> granted = true;
    // Towards more: what becomes a shared lock is one before its owner hears of it.
    bool exclusive = random_.chance(1, 2);
    for (std::uint64_t more = random_.chance(1, 3) ? 2 : 1; more > 0 && granted && *granted;
         --more) {
      const std::uint64_t first = random_.below(8);
      op.range = ranges ? LockRange{first, first + random_.below(4)} : kWholeFile;
      op.type = exclusive ? LockType::kExclusive : LockType::kShared;
      exclusive = true;
      granted = co_await mount_->lock(op);
      if (granted) (void)co_await env_->sleep_for(std::chrono::microseconds(random_.below(20'000)));
    }
    FM_CO_CHECK(co_await mount_->unlock(op));
    if (!granted) co_return granted.error();
    if (!*granted) co_return Status();
    // Programs lock again what they have locked long ago, without looking the file up once more.
    if (random_.chance(1, 4)) (void)co_await env_->sleep_for(Duration(random_.below(15) * 1s));
  }
  co_return Status();
}

Task<void> SimClient::visit() {
  if (random_.chance(1, 2)) co_return co_await look_around();
  FM_CO_TRY(const InodeId parent, co_await directory());
  const std::string in = name();
  FM_CO_TRY(const auto attr, co_await mount_->lookup(parent, in));
  if (!attr || attr->type != FileType::kRegular) co_return Status();
  FM_CO_TRY(const auto file, co_await mount_->open(attr->inode));
  co_return Status();
}

// ---------------------------------------------------------------- the end

void SimClient::stop() { asio::co_spawn(env_->executor(), do_stop(), asio::detached); }

asio::awaitable<void> SimClient::do_stop() {
  for (std::size_t i = 0; i < files_.size(); ++i) {
    while (!files_[i].empty()) (void)co_await close_one(i);
  }
  if (!is_visitor()) (void)co_await keeper_->stop(10s);
  stopped_ = true;
}

void SimClient::verify() { asio::co_spawn(env_->executor(), do_verify(), asio::detached); }

asio::awaitable<void> SimClient::do_verify() {
  const auto done = co_await verify_directory(kRootInode, 0);
  if (!done) world_.oracle.fail("the healed cluster cannot be read: " + done.error().message());
  verified_ = true;
}

Task<void> SimClient::verify_directory(InodeId directory, unsigned depth) {
  FM_CO_TRY(const auto entries, co_await mount_->readdir(directory));
  for (const auto& [name, inode] : entries) {
    std::string in = name;
    FM_CO_TRY(const auto attr, co_await mount_->lookup(directory, in));
    if (!attr) co_return std::make_error_code(std::errc::io_error);
    FM_CO_TRY(const auto xattrs, co_await mount_->getxattrs(attr->inode));
    if (attr->type == FileType::kDirectory && depth < 8) {
      FM_CO_CHECK(co_await verify_directory(attr->inode, depth + 1));
    } else if (attr->type == FileType::kRegular) {
      FM_CO_TRY(const auto file, co_await mount_->open(attr->inode));
      FM_CO_CHECK(co_await mount_->read(file));
      FM_CO_CHECK(co_await mount_->close(file));
    }
  }
  co_return Status();
}

}  // namespace fermata::test
