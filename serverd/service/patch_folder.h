// Folds patches into chunks, behind the commits that brought them.
//
// A patch costs one round of the log; each that stays costs every reader a little, and a file takes
// only so many. So the primary reads a chunk and the patches over it, stores what they make on a
// majority's disks as any new chunk, and proposes FoldPatches, which puts it in their place without
// a new version. Commits go on meanwhile: what they changed of a chunk makes its fold void.
//
// A file that is left alone for a while is folded whole. One that is written all the time is folded
// when it has three quarters of what it may have, the chunks with the most patches first: a chunk
// costs the same to store for one patch as for a hundred.
//
// Thread-safety: the node's executor.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "common/wire/commands.h"
#include "serverd/meta/records.h"
#include "serverd/service/chunk_durability.h"
#include "serverd/service/node_context.h"

namespace fermata::serverd {

/// The patches over one chunk of a file, oldest first.
struct PatchedChunk {
  std::uint32_t index = 0;
  std::vector<StoredPatch> patches;
};
/// Which chunks to fold: all, most patches first, or (`few`) only so many of them that a quarter of
/// kPatchesMax and of kPatchBytesMax is left at most.
std::vector<PatchedChunk> plan_fold(std::vector<StoredPatch> patches, bool few);
/// `base` with the patches of chunk `index` laid over it, as long as they and it reach.
Buffer fold_chunk(const Buffer& base, const PatchedChunk& chunk);

class PatchFolder {
 public:
  explicit PatchFolder(NodeContext& node) : node_(node) {}

  /// Until stopped.
  boost::asio::awaitable<void> run();
  /// A commit has put patches on the file.
  void note(InodeId inode) { patched_[inode] = {node_.env.now(), true}; }
  /// A new term: looks for files with patches.
  void on_serving() {
    patched_.clear();
    look_for_all_ = true;
  }

 private:
  struct File {
    TimePoint committed{};  ///< when last, as far as is known
    bool news = true;       ///< since it was looked at
  };
  using Uses = std::vector<std::unique_ptr<ChunkDurability::Use>>;
  void find_all();
  boost::asio::awaitable<void> look_after(InodeId inode, bool rests);
  Task<void> fold(InodeId inode, bool few);
  Task<FoldPatchesCommand::Chunk> store_folded(InodeId inode, PatchedChunk chunk, Uses& uses);

  NodeContext& node_;
  std::map<InodeId, File> patched_;
  bool look_for_all_ = false;
};

}  // namespace fermata::serverd
