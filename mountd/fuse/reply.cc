#define FUSE_USE_VERSION 314
#include "mountd/fuse/reply.h"

#include <fuse_lowlevel.h>
#include <spdlog/spdlog.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <utility>
#include <vector>

#include "common/base/assert.h"
#include "common/base/errc.h"
#include "mountd/fuse/session_core.h"

namespace fermata::mountd {
namespace {

template <class T>
ByteView view_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

void put_timeout(Timeout timeout, std::uint64_t& seconds, std::uint32_t& nanoseconds) {
  const auto count = std::max<std::int64_t>(0, timeout.count());
  seconds = static_cast<std::uint64_t>(count / 1'000'000'000);
  nanoseconds = static_cast<std::uint32_t>(count % 1'000'000'000);
}

abi::Attr to_abi(const struct stat& from) {
  abi::Attr to{};
  to.ino = from.st_ino;
  to.size = static_cast<std::uint64_t>(from.st_size);
  to.blocks = static_cast<std::uint64_t>(from.st_blocks);
  to.atime = static_cast<std::uint64_t>(from.st_atim.tv_sec);
  to.mtime = static_cast<std::uint64_t>(from.st_mtim.tv_sec);
  to.ctime = static_cast<std::uint64_t>(from.st_ctim.tv_sec);
  to.atime_ns = static_cast<std::uint32_t>(from.st_atim.tv_nsec);
  to.mtime_ns = static_cast<std::uint32_t>(from.st_mtim.tv_nsec);
  to.ctime_ns = static_cast<std::uint32_t>(from.st_ctim.tv_nsec);
  to.mode = from.st_mode;
  to.nlink = static_cast<std::uint32_t>(from.st_nlink);
  to.uid = from.st_uid;
  to.gid = from.st_gid;
  to.rdev = static_cast<std::uint32_t>(from.st_rdev);
  to.block_size = static_cast<std::uint32_t>(from.st_blksize);
  return to;
}

abi::StatxTime to_abi(const timespec& from) {
  return {from.tv_sec, static_cast<std::uint32_t>(from.tv_nsec), 0};
}

abi::Statx to_abi(const struct stat& from, const timespec& btime) {
  abi::Statx to{};
  to.mask = STATX_BASIC_STATS | STATX_BTIME;
  to.block_size = static_cast<std::uint32_t>(from.st_blksize);
  to.nlink = static_cast<std::uint32_t>(from.st_nlink);
  to.uid = from.st_uid;
  to.gid = from.st_gid;
  to.mode = static_cast<std::uint16_t>(from.st_mode);
  to.ino = from.st_ino;
  to.size = static_cast<std::uint64_t>(from.st_size);
  to.blocks = static_cast<std::uint64_t>(from.st_blocks);
  to.atime = to_abi(from.st_atim);
  to.btime = to_abi(btime);
  to.ctime = to_abi(from.st_ctim);
  to.mtime = to_abi(from.st_mtim);
  to.rdev_major = major(from.st_rdev);
  to.rdev_minor = minor(from.st_rdev);
  return to;
}

abi::EntryOut to_abi(const Entry& from) {
  abi::EntryOut to{};
  to.node = static_cast<std::uint64_t>(from.node);
  to.generation = from.generation;
  put_timeout(from.entry_timeout, to.entry_valid, to.entry_valid_ns);
  put_timeout(from.attr_timeout, to.attr_valid, to.attr_valid_ns);
  to.attr = to_abi(from.attr);
  return to;
}

abi::OpenOut to_abi(const OpenResult& from) {
  abi::OpenOut to{};
  to.fh = from.fh;
  to.open_flags = from.flags & ~std::uint32_t{kOpenPassthrough};
  if (from.backing_id > 0) {
    to.open_flags |= kOpenPassthrough;
    to.open_flags &= ~std::uint32_t{kOpenKeepCache};  // together the kernel answers EIO
    to.backing_id = from.backing_id;
  }
  return to;
}

Bytes read_file(int fd, std::uint64_t offset_bytes, std::size_t size_bytes, int& error) {
  Bytes bytes(size_bytes);
  std::size_t done = 0;
  while (done < size_bytes) {
    const auto count = ::pread(fd, bytes.data() + done, size_bytes - done,
                               static_cast<off_t>(offset_bytes + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) error = errno;
    if (count <= 0) break;
    done += static_cast<std::size_t>(count);
  }
  bytes.resize(done);
  return bytes;
}

/// Where a loop reads file data before it goes to the kernel; grows to the largest READ seen.
std::byte* scratch(std::size_t size) {
  thread_local std::unique_ptr<std::byte[]> buffer;
  thread_local std::size_t capacity = 0;
  if (capacity < size) {
    buffer.reset(new std::byte[size]);
    capacity = size;
  }
  return buffer.get();
}

}  // namespace

Reply::Reply(std::shared_ptr<SessionCore> core, fuse_req* request, const char* operation,
             std::uint64_t unique, unsigned loop)
    : core_(std::move(core)),
      request_(request),
      operation_(operation),
      unique_(unique),
      loop_(loop) {}

Reply::Reply(Reply&& other) noexcept
    : core_(std::move(other.core_)),
      request_(std::exchange(other.request_, nullptr)),
      operation_(other.operation_),
      unique_(other.unique_),
      loop_(other.loop_),
      has_interrupt_handler_(std::exchange(other.has_interrupt_handler_, false)) {}

Reply& Reply::operator=(Reply&& other) noexcept {
  if (this == &other) return *this;
  abandon();
  core_ = std::move(other.core_);
  request_ = std::exchange(other.request_, nullptr);
  operation_ = other.operation_;
  unique_ = other.unique_;
  loop_ = other.loop_;
  has_interrupt_handler_ = std::exchange(other.has_interrupt_handler_, false);
  return *this;
}

Reply::~Reply() { abandon(); }

void Reply::abandon() {
  if (request_ == nullptr) return;
  if (!core_->closed()) {
    spdlog::error("fuse: {} (request {}) was dropped without an answer: the caller gets EIO",
                  operation_, unique_);
  }
  error(EIO);
}

bool Reply::on_loop() const { return core_->loops_.current() == loop_; }

boost::asio::any_io_executor Reply::executor() const {
  FM_ASSERT(core_);
  return core_->loops_.executor(loop_);
}

void Reply::on_interrupt(std::function<void()> handler) {
  FM_ASSERT(request_ != nullptr);
  has_interrupt_handler_ = true;
  core_->interrupts_.add(core_, unique_, loop_, std::move(handler));
}

// The request leaves this object; `deliver` gets it unless the session is over.
template <class Send>
void Reply::finish(Send deliver) {
  FM_ASSERT(request_ != nullptr);  // one answer
  if (core_->closed()) {
    if (has_interrupt_handler_) core_->interrupts_.remove(unique_);
    fuse_reply_none(std::exchange(request_, nullptr));  // frees it, writes nothing
    return;
  }
  if (!on_loop()) {
    auto executor = core_->loops_.executor(loop_);
    boost::asio::post(executor,
                      [reply = Reply(std::move(*this)), deliver = std::move(deliver)]() mutable {
                        reply.finish(std::move(deliver));
                      });
    return;
  }
  if (std::exchange(has_interrupt_handler_, false)) core_->interrupts_.remove(unique_);
  deliver(*core_, std::exchange(request_, nullptr));
}

/// `lost(core)` is told when the kernel no longer waited for the answer.
template <class Lost>
void Reply::send(ByteView bytes, Lost lost) {
  FM_ASSERT(request_ != nullptr);
  if (on_loop()) {
    finish([bytes, &lost](SessionCore& core, fuse_req* request) {
      if (fuse_reply_buf(request, reinterpret_cast<const char*>(bytes.data()), bytes.size()) ==
          -ENOENT) {
        lost(core);
      }
    });
    return;
  }
  finish([copy = Bytes(bytes.begin(), bytes.end()), lost](SessionCore& core, fuse_req* request) {
    if (fuse_reply_buf(request, reinterpret_cast<const char*>(copy.data()), copy.size()) ==
        -ENOENT) {
      lost(core);
    }
  });
}

void Reply::send(ByteView bytes) {
  send(bytes, [](SessionCore&) {});
}

void Reply::error(int errno_value) {
  FM_DASSERT(errno_value >= 0);
  finish([errno_value](SessionCore&, fuse_req* request) { fuse_reply_err(request, errno_value); });
}

void Reply::error(std::error_code code) {
  const int value = to_errno(code);
  error(value > 0 ? value : EIO);
}

void EntryReply::entry(const Entry& entry) {
  const auto out = to_abi(entry);
  send(view_of(out), [node = entry.node](SessionCore& core) {
    if (node != kNoNode) core.operations_.forget(node, 1);
  });
}

void EntryReply::absent(Timeout timeout) {
  if (timeout.count() <= 0) return error(ENOENT);
  Entry nothing;
  nothing.entry_timeout = timeout;
  entry(nothing);
}

void AttrReply::attr(const struct stat& attr, Timeout timeout) {
  abi::AttrOut out{};
  put_timeout(timeout, out.attr_valid, out.attr_valid_ns);
  out.attr = to_abi(attr);
  send(view_of(out));
}

void StatxReply::statx(const struct stat& attr, const timespec& btime, Timeout timeout) {
  abi::StatxOut out{};
  put_timeout(timeout, out.attr_valid, out.attr_valid_ns);
  out.stat = to_abi(attr, btime);
  send(view_of(out));
}

void ReadlinkReply::target(std::string_view target) { send(as_bytes(target)); }

void OpenReply::opened(const OpenResult& result) {
  const auto out = to_abi(result);
  send(view_of(out), [node = node_, fh = result.fh](SessionCore& core) {
    core.operations_.open_abandoned(node, fh, false);
  });
}

void CreateReply::created(const Entry& entry, const OpenResult& result) {
  const abi::CreateOut out{to_abi(entry), to_abi(result)};
  send(view_of(out), [node = entry.node, fh = result.fh](SessionCore& core) {
    core.operations_.open_abandoned(node, fh, true);
  });
}

void ReadReply::data(ByteView bytes) { send(bytes); }

std::byte* ReadReply::read_buffer(std::size_t size_bytes) {
  const auto place = core_->transport_->answer_buffer(loop_, unique_);
  return place.size() >= size_bytes ? place.data() : scratch(size_bytes);
}

void ReadReply::file(int fd, std::uint64_t offset_bytes, std::size_t size_bytes) {
  int failure = 0;
  if (!on_loop()) {
    const auto bytes = read_file(fd, offset_bytes, size_bytes, failure);
    return failure != 0 && bytes.empty() ? error(failure) : data(bytes);
  }
  auto* buffer = read_buffer(size_bytes);
  std::size_t done = 0;
  while (done < size_bytes) {
    const auto count =
        ::pread(fd, buffer + done, size_bytes - done, static_cast<off_t>(offset_bytes + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) failure = errno;
    if (count <= 0) break;
    done += static_cast<std::size_t>(count);
  }
  if (failure != 0 && done == 0) return error(failure);
  data({buffer, done});
}

bool ReadReply::try_file(int fd, std::uint64_t offset_bytes, std::size_t size_bytes) {
  FM_DASSERT(on_loop());
  iovec part{read_buffer(size_bytes), size_bytes};
  const auto count = ::preadv2(fd, &part, 1, static_cast<off_t>(offset_bytes), RWF_NOWAIT);
  if (count < 0)
    return false;  // EAGAIN: not cached; anything else: let the ordinary path report it
  if (static_cast<std::size_t>(count) < size_bytes) {
    // Short: the end of the file, or of what is cached.
    struct stat attr {};
    if (::fstat(fd, &attr) != 0) return false;
    if (offset_bytes + static_cast<std::uint64_t>(count) <
        static_cast<std::uint64_t>(attr.st_size)) {
      return false;
    }
  }
  data({static_cast<const std::byte*>(part.iov_base), static_cast<std::size_t>(count)});
  return true;
}

void WriteReply::written(std::size_t size_bytes) {
  finish([size_bytes](SessionCore&, fuse_req* request) { fuse_reply_write(request, size_bytes); });
}

void StatfsReply::statfs(const struct statvfs& values) {
  finish([values](SessionCore&, fuse_req* request) { fuse_reply_statfs(request, &values); });
}

void XattrReply::value(ByteView value) {
  if (size_max_ == 0) {
    finish([size = value.size()](SessionCore&, fuse_req* request) {
      fuse_reply_xattr(request, size);
    });
    return;
  }
  if (value.size() > size_max_) return error(ERANGE);
  send(value);
}

char* DirReply::reserve(std::size_t size) {
  const auto padded = (size + 7) & ~std::size_t{7};
  if (buffer_.size() + padded > size_max_) return nullptr;
  if (buffer_.capacity() == 0) buffer_.reserve(size_max_);
  const auto at = buffer_.size();
  buffer_.resize(at + padded);  // zeroes the padding
  return buffer_.data() + at;
}

bool DirReply::add(const DirEntry& entry) {
  if (plus_) {
    Entry nothing;
    nothing.attr.st_ino = entry.ino;
    nothing.attr.st_mode = entry.type_mode;
    return add(entry, nothing);
  }
  char* to = reserve(sizeof(abi::Dirent) + entry.name.size());
  if (to == nullptr) return false;
  const abi::Dirent dirent{entry.ino, entry.cookie, static_cast<std::uint32_t>(entry.name.size()),
                           (entry.type_mode & S_IFMT) >> 12};
  std::memcpy(to, &dirent, sizeof dirent);
  std::memcpy(to + sizeof dirent, entry.name.data(), entry.name.size());
  return true;
}

bool DirReply::add(const DirEntry& entry, const Entry& attributes) {
  if (!plus_) return add(entry);
  char* to = reserve(sizeof(abi::EntryOut) + sizeof(abi::Dirent) + entry.name.size());
  if (to == nullptr) return false;
  const auto out = to_abi(attributes);
  const abi::Dirent dirent{entry.ino, entry.cookie, static_cast<std::uint32_t>(entry.name.size()),
                           (entry.type_mode & S_IFMT) >> 12};
  std::memcpy(to, &out, sizeof out);
  std::memcpy(to + sizeof out, &dirent, sizeof dirent);
  std::memcpy(to + sizeof out + sizeof dirent, entry.name.data(), entry.name.size());
  return true;
}

void DirReply::done() { send(as_bytes(buffer_)); }

void LseekReply::offset(std::uint64_t offset_bytes) {
  finish([offset_bytes](SessionCore&, fuse_req* request) {
    fuse_reply_lseek(request, static_cast<off_t>(offset_bytes));
  });
}

void IoctlReply::result(int value, ByteView out) {
  finish([value, copy = Bytes(out.begin(), out.end())](SessionCore&, fuse_req* request) {
    fuse_reply_ioctl(request, value, copy.data(), copy.size());
  });
}

void LockReply::lock(const struct flock& lock) {
  finish([lock](SessionCore&, fuse_req* request) { fuse_reply_lock(request, &lock); });
}

}  // namespace fermata::mountd
