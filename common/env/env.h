// Everything a node or a client asks of the world around it, in one place. Production binds it to
// Asio and the kernel (real_env.h); the simulator to a seeded scheduler, network and disk.
//
// The code of a node runs on one executor. It sleeps, goes to blocking work and back only through
// this interface, so a simulation decides when each of these happens.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <functional>
#include <memory>
#include <utility>

#include "common/base/result.h"
#include "common/env/clock.h"
#include "common/env/disk.h"
#include "common/env/random.h"

namespace fermata {

class Env {
 public:
  virtual ~Env() = default;
  virtual Clock& clock() = 0;
  virtual Random& random() = 0;
  virtual Disk& disk() = 0;
  /// The executor on which coroutines of this node run.
  virtual boost::asio::any_io_executor executor() = 0;
  /// Resumes at `when` or, with operation_aborted as the error, when the coroutine is cancelled.
  virtual boost::asio::awaitable<std::error_code> sleep_until(TimePoint when) = 0;
  /// Runs `work` where it may block (a thread of the pool; in a simulation after a while, inline)
  /// and resumes on the caller's executor when it has run. `work` must not throw.
  virtual boost::asio::awaitable<void> run_blocking(std::function<void()> work) = 0;

  TimePoint now() { return clock().now(); }
  boost::asio::awaitable<std::error_code> sleep_for(Duration duration) {
    return sleep_until(now() + duration);
  }
};

namespace internal {
template <class T>
Task<T> run_job(Env& env, std::shared_ptr<Result<T>> result, std::function<void()> job) {
  co_await env.run_blocking(std::move(job));
  co_return std::move(*result);
}
}  // namespace internal

/// run_blocking with a value: `auto ask = [file] { return file->size_bytes(); };` and then
/// `co_await blocking<std::uint64_t>(env, ask)`. `work` returns a Result<T>; keep what it captures
/// alive until it has run (also when the waiting coroutine is destroyed: capture shared_ptrs, not
/// references to the coroutine's frame).
///
/// Give `work` a name first, unless its captures are trivial: g++ 12 destroys a closure that is a
/// temporary of a co_await expression twice, and with it each shared_ptr in it.
template <class T, class Work>
Task<T> blocking(Env& env, Work&& work) {
  static_assert(std::is_lvalue_reference_v<Work> || std::is_trivially_destructible_v<Work>,
                "name the closure first: g++ 12 would destroy its captures twice");
  auto result = std::make_shared<Result<T>>(Errc::kShuttingDown);
  std::function<void()> job = [result, work = std::forward<Work>(work)]() mutable {
    *result = work();
  };
  return internal::run_job<T>(env, std::move(result), std::move(job));
}

}  // namespace fermata
