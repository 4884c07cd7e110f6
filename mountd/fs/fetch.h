// Content comes from the cluster into a cached copy.
//
// Thread-safety: coroutines of the loop whose client they use.
#pragma once

#include <memory>

#include "common/env/env.h"
#include "mountd/cache/cache_store.h"
#include "mountd/client/cluster_client.h"
#include "mountd/fs/file_state.h"

namespace fermata::mountd {

/// Fills `copy` (begun by begin_fill) with `content` of `size_bytes` and finishes it; chunks are
/// fetched a few at a time, those that `job->urgent` names first. On an error the fill has failed.
/// Cancelling it fails the fill.
Task<void> fetch_content(Env& env, ClusterClient& client, CachePin copy,
                         std::shared_ptr<const FileContent> content, std::uint64_t size_bytes,
                         std::shared_ptr<FillJob> job);

/// Lays `patches` over the block that starts at `block_offset_bytes`, in order.
void apply_patches(MutableByteView block, std::uint64_t block_offset_bytes,
                   const std::vector<std::pair<Patch, Buffer>>& patches);

/// Writes version `attr` over the complete, clean `copy` for which begin_update() was called: only
/// the chunks that differ are fetched. Whoever writes into it meanwhile finds its bytes modified
/// afterwards, or replaced.
Task<void> update_copy(Env& env, ClusterClient& client, CachePin copy, Attr attr,
                       std::shared_ptr<const FileContent> content);

/// Whether `copy`'s bytes are those of version `attr`. Chunks are fetched only where ids do not
/// tell.
Task<bool> holds_content(Env& env, ClusterClient& client, CachePin copy, Attr attr,
                         std::shared_ptr<const FileContent> content);

}  // namespace fermata::mountd
