// The namespace's records: what a value in the store means, and its bytes (docs/format/meta.md).
//
// Values are little-endian, keys big-endian so that they sort. Every value begins with a format
// byte; those of the families that have history go on with `since`, the log index that wrote them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/wire/commands.h"
#include "serverd/store/kv_store.h"

namespace fermata::serverd {

/// Of Family::kCounters, under kStateKey; the quotas are beside it.
struct StateRecord {
  LogIndex applied;
  ClusterId cluster;
  std::uint64_t next_inode = 0;  ///< without the volume's bits
  std::uint64_t inodes = 0;
  std::uint64_t chunks = 0;
  std::uint64_t garbage = 0;
  std::uint64_t conflicts = 0;
  LogIndex history_start;
  std::uint64_t quotas = 0;
  bool operator==(const StateRecord&) const = default;
};

enum class ContentKind : std::uint8_t { kEmpty = 0, kInline = 1, kChunks = 2 };

struct InodeRecord {
  FileType type = FileType::kRegular;
  ContentKind content = ContentKind::kEmpty;
  std::uint32_t mode = 0;
  std::uint32_t nlink = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t rdev = 0;
  std::uint64_t size_bytes = 0;
  std::uint64_t allocated_bytes = 0;
  Timestamp atime, mtime, ctime, btime;
  Version version;
  LogIndex change;                     ///< the record's `since`
  InodeId parent;                      ///< directories
  std::uint64_t entries = 0;           ///< directories
  Cookie next_cookie{1};               ///< directories: never reused
  SessionId writer;                    ///< that committed `version`
  std::uint32_t chunks = 0;            ///< records in kChunks
  std::uint32_t patches = 0;           ///< records in kPatches
  std::uint32_t patch_bytes = 0;       ///< in them
  std::uint32_t xattr_name_bytes = 0;  ///< with a terminating zero each, as listxattr(2) counts
  std::uint32_t xattr_bytes = 0;       ///< names and values
  std::string symlink_target;
  bool linkable = false;  ///< made without a name, and may still get one
  InodeId quota;          ///< the nearest directory with a quota that counts it (quota.h); none
  bool is_directory() const { return type == FileType::kDirectory; }
  bool operator==(const InodeRecord&) const = default;
};
Attr to_attr(InodeId inode, const InodeRecord& record);

/// A quota, and what it counts.
struct QuotaRecord {
  QuotaKind kind = QuotaKind::kTree;
  std::uint64_t id = 0;  ///< the directory's inode; the user
  QuotaPhase phase = QuotaPhase::kExact;
  InodeId parent;                ///< trees: the one around it, which counts what this one counts
  std::uint64_t bytes_max = 0;   ///< 0: no limit
  std::uint64_t inodes_max = 0;  ///< 0: no limit
  std::uint64_t bytes = 0;       ///< as st_blocks says
  std::uint64_t inodes = 0;
  /// Of a walk over all inodes (users that are counted, trees that are removed): where it goes on,
  /// and the first inode made since it began.
  InodeId next, end;
  bool operator==(const QuotaRecord&) const = default;
};
/// What a command has changed of a quota's counts.
struct QuotaGrowth {
  std::int64_t bytes = 0;
  std::int64_t inodes = 0;
};

/// A directory entry.
struct Dirent {
  std::string name;
  InodeId inode;
  FileType type = FileType::kRegular;
  Cookie cookie;
  LogIndex since;
  bool operator==(const Dirent&) const = default;
};

/// A patch as kept: within one chunk.
struct PatchRecord {
  std::uint64_t offset_bytes = 0;
  std::string bytes;
  bool operator==(const PatchRecord&) const = default;
};

/// The same with its name.
struct StoredPatch {
  LogIndex index;            ///< of the commit that brought it
  std::uint32_t number = 0;  ///< among those of that commit
  LogIndex since;            ///< `index`, or of the commit that cut it
  PatchRecord patch;
};
/// Of one file.
struct PatchUse {
  std::uint32_t patches = 0;
  std::uint32_t bytes = 0;
};
/// A file's patches: beyond these a commit is kTooLarge and the client sends chunks.
inline constexpr std::uint32_t kPatchesMax = 2048;
inline constexpr std::uint32_t kPatchBytesMax = 6u << 20;

/// What a version's bytes are made of.
struct Content {
  ContentKind kind = ContentKind::kEmpty;
  Version version;
  std::uint64_t size_bytes = 0;
  std::string inline_bytes;  ///< kInline
  std::vector<ChunkRef>
      chunks;  ///< kChunks: holes left out; a chunk's bytes may end early: zeros follow
  bool more_chunks = false;          ///< go on after the last one's index
  std::vector<PatchRecord> patches;  ///< kChunks: later over earlier; within the size
};

struct Session {
  SessionId id;
  Epoch epoch;
  std::string client_id, host, mount_point;
  Timestamp opened;
  std::uint32_t lease_ms = 0;  ///< for all of its life, whoever is primary; 0: not said
  /// Ids of files that it may make and has not made: ascending, apart.
  struct Reserve {
    std::uint64_t first = 0, end = 0;
    bool operator==(const Reserve&) const = default;
  };
  std::vector<Reserve> reserved;
};
/// Of one session.
inline constexpr std::uint64_t kReservedInodesMax = 16'384;

/// A version that was put over one that its writer had not seen. Both are in history.
struct Conflict {
  InodeId inode;
  LogIndex index;    ///< of the commit that replaced; also the new version
  Version base;      ///< that the new version was derived from
  Version replaced;  ///< that lost
  SessionId writer;  ///< of the new version
  SessionId replaced_writer;
  std::string writer_host, replaced_host;
  std::string path_hint;  ///< where the writer knew the file
  Timestamp time;
};

}  // namespace fermata::serverd
