// What a filesystem implements to be mounted: one virtual method per FUSE request, in plain types.
//
// The session (fuse_session.h) reads requests on several loops and calls these methods on the loop
// that read one. Calls of different loops run at the same time; the implementation locks what it
// shares. A method must not block: it answers inline, or keeps the Reply (reply.h) in a coroutine
// of reply.executor() and answers there. Names and data are views into the transport's buffer and
// are valid only until the method answers or returns, whichever is first: an answer may be written
// over them (copy them into the coroutine). The RequestContext is a value.
//
// The kernel checks permissions (default_permissions), keeps locks to itself (flock and fcntl are
// local to the mount as long as wants_locks() is false), knows no ACLs and applies the umask (as
// long as wants_acls() is false). Defaults answer what makes the kernel do without the operation.
#pragma once

#include <fcntl.h>
#include <sys/types.h>
#include <time.h>

#include <cerrno>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "common/base/bytes.h"
#include "mountd/fuse/reply.h"

namespace fermata::mountd {

/// Who asks. `pid` is the thread's id, 0 for the kernel itself (write-back, release after exit).
struct RequestContext {
  uid_t uid = 0;
  gid_t gid = 0;
  pid_t pid = 0;
  std::uint64_t unique = 0;  ///< the request's number on this mount
  mode_t umask = 0;          ///< mknod, mkdir, create: to be applied, if ConnectionInfo::acls
};

/// What was agreed with the kernel at INIT.
struct ConnectionInfo {
  std::uint32_t protocol_minor = 0;
  std::uint32_t write_size_max = 0;  ///< bytes of one WRITE
  bool passthrough = false;          ///< open may answer a backing id
  bool kill_privileges = false;  ///< HANDLE_KILLPRIV_V2: the kill_suidgid flags are ours to obey
  bool acls = false;             ///< the kernel obeys ACLs, and leaves the umask to us
  bool readdirplus = false;
  bool expire_only = false;  ///< entries can be expired without dropping them
};

/// The `valid` bits of SetAttributes; numbers as the kernel's FATTR_*.
enum SetAttributeBits : std::uint32_t {
  kSetMode = 1u << 0,
  kSetUid = 1u << 1,
  kSetGid = 1u << 2,
  kSetSize = 1u << 3,
  kSetAtime = 1u << 4,
  kSetMtime = 1u << 5,
  kSetAtimeNow = 1u << 7,  ///< with kSetAtime: take the current time, not `atime`
  kSetMtimeNow = 1u << 8,
  kSetCtime = 1u << 10,
  kSetKillSuidGid = 1u << 11,  ///< clear setuid and (with group execute) setgid, also when alone
};

struct SetAttributes {
  std::uint32_t valid = 0;  ///< SetAttributeBits
  mode_t mode = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  std::uint64_t size_bytes = 0;
  timespec atime{};
  timespec mtime{};
  timespec ctime{};
  std::optional<std::uint64_t> fh;  ///< ftruncate and the like: the open file it came through
  bool has(std::uint32_t bit) const { return (valid & bit) != 0; }
};

struct OpenRequest {
  int flags = 0;  ///< O_* of open(2), without O_CREAT, O_EXCL, O_NOCTTY; O_TRUNC is ours to do
  bool kill_suidgid = false;  ///< with O_TRUNC: the caller may not keep setuid and setgid
};

struct CreateRequest {
  mode_t mode = 0;  ///< umask applied, unless ConnectionInfo::acls
  int flags = 0;    ///< O_*
  bool kill_suidgid = false;
};

struct WriteRequest {
  std::uint64_t fh = 0;
  std::uint64_t offset_bytes = 0;
  ByteView data;
  bool kill_suidgid = false;     ///< the caller lacks CAP_FSETID: clear setuid and setgid
  bool from_page_cache = false;  ///< written back by the kernel (mmap): the handle is a guess
  bool at_end = false;  ///< O_APPEND: the offset is where the kernel believes the end to be
};

struct ReleaseRequest {
  std::uint64_t fh = 0;
  int flags = 0;  ///< O_* of the open
  std::uint64_t lock_owner = 0;
  bool unlock_flock = false;
};

struct CopyRange {
  NodeHandle in_node{};
  std::uint64_t in_fh = 0;
  std::uint64_t in_offset_bytes = 0;
  NodeHandle out_node{};
  std::uint64_t out_fh = 0;
  std::uint64_t out_offset_bytes = 0;
  std::uint64_t size_bytes = 0;
};

struct LockRequest {
  std::uint64_t fh = 0;
  std::uint64_t owner = 0;
  struct flock range {};
  bool wait = false;  ///< F_SETLKW: answer when granted; obey interrupts
};

struct SetXattr {
  std::string_view name;
  ByteView value;
  int flags = 0;           ///< XATTR_CREATE, XATTR_REPLACE
  bool kill_sgid = false;  ///< an access ACL, set by one outside the file's group: clear setgid
};

struct Forget {
  NodeHandle node{};
  std::uint64_t lookup_count = 0;
};

class Operations {
 public:
  virtual ~Operations() = default;
  using Ctx = const RequestContext&;

  /// Once, before any other call; runs on the loop that read INIT.
  virtual void init(const ConnectionInfo&) {}
  /// Session ended (stopped, or unmounted from outside): no call comes any more. Runs on the thread
  /// that calls FuseSession::stop().
  virtual void destroy() {}
  /// True: flock and fcntl locks come to getlk, setlk and flock. Asked once, at mount.
  virtual bool wants_locks() const { return false; }
  /// True: ACLs come as the xattrs system.posix_acl_access and system.posix_acl_default, which the
  /// kernel obeys; keeping them and the mode in agreement, and inheriting them, is ours.
  virtual bool wants_acls() const { return false; }

  virtual void lookup(Ctx, NodeHandle parent, std::string_view name, EntryReply reply) = 0;
  /// The kernel gives back `lookup_count` of its references to `node`. No answer.
  virtual void forget(NodeHandle node, std::uint64_t lookup_count) = 0;
  virtual void forget_batch(std::span<const Forget> nodes) {
    for (const auto& each : nodes) forget(each.node, each.lookup_count);
  }
  virtual void getattr(Ctx, NodeHandle node, std::optional<std::uint64_t> fh, AttrReply reply) = 0;
  /// getattr with the birth time. ENOSYS: the kernel does with getattr from then on.
  virtual void statx(Ctx, NodeHandle, std::optional<std::uint64_t> /*fh*/, StatxReply reply) {
    reply.error(ENOSYS);
  }
  virtual void setattr(Ctx, NodeHandle, const SetAttributes&, AttrReply reply) {
    reply.error(ENOSYS);
  }
  virtual void readlink(Ctx, NodeHandle, ReadlinkReply reply) { reply.error(ENOSYS); }

  // The mode carries the file type for mknod; the umask is applied, unless ConnectionInfo::acls.
  virtual void mknod(Ctx, NodeHandle /*parent*/, std::string_view /*name*/, mode_t, dev_t,
                     EntryReply reply) {
    reply.error(ENOSYS);
  }
  virtual void mkdir(Ctx, NodeHandle /*parent*/, std::string_view /*name*/, mode_t,
                     EntryReply reply) {
    reply.error(ENOSYS);
  }
  virtual void symlink(Ctx, NodeHandle /*parent*/, std::string_view /*name*/,
                       std::string_view /*target*/, EntryReply reply) {
    reply.error(ENOSYS);
  }
  virtual void link(Ctx, NodeHandle /*node*/, NodeHandle /*new_parent*/,
                    std::string_view /*new_name*/, EntryReply reply) {
    reply.error(ENOSYS);
  }
  virtual void unlink(Ctx, NodeHandle /*parent*/, std::string_view /*name*/, StatusReply reply) {
    reply.error(ENOSYS);
  }
  virtual void rmdir(Ctx, NodeHandle /*parent*/, std::string_view /*name*/, StatusReply reply) {
    reply.error(ENOSYS);
  }
  /// `flags`: RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT.
  virtual void rename(Ctx, NodeHandle /*parent*/, std::string_view /*name*/,
                      NodeHandle /*new_parent*/, std::string_view /*new_name*/, unsigned /*flags*/,
                      StatusReply reply) {
    reply.error(ENOSYS);
  }

  virtual void open(Ctx, NodeHandle node, const OpenRequest&, OpenReply reply) = 0;
  virtual void create(Ctx, NodeHandle /*parent*/, std::string_view /*name*/, const CreateRequest&,
                      CreateReply reply) {
    reply.error(ENOSYS);
  }
  /// open(2) with O_TMPFILE: a file without a name, which link() may name (unless O_EXCL is among
  /// the flags: the kernel sees to that). ENOSYS: the kernel does not ask again.
  virtual void tmpfile(Ctx, NodeHandle /*parent*/, const CreateRequest&, CreateReply reply) {
    reply.error(ENOSYS);
  }
  /// The kernel did not take an open's or create's answer (its caller was killed meanwhile): no
  /// release will come for `fh`, and a created entry's lookup does not count.
  virtual void open_abandoned(NodeHandle /*node*/, std::uint64_t /*fh*/, bool /*created*/) {}
  virtual void read(Ctx, NodeHandle node, std::uint64_t fh, std::uint64_t offset_bytes,
                    std::size_t size_bytes, ReadReply reply) = 0;
  virtual void write(Ctx, NodeHandle, const WriteRequest&, WriteReply reply) { reply.error(EROFS); }
  /// One close(2) of one of the descriptors of an open file; its error is close's error.
  virtual void flush(Ctx, NodeHandle, std::uint64_t /*fh*/, std::uint64_t /*lock_owner*/,
                     StatusReply reply) {
    reply.error(ENOSYS);
  }
  /// The last descriptor and mapping made through it are gone. Its error goes nowhere.
  virtual void release(Ctx, NodeHandle, const ReleaseRequest&, StatusReply reply) { reply.ok(); }
  virtual void fsync(Ctx, NodeHandle, std::uint64_t /*fh*/, bool /*data_only*/, StatusReply reply) {
    reply.error(ENOSYS);
  }
  virtual void fallocate(Ctx, NodeHandle, std::uint64_t /*fh*/, int /*mode*/,
                         std::uint64_t /*offset_bytes*/, std::uint64_t /*size_bytes*/,
                         StatusReply reply) {
    reply.error(ENOSYS);
  }
  /// SEEK_DATA and SEEK_HOLE only.
  virtual void lseek(Ctx, NodeHandle, std::uint64_t /*fh*/, std::uint64_t /*offset_bytes*/,
                     int /*whence*/, LseekReply reply) {
    reply.error(ENOSYS);
  }
  virtual void copy_file_range(Ctx, const CopyRange&, WriteReply reply) { reply.error(ENOSYS); }
  virtual void ioctl(Ctx, NodeHandle, std::uint64_t /*fh*/, unsigned /*command*/, ByteView /*in*/,
                     std::size_t /*out_size_max*/, IoctlReply reply) {
    reply.error(ENOTTY);
  }

  virtual void opendir(Ctx, NodeHandle, int /*flags*/, OpenReply reply) { reply.opened({}); }
  /// From the entry after `cookie` on (0: the start). Both readdir and readdirplus: reply.plus().
  virtual void readdir(Ctx, NodeHandle node, std::uint64_t fh, std::uint64_t cookie,
                       DirReply reply) = 0;
  virtual void releasedir(Ctx, NodeHandle, std::uint64_t /*fh*/, StatusReply reply) { reply.ok(); }
  virtual void fsyncdir(Ctx, NodeHandle, std::uint64_t /*fh*/, bool /*data_only*/,
                        StatusReply reply) {
    reply.error(ENOSYS);
  }

  virtual void statfs(Ctx, NodeHandle node, StatfsReply reply) = 0;

  // ENOSYS here is remembered by the kernel as "no xattrs on this mount".
  virtual void setxattr(Ctx, NodeHandle, const SetXattr&, StatusReply reply) {
    reply.error(ENOSYS);
  }
  virtual void getxattr(Ctx, NodeHandle, std::string_view /*name*/, XattrReply reply) {
    reply.error(ENOSYS);
  }
  /// The answer is the names, each with its terminating zero.
  virtual void listxattr(Ctx, NodeHandle, XattrReply reply) { reply.error(ENOSYS); }
  virtual void removexattr(Ctx, NodeHandle, std::string_view /*name*/, StatusReply reply) {
    reply.error(ENOSYS);
  }

  // Only when wants_locks().
  virtual void getlk(Ctx, NodeHandle, const LockRequest&, LockReply reply) { reply.error(ENOSYS); }
  virtual void setlk(Ctx, NodeHandle, const LockRequest&, StatusReply reply) {
    reply.error(ENOSYS);
  }
  /// `operation`: LOCK_SH, LOCK_EX, LOCK_UN, with LOCK_NB.
  virtual void flock(Ctx, NodeHandle, std::uint64_t /*fh*/, std::uint64_t /*owner*/,
                     int /*operation*/, StatusReply reply) {
    reply.error(ENOSYS);
  }
};

}  // namespace fermata::mountd
