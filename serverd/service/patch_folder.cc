#include "serverd/service/patch_folder.h"

#include <algorithm>
#include <utility>

#include "common/base/checksum.h"
#include "common/base/limits.h"
#include "serverd/chunk/chunk_store.h"
#include "serverd/service/chunk_fetcher.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {
constexpr std::size_t kChunksPerCommand = 16;
constexpr std::size_t kFilesPerLook = 1000;

bool crowded(const PatchUse& use) {
  return use.patches > kPatchesMax / 4 * 3 || use.bytes > kPatchBytesMax / 4 * 3;
}
}  // namespace

std::vector<PatchedChunk> plan_fold(std::vector<StoredPatch> patches, bool few) {
  std::size_t left = patches.size();
  std::size_t left_bytes = 0;
  std::map<std::uint32_t, PatchedChunk> by_index;
  for (StoredPatch& stored : patches) {
    const auto index = static_cast<std::uint32_t>(stored.patch.offset_bytes / kChunkSizeBytes);
    PatchedChunk& chunk = by_index[index];
    chunk.index = index;
    left_bytes += stored.patch.bytes.size();
    chunk.patches.push_back(std::move(stored));
  }
  std::vector<PatchedChunk> plan;
  for (auto& [index, chunk] : by_index) plan.push_back(std::move(chunk));
  std::stable_sort(plan.begin(), plan.end(), [](const PatchedChunk& a, const PatchedChunk& b) {
    return a.patches.size() > b.patches.size();
  });
  if (!few) return plan;
  std::size_t taken = 0;
  while (taken < plan.size() && (left > kPatchesMax / 4 || left_bytes > kPatchBytesMax / 4)) {
    left -= plan[taken].patches.size();
    for (const StoredPatch& stored : plan[taken].patches) left_bytes -= stored.patch.bytes.size();
    ++taken;
  }
  plan.resize(taken);
  return plan;
}

Buffer fold_chunk(const Buffer& base, const PatchedChunk& chunk) {
  const std::uint64_t begin = std::uint64_t{chunk.index} * kChunkSizeBytes;
  std::size_t size = base.size();
  for (const StoredPatch& stored : chunk.patches) {
    size = std::max(size, stored.patch.offset_bytes - begin + stored.patch.bytes.size());
  }
  Buffer out = Buffer::allocate(size);
  std::byte* to = out.mutable_view().data();
  if (!base.empty()) std::memcpy(to, base.view().data(), base.size());
  std::memset(to + base.size(), 0, size - base.size());
  for (const StoredPatch& stored : chunk.patches) {
    std::memcpy(to + (stored.patch.offset_bytes - begin), stored.patch.bytes.data(),
                stored.patch.bytes.size());
  }
  return out;
}

asio::awaitable<void> PatchFolder::run() {
  const Duration tick = std::clamp<Duration>(node_.config.patch_fold_after / 4, 10ms, 250ms);
  while (!node_.stopping) {
    if (const std::error_code stop = co_await node_.env.sleep_for(tick); stop) co_return;
    if (!node_.serving) continue;
    if (std::exchange(look_for_all_, false)) find_all();
    // A fold takes room before it gives some: not while that is scarce.
    if (node_.space->low()) continue;
    for (auto it = patched_.begin(); it != patched_.end() && node_.serving && !node_.stopping;) {
      const InodeId inode = it->first;
      const bool rests = it->second.committed + node_.config.patch_fold_after <= node_.env.now();
      if (rests || std::exchange(it->second.news, false)) co_await look_after(inode, rests);
      it = patched_.upper_bound(inode);
    }
  }
}

void PatchFolder::find_all() {
  for (InodeId after;;) {
    const auto found = node_.ns->patched_files(after, kFilesPerLook);
    if (!found || found->empty()) return;
    for (const InodeId inode : *found) patched_.try_emplace(inode, File{node_.env.now(), true});
    after = found->back();
  }
}

asio::awaitable<void> PatchFolder::look_after(InodeId inode, bool rests) {
  const auto use = node_.ns->patch_use(inode);
  if (!use || use->patches == 0) {
    patched_.erase(inode);
    co_return;
  }
  if (!rests && !crowded(*use)) co_return;
  const Status folded = co_await fold(inode, !rests);
  if (folded) co_return;
  node_.count("patch_folds_failed");
  spdlog::debug("the patches of inode {} stay for now: {}", inode.value(),
                folded.error().message());
  // Not at once again: a chunk that no node has a good copy of, say.
  if (const auto it = patched_.find(inode); it != patched_.end())
    it->second = {node_.env.now(), false};
}

Task<void> PatchFolder::fold(InodeId inode, bool few) {
  const Term term = node_.term;
  FM_CO_TRY(auto patches, node_.ns->patches(inode));
  auto plan = plan_fold(std::move(patches), few);
  for (std::size_t at = 0; at < plan.size();) {
    FoldPatchesCommand command;
    command.inode = inode;
    Uses uses;  // until the command is applied, or surely never will be
    for (; at < plan.size() && command.chunks.size() < kChunksPerCommand; ++at) {
      FM_CO_TRY(auto chunk, co_await store_folded(inode, std::move(plan[at]), uses));
      if (!chunk.patches.empty()) command.chunks.push_back(std::move(chunk));
    }
    // What was stored in another term is no majority's in this one.
    if (!node_.serves(term) || node_.stopping) co_return Errc::kNotPrimary;
    if (command.chunks.empty()) continue;
    FM_CO_TRY(const auto result, co_await node_.propose_own(std::move(command)));
    node_.count("patched_chunks_folded", result.count);
  }
  co_return Status();
}

/// Without patches: the chunk is another one by now.
Task<FoldPatchesCommand::Chunk> PatchFolder::store_folded(InodeId inode, PatchedChunk chunk,
                                                          Uses& uses) {
  FoldPatchesCommand::Chunk out;
  out.index = chunk.index;
  FM_CO_TRY(const auto base, node_.ns->chunk(inode, chunk.index));
  Buffer bytes;
  if (base) {
    out.from = *base;
    auto here = co_await node_.chunks->get(*base);
    if (here) {
      bytes = std::move(*here);
    } else {
      FM_CO_TRY(auto fetched, co_await node_.fetcher->fetch(*base));
      bytes = std::move(fetched.bytes);
    }
  }
  struct Folded {
    Buffer bytes;
    ChunkId id;
  };
  const auto work = [bytes, chunk]() -> Result<Folded> {
    Folded folded;
    folded.bytes = fold_chunk(bytes, chunk);
    folded.id = chunk_id_of(folded.bytes.view());
    return folded;
  };
  FM_CO_TRY(auto folded, co_await blocking<Folded>(node_.env, work));
  std::vector<ChunkId> ids{folded.id};
  uses.push_back(std::make_unique<ChunkDurability::Use>(*node_.durability, std::move(ids)));
  FM_CO_CHECK(co_await node_.durability->put(folded.id, std::move(folded.bytes)));
  out.to = folded.id;
  for (const StoredPatch& stored : chunk.patches) {
    out.patches.push_back({stored.index, stored.number, stored.since});
  }
  co_return out;
}

}  // namespace fermata::serverd
