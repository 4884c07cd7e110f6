#include "mountd/fs/signal.h"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace fermata::mountd {
namespace asio = boost::asio;

Signal::Signal(asio::any_io_executor executor)
    : executor_(std::move(executor)), timer_(executor_, asio::steady_timer::time_point::max()) {}

void Signal::set(std::error_code result) {
  if (set_.exchange(true)) return;
  asio::post(executor_, [self = shared_from_this(), result] {
    self->result_ = result;
    self->done_ = true;
    self->timer_.cancel();
  });
}

asio::awaitable<std::error_code> Signal::wait() {
  const auto result = co_await wait_until(asio::steady_timer::time_point::max());
  co_return result ? *result : std::make_error_code(std::errc::operation_canceled);
}

asio::awaitable<std::optional<std::error_code>> Signal::wait_for(Duration patience) {
  return wait_until(asio::steady_timer::clock_type::now() + patience);
}

asio::awaitable<std::optional<std::error_code>> Signal::wait_until(
    asio::steady_timer::time_point deadline) {
  const auto keep = shared_from_this();
  if (done_) co_return result_;
  const auto before = co_await asio::this_coro::cancellation_state;
  if (before.cancelled() == asio::cancellation_type::none) {
    timer_.expires_at(deadline);
    const auto [error] = co_await timer_.async_wait(asio::as_tuple(asio::use_awaitable));
    if (done_) co_return result_;
    if (!error) co_return std::nullopt;
  }
  co_return std::make_error_code(std::errc::operation_canceled);
}

Task<Gate::Pass> Gate::enter() {
  const auto executor = co_await asio::this_coro::executor;
  std::shared_ptr<Signal> turn;
  {
    MutexLock lock(mutex_);
    if (!taken_) {
      taken_ = true;
    } else {
      turn = std::make_shared<Signal>(executor);
      queue_.push_back(turn);
    }
  }
  if (!turn) co_return Pass(this);
  const auto error = co_await turn->wait();
  if (!error) co_return Pass(this);
  bool queued = false;
  {
    MutexLock lock(mutex_);
    queued = std::erase(queue_, turn) > 0;
  }
  // Our turn came while the wait was being cancelled: hand it on.
  if (!queued) leave();
  co_return error;
}

std::optional<Gate::Pass> Gate::try_enter() {
  MutexLock lock(mutex_);
  if (std::exchange(taken_, true)) return std::nullopt;
  return Pass(this);
}

void Gate::leave() {
  std::shared_ptr<Signal> next;
  {
    MutexLock lock(mutex_);
    if (queue_.empty()) {
      taken_ = false;
      return;
    }
    next = std::move(queue_.front());
    queue_.pop_front();
  }
  next->set({});
}

}  // namespace fermata::mountd
