// One function per operation: what a command does to the records, decided by nothing but them and
// the command.
//
// An Outcome is a CommandResult, refusals (ENOENT, kStaleBase, ...) included; its error side is for
// a store that fails, which stops the node. The caller rolls a refused command back, so it has no
// effect whatever the function wrote before. Errors come in the order in which Linux and ext4 find
// them.
#pragma once

#include <string_view>

#include "common/access/access.h"
#include "serverd/meta/txn.h"

namespace fermata::serverd {

using Outcome = Result<CommandResult>;

/// A client's mutation in its command.
struct OpContext {
  Txn& txn;
  const fermata::Command& command;
  const MutateCommand& mutate;
  Timestamp now() const { return command.time; }
};

Outcome apply_op(OpContext& context, const CreateOp& op);
Outcome apply_op(OpContext& context, const CreateUnnamedOp& op);
Outcome apply_op(OpContext& context, const LinkOp& op);
Outcome apply_op(OpContext& context, const UnlinkOp& op);
Outcome apply_op(OpContext& context, const RmdirOp& op);
Outcome apply_op(OpContext& context, const RenameOp& op);
Outcome apply_op(OpContext& context, const SetAttrOp& op);
Outcome apply_op(OpContext& context, const SetXattrOp& op);
Outcome apply_op(OpContext& context, const RemoveXattrOp& op);
Outcome apply_op(OpContext& context, const CommitOp& op);
Outcome apply_op(OpContext& context, const ReleaseOrphansOp& op);
Outcome apply_op(OpContext& context, const NoteReadsOp& op);
Outcome apply_op(OpContext& context, const LockOp& op);
Outcome apply_op(OpContext& context, const ReturnLocksOp& op);
Outcome apply_op(OpContext& context, const SetQuotaOp& op);
Outcome apply_op(OpContext& context, const MakeFileOp& op);
Outcome apply_op(OpContext& context, const ReserveInodesOp& op);

Outcome apply_bootstrap(Txn& txn, const fermata::Command& command, const BootstrapCommand& body);
Outcome apply_open_session(Txn& txn, const fermata::Command& command,
                           const OpenSessionCommand& body);
/// `ended` gets those that lived.
Outcome apply_end_sessions(Txn& txn, const EndSessionsCommand& body, std::vector<SessionId>& ended);
Outcome apply_prune_history(Txn& txn, const PruneHistoryCommand& body);
Outcome apply_drop_chunks(Txn& txn, const DropChunksCommand& body);
Outcome apply_fold_patches(Txn& txn, const FoldPatchesCommand& body);
Outcome apply_count_quota(Txn& txn, const CountQuotaCommand& body);

// ---- shared by operations

/// Names of a directory: 2 and one per subdirectory. As ext4's dir_nlink, subdirectories are not
/// held to kLinkCountMax.
inline constexpr std::uint32_t kDirectoryLinksMax = 1u << 31;

inline Outcome refuse(std::error_code code) {
  CommandResult result;
  result.error = to_wire(code);
  return result;
}
inline Outcome refuse(std::errc code) { return refuse(std::make_error_code(code)); }
inline Outcome refuse(Errc code) { return refuse(fermata::make_error_code(code)); }

/// A directory that entries may be made in, or why not: ENOENT (also when it was removed), ENOTDIR.
struct DirectoryOrRefusal {
  std::error_code refusal;
  InodeRecord record;
};
Result<DirectoryOrRefusal> live_directory(Txn& txn, InodeId inode);
/// EINVAL, ENAMETOOLONG.
std::error_code check_name(std::string_view name);
/// An inode that a dentry or caller names must be there: kCorruptStore otherwise.
Result<InodeRecord> known_inode(Txn& txn, InodeId inode);

/// The id of an inode about to be made, which is counted.
InodeId next_inode(OpContext& context);
/// Takes an id out of the session's reserve, and counts it; false if it is not (or no longer)
/// there.
Result<bool> take_reserved(OpContext& context, InodeId inode);
/// When somebody made something, by a clock that is not the primary's: never in its future.
Timestamp made_at(const Timestamp& made, const Timestamp& now);
/// The group of what somebody of group `gid` makes in `parent`: the directory's own if it is
/// setgid.
std::uint32_t group_in(const InodeRecord& parent, std::uint32_t gid);
/// Sets or (none) removes an xattr, and counts it in `record`, which is the caller's to store.
/// False: it would be too much for one inode (ENOSPC).
Result<bool> put_xattr(Txn& txn, InodeId inode, InodeRecord& record, std::string_view name,
                       std::optional<std::string> value);
/// Gives a new inode what its parent's default ACL says, or else applies the umask. Of the record
/// it changes the mode; false as put_xattr().
Result<bool> inherit_acl(Txn& txn, InodeId parent, InodeId inode, InodeRecord& record,
                         std::uint32_t umask);
/// After entries of `directory` changed: mtime and ctime.
void touch(InodeRecord& directory, Timestamp now);
/// The new ctime of a file whose writing set `mtime`: when it was written, not when it was closed.
/// What a program saw of the file while it wrote it then stays true after the close (git keeps that
/// in its index). Only where the times would hide that the bytes are others (the writer has set
/// them itself), or are no clock's, it is `now`.
Timestamp changed_at(const InodeRecord& record, const Timestamp& mtime, const Timestamp& now);
/// As a write or chown by one without CAP_FSETID: setuid, and setgid where the group may execute.
void clear_suid_sgid(InodeRecord& record);

// ---- access (access.cc): of the caller, by the state that the command meets
/// EACCES, EPERM; false if there is nothing against it.
struct Denial {
  std::error_code code;
  explicit operator bool() const { return static_cast<bool>(code); }
};
inline Outcome refuse(const Denial& denial) { return refuse(denial.code); }
/// Everything in `wanted` (kMayRead, ...).
Result<Denial> check_access(OpContext& context, InodeId inode, const InodeRecord& record,
                            std::uint32_t wanted);
/// An entry that leads to `entry` may be removed from the directory, or renamed.
Result<Denial> check_removal(OpContext& context, InodeId directory_id, const InodeRecord& directory,
                             const InodeRecord& entry);
/// What a caller makes belongs to the caller, and to a group of the caller's.
Denial check_new_owner(const Credentials& who, std::uint32_t uid, std::uint32_t gid);
/// The caller may write now, or might when the file was opened: after log index `opened` (none:
/// only now), as far as history reaches back. A descriptor keeps what open(2) has granted.
Result<Denial> check_write(OpContext& context, InodeId inode, const InodeRecord& record,
                           LogIndex opened);
Result<Denial> check_setattr(OpContext& context, const SetAttrOp& op, const InodeRecord& record);
Result<Denial> check_xattr_change(OpContext& context, InodeId inode, const InodeRecord& record,
                                  std::string_view name);

/// Takes one name away from a file, or the last one from an empty directory, and stores it: an
/// orphan if sessions have it open, gone otherwise.
Status drop_link(OpContext& context, InodeId inode, InodeRecord record, bool open_here);
/// Moves an inode and all that hangs on it to history.
Status reap(Txn& txn, InodeId inode);
/// The locks of sessions that are over.
Status release_locks(Txn& txn, std::span<const SessionId> ended);
/// The session no longer has the unlinked inode open.
Status release_orphan(Txn& txn, InodeId inode, SessionId session);

}  // namespace fermata::serverd
