// Background coroutines with an owner: named, counted, cancelled together and joined at stop.
//
// What escapes a task is a bug: it is logged with the task's name and goes no further. Tasks run
// with throw_if_cancelled(false): after a cancellation, operations return an error (std::errc::
// operation_canceled or asio's operation_aborted) instead of throwing, and it is for the task to
// see it and leave. Cancellation is one event, not a state of later operations: a loop asks
// `(co_await this_coro::cancellation_state).cancelled()`; Waiter::wait and Connection::call do so
// themselves.
//
// Thread-safety: one executor, the one it was made with. Join before destroying what tasks use.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <cstddef>
#include <memory>
#include <string>

namespace fermata {

class TaskGroup {
 public:
  explicit TaskGroup(boost::asio::any_io_executor executor);
  ~TaskGroup();  ///< cancels what still runs, without waiting for it
  TaskGroup(const TaskGroup&) = delete;
  TaskGroup& operator=(const TaskGroup&) = delete;

  /// Starts `task`, at the latest in the next turn of the executor. After cancel_all() it is
  /// started with its cancellation already asked for.
  void spawn(std::string name, boost::asio::awaitable<void> task);
  /// Asks every task to end, those spawned later too.
  void cancel_all();
  /// Resumes when no task runs. Does not cancel them; one coroutine joins at a time. If the joining
  /// coroutine is itself cancelled it stops waiting.
  boost::asio::awaitable<void> join();
  std::size_t size() const;  ///< tasks that run

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fermata
