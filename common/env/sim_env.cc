#include "common/env/sim_env.h"

#include <algorithm>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <map>
#include <utility>
#include <vector>

#include "common/base/assert.h"

namespace fermata {
namespace asio = boost::asio;

namespace {

/// A suspended coroutine, whatever its handler's type is.
class Waiter {
 public:
  virtual ~Waiter() = default;
  virtual void resume(std::error_code error) = 0;
};

template <class Handler>
class SleepWaiter final : public Waiter {
 public:
  explicit SleepWaiter(Handler handler) : handler_(std::move(handler)) {}
  void resume(std::error_code error) override {
    asio::get_associated_cancellation_slot(handler_).clear();
    auto executor = asio::get_associated_executor(handler_);
    asio::post(executor,
               [handler = std::move(handler_), error]() mutable { std::move(handler)(error); });
  }

 private:
  Handler handler_;
};

template <class Handler>
class WorkWaiter final : public Waiter {
 public:
  explicit WorkWaiter(Handler handler) : handler_(std::move(handler)) {}
  void resume(std::error_code) override {
    auto executor = asio::get_associated_executor(handler_);
    asio::post(executor, std::move(handler_));
  }

 private:
  Handler handler_;
};

/// shutdown() destroys every queued and waiting handler, now; the context can then only be
/// destroyed.
class NodeContext final : public asio::io_context {
 public:
  NodeContext() : asio::io_context(1) {}
  using asio::execution_context::shutdown;
};

}  // namespace

struct SimScheduler::Impl {
  explicit Impl(std::uint64_t seed) : random(seed) {}

  struct Event {
    SimEnv::Impl* env = nullptr;   // null: an action of the simulation
    std::function<void()> action;  // blocking work or the simulation's
    std::unique_ptr<Waiter> waiter;
  };
  using Key = std::pair<TimePoint, std::uint64_t>;

  Key add(TimePoint when, Event event) {
    const Key key{std::max(when, now), next_event++};
    events.emplace(key, std::move(event));
    return key;
  }
  /// Runs one thing; false if there is nothing left to do up to `end`.
  bool step(TimePoint end);

  SeededRandom random;
  TimePoint now{std::chrono::seconds(1000)};
  std::map<Key, Event> events;
  std::uint64_t next_event = 0;
  std::uint64_t step_count = 0;
  std::vector<SimEnv::Impl*> envs;
  SimEnv::Impl* running = nullptr;
};

struct SimEnv::Impl final : public Clock {
  Impl(SimScheduler::Impl& scheduler_impl, SimDisk& sim_disk, SimEnvOptions env_options)
      : scheduler(scheduler_impl), disk(sim_disk), options(env_options), random(env_options.seed) {}

  TimePoint now() const override {
    const auto t = static_cast<__int128>(scheduler.now.time_since_epoch().count());
    return TimePoint(Duration(static_cast<std::int64_t>(t + t * options.clock_rate_ppm / 1000000)));
  }
  std::int64_t wall_ns() const override {
    return 1700000000000000000 + now().time_since_epoch().count();
  }

  /// The first true time at which this node's clock shows `local`.
  TimePoint true_time(TimePoint local) const {
    if (local == TimePoint::max()) return local;
    const auto t = static_cast<__int128>(local.time_since_epoch().count());
    return TimePoint(Duration(static_cast<std::int64_t>(
        t * 1000000 / (1000000 + options.clock_rate_ppm) + (options.clock_rate_ppm == 0 ? 0 : 1))));
  }

  template <class Handler>
  void sleep(TimePoint when, Handler handler) {
    auto slot = asio::get_associated_cancellation_slot(handler);
    const auto key = scheduler.add(
        true_time(when), {.env = this,
                          .action = {},
                          .waiter = std::make_unique<SleepWaiter<Handler>>(std::move(handler))});
    if (!slot.is_connected()) return;
    slot.assign([this, key](asio::cancellation_type) {
      const auto it = scheduler.events.find(key);
      if (it == scheduler.events.end()) return;
      const auto waiter = std::move(it->second.waiter);
      scheduler.events.erase(it);
      // resume() destroys this function: nothing of it may be used after.
      waiter->resume(std::make_error_code(std::errc::operation_canceled));
    });
  }

  SimScheduler::Impl& scheduler;
  SimDisk& disk;
  const SimEnvOptions options;
  Duration extra{};
  SeededRandom random;
  NodeContext context;
  bool crashed = false;
};

bool SimScheduler::Impl::step(TimePoint end) {
  const std::size_t count = envs.size();
  const std::size_t start = random.below(count);
  for (std::size_t i = 0; i < count; ++i) {
    SimEnv::Impl* env = envs[(start + i) % count];
    if (env->crashed) continue;
    env->context.restart();
    running = env;
    const std::size_t ran = env->context.poll_one();
    running = nullptr;
    if (ran > 0) {
      ++step_count;
      return true;
    }
  }
  if (events.empty() || events.begin()->first.first > end) return false;
  auto node = events.extract(events.begin());
  now = node.key().first;
  Event& event = node.mapped();
  ++step_count;
  running = event.env;
  if (event.action) event.action();
  event.action = nullptr;  // what it captured goes before the coroutine resumes
  running = nullptr;
  if (event.waiter) event.waiter->resume({});
  return true;
}

SimScheduler::SimScheduler(std::uint64_t seed) : impl_(std::make_unique<Impl>(seed)) {}
SimScheduler::~SimScheduler() { FM_ASSERT(impl_->envs.empty()); }

TimePoint SimScheduler::now() const { return impl_->now; }
Random& SimScheduler::random() { return impl_->random; }
std::uint64_t SimScheduler::steps() const { return impl_->step_count; }

void SimScheduler::at(TimePoint when, std::function<void()> action) {
  impl_->add(when, {.env = nullptr, .action = std::move(action), .waiter = nullptr});
}

void SimScheduler::run_for(Duration duration) {
  const TimePoint end = impl_->now + duration;
  while (impl_->step(end)) {
  }
  impl_->now = end;
}

bool SimScheduler::run_until(const std::function<bool()>& done, Duration limit) {
  const TimePoint end = impl_->now + limit;
  while (!done()) {
    if (!impl_->step(end)) {
      impl_->now = end;
      return done();
    }
  }
  return true;
}

SimEnv::SimEnv(SimScheduler& scheduler, SimDisk& disk, SimEnvOptions options)
    : impl_(std::make_unique<Impl>(*scheduler.impl_, disk, options)) {
  scheduler.impl_->envs.push_back(impl_.get());
}

SimEnv::~SimEnv() {
  crash();
  std::erase(impl_->scheduler.envs, impl_.get());
}

Clock& SimEnv::clock() { return *impl_; }
Random& SimEnv::random() { return impl_->random; }
Disk& SimEnv::disk() { return impl_->disk; }
asio::any_io_executor SimEnv::executor() { return impl_->context.get_executor(); }
bool SimEnv::crashed() const { return impl_->crashed; }

void SimEnv::crash() {
  SimScheduler::Impl& scheduler = impl_->scheduler;
  FM_ASSERT(scheduler.running != impl_.get());  // its frames are on the stack
  impl_->crashed = true;
  // Out of the map first: what a destructor does may look at the map.
  std::vector<SimScheduler::Impl::Event> dead;
  for (auto it = scheduler.events.begin(); it != scheduler.events.end();) {
    if (it->second.env != impl_.get()) {
      ++it;
      continue;
    }
    dead.push_back(std::move(it->second));
    it = scheduler.events.erase(it);
  }
  dead.clear();               // each waiting coroutine's unwinding is posted to the context ...
  impl_->context.shutdown();  // ... and done here
}

asio::awaitable<std::error_code> SimEnv::sleep_until(TimePoint when) {
  co_return co_await asio::async_initiate<const asio::use_awaitable_t<>&, void(std::error_code)>(
      [](auto handler, Impl* impl, TimePoint until) { impl->sleep(until, std::move(handler)); },
      asio::use_awaitable, impl_.get(), when);
}

void SimEnv::slow_down(Duration extra) { impl_->extra = extra; }

asio::awaitable<void> SimEnv::run_blocking(std::function<void()> work) {
  const auto spread = static_cast<std::uint64_t>(
      (impl_->options.blocking_max - impl_->options.blocking_min).count());
  const Duration delay =
      impl_->options.blocking_min + impl_->extra +
      Duration(static_cast<std::int64_t>(impl_->scheduler.random.below(spread + 1)));
  co_await asio::async_initiate<const asio::use_awaitable_t<>&, void()>(
      [](auto handler, Impl* impl, TimePoint when, std::function<void()> job) {
        using Handler = decltype(handler);
        impl->scheduler.add(when,
                            {.env = impl,
                             .action = std::move(job),
                             .waiter = std::make_unique<WorkWaiter<Handler>>(std::move(handler))});
      },
      asio::use_awaitable, impl_.get(), impl_->scheduler.now + delay, std::move(work));
}

}  // namespace fermata
