// One more of something, for as long as a scope lasts.
#pragma once

#include <atomic>
#include <cstdint>

namespace fermata::mountd {

/// Adds one to `count`, which outlives it, and takes it back. Thread-safe.
class Counted {
 public:
  explicit Counted(std::atomic<std::uint32_t>& count) : count_(count) { ++count_; }
  ~Counted() { --count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  std::atomic<std::uint32_t>& count_;
};

}  // namespace fermata::mountd
