// renameat2(2) with RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT.
#include "serverd/meta/ops/ops.h"
#include "serverd/meta/quota.h"

namespace fermata::serverd {
namespace {

/// True if `ancestor` is `directory` or above it.
Result<bool> is_above(Txn& txn, InodeId ancestor, InodeId directory) {
  for (InodeId at = directory;;) {
    if (at == ancestor) return true;
    FM_TRY(const InodeRecord record, known_inode(txn, at));
    if (record.parent == at || !record.parent) return false;
    at = record.parent;
  }
}

/// The two directories of a rename; one record when they are the same.
struct Parents {
  InodeId old_id, new_id;
  InodeRecord old_record, new_record;
  bool same() const { return old_id == new_id; }
  InodeRecord& from() { return old_record; }
  InodeRecord& to() { return same() ? old_record : new_record; }
};

Status store(Txn& txn, Parents& parents, Timestamp now) {
  touch(parents.from(), now);
  touch(parents.to(), now);
  FM_CHECK(txn.put_inode(parents.old_id, parents.old_record));
  if (!parents.same()) FM_CHECK(txn.put_inode(parents.new_id, parents.new_record));
  return {};
}

// vfs_rename() of Linux, fs/namei.c: a directory that gets another parent is written to (its "..").
Result<Denial> may_move(OpContext& context, const RenameOp& op, const InodeRecord& from,
                        const InodeRecord& to, const Dirent& source,
                        const std::optional<Dirent>& target) {
  if (is_superuser(context.command.cred)) return Denial{};
  FM_TRY(const InodeRecord moved, known_inode(context.txn, source.inode));
  FM_TRY(auto denied, check_removal(context, op.parent, from, moved));
  if (denied) return denied;
  const bool same = op.parent == op.new_parent;
  if (!target) {
    FM_TRY(denied, check_access(context, op.new_parent, to, kMayWrite | kMayExecute));
    if (denied) return denied;
  } else {
    FM_TRY(const InodeRecord replaced, known_inode(context.txn, target->inode));
    FM_TRY(denied, check_removal(context, op.new_parent, to, replaced));
    if (denied) return denied;
    if (op.flags & RenameOp::kExchange && replaced.is_directory() && !same) {
      FM_TRY(denied, check_access(context, target->inode, replaced, kMayWrite));
      if (denied) return denied;
    }
  }
  if (op.flags & RenameOp::kWhiteout) return Denial{};
  if (moved.is_directory() && !same) return check_access(context, source.inode, moved, kMayWrite);
  return Denial{};
}

Outcome exchange(OpContext& context, Parents& parents, Dirent source, Dirent target) {
  Txn& txn = context.txn;
  FM_TRY(InodeRecord moved, known_inode(txn, source.inode));
  FM_TRY(InodeRecord back, known_inode(txn, target.inode));
  moved.ctime = back.ctime = context.now();
  if (moved.is_directory()) {
    moved.parent = parents.new_id;
    --parents.from().nlink;
    ++parents.to().nlink;
  }
  if (back.is_directory()) {
    back.parent = parents.old_id;
    --parents.to().nlink;
    ++parents.from().nlink;
  }
  if (parents.to().nlink > kDirectoryLinksMax || parents.from().nlink > kDirectoryLinksMax)
    return refuse(std::errc::too_many_links);
  std::size_t budget = kMovedInodesMax;
  const Directory from{parents.old_id, parents.from()};
  const Directory to{parents.new_id, parents.to()};
  FM_TRY(bool joins, move_into_tree(txn, source.inode, moved, from.id, to, target.cookie, budget));
  if (!joins) return refuse(std::errc::cross_device_link);
  FM_TRY(joins, move_into_tree(txn, target.inode, back, to.id, from, source.cookie, budget));
  if (!joins) return refuse(std::errc::cross_device_link);
  CommandResult result;
  result.inode = source.inode;
  result.removed = target.inode;  // changed too: its holder must hear of it
  FM_CHECK(txn.put_inode(source.inode, std::move(moved)));
  FM_CHECK(txn.put_inode(target.inode, std::move(back)));
  std::swap(source.inode, target.inode);  // names and cookies stay where they are
  std::swap(source.type, target.type);
  FM_CHECK(txn.put_dentry(parents.old_id, std::move(source)));
  FM_CHECK(txn.put_dentry(parents.new_id, std::move(target)));
  FM_CHECK(store(txn, parents, context.now()));
  return result;
}

/// What overlay filesystems take for "there is nothing here": device 0/0 in the old name's place.
Status put_whiteout(OpContext& context, Parents& parents, Dirent entry) {
  InodeRecord record;
  record.type = FileType::kCharDevice;
  record.nlink = 1;
  record.uid = context.command.cred.uid;
  record.gid = group_in(parents.from(), context.command.cred.gid);
  record.atime = record.mtime = record.ctime = record.btime = context.now();
  FM_TRY(record.quota, tree_in_force(context.txn, parents.from().quota));
  entry.inode = next_inode(context);
  entry.type = record.type;
  FM_CHECK(context.txn.put_inode(entry.inode, std::move(record)));
  return context.txn.put_dentry(parents.old_id, std::move(entry));
}

Outcome move(OpContext& context, const RenameOp& op, Parents& parents, const Dirent& source,
             const std::optional<Dirent>& target) {
  Txn& txn = context.txn;
  const bool directory = source.type == FileType::kDirectory;
  std::optional<InodeRecord> replaced;
  if (target) {
    FM_TRY(replaced, txn.inode(target->inode));
    if (!replaced) return Errc::kCorruptStore;
    if (directory && !replaced->is_directory()) return refuse(std::errc::not_a_directory);
    if (!directory && replaced->is_directory()) return refuse(std::errc::is_a_directory);
    if (replaced->entries != 0) return refuse(std::errc::directory_not_empty);
  }
  if (directory && !replaced && !parents.same() && parents.to().nlink >= kDirectoryLinksMax)
    return refuse(std::errc::too_many_links);
  if (source.inode != context.mutate.expected_inode) return refuse(Errc::kRetry);
  if ((target ? target->inode : InodeId()) != context.mutate.expected_target)
    return refuse(Errc::kRetry);

  CommandResult result;
  result.inode = source.inode;
  FM_TRY(InodeRecord moved, known_inode(txn, source.inode));
  moved.ctime = context.now();
  std::size_t budget = kMovedInodesMax;
  const Directory to{parents.new_id, parents.to()};
  const Cookie place = target ? target->cookie : parents.to().next_cookie;
  FM_TRY(const bool joins,
         move_into_tree(txn, source.inode, moved, parents.old_id, to, place, budget));
  if (!joins) return refuse(std::errc::cross_device_link);
  if (directory) {
    moved.parent = parents.new_id;
    --parents.from().nlink;
    if (!replaced) ++parents.to().nlink;  // a replaced one was counted there
  }
  FM_CHECK(txn.put_inode(source.inode, std::move(moved)));
  if (op.flags & RenameOp::kWhiteout) {
    FM_CHECK(put_whiteout(context, parents, source));
  } else {
    FM_CHECK(txn.erase_dentry(parents.old_id, source));
    --parents.from().entries;
  }
  Dirent entry{.name = op.new_name,
               .inode = source.inode,
               .type = source.type,
               .cookie = place,
               .since = {}};
  if (!target) {
    parents.to().next_cookie = parents.to().next_cookie.next();
    ++parents.to().entries;
  }
  FM_CHECK(txn.put_dentry(parents.new_id, std::move(entry)));
  FM_CHECK(store(txn, parents, context.now()));
  if (replaced) {
    result.removed = target->inode;
    FM_CHECK(drop_link(context, target->inode, std::move(*replaced), op.target_open_here));
  }
  return result;
}

}  // namespace

Outcome apply_op(OpContext& context, const RenameOp& op) {
  Txn& txn = context.txn;
  const bool no_replace = op.flags & RenameOp::kNoReplace;
  const bool exchanges = op.flags & RenameOp::kExchange;
  constexpr std::uint32_t kKnown = RenameOp::kNoReplace | RenameOp::kExchange | RenameOp::kWhiteout;
  if ((op.flags & ~kKnown) || (exchanges && op.flags != RenameOp::kExchange))
    return refuse(std::errc::invalid_argument);
  FM_TRY(auto from, live_directory(txn, op.parent));
  if (from.refusal) return refuse(from.refusal);
  FM_TRY(auto to, live_directory(txn, op.new_parent));
  if (to.refusal) return refuse(to.refusal);
  if (const auto bad = check_name(op.name)) return refuse(bad);
  if (const auto bad = check_name(op.new_name)) return refuse(bad);

  FM_TRY(auto denied, check_access(context, op.parent, from.record, kMayExecute));
  if (denied) return refuse(denied);
  FM_TRY(denied, check_access(context, op.new_parent, to.record, kMayExecute));
  if (denied) return refuse(denied);
  FM_TRY(const auto source, txn.dentry(op.parent, op.name));
  if (!source) return refuse(std::errc::no_such_file_or_directory);
  FM_TRY(const auto target, txn.dentry(op.new_parent, op.new_name));
  if (no_replace && target) return refuse(std::errc::file_exists);
  if (exchanges && !target) return refuse(std::errc::no_such_file_or_directory);
  if (source->type == FileType::kDirectory) {
    FM_TRY(const bool loop, is_above(txn, source->inode, op.new_parent));
    if (loop) return refuse(std::errc::invalid_argument);
  }
  if (target && target->type == FileType::kDirectory) {
    FM_TRY(const bool above, is_above(txn, target->inode, op.parent));
    if (above)
      return refuse(exchanges ? std::errc::invalid_argument : std::errc::directory_not_empty);
  }
  if (target && target->inode == source->inode) {  // two names of one file: nothing happens
    CommandResult result;
    result.inode = source->inode;
    return result;
  }
  FM_TRY(denied, may_move(context, op, from.record, to.record, *source, target));
  if (denied) return refuse(denied);
  Parents parents{op.parent, op.new_parent, std::move(from.record), std::move(to.record)};
  if (!exchanges) return move(context, op, parents, *source, target);
  if (source->inode != context.mutate.expected_inode ||
      target->inode != context.mutate.expected_target)
    return refuse(Errc::kRetry);
  return exchange(context, parents, *source, *target);
}

}  // namespace fermata::serverd
