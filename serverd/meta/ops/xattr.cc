// setxattr(2), removexattr(2). Who may use which namespace is the kernel's to say.
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

}  // namespace

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
  FM_TRY(const auto old, txn.xattr(op.inode, op.name));
  if (old && creates) return refuse(std::errc::file_exists);
  if (!old && replaces) return refuse(kNoData);

  if (old) {
    record->xattr_bytes -= static_cast<std::uint32_t>(old->size());
  } else {
    record->xattr_name_bytes += static_cast<std::uint32_t>(op.name.size()) + 1;
    record->xattr_bytes += static_cast<std::uint32_t>(op.name.size());
  }
  record->xattr_bytes += static_cast<std::uint32_t>(op.value.size());
  if (record->xattr_bytes > kXattrsBytesMax || record->xattr_name_bytes > kXattrListMax)
    return refuse(std::errc::no_space_on_device);
  FM_CHECK(txn.put_xattr(op.inode, op.name, op.value));
  return store(context, op.inode, std::move(*record));
}

Outcome apply_op(OpContext& context, const RemoveXattrOp& op) {
  Txn& txn = context.txn;
  if (const auto bad = check_xattr_name(op.name)) return refuse(bad);
  FM_TRY(auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  FM_TRY(const auto old, txn.xattr(op.inode, op.name));
  if (!old) return refuse(kNoData);
  record->xattr_bytes -= static_cast<std::uint32_t>(op.name.size() + old->size());
  record->xattr_name_bytes -= static_cast<std::uint32_t>(op.name.size()) + 1;
  FM_CHECK(txn.erase_xattr(op.inode, op.name));
  return store(context, op.inode, std::move(*record));
}

}  // namespace fermata::serverd
