// What a mount knows of its cluster: the nodes' addresses and who is likely primary.
//
// Thread-safety: all of it, from any thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/base/mutex.h"
#include "common/wire/messages.h"
#include "mountd/client/cluster_client.h"

namespace fermata::mountd {

class ClusterMap {
 public:
  explicit ClusterMap(std::vector<std::string> servers) : seeds_(std::move(servers)) {}

  /// The nodes to ask, the likely primary first; `attempt` rotates through the others.
  std::string address_for(unsigned attempt) const;
  std::vector<std::string> addresses() const;
  std::string primary() const;

  void learn_members(const std::vector<Member>& members);
  void learn_primary(const std::string& address);
  /// The node at `address` did not answer as a primary would.
  void forget_primary(const std::string& address);

  ClusterId cluster() const;
  void learn_cluster(ClusterId id);

  /// Somebody was told that `session` is over: the keeper opens a new one.
  void report_lost(SessionId session);
  void set_on_lost(std::function<void(SessionId)> on_lost);
  /// Leases ceased to hold for a while (ClientSession::begin_unsettled): the kernel must hear of
  /// it.
  void report_unsettled();
  void set_on_unsettled(std::function<void()> on_unsettled);

 private:
  std::vector<std::string> nodes_locked() const FM_REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::vector<std::string> seeds_ FM_GUARDED_BY(mutex_);
  std::vector<std::string> members_ FM_GUARDED_BY(mutex_);
  std::string primary_ FM_GUARDED_BY(mutex_);
  ClusterId cluster_ FM_GUARDED_BY(mutex_);
  std::function<void(SessionId)> on_lost_ FM_GUARDED_BY(mutex_);
  std::function<void()> on_unsettled_ FM_GUARDED_BY(mutex_);
};

}  // namespace fermata::mountd
