#include "serverd/meta/txn.h"

#include <algorithm>

#include "serverd/meta/codec.h"
#include "serverd/meta/quota.h"

namespace fermata::serverd {

void Txn::begin(LogIndex index) {
  index_ = index;
  keeps_history_ = true;
  undo_.clear();
  growth_.clear();
  state_before_ = state_;
  events_before_ = events_.size();
}

void Txn::rollback() {
  for (auto at = undo_.rbegin(); at != undo_.rend(); ++at) {
    if (at->was_there) {
      overlay(at->family).insert_or_assign(std::move(at->key), std::move(at->value));
    } else {
      overlay(at->family).erase(at->key);
    }
  }
  undo_.clear();
  growth_.clear();
  state_ = state_before_;
  events_.resize(events_before_);
}

void Txn::keep_no_history() {
  keeps_history_ = false;
  state_.history_start = std::max(state_.history_start, index_);
}

void Txn::set(Family family, std::string key, std::optional<std::string> value) {
  Overlay& overlay = this->overlay(family);
  const auto at = overlay.lower_bound(key);
  if (at != overlay.end() && at->first == key) {
    undo_.push_back({family, std::move(key), true, std::move(at->second)});
    at->second = std::move(value);
    return;
  }
  undo_.push_back({family, key, false, std::nullopt});
  overlay.emplace_hint(at, std::move(key), std::move(value));
}

Result<std::optional<std::string>> Txn::get(Family family, std::string_view key) {
  const Overlay& overlay = this->overlay(family);
  if (const auto at = overlay.find(key); at != overlay.end()) return at->second;
  return store_.get(family, key);
}

Status Txn::replace(Family family, std::string key, std::optional<std::string> value) {
  FM_TRY(auto old, get(family, key));
  if (old) {
    FM_TRY(const LogIndex since, since_of(*old));
    // What this very command wrote was never in force.
    if (since != index_ && !keeps_history_) {
      // As if it had gone to history and been pruned.
      if (family == Family::kChunks) {
        FM_TRY(const ChunkId chunk, decode_chunk(*old));
        FM_CHECK(unreference(chunk));
      }
    } else if (since != index_) {
      put(Family::kHistoryIndex, history_index_key(index_, family, key), {});
      put(Family::kHistory, history_key(family, key, index_), std::move(*old));
    }
  } else if (!value) {
    return {};
  }
  set(family, std::move(key), std::move(value));
  return {};
}

Result<std::vector<Txn::Record>> Txn::scan(Family family, std::string_view lower,
                                           std::string_view upper, std::size_t records_max) {
  const Overlay& overlay = this->overlay(family);
  std::vector<Record> records;
  auto mine = overlay.lower_bound(lower);
  const auto mine_end = upper.empty() ? overlay.end() : overlay.lower_bound(upper);
  const auto theirs = store_.iterate(family, lower, upper);
  while (records.size() < records_max && (mine != mine_end || theirs->valid())) {
    const bool take_mine = mine != mine_end && (!theirs->valid() || mine->first <= theirs->key());
    if (!take_mine) {
      records.push_back({std::string(theirs->key()), std::string(theirs->value())});
      theirs->next();
      continue;
    }
    if (theirs->valid() && theirs->key() == mine->first) theirs->next();
    if (mine->second) records.push_back({mine->first, *mine->second});
    ++mine;
  }
  FM_CHECK(theirs->status());
  return records;
}

// As value_at() (past.h), this batch's writes included.
Result<std::optional<std::string>> Txn::get_at(Family family, std::string_view key, LogIndex at) {
  const std::string first = history_key(family, key, at.next());
  const std::string end = prefix_end(std::string_view(first).substr(0, first.size() - 8));
  FM_TRY(auto ended, scan(Family::kHistory, first, end, 1));
  std::optional<std::string> value;
  if (!ended.empty()) {
    value = std::move(ended.front().value);
  } else {
    FM_TRY(value, get(family, key));
  }
  if (!value) return value;
  FM_TRY(const LogIndex since, since_of(*value));
  if (since > at) value.reset();
  return value;
}

KvBatch Txn::take_batch(LogIndex applied) {
  state_.applied = applied;
  KvBatch batch;
  for (const Family family : kFamilies) {
    for (auto& [key, value] : overlay(family)) {
      // Keys of a map are const; the map is cleared right below.
      if (value) {
        batch.put(family, key, std::move(*value));
      } else {
        batch.erase(family, key);
      }
    }
    overlay(family).clear();
  }
  batch.put(Family::kCounters, std::string(kStateKey), encode_state(state_));
  undo_.clear();
  return batch;
}

Result<std::optional<InodeRecord>> Txn::inode(InodeId inode) {
  FM_TRY(const auto value, get(Family::kInodes, key_of(inode)));
  if (!value) return std::optional<InodeRecord>();
  FM_TRY(auto record, decode_inode(*value));
  return std::optional(std::move(record));
}
Status Txn::put_inode(InodeId inode, InodeRecord record) {
  record.change = index_;
  if (state_.quotas != 0) {
    FM_TRY(const auto before, this->inode(inode));
    FM_CHECK(account(*this, inode, before, &record));
  }
  return replace(Family::kInodes, key_of(inode), encode_inode(record));
}
Status Txn::erase_inode(InodeId inode) {
  if (state_.quotas != 0) {
    FM_TRY(const auto before, this->inode(inode));
    FM_CHECK(account(*this, inode, before, nullptr));
  }
  return replace(Family::kInodes, key_of(inode), std::nullopt);
}

Result<std::optional<Dirent>> Txn::dentry(InodeId parent, std::string_view name) {
  FM_TRY(const auto value, get(Family::kDentries, key_of(parent, name)));
  if (!value) return std::optional<Dirent>();
  FM_TRY(auto entry, decode_dentry(name, *value));
  return std::optional(std::move(entry));
}
Status Txn::put_dentry(InodeId parent, Dirent entry) {
  entry.since = index_;
  FM_CHECK(replace(Family::kDentries, key_of(parent, entry.name), encode_dentry(entry)));
  put(Family::kCookies, key_of(parent, entry.cookie), encode_cookie(entry));
  return {};
}
Status Txn::erase_dentry(InodeId parent, const Dirent& entry) {
  FM_CHECK(replace(Family::kDentries, key_of(parent, entry.name), std::nullopt));
  erase(Family::kCookies, key_of(parent, entry.cookie));
  return {};
}

Result<std::optional<std::string>> Txn::xattr(InodeId inode, std::string_view name) {
  FM_TRY(const auto value, get(Family::kXattrs, key_of(inode, name)));
  if (!value) return std::optional<std::string>();
  FM_TRY(auto bytes, decode_bytes(*value));
  return std::optional(std::move(bytes));
}
Status Txn::put_xattr(InodeId inode, std::string_view name, std::string_view value) {
  return replace(Family::kXattrs, key_of(inode, name), encode_bytes(index_, value));
}
Status Txn::erase_xattr(InodeId inode, std::string_view name) {
  return replace(Family::kXattrs, key_of(inode, name), std::nullopt);
}

Result<std::string> Txn::inline_content(InodeId inode) {
  FM_TRY(const auto value, get(Family::kInline, key_of(inode)));
  if (!value) return Errc::kCorruptStore;
  return decode_bytes(*value);
}
Status Txn::put_inline(InodeId inode, std::string_view bytes) {
  return replace(Family::kInline, key_of(inode), encode_bytes(index_, bytes));
}
Status Txn::erase_inline(InodeId inode) {
  return replace(Family::kInline, key_of(inode), std::nullopt);
}

Result<std::optional<ChunkId>> Txn::chunk(InodeId inode, std::uint32_t chunk_index) {
  FM_TRY(const auto value, get(Family::kChunks, chunk_key(inode, chunk_index)));
  if (!value) return std::optional<ChunkId>();
  FM_TRY(const ChunkId id, decode_chunk(*value));
  return std::optional(id);
}
Status Txn::put_chunk(InodeId inode, std::uint32_t chunk_index, const ChunkId& id) {
  FM_CHECK(reference(id));
  return replace(Family::kChunks, chunk_key(inode, chunk_index), encode_chunk(index_, id));
}
Status Txn::erase_chunk(InodeId inode, std::uint32_t chunk_index) {
  // The record moves to history with its reference.
  return replace(Family::kChunks, chunk_key(inode, chunk_index), std::nullopt);
}
Status Txn::put_patch(InodeId inode, std::uint32_t number, std::uint64_t offset_bytes,
                      std::string_view bytes) {
  return replace(Family::kPatches, patch_key(inode, index_, number),
                 encode_patch(index_, offset_bytes, bytes));
}

Result<std::optional<Session>> Txn::session(SessionId session) {
  FM_TRY(const auto value, get(Family::kSessions, key_of(session)));
  if (!value) return std::optional<Session>();
  FM_TRY(auto record, decode_session(session, *value));
  return std::optional(std::move(record));
}

Status Txn::reference(const ChunkId& id) {
  const std::string key = key_of(id);
  FM_TRY(const auto value, get(Family::kChunkRefs, key));
  std::uint64_t count = 0;
  if (value) {
    FM_TRY(count, decode_number(*value));
  } else {
    ++state_.chunks;
    FM_TRY(const auto garbage, get(Family::kGarbage, key));
    if (garbage) {
      erase(Family::kGarbage, key);
      --state_.garbage;
    }
    events_.push_back({true, id, index_});
  }
  put(Family::kChunkRefs, key, encode_number(count + 1));
  return {};
}
Status Txn::unreference(const ChunkId& id) {
  const std::string key = key_of(id);
  FM_TRY(const auto value, get(Family::kChunkRefs, key));
  if (!value) return Errc::kCorruptStore;
  FM_TRY(const std::uint64_t count, decode_number(*value));
  if (count > 1) {
    put(Family::kChunkRefs, key, encode_number(count - 1));
    return {};
  }
  erase(Family::kChunkRefs, key);
  put(Family::kGarbage, key, encode_number(index_.value()));
  --state_.chunks;
  ++state_.garbage;
  return {};
}

}  // namespace fermata::serverd
