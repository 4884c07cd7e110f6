// Invalidates the kernel's caches without ever waiting for the daemon itself.
//
// Expiring a name takes its parent directory's inode lock, and a request in flight of this very
// mount may hold that lock while it waits for us. So the calls run on a helper thread; a batch that
// is not through within a few milliseconds (or is larger than kBatchPrecise) is overtaken by
// INC_EPOCH, which takes no lock and makes every cached name be asked for again. Dropping cached
// pages waits for page locks, which a READ in flight holds; an epoch does not replace it, so such
// items have a thread of their own and are always waited for.
//
// A node that was granted to the kernel and that it does not know yet: an answer that names it has
// been written, and the process that waits for it has not run since. What that process will store
// is as old as the answer, so the invalidation is repeated until the kernel knows the node or has
// given it back.
//
// Without epoch support (FuseSession::has_epoch()) a batch is done when the precise calls are.
//
// Thread-safety: invalidate() from any thread; `done` runs on a thread of the notifier, or inside
// invalidate() when nothing had to wait: post to where you need to be. The session outlives this.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "mountd/fuse/reply.h"

namespace fermata::mountd {

class FuseSession;

class Notifier {
 public:
  enum class Kind : std::uint8_t { kExpireEntry, kInvalidateEntry, kDeleteEntry, kInvalidateInode };
  struct Item {
    Kind kind = Kind::kExpireEntry;
    NodeHandle node{};  ///< the parent for entries, the node itself for kInvalidateInode
    std::string name;
    NodeHandle child{};              ///< kDeleteEntry
    std::int64_t offset_bytes = -1;  ///< kInvalidateInode: negative is attributes alone
    std::int64_t size_bytes = 0;     ///< kInvalidateInode: 0 is to the end
  };
  static constexpr std::size_t kBatchPrecise = 64;
  static constexpr std::chrono::milliseconds kPatience{3};

  /// Whether a node was granted to the kernel and not given back. Any thread.
  using Granted = std::function<bool(NodeHandle)>;

  explicit Notifier(FuseSession& session, Granted granted = {});
  /// Waits for the calls in flight, which stop() of the session frees: stop the session first. Each
  /// `done` was or is called.
  ~Notifier();
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  /// `done` is called exactly once, when no cached answer of before can be given any more (or the
  /// session is over).
  void invalidate(std::vector<Item> items, std::function<void()> done);

  struct Counters {
    std::uint64_t batch_count = 0;
    std::uint64_t epoch_count = 0;  ///< batches that INC_EPOCH overtook
  };
  Counters counters() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fermata::mountd
