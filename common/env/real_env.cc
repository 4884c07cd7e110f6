#include "common/env/real_env.h"

#include <sys/random.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/prefer.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstdlib>

#include "common/base/assert.h"

namespace fermata {
namespace asio = boost::asio;

/// Not the steady clock, which stands still while the machine sleeps: a lease runs out meanwhile.
TimePoint RealClock::now() const {
  timespec now{};
  FM_ASSERT(::clock_gettime(CLOCK_BOOTTIME, &now) == 0);
  return TimePoint(std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec));
}

std::int64_t RealClock::wall_ns() const {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::uint64_t RealRandom::next() {
  std::uint64_t value = 0;
  for (;;) {
    const ssize_t count = ::getrandom(&value, sizeof value, 0);
    if (count == sizeof value) return value;
    FM_ASSERT(count >= 0 ||
              errno == EINTR);  // up to 256 bytes are never short once the pool is ready
  }
}

struct RealEnv::Impl {
  Impl(asio::any_io_executor ex, std::size_t threads) : executor(std::move(ex)), pool(threads) {}
  RealClock clock;
  RealRandom random;
  RealDisk disk;
  asio::any_io_executor executor;
  asio::thread_pool pool;
};

RealEnv::RealEnv(asio::any_io_executor executor, std::size_t blocking_threads)
    : impl_(std::make_unique<Impl>(std::move(executor),
                                   blocking_threads == 0 ? 1 : blocking_threads)) {}

RealEnv::~RealEnv() {
  impl_->pool.stop();
  impl_->pool.join();
}

Clock& RealEnv::clock() { return impl_->clock; }
Random& RealEnv::random() { return impl_->random; }
Disk& RealEnv::disk() { return impl_->disk; }
asio::any_io_executor RealEnv::executor() { return impl_->executor; }

asio::awaitable<std::error_code> RealEnv::sleep_until(TimePoint when) {
  asio::steady_timer timer(impl_->executor);
  timer.expires_after(when - impl_->clock.now());  // the timer's clock is another one
  const auto [error] = co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
  co_return std::error_code(error);
}

asio::awaitable<void> RealEnv::run_blocking(std::function<void()> work) {
  co_await asio::async_initiate<const asio::use_awaitable_t<>&, void()>(
      [](auto handler, asio::thread_pool* pool, std::function<void()> job) {
        // The caller's executor has work to wait for, or its context could stop meanwhile.
        auto home = asio::prefer(asio::get_associated_executor(handler),
                                 asio::execution::outstanding_work.tracked);
        asio::post(*pool, [handler = std::move(handler), home = std::move(home),
                           job = std::move(job)]() mutable {
          job();
          job = nullptr;  // what it captured goes before the caller resumes
          asio::post(home, std::move(handler));
        });
      },
      asio::use_awaitable, &impl_->pool, std::move(work));
}

}  // namespace fermata
