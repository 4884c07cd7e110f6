// Runs a task on another executor and comes back: `co_await on(strand_, do_renew())`.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

namespace fermata {

/// Cancelling the caller cancels `task`. What `task` refers to outlives it.
template <class T>
boost::asio::awaitable<T> on(boost::asio::any_io_executor executor,
                             boost::asio::awaitable<T> task) {
  co_return co_await boost::asio::co_spawn(executor, std::move(task), boost::asio::use_awaitable);
}

}  // namespace fermata
