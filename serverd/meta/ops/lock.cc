// Advisory locks: fcntl(2), flock(2). The list of a file's locks is one record.
//
// A delegated list has one entry, its holder's (common/base/range_locks.h): whoever holds what
// among the programs of that session's mount is not known here until the list is returned.
#include <algorithm>
#include <utility>

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
  if (op.owner == kDelegate) return refuse(std::errc::invalid_argument);
  std::string key = key_of(op.inode, op.space);
  FM_TRY(LockList locks, locks_of(txn, key));
  const SessionId session = context.command.session;
  CommandResult result;
  result.inode = op.inode;
  if (const SessionId delegate = delegate_of(locks); delegate == session) {
    result.count = 1;
    return result;
  } else if (delegate && op.type != LockType::kUnlock) {
    return refuse(Errc::kRetry);  // the primary has it returned first
  }
  const HeldLock wanted{{session, op.owner}, op.range, op.type, op.pid};
  if (find_conflict(locks, wanted)) return refuse(std::errc::resource_unavailable_try_again);
  const std::size_t before = locks.size();
  set_lock(locks, wanted);
  if (locks.size() > kLocksPerFileMax && locks.size() > before)
    return refuse(std::errc::no_lock_available);
  const bool alone = std::ranges::all_of(
      locks, [&](const HeldLock& lock) { return lock.owner.session == session; });
  if (op.delegate && op.type != LockType::kUnlock && alone) {
    locks = {delegation_to(session)};
    result.count = 1;
  }
  store(txn, std::move(key), locks);
  return result;
}

Outcome apply_op(OpContext& context, const ReturnLocksOp& op) {
  Txn& txn = context.txn;
  const SessionId session = context.command.session;
  FM_TRY(const auto record, txn.inode(op.inode));
  if (!record) return refuse(std::errc::no_such_file_or_directory);
  std::string key = key_of(op.inode, op.space);
  FM_TRY(const LockList now, locks_of(txn, key));
  CommandResult result;
  result.inode = op.inode;
  if (delegate_of(now) != session) return result;
  // They are many at times: one sweep, and not each as if it were granted after the other ones.
  LockList locks = op.held;
  for (HeldLock& lock : locks) lock.owner.session = session;
  std::ranges::sort(locks, {},
                    [](const HeldLock& lock) { return std::pair(lock.owner, lock.range.first); });
  const bool reserved = !locks.empty() && locks.back().owner.number == kDelegate;
  if (reserved || !is_consistent(locks)) return refuse(std::errc::invalid_argument);
  store(txn, std::move(key), locks);
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
