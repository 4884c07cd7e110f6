// Files made in directories that this mount has alone: the cluster hears of them with their first
// commit, or when something is done that needs it to know them (docs/adr/0010-exclusive-
// directories.md).
//
// A file is sent under its content_gate, once. Whoever waits for that waits for the cluster and for
// nobody else: what a recall waits for is never held up by the recall itself.
#include <spdlog/spdlog.h>

#include "mountd/fs/attributes.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {

/// A file that its maker keeps open is sent when it is so old, for the machine may go down.
constexpr auto kUnsentAgeMax = std::chrono::seconds(1);

/// Of sending: it may work another time. The rest is the cluster's last word.
bool may_pass(std::error_code error) {
  return error == std::errc::timed_out || error == std::errc::operation_canceled ||
         error == std::errc::interrupted || error == make_error_code(Errc::kShuttingDown) ||
         error == make_error_code(Errc::kRetry) || error == make_error_code(Errc::kNotPrimary);
}

bool is_full(std::error_code error) {
  return error == std::errc::no_space_on_device || error == from_errno(EDQUOT);
}

bool session_is_over(std::error_code error) {
  return error == make_error_code(Errc::kSessionExpired) ||
         error == make_error_code(Errc::kStaleEpoch);
}

}  // namespace

// --------------------------------------------------------------------------------- the reserve

void FileSystem::note_alone(LoopContext& at, const MutationReply& reply) {
  const bool parent = reply.parent_exclusive && reply.parent;
  const bool made = reply.exclusive && reply.attr;
  if (parent) table_.hold_alone(reply.parent->inode, reply.stamp);
  if (made) table_.hold_alone(reply.attr->inode, reply.stamp);
  if (!parent && !made) return;
  fill_reserve(at);
  if (parent && !table_.knows_all_names(reply.parent->inode)) {
    background(at, "learn names", learn_names(at, reply.parent->inode));
  }
}

void FileSystem::fill_reserve(LoopContext& at) {
  const SessionId session = session_.id();
  if (!reserve_.begin_asking(session)) return;
  background(at, "reserve inodes", ask_for_inodes(at, session));
}

asio::awaitable<void> FileSystem::ask_for_inodes(LoopContext& at, SessionId session) {
  const Credentials nobody;
  Mutation op = ReserveInodesOp{InodeReserve::kAskCount};
  const auto reply = co_await at.client->mutate(nobody, std::move(op), {}, session);
  const InodeId first = reply ? reply->reserved : InodeId();
  reserve_.asked(session, first, reply && session_.id() == session ? reply->reserved_count : 0);
}

// So that the kernel's question whether a name is taken, before a file is made, is answered here.
asio::awaitable<void> FileSystem::learn_names(LoopContext& at, InodeId directory) {
  constexpr std::uint32_t kPageBytes = 256u << 10;
  constexpr std::size_t kNamesMax = 20'000;
  {
    MutexLock lock(learning_mutex_);
    if (!learning_.insert(directory).second) co_return;
  }
  const auto token = table_.begin_listing(directory);
  const Credentials nobody;
  Stamp stamp;
  Cookie after;
  bool end = false;
  bool leased = true;
  for (std::size_t names = 0; leased && !end && names < kNamesMax;) {
    auto page = co_await at.client->readdir(nobody, directory, after, kPageBytes, false);
    leased = page && page->entries_leased;
    if (!leased) break;
    end = page->end || page->entries.empty();
    if (!stamp || page->stamp < stamp) stamp = page->stamp;
    names += page->entries.size();
    for (const auto& entry : page->entries) {
      table_.set_entry(directory, entry.name, entry.inode, page->stamp, true, NodeTable::By::kRead);
      after = entry.cookie;
    }
  }
  if (leased && end) table_.know_all_names(directory, token, stamp);
  MutexLock lock(learning_mutex_);
  learning_.erase(directory);
}

// ----------------------------------------------------------------------------------- making one

std::optional<NodeTable::View> FileSystem::make_here(LoopContext& at, const Credentials& who,
                                                     NodeHandle parent, const CreateOp& op) {
  if (!options_.exclusive || options_.read_only || session_.has_quotas()) return std::nullopt;
  const auto directory = table_.inode_of(parent);
  if (!directory || op.name.size() > kNameMax || !table_.has_alone(*directory)) return std::nullopt;
  const SessionId session = session_.id();
  fill_reserve(at);
  const auto inode = reserve_.take(session);
  if (!inode) return std::nullopt;
  Unsent what;
  what.op = op;
  what.op.parent = *directory;
  what.op.uid = who.uid;
  what.op.gid = who.gid;
  what.op.exclusive = true;
  what.op.inode = *inode;
  what.who = who;
  what.session = session;
  what.since = at.env->now();
  auto view = table_.make_unsent(std::move(what), wall_time());
  if (!view) {
    reserve_.put_back(session, *inode);
    return std::nullopt;
  }
  count("made here");
  begin_watching_unsent();
  return view;
}

Task<FileSystem::Created> FileSystem::open_made_here(LoopContext& at, Credentials who,
                                                     InodeId parent, View view, OpenWish wish) {
  Entry entry = entry_of(view);
  entry.entry_timeout = entry_timeout(parent, true);
  auto created = co_await open_created(at, who, entry, wish);
  // The directory was called back meanwhile: what became of the name, the kernel asks.
  if (created && !table_.has_alone(parent)) created->entry.entry_timeout = Timeout{0};
  if (created) co_return created;
  // As if it had never been: nobody was told of it, unless it is being sent.
  const auto files = table_.files_of(view.inode);
  if (files.empty()) co_return created;
  const auto pass = co_await files.front()->content_gate.enter();
  if (pass && table_.drop_unsent(view.inode, wall_time(), NodeTable::Drop::kLost)) {
    discard_copies(view.inode);
    if (const auto removed = table_.reap(view.node)) teardown(removed);
  }
  co_return created;
}

// What its maker may do as the owner, or as root. The rest is the cluster's to judge.
Task<std::optional<AttrReplyValue>> FileSystem::set_here(LoopContext& at, Credentials who,
                                                         NodeHandle node, SetAttributes set) {
  using Answer = std::optional<AttrReplyValue>;
  const auto held = table_.hold(node);
  if (!held || !held->file) co_return Answer();
  const FilePtr file = held->file;
  const Hold hold(this, file);
  if (!file->unsent.load() || set.has(kSetSize)) co_return Answer();
  FM_CO_TRY(const auto pass, co_await file->content_gate.enter());  // it is not being sent
  const auto what = table_.unsent(file->inode);
  const auto view = table_.find(node);
  if (!what || !view || who != what->who) co_return Answer();
  const Attr attr = view->attr;
  const bool root = who.uid == 0;
  if (!root && who.uid != attr.uid) co_return Answer();
  SetAttrOp op = op_of(file->inode, set);
  if (op.uid == attr.uid) op.uid.reset();
  if (op.gid == attr.gid) op.gid.reset();
  if ((op.uid || op.gid) && !root) co_return Answer();
  const bool special = ((attr.mode | op.mode.value_or(0)) & (S_ISUID | S_ISGID)) != 0;
  if (special) co_return Answer();  // who may set them, and what clears them
  const Timestamp now = wall_time();
  if (op.atime_now) op.atime = now;
  if (op.mtime_now) op.mtime = now;
  if (view->noted_read && !op.atime) op.atime = attr.atime;
  const auto changed = table_.set_unsent(node, op, now);
  if (!changed) co_return Answer();
  if (op.atime) table_.clear_read(file->inode);
  if (op.mtime) {
    const Attr fresh = changed->attr;
    const auto job = [this, file, fresh] { return set_backing_times(file, fresh); };
    FM_CO_CHECK(co_await blocking<void>(*at.env, job));
  }
  count("set here");
  const auto after = newest_view(node);
  if (!after) co_return Answer();
  co_return AttrReplyValue{stat_of(*after), attr_timeout(*after), {}};
}

// ------------------------------------------------------------------------------------- sending

Task<void> FileSystem::send_file(LoopContext& at, InodeId inode) {
  if (!table_.unsent(inode) && !table_.nameless(inode)) co_return fermata::Status{};
  const auto files = table_.files_of(inode);
  if (files.empty()) co_return fermata::Status{};
  const auto held = table_.hold(files.front()->node);
  if (!held || !held->file) co_return fermata::Status{};
  const FilePtr file = held->file;
  const Hold hold(this, file);
  FM_CO_TRY(const auto pass, co_await file->content_gate.enter());
  if (const auto removed = table_.nameless(inode)) {
    co_return co_await send_nameless(at, file, *removed);
  }
  const auto what = table_.unsent(inode);
  if (!what) co_return fermata::Status{};
  co_return co_await send_empty(at, file, *what);
}

// Removed here before it was sent, and open: what is asked of it needs the cluster after all, which
// gets it as a file without a name.
Task<void> FileSystem::send_nameless(LoopContext& at, FilePtr file, Unsent what) {
  CreateUnnamedOp op;
  op.parent = what.op.parent;
  op.mode = what.op.mode;
  op.uid = what.op.uid;
  op.gid = what.op.gid;
  op.umask = what.op.umask;
  op.linkable = false;
  op.inode = what.op.inode;
  op.made = what.op.made;
  op.set = what.op.set;
  op.changed = what.op.changed;
  Mutation mutation = op;
  const auto reply = co_await at.client->mutate(what.who, std::move(mutation), {}, what.session);
  if (!reply) co_return session_is_over(reply.error()) ? from_errno(ESTALE) : reply.error();
  table_.sent_nameless(file->inode, *reply);
  note_made(*file, reply->attr);
  co_return fermata::Status{};
}

// Who made it may write it, whatever becomes of its mode and owner.
void FileSystem::note_made(FileState& file, const std::optional<Attr>& attr) {
  MutexLock lock(file.mutex);
  if (attr && !file.writer.opened) file.writer.opened = attr->change;
}

// Inside content_gate. The file as create(2) makes it; its content is its close's.
Task<void> FileSystem::send_empty(LoopContext& at, FilePtr file, Unsent what) {
  Mutation op = what.op;
  const auto reply = co_await at.client->mutate(what.who, std::move(op), {}, what.session);
  if (reply) {
    table_.sent(file->inode, *reply);
    note_made(*file, reply->attr);
    count("sent empty");
    co_return fermata::Status{};
  }
  if (reply.error() != std::errc::file_exists) co_return reply.error();
  // An earlier attempt has made it, and its answer was lost?
  const Credentials nobody;
  FM_CO_TRY(const auto found, co_await at.client->lookup(nobody, what.op.parent, what.op.name));
  if (!found.attr || found.attr->inode != file->inode) co_return reply.error();
  MutationReply made;
  made.stamp = found.stamp;
  made.attr = found.attr;
  made.leased = found.leased;
  made.parent_leased = found.entry_leased;
  table_.sent(file->inode, made);
  note_made(*file, made.attr);
  co_return fermata::Status{};
}

// Inside content_gate, for a commit: what can only fail is lost.
Task<void> FileSystem::send_now(LoopContext& at, FilePtr file, Unsent what) {
  const auto sent = co_await send_empty(at, file, std::move(what));
  if (sent) co_return fermata::Status{};
  const std::error_code error = sent.error();
  if (!may_pass(error) && !is_full(error)) co_await lose(at, file->inode, error);
  if (session_is_over(error)) co_return from_errno(ESTALE);
  co_return error;
}

// Inside content_gate. Making the file with its content has failed: without, it may be made, or has
// been by an attempt whose answer was lost.
Task<void> FileSystem::settle_unmade(LoopContext& at, FilePtr file, Unsent what,
                                     std::error_code error) {
  if (may_pass(error) || is_full(error)) {
    count("failed");
    co_return error;
  }
  if (session_is_over(error)) {
    co_await lose(at, file->inode, error);
    co_return from_errno(ESTALE);
  }
  co_return co_await send_now(at, file, std::move(what));
}

asio::awaitable<void> FileSystem::send_behind(LoopContext& at, InodeId inode, Sending how,
                                              std::shared_ptr<Signal> done) {
  constexpr auto kPause = std::chrono::milliseconds(50);
  std::error_code lost;
  for (;;) {
    const auto sent = co_await send_file(at, inode);
    if (sent) break;
    const std::error_code error = sent.error();
    const bool again = may_pass(error) || (how == Sending::kForNow && is_full(error));
    if (!again) {
      lost = error;
      co_await lose(at, inode, error);
      break;
    }
    table_.put_off(inode, at.env->now());
    if (how == Sending::kForNow) break;
    const std::error_code stop = co_await at.env->sleep_for(kPause);
    if (stop) break;
  }
  done->set(lost);
}

asio::awaitable<std::error_code> FileSystem::send_all(LoopContext& at, std::vector<InodeId> inodes,
                                                      Sending how) {
  std::vector<std::shared_ptr<Signal>> waiters;
  for (const InodeId inode : inodes) {
    waiters.push_back(std::make_shared<Signal>(at.env->executor()));
    background(at, "send file", send_behind(at, inode, how, waiters.back()));
  }
  std::error_code first;
  for (const auto& waiter : waiters) {
    const std::error_code lost = co_await waiter->wait();
    if (!first) first = lost;
  }
  co_return first;
}

Task<void> FileSystem::send_name(LoopContext& at, InodeId directory, std::string name) {
  const InodeId there = table_.peek(directory, name);
  if (!there) co_return fermata::Status{};
  co_return co_await send_file(at, there);
}

Task<void> FileSystem::send_names(LoopContext& at, InodeId directory) {
  auto inodes = table_.unsent_in(directory);
  if (!inodes.empty()) (void)co_await send_all(at, std::move(inodes), Sending::kForGood);
  if (table_.has_alone(directory)) co_await tell_change(at, directory);
  co_return fermata::Status{};
}

// Nobody else has changed the directory since: it was this mount's alone.
asio::awaitable<void> FileSystem::tell_change(LoopContext& at, InodeId directory) {
  const auto when = table_.untold_change(directory);
  if (!when) co_return;
  SetAttrOp op;
  op.inode = directory;
  op.mtime = *when;
  op.written = true;
  const Credentials nobody;
  Mutation mutation = op;
  const auto reply = co_await at.client->mutate(nobody, std::move(mutation), {}, session_.id());
  if (reply && reply->attr) table_.apply(*reply->attr, reply->stamp, reply->leased);
  table_.settle_times(directory);
}

asio::awaitable<void> FileSystem::hand_over(LoopContext& at, InodeId directory) {
  // Also what was made since, if it was granted and called back again meanwhile.
  constexpr int kRounds = 16;
  for (int round = 0; round < kRounds; ++round) {
    auto unsent = table_.unsent_in(directory);
    if (unsent.empty()) break;
    (void)co_await send_all(at, std::move(unsent), Sending::kForGood);
  }
  co_await tell_change(at, directory);
  const auto waiters = handing_over_.extract(directory);
  for (const auto& waiter : waiters.mapped()) waiter->set({});
}

Task<void> FileSystem::sync_names(LoopContext& at, InodeId directory) {
  const std::error_code lost =
      co_await send_all(at, table_.unsent_in(directory), Sending::kForGood);
  if (lost) co_return session_is_over(lost) ? from_errno(ESTALE) : lost;
  co_return co_await send_names(at, directory);
}

Task<void> FileSystem::send_below(LoopContext& at, InodeId inode) {
  if (!inode) {
    // Which one it is, is not known here: it may be any.
    auto inodes = table_.all_unsent();
    if (!inodes.empty()) (void)co_await send_all(at, std::move(inodes), Sending::kForGood);
    co_return fermata::Status{};
  }
  FM_CO_CHECK(co_await send_file(at, inode));
  FM_CO_CHECK(co_await send_names(at, inode));
  table_.settle_times(inode);
  co_return fermata::Status{};
}

// The cluster will never have it: what was written is kept as a conflict, and the name is free.
asio::awaitable<void> FileSystem::lose(LoopContext& at, InodeId inode, std::error_code error) {
  const auto files = table_.files_of(inode);
  const bool over = session_is_over(error);
  const int why = over ? ESTALE : to_errno(error);
  if (files.empty() || !table_.drop_unsent(inode, wall_time(), NodeTable::Drop::kLost, why))
    co_return;
  const FilePtr file = files.front();
  count("lost before they were sent");
  CachePin copy;
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
  }
  spdlog::warn("{} could not be made in the cluster: {}", table_.path_of(inode), error.message());
  if (copy) {
    const auto aside = co_await set_aside(at, file, copy, "it could not be made in the cluster");
    if (!aside) spdlog::warn("inode {}: {}", inode.value(), aside.error().message());
  } else {
    invalidate_later(table_.expire_names(inode));
  }
}

void FileSystem::begin_watching_unsent() {
  if (watching_unsent_.exchange(true)) return;
  LoopContext& loop = loops_.front();
  background_on(loop.index, "watch unsent", [this, &loop] { return watch_unsent(loop); });
}

asio::awaitable<void> FileSystem::watch_unsent(LoopContext& at) {
  constexpr auto kPause = std::chrono::milliseconds(250);
  for (;;) {
    const std::error_code stop = co_await at.env->sleep_for(kPause);
    if (stop) co_return;
    const TimePoint old = at.env->now() - kUnsentAgeMax;
    const auto all = table_.all_unsent();
    if (all.empty()) break;
    std::vector<InodeId> due;
    for (const InodeId inode : all) {
      const auto what = table_.unsent(inode);
      if (what && what->since <= old) due.push_back(inode);
    }
    (void)co_await send_all(at, std::move(due), Sending::kForNow);
  }
  watching_unsent_ = false;
  if (!table_.all_unsent().empty()) begin_watching_unsent();  // one came in between
}

// --------------------------------------------------------------------------------- giving it up

asio::awaitable<bool> FileSystem::give_up_alone(Duration patience) {
  LoopContext& here = loops_.front();
  const TimePoint until = here.env->now() + patience;
  std::vector<std::shared_ptr<Signal>> waiters;
  for (const InodeId inode : table_.all_unsent()) {
    waiters.push_back(std::make_shared<Signal>(here.env->executor()));
    background(here, "send file", send_behind(here, inode, Sending::kForGood, waiters.back()));
  }
  for (const auto& waiter : waiters) {
    const auto left = std::max<Duration>(until - here.env->now(), Duration{0});
    (void)co_await waiter->wait_for(left);
  }
  co_return table_.all_unsent().empty();
}

asio::awaitable<void> FileSystem::lose_all_of_others(LoopContext& at, SessionId fresh) {
  for (const InodeId inode : table_.all_unsent()) {
    const auto what = table_.unsent(inode);
    if (!what || what->session == fresh) continue;
    co_await lose(at, inode, make_error_code(Errc::kSessionExpired));
  }
}

}  // namespace fermata::mountd
