// Many nodes in one thread and in virtual time, the same run for the same seed.
//
// A SimScheduler owns the time. Each SimEnv is one node's world: its own io_context (so that real
// Asio timers and channels inside a node work too, as long as they do not wait for real time), a
// clock of its own rate, and a disk that outlives it. The scheduler runs one ready handler at a
// time of a node chosen by the seed; when nobody is ready it moves time to the next sleep or
// blocking work.
//
// How to kill a node:
//   1. env.crash(): everything the node waits for is destroyed, never resumed: coroutine frames
//   unwind
//      here, in this call, while the objects they point to still live. Not from within that
//      node's own handlers (from a fault's callback, post it to the scheduler with at()).
//   2. Destroy the node's objects. What they still post is dropped.
//   3. disk.power_cut(random), or disk.close_all() if only the process died.
//   4. Destroy the SimEnv and make a new one on the same disk.
// So a node's coroutines must be safe to destroy wherever they wait: destructors of their locals
// may touch the node, and must not expect to be run on its executor.
//
// Thread-safety: none; one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "common/env/env.h"
#include "common/env/sim_disk.h"

namespace fermata {

class SimScheduler {
 public:
  explicit SimScheduler(std::uint64_t seed);
  ~SimScheduler();  ///< after every SimEnv
  SimScheduler(const SimScheduler&) = delete;
  SimScheduler& operator=(const SimScheduler&) = delete;

  /// True time, from an arbitrary start.
  TimePoint now() const;
  Random& random();

  /// Runs `action` at `when` outside every node: for networks, faults and checks.
  void at(TimePoint when, std::function<void()> action);
  void after(Duration delay, std::function<void()> action) { at(now() + delay, std::move(action)); }

  /// Runs for so much virtual time.
  void run_for(Duration duration);
  /// Runs until `done()`, asked after every step. False: not within `limit` of virtual time.
  bool run_until(const std::function<bool()>& done, Duration limit);
  /// Handlers and timers run so far.
  std::uint64_t steps() const;

 private:
  friend class SimEnv;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct SimEnvOptions {
  std::uint64_t seed = 1;                                 ///< of the node's random()
  std::int64_t clock_rate_ppm = 0;                        ///< how much faster its clock runs
  Duration blocking_min = std::chrono::microseconds(20);  ///< how long run_blocking takes
  Duration blocking_max = std::chrono::milliseconds(2);
};

class SimEnv final : public Env {
 public:
  /// Both outlive this.
  SimEnv(SimScheduler& scheduler, SimDisk& disk, SimEnvOptions options = {});
  ~SimEnv() override;

  Clock& clock() override;
  Random& random() override;
  Disk& disk() override;
  boost::asio::any_io_executor executor() override;
  boost::asio::awaitable<std::error_code> sleep_until(TimePoint when) override;
  boost::asio::awaitable<void> run_blocking(std::function<void()> work) override;

  /// Blocking work that begins from now on takes so much longer: a disk that hangs.
  void slow_down(Duration extra);
  /// See above. Blocking work that has not run never will. Idempotent.
  void crash();
  bool crashed() const;

 private:
  friend class SimScheduler;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fermata
