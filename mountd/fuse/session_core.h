// What a session and its Replies share; internal to mountd/fuse.
//
// Every Reply holds the core, so libfuse's session lives until the last of its requests is freed,
// whatever became of the mount. Per-loop state is touched by its loop's thread only.
#pragma once

#include <atomic>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "common/base/mutex.h"
#include "mountd/fuse/fuse_session.h"
#include "mountd/fuse/transport.h"

struct fuse_session;

namespace fermata::mountd {

/// Bytes of one WRITE; also the largest READ.
inline constexpr unsigned kWriteSizeMax = 1u << 20;
/// What a request may take: the data, and room for headers and two names.
inline constexpr std::size_t kRequestSizeMax = kWriteSizeMax + 64 * 1024;

/// Handlers for requests whose caller got a signal. INTERRUPT may be read by any loop, also before
/// the loop that read the request itself has come to register a handler: such early ones are kept.
class InterruptTable {
 public:
  explicit InterruptTable(Loops& loops) : loops_(loops) {}
  void add(std::shared_ptr<SessionCore> core, std::uint64_t unique, unsigned loop,
           std::function<void()> handler);
  void remove(std::uint64_t unique);
  /// The kernel interrupts `unique`: its handler will run on its loop.
  void interrupt(std::shared_ptr<SessionCore> core, std::uint64_t unique);
  void interrupt_all(std::shared_ptr<SessionCore> core);
  /// Forgets every handler: they may own Replies, and these the core.
  void clear();
  /// Runs and forgets the handler, if it is still there. On the request's loop.
  void fire(std::uint64_t unique);

 private:
  static constexpr std::size_t kEarlyMax = 4096;  ///< most are of requests answered already
  struct Handler {
    unsigned loop;
    std::function<void()> run;
  };
  Loops& loops_;
  Mutex mutex_;
  std::unordered_map<std::uint64_t, Handler> handlers_ FM_GUARDED_BY(mutex_);
  std::unordered_set<std::uint64_t> early_ FM_GUARDED_BY(mutex_);
  std::deque<std::uint64_t> early_order_ FM_GUARDED_BY(mutex_);
};

class SessionCore : public TransportHost, public std::enable_shared_from_this<SessionCore> {
 public:
  SessionCore(MountOptions options, Loops& loops, Operations& operations);
  ~SessionCore() override;

  struct Waiting {
    const char* operation;
    std::chrono::steady_clock::time_point since;
    pid_t caller = 0;  ///< a thread
  };
  struct LoopState {
    const abi::InHeader* request = nullptr;  ///< the one being processed
    bool answered = false;                   ///< that one
    const char* operation = "";              ///< of that one, for `waiting`
    std::uint32_t opcode = 0;                ///< of that one, as the kernel sent it
    bool kill_sgid = false;                  ///< that one is a SETXATTR with this flag
    pid_t stranger = 0;                      ///< a thread that is not of this process
    unsigned stranger_opens = 0;             ///< since that was asked
    std::unordered_map<std::uint64_t, Waiting> waiting;
    std::unique_ptr<boost::asio::steady_timer> look;  ///< at the callers' signals
    bool looks = false;
  };

  // TransportHost
  void process(unsigned loop, MutableByteView request) override;
  void connection_lost(std::error_code why) override;

  /// libfuse's way out: routes one answer to the transport. As writev(2).
  ssize_t write_reply(const iovec* parts, int count);
  /// A notification or its error. Any thread.
  /// Whether the kernel knew what the notification is about.
  Result<bool> notify(std::int32_t code, ByteView fixed, std::string_view name);
  /// The kernel obeys ACLs and leaves the umask to us. Agreed to at INIT.
  bool acls() const { return acls_; }
  bool offered(std::uint64_t flag) const { return (offered_flags_ & flag) == flag; }
  ConnectionInfo negotiate(std::uint32_t write_size_max);

  bool closed() const { return closed_.load(std::memory_order_acquire); }
  LoopState& state(unsigned loop) { return *loop_states_[loop]; }
  LoopState& state() { return state(*loops_.current()); }
  /// Runs `task` on every loop, one after the other, and waits for it.
  void on_every_loop(const std::function<void(unsigned)>& task);
  void set_initialized();
  void set_ended();

  const MountOptions options_;
  Loops& loops_;
  Operations& operations_;
  InterruptTable interrupts_;
  fuse_session* libfuse_ = nullptr;
  std::shared_ptr<Transport> transport_;

  std::string mount_point_;
  std::uint64_t device_number_ = 0;
  bool privileged_ = false;
  bool want_passthrough_ = false;
  bool has_passthrough_ = false;
  bool has_epoch_ = false;

  std::atomic<bool> closed_{false};
  std::atomic<std::int64_t> waiting_count_{0};
  std::mutex state_mutex_;  // for the condition
  std::condition_variable state_changed_;
  bool initialized_ = false;
  bool stopping_ = false;
  bool ended_ = false;
  std::mutex stop_mutex_;  // one stop() at a time
  bool stopped_ = false;

 private:
  void look_later(unsigned loop, std::chrono::steady_clock::duration last_took);
  void look_at_signals(unsigned loop);
  bool is_own_thread(LoopState& here, pid_t thread) const;
  void refuse(unsigned loop, const abi::InHeader& request, int errno_value);
  ssize_t write_init_reply(const iovec* parts, int count);
  std::vector<std::unique_ptr<LoopState>> loop_states_;
  /// libfuse 3.14 knows SETXATTR in its short form only: takes the extension out.
  MutableByteView without_extension(LoopState& here, MutableByteView request) const;
  std::uint64_t offered_flags_ = 0;
  bool acls_ = false;
  std::atomic<std::uint64_t> init_flags_{0};
};

/// What libfuse calls; `struct fuse_lowlevel_ops` seen through the one file that fills it.
fuse_session* new_libfuse_session(SessionCore& core, const std::vector<std::string>& options);
/// Puts our reading and writing under libfuse. It closes `unused_fd` at its end, and must have no
/// descriptor of the device: that would keep the connection alive. 0 or a negative errno.
int attach_libfuse_io(fuse_session* session, int unused_fd);

}  // namespace fermata::mountd
