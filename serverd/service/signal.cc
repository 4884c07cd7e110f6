#include "serverd/service/signal.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace fermata::serverd {

namespace asio = boost::asio;

Signal::Signal(const asio::any_io_executor& executor)
    : timer_(executor, asio::steady_timer::time_point::max()) {}

asio::awaitable<std::error_code> Signal::wait() {
  const auto before = co_await asio::this_coro::cancellation_state;
  if (before.cancelled() != asio::cancellation_type::none) {
    co_return std::make_error_code(std::errc::operation_canceled);
  }
  co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
  const auto after = co_await asio::this_coro::cancellation_state;
  if (after.cancelled() != asio::cancellation_type::none) {
    co_return std::make_error_code(std::errc::operation_canceled);
  }
  co_return std::error_code();
}

void Signal::notify_all() { timer_.cancel(); }

}  // namespace fermata::serverd
