// One mounted Fermata tree: reads FUSE requests, calls Operations, sends the answers.
//
// Requests are decoded by libfuse's low-level library under fuse_session_custom_io, so that reading
// and writing them is ours (transport.h): a clone of the /dev/fuse descriptor on each loop. What
// Debian's libfuse 3.14 has no word for is patched in the messages that pass: passthrough at INIT
// and OPEN, HANDLE_KILLPRIV_V2, epoch notifications (fuse_abi.h).
//
// As root the mount is made by mount(2); else by fusermount3. default_permissions is always on.
//
// Lifetimes: Loops and Operations outlive the session. A Reply may outlive it (it then does
// nothing). Thread-safety: every method may be called from any thread that is not one of the loops,
// the notifications and backing calls from loops too. The daemon must never use a path under its
// own mount: an open by one of its threads is refused with EDEADLK (an assertion in debug builds).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "common/base/result.h"
#include "mountd/fuse/loops.h"
#include "mountd/fuse/operations.h"

namespace fermata::mountd {

/// Requests over io_uring instead of /dev/fuse (docs/FUSE.md).
enum class IoUring {
  kAuto,  ///< where the kernel offers it
  kOn,    ///< or fail to mount
  kOff,
};

struct MountOptions {
  std::string mount_point{};  ///< an existing directory, empty or not
  std::string fs_name =
      "fermata";  ///< the "device" that df and mount(8) print, e.g. host:port:/path
  bool read_only = false;
  bool no_suid = true;
  bool no_dev = true;
  bool no_exec = false;
  bool no_atime = false;
  bool strict_atime = false;  ///< these two are for statvfs(3): access times are the daemon's
  bool sync_dir = false;
  bool passthrough = true;  ///< use it where kernel and privileges allow
  IoUring io_uring = IoUring::kAuto;
  /// How many loops watch /dev/fuse (0: all, at most 4). The kernel wakes every watcher for every
  /// request, so more watchers than busy cores cost wake-ups.
  unsigned reader_count = 0;
  /// Directories that the daemon itself uses (cache, sockets): a mount point above one is refused.
  std::vector<std::string> own_directories{};
  /// For tests that use the mount from the process that serves it.
  bool allow_own_process = false;
};

struct MountError {
  std::error_code code;
  std::string message;  ///< one line for the user, says what to do
};

class FuseSession {
 public:
  /// Mounts and returns when the kernel's INIT was answered: requests are served from then on.
  /// On failure nothing stays mounted, `error` says why and null is returned.
  static std::unique_ptr<FuseSession> mount(const MountOptions& options, Loops& loops,
                                            Operations& operations, MountError& error);
  /// stop() with its default deadline.
  ~FuseSession();

  /// Waits until the session has ended: stop() was called, or the mount was unmounted or its
  /// connection aborted from outside.
  void wait();
  /// The same with a bound; false when it is still alive.
  bool wait_for(std::chrono::milliseconds timeout);
  bool ended() const;

  /// Detaches the mount, stops reading, gives requests in flight `deadline` to answer by
  /// themselves, then interrupts them (a tenth of the deadline more) and fails the rest with EIO,
  /// and closes the device, which ends what processes still hold open. On return nothing is mounted
  /// and no Operations method runs. Idempotent.
  void stop(std::chrono::milliseconds deadline = std::chrono::seconds(2));

  // --- What the kernel can do; fixed after mount() -----------------------------------------------
  bool has_passthrough() const;
  /// INC_EPOCH works (kernel 6.16): without it answer every Entry with entry_timeout 0.
  bool has_epoch() const;
  bool has_expire_only() const;
  /// Requests come over io_uring.
  bool has_io_uring() const;
  std::uint64_t device_number() const;  ///< st_dev of the mount, from mountinfo

  // --- Passthrough
  // --------------------------------------------------------------------------------
  /// Registers the file open at `fd` (O_RDONLY suffices; the descriptor may be closed afterwards)
  /// as a backing and returns its id, above 0. The id pins the file. Errors: EPERM without
  /// privileges, ELOOP or EINVAL for a backing on a stacked filesystem or no regular file.
  Result<std::int32_t> open_backing(int fd);
  /// Never around the OPEN reply that names the id (docs/FUSE.md rule 1): on forget or eviction.
  Status close_backing(std::int32_t id);

  // --- Notifications
  // ------------------------------------------------------------------------------ ENOENT (the
  // kernel does not know it) counts as success. The first four may wait for an inode lock that a
  // request in flight of this mount holds: use the Notifier (notifier.h) unless you know that none
  // can be.
  /// The next use of the name asks again; the dentry stays (safe for directories and cwds).
  Status expire_entry(NodeHandle parent, std::string_view name);
  /// Drops the dentry. Not for directories: getcwd of a process in it would fail.
  Status invalidate_entry(NodeHandle parent, std::string_view name);
  /// invalidate_entry that also tells inotify watchers of the deletion.
  Status delete_entry(NodeHandle parent, NodeHandle child, std::string_view name);
  /// Attributes, and cached pages of [offset, offset + size); size 0 is to the end. A negative
  /// offset drops the attributes alone and takes no lock. False: the kernel does not know the node.
  Result<bool> invalidate_inode(NodeHandle node, std::int64_t offset_bytes,
                                std::int64_t size_bytes);
  /// Every dentry of the mount is asked for again at its next use. Takes no lock.
  /// Errors: EOPNOTSUPP when !has_epoch().
  Status invalidate_all_entries();

  // --- For status pages and watchdogs ------------------------------------------------------------
  struct Pending {
    const char* operation;
    std::uint64_t unique;
    std::chrono::milliseconds age;
  };
  struct RequestCounts {
    std::uint64_t over_device = 0;  ///< /dev/fuse, with what has no answer (FORGET, INTERRUPT)
    std::uint64_t over_io_uring = 0;
  };
  RequestCounts request_counts() const;
  /// Requests that were read and not answered inline. Waits for the loops: not from one of them.
  std::vector<Pending> pending() const;

 private:
  explicit FuseSession(std::shared_ptr<SessionCore> core);
  std::shared_ptr<SessionCore> core_;
};

}  // namespace fermata::mountd
