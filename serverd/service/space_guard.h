// How much room the nodes' disks have, and when to say ENOSPC before a disk does.
//
// A full disk stalls the log and with it the node, and the same load fills every node's disk at the
// same time: so the primary refuses what takes room while its disk still has some in reserve, and
// unless a majority has. What frees room goes on. A primary whose own disk alone is full hands the
// role to a node that has room. Below twice the reserve room is *low*: history is forgotten early,
// unneeded chunks go soon, the log is kept short.
//
// The reserve is for what goes on: the log, the state's flushes and compactions. A part of it is a
// file, taken away when a write has met ENOSPC all the same (others may fill the disk, too).
//
// Thread-safety: the node's executor; room_maker()'s function on any thread.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>

#include "common/env/disk.h"
#include "serverd/service/node_context.h"

namespace fermata::serverd {

class SpaceGuard {
 public:
  explicit SpaceGuard(NodeContext& node);

  /// Before anything is opened in the data directory: what a full disk needs for the start.
  static Status make_room_to_start(Disk& disk, const std::string& data_dir);
  /// Looks at the own disk, and as primary asks the others, until stopped.
  boost::asio::awaitable<void> watch();

  /// What it knew of the others is of an earlier time.
  void on_serving();
  /// As primary: whether an application may write more. ENOSPC; kRetry while the role is on its way
  /// to a node that has room, or a node catches up that has no room for a snapshot.
  Status room() const;
  /// The same for what frees room or takes next to none: ENOSPC only when nothing goes on at all,
  /// kRetry also until history has ended.
  Status room_to_free() const;
  /// This node alone: backups refuse chunks by it.
  bool has_room_here() const { return !full_here(); }
  /// So much more fits here for a while, without a part of the reserve being touched that the log
  /// needs meanwhile: a snapshot, which then takes the place of the state.
  bool has_room_for(std::uint64_t bytes) const;
  /// Room is scarce on this node; on so many nodes that none may be left for writing soon.
  bool low_here() const;
  bool low() const;

  /// Room that is being taken while this lives, and may not show in a look at the disk yet.
  class Admission {
   public:
    Admission(SpaceGuard& guard, std::uint64_t bytes) : guard_(guard), bytes_(bytes) {
      guard_.pending_bytes_ += bytes_;
    }
    Admission(const Admission&) = delete;
    Admission& operator=(const Admission&) = delete;
    ~Admission() {
      guard_.pending_bytes_ -= bytes_;
      guard_.taken_bytes_ += bytes_;
      guard_.taken_ever_bytes_ += bytes_;
    }

   private:
    SpaceGuard& guard_;
    const std::uint64_t bytes_;
  };
  /// A write met ENOSPC: looks again at once.
  void note_no_space() { next_look_ = {}; }
  /// To be called after ENOSPC: true if it made some room. Outlives the guard.
  std::function<bool()> room_maker();

  /// What the fullest node of the emptiest majority has.
  DiskSpace cluster() const;
  /// What is on its way to the disk counts as there.
  DiskSpace own() const { return {own_.total_bytes, free_now()}; }

 private:
  struct Other {
    DiskSpace space;
    bool full = false;
    TimePoint seen{};
    std::uint64_t taken_before = 0;  ///< of taken_ever_bytes_, when it was asked
  };
  /// Shared with threads of the pool.
  struct ReserveFile {
    Disk* disk = nullptr;
    std::string path;
    std::atomic<bool> there{false};
  };

  std::uint64_t reserve(const DiskSpace& space) const;
  std::uint64_t reserve_file_bytes() const;
  std::uint64_t reserve_here() const;
  std::uint64_t free_now() const;
  bool full_here() const;
  std::uint64_t free_of(const Other& other) const;
  bool is_full(const Other& other) const;
  bool is_fresh(const Other& other) const;
  bool near_limit() const;
  bool is_low(const Other& other) const;
  struct Others {
    std::size_t fine = 0, wanting = 0, unknown = 0;
  };
  Others judge(bool (SpaceGuard::*wants)(const Other&) const) const;
  static std::size_t fine_of(const Others& others);
  /// Whether it depends on one that is not heard of if a majority has room.
  bool doubtful() const;
  std::size_t others_with_room() const;
  boost::asio::awaitable<void> look();
  boost::asio::awaitable<void> ask(NodeId peer);
  boost::asio::awaitable<void> keep_reserve_file();
  void care();
  void wait_for_trailing();
  void hand_over_if_full();
  boost::asio::awaitable<void> hand_over(NodeId to);

  NodeContext& node_;
  DiskSpace own_;
  bool own_known_ = false;
  bool was_full_ = false;
  std::map<NodeId, Other> others_;
  TimePoint next_look_{};
  std::uint64_t pending_bytes_ = 0;  ///< admitted, being written
  std::uint64_t taken_bytes_ = 0;    ///< written since the last look began
  std::uint64_t taken_ever_bytes_ = 0;
  TimePoint next_care_{};
  std::shared_ptr<ReserveFile> reserve_file_;
  bool making_reserve_ = false;
  TimePoint trailing_since_{};  ///< as primary: since when a node that is low on room trails
  bool waits_for_trailing_ = false;
  // Handing over.
  bool handing_over_ = false;
  TimePoint doubt_since_{};  ///< as primary: of doubtful()
  TimePoint full_since_{};   ///< as primary, with others that have room
  TimePoint next_hand_over_{};
};

}  // namespace fermata::serverd
