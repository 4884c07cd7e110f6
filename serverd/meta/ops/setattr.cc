// chmod, chown, utimensat. A new size is a commit: it makes a version.
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {
namespace {

/// After chmod: an access ACL follows the mode.
Status change_acl(Txn& txn, InodeId inode, InodeRecord& record) {
  if (record.xattr_name_bytes == 0) return {};
  FM_TRY(const auto bytes, txn.xattr(inode, kAclAccess));
  if (!bytes) return {};
  auto acl = parse_acl(*bytes);
  if (!acl) return Errc::kCorruptStore;
  set_mode(*acl, record.mode);
  FM_TRY(const bool fits, put_xattr(txn, inode, record, kAclAccess, encode_acl(*acl)));
  return fits ? Status() : Status(Errc::kCorruptStore);  // it is as long as before
}

}  // namespace

Outcome apply_op(OpContext& context, const SetAttrOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  FM_TRY(const auto denied, check_setattr(context, op, *record));
  if (denied) return refuse(denied);
  if (op.uid) record->uid = *op.uid;
  if (op.gid) record->gid = *op.gid;
  // A mode that comes along is the kernel's, which has cleared what a chown clears.
  if (op.mode) {
    record->mode = *op.mode & 07777;
    FM_CHECK(change_acl(txn, op.inode, *record));
  } else if (op.uid || op.gid) {
    clear_suid_sgid(*record);
  }
  const bool written = op.written && op.mtime;
  record->ctime = written ? changed_at(*record, *op.mtime, context.now()) : context.now();
  if (op.clear_suid_sgid) clear_suid_sgid(*record);
  if (op.atime) record->atime = *op.atime;
  if (op.mtime) record->mtime = *op.mtime;
  if (op.atime_now) record->atime = context.now();
  if (op.mtime_now) record->mtime = context.now();
  FM_CHECK(txn.put_inode(op.inode, std::move(*record)));
  CommandResult result;
  result.inode = op.inode;
  return result;
}

}  // namespace fermata::serverd
