// How coroutines of different loops wait for each other: a one-shot Signal and a mutex (Gate).
//
// Both belong to nobody's loop: they are set and released from any thread, and each waiter resumes
// on the executor it waits on. A wait ends with operation_canceled when its coroutine is cancelled,
// so an interrupted system call never waits on for another one.
#pragma once

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <list>
#include <memory>
#include <optional>
#include <system_error>

#include "common/base/mutex.h"
#include "common/base/result.h"
#include "common/env/clock.h"

namespace fermata::mountd {

/// One coroutine waits for one event. Made with make_shared; waits are on `executor`.
class Signal : public std::enable_shared_from_this<Signal> {
 public:
  explicit Signal(boost::asio::any_io_executor executor);
  /// Any thread; the first call decides.
  void set(std::error_code result);
  /// What was set, or operation_canceled.
  boost::asio::awaitable<std::error_code> wait();
  /// The same; none if nothing happened for so long.
  boost::asio::awaitable<std::optional<std::error_code>> wait_for(Duration patience);

 private:
  boost::asio::awaitable<std::optional<std::error_code>> wait_until(
      boost::asio::steady_timer::time_point deadline);
  boost::asio::any_io_executor executor_;
  boost::asio::steady_timer timer_;  // touched on the executor only
  std::atomic<bool> set_{false};
  bool done_ = false;  // on the executor
  std::error_code result_;
};

/// A mutex for coroutines, first come first served.
class Gate {
 public:
  /// Releases when destroyed.
  class Pass {
   public:
    Pass() = default;
    explicit Pass(Gate* gate) : gate_(gate) {}
    Pass(Pass&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Pass& operator=(Pass&& other) noexcept {
      std::swap(gate_, other.gate_);
      return *this;
    }
    ~Pass() { release(); }
    void release() {
      if (gate_ != nullptr) std::exchange(gate_, nullptr)->leave();
    }

   private:
    Gate* gate_ = nullptr;
  };
  /// Errors: operation_canceled. The gate outlives the pass.
  Task<Pass> enter();
  /// None if somebody is inside.
  std::optional<Pass> try_enter();

 private:
  void leave();
  Mutex mutex_;
  bool taken_ FM_GUARDED_BY(mutex_) = false;
  std::list<std::shared_ptr<Signal>> queue_ FM_GUARDED_BY(mutex_);
};

}  // namespace fermata::mountd
