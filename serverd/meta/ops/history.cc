// Forgets old history, a bounded number of records at a time.
#include <algorithm>

#include "common/base/bytes.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {

namespace {

/// The version that a conflict tells of goes with its history.
Status forget_conflict(Txn& txn, std::string_view inode_key, LogIndex index) {
  std::string key(inode_key);
  append_be64(key, index.value());
  FM_TRY(const auto listed, txn.get(Family::kConflicts, key));
  if (!listed) return {};
  txn.erase(Family::kConflicts, std::move(key));
  --txn.state().conflicts;
  return {};
}

}  // namespace

Outcome apply_prune_history(Txn& txn, const PruneHistoryCommand& body) {
  const LogIndex up_to = std::min(body.up_to, txn.index().prev());
  LogIndex& start = txn.state().history_start;
  start = std::max(start, up_to);  // refused from the first part on: what is left is not whole
  std::string upper;
  append_be64(upper, up_to.value() + 1);
  FM_TRY(const auto records, txn.scan(Family::kHistoryIndex, {}, upper, body.keys_max));
  for (const auto& record : records) {
    FM_TRY(const auto parsed, parse_history_index_key(record.key));
    std::string key = history_key(parsed.family, parsed.key, parsed.index);
    if (parsed.family == Family::kChunks) {
      FM_TRY(const auto value, txn.get(Family::kHistory, key));
      if (!value) return Errc::kCorruptStore;
      FM_TRY(const ChunkId chunk, decode_chunk(*value));
      FM_CHECK(txn.unreference(chunk));
    }
    if (parsed.family == Family::kInodes) FM_CHECK(forget_conflict(txn, parsed.key, parsed.index));
    txn.erase(Family::kHistory, std::move(key));
    txn.erase(Family::kHistoryIndex, record.key);
  }
  CommandResult result;
  result.count = records.size();
  return result;
}

}  // namespace fermata::serverd
