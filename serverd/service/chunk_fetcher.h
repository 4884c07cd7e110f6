// Brings the chunks to this node that its state refers to and its disk lacks, and takes those away
// that nothing refers to any more.
//
// A node may apply a commit before the chunks of it arrive (it was not in the majority that stored
// them), may come from a snapshot, or find a copy damaged. Missing ones are fetched from the peers,
// a few at a time, until they are here, as long as the disk has room.
//
// Only the log orders a deletion (DropChunks), so that no commit on its way names what goes: the
// primary orders none for chunks in use there. A node that has said "I have it" must keep the chunk
// all the same when an older order comes late: the primary says with each question what it has
// applied, and an order at or before that index is void for that chunk. Deletion waits a while, for
// readers of old versions, and asks the state again.
//
// What was uploaded and never committed no order names: the node offers such chunks to the primary.
//
// Thread-safety: the node's executor.
#pragma once

#include <map>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "serverd/service/node_context.h"

namespace fermata::serverd {

class ChunkFetcher {
 public:
  explicit ChunkFetcher(NodeContext& node);

  /// Until stopped: looks after what was announced below.
  boost::asio::awaitable<void> run();

  void on_referenced(std::span<const ChunkId> ids);
  /// Ordered by the log entry at `index`.
  void on_dropped(std::span<const ChunkId> ids, LogIndex index);
  /// Compares all references with the store: after start and after a snapshot.
  void compare_all();
  /// The copy here is damaged: another one is wanted.
  void repair(ChunkId id);
  /// A primary that has applied `as_of` counts on the chunk being here, if it is: orders up to
  /// there are void for it. False: a later order is known here, or it is being deleted; it does not
  /// count as being here, unless it is put again after deleted().
  bool vouch(ChunkId id, LogIndex as_of);
  /// Resumes when the chunk is not just being deleted.
  boost::asio::awaitable<void> deleted(ChunkId id);

  struct Fetched {
    Buffer bytes;
    bool stored = false;  ///< here too; not if there is no room
  };
  /// One chunk from any peer, verified. ENOENT if none has it.
  Task<Fetched> fetch(ChunkId id);
  std::size_t missing() const { return missing_.size(); }

 private:
  struct Missing {
    TimePoint not_before{};
    Duration backoff{};
    bool busy = false;
    bool damaged = false;  ///< fetch even though the store has a copy
  };
  struct Doomed {
    LogIndex ordered;
    TimePoint since{};
  };
  Task<void> store(ChunkId id, Buffer bytes);
  bool knows_newest();
  void look_for_new();
  boost::asio::awaitable<void> sweep();
  boost::asio::awaitable<void> offer(std::vector<ChunkId> ids);
  boost::asio::awaitable<void> compare();
  boost::asio::awaitable<void> delete_due();
  boost::asio::awaitable<void> fetch_one(ChunkId id);
  void start_fetches();
  void expect(ChunkId id);

  NodeContext& node_;
  std::optional<TimePoint> caught_up_;  ///< since when this process has applied what is committed
  std::vector<ChunkId> announced_;      ///< referenced, not yet looked for
  bool compare_wanted_ = true;
  std::map<ChunkId, Missing> missing_;
  std::size_t busy_ = 0;
  std::map<ChunkId, Doomed> to_delete_;
  std::set<ChunkId> deleting_;  ///< on the pool
  Signal deletions_;
  std::unordered_map<ChunkId, LogIndex> vouched_;  ///< as of; until that is applied here
  std::map<ChunkId, TimePoint> unnamed_;           ///< stored here, named by nothing, since
  bool sweeping_ = false;
  TimePoint swept_{};
};

}  // namespace fermata::serverd
