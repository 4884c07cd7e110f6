#include <algorithm>

#include "common/base/limits.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {
namespace {
constexpr std::uint32_t kSetUid = 04000, kSetGid = 02000, kGroupExecute = 00010;
constexpr std::int64_t kClockSkewMaxSeconds = 5;
}  // namespace

Result<DirectoryOrRefusal> live_directory(Txn& txn, InodeId inode) {
  FM_TRY(auto record, txn.inode(inode));
  DirectoryOrRefusal found;
  if (!record) {
    found.refusal = std::make_error_code(std::errc::no_such_file_or_directory);
  } else if (!record->is_directory()) {
    found.refusal = std::make_error_code(std::errc::not_a_directory);
  } else if (record->nlink == 0) {
    found.refusal = std::make_error_code(std::errc::no_such_file_or_directory);
  } else {
    found.record = std::move(*record);
  }
  return found;
}

std::error_code check_name(std::string_view name) {
  if (name.size() > kNameMax) return std::make_error_code(std::errc::filename_too_long);
  if (name.empty() || name == "." || name == ".." ||
      name.find_first_of(std::string_view("/\0", 2)) != std::string_view::npos)
    return std::make_error_code(std::errc::invalid_argument);
  return {};
}

Result<InodeRecord> known_inode(Txn& txn, InodeId inode) {
  FM_TRY(auto record, txn.inode(inode));
  if (!record) return Errc::kCorruptStore;
  return std::move(*record);
}

InodeId next_inode(OpContext& context) {
  StateRecord& state = context.txn.state();
  ++state.inodes;
  return InodeId(state.next_inode++ | std::uint64_t{context.command.volume.value()} << 48);
}

Result<bool> take_reserved(OpContext& context, InodeId inode) {
  Txn& txn = context.txn;
  FM_TRY(auto session, txn.session(context.command.session));
  if (!session) return false;
  auto& ranges = session->reserved;
  const std::uint64_t id = inode.value();
  const auto in = std::find_if(ranges.begin(), ranges.end(), [id](const Session::Reserve& range) {
    return range.first <= id && id < range.end;
  });
  if (in == ranges.end()) return false;
  const Session::Reserve behind{id + 1, in->end};
  in->end = id;
  const auto next = in->first == in->end ? ranges.erase(in) : std::next(in);
  if (behind.first != behind.end) ranges.insert(next, behind);
  txn.put(Family::kSessions, key_of(session->id), encode_session(*session));
  ++txn.state().inodes;
  return true;
}

Timestamp made_at(const Timestamp& made, const Timestamp& now) {
  Timestamp latest = now;
  latest.seconds += kClockSkewMaxSeconds;
  return made > latest ? now : made;
}

std::uint32_t group_in(const InodeRecord& parent, std::uint32_t gid) {
  return parent.mode & kSetGid ? parent.gid : gid;
}

void touch(InodeRecord& directory, Timestamp now) {
  directory.mtime = now;
  directory.ctime = now;
}

Timestamp changed_at(const InodeRecord& record, const Timestamp& mtime, const Timestamp& now) {
  Timestamp latest = now;
  latest.seconds += kClockSkewMaxSeconds;
  if (mtime == record.mtime || mtime > latest) return now;
  return std::max(record.ctime, mtime);
}

void clear_suid_sgid(InodeRecord& record) {
  if (record.is_directory()) return;
  record.mode &= ~kSetUid;
  if (record.mode & kGroupExecute) record.mode &= ~kSetGid;
}

}  // namespace fermata::serverd
