// The daemon's control socket: how `fermata cache`, `quota` and `umount` talk to it.
//
// CACHE_DIR/control.sock, a unix stream socket of mode 0600. One JSON object per line asks, one
// answers: {"verb":"cache-ls"}; an answer with "error" says that it did not work. A client that
// stalls is dropped after a while; nobody waits for another one's answer.
//
// Thread-safety: the handler runs on a thread of the socket's per client, and may block.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "common/base/result.h"

namespace fermata::mountd {

class ControlSocket {
 public:
  /// Who is connected, as the kernel says.
  struct Asker {
    uid_t uid = 0;
    gid_t gid = 0;
  };
  /// Takes a verb and the request with it, gives the answer: JSON objects as text.
  using Handler = std::function<std::string(const std::string& verb, const std::string& request,
                                            const Asker& who)>;

  /// Replaces what an earlier daemon left at `path`.
  static Result<std::unique_ptr<ControlSocket>> open(const std::string& path, Handler handler);
  /// Ends the threads (after the requests they are answering) and removes the socket.
  ~ControlSocket();
  ControlSocket(const ControlSocket&) = delete;
  ControlSocket& operator=(const ControlSocket&) = delete;

 private:
  ControlSocket(std::string path, int listener, int wake, Handler handler);
  void run();
  void serve(int fd);
  bool readable(int fd, int timeout_ms);

  const std::string path_;
  const int listener_;
  const int wake_;  // eventfd: stop
  const Handler handler_;
  struct Talk {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> over;
  };
  std::vector<Talk> talks_;  // of thread_, then of the destructor
  std::thread thread_;
};

}  // namespace fermata::mountd
