// Quotas: what counts the inodes of a directory's tree, or of a user, and bounds them.
//
// Each inode's record names the nearest directory above it that has a quota (its *tree*; none: no
// such directory), as it was when it was made there, or brought there. It counts in that tree's
// quota and in those of the trees around it, and in its owner's. Txn calls account() for whatever
// it writes, so an operation need not know of quotas unless it moves something between trees; once
// it is done, exceeds_quota() says whether it has made something grow beyond its limit.
//
// A quota is set on what is there already. A tree is then walked, part by part in commands of their
// own (ops/quota.cc), and every inode gets its new tree as it is counted: what has been reached
// counts, the rest does not yet, and what happens meanwhile is exact for both. The walk's place is
// a record per directory that was reached and not finished, so it goes on at another primary. A
// user's files are found by a walk over all inodes in the order of their numbers: what is below its
// place counts, and what was made since it began. A tree's quota that is removed binds nobody from
// then on; its inodes get the tree around it by the same walk, and the record goes last.
//
// A volume without quotas pays one look at a number in memory.
//
// Thread-safety: as Txn.
#pragma once

#include <optional>
#include <vector>

#include "serverd/meta/txn.h"

namespace fermata::serverd {

/// Of one volume.
inline constexpr std::uint64_t kQuotasMax = 4096;
/// Inodes that one rename brings to another tree; for larger directories it is EXDEV.
inline constexpr std::size_t kMovedInodesMax = 10'000;

struct Charge {
  std::uint64_t bytes = 0;  ///< as st_blocks says: whole pages
  std::uint64_t inodes = 0;
};
Charge charge_of(const InodeRecord& record);
/// A user's: whether the walk has come by it, or it was made after.
bool counts(const QuotaRecord& user, InodeId inode);

/// What an inode's change from `before` to `after` (none: it is not there) does to what is counted.
Status account(Txn& txn, InodeId inode, const std::optional<InodeRecord>& before,
               const InodeRecord* after);
/// Whether the command so far has made something grow that is then above its limit.
Result<bool> exceeds_quota(Txn& txn);

Result<std::optional<QuotaRecord>> find_quota(Txn& txn, QuotaKind kind, std::uint64_t id);
void put_quota(Txn& txn, const QuotaRecord& quota);
/// Where `tree` leads when quotas that are being removed are passed over.
Result<InodeId> tree_in_force(Txn& txn, InodeId tree);
/// Gives the inode another tree, and counts that. Neither attributes nor content are news: the
/// record stays one of its old moment. `record` is as stored. A directory's own walk ends.
Status set_tree(Txn& txn, InodeId inode, InodeRecord& record, InodeId tree);
/// A tree within another one, whichever that was: its usage counts there.
Status set_parent(Txn& txn, QuotaRecord quota, InodeId parent);

// ---- walks
/// The tree's directory is to be walked from the entry after `from`.
Status walk_directory(Txn& txn, InodeId tree, InodeId directory, Cookie from);
Result<std::optional<Cookie>> walk_of(Txn& txn, InodeId tree, InodeId directory);
void end_walk(Txn& txn, InodeId tree, InodeId directory);
/// Binds nobody any more, and goes when its inodes have been told.
Status begin_removal(Txn& txn, QuotaRecord quota);

// ---- what operations ask. False: refused, EXDEV. The record is the caller's to store.
/// `record` gets an entry in `directory`; as its first (`first_name`) or one more name.
Result<bool> link_into_tree(Txn& txn, InodeRecord& record, InodeId directory_id,
                            const InodeRecord& directory, bool first_name);
struct Directory {
  InodeId id;
  const InodeRecord& record;
};
/// An entry moves from one directory to another, or within one, where it gets `place`; takes what
/// is below it along. `budget`: inodes that the command may still look at.
Result<bool> move_into_tree(Txn& txn, InodeId inode, InodeRecord& record, InodeId from,
                            const Directory& directory, Cookie place, std::size_t& budget);
/// Before the inode's record goes.
Status forget_in_quotas(Txn& txn, InodeId inode);

}  // namespace fermata::serverd
