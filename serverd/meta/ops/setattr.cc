// chmod, chown, utimensat. A new size is a commit: it makes a version.
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {

Outcome apply_op(OpContext& context, const SetAttrOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  if (op.uid) record->uid = *op.uid;
  if (op.gid) record->gid = *op.gid;
  // A mode that comes along is the kernel's, which has cleared what a chown clears.
  if (op.mode) {
    record->mode = *op.mode & 07777;
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
