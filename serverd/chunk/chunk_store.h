// The chunks on one node's disk, for coroutines: ChunkFiles on the blocking pool of an Env.
//
// Thread-safety: call from the node's executor. A cancelled or destroyed call leaves no chunk half
// visible: its blocking part runs to the end, and keeps what it needs alive.
#pragma once

#include <memory>
#include <vector>

#include "common/env/env.h"
#include "serverd/chunk/chunk_files.h"

namespace fermata::serverd {

class ChunkStore {
 public:
  /// `env` outlives this and its tasks. `fatal`: a sync failed, stop the node; it comes on a thread
  /// of the blocking pool.
  ChunkStore(Env& env, std::string dir, ClusterId cluster,
             std::function<void(std::error_code)> fatal);

  /// As the calls of the same name of ChunkFiles.
  Task<void> start();
  Task<void> put(ChunkId id, Buffer bytes);
  Task<Buffer> get(ChunkId id);
  Task<Buffer> get_range(ChunkId id, std::uint64_t offset_bytes, std::size_t size_bytes);
  /// has() denies them from the call on, not only once the task runs.
  Task<void> remove(std::vector<ChunkId> ids);
  /// These answer from memory.
  std::vector<bool> has(std::span<const ChunkId> ids) const { return files_->has(ids); }
  std::vector<ChunkId> list() const { return files_->list(); }
  ChunkStats stats() const { return files_->stats(); }

 private:
  Env& env_;
  std::shared_ptr<ChunkFiles> files_;
};

}  // namespace fermata::serverd
