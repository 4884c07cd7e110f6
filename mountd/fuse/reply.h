// The answer to one FUSE request: a move-only object that answers exactly once.
//
// An operation gets its Reply by value and may answer inside the call, or keep it in a coroutine
// and answer later. The answer leaves on the descriptor that the request was read from, so it is
// sent by the loop that read it: answered on that loop it is written at once; answered on any other
// thread it copies what it needs and hands itself over to its loop. Destroying an unanswered Reply
// answers EIO and logs the operation's name: a forgotten answer makes a process wait for ever.
//
// Every answering method consumes the Reply; a second answer is an assertion. Once the session is
// closed (the kernel has failed the request already) an answer does nothing.
//
// Thread-safety: one owner at a time, on any thread.
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <boost/asio/any_io_executor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>

#include "common/base/bytes.h"

struct fuse_req;
struct flock;

namespace fermata::mountd {

class SessionCore;

/// The kernel's handle for a node of this mount: mountd's own name for one (inode, version
/// lineage), not the inode id (which is `st_ino`). 0 is "no such entry" in an answer. Never reuse
/// one while the kernel holds lookups of it.
enum class NodeHandle : std::uint64_t {};
inline constexpr NodeHandle kNoNode{0};
inline constexpr NodeHandle kRootNode{1};

/// How long the kernel may trust what it is told without asking again. Nanoseconds; the longest
/// useful value is kForever (about 100 years).
using Timeout = std::chrono::nanoseconds;
inline constexpr Timeout kForever = std::chrono::hours(24 * 365 * 100);

/// A name's answer. `node == kNoNode` caches the *absence* of the name for `entry_timeout`.
/// Each answered Entry with a node (also each one added to a plus listing, except "." and "..")
/// counts as one lookup, which forget() gives back.
struct Entry {
  NodeHandle node = kNoNode;
  std::uint64_t generation = 0;
  struct stat attr {};  ///< st_ino, st_mode and st_size must be right even when attr_timeout is 0
  Timeout entry_timeout{0};
  Timeout attr_timeout{0};
};

/// How an open file behaves; bits as the kernel knows them (FOPEN_*). docs/FUSE.md tells
/// which may live side by side on one node: a wrong mix reaches the application as EIO.
enum OpenFlags : std::uint32_t {
  kOpenDirectIo = 1u << 0,   ///< no page cache: every read and write asks the daemon
  kOpenKeepCache = 1u << 1,  ///< do not drop cached pages on this open (not with passthrough)
  kOpenNonSeekable = 1u << 2,
  kOpenCacheDir = 1u << 3,              ///< opendir: the kernel may cache the listing
  kOpenNoFlush = 1u << 5,               ///< close sends no FLUSH
  kOpenParallelDirectWrites = 1u << 6,  ///< with kOpenDirectIo: writes of one file run in parallel
  kOpenPassthrough = 1u << 7,  ///< set from `backing_id` by the reply; do not set it yourself
};

struct OpenResult {
  std::uint64_t fh = 0;     ///< comes back with every request on this open file; never a pointer
  std::uint32_t flags = 0;  ///< OpenFlags
  /// Above 0: passthrough to this backing (FuseSession::open_backing). May be combined with
  /// kOpenDirectIo (the daemon sees reads and writes, mmap goes to the backing).
  std::int32_t backing_id = 0;
};

/// One name of a directory listing. `cookie` is where a later readdir goes on *after* this entry
/// (the `offset` it will be given); never 0. `type_mode` holds the S_IFMT bits (0: unknown).
struct DirEntry {
  std::string_view name;
  std::uint64_t ino = 0;
  mode_t type_mode = 0;
  std::uint64_t cookie = 0;
};

/// What every answer has in common.
class Reply {
 public:
  Reply(Reply&& other) noexcept;
  Reply& operator=(Reply&& other) noexcept;
  Reply(const Reply&) = delete;
  Reply& operator=(const Reply&) = delete;
  ~Reply();

  /// Fails the request with a positive errno value. ENOENT of a lookup is not cached by the kernel
  /// (answer a negative Entry for that).
  void error(int errno_value);
  void error(std::error_code code);

  /// `handler` is called once, on the request's loop (never inside this call), when the kernel says
  /// that the caller got a signal: also when it said so already. The handler should make the
  /// operation answer EINTR soon; it may answer and destroy this very Reply. It is dropped when the
  /// Reply answers. Setting it again replaces it. Call it on the request's loop.
  void on_interrupt(std::function<void()> handler);

  /// False when moved from or answered.
  explicit operator bool() const { return request_ != nullptr; }
  const char* operation() const { return operation_; }
  std::uint64_t unique() const { return unique_; }
  /// The loop that read the request: where a coroutine that serves it runs.
  unsigned loop() const { return loop_; }
  boost::asio::any_io_executor executor() const;

 protected:
  friend class SessionCore;
  friend class RequestDispatcher;
  Reply(std::shared_ptr<SessionCore> core, fuse_req* request, const char* operation,
        std::uint64_t unique, unsigned loop);

  bool on_loop() const;
  void abandon();
  // Defined and used in reply.cc alone.
  template <class Send>
  void finish(Send deliver);
  template <class Lost>
  void send(ByteView bytes, Lost lost);
  void send(ByteView bytes);

  std::shared_ptr<SessionCore> core_;
  fuse_req* request_ = nullptr;
  const char* operation_ = "";
  std::uint64_t unique_ = 0;
  unsigned loop_ = 0;
  bool has_interrupt_handler_ = false;
};

/// Success without a value: unlink, rmdir, rename, flush, release, fsync, setxattr, ...
class StatusReply : public Reply {
 public:
  void ok() { error(0); }

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

class EntryReply : public Reply {
 public:
  void entry(const Entry& entry);
  /// The name does not exist; the kernel may remember that for `timeout`.
  void absent(Timeout timeout);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

class AttrReply : public Reply {
 public:
  void attr(const struct stat& attr, Timeout timeout);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

class StatxReply : public Reply {
 public:
  void statx(const struct stat& attr, const timespec& btime, Timeout timeout);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

class ReadlinkReply : public Reply {
 public:
  void target(std::string_view target);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

/// open and opendir. If the caller was killed before the answer arrived, the kernel does not know
/// the handle and sends no release for it: the operation is told by Operations::open_abandoned().
class OpenReply : public Reply {
 public:
  void opened(const OpenResult& result);

 private:
  friend class RequestDispatcher;
  OpenReply(std::shared_ptr<SessionCore> core, fuse_req* request, const char* operation,
            std::uint64_t unique, unsigned loop, NodeHandle node)
      : Reply(std::move(core), request, operation, unique, loop), node_(node) {}
  NodeHandle node_;
};

class CreateReply : public Reply {
 public:
  void created(const Entry& entry, const OpenResult& result);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

class ReadReply : public Reply {
 public:
  /// At most what was asked for; fewer bytes mean end of file. Copied by the kernel before this
  /// returns (on the loop) or copied for the hand-over (elsewhere).
  void data(ByteView bytes);
  /// Reads `size_bytes` at `offset_bytes` of `fd` and answers with them. Blocks for the disk, so on
  /// a loop use it for what is surely in the page cache; a blocking-pool thread may call it freely.
  void file(int fd, std::uint64_t offset_bytes, std::size_t size_bytes);
  /// The same, but only if it needs no disk (RWF_NOWAIT): otherwise returns false, unanswered, and
  /// the caller goes to the blocking pool. Call it on the request's loop.
  [[nodiscard]] bool try_file(int fd, std::uint64_t offset_bytes, std::size_t size_bytes);

 private:
  /// On the loop: where the answer goes out from without a copy, or else scratch memory.
  std::byte* read_buffer(std::size_t size_bytes);
  friend class RequestDispatcher;
  using Reply::Reply;
};

class WriteReply : public Reply {
 public:
  /// write and copy_file_range: bytes taken.
  void written(std::size_t size_bytes);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

class StatfsReply : public Reply {
 public:
  void statfs(const struct statvfs& values);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

/// getxattr and listxattr. The caller's buffer size was given with the request: this answers the
/// size alone when it was 0, ERANGE when the value is longer, and the value otherwise.
class XattrReply : public Reply {
 public:
  void value(ByteView value);

 private:
  friend class RequestDispatcher;
  XattrReply(std::shared_ptr<SessionCore> core, fuse_req* request, const char* operation,
             std::uint64_t unique, unsigned loop, std::size_t size_max)
      : Reply(std::move(core), request, operation, unique, loop), size_max_(size_max) {}
  std::size_t size_max_;
};

/// readdir and readdirplus: entries are added until one does not fit, then done() sends them;
/// done() with nothing added is the end of the directory.
class DirReply : public Reply {
 public:
  /// True for readdirplus: add each entry with its Entry.
  bool plus() const { return plus_; }
  /// False when `entry` did not fit and was not added (its lookup is then not counted).
  [[nodiscard]] bool add(const DirEntry& entry);
  /// For readdirplus. `.` and `..` and names whose attributes are not at hand take an Entry with
  /// kNoNode: the kernel then learns the name and type only.
  [[nodiscard]] bool add(const DirEntry& entry, const Entry& attributes);
  void done();

 private:
  friend class RequestDispatcher;
  DirReply(std::shared_ptr<SessionCore> core, fuse_req* request, const char* operation,
           std::uint64_t unique, unsigned loop, std::size_t size_max, bool plus)
      : Reply(std::move(core), request, operation, unique, loop),
        size_max_(size_max),
        plus_(plus) {}
  char* reserve(std::size_t size);
  std::string buffer_;
  std::size_t size_max_;
  bool plus_;
};

class LseekReply : public Reply {
 public:
  void offset(std::uint64_t offset_bytes);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

class IoctlReply : public Reply {
 public:
  void result(int value, ByteView out);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

class LockReply : public Reply {
 public:
  /// The conflicting lock, or one with l_type F_UNLCK.
  void lock(const struct flock& lock);

 private:
  friend class RequestDispatcher;
  using Reply::Reply;
};

}  // namespace fermata::mountd
