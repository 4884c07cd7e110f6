// One mount, put together: loops, clients, session, cache, filesystem and FUSE session, started
// and stopped in the order in which they need each other.
//
// Thread-safety: start(), wait_ended() and stop() from the main thread; the rest from any.
#pragma once

#include <atomic>
#include <boost/json/object.hpp>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "common/base/mutex.h"
#include "common/env/real_env.h"
#include "common/net/tcp_network.h"
#include "mountd/fs/control_socket.h"
#include "mountd/fs/file_system.h"
#include "mountd/fs/options.h"
#include "mountd/fuse/loops.h"

namespace fermata::mountd {

class Mountd {
 public:
  explicit Mountd(MountdOptions options);
  ~Mountd();
  Mountd(const Mountd&) = delete;
  Mountd& operator=(const Mountd&) = delete;

  /// Opens the session and the cache, and mounts. Empty when the mount answers, else one line for
  /// the user; then nothing is left mounted.
  std::string start();
  /// Looks for `for_at_most`: true when the mount is gone (unmounted from outside, or
  /// ask_to_stop() was called).
  bool wait_ended(std::chrono::milliseconds for_at_most);
  /// Another thread's wish: wait_ended() returns true.
  void ask_to_stop() { stop_asked_ = true; }
  /// Commits what is dirty within `patience`, unmounts, ends the session. What could not be
  /// committed stays in the cache for the next mount; returns how many files that are.
  std::size_t stop(Duration patience);

 private:
  struct Loop {
    std::unique_ptr<RealEnv> env;
    std::unique_ptr<TcpNetwork> network;
    std::unique_ptr<ClusterClient> client;
  };
  std::string open_session();
  std::string open_cache();
  std::string mount();
  std::string control(const std::string& verb, const std::string& request,
                      const ControlSocket::Asker& who);
  std::string control_quotas(const std::string& request, const ControlSocket::Asker& who);
  template <class T>
  Result<T> ask_cluster(Task<T> task);
  std::string list_cache();
  std::string cache_numbers();
  using LeftFiles = std::vector<FileSystem::Uncommitted>;
  std::future<LeftFiles> commit_all(Duration patience);
  /// What the verbs that commit tell about what is left: `uncommitted`, `files`, `conflicts`.
  boost::json::object told_of(const LeftFiles& files);
  void stop_clients();

  const MountdOptions options_;
  RealClock clock_;
  std::unique_ptr<Loops> loops_;
  std::shared_ptr<ClusterMap> map_;
  ClientSession session_;
  std::vector<Loop> parts_;
  std::unique_ptr<CacheStore> store_;
  std::unique_ptr<FileSystem> fs_;
  std::unique_ptr<SessionKeeper> keeper_;
  std::unique_ptr<FuseSession> fuse_;
  std::unique_ptr<Notifier> notifier_;
  std::unique_ptr<ControlSocket> control_;
  std::atomic<bool> stop_asked_{false};
  std::promise<std::string> left_;  ///< told_of() stop()
  const std::shared_future<std::string> left_dirty_{left_.get_future()};
  bool stopped_ = false;
};

}  // namespace fermata::mountd
