// Inodes without a name: kept while a session has them open, then moved to history.
#include <algorithm>

#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"
#include "serverd/meta/quota.h"

namespace fermata::serverd {

Status reap(Txn& txn, InodeId inode) {
  for (const Family family :
       {Family::kXattrs, Family::kInline, Family::kChunks, Family::kPatches}) {
    FM_TRY(const auto records, txn.scan_prefix(family, key_of(inode)));
    for (const auto& record : records) FM_CHECK(txn.replace(family, record.key, std::nullopt));
  }
  for (const LockSpace space : {LockSpace::kPosix, LockSpace::kFlock})
    txn.erase(Family::kLocks, key_of(inode, space));
  FM_CHECK(forget_in_quotas(txn, inode));
  --txn.state().inodes;
  return txn.erase_inode(inode);
}

Status drop_link(OpContext& context, InodeId inode, InodeRecord record, bool open_here) {
  Txn& txn = context.txn;
  record.nlink = record.is_directory() ? 0 : record.nlink - 1;
  record.ctime = context.now();
  if (record.nlink > 0) return txn.put_inode(inode, std::move(record));
  std::vector<SessionId> open_in = context.mutate.open_in;
  if (open_here) open_in.push_back(context.command.session);
  bool orphan = false;
  for (const SessionId session : open_in) {
    FM_TRY(const auto alive, txn.session(session));
    if (!alive) continue;
    orphan = true;
    txn.put(Family::kOrphans, key_of(inode, session), encode_text({}));
  }
  FM_CHECK(txn.put_inode(inode, std::move(record)));  // ctime and nlink, for history too
  if (!orphan) return reap(txn, inode);
  return {};
}

Status release_orphan(Txn& txn, InodeId inode, SessionId session) {
  const std::string key = key_of(inode, session);
  FM_TRY(const auto there, txn.get(Family::kOrphans, key));
  if (!there) return {};
  txn.erase(Family::kOrphans, key);
  const std::string prefix = key_of(inode);
  FM_TRY(const auto others, txn.scan(Family::kOrphans, prefix, prefix_end(prefix), 1));
  if (!others.empty()) return {};
  return reap(txn, inode);
}

Outcome apply_op(OpContext& context, const ReleaseOrphansOp& op) {
  for (const InodeId inode : op.inodes)
    FM_CHECK(release_orphan(context.txn, inode, context.command.session));
  return CommandResult{};
}

}  // namespace fermata::serverd
