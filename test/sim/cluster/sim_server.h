// One storage node's machine: a disk that outlives it, a process that comes and goes.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "serverd/service/node.h"
#include "test/sim/cluster/world.h"

namespace fermata::test {

class SimServer {
 public:
  SimServer(World& world, NodeId id);
  ~SimServer();

  void start();
  enum class End : std::uint8_t { kProcess, kPower };
  /// Not from within the node's own handlers.
  void crash(End end);
  bool up() const { return env_ != nullptr; }
  /// It has opened its directory and takes part.
  bool ready() const { return up() && started_; }

  NodeId id() const { return id_; }
  SimDisk& disk() { return disk_; }
  serverd::Node& node() { return *node_; }
  /// One of the next operations of the disk will meet this fault.
  void arm(SimDisk::Fault fault, std::uint64_t operations_ahead);
  /// Its disk takes so many bytes more; none: as many as it likes.
  void leave_free(std::optional<std::uint64_t> bytes);
  /// Damages one stored chunk. False: there is none.
  bool corrupt_chunk();
  /// Adds what the node counted to the world's counts.
  void harvest();

 private:
  class Watched;
  boost::asio::awaitable<void> boot(std::uint64_t life);
  void on_fatal(std::uint64_t life, const std::string& reason);

  World& world_;
  const NodeId id_;
  SimDisk disk_;
  std::int64_t clock_ppm_ = 0;
  std::uint64_t life_ = 0;
  std::uint64_t torn_before_ = 0;
  bool faulty_ = false;  ///< a disk fault was armed and no power cut came since: it may stop itself
  bool started_ = false;
  std::unique_ptr<SimEnv> env_;
  std::unique_ptr<SimNetwork> network_;
  std::unique_ptr<serverd::Node> node_;
};

}  // namespace fermata::test
