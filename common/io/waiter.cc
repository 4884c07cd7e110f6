#include "common/io/waiter.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <utility>

namespace fermata {

namespace asio = boost::asio;

Waiter::Waiter(const asio::any_io_executor& executor)
    : timer_(executor, asio::steady_timer::time_point::max()) {}

asio::awaitable<std::error_code> Waiter::wait() {
  const auto state = co_await asio::this_coro::cancellation_state;
  if (state.cancelled() != asio::cancellation_type::none) {
    co_return std::make_error_code(std::errc::operation_canceled);
  }
  if (!notified_) co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
  // The timer never expires: it was notify() or a cancellation. If both, it was notified.
  if (std::exchange(notified_, false)) co_return std::error_code();
  co_return std::make_error_code(std::errc::operation_canceled);
}

void Waiter::notify() {
  notified_ = true;
  timer_.cancel_one();
}

}  // namespace fermata
