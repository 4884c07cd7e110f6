// Chunks whose files may go.
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"

namespace fermata::serverd {

Outcome apply_drop_chunks(Txn& txn, const DropChunksCommand& body) {
  CommandResult result;
  for (const ChunkId& chunk : body.chunks) {
    const std::string key = key_of(chunk);
    FM_TRY(const auto referenced, txn.get(Family::kChunkRefs, key));
    if (referenced) continue;
    FM_TRY(const auto garbage, txn.get(Family::kGarbage, key));
    if (garbage) {  // else it was uploaded and never committed
      txn.erase(Family::kGarbage, key);
      --txn.state().garbage;
    }
    txn.note_dropped(chunk);
    ++result.count;
  }
  return result;
}

}  // namespace fermata::serverd
