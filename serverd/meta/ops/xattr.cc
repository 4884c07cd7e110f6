// setxattr(2), removexattr(2), and the ACLs among them.
#include "common/base/limits.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {
namespace {

const std::error_code kNoData = std::make_error_code(std::errc::no_message_available);  // ENODATA

std::error_code check_xattr_name(std::string_view name) {
  if (name.empty() || name.size() > kXattrNameMax)
    return std::make_error_code(std::errc::result_out_of_range);
  if (name.find('\0') != std::string_view::npos)
    return std::make_error_code(std::errc::invalid_argument);
  return {};
}

Outcome store(OpContext& context, InodeId inode, InodeRecord record) {
  record.ctime = context.now();
  FM_CHECK(context.txn.put_inode(inode, std::move(record)));
  CommandResult result;
  result.inode = inode;
  return result;
}

bool is_acl(std::string_view name) { return name == kAclAccess || name == kAclDefault; }

/// An ACL; an access ACL moves the mode with it.
Outcome set_acl(OpContext& context, const SetXattrOp& op, InodeRecord record) {
  if (record.type == FileType::kSymlink) return refuse(std::errc::operation_not_supported);
  const bool access = op.name == kAclAccess;
  if (!access && !record.is_directory()) return refuse(std::errc::permission_denied);
  const auto acl = parse_acl(op.value);
  if (!acl) return refuse(acl.error());
  std::optional<std::string> value = encode_acl(*acl);
  if (access) {
    record.mode = (record.mode & 07000) | mode_of(*acl);
    if (op.clear_sgid) record.mode &= ~02000U;
    if (is_only_mode(*acl)) value.reset();
  }
  FM_TRY(const bool fits, put_xattr(context.txn, op.inode, record, op.name, std::move(value)));
  if (!fits) return refuse(std::errc::no_space_on_device);
  return store(context, op.inode, std::move(record));
}

}  // namespace

Result<bool> put_xattr(Txn& txn, InodeId inode, InodeRecord& record, std::string_view name,
                       std::optional<std::string> value) {
  FM_TRY(const auto old, txn.xattr(inode, name));
  if (old) {
    record.xattr_name_bytes -= static_cast<std::uint32_t>(name.size()) + 1;
    record.xattr_bytes -= static_cast<std::uint32_t>(name.size() + old->size());
  }
  if (!value) {
    if (old) FM_CHECK(txn.erase_xattr(inode, name));
    return true;
  }
  record.xattr_name_bytes += static_cast<std::uint32_t>(name.size()) + 1;
  record.xattr_bytes += static_cast<std::uint32_t>(name.size() + value->size());
  if (record.xattr_bytes > kXattrsBytesMax || record.xattr_name_bytes > kXattrListMax) return false;
  FM_CHECK(txn.put_xattr(inode, name, *value));
  return true;
}

Result<bool> inherit_acl(Txn& txn, InodeId parent, InodeId inode, InodeRecord& record,
                         std::uint32_t umask) {
  if (record.type == FileType::kSymlink) return true;
  FM_TRY(const auto inherited, txn.xattr(parent, kAclDefault));
  if (!inherited) {
    record.mode &= ~umask;
    return true;
  }
  auto acl = parse_acl(*inherited);
  if (!acl) return Errc::kCorruptStore;
  set_mode(*acl, mode_of(*acl) & record.mode);
  record.mode = (record.mode & 07000) | mode_of(*acl);
  if (!is_only_mode(*acl)) {
    FM_TRY(const bool fits, put_xattr(txn, inode, record, kAclAccess, encode_acl(*acl)));
    if (!fits) return false;
  }
  if (!record.is_directory()) return true;
  return put_xattr(txn, inode, record, kAclDefault, *inherited);
}

Outcome apply_op(OpContext& context, const SetXattrOp& op) {
  Txn& txn = context.txn;
  const bool creates = op.flags & SetXattrOp::kCreate;
  const bool replaces = op.flags & SetXattrOp::kReplace;
  if (op.flags & ~std::uint32_t{SetXattrOp::kCreate | SetXattrOp::kReplace})
    return refuse(std::errc::invalid_argument);
  if (const auto bad = check_xattr_name(op.name)) return refuse(bad);
  if (op.value.size() > kXattrValueMax) return refuse(std::errc::argument_list_too_long);
  FM_TRY(auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  FM_TRY(const auto denied, check_xattr_change(context, op.inode, *record, op.name));
  if (denied) return refuse(denied);
  if (is_acl(op.name)) return set_acl(context, op, std::move(*record));
  FM_TRY(const auto old, txn.xattr(op.inode, op.name));
  if (old && creates) return refuse(std::errc::file_exists);
  if (!old && replaces) return refuse(kNoData);

  FM_TRY(const bool fits, put_xattr(txn, op.inode, *record, op.name, op.value));
  if (!fits) return refuse(std::errc::no_space_on_device);
  return store(context, op.inode, std::move(*record));
}

Outcome apply_op(OpContext& context, const RemoveXattrOp& op) {
  Txn& txn = context.txn;
  if (const auto bad = check_xattr_name(op.name)) return refuse(bad);
  FM_TRY(auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  FM_TRY(const auto denied, check_xattr_change(context, op.inode, *record, op.name));
  if (denied) return refuse(denied);
  FM_TRY(const auto old, txn.xattr(op.inode, op.name));
  if (!old) return refuse(kNoData);
  FM_TRY(const bool fits, put_xattr(txn, op.inode, *record, op.name, std::nullopt));
  if (!fits) return Errc::kCorruptStore;
  return store(context, op.inode, std::move(*record));
}

}  // namespace fermata::serverd
