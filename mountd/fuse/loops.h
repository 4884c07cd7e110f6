// The event loops of mountd: one pinned thread and one io_context per core.
//
// FUSE requests, their coroutines and the RPC connections they use live on the same loop, so a
// request needs no hand-over between threads (waking another core costs more than the work itself,
// docs/FUSE.md). Nothing on a loop may block.
//
// Thread-safety: everything may be called from any thread.
#pragma once

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

namespace fermata::mountd {

class Loops {
 public:
  /// Starts `count` threads; 0 means one per CPU that this process may run on. Thread i is pinned
  /// to the i-th of those CPUs (not pinned when there are more loops than CPUs).
  explicit Loops(unsigned count = 0);
  /// Stops the loops: what is queued on them is dropped.
  ~Loops();
  Loops(const Loops&) = delete;
  Loops& operator=(const Loops&) = delete;

  unsigned count() const { return static_cast<unsigned>(loops_.size()); }
  boost::asio::io_context& context(unsigned index) { return *loops_[index]->context; }
  boost::asio::io_context::executor_type executor(unsigned index) {
    return loops_[index]->context->get_executor();
  }
  /// The CPU that the loop's thread stays on; none when it is not pinned.
  std::optional<unsigned> cpu(unsigned index) const { return loops_[index]->cpu; }
  /// The loop whose thread calls this, if it is one of these loops' threads.
  std::optional<unsigned> current() const;
  /// Ends the threads after their current handler. Call it on none of them. Idempotent.
  void stop();

 private:
  struct Loop {
    std::unique_ptr<boost::asio::io_context> context;
    std::optional<boost::asio::executor_work_guard<boost::asio::io_context::executor_type>> work;
    std::optional<unsigned> cpu;
    std::thread thread;
  };
  std::vector<std::unique_ptr<Loop>> loops_;
};

}  // namespace fermata::mountd
