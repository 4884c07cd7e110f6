// Quotas are set and removed, and what that leaves to be done is done part by part.
#include "serverd/meta/quota.h"

#include <algorithm>

#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {
namespace {

const std::error_code kNoQuota = std::make_error_code(std::errc::no_message_available);  // ENODATA

void set_limits(QuotaRecord& quota, const SetQuotaOp& op) {
  if (op.bytes_max) quota.bytes_max = *op.bytes_max;
  if (op.inodes_max) quota.inodes_max = *op.inodes_max;
}

CommandResult done(const SetQuotaOp& op) {
  CommandResult result;
  if (op.kind == QuotaKind::kTree) result.inode = InodeId(op.id);
  return result;
}

Outcome remove(Txn& txn, const SetQuotaOp& op, std::optional<QuotaRecord> quota) {
  if (!quota || quota->phase == QuotaPhase::kRemoving) return refuse(kNoQuota);
  if (op.kind == QuotaKind::kTree) {
    FM_CHECK(begin_removal(txn, std::move(*quota)));
  } else {
    txn.erase(Family::kCounters, quota_key(op.kind, op.id));
    --txn.state().quotas;
  }
  return done(op);
}

Outcome set_on_tree(Txn& txn, const SetQuotaOp& op, std::optional<QuotaRecord> quota) {
  const InodeId inode(op.id);
  FM_TRY(auto directory, live_directory(txn, inode));
  if (directory.refusal) return refuse(directory.refusal);
  if (quota && quota->phase == QuotaPhase::kRemoving)
    return refuse(std::errc::device_or_resource_busy);
  if (quota) {
    set_limits(*quota, op);
    put_quota(txn, *quota);
    return done(op);
  }
  if (txn.state().quotas >= kQuotasMax) return refuse(std::errc::no_space_on_device);
  QuotaRecord fresh;
  fresh.id = op.id;
  FM_TRY(fresh.parent, tree_in_force(txn, directory.record.quota));
  set_limits(fresh, op);
  ++txn.state().quotas;
  put_quota(txn, fresh);
  FM_CHECK(set_tree(txn, inode, directory.record, inode));
  FM_CHECK(walk_directory(txn, inode, inode, Cookie()));
  return done(op);
}

Outcome set_on_user(Txn& txn, const SetQuotaOp& op, std::optional<QuotaRecord> quota) {
  if (op.id == 0 || op.id >= UINT32_MAX) return refuse(std::errc::invalid_argument);
  if (!quota) {
    if (txn.state().quotas >= kQuotasMax) return refuse(std::errc::no_space_on_device);
    quota.emplace();
    quota->kind = QuotaKind::kUser;
    quota->id = op.id;
    quota->phase = QuotaPhase::kCounting;
    quota->end = InodeId(txn.state().next_inode);
    ++txn.state().quotas;
  }
  set_limits(*quota, op);
  put_quota(txn, *quota);
  return done(op);
}

/// The inodes from `from` up to `end`, at most so many.
Result<std::vector<Txn::Record>> inodes_of(Txn& txn, const QuotaRecord& quota,
                                           std::size_t records_max) {
  return txn.scan(Family::kInodes, key_of(quota.next), key_of(quota.end), records_max);
}

Result<std::size_t> count_user(Txn& txn, QuotaRecord quota, std::size_t records_max) {
  FM_TRY(const auto inodes, inodes_of(txn, quota, records_max));
  for (const auto& each : inodes) {
    FM_TRY(const InodeRecord record, decode_inode(each.value));
    if (record.uid != quota.id) continue;
    const Charge charge = charge_of(record);
    quota.bytes += charge.bytes;
    quota.inodes += charge.inodes;
  }
  if (inodes.size() < records_max) {
    quota.phase = QuotaPhase::kExact;
    quota.next = quota.end = InodeId();
  } else {
    quota.next = InodeId(number_in(inodes.back().key, 0) + 1);
  }
  put_quota(txn, quota);
  return inodes.size();
}

/// An entry of a directory of the tree that is being walked.
Status count_entry(Txn& txn, InodeId tree, InodeId inode) {
  FM_TRY(auto record, known_inode(txn, inode));
  if (record.is_directory()) {
    FM_TRY(auto own, find_quota(txn, QuotaKind::kTree, inode.value()));
    const bool in_force = own && own->phase != QuotaPhase::kRemoving;
    if (own) FM_CHECK(set_parent(txn, std::move(*own), tree));
    if (in_force) return {};
  }
  if (record.quota == tree) return {};
  FM_CHECK(set_tree(txn, inode, record, tree));
  if (record.is_directory()) FM_CHECK(walk_directory(txn, tree, inode, Cookie()));
  return {};
}

Result<std::size_t> count_tree(Txn& txn, InodeId tree, std::size_t records_max) {
  std::size_t looked_at = 0;
  const std::string prefix = quota_walk_key(tree);
  std::string from = prefix;  // not each time over those that were ended before
  while (looked_at < records_max) {
    FM_TRY(const auto walks, txn.scan(Family::kCounters, from, prefix_end(prefix), 1));
    if (walks.empty() && from == prefix) break;
    from = walks.empty() ? prefix : walks.front().key + '\0';
    if (walks.empty()) continue;
    const InodeId directory(number_in(walks.front().key, prefix.size()));
    FM_TRY(const std::uint64_t after, decode_number(walks.front().value));
    const std::size_t left = records_max - looked_at;
    FM_TRY(const auto entries, txn.scan(Family::kCookies, key_of(directory, Cookie(after).next()),
                                        prefix_end(key_of(directory)), left));
    looked_at += entries.size() + 1;
    for (const auto& entry : entries) {
      FM_TRY(const Dirent dirent, decode_cookie(Cookie(number_in(entry.key, 8)), entry.value));
      FM_CHECK(count_entry(txn, tree, dirent.inode));
    }
    if (entries.size() < left) {
      end_walk(txn, tree, directory);
    } else {
      FM_CHECK(walk_directory(txn, tree, directory, Cookie(number_in(entries.back().key, 8))));
    }
  }
  FM_TRY(const auto left, txn.scan(Family::kCounters, prefix, prefix_end(prefix), 1));
  if (!left.empty()) return looked_at;
  FM_TRY(auto quota, find_quota(txn, QuotaKind::kTree, tree.value()));
  if (!quota) return Errc::kCorruptStore;
  quota->phase = QuotaPhase::kExact;
  put_quota(txn, *quota);
  return looked_at;
}

/// The trees directly within it.
Result<std::vector<QuotaRecord>> trees_within(Txn& txn, const QuotaRecord& quota) {
  const std::string prefix = quota_prefix(QuotaKind::kTree);
  FM_TRY(const auto all, txn.scan_prefix(Family::kCounters, prefix));
  std::vector<QuotaRecord> within;
  for (const auto& each : all) {
    FM_TRY(auto other, decode_quota(each.key, each.value));
    if (other.parent.value() == quota.id) within.push_back(std::move(other));
  }
  return within;
}

/// Nothing names it any more: the trees within it are the outer one's.
Status drop(Txn& txn, const QuotaRecord& quota, std::vector<QuotaRecord> within) {
  for (QuotaRecord& tree : within) FM_CHECK(set_parent(txn, std::move(tree), quota.parent));
  txn.erase(Family::kCounters, quota_key(quota.kind, quota.id));
  --txn.state().quotas;
  return {};
}

Result<std::size_t> let_go(Txn& txn, QuotaRecord quota, std::size_t records_max) {
  const InodeId tree(quota.id);
  FM_TRY(auto within, trees_within(txn, quota));
  std::uint64_t inodes_within = 0;
  for (const QuotaRecord& each : within) inodes_within += each.inodes;
  if (quota.inodes == inodes_within) {  // as of a directory that was removed
    FM_CHECK(drop(txn, quota, std::move(within)));
    return 1;
  }
  FM_TRY(const InodeId to, tree_in_force(txn, tree));
  FM_TRY(const auto inodes, inodes_of(txn, quota, records_max));
  for (const auto& each : inodes) {
    FM_TRY(InodeRecord record, decode_inode(each.value));
    if (record.quota != tree) continue;
    const InodeId inode(number_in(each.key, 0));
    std::optional<Cookie> walk;
    if (record.is_directory()) {
      FM_TRY(walk, walk_of(txn, tree, inode));
    }
    FM_CHECK(set_tree(txn, inode, record, to));
    // What was not reached yet is now for the walk of the tree around it.
    if (walk && to) FM_CHECK(walk_directory(txn, to, inode, *walk));
  }
  // Its usage has changed with each of them.
  FM_TRY(auto now, find_quota(txn, QuotaKind::kTree, quota.id));
  if (!now) return Errc::kCorruptStore;
  if (inodes.size() < records_max) {
    FM_TRY(within, trees_within(txn, *now));
    FM_CHECK(drop(txn, *now, std::move(within)));
  } else {
    now->next = InodeId(number_in(inodes.back().key, 0) + 1);
    put_quota(txn, *now);
  }
  return inodes.size();
}

}  // namespace

Outcome apply_op(OpContext& context, const SetQuotaOp& op) {
  Txn& txn = context.txn;
  if (!is_superuser(context.command.cred)) return refuse(std::errc::operation_not_permitted);
  FM_TRY(auto quota, find_quota(txn, op.kind, op.id));
  if (op.remove) return remove(txn, op, std::move(quota));
  return op.kind == QuotaKind::kTree ? set_on_tree(txn, op, std::move(quota))
                                     : set_on_user(txn, op, std::move(quota));
}

Outcome apply_count_quota(Txn& txn, const CountQuotaCommand& body) {
  CommandResult result;
  FM_TRY(auto quota, find_quota(txn, body.kind, body.id));
  if (!quota || quota->phase == QuotaPhase::kExact) return result;
  const std::size_t records_max = std::max<std::uint32_t>(body.records_max, 1);
  if (quota->phase == QuotaPhase::kRemoving) {
    FM_TRY(result.count, let_go(txn, std::move(*quota), records_max));
  } else if (body.kind == QuotaKind::kUser) {
    FM_TRY(result.count, count_user(txn, std::move(*quota), records_max));
  } else {
    FM_TRY(result.count, count_tree(txn, InodeId(body.id), records_max));
  }
  return result;
}

}  // namespace fermata::serverd
