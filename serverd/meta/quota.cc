#include "serverd/meta/quota.h"

#include <map>
#include <utility>

#include "serverd/meta/codec.h"

namespace fermata::serverd {
namespace {

constexpr std::uint64_t kPage = 4096;

/// A tree and those around it, quotas that are being removed included.
Result<std::vector<InodeId>> trees_around(Txn& txn, InodeId tree) {
  std::vector<InodeId> trees;
  for (InodeId at = tree; at;) {
    FM_TRY(const auto quota, find_quota(txn, QuotaKind::kTree, at.value()));
    if (!quota || trees.size() > txn.state().quotas) return Errc::kCorruptStore;
    trees.push_back(at);
    at = quota->parent;
  }
  return trees;
}

using Changes = std::map<std::string, QuotaGrowth>;

void add(Changes& changes, const std::string& key, const Charge& charge, std::int64_t sign) {
  QuotaGrowth& change = changes[key];
  change.bytes += sign * static_cast<std::int64_t>(charge.bytes);
  change.inodes += sign * static_cast<std::int64_t>(charge.inodes);
}

Status add_trees(Txn& txn, Changes& changes, InodeId tree, const Charge& charge,
                 std::int64_t sign) {
  FM_TRY(const auto trees, trees_around(txn, tree));
  for (const InodeId each : trees)
    add(changes, quota_key(QuotaKind::kTree, each.value()), charge, sign);
  return {};
}

Status add_user(Txn& txn, Changes& changes, InodeId inode, const InodeRecord& record,
                std::int64_t sign) {
  FM_TRY(const auto user, find_quota(txn, QuotaKind::kUser, record.uid));
  if (user && counts(*user, inode))
    add(changes, quota_key(QuotaKind::kUser, record.uid), charge_of(record), sign);
  return {};
}

Status apply_changes(Txn& txn, const Changes& changes) {
  for (const auto& [key, change] : changes) {
    if (change.bytes == 0 && change.inodes == 0) continue;
    FM_TRY(const auto value, txn.get(Family::kCounters, key));
    if (!value) return Errc::kCorruptStore;
    FM_TRY(QuotaRecord quota, decode_quota(key, *value));
    quota.bytes += static_cast<std::uint64_t>(change.bytes);
    quota.inodes += static_cast<std::uint64_t>(change.inodes);
    txn.put(Family::kCounters, key, encode_quota(quota));
    txn.note_growth(key, change);
  }
  return {};
}

/// The nearest directory with a quota in force, from the tree as it is and not as far as it has
/// been walked.
Result<InodeId> nearest_tree(Txn& txn, InodeId directory) {
  for (InodeId at = directory;;) {
    FM_TRY(const auto quota, find_quota(txn, QuotaKind::kTree, at.value()));
    if (quota && quota->phase != QuotaPhase::kRemoving) return at;
    FM_TRY(const auto record, txn.inode(at));
    if (!record) return Errc::kCorruptStore;
    if (record->parent == at || !record->parent) return InodeId();
    at = record->parent;
  }
}

Result<bool> is_counting(Txn& txn, InodeId tree) {
  if (!tree) return false;
  FM_TRY(const auto quota, find_quota(txn, QuotaKind::kTree, tree.value()));
  return quota && quota->phase == QuotaPhase::kCounting;
}

/// An entry that the walk of `to` has not come by is given a place in a directory, at `place`,
/// which the walk may have passed: it comes by there again.
Status walk_by(Txn& txn, InodeId inode, const InodeRecord& record, InodeId directory, Cookie place,
               InodeId to) {
  FM_TRY(const bool counting, is_counting(txn, to));
  if (!counting) return {};
  FM_TRY(const InodeId nearest, nearest_tree(txn, directory));
  if (nearest != to) return {};  // the directory itself is not reached
  FM_TRY(InodeId counted_in, tree_in_force(txn, record.quota));
  if (counted_in == inode) {  // a tree of its own
    FM_TRY(const auto own, find_quota(txn, QuotaKind::kTree, inode.value()));
    FM_TRY(counted_in, tree_in_force(txn, own->parent));
  }
  if (counted_in == to) return {};
  FM_TRY(const auto walk, walk_of(txn, to, directory));
  const Cookie before(place.value() - 1);
  if (walk && *walk <= before) return {};
  return walk_directory(txn, to, directory, before);
}

/// What is below `top` gets another tree; trees of their own are only linked to it. False: more
/// than the budget, or a file that has names elsewhere too.
Result<bool> take_along(Txn& txn, InodeId top, InodeId tree, std::size_t& budget) {
  struct Names {
    std::uint32_t seen = 0, all = 0;
  };
  std::map<InodeId, Names> linked;
  std::vector<InodeId> directories{top};
  while (!directories.empty()) {
    const InodeId directory = directories.back();
    directories.pop_back();
    FM_TRY(const auto entries, txn.scan(Family::kCookies, key_of(directory),
                                        prefix_end(key_of(directory)), budget + 1));
    if (entries.size() > budget) return false;
    budget -= entries.size();
    for (const auto& entry : entries) {
      FM_TRY(const Dirent dirent, decode_cookie(Cookie(number_in(entry.key, 8)), entry.value));
      FM_TRY(auto record, txn.inode(dirent.inode));
      if (!record) return Errc::kCorruptStore;
      if (record->is_directory()) {
        FM_TRY(auto own, find_quota(txn, QuotaKind::kTree, dirent.inode.value()));
        const bool in_force = own && own->phase != QuotaPhase::kRemoving;
        if (own) FM_CHECK(set_parent(txn, std::move(*own), tree));
        if (in_force) continue;
        directories.push_back(dirent.inode);
      } else if (record->nlink > 1) {
        Names& names = linked[dirent.inode];
        ++names.seen;
        names.all = record->nlink;
      }
      FM_CHECK(set_tree(txn, dirent.inode, *record, tree));
    }
  }
  for (const auto& [inode, names] : linked)
    if (names.seen != names.all) return false;
  return true;
}

}  // namespace

Charge charge_of(const InodeRecord& record) {
  return {(record.allocated_bytes + kPage - 1) / kPage * kPage, 1};
}

bool counts(const QuotaRecord& user, InodeId inode) {
  return user.phase != QuotaPhase::kCounting || inode < user.next || inode >= user.end;
}

Status account(Txn& txn, InodeId inode, const std::optional<InodeRecord>& before,
               const InodeRecord* after) {
  if (before && after && before->quota == after->quota && before->uid == after->uid &&
      charge_of(*before).bytes == charge_of(*after).bytes)
    return {};
  Changes changes;
  if (before) {
    FM_CHECK(add_trees(txn, changes, before->quota, charge_of(*before), -1));
    FM_CHECK(add_user(txn, changes, inode, *before, -1));
  }
  if (after) {
    FM_CHECK(add_trees(txn, changes, after->quota, charge_of(*after), 1));
    FM_CHECK(add_user(txn, changes, inode, *after, 1));
  }
  return apply_changes(txn, changes);
}

Result<bool> exceeds_quota(Txn& txn) {
  for (const auto& [key, growth] : txn.growth()) {
    if (growth.bytes <= 0 && growth.inodes <= 0) continue;
    FM_TRY(const auto value, txn.get(Family::kCounters, key));
    if (!value) continue;
    FM_TRY(const QuotaRecord quota, decode_quota(key, *value));
    if (growth.bytes > 0 && quota.bytes_max != 0 && quota.bytes > quota.bytes_max) return true;
    if (growth.inodes > 0 && quota.inodes_max != 0 && quota.inodes > quota.inodes_max) return true;
  }
  return false;
}

Result<std::optional<QuotaRecord>> find_quota(Txn& txn, QuotaKind kind, std::uint64_t id) {
  const std::string key = quota_key(kind, id);
  FM_TRY(const auto value, txn.get(Family::kCounters, key));
  if (!value) return std::optional<QuotaRecord>();
  FM_TRY(auto quota, decode_quota(key, *value));
  return std::optional(std::move(quota));
}

void put_quota(Txn& txn, const QuotaRecord& quota) {
  txn.put(Family::kCounters, quota_key(quota.kind, quota.id), encode_quota(quota));
}

Result<InodeId> tree_in_force(Txn& txn, InodeId tree) {
  if (txn.state().quotas == 0) return tree;
  while (tree) {
    FM_TRY(const auto quota, find_quota(txn, QuotaKind::kTree, tree.value()));
    if (!quota) return Errc::kCorruptStore;
    if (quota->phase != QuotaPhase::kRemoving) break;
    tree = quota->parent;
  }
  return tree;
}

Status set_tree(Txn& txn, InodeId inode, InodeRecord& record, InodeId tree) {
  if (record.quota == tree) return {};
  const std::optional<InodeRecord> before(record);
  record.quota = tree;
  FM_CHECK(account(txn, inode, before, &record));
  if (record.is_directory()) end_walk(txn, before->quota, inode);
  txn.put(Family::kInodes, key_of(inode), encode_inode(record));
  return {};
}

Status set_parent(Txn& txn, QuotaRecord quota, InodeId parent) {
  if (quota.parent == parent) return {};
  const Charge usage{quota.bytes, quota.inodes};
  Changes changes;
  FM_CHECK(add_trees(txn, changes, quota.parent, usage, -1));
  FM_CHECK(add_trees(txn, changes, parent, usage, 1));
  quota.parent = parent;
  put_quota(txn, quota);
  return apply_changes(txn, changes);
}

Status walk_directory(Txn& txn, InodeId tree, InodeId directory, Cookie from) {
  FM_TRY(auto quota, find_quota(txn, QuotaKind::kTree, tree.value()));
  if (!quota) return Errc::kCorruptStore;
  txn.put(Family::kCounters, quota_walk_key(tree, directory), encode_number(from.value()));
  if (quota->phase == QuotaPhase::kExact) {
    quota->phase = QuotaPhase::kCounting;
    put_quota(txn, *quota);
  }
  return {};
}

Result<std::optional<Cookie>> walk_of(Txn& txn, InodeId tree, InodeId directory) {
  FM_TRY(const auto value, txn.get(Family::kCounters, quota_walk_key(tree, directory)));
  if (!value) return std::optional<Cookie>();
  FM_TRY(const std::uint64_t cookie, decode_number(*value));
  return std::optional(Cookie(cookie));
}

void end_walk(Txn& txn, InodeId tree, InodeId directory) {
  if (tree) txn.erase(Family::kCounters, quota_walk_key(tree, directory));
}

Status begin_removal(Txn& txn, QuotaRecord quota) {
  quota.phase = QuotaPhase::kRemoving;
  quota.bytes_max = quota.inodes_max = 0;
  quota.next = InodeId();
  quota.end = InodeId(txn.state().next_inode);
  put_quota(txn, quota);
  return {};
}

Result<bool> link_into_tree(Txn& txn, InodeRecord& record, InodeId directory_id,
                            const InodeRecord& directory, bool first_name) {
  if (txn.state().quotas == 0) return true;
  FM_TRY(const InodeId to, tree_in_force(txn, directory.quota));
  FM_TRY(const InodeId from, tree_in_force(txn, record.quota));
  if (from == to) return true;
  if (first_name) {
    record.quota = to;
    return true;
  }
  // A tree that is being walked: the one is reached already, the other not yet.
  FM_TRY(const bool to_counting, is_counting(txn, to));
  if (to_counting) {
    FM_TRY(const auto quota, find_quota(txn, QuotaKind::kTree, to.value()));
    FM_TRY(const InodeId around, tree_in_force(txn, quota->parent));
    if (around == from) {
      record.quota = to;
      return true;
    }
  }
  FM_TRY(const bool from_counting, is_counting(txn, from));
  if (from_counting) {
    FM_TRY(const InodeId nearest, nearest_tree(txn, directory_id));
    if (nearest == from) return true;
  }
  return false;
}

Result<bool> move_into_tree(Txn& txn, InodeId inode, InodeRecord& record, InodeId from,
                            const Directory& directory, Cookie place, std::size_t& budget) {
  if (txn.state().quotas == 0) return true;
  FM_TRY(const InodeId to, tree_in_force(txn, directory.record.quota));
  // The records may not tell: a walk may have been at one directory and not yet at the other.
  FM_TRY(const InodeId entered, nearest_tree(txn, directory.id));
  FM_TRY(const InodeId left, from == directory.id ? entered : nearest_tree(txn, from));
  if (left == entered) {  // never refused, whatever tree a file with several names counts in
    FM_CHECK(walk_by(txn, inode, record, directory.id, place, to));
    return true;
  }
  FM_TRY(const InodeId before, tree_in_force(txn, record.quota));
  if (!record.is_directory()) {
    if (record.nlink > 1) return before == entered;
    record.quota = to;
    return true;
  }
  FM_TRY(auto own, find_quota(txn, QuotaKind::kTree, inode.value()));
  if (own && own->phase != QuotaPhase::kRemoving) {
    FM_CHECK(set_parent(txn, std::move(*own), to));
    return true;
  }
  if (before == to) return true;
  end_walk(txn, record.quota, inode);
  record.quota = to;
  return take_along(txn, inode, to, budget);
}

Status forget_in_quotas(Txn& txn, InodeId inode) {
  if (txn.state().quotas == 0) return {};
  FM_TRY(const auto record, txn.inode(inode));
  if (!record || !record->is_directory()) return {};
  end_walk(txn, record->quota, inode);
  FM_TRY(auto own, find_quota(txn, QuotaKind::kTree, inode.value()));
  if (!own || own->phase == QuotaPhase::kRemoving) return {};
  return begin_removal(txn, std::move(*own));
}

}  // namespace fermata::serverd
