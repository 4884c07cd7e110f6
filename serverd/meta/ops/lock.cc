// Advisory locks: fcntl(2), flock(2). The list of a file's locks is one record.
#include <algorithm>

#include "common/base/limits.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {
namespace {

Result<LockList> locks_of(Txn& txn, const std::string& key) {
  FM_TRY(const auto value, txn.get(Family::kLocks, key));
  if (!value) return LockList();
  return decode_locks(*value);
}

void store(Txn& txn, std::string key, const LockList& locks) {
  if (locks.empty()) {
    txn.erase(Family::kLocks, std::move(key));
  } else {
    txn.put(Family::kLocks, std::move(key), encode_locks(locks));
  }
}

}  // namespace

Outcome apply_op(OpContext& context, const LockOp& op) {
  Txn& txn = context.txn;
  FM_TRY(const auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  std::string key = key_of(op.inode, op.space);
  FM_TRY(LockList locks, locks_of(txn, key));
  const HeldLock wanted{{context.command.session, op.owner}, op.range, op.type, op.pid};
  if (find_conflict(locks, wanted)) return refuse(std::errc::resource_unavailable_try_again);
  const std::size_t before = locks.size();
  set_lock(locks, wanted);
  if (locks.size() > kLocksPerFileMax && locks.size() > before)
    return refuse(std::errc::no_lock_available);
  store(txn, std::move(key), locks);
  CommandResult result;
  result.inode = op.inode;
  return result;
}

Status release_locks(Txn& txn, std::span<const SessionId> ended) {
  // Files with locks are few beside files: a walk costs less than a second index.
  FM_TRY(auto records, txn.scan(Family::kLocks, {}, {}));
  for (auto& record : records) {
    FM_TRY(LockList locks, decode_locks(record.value));
    const auto removed = std::erase_if(locks, [&](const HeldLock& lock) {
      return std::ranges::find(ended, lock.owner.session) != ended.end();
    });
    if (removed != 0) store(txn, std::move(record.key), locks);
  }
  return {};
}

}  // namespace fermata::serverd
