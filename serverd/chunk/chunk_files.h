// The chunks on one node's disk: blocking calls. ChunkStore makes tasks of them.
//
// A chunk is immutable bytes named by their SHA-256 (docs/format/chunk.md), one file under chunks/.
// Naming by content makes put() idempotent and every read verifiable (Quinlan and Dorward, "Venti",
// FAST 2002). A chunk appears whole or not at all: temporary name, fdatasync, rename, sync of the
// directory. Which chunks are referenced, and how many nodes hold them, is decided elsewhere.
//
// An error of a sync means that the disk may have lost what it had (Rebello et al., USENIX ATC
// 2020): the `fatal` callback is called once, and every later put fails. Only "disk full" for a
// file that still has its temporary name is harmless: that file is thrown away whole.
//
// Thread-safety: any thread, many at once. Calls of the same chunk wait for one another.
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/base/buffer.h"
#include "common/base/ids.h"
#include "common/base/limits.h"
#include "common/base/mutex.h"
#include "common/base/result.h"
#include "common/env/disk.h"

namespace fermata::serverd {

struct ChunkStats {
  std::uint64_t count = 0;
  std::uint64_t bytes = 0;
  std::uint64_t corrupt = 0;     ///< found damaged since the start, and set aside
  std::uint64_t dedup_hits = 0;  ///< puts of what was there, or was being written by another put
  std::uint64_t puts = 0;        ///< that wrote
  std::uint64_t dir_syncs = 0;   ///< fewer than puts when they come together
};

class ChunkFiles {
 public:
  /// `disk` outlives this. `fatal` may be called from any thread that calls this.
  ChunkFiles(Disk& disk, std::string dir, ClusterId cluster,
             std::function<void(std::error_code)> fatal);

  /// Before all else (DIR itself is there, and durable): makes or checks DIR/chunks, removes
  /// leftovers, lists what is there. Logs one line with Errc::kWrongCluster, kVersionMismatch
  /// (newer format), kBadMessage (not a chunk store); these change nothing on disk.
  Status start();

  /// On success the bytes survive a power cut. A chunk that is there costs no write.
  /// Errors: kHashMismatch; kTooLarge; ENOSPC, with nothing left behind; EIO.
  Status put(const ChunkId& id, ByteView bytes);
  /// The whole chunk, verified. Errors: ENOENT; kCorruptChunk (set aside: fetch it from a peer and
  /// put it again).
  Result<Buffer> get(const ChunkId& id);
  /// Fewer than `size_bytes` only at the chunk's end. Verifies the whole chunk unless that was done
  /// a short while ago. Errors as get().
  Result<Buffer> get_range(const ChunkId& id, std::uint64_t offset_bytes, std::size_t size_bytes);
  /// From memory: durable here, as far as known.
  std::vector<bool> has(std::span<const ChunkId> ids) const;
  std::vector<ChunkId> list() const;
  /// Removal has two steps. retire() does not block: from here on has() denies the chunk. Until
  /// remove_retired() comes to it, a put() of it takes it back as it is; after that put() waits and
  /// writes it anew. So whoever is told "stored" has it stored, whenever the removal runs. A chunk
  /// that is not there, or is just being written or checked, is skipped.
  void retire(std::span<const ChunkId> ids);
  /// After a power cut a removed chunk may be back.
  Status remove_retired(std::span<const ChunkId> ids);
  /// Both.
  Status remove(std::span<const ChunkId> ids);
  ChunkStats stats() const;

 private:
  using Lock = std::unique_lock<Mutex>;
  struct Shard {
    std::uint64_t renames = 0;  // done so far
    std::uint64_t durable = 0;  // of them, covered by a sync
    bool syncing = false;
  };

  Status check_format();
  Status load_shard(unsigned shard);
  std::string shard_path(unsigned shard) const;
  std::string path_of(const ChunkId& id) const;
  void claim(Lock& lock, const ChunkId& id);
  void release(const ChunkId& id);
  Status write_temporary(const std::string& path, ByteView bytes);
  Status write_chunk(const ChunkId& id, ByteView bytes);
  Status sync_shard(unsigned shard);
  std::error_code fail(std::error_code error);
  Result<Buffer> read_verified(const ChunkId& id);
  Result<Buffer> read_again_or_set_aside(const ChunkId& id);
  void note_verified(const ChunkId& id);

  Disk& disk_;
  const std::string dir_;  // DIR/chunks
  const ClusterId cluster_;
  const std::function<void(std::error_code)> fatal_;

  mutable Mutex mutex_;
  std::condition_variable_any changed_;  // an id was released, a shard was synced
  std::unordered_map<ChunkId, std::uint32_t> sizes_ FM_GUARDED_BY(mutex_);  // durable chunks
  std::unordered_map<ChunkId, std::uint32_t> retired_
      FM_GUARDED_BY(mutex_);                                   // durable too, but to be removed
  std::unordered_set<ChunkId> claimed_ FM_GUARDED_BY(mutex_);  // being written, removed
  std::array<Shard, 256> shards_ FM_GUARDED_BY(mutex_);
  std::list<ChunkId> verified_ FM_GUARDED_BY(mutex_);  // least recently first
  std::unordered_map<ChunkId, std::list<ChunkId>::iterator> verified_at_ FM_GUARDED_BY(mutex_);
  std::uint64_t next_temporary_ FM_GUARDED_BY(mutex_) = 0;
  std::error_code failed_ FM_GUARDED_BY(mutex_);
  ChunkStats stats_ FM_GUARDED_BY(mutex_);
};

}  // namespace fermata::serverd
