// Operations that change names.
#include <fcntl.h>
#include <linux/fs.h>

#include "mountd/fs/attributes.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {
constexpr auto kOwn = NodeTable::By::kOwnMutation;
constexpr auto kAnswerEntry = [](EntryReply& to, const Entry& entry) { to.entry(entry); };
constexpr auto kAnswerOk = [](StatusReply& to) { to.ok(); };
}  // namespace

void FileSystem::apply_parents(const MutationReply& reply) {
  if (reply.parent) table_.apply(*reply.parent, reply.stamp, reply.parent_leased);
  if (reply.new_parent) table_.apply(*reply.new_parent, reply.stamp, reply.new_parent_leased);
}

// What lost a name: if it was the last and nobody here has it open, the cluster need not keep it.
void FileSystem::apply_removed(LoopContext& at, const MutationReply& reply, InodeId expected) {
  if (!reply.removed) {
    if (!expected) return;
    std::optional<Timestamp> when;  // the parent changed at the same time
    if (reply.parent) when = reply.parent->ctime;
    table_.distrust(expected, when);  // gone, if it was that
    if (!file_in_use(expected)) background(at, "forget copies", forget_copies(at, expected));
    return;
  }
  table_.apply(*reply.removed, reply.stamp, reply.removed_leased);
  refresh_other_nodes(reply.removed->inode, kNoNode);
  const bool orphan = reply.removed->nlink == 0 && reply.removed->type == FileType::kRegular;
  if (orphan && !file_in_use(reply.removed->inode)) discard_copies(reply.removed->inode);
}

// Nobody wants them; at worst they are fetched again.
asio::awaitable<void> FileSystem::forget_copies(LoopContext& at, InodeId inode) {
  for (const FilePtr& file : table_.files_of(inode)) let_go(*file);
  CacheStore* const store = store_;
  const auto job = [store, inode]() -> Status {
    store->drop_clean(inode);
    return {};
  };
  (void)co_await blocking<void>(*at.env, job);
}

asio::awaitable<void> FileSystem::note_moved(LoopContext& at, InodeId inode) {
  const auto copies = store_->copies_of(inode);
  if (copies.empty()) co_return;
  const std::string path = table_.path_of(inode);
  bool save = false;
  for (const CachePin& copy : copies) {
    copy->set_path_hint(path);
    save = save || copy->maybe_dirty();
  }
  if (!save) co_return;
  const auto job = [copies]() -> Status {
    for (const CachePin& copy : copies) {
      if (copy->maybe_dirty()) FM_CHECK(copy->save_if_stale());
    }
    return {};
  };
  (void)co_await blocking<void>(*at.env, job);  // only a name: the next sidecar has it
}

void FileSystem::discard_copies(InodeId inode) {
  for (const FilePtr& file : table_.files_of(inode)) {
    if (file->unsent.load()) return;
    const bool idle = table_.if_idle(*file, [&] { file->sticky = false; });
    if (!idle) return;
    (void)detach_copy(file);
    if (const auto removed = table_.reap(file->node)) teardown(removed);
  }
  for (const CachePin& copy : store_->copies_of(inode)) {
    if (!copy->conflict()) copy->discard();
  }
}

void FileSystem::mknod(Ctx ctx, NodeHandle parent, std::string_view name, mode_t mode, dev_t dev,
                       EntryReply reply) {
  CreateOp op;
  op.name = name;
  op.type = type_of_mode(mode);
  op.mode = mode & 07777;
  op.umask = ctx.umask;
  op.rdev = dev;
  auto task = do_create(at(reply), cred(ctx), parent, std::move(op));
  run_request(ctx, std::move(reply), std::move(task), kAnswerEntry);
}

void FileSystem::mkdir(Ctx ctx, NodeHandle parent, std::string_view name, mode_t mode,
                       EntryReply reply) {
  CreateOp op;
  op.name = name;
  op.type = FileType::kDirectory;
  op.mode = mode & 07777;
  op.umask = ctx.umask;
  auto task = do_create(at(reply), cred(ctx), parent, std::move(op));
  run_request(ctx, std::move(reply), std::move(task), kAnswerEntry);
}

void FileSystem::symlink(Ctx ctx, NodeHandle parent, std::string_view name, std::string_view target,
                         EntryReply reply) {
  if (target.size() > kSymlinkMax) return reply.error(ENAMETOOLONG);
  CreateOp op;
  op.name = name;
  op.type = FileType::kSymlink;
  op.mode = 0777;
  op.symlink_target = target;
  auto task = do_create(at(reply), cred(ctx), parent, std::move(op));
  run_request(ctx, std::move(reply), std::move(task), kAnswerEntry);
}

Task<Entry> FileSystem::do_create(LoopContext& at, Credentials who, NodeHandle parent,
                                  CreateOp op) {
  if (options_.read_only) co_return std::errc::read_only_file_system;
  if (op.name.size() > kNameMax) co_return std::errc::filename_too_long;
  const auto directory = table_.inode_of(parent);
  if (!directory) co_return from_errno(ESTALE);
  op.parent = *directory;
  op.uid = who.uid;
  op.gid = who.gid;
  const std::string name = op.name;
  FM_CO_CHECK(co_await send_name(at, *directory, name));
  FM_CO_TRY(const auto reply, co_await at.client->mutate(who, std::move(op)));
  if (!reply.attr) co_return std::errc::io_error;
  apply_parents(reply);
  if (reply.attr->type == FileType::kDirectory) {
    table_.set_empty_directory(reply.attr->inode, reply.stamp, reply.leased);
  }
  const auto view = co_await bind(at, *reply.attr, reply.stamp, reply.leased);
  const bool kept =
      table_.set_entry(*directory, name, reply.attr->inode, reply.stamp, reply.parent_leased, kOwn);
  note_alone(at, reply);
  Entry entry = entry_of(view);
  entry.entry_timeout = entry_timeout(*directory, kept);
  co_return entry;
}

void FileSystem::link(Ctx ctx, NodeHandle node, NodeHandle new_parent, std::string_view new_name,
                      EntryReply reply) {
  auto task = do_link(at(reply), cred(ctx), node, new_parent, std::string(new_name), ctx.pid);
  run_request(ctx, std::move(reply), std::move(task), kAnswerEntry);
}

Task<Entry> FileSystem::do_link(LoopContext& at, Credentials who, NodeHandle node,
                                NodeHandle parent, std::string name, pid_t caller) {
  if (options_.read_only) co_return std::errc::read_only_file_system;
  if (name.size() > kNameMax) co_return std::errc::filename_too_long;
  const auto view = table_.find(node);
  const bool unnamed = view && view->file && view->file->linkable.load();
  if (unnamed) co_return co_await name_file(at, who, node, parent, std::move(name), caller);
  co_return co_await add_name(at, who, node, parent, std::move(name));
}

// A first name comes with all that was written: nobody is to find the file without it. Its last
// close may come meanwhile, and whoever gives the name sees to what that would have done.
Task<Entry> FileSystem::name_file(LoopContext& at, Credentials who, NodeHandle node,
                                  NodeHandle parent, std::string name, pid_t caller) {
  const auto held = table_.hold(node);
  if (!held) co_return from_errno(ESTALE);
  const FilePtr file = held->file;
  const Hold hold(this, file);
  {
    MutexLock lock(file->mutex);
    if (file->let_go) co_return std::errc::no_such_file_or_directory;
    file->naming.fetch_add(1);
  }
  const auto committed = co_await commit(at, file, caller);
  Result<Entry> entry = committed ? from_errno(EIO) : committed.error();
  if (committed) entry = co_await add_name(at, who, node, parent, std::move(name));
  if (entry) file->linkable = false;
  file->naming.fetch_sub(1);
  if (file->writers.load() == 0) {
    file->holds.fetch_add(1);
    background(at, "close writer", close_writer(at, file));
  }
  co_return entry;
}

Task<Entry> FileSystem::add_name(LoopContext& at, Credentials who, NodeHandle node,
                                 NodeHandle parent, std::string name) {
  const auto inode = table_.inode_of(node);
  const auto directory = table_.inode_of(parent);
  if (!inode || !directory) co_return from_errno(ESTALE);
  FM_CO_CHECK(co_await send_file(at, *inode));
  FM_CO_CHECK(co_await send_name(at, *directory, name));
  Mutation op = LinkOp{*inode, *directory, name};
  const auto answer = co_await at.client->mutate(who, std::move(op));
  if (!answer) {
    // The file or the directory: one that is leased is there.
    const auto in = table_.find(parent);
    if (in && in->attr_valid) co_return stale_if_gone(*inode, answer.error());
    co_return answer.error();
  }
  const MutationReply& reply = *answer;
  if (!reply.attr) co_return std::errc::io_error;
  apply_parents(reply);
  const auto view = co_await bind(at, *reply.attr, reply.stamp, reply.leased);
  refresh_other_nodes(*inode, view.node);
  const bool kept =
      table_.set_entry(*directory, name, *inode, reply.stamp, reply.parent_leased, kOwn);
  Entry entry = entry_of(view);
  entry.entry_timeout = entry_timeout(*directory, kept);
  co_return entry;
}

void FileSystem::unlink(Ctx ctx, NodeHandle parent, std::string_view name, StatusReply reply) {
  auto task = do_unlink(at(reply), cred(ctx), parent, std::string(name), false);
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
}

void FileSystem::rmdir(Ctx ctx, NodeHandle parent, std::string_view name, StatusReply reply) {
  auto task = do_unlink(at(reply), cred(ctx), parent, std::string(name), true);
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
}

Task<void> FileSystem::do_unlink(LoopContext& at, Credentials who, NodeHandle parent,
                                 std::string name, bool directory) {
  if (options_.read_only) co_return std::errc::read_only_file_system;
  const auto in = table_.inode_of(parent);
  if (!in) co_return from_errno(ESTALE);
  const InodeId child = table_.peek(*in, name);
  if (directory) {
    FM_CO_CHECK(co_await send_below(at, child));
  } else if (child) {
    FM_CO_TRY(const bool dropped, co_await unlink_unsent(at, child));
    if (dropped) {
      if (!file_in_use(child)) discard_copies(child);
      co_return Status{};
    }
    FM_CO_CHECK(co_await let_close_end(child));
  }
  // Unknown counts as open; if it was not, the cluster is told at once.
  const bool open_here = !directory && (!child || file_in_use(child));
  Mutation op;
  if (directory) {
    op = RmdirOp{*in, name};
  } else {
    op = UnlinkOp{*in, name, open_here};
  }
  auto reply = co_await at.client->mutate(who, std::move(op));
  if (!reply) {
    table_.drop_entry(*in, name);
    co_return reply.error();
  }
  apply_parents(*reply);
  table_.set_entry(*in, name, InodeId{}, reply->stamp, reply->parent_leased, kOwn);
  apply_removed(at, *reply, child);
  if (open_here && reply->removed && reply->removed->nlink == 0 &&
      !file_in_use(reply->removed->inode)) {
    release_orphan(reply->removed->inode);
  }
  co_return Status{};
}

// After close(2) a small file is looked at once more (close_writer()): it is not open for that, and
// the cluster need not keep it as an orphan.
Task<void> FileSystem::let_close_end(InodeId inode) {
  for (const FilePtr& file : table_.files_of(inode)) {
    const auto view = table_.find(file->node);
    if (!view || view->attr.size_bytes > kChunkSizeBytes) continue;
    {
      MutexLock lock(file->mutex);
      if (file->opens != 0 || file->commit_running) continue;
    }
    if (file->holds.load() == 0 || file->mapped.load() || file->sticky.load()) continue;
    FM_CO_CHECK(co_await file->content_gate.enter());
  }
  co_return Status{};
}

// A file that the cluster does not know needs nobody's help to go.
Task<bool> FileSystem::unlink_unsent(LoopContext& at, InodeId inode) {
  if (!table_.unsent(inode)) co_return false;
  if (options_.identity.squash != Squash::kNone) {  // who may is the cluster's to say
    FM_CO_CHECK(co_await send_file(at, inode));
    co_return false;
  }
  const auto files = table_.files_of(inode);
  if (files.empty()) co_return false;
  const auto held = table_.hold(files.front()->node);
  if (!held || !held->file) co_return false;
  const Hold hold(this, held->file);
  FM_CO_TRY(const auto pass, co_await held->file->content_gate.enter());
  const bool dropped = table_.drop_unsent(inode, wall_time(), NodeTable::Drop::kRemoved);
  if (dropped) count("removed before they were sent");
  co_return dropped;
}

void FileSystem::rename(Ctx ctx, NodeHandle parent, std::string_view name, NodeHandle new_parent,
                        std::string_view new_name, unsigned flags, StatusReply reply) {
  constexpr unsigned kSupported = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT;
  const bool mixed = (flags & RENAME_EXCHANGE) != 0 && flags != RENAME_EXCHANGE;
  if ((flags & ~kSupported) != 0 || mixed) return reply.error(EINVAL);
  std::uint32_t wire_flags = 0;
  if ((flags & RENAME_NOREPLACE) != 0) wire_flags |= RenameOp::kNoReplace;
  if ((flags & RENAME_EXCHANGE) != 0) wire_flags |= RenameOp::kExchange;
  if ((flags & RENAME_WHITEOUT) != 0) wire_flags |= RenameOp::kWhiteout;
  auto task = do_rename(at(reply), cred(ctx), parent, std::string(name), new_parent,
                        std::string(new_name), wire_flags);
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
}

Task<void> FileSystem::do_rename(LoopContext& at, Credentials who, NodeHandle parent,
                                 std::string name, NodeHandle new_parent, std::string new_name,
                                 std::uint32_t flags) {
  if (options_.read_only) co_return std::errc::read_only_file_system;
  if (new_name.size() > kNameMax) co_return std::errc::filename_too_long;
  const auto from = table_.inode_of(parent);
  const auto to = table_.inode_of(new_parent);
  if (!from || !to) co_return from_errno(ESTALE);
  const InodeId source = table_.peek(*from, name);
  FM_CO_CHECK(co_await send_below(at, source));
  InodeId target = table_.peek(*to, new_name);
  if (target) FM_CO_CHECK(co_await send_below(at, target));
  target = table_.peek(*to, new_name);
  RenameOp op{*from, name, *to, new_name, flags, false};
  op.target_open_here = !target || file_in_use(target);  // unknown counts as open
  const bool told_open = op.target_open_here;
  auto reply = co_await at.client->mutate(who, std::move(op));
  if (!reply) {
    table_.drop_entry(*from, name);
    table_.drop_entry(*to, new_name);
    co_return reply.error();
  }
  apply_parents(*reply);
  if (reply->attr) table_.apply(*reply->attr, reply->stamp, reply->leased);
  const bool exchanged = (flags & RenameOp::kExchange) != 0;
  const bool same = *from == *to;
  if (exchanged || !reply->attr ||
      (reply->removed && reply->removed->inode == reply->attr->inode)) {
    // An exchange, or two names of one file (then nothing happened): ask again when needed.
    table_.drop_entry(*from, name);
    table_.drop_entry(*to, new_name);
    if (reply->attr) table_.note_place(reply->attr->inode, *to, new_name);
    if (exchanged && reply->removed) table_.note_place(reply->removed->inode, *from, name);
  } else if (same && name == new_name) {
    co_return Status{};
  } else {
    const bool to_leased = same ? reply->parent_leased : reply->new_parent_leased;
    if ((flags & RenameOp::kWhiteout) != 0) {
      table_.drop_entry(*from, name);  // the answer says nothing of what is there now
    } else {
      table_.set_entry(*from, name, InodeId{}, reply->stamp, reply->parent_leased, kOwn);
    }
    table_.set_entry(*to, new_name, reply->attr->inode, reply->stamp, to_leased, kOwn);
  }
  if (exchanged) {
    // Its attributes changed too, and our lease on them was not called back.
    if (reply->removed) table_.apply(*reply->removed, reply->stamp, reply->removed_leased);
    if (reply->removed) co_await note_moved(at, reply->removed->inode);
  } else {
    apply_removed(at, *reply, target);
    if (told_open && reply->removed && reply->removed->nlink == 0 &&
        !file_in_use(reply->removed->inode)) {
      release_orphan(reply->removed->inode);
    }
  }
  if (reply->attr) co_await note_moved(at, reply->attr->inode);
  co_return Status{};
}

void FileSystem::release_orphan(InodeId inode) {
  if (table_.is_gone(inode)) return;
  LoopContext& loop = loops_.front();
  background_on(loop.index, "release orphan",
                [this, &loop, inode] { return do_release_orphan(loop, inode); });
}

asio::awaitable<void> FileSystem::do_release_orphan(LoopContext& at, InodeId inode) {
  ReleaseOrphansOp op;
  op.inodes.push_back(inode);
  // An error needs no care: the session's end releases it as well.
  const Credentials nobody;
  Mutation mutation = std::move(op);
  (void)co_await at.client->mutate(nobody, std::move(mutation));
}

void FileSystem::readlink(Ctx ctx, NodeHandle node, ReadlinkReply reply) {
  const auto view = table_.find(node);
  if (!view) return reply.error(ESTALE);
  note_read(view->inode);
  // A symlink's target never changes, and inode ids are not reused: no lease is needed.
  if (view->attr_known) {
    if (view->attr.type != FileType::kSymlink) return reply.error(EINVAL);
    return reply.target(view->attr.symlink_target);
  }
  auto task = fresh_view(at(reply), cred(ctx), node);
  run_request(ctx, std::move(reply), std::move(task),
              [](ReadlinkReply& to, const NodeTable::View& fresh) {
                to.target(fresh.attr.symlink_target);
              });
}

}  // namespace fermata::mountd
