// mknod, mkdir, symlink, the create half of open, files made with their content, and files without
// a name.
#include <algorithm>

#include "common/base/limits.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"
#include "serverd/meta/quota.h"

namespace fermata::serverd {
namespace {

constexpr std::uint32_t kSetGid = 02000;

std::error_code check_target(const CreateOp& op) {
  if (op.type != FileType::kSymlink) return {};
  if (op.symlink_target.empty()) return std::make_error_code(std::errc::no_such_file_or_directory);
  if (op.symlink_target.size() > kSymlinkMax)
    return std::make_error_code(std::errc::filename_too_long);
  return {};
}

/// The name is taken: success for an open(O_CREAT) of a regular file.
Outcome found(const CreateOp& op, const Dirent& entry) {
  if (op.exclusive) return refuse(std::errc::file_exists);
  if (entry.type == FileType::kDirectory) return refuse(std::errc::is_a_directory);
  if (entry.type != FileType::kRegular) return refuse(std::errc::file_exists);
  CommandResult result;
  result.inode = entry.inode;
  return result;
}

bool is_device(FileType type) {
  return type == FileType::kCharDevice || type == FileType::kBlockDevice;
}

/// `reserved` if it is one; none if it cannot be had.
Result<InodeId> inode_for(OpContext& context, InodeId reserved) {
  if (!reserved) return next_inode(context);
  FM_TRY(const bool taken, take_reserved(context, reserved));
  return taken ? reserved : InodeId();
}

InodeRecord new_inode(const CreateOp& op, const InodeRecord& parent, const Timestamp& now) {
  const bool directory = op.type == FileType::kDirectory;
  InodeRecord record;
  record.type = op.type;
  record.mode = op.type == FileType::kSymlink ? 0777 : op.mode & 07777;
  record.nlink = directory ? 2 : 1;
  record.uid = op.uid;
  record.gid = group_in(parent, op.gid);
  if (directory && parent.mode & kSetGid) record.mode |= kSetGid;
  if (is_device(op.type)) record.rdev = op.rdev;
  if (op.type == FileType::kSymlink) {
    record.symlink_target = op.symlink_target;
    record.size_bytes = op.symlink_target.size();
  }
  record.atime = record.mtime = record.ctime = record.btime = now;
  if (directory) record.parent = op.parent;
  return record;
}

/// What the maker of a reserved inode has set of it before anybody knew it.
Outcome set_since(OpContext& context, const SetAttrOp& set, const Timestamp& changed) {
  FM_TRY(auto result, apply_op(context, set));
  if (result.error != 0) return result;
  FM_TRY(auto record, context.txn.inode(set.inode));
  if (!record) return Errc::kCorruptStore;
  record->ctime = std::max(record->btime, made_at(changed, context.now()));
  FM_CHECK(context.txn.put_inode(set.inode, std::move(*record)));
  return result;
}

}  // namespace

Outcome apply_op(OpContext& context, const CreateOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto directory, live_directory(txn, op.parent));
  if (directory.refusal) return refuse(directory.refusal);
  InodeRecord& parent = directory.record;
  if (const auto bad = check_name(op.name)) return refuse(bad);
  FM_TRY(auto denied, check_access(context, op.parent, parent, kMayExecute));
  if (denied) return refuse(denied);
  FM_TRY(const auto existing, txn.dentry(op.parent, op.name));
  if (existing) return found(op, *existing);
  if (context.mutate.expected_inode) return refuse(Errc::kRetry);
  if (const auto bad = check_target(op)) return refuse(bad);
  FM_TRY(denied, check_access(context, op.parent, parent, kMayWrite | kMayExecute));
  if (denied) return refuse(denied);
  const Credentials& who = context.command.cred;
  if (is_device(op.type) && !is_superuser(who)) return refuse(std::errc::operation_not_permitted);
  if (const auto bad = check_new_owner(who, op.uid, op.gid)) return refuse(bad);
  const bool is_directory = op.type == FileType::kDirectory;
  if (is_directory && parent.nlink >= kDirectoryLinksMax) return refuse(std::errc::too_many_links);

  FM_TRY(const InodeId inode, inode_for(context, op.inode));
  if (!inode) return refuse(std::errc::invalid_argument);
  const Timestamp when = op.inode ? made_at(op.made, context.now()) : context.now();
  InodeRecord record = new_inode(op, parent, when);
  FM_TRY(record.quota, tree_in_force(txn, parent.quota));
  FM_TRY(const bool fits, inherit_acl(txn, op.parent, inode, record, op.umask));
  if (!fits) return refuse(std::errc::no_space_on_device);
  FM_CHECK(txn.put_inode(inode, std::move(record)));
  FM_CHECK(txn.put_dentry(op.parent, {.name = op.name,
                                      .inode = inode,
                                      .type = op.type,
                                      .cookie = parent.next_cookie,
                                      .since = {}}));
  parent.next_cookie = parent.next_cookie.next();
  ++parent.entries;
  if (is_directory) ++parent.nlink;
  touch(parent, op.inode ? std::max(parent.ctime, when) : when);
  FM_CHECK(txn.put_inode(op.parent, std::move(parent)));
  if (op.set) return set_since(context, *op.set, op.changed);
  CommandResult result;
  result.inode = inode;
  return result;
}

// Both or neither: what refuses the content takes the file back.
Outcome apply_op(OpContext& context, const MakeFileOp& op) {
  FM_TRY(const CommandResult made, apply_op(context, op.create));
  if (made.error != 0) return made;
  return apply_op(context, op.content);
}

Outcome apply_op(OpContext& context, const ReserveInodesOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto session, txn.session(context.command.session));
  if (!session) return refuse(Errc::kSessionExpired);
  std::uint64_t reserved = op.count;
  for (const Session::Reserve& range : session->reserved) reserved += range.end - range.first;
  if (reserved > kReservedInodesMax) return refuse(std::errc::invalid_argument);
  StateRecord& state = txn.state();
  const std::uint64_t volume = std::uint64_t{context.command.volume.value()} << 48;
  CommandResult result;
  result.inode = InodeId(state.next_inode | volume);
  result.count = op.count;
  state.next_inode += op.count;
  auto& ranges = session->reserved;
  const std::uint64_t end = state.next_inode | volume;
  if (!ranges.empty() && ranges.back().end == result.inode.value()) {
    ranges.back().end = end;
  } else {
    ranges.push_back({result.inode.value(), end});
  }
  txn.put(Family::kSessions, key_of(session->id), encode_session(*session));
  return result;
}

// The directory is not changed by it. As an orphan it goes with the session at the latest.
Outcome apply_op(OpContext& context, const CreateUnnamedOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto directory, live_directory(txn, op.parent));
  // One that was shown already was made when it could be, in a directory that may be gone by now.
  const bool shown = static_cast<bool>(op.inode);
  if (directory.refusal && !shown) return refuse(directory.refusal);
  if (directory.refusal) directory.record = InodeRecord();
  if (!shown) {
    FM_TRY(const auto denied,
           check_access(context, op.parent, directory.record, kMayWrite | kMayExecute));
    if (denied) return refuse(denied);
  }
  if (const auto bad = check_new_owner(context.command.cred, op.uid, op.gid)) return refuse(bad);
  const SessionId session = context.command.session;
  FM_TRY(const auto alive, txn.session(session));
  if (!alive) return refuse(Errc::kSessionExpired);

  CreateOp like;
  like.mode = op.mode;
  like.uid = op.uid;
  like.gid = op.gid;
  FM_TRY(const InodeId inode, inode_for(context, op.inode));
  if (!inode) return refuse(std::errc::invalid_argument);
  const Timestamp when = op.inode ? made_at(op.made, context.now()) : context.now();
  InodeRecord record = new_inode(like, directory.record, when);
  FM_TRY(record.quota, tree_in_force(txn, directory.record.quota));
  record.nlink = 0;
  record.linkable = op.linkable;
  FM_TRY(const bool fits, inherit_acl(txn, op.parent, inode, record, op.umask));
  if (!fits) return refuse(std::errc::no_space_on_device);
  FM_CHECK(txn.put_inode(inode, std::move(record)));
  txn.put(Family::kOrphans, key_of(inode, session), encode_text({}));
  if (op.set) return set_since(context, *op.set, op.changed);
  CommandResult result;
  result.inode = inode;
  return result;
}

}  // namespace fermata::serverd
