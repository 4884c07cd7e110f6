#include "mountd/client/cluster_map.h"

#include <algorithm>

namespace fermata::mountd {

std::vector<std::string> ClusterMap::nodes_locked() const {
  std::vector<std::string> nodes = members_;
  for (const std::string& seed : seeds_)
    if (std::find(nodes.begin(), nodes.end(), seed) == nodes.end()) nodes.push_back(seed);
  return nodes;
}

std::string ClusterMap::address_for(unsigned attempt) const {
  MutexLock lock(mutex_);
  if (!primary_.empty()) return primary_;
  const std::vector<std::string> nodes = nodes_locked();
  return nodes.empty() ? std::string() : nodes[attempt % nodes.size()];
}

std::vector<std::string> ClusterMap::addresses() const {
  MutexLock lock(mutex_);
  return nodes_locked();
}

std::string ClusterMap::primary() const {
  MutexLock lock(mutex_);
  return primary_;
}

void ClusterMap::learn_members(const std::vector<Member>& members) {
  MutexLock lock(mutex_);
  members_.clear();
  for (const Member& member : members) members_.push_back(member.address);
}

void ClusterMap::learn_primary(const std::string& address) {
  MutexLock lock(mutex_);
  primary_ = address;
}

void ClusterMap::forget_primary(const std::string& address) {
  MutexLock lock(mutex_);
  if (primary_ == address) primary_.clear();
}

ClusterId ClusterMap::cluster() const {
  MutexLock lock(mutex_);
  return cluster_;
}

void ClusterMap::learn_cluster(ClusterId id) {
  MutexLock lock(mutex_);
  cluster_ = id;
}

void ClusterMap::report_lost(SessionId session) {
  std::function<void(SessionId)> on_lost;
  {
    MutexLock lock(mutex_);
    on_lost = on_lost_;
  }
  if (on_lost) on_lost(session);
}

void ClusterMap::report_unsettled() {
  std::function<void()> on_unsettled;
  {
    MutexLock lock(mutex_);
    on_unsettled = on_unsettled_;
  }
  if (on_unsettled) on_unsettled();
}

void ClusterMap::set_on_unsettled(std::function<void()> on_unsettled) {
  MutexLock lock(mutex_);
  on_unsettled_ = std::move(on_unsettled);
}

void ClusterMap::set_on_lost(std::function<void(SessionId)> on_lost) {
  MutexLock lock(mutex_);
  on_lost_ = std::move(on_lost);
}

std::shared_ptr<ClusterMap> make_cluster_map(std::vector<std::string> servers) {
  return std::make_shared<ClusterMap>(std::move(servers));
}

}  // namespace fermata::mountd
