// rmdir(2): removes an empty directory.
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {

Outcome apply_op(OpContext& context, const RmdirOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto directory, live_directory(txn, op.parent));
  if (directory.refusal) return refuse(directory.refusal);
  if (const auto bad = check_name(op.name)) return refuse(bad);
  FM_TRY(auto denied, check_access(context, op.parent, directory.record, kMayExecute));
  if (denied) return refuse(denied);
  FM_TRY(const auto entry, txn.dentry(op.parent, op.name));
  if (!entry) return refuse(std::errc::no_such_file_or_directory);
  FM_TRY(auto record, known_inode(txn, entry->inode));
  FM_TRY(denied, check_removal(context, op.parent, directory.record, record));
  if (denied) return refuse(denied);
  if (entry->type != FileType::kDirectory) return refuse(std::errc::not_a_directory);
  if (record.entries != 0) return refuse(std::errc::directory_not_empty);
  if (entry->inode != context.mutate.expected_inode) return refuse(Errc::kRetry);

  FM_CHECK(txn.erase_dentry(op.parent, *entry));
  InodeRecord& parent = directory.record;
  --parent.entries;
  --parent.nlink;
  touch(parent, context.now());
  FM_CHECK(txn.put_inode(op.parent, std::move(parent)));
  FM_CHECK(drop_link(context, entry->inode, std::move(record), false));
  CommandResult result;
  result.removed = entry->inode;
  return result;
}

}  // namespace fermata::serverd
