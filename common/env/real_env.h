// The world as it is: the kernel's clock, random numbers and files, and Asio's threads.
//
// Thread-safety: RealClock, RealRandom and RealDisk from any thread. RealEnv from the executor it
// was made with. Destroy RealEnv after the executor's context has stopped running and before that
// context: blocking work still queued is dropped, and so are the coroutines that wait for it.
#pragma once

#include <memory>

#include "common/env/env.h"

namespace fermata {

class RealClock final : public Clock {
 public:
  TimePoint now() const override;
  std::int64_t wall_ns() const override;
};

/// getrandom(2): fit for ids and keys.
class RealRandom final : public Random {
 public:
  std::uint64_t next() override;
};

/// POSIX files. Errors are errno values; EINTR and short transfers are dealt with here.
class RealDisk final : public Disk {
 public:
  Result<std::unique_ptr<File>> open(const std::string& path, Mode mode) override;
  Status rename(const std::string& from, const std::string& to) override;
  Status remove(const std::string& path) override;
  Status remove_all(const std::string& path) override;
  Status make_dirs(const std::string& path) override;
  Result<std::vector<std::string>> list(const std::string& path) override;
  Result<bool> exists(const std::string& path) override;
  Status sync_dir(const std::string& path) override;
  Result<DiskSpace> space(const std::string& path) override;
};

class RealEnv final : public Env {
 public:
  /// `blocking_threads` (at least 1) run what blocks.
  RealEnv(boost::asio::any_io_executor executor, std::size_t blocking_threads);
  /// Waits for blocking work that has begun.
  ~RealEnv() override;

  Clock& clock() override;
  Random& random() override;
  Disk& disk() override;
  boost::asio::any_io_executor executor() override;
  boost::asio::awaitable<std::error_code> sleep_until(TimePoint when) override;
  boost::asio::awaitable<void> run_blocking(std::function<void()> work) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fermata
