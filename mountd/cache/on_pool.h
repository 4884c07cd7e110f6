// The cache's blocking methods for coroutines.
#pragma once

#include <functional>
#include <utility>

#include "common/env/env.h"
#include "mountd/cache/cached_copy.h"

namespace fermata::mountd {

/// Runs `work(copy)` on the blocking pool and returns its Result; the copy stays pinned meanwhile:
///   FM_CO_TRY(const auto scan, co_await on_pool<ChangeScan>(env, pin,
///   &CachedCopy::changed_blocks));
/// A closure with captures that are not trivial has a name, as for blocking().
template <class T, class Work>
Task<T> on_pool(Env& env, const CachePin& copy, Work&& work) {
  auto call = [copy, work = std::forward<Work>(work)]() mutable -> Result<T> {
    const CachePin held = std::move(copy);  // released here, not whenever the pool forgets the work
    return std::invoke(work, *held);
  };
  return blocking<T>(env, call);
}

}  // namespace fermata::mountd
