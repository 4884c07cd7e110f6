// Access times, which clients note and tell later.
//
// A client's clock may lag, and what it tells may be old: an inode that has changed since keeps its
// times. Who compares atime with mtime then sees "not read since", which is as true as it gets.
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {

Outcome apply_op(OpContext& context, const NoteReadsOp& op) {
  Txn& txn = context.txn;
  for (const auto& [inode, time] : op.reads) {
    FM_TRY(auto record, txn.inode(inode));
    if (!record || time <= record->atime || time < record->ctime) continue;
    record->atime = time;
    FM_CHECK(txn.put_inode(inode, std::move(*record)));
  }
  return CommandResult{};
}

}  // namespace fermata::serverd
