// One coroutine waits, somebody else on the same executor wakes it: the smallest way to suspend.
//
// An auto-reset event: a notify() that finds nobody waiting is remembered for the next wait(). The
// woken coroutine resumes by post, never inside notify(), so a caller may notify while it walks its
// own tables. It is a timer that never expires, so that a coroutine that waits belongs to the
// io_context and ends with it, whoever owns the Waiter.
//
// Thread-safety: one executor. The Waiter outlives the wait.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <system_error>

namespace fermata {

class Waiter {
 public:
  explicit Waiter(const boost::asio::any_io_executor& executor);
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

  /// Resumes after the next notify(), or with std::errc::operation_canceled when the coroutine is
  /// (or already was) cancelled. At most one coroutine waits at a time.
  boost::asio::awaitable<std::error_code> wait();
  void notify();

 private:
  boost::asio::steady_timer timer_;
  bool notified_ = false;
};

}  // namespace fermata
