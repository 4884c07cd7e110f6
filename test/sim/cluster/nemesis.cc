#include "test/sim/cluster/nemesis.h"

#include <functional>

namespace fermata::test {

using namespace std::chrono_literals;

void Nemesis::begin() {
  corrupt_server_ = world_.random.below(servers_.size());
  world_.scheduler.after(world_.between(500ms, 2s), [this] { act(); });
}

void Nemesis::act() {
  if (over_) {
    // A disk's last fault may still stop a node.
    for (const auto& server : servers_) server->start();
    world_.scheduler.after(200ms, [this] { act(); });
    return;
  }
  strike();
  // Who stopped by itself, or was never started again, is.
  for (const auto& server : servers_) {
    if (!server->up()) restart_later(*server, 2s);
  }
  for (const auto& client : clients_) {
    if (!client->up()) client->start(world_.character.processes);
  }
  world_.scheduler.after(world_.between(world_.character.pace / 4, world_.character.pace * 2),
                         [this] { act(); });
}

void Nemesis::strike() {
  const Character& c = world_.character;
  std::vector<std::function<void()>> faults;
  if (c.crashes) faults.emplace_back([this] { crash(any_server(), SimServer::End::kProcess); });
  if (c.power_cuts) faults.emplace_back([this] { crash(any_server(), SimServer::End::kPower); });
  if (c.total_power_cuts) faults.emplace_back([this] { cut_all_power(); });
  if (c.disk_faults) faults.emplace_back([this] { fault_disk(); });
  if (c.full_disks) faults.emplace_back([this] { fill_disks(); });
  if (c.corruption) {
    faults.emplace_back([this] {
      // One node's only, so that a good copy remains.
      if (servers_[corrupt_server_]->corrupt_chunk()) ++world_.counts.corruptions;
    });
  }
  if (c.partitions) {
    faults.emplace_back([this] { partition(); });
    faults.emplace_back([this] { partition(); });
    faults.emplace_back([this] { depose(); });
    faults.emplace_back([this] { world_.fabric.heal_all(); });
  }
  if (c.client_partitions) faults.emplace_back([this] { isolate_client(); });
  if (c.clogs) faults.emplace_back([this] { clog(); });
  if (c.resets) {
    faults.emplace_back([this] {
      if (world_.fabric.reset_random_connection()) ++world_.counts.resets;
    });
  }
  if (c.client_crashes) faults.emplace_back([this] { crash_client(); });
  if (!faults.empty()) faults[world_.random.below(faults.size())]();
}

void Nemesis::crash(SimServer& server, SimServer::End end) {
  if (!server.up()) return;
  ++(end == SimServer::End::kPower ? world_.counts.power_cuts : world_.counts.crashes);
  server.crash(end);
  restart_later(server, 3s);
}

void Nemesis::cut_all_power() {
  ++world_.counts.power_cuts_of_all;
  for (const auto& server : servers_) {
    server->crash(SimServer::End::kPower);
    restart_later(*server, 1s);
  }
}

void Nemesis::fault_disk() {
  constexpr SimDisk::Fault kFaults[] = {SimDisk::Fault::kPowerCutBefore,
                                        SimDisk::Fault::kPowerCutAfter, SimDisk::Fault::kEio,
                                        SimDisk::Fault::kEnospc, SimDisk::Fault::kShortWrite};
  SimServer& server = any_server();
  if (!server.up()) return;
  server.arm(kFaults[world_.random.below(std::size(kFaults))], world_.random.below(30));
}

/// One disk, or all, has little room left for a while, or none.
void Nemesis::fill_disks() {
  world_.oracle.allow_no_space();
  const bool all = world_.random.chance(1, 2);
  SimServer& chosen = any_server();
  for (const auto& server : servers_) {
    if (!all && server.get() != &chosen) continue;
    ++world_.counts.full_disks;
    server->leave_free(world_.random.chance(1, 3) ? 0 : world_.random.below(60'000));
    SimServer* victim = server.get();
    world_.scheduler.after(world_.between(300ms, 4s), [victim] { victim->leave_free({}); });
  }
}

void Nemesis::partition() {
  if (world_.random.chance(1, 2)) world_.fabric.heal_all();
  const std::string victim = host_of(any_server().id());
  if (world_.random.chance(1, 3)) {
    ++world_.counts.one_way_partitions;
    const bool outward = world_.random.chance(1, 2);
    for (const auto& host : hosts()) {
      if (host == victim || !world_.random.chance(3, 4)) continue;
      if (outward) {
        world_.fabric.cut(victim, host);
      } else {
        world_.fabric.cut(host, victim);
      }
    }
    world_.note(victim, outward ? "is not heard" : "hears nobody");
    return;
  }
  ++world_.counts.partitions;
  std::set<std::string> side{victim};
  std::set<std::string> others;
  for (const auto& host : hosts()) {
    if (host == victim) continue;
    const bool client = host[0] == 'c';
    // Clients are on either side: one that still reaches a deposed primary is the interesting one.
    if (client && world_.random.chance(1, 2)) {
      if (world_.random.chance(1, 2)) side.insert(host);
      continue;
    }
    others.insert(host);
  }
  for (const auto& host : side) others.erase(host);
  world_.fabric.partition(side, others);
  world_.note(victim, "is cut off");
}

/// What the primary hears of the others becomes old, step by step so that it does not notice; then
/// it is not heard any more. They elect a new one while it still believes, and one client, cut off
/// with it, still asks it. (Its lease must have ended: that counts from when a round began.)
void Nemesis::depose() {
  std::string victim;
  for (const auto& server : servers_) {
    if (server->ready() && server->node().status().role == "primary")
      victim = host_of(server->id());
  }
  if (victim.empty()) return;
  ++world_.counts.one_way_partitions;
  world_.fabric.heal_all();
  std::string follower = any_client().host();
  for (const auto& client : clients_) {
    if (client->is_visitor() && world_.random.chance(3, 4)) follower = client->host();
  }
  world_.note(victim, "hears ever later, then is cut off with " + follower);
  const Duration step = world_.between(80ms, 280ms);
  for (int i = 1; i <= 4; ++i) {
    world_.scheduler.after(400ms * (i - 1), [this, victim, late = step * i] {
      if (!over_) delay_to(victim, late);
    });
  }
  world_.scheduler.after(world_.between(1600ms, 2s), [this, victim, follower] {
    if (over_) return;
    for (const auto& host : hosts()) {
      if (host == victim || host == follower) continue;
      world_.fabric.cut(victim, host);
      if (host[0] == 'c') world_.fabric.cut(host, victim);
    }
  });
  world_.scheduler.after(world_.between(3500ms, 5s), [this, victim] {
    delay_to(victim, Duration::zero());
    if (!over_) world_.fabric.heal_all();
  });
}

/// What the other nodes send to `victim` takes so much longer.
void Nemesis::delay_to(const std::string& victim, Duration delay) {
  for (const auto& server : servers_) {
    const std::string other = host_of(server->id());
    if (other == victim) continue;
    SimLinkFaults links = over_ ? SimLinkFaults() : world_.character.links;
    if (!over_) {
      links.delay_min += delay;
      links.delay_max += delay;
    }
    world_.fabric.set_faults(other, victim, links);
  }
}

void Nemesis::isolate_client() {
  ++world_.counts.client_partitions;
  const std::string victim = any_client().host();
  std::set<std::string> others;
  for (const auto& server : servers_) others.insert(host_of(server->id()));
  world_.fabric.partition({victim}, others);
  world_.note(victim, "is cut off");
  // Longer than its lease, or shorter.
  world_.scheduler.after(world_.between(world_.character.lease / 2, world_.character.lease * 2),
                         [this, victim] {
                           for (const auto& host : hosts()) {
                             world_.fabric.heal(victim, host);
                             world_.fabric.heal(host, victim);
                           }
                         });
}

void Nemesis::clog() {
  ++world_.counts.clogs;
  const auto all = hosts();
  const std::string from = all[world_.random.below(all.size())];
  const std::string to = all[world_.random.below(all.size())];
  if (from == to) return;
  SimLinkFaults faults = world_.character.links;
  faults.delay_min = world_.between(20ms, 100ms);
  faults.delay_max = faults.delay_min + world_.between(10ms, 400ms);
  world_.fabric.set_faults(from, to, faults);
  world_.scheduler.after(world_.between(300ms, 3s), [this, from, to] {
    world_.fabric.set_faults(from, to, over_ ? SimLinkFaults() : world_.character.links);
  });
}

void Nemesis::crash_client() {
  ++world_.counts.client_crashes;
  any_client().crash();
}

void Nemesis::restart_later(SimServer& server, Duration most) {
  world_.scheduler.after(world_.between(10ms, most), [&server] { server.start(); });
}

SimServer& Nemesis::any_server() {
  // The primary more often than chance would.
  if (world_.random.chance(1, 3)) {
    for (const auto& server : servers_) {
      if (server->ready() && server->node().status().role == "primary") return *server;
    }
  }
  return *servers_[world_.random.below(servers_.size())];
}

SimClient& Nemesis::any_client() { return *clients_[world_.random.below(clients_.size())]; }

std::vector<std::string> Nemesis::hosts() const {
  std::vector<std::string> all;
  for (const auto& server : servers_) all.push_back(host_of(server->id()));
  for (const auto& client : clients_) all.push_back(client->host());
  return all;
}

void Nemesis::heal() {
  over_ = true;
  world_.fabric.heal_all();
  world_.fabric.set_faults(SimLinkFaults());
  const auto all = hosts();
  for (const auto& from : all) {
    for (const auto& to : all) {
      if (from != to) world_.fabric.set_faults(from, to, SimLinkFaults());
    }
  }
  for (const auto& server : servers_) {
    if (server->up() && server->disk().is_off()) server->crash(SimServer::End::kPower);
    server->disk().fail_at(~std::uint64_t{0}, SimDisk::Fault::kEio);
    server->leave_free({});
    server->start();
  }
}

}  // namespace fermata::test
