// Everything a node or a client asks of the world around it, in one place. Production binds it to
// Asio and the kernel (real_env.h); the simulator to a seeded scheduler, network and disk.
//
// The code of a node runs on one executor. It sleeps, goes to blocking work and back only through
// this interface, so a simulation decides when each of these happens.
#pragma once

#include <functional>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

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
  boost::asio::awaitable<std::error_code> sleep_for(Duration duration) { return sleep_until(now() + duration); }
};

/// run_blocking with a value: `co_await blocking<std::size_t>(env, [&] { return file.size(); })`.
/// `work` returns a Result<T>; keep what it captures alive until it has run (also when the waiting
/// coroutine is destroyed: capture shared_ptrs, not references to the coroutine's frame).
template <class T, class Work>
Task<T> blocking(Env& env, Work work) {
  auto result = std::make_shared<Result<T>>(Errc::kShuttingDown);
  co_await env.run_blocking([result, work = std::move(work)]() mutable { *result = work(); });
  co_return std::move(*result);
}

}  // namespace fermata
