// link(2): another name for a file.
#include "common/base/limits.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {

Outcome apply_op(OpContext& context, const LinkOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto directory, live_directory(txn, op.parent));
  if (directory.refusal) return refuse(directory.refusal);
  if (const auto bad = check_name(op.name)) return refuse(bad);
  FM_TRY(const auto existing, txn.dentry(op.parent, op.name));
  if (existing) return refuse(std::errc::file_exists);
  FM_TRY(auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  if (record->is_directory()) return refuse(std::errc::operation_not_permitted);
  if (record->nlink == 0) return refuse(std::errc::no_such_file_or_directory);
  if (record->nlink >= kLinkCountMax) return refuse(std::errc::too_many_links);

  ++record->nlink;
  record->ctime = context.now();
  InodeRecord& parent = directory.record;
  FM_CHECK(txn.put_dentry(op.parent, {.name = op.name,
                                      .inode = op.inode,
                                      .type = record->type,
                                      .cookie = parent.next_cookie,
                                      .since = {}}));
  FM_CHECK(txn.put_inode(op.inode, std::move(*record)));
  parent.next_cookie = parent.next_cookie.next();
  ++parent.entries;
  touch(parent, context.now());
  FM_CHECK(txn.put_inode(op.parent, std::move(parent)));
  CommandResult result;
  result.inode = op.inode;
  return result;
}

}  // namespace fermata::serverd
