// Whether the caller of a mutation may do it, by the state that it meets. What the caller's own
// machine has checked before is not relied on.
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {
namespace {

const Denial kAccess{std::make_error_code(std::errc::permission_denied)};              // EACCES
const Denial kNotPermitted{std::make_error_code(std::errc::operation_not_permitted)};  // EPERM

Result<Permissions> permissions_of(const InodeRecord& record,
                                   const std::optional<std::string>& acl_bytes) {
  Permissions out{record.type, record.mode, record.uid, record.gid};
  if (!acl_bytes) return out;
  auto acl = parse_acl(*acl_bytes);
  if (!acl) return Errc::kCorruptStore;
  out.acl = std::move(*acl);
  return out;
}

/// As they were after `at`; none if the inode was not there, or history does not say.
Result<std::optional<Permissions>> permissions_at(Txn& txn, InodeId inode, LogIndex at) {
  if (at < txn.state().history_start) return std::optional<Permissions>();
  FM_TRY(const auto value, txn.get_at(Family::kInodes, key_of(inode), at));
  if (!value) return std::optional<Permissions>();
  FM_TRY(const InodeRecord record, decode_inode(*value));
  std::optional<std::string> acl;
  if (record.xattr_name_bytes != 0) {
    FM_TRY(const auto bytes, txn.get_at(Family::kXattrs, key_of(inode, kAclAccess), at));
    if (bytes) {
      FM_TRY(acl, decode_bytes(*bytes));
    }
  }
  FM_TRY(auto permissions, permissions_of(record, acl));
  return std::optional(std::move(permissions));
}

}  // namespace

Result<Denial> check_access(OpContext& context, InodeId inode, const InodeRecord& record,
                            std::uint32_t wanted) {
  const Credentials& who = context.command.cred;
  if (is_superuser(who)) return Denial{};
  std::optional<std::string> acl;
  if (record.xattr_name_bytes != 0) {
    FM_TRY(acl, context.txn.xattr(inode, kAclAccess));
  }
  FM_TRY(const auto permissions, permissions_of(record, acl));
  return may(who, permissions, wanted) ? Denial{} : kAccess;
}

Result<Denial> check_removal(OpContext& context, InodeId directory_id, const InodeRecord& directory,
                             const InodeRecord& entry) {
  FM_TRY(const auto denied,
         check_access(context, directory_id, directory, kMayWrite | kMayExecute));
  if (denied) return denied;
  const bool sticky =
      sticky_forbids(context.command.cred, directory.mode, directory.uid, entry.uid);
  return sticky ? kNotPermitted : Denial{};
}

Denial check_new_owner(const Credentials& who, std::uint32_t uid, std::uint32_t gid) {
  if (is_superuser(who)) return {};
  return who.uid == uid && in_group(who, gid) ? Denial{} : kNotPermitted;
}

Result<Denial> check_write(OpContext& context, InodeId inode, const InodeRecord& record,
                           LogIndex opened) {
  const Credentials& who = context.command.cred;
  if (owns(who, record.uid)) return Denial{};  // who made it read-only may fill it
  FM_TRY(const auto denied, check_access(context, inode, record, kMayWrite));
  if (!denied || !opened) return denied;
  FM_TRY(const auto then, permissions_at(context.txn, inode, opened));
  const bool granted = then && (owns(who, then->uid) || may(who, *then, kMayWrite));
  return granted ? Denial{} : denied;
}

// setattr_prepare() of Linux, fs/attr.c.
Result<Denial> check_setattr(OpContext& context, const SetAttrOp& op, const InodeRecord& record) {
  const Credentials& who = context.command.cred;
  if (is_superuser(who)) return Denial{};
  const bool owner = who.uid == record.uid;
  if (op.uid && (!owner || *op.uid != record.uid)) return kNotPermitted;
  if (op.gid && (!owner || (*op.gid != record.gid && !in_group(who, *op.gid))))
    return kNotPermitted;
  if (op.mode && !owner) return kNotPermitted;
  if (owner) return Denial{};
  const bool sets_times = op.atime || op.mtime;
  if (sets_times && !op.written) return kNotPermitted;
  if (op.written) return check_write(context, op.inode, record, op.opened);
  const bool touches = op.atime_now || op.mtime_now || op.clear_suid_sgid;
  if (touches) return check_write(context, op.inode, record, op.opened);
  return Denial{};
}

// xattr_permission() of Linux, fs/xattr.c; set_posix_acl(), fs/posix_acl.c.
Result<Denial> check_xattr_change(OpContext& context, InodeId inode, const InodeRecord& record,
                                  std::string_view name) {
  const Credentials& who = context.command.cred;
  if (is_superuser(who)) return Denial{};
  if (name == kAclAccess || name == kAclDefault)
    return who.uid == record.uid ? Denial{} : kNotPermitted;
  if (!name.starts_with("user.")) return kNotPermitted;
  const bool plain = record.type == FileType::kRegular || record.is_directory();
  if (!plain) return kNotPermitted;
  constexpr std::uint32_t kSticky = 01000;
  if (record.is_directory() && (record.mode & kSticky) != 0 && who.uid != record.uid)
    return kNotPermitted;
  return check_access(context, inode, record, kMayWrite);
}

}  // namespace fermata::serverd
