// link(2): another name for a file, or the first one for a file that was made without.
#include "common/base/limits.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"
#include "serverd/meta/quota.h"

namespace fermata::serverd {
namespace {

/// Whether the session has it as a file without a name that may get one.
Result<bool> may_be_named(OpContext& context, InodeId inode, const InodeRecord& record) {
  if (!record.linkable) return false;
  FM_TRY(const auto orphan,
         context.txn.get(Family::kOrphans, key_of(inode, context.command.session)));
  return orphan.has_value();
}

}  // namespace

Outcome apply_op(OpContext& context, const LinkOp& op) {
  Txn& txn = context.txn;
  FM_TRY(auto directory, live_directory(txn, op.parent));
  if (directory.refusal) return refuse(directory.refusal);
  if (const auto bad = check_name(op.name)) return refuse(bad);
  FM_TRY(auto denied, check_access(context, op.parent, directory.record, kMayExecute));
  if (denied) return refuse(denied);
  FM_TRY(const auto existing, txn.dentry(op.parent, op.name));
  if (existing) return refuse(std::errc::file_exists);
  FM_TRY(auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  FM_TRY(denied, check_access(context, op.parent, directory.record, kMayWrite | kMayExecute));
  if (denied) return refuse(denied);
  if (record->is_directory()) return refuse(std::errc::operation_not_permitted);
  const bool first_name = record->nlink == 0;
  if (first_name) {
    FM_TRY(const bool first, may_be_named(context, op.inode, *record));
    if (!first) return refuse(std::errc::no_such_file_or_directory);
    txn.erase(Family::kOrphans, key_of(op.inode, context.command.session));
    record->linkable = false;
  }
  if (record->nlink >= kLinkCountMax) return refuse(std::errc::too_many_links);
  FM_TRY(const bool joins, link_into_tree(txn, *record, op.parent, directory.record, first_name));
  if (!joins) return refuse(std::errc::cross_device_link);

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
