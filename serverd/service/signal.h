// Many coroutines wait for something to change, somebody wakes them all: each looks again at what
// it waits for. The many-waiter sister of common/io/waiter.h, and like it a timer that never
// expires.
//
// Thread-safety: one executor. The Signal outlives the waits.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <system_error>

namespace fermata::serverd {

class Signal {
 public:
  explicit Signal(const boost::asio::any_io_executor& executor);
  Signal(const Signal&) = delete;
  Signal& operator=(const Signal&) = delete;

  /// Resumes after the next notify_all(), or with std::errc::operation_canceled when the coroutine
  /// is (or already was) cancelled. Ask for the condition first: nothing is remembered.
  boost::asio::awaitable<std::error_code> wait();
  void notify_all();

 private:
  boost::asio::steady_timer timer_;
};

}  // namespace fermata::serverd
