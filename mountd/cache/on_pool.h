// The cache's blocking methods for coroutines.
#pragma once

#include <utility>

#include "common/env/env.h"
#include "mountd/cache/cached_copy.h"

namespace fermata::mountd {

/// Runs `work(copy)` on the blocking pool and returns its Result; the copy stays pinned meanwhile:
///   FM_CO_TRY(const auto scan, co_await on_pool<ChangeScan>(env, pin,
///   &CachedCopy::changed_blocks));
template <class T, class Work>
Task<T> on_pool(Env& env, CachePin copy, Work work) {
  return blocking<T>(env, [copy = std::move(copy), work = std::move(work)]() mutable -> Result<T> {
    return std::invoke(work, *copy);
  });
}

}  // namespace fermata::mountd
