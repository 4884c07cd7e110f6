// getattr and setattr: what is shown of a file, and what is changed of it but its content.
#include <sys/stat.h>

#include "common/access/access.h"
#include "mountd/fs/attributes.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {

// A file that nobody here has open shows the newest version that is known, under the node that the
// kernel has; one that is open keeps showing what was opened.
std::optional<NodeTable::View> FileSystem::newest_view(NodeHandle node) {
  auto view = table_.find(node);
  if (!view || !view->file || !view->current || view->version == view->attr.version) return view;
  return table_.take_newest(node, 0) ? table_.find(node) : view;
}

Task<NodeTable::View> FileSystem::fresh_view(LoopContext& at, Credentials who, NodeHandle node) {
  auto view = newest_view(node);
  if (!view) co_return from_errno(ESTALE);
  if (view->attr_valid) co_return *view;
  auto answer = co_await at.client->getattr(who, view->inode);
  if (answer) {
    co_await settle_lineage(at, answer->attr);
    table_.apply(answer->attr, answer->stamp, answer->leased);
    view = newest_view(node);
    if (!view) co_return from_errno(ESTALE);
    view->attr_valid = view->attr_valid && answer->leased;
    co_return *view;
  }
  if (means_gone(answer.error()) && view->attr_known) {
    table_.note_gone(view->inode);  // open here, or somebody's working directory
    view = table_.find(node);
    if (!view) co_return from_errno(ESTALE);
    view->attr_valid = true;
    co_return *view;
  }
  co_return stale_if_gone(view->inode, answer.error());
}

std::error_code FileSystem::stale_if_gone(InodeId inode, std::error_code error) {
  if (!means_gone(error)) return error;
  table_.distrust(inode);
  return from_errno(ESTALE);
}

void FileSystem::getattr(Ctx ctx, NodeHandle node, std::optional<std::uint64_t>, AttrReply reply) {
  const auto view = newest_view(node);
  if (!view) return reply.error(ESTALE);
  if (view->attr_valid) return reply.attr(stat_of(*view), attr_timeout(*view));
  auto task = do_getattr(at(reply), cred(ctx), node);
  run_request(
      ctx, std::move(reply), std::move(task),
      [](AttrReply& to, const AttrReplyValue& value) { to.attr(value.attr, value.timeout); });
}

Task<AttrReplyValue> FileSystem::do_getattr(LoopContext& at, Credentials who, NodeHandle node) {
  FM_CO_TRY(auto view, co_await fresh_view(at, who, node));
  co_return AttrReplyValue{stat_of(view), attr_timeout(view), to_timespec(view.attr.btime)};
}

void FileSystem::statx(Ctx ctx, NodeHandle node, std::optional<std::uint64_t>, StatxReply reply) {
  const auto view = newest_view(node);
  if (!view) return reply.error(ESTALE);
  if (view->attr_valid) {
    return reply.statx(stat_of(*view), to_timespec(view->attr.btime), attr_timeout(*view));
  }
  auto task = do_getattr(at(reply), cred(ctx), node);
  run_request(ctx, std::move(reply), std::move(task),
              [](StatxReply& to, const AttrReplyValue& value) {
                to.statx(value.attr, value.btime, value.timeout);
              });
}

void FileSystem::setattr(Ctx ctx, NodeHandle node, const SetAttributes& set, AttrReply reply) {
  auto task = do_setattr(at(reply), cred(ctx), node, set, options_.identity.squashes(ctx.uid));
  run_request(
      ctx, std::move(reply), std::move(task),
      [](AttrReply& to, const AttrReplyValue& value) { to.attr(value.attr, value.timeout); });
}

SetAttrOp FileSystem::op_of(InodeId inode, const SetAttributes& set) const {
  SetAttrOp op;
  op.inode = inode;
  if (set.has(kSetMode)) op.mode = set.mode & 07777;
  if (set.has(kSetUid)) op.uid = options_.identity.cluster_uid(set.uid);
  if (set.has(kSetGid)) op.gid = options_.identity.cluster_gid(set.gid);
  if (set.has(kSetAtime)) {
    op.atime_now = set.has(kSetAtimeNow);
    if (!op.atime_now) op.atime = from_timespec(set.atime);
  }
  if (set.has(kSetMtime)) {
    op.mtime_now = set.has(kSetMtimeNow);
    if (!op.mtime_now) op.mtime = from_timespec(set.mtime);
  }
  return op;
}

Task<AttrReplyValue> FileSystem::do_setattr(LoopContext& at, Credentials who, NodeHandle node,
                                            SetAttributes set, bool squashed) {
  if (options_.read_only) co_return std::errc::read_only_file_system;
  FM_CO_TRY(const auto here, co_await set_here(at, who, node, set));
  if (here) co_return *here;
  if (const auto inode = table_.inode_of(node)) FM_CO_CHECK(co_await send_below(at, *inode));
  FM_CO_TRY(auto view, co_await fresh_view(at, who, node));
  if (set.has(kSetSize)) {
    if (!view.file) co_return std::errc::invalid_argument;
    if (!set.fh) FM_CO_CHECK(co_await check_squashed(at, who, node, kMayWrite, squashed));
    FM_CO_CHECK(co_await set_size(at, who, node, set));
    if (set.has(kSetMtimeNow)) set.valid &= ~std::uint32_t{kSetMtime | kSetMtimeNow};
  }
  SetAttrOp op = op_of(view.inode, set);
  op.clear_suid_sgid = set.has(kSetKillSuidGid) && (view.attr.mode & (S_ISUID | S_ISGID)) != 0;
  constexpr std::uint32_t kValues = kSetMode | kSetUid | kSetGid | kSetSize | kSetAtime | kSetMtime;
  // chown(path, -1, -1) of a file that loses setuid or setgid by it is for its owner, which the
  // kernel leaves to us. The same request comes from a write that takes them away.
  const bool kills = (view.attr.mode & S_ISUID) != 0 ||
                     (view.attr.mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP);
  const bool written_to = view.file && view.file->writers.load() != 0;
  const bool owner = who.uid == 0 || who.uid == view.attr.uid;
  if ((set.valid & kValues) == 0 && kills && !owner && !written_to) {
    co_return std::errc::operation_not_permitted;
  }
  const bool wanted = op.mode || op.uid || op.gid || op.atime || op.mtime || op.atime_now ||
                      op.mtime_now || op.clear_suid_sgid;
  // chown(path, -1, -1) asks for nothing but a new ctime.
  if (wanted || (set.valid & kValues) == 0) {
    // The change would hide when it was read.
    if (view.noted_read && !op.atime_now && !op.atime) {
      if (owner) {
        op.atime = view.attr.atime;
      } else {
        NoteReadsOp read;
        read.reads.push_back({view.inode, view.attr.atime});
        Mutation note = std::move(read);
        const Credentials nobody;
        (void)co_await at.client->mutate(nobody, std::move(note));
      }
    }
    const bool by_descriptor = (set.valid & kValues & ~std::uint32_t{kSetSize}) == 0;
    if (by_descriptor && op.clear_suid_sgid && written_to) {
      // A write or ftruncate takes them away, by the right of the descriptor.
      MutexLock lock(view.file->mutex);
      who = view.file->writer.who;
      op.opened = view.file->writer.opened;
    }
    const auto answer = co_await at.client->mutate(who, op);
    if (!answer) co_return stale_if_gone(view.inode, answer.error());
    const MutationReply& reply = *answer;
    if (reply.attr) table_.apply(*reply.attr, reply.stamp, reply.leased);
    if (op.atime || op.atime_now) table_.clear_read(view.inode);
    if (op.mode) table_.drop_xattrs(view.inode, reply.stamp);  // an ACL follows the mode
    refresh_other_nodes(view.inode, node);
    if (reply.attr && view.file && set.has(kSetMtime)) {
      const FilePtr file = view.file;
      const Attr attr = *reply.attr;
      const auto job = [this, file, attr] { return set_backing_times(file, attr); };
      FM_CO_CHECK(co_await blocking<void>(*at.env, job));
    }
    if (reply.attr) {
      const auto now = newest_view(node);
      if (now) co_return AttrReplyValue{stat_of(*now), attr_timeout(*now), {}};
    }
  }
  FM_CO_TRY(view, co_await fresh_view(at, who, node));
  co_return AttrReplyValue{stat_of(view), attr_timeout(view), {}};
}

// The kernel has cached the attributes of each node of the inode, and follows the change in one of
// them only; the cluster calls nobody back for his own changes.
void FileSystem::refresh_other_nodes(InodeId inode, NodeHandle but) {
  FuseSession* fuse = fuse_.load();
  const auto files = table_.files_of(inode);
  if (fuse == nullptr || files.size() < 2) return;
  for (const FilePtr& file : files) {
    if (file->node != but) (void)fuse->invalidate_inode(file->node, -1, 0);
  }
}

// A file that is being written takes its mtime from the backing file, so what utimens set must go
// there too: the next commit would undo it.
Status FileSystem::set_backing_times(const FilePtr& file, const Attr& attr) {
  CachePin copy;
  {
    MutexLock lock(file->mutex);
    copy = file->copy;
  }
  if (!copy || !copy->complete() || !copy->maybe_dirty()) return {};
  FM_TRY(const auto fd, copy->reader());
  const timespec times[2] = {{0, UTIME_OMIT}, to_timespec(attr.mtime)};
  if (::futimens(fd->get(), times) != 0) return last_errno();
  FM_TRY(const auto backing, copy->stat());
  MutexLock lock(file->mutex);
  file->times.settle(backing.mtime_ns);
  file->times.follow(to_ns(attr.ctime));
  return {};
}

}  // namespace fermata::mountd
