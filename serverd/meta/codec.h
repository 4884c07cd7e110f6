// Keys and values of the namespace's records as bytes; docs/format/meta.md is the same in words.
//
// Encoders are total. Decoders check sizes and ranges and answer kCorruptStore, or kVersionMismatch
// for a record of a newer format.
#pragma once

#include "serverd/meta/records.h"

namespace fermata::serverd {

// ---- keys
std::string key_of(InodeId inode);
std::string key_of(InodeId inode, std::string_view name);  ///< dentries, xattrs
std::string key_of(InodeId inode, Cookie cookie);          ///< cookies
std::string key_of(InodeId inode, LogIndex index);         ///< conflicts
std::string key_of(InodeId inode, SessionId session);      ///< orphans
std::string key_of(SessionId session);
std::string key_of(SessionId session, Sequence sequence);  ///< requests
std::string key_of(InodeId inode, LockSpace space);        ///< locks
std::string key_of(const ChunkId& chunk);                  ///< chunk refs, garbage
std::string chunk_key(InodeId inode, std::uint32_t chunk_index);
std::string patch_key(InodeId inode, LogIndex index, std::uint32_t number);
std::string history_key(Family family, std::string_view key, LogIndex index);
std::string history_index_key(LogIndex index, Family family, std::string_view key);
inline constexpr std::string_view kStateKey = "state";
std::string quota_key(QuotaKind kind, std::uint64_t id);
std::string quota_prefix(QuotaKind kind);
/// A directory of a tree that is reached and not finished; those of one tree begin alike.
std::string quota_walk_key(InodeId tree);
std::string quota_walk_key(InodeId tree, InodeId directory);
/// Below this sequence a session's requests are forgotten: kept in kRequests under sequence 0.
inline constexpr Sequence kAnsweredBelow{0};

/// The number at `offset` of a key; the caller knows the key's form.
std::uint64_t number_in(std::string_view key, std::size_t offset);
std::uint32_t chunk_index_in(std::string_view key);
std::uint32_t patch_number_in(std::string_view key);
struct HistoryIndexKey {
  LogIndex index;
  Family family = Family::kInodes;
  std::string_view key;
};
Result<HistoryIndexKey> parse_history_index_key(std::string_view key);

// ---- values
/// Of a family that has history: when the value was written.
Result<LogIndex> since_of(std::string_view value);

std::string encode_state(const StateRecord& record);
Result<StateRecord> decode_state(std::string_view value);
std::string encode_inode(const InodeRecord& record);
Result<InodeRecord> decode_inode(std::string_view value);
std::string encode_quota(const QuotaRecord& quota);
Result<QuotaRecord> decode_quota(std::string_view key, std::string_view value);
/// Without the name, which is in the key.
std::string encode_dentry(const Dirent& entry);
Result<Dirent> decode_dentry(std::string_view name, std::string_view value);
/// With the name; the cookie is in the key.
std::string encode_cookie(const Dirent& entry);
Result<Dirent> decode_cookie(Cookie cookie, std::string_view value);
/// Xattr values and inline content: `since`, then the bytes.
std::string encode_bytes(LogIndex since, std::string_view bytes);
Result<std::string> decode_bytes(std::string_view value);
std::string encode_chunk(LogIndex since, const ChunkId& id);
Result<ChunkId> decode_chunk(std::string_view value);
std::string encode_patch(LogIndex since, std::uint64_t offset_bytes, std::string_view bytes);
Result<PatchRecord> decode_patch(std::string_view value);
std::string encode_session(const Session& session);
Result<Session> decode_session(SessionId id, std::string_view value);
std::string encode_result(const CommandResult& result);
Result<CommandResult> decode_result(std::string_view value);
/// Counts, indexes, ids.
std::string encode_number(std::uint64_t number);
Result<std::uint64_t> decode_number(std::string_view value);
std::string encode_text(std::string_view text);
Result<std::string> decode_text(std::string_view value);
std::string encode_conflict(const Conflict& conflict);
Result<Conflict> decode_conflict(std::string_view key, std::string_view value);
Result<ChunkId> decode_chunk_key(std::string_view key);
std::string encode_locks(const LockList& locks);
Result<LockList> decode_locks(std::string_view value);

}  // namespace fermata::serverd
