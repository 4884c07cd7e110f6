// What one batch of commands does to the store, kept aside until it is written in one piece.
//
// Reads see the batch's own writes over the store. A command that fails in the middle is rolled
// back, so it has no effect. Writes to families with history keep the value that they replace,
// under the command's index.
//
// Thread-safety: none; lives within one apply().
#pragma once

#include <array>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "serverd/meta/records.h"

namespace fermata::serverd {

class Txn {
 public:
  struct ChunkEvent {
    bool referenced = false;  ///< else dropped
    ChunkId id;
    LogIndex index;
  };

  Txn(const KvReader& store, const StateRecord& state) : store_(store), state_(state) {}

  // ---- a command's frame
  void begin(LogIndex index);
  void rollback();  ///< undoes everything since begin()
  /// What this command replaces is not kept, so the past before it cannot be read any more.
  void keep_no_history();
  LogIndex index() const { return index_; }

  // ---- records; put_* of a namespace record sets its `since` to index()
  Result<std::optional<InodeRecord>> inode(InodeId inode);
  Status put_inode(InodeId inode, InodeRecord record);
  Status erase_inode(InodeId inode);
  Result<std::optional<Dirent>> dentry(InodeId parent, std::string_view name);
  /// Writes the entry and its place in the listing.
  Status put_dentry(InodeId parent, Dirent entry);
  Status erase_dentry(InodeId parent, const Dirent& entry);
  Result<std::optional<std::string>> xattr(InodeId inode, std::string_view name);
  Status put_xattr(InodeId inode, std::string_view name, std::string_view value);
  Status erase_xattr(InodeId inode, std::string_view name);
  Result<std::string> inline_content(InodeId inode);
  Status put_inline(InodeId inode, std::string_view bytes);
  Status erase_inline(InodeId inode);
  Result<std::optional<ChunkId>> chunk(InodeId inode, std::uint32_t chunk_index);
  /// Counts the references.
  Status put_chunk(InodeId inode, std::uint32_t chunk_index, const ChunkId& id);
  Status erase_chunk(InodeId inode, std::uint32_t chunk_index);
  Status put_patch(InodeId inode, std::uint32_t number, std::uint64_t offset_bytes,
                   std::string_view bytes);
  Result<std::optional<Session>> session(SessionId session);

  // ---- quotas (quota.h)
  void note_growth(const std::string& key, const QuotaGrowth& by) {
    QuotaGrowth& growth = growth_[key];
    growth.bytes += by.bytes;
    growth.inodes += by.inodes;
  }
  /// By this command, of what quotas count; keys as theirs.
  const std::map<std::string, QuotaGrowth>& growth() const { return growth_; }

  // ---- chunk references: as many as records name the chunk
  Status reference(const ChunkId& id);
  /// The last one makes it garbage.
  Status unreference(const ChunkId& id);
  void note_dropped(const ChunkId& id) { events_.push_back({false, id, index_}); }

  // ---- raw
  Result<std::optional<std::string>> get(Family family, std::string_view key);
  /// Of a record with history: the value in force after `at` was applied.
  Result<std::optional<std::string>> get_at(Family family, std::string_view key, LogIndex at);
  void put(Family family, std::string key, std::string value) {
    set(family, std::move(key), std::move(value));
  }
  void erase(Family family, std::string key) { set(family, std::move(key), std::nullopt); }
  /// Writes a record with history: what it replaces goes there. None: removes it.
  Status replace(Family family, std::string key, std::optional<std::string> value);
  struct Record {
    std::string key, value;
  };
  /// At most `records_max` in [lower, upper), this batch's writes included.
  Result<std::vector<Record>> scan(Family family, std::string_view lower, std::string_view upper,
                                   std::size_t records_max = SIZE_MAX);
  Result<std::vector<Record>> scan_prefix(Family family, std::string_view prefix) {
    return scan(family, prefix, prefix_end(prefix));
  }

  StateRecord& state() { return state_; }
  const std::vector<ChunkEvent>& chunk_events() const { return events_; }
  /// Everything for the store, the state record with `applied` included. Leaves the transaction
  /// empty.
  KvBatch take_batch(LogIndex applied);
  std::vector<ChunkEvent> take_chunk_events() { return std::exchange(events_, {}); }

 private:
  using Overlay = std::map<std::string, std::optional<std::string>, std::less<>>;
  struct Undo {
    Family family;
    std::string key;
    bool was_there;  // in the overlay
    std::optional<std::string> value;
  };
  Overlay& overlay(Family family) { return overlays_[static_cast<std::size_t>(family) - 1]; }
  void set(Family family, std::string key, std::optional<std::string> value);

  const KvReader& store_;
  StateRecord state_;
  StateRecord state_before_;
  LogIndex index_;
  bool keeps_history_ = true;
  std::array<Overlay, kFamilyCount> overlays_;
  std::vector<Undo> undo_;
  std::map<std::string, QuotaGrowth> growth_;
  std::vector<ChunkEvent> events_;
  std::size_t events_before_ = 0;
};

}  // namespace fermata::serverd
