#define FUSE_USE_VERSION 314
#include "mountd/fuse/session_core.h"

#include <fuse_lowlevel.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <boost/asio/post.hpp>
#include <cerrno>
#include <future>

#include "common/base/assert.h"
#include "common/base/errc.h"
#include "mountd/fuse/caller.h"

namespace fermata::mountd {
namespace {

/// Whatever of these the kernel offers is agreed to; passthrough is decided apart.
constexpr std::uint64_t kWantedFlags = abi::kAsyncRead | abi::kAtomicOTrunc | abi::kExportSupport |
                                       abi::kBigWrites | abi::kReaddirplus | abi::kReaddirplusAuto |
                                       abi::kAsyncDio | abi::kParallelDirops | abi::kCacheSymlinks |
                                       abi::kExplicitInvalData | abi::kHandleKillprivV2;

/// libfuse 3.14 does not know TMPFILE and STATX. They begin as these do, which it decodes; the
/// dispatcher tells them apart by LoopState::opcode.
std::uint32_t opcode_for_libfuse(std::uint32_t opcode) {
  switch (opcode) {
    case abi::kTmpfile:
      return abi::kCreate;
    case abi::kStatx:
      return abi::kGetattr;
    default:
      return opcode;
  }
}

/// What ACLs take: to be obeyed, the umask where it belongs, and word of when setgid must go.
constexpr std::uint64_t kAclFlags = abi::kPosixAcl | abi::kDontMask | abi::kSetxattrExt;

}  // namespace

void InterruptTable::add(std::shared_ptr<SessionCore> core, std::uint64_t unique, unsigned loop,
                         std::function<void()> handler) {
  bool already = false;
  {
    MutexLock lock(mutex_);
    handlers_[unique] = {loop, std::move(handler)};
    already = early_.erase(unique) != 0;
  }
  if (already) {
    boost::asio::post(loops_.context(loop), [this, core, unique] { fire(unique); });
  }
}

void InterruptTable::remove(std::uint64_t unique) {
  std::function<void()> dropped;  // its captures are destroyed without the lock
  MutexLock lock(mutex_);
  const auto at = handlers_.find(unique);
  if (at == handlers_.end()) return;
  dropped.swap(at->second.run);
  handlers_.erase(at);
}

void InterruptTable::interrupt(std::shared_ptr<SessionCore> core, std::uint64_t unique) {
  MutexLock lock(mutex_);
  const auto at = handlers_.find(unique);
  if (at != handlers_.end()) {
    boost::asio::post(loops_.context(at->second.loop), [this, core, unique] { fire(unique); });
    return;
  }
  if (!early_.insert(unique).second) return;
  early_order_.push_back(unique);
  if (early_order_.size() > kEarlyMax) {
    early_.erase(early_order_.front());
    early_order_.pop_front();
  }
}

void InterruptTable::interrupt_all(std::shared_ptr<SessionCore> core) {
  MutexLock lock(mutex_);
  for (const auto& [unique, handler] : handlers_) {
    boost::asio::post(loops_.context(handler.loop),
                      [this, core, unique = unique] { fire(unique); });
  }
}

void InterruptTable::clear() {
  std::unordered_map<std::uint64_t, Handler> dropped;
  MutexLock lock(mutex_);
  dropped.swap(handlers_);
}

void InterruptTable::fire(std::uint64_t unique) {
  std::function<void()> run;
  {
    MutexLock lock(mutex_);
    const auto at = handlers_.find(unique);
    if (at == handlers_.end()) return;  // answered meanwhile
    run = std::move(at->second.run);
    handlers_.erase(at);
  }
  run();
}

SessionCore::SessionCore(MountOptions options, Loops& loops, Operations& operations)
    : options_(std::move(options)), loops_(loops), operations_(operations), interrupts_(loops) {
  for (unsigned loop = 0; loop < loops.count(); ++loop) {
    loop_states_.push_back(std::make_unique<LoopState>());
  }
}

SessionCore::~SessionCore() {
  if (libfuse_ != nullptr) fuse_session_destroy(libfuse_);
}

void SessionCore::process(unsigned loop, MutableByteView bytes) {
  auto& request = *reinterpret_cast<abi::InHeader*>(bytes.data());
  if (bytes.size() < sizeof request || request.size != bytes.size()) {
    spdlog::error("fuse: a request of {} bytes that calls itself {}", bytes.size(),
                  bytes.size() < sizeof request ? 0 : request.size);
    return;
  }
  switch (request.opcode) {
    case abi::kInterrupt:
      if (request.size >= sizeof request + sizeof(abi::InterruptIn)) {
        const auto* which = reinterpret_cast<const abi::InterruptIn*>(&request + 1);
        interrupts_.interrupt(shared_from_this(), which->unique);
      }
      return;  // has no answer
    case abi::kOpen:
    case abi::kOpendir:
    case abi::kCreate:
    case abi::kTmpfile:
      // Our own thread would wait for itself, and no signal could end that.
      if (!options_.allow_own_process &&
          is_own_thread(state(loop), static_cast<pid_t>(request.pid))) {
        refuse(loop, request, EDEADLK);
        return;
      }
      break;
    default:
      break;
  }
  auto& here = state(loop);
  FM_DASSERT(here.request == nullptr);
  const auto opcode = request.opcode;
  const auto unique = request.unique;
  const auto caller = static_cast<pid_t>(request.pid);
  request.opcode = opcode_for_libfuse(opcode);
  here.opcode = opcode;
  if (opcode == abi::kSetxattr && acls_) bytes = without_extension(here, bytes);
  here.request = reinterpret_cast<const abi::InHeader*>(bytes.data());
  here.answered = false;
  here.operation = "request";
  fuse_buf buffer{};
  buffer.mem = bytes.data();
  buffer.size = bytes.size();
  fuse_session_process_buf(libfuse_, &buffer);
  here.request = nullptr;
  const bool has_answer = opcode != abi::kForget && opcode != abi::kBatchForget;
  if (has_answer && !here.answered) {
    here.waiting[unique] = {here.operation, std::chrono::steady_clock::now(), caller};
    waiting_count_.fetch_add(1, std::memory_order_relaxed);
    if (transport_->over_ring() && !here.looks) look_later(loop, {});
  }
}

// Asking costs two system calls, and it is mostly the same stranger. The number of a thread that
// has ended comes up again only after all the others have.
bool SessionCore::is_own_thread(LoopState& here, pid_t thread) const {
  constexpr unsigned kRemembered = 1000;  // opens
  if (thread == 0) return false;
  if (thread == here.stranger && here.stranger_opens < kRemembered) {
    ++here.stranger_opens;
    return false;
  }
  if (::tgkill(::getpid(), thread, 0) == 0) return true;
  here.stranger = thread;
  here.stranger_opens = 0;
  return false;
}

// Over io_uring the kernel sends no INTERRUPT for a signal that comes while a request is on its way
// to us (it notes that the request was sent, and looks at no signal afterwards). So we look.
void SessionCore::look_later(unsigned loop, std::chrono::steady_clock::duration last_took) {
  constexpr std::chrono::steady_clock::duration kLookEvery = std::chrono::milliseconds(200);
  constexpr int kShare = 50;  // of its time a loop may spend on it: one part in so many
  auto& here = state(loop);
  here.looks = true;
  if (!here.look) here.look = std::make_unique<boost::asio::steady_timer>(loops_.context(loop));
  here.look->expires_after(std::max(kLookEvery, last_took * kShare));
  here.look->async_wait([weak = weak_from_this(), loop](const boost::system::error_code& error) {
    const auto self = weak.lock();
    if (self && !error) self->look_at_signals(loop);
  });
}

void SessionCore::look_at_signals(unsigned loop) {
  constexpr auto kAgeMin = std::chrono::milliseconds(100);
  auto& here = state(loop);
  here.looks = false;
  if (closed() || here.waiting.empty()) return;
  const auto now = std::chrono::steady_clock::now();
  std::vector<std::uint64_t> signalled;
  for (const auto& [unique, waiting] : here.waiting) {
    if (now - waiting.since >= kAgeMin && has_signal(waiting.caller)) signalled.push_back(unique);
  }
  for (const auto unique : signalled) interrupts_.fire(unique);
  look_later(loop, std::chrono::steady_clock::now() - now);
}

MutableByteView SessionCore::without_extension(LoopState& here, MutableByteView request) const {
  abi::InHeader header{};
  abi::SetxattrIn fixed{};
  here.kill_sgid = false;
  if (request.size() < sizeof header + sizeof fixed) return request;
  std::memcpy(&header, request.data(), sizeof header);
  std::memcpy(&fixed, request.data() + sizeof header, sizeof fixed);
  here.kill_sgid = (fixed.setxattr_flags & abi::kSetxattrAclKillSgid) != 0;
  const auto shorter = request.subspan(abi::kSetxattrExtBytes);
  header.size -= static_cast<std::uint32_t>(abi::kSetxattrExtBytes);
  std::memcpy(shorter.data(), &header, sizeof header);
  std::memcpy(shorter.data() + sizeof header, &fixed, sizeof fixed - abi::kSetxattrExtBytes);
  return shorter;
}

void SessionCore::refuse(unsigned loop, const abi::InHeader& request, int errno_value) {
  spdlog::critical("fuse: the daemon's thread {} opened a file on its own mount {}", request.pid,
                   mount_point_);
  abi::OutHeader header{sizeof header, -errno_value, request.unique};
  const iovec part{&header, sizeof header};
  transport_->reply(loop, &part, 1);
  FM_DASSERT(!"the daemon must not use its own mount");
}

ssize_t SessionCore::write_reply(const iovec* parts, int count) {
  const auto loop = loops_.current();
  FM_ASSERT(loop);
  const auto unique = static_cast<const abi::OutHeader*>(parts[0].iov_base)->unique;
  auto& here = state(*loop);
  if (here.request != nullptr && here.request->unique == unique) {
    here.answered = true;
    if (here.request->opcode == abi::kInit) return write_init_reply(parts, count);
  } else if (here.waiting.erase(unique) != 0) {
    waiting_count_.fetch_sub(1, std::memory_order_relaxed);
  }
  return transport_->reply(*loop, parts, count);
}

ssize_t SessionCore::write_init_reply(const iovec* parts, int count) {
  const auto& request = *state().request;
  const auto* header = static_cast<const abi::OutHeader*>(parts[0].iov_base);
  abi::InitIn in{};
  std::memcpy(&in, &request + 1, std::min<std::size_t>(sizeof in, request.size - sizeof request));
  if (header->error != 0 || count != 2 || parts[1].iov_len != sizeof(abi::InitOut)) {
    // An error, or the first half of a version negotiation.
    return transport_->reply(*loops_.current(), parts, count);
  }
  abi::InitOut out{};
  std::memcpy(&out, parts[1].iov_base, sizeof out);
  auto flags = (std::uint64_t{out.flags2} << 32) | out.flags;
  flags &= ~(abi::kWritebackCache | abi::kHandleKillpriv);
  // libfuse 3.14 does not pass on all that we want of it (seen: PARALLEL_DIROPS), and has no
  // HANDLE_KILLPRIV_V2.
  const auto asked_of_libfuse = flags;
  flags |= offered_flags_ & kWantedFlags;
  if (acls_) flags |= kAclFlags;
  spdlog::debug("fuse: flags that libfuse left out: {:#x}", flags & ~asked_of_libfuse);
  if (offered(abi::kInitExt)) {
    flags |= abi::kInitExt;
    if (offered(abi::kDirectIoAllowMmap)) flags |= abi::kDirectIoAllowMmap;
    if (want_passthrough_) {
      flags |= abi::kPassthrough;
      out.max_stack_depth = 1;
    }
  }
  out.flags = static_cast<std::uint32_t>(flags);
  out.flags2 = static_cast<std::uint32_t>(flags >> 32);
  transport_->before_init_reply(in, out);
  const iovec patched[2] = {parts[0], {&out, sizeof out}};
  const auto size = transport_->reply(*loops_.current(), patched, 2);
  if (size > 0) {
    transport_->after_init_reply();
    spdlog::debug("fuse: protocol 7.{}, flags {:#x}, max_write {}", in.minor, flags, out.max_write);
    set_initialized();
  }
  return size;
}

ConnectionInfo SessionCore::negotiate(std::uint32_t write_size_max) {
  const auto& request = *state().request;
  abi::InitIn in{};
  std::memcpy(&in, &request + 1, std::min<std::size_t>(sizeof in, request.size - sizeof request));
  offered_flags_ = in.flags;
  if ((in.flags & abi::kInitExt) != 0) offered_flags_ |= std::uint64_t{in.flags2} << 32;
  want_passthrough_ = options_.passthrough && privileged_ && offered(abi::kPassthrough);
  acls_ = operations_.wants_acls() && offered(kAclFlags);
  ConnectionInfo info;
  info.protocol_minor = in.minor;
  info.write_size_max = write_size_max;
  info.passthrough = want_passthrough_;
  info.acls = acls_;
  info.kill_privileges = offered(abi::kHandleKillprivV2);
  info.readdirplus = offered(abi::kReaddirplus);
  info.expire_only = offered(abi::kHasExpireOnly);
  return info;
}

Result<bool> SessionCore::notify(std::int32_t code, ByteView fixed, std::string_view name) {
  if (closed()) return true;
  const auto size = sizeof(abi::OutHeader) + fixed.size() + (name.empty() ? 0 : name.size() + 1);
  abi::OutHeader header{static_cast<std::uint32_t>(size), code, 0};
  std::string terminated(name);
  iovec parts[3] = {{&header, sizeof header},
                    {const_cast<std::byte*>(fixed.data()), fixed.size()},
                    {terminated.data(), terminated.size() + 1}};
  const int count = !name.empty() ? 3 : !fixed.empty() ? 2 : 1;
  if (::writev(transport_->control_fd(), parts, count) >= 0) return true;
  const int failure = errno;
  if (failure == ENOENT) return false;
  // The mount is gone, and its cache with it.
  if (failure == ENODEV || failure == ENOTCONN) return true;
  return from_errno(failure);
}

void SessionCore::on_every_loop(const std::function<void(unsigned)>& task) {
  FM_ASSERT(!loops_.current());
  for (unsigned loop = 0; loop < loops_.count(); ++loop) {
    std::promise<void> done;
    boost::asio::post(loops_.context(loop), [&task, &done, loop] {
      task(loop);
      done.set_value();
    });
    done.get_future().wait();
  }
}

void SessionCore::set_initialized() {
  {
    std::lock_guard lock(state_mutex_);
    initialized_ = true;
  }
  state_changed_.notify_all();
}

void SessionCore::set_ended() {
  {
    std::lock_guard lock(state_mutex_);
    ended_ = true;
  }
  state_changed_.notify_all();
}

void SessionCore::connection_lost(std::error_code why) {
  {
    std::lock_guard lock(state_mutex_);
    if (ended_ || stopping_) return;
    ended_ = true;
  }
  spdlog::info("fuse: {} was unmounted or its connection aborted ({})", mount_point_,
               why.message());
  state_changed_.notify_all();
}

}  // namespace fermata::mountd
