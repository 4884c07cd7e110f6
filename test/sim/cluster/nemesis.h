// What befalls a simulated cluster, and when it stops.
#pragma once

#include <memory>
#include <vector>

#include "test/sim/cluster/sim_client.h"
#include "test/sim/cluster/sim_server.h"

namespace fermata::test {

class Nemesis {
 public:
  Nemesis(World& world, std::vector<std::unique_ptr<SimServer>>& servers,
          std::vector<std::unique_ptr<SimClient>>& clients)
      : world_(world), servers_(servers), clients_(clients) {}

  /// Acts now and then until heal().
  void begin();
  /// No more faults; the network is whole, every node runs.
  void heal();

 private:
  void act();
  void strike();
  void crash(SimServer& server, SimServer::End end);
  void cut_all_power();
  void fault_disk();
  void fill_disks();
  void partition();
  void depose();
  void delay_to(const std::string& victim, Duration delay);
  void isolate_client();
  void clog();
  void crash_client();
  void restart_later(SimServer& server, Duration most);
  SimServer& any_server();
  SimClient& any_client();
  std::vector<std::string> hosts() const;

  World& world_;
  std::vector<std::unique_ptr<SimServer>>& servers_;
  std::vector<std::unique_ptr<SimClient>>& clients_;
  bool over_ = false;
  bool corrupted_ = false;
  std::size_t corrupt_server_ = 0;
};

}  // namespace fermata::test
