#define FUSE_USE_VERSION 314
#include "mountd/fuse/fuse_session.h"

#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <future>

#include "common/base/assert.h"
#include "common/base/errc.h"
#include "mountd/fuse/fuse_mount.h"
#include "mountd/fuse/session_core.h"
#include "mountd/fuse/transport_dev.h"
#include "mountd/fuse/transport_uring.h"

namespace fermata::mountd {
namespace {

constexpr std::chrono::seconds kInitPatience{10};
constexpr unsigned kReaderCountDefault = 4;

/// The descriptor of a fresh mount, with libfuse's session made for it; below 0: `error` is filled.
int make_mount(SessionCore& core, MountError& error) {
  std::vector<std::string> libfuse_options;
  if (!core.privileged_) {
    libfuse_options = {"-o", fusermount_options(core.options_)};
  }
  core.libfuse_ = new_libfuse_session(core, libfuse_options);
  if (core.libfuse_ == nullptr) {
    error = {from_errno(EINVAL), "libfuse refuses the mount options"};
    return -1;
  }
  int device = -1;
  if (core.privileged_) {
    device = mount_as_root(core.options_, core.mount_point_, error);
  } else if (fuse_session_mount(core.libfuse_, core.mount_point_.c_str()) == 0) {
    device = fuse_session_fd(core.libfuse_);
  } else {
    error = {from_errno(EPERM), "fusermount3 could not mount on " + core.mount_point_ +
                                    " (is it installed, and the directory yours?)"};
  }
  if (device < 0) return -1;
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  const int attached = null < 0 ? -errno : attach_libfuse_io(core.libfuse_, null);
  if (attached != 0) {
    error = {from_errno(-attached), "libfuse does not take our reading and writing"};
    ::close(device);
    return -1;
  }
  return device;
}

/// Passthrough was agreed on; does it work for this process?
bool backing_works(int control_fd) {
  const int fd = ::memfd_create("fermata-backing-test", MFD_CLOEXEC);
  if (fd < 0) return false;
  abi::BackingMap map{fd, 0, 0};
  const int id = ::ioctl(control_fd, abi::kIoctlBackingOpen, &map);
  ::close(fd);
  if (id <= 0) return false;
  auto number = static_cast<std::uint32_t>(id);
  ::ioctl(control_fd, abi::kIoctlBackingClose, &number);
  return true;
}

Result<std::shared_ptr<Transport>> make_transport(SessionCore& core, int device, bool over_ring) {
  auto readers = core.options_.reader_count;
  if (readers == 0) readers = kReaderCountDefault;
  readers = std::min(readers, core.loops_.count());
  if (over_ring) {
    FM_TRY(auto uring, UringTransport::create(device, core.loops_, readers, core, kRequestSizeMax));
    return std::shared_ptr<Transport>(std::move(uring));
  }
  FM_TRY(auto dev, DevTransport::create(device, core.loops_, readers, core, kRequestSizeMax));
  return std::shared_ptr<Transport>(std::move(dev));
}

MountError no_io_uring(const std::string& why) {
  return {from_errno(EOPNOTSUPP), "io_uring=on is not possible: " + why};
}

void tear_down(SessionCore& core) {
  if (const auto status = detach_mount(core.mount_point_, core.device_number_); !status) {
    spdlog::error("fuse: cannot unmount {}: {}; run 'umount -l {}'", core.mount_point_,
                  status.error().message(), core.mount_point_);
  }
}

/// Answers what nobody answered, so that the callers go on. On the requests' loop.
void fail_waiting(SessionCore& core, unsigned loop) {
  for (const auto& [unique, waiting] : core.state(loop).waiting) {
    spdlog::warn("fuse: {} (request {}) was in flight at the end: its caller gets EIO",
                 waiting.operation, unique);
    abi::OutHeader header{sizeof header, -EIO, unique};
    const iovec part{&header, sizeof header};
    core.transport_->reply(loop, &part, 1);
  }
  core.waiting_count_.fetch_sub(static_cast<std::int64_t>(core.state(loop).waiting.size()));
  core.state(loop).waiting.clear();
}

bool wait_until_answered(SessionCore& core, std::chrono::steady_clock::time_point deadline) {
  while (core.waiting_count_.load() > 0) {
    if (std::chrono::steady_clock::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace

std::unique_ptr<FuseSession> FuseSession::mount(const MountOptions& options, Loops& loops,
                                                Operations& operations, MountError& error) {
  const auto path = check_mount_point(options, error);
  if (path.empty()) return nullptr;
  const bool wants_ring = options.io_uring != IoUring::kOff;
  std::string why_no_ring = wants_ring ? UringTransport::why_unavailable() : "io_uring=off";
  const bool tries_ring = why_no_ring.empty();
  if (options.io_uring == IoUring::kOn && !tries_ring) {
    error = no_io_uring(why_no_ring);
    return nullptr;
  }
  auto core = std::make_shared<SessionCore>(options, loops, operations);
  core->mount_point_ = path;
  core->privileged_ = has_admin_capability();
  const int device = make_mount(*core, error);
  if (device < 0) return nullptr;
  if (const auto mounted = find_mount(path)) core->device_number_ = mounted->device_number;

  auto transport = make_transport(*core, device, tries_ring);
  if (!transport) {
    error = {transport.error(), "cannot prepare /dev/fuse: " + transport.error().message()};
    tear_down(*core);
    return nullptr;
  }
  core->transport_ = *transport;
  // From here on the destructor's stop() cleans up.
  std::unique_ptr<FuseSession> session(new FuseSession(core));
  if (const auto started = core->transport_->start(); !started) {
    error = {started.error(), "cannot read /dev/fuse: " + started.error().message()};
    return nullptr;
  }
  {
    std::unique_lock lock(core->state_mutex_);
    core->state_changed_.wait_for(lock, kInitPatience,
                                  [&] { return core->initialized_ || core->ended_; });
    if (!core->initialized_ || core->ended_) {
      error = {from_errno(EPROTO), "the kernel did not start the FUSE protocol on " + path};
      lock.unlock();
      return nullptr;
    }
  }
  if (tries_ring) why_no_ring = core->transport_->settle();
  const bool over_ring = core->transport_->over_ring();
  if (options.io_uring == IoUring::kOn && !over_ring) {
    error = no_io_uring(why_no_ring);
    return nullptr;
  }
  core->has_passthrough_ = core->want_passthrough_ && backing_works(core->transport_->control_fd());
  core->has_epoch_ = static_cast<bool>(core->notify(abi::kNotifyIncEpoch, {}, {}));
  if (!over_ring) spdlog::info("fuse: requests come over /dev/fuse, not io_uring: {}", why_no_ring);
  spdlog::info("fuse: mounted {} on {} (passthrough {}, epoch {}, io_uring {})", options.fs_name,
               path, core->has_passthrough_ ? "on" : "off", core->has_epoch_ ? "on" : "off",
               over_ring ? "on" : "off");
  return session;
}

FuseSession::FuseSession(std::shared_ptr<SessionCore> core) : core_(std::move(core)) {}

FuseSession::~FuseSession() { stop(); }

void FuseSession::wait() {
  std::unique_lock lock(core_->state_mutex_);
  core_->state_changed_.wait(lock, [&] { return core_->ended_; });
}

bool FuseSession::wait_for(std::chrono::milliseconds timeout) {
  std::unique_lock lock(core_->state_mutex_);
  return core_->state_changed_.wait_for(lock, timeout, [&] { return core_->ended_; });
}

bool FuseSession::ended() const {
  std::lock_guard lock(core_->state_mutex_);
  return core_->ended_;
}

void FuseSession::stop(std::chrono::milliseconds deadline) {
  FM_ASSERT(!core_->loops_.current());
  std::lock_guard one_at_a_time(core_->stop_mutex_);
  if (std::exchange(core_->stopped_, true)) return;
  auto& core = *core_;
  {
    std::lock_guard lock(core.state_mutex_);
    core.stopping_ = true;
  }
  tear_down(core);
  core.transport_->stop_reading();
  const auto end = std::chrono::steady_clock::now() + deadline;
  if (!wait_until_answered(core, end)) {
    core.interrupts_.interrupt_all(core_);
    if (!wait_until_answered(core, end + deadline / 10)) {
      core.on_every_loop([&core](unsigned loop) { fail_waiting(core, loop); });
    }
  }
  core.closed_.store(true, std::memory_order_release);
  core.transport_->close();
  core.interrupts_.clear();
  // An answer that did not see `closed_` is through after this.
  core.on_every_loop([&core](unsigned loop) { core.state(loop).look.reset(); });
  core.operations_.destroy();
  core.set_ended();
}

bool FuseSession::has_passthrough() const { return core_->has_passthrough_; }
bool FuseSession::has_epoch() const { return core_->has_epoch_; }
bool FuseSession::has_expire_only() const { return core_->offered(abi::kHasExpireOnly); }
bool FuseSession::has_io_uring() const { return core_->transport_->over_ring(); }

FuseSession::RequestCounts FuseSession::request_counts() const {
  const auto counts = core_->transport_->counters();
  return {counts.device_request_count, counts.ring_request_count};
}

std::uint64_t FuseSession::device_number() const { return core_->device_number_; }

Result<std::int32_t> FuseSession::open_backing(int fd) {
  if (!core_->has_passthrough_) return std::errc::operation_not_permitted;
  if (core_->closed()) return Errc::kShuttingDown;
  abi::BackingMap map{fd, 0, 0};
  const int id = ::ioctl(core_->transport_->control_fd(), abi::kIoctlBackingOpen, &map);
  if (id < 0) return last_errno();
  return std::int32_t{id};
}

Status FuseSession::close_backing(std::int32_t id) {
  if (core_->closed()) return {};
  auto number = static_cast<std::uint32_t>(id);
  if (::ioctl(core_->transport_->control_fd(), abi::kIoctlBackingClose, &number) != 0) {
    return last_errno();
  }
  return {};
}

namespace {

template <class T>
ByteView fixed_part(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

abi::NotifyInvalEntry entry_notice(NodeHandle parent, std::string_view name, std::uint32_t flags) {
  return {static_cast<std::uint64_t>(parent), static_cast<std::uint32_t>(name.size()), flags};
}

}  // namespace

Status FuseSession::expire_entry(NodeHandle parent, std::string_view name) {
  // Without the flag's support the kernel would refuse or drop the dentry: the older, harder way.
  const auto flags = has_expire_only() ? abi::kExpireOnly : 0;
  FM_CHECK(
      core_->notify(abi::kNotifyInvalEntry, fixed_part(entry_notice(parent, name, flags)), name));
  return {};
}

Status FuseSession::invalidate_entry(NodeHandle parent, std::string_view name) {
  FM_CHECK(core_->notify(abi::kNotifyInvalEntry, fixed_part(entry_notice(parent, name, 0)), name));
  return {};
}

Status FuseSession::delete_entry(NodeHandle parent, NodeHandle child, std::string_view name) {
  const abi::NotifyDelete notice{static_cast<std::uint64_t>(parent),
                                 static_cast<std::uint64_t>(child),
                                 static_cast<std::uint32_t>(name.size()), 0};
  FM_CHECK(core_->notify(abi::kNotifyDelete, fixed_part(notice), name));
  return {};
}

Result<bool> FuseSession::invalidate_inode(NodeHandle node, std::int64_t offset_bytes,
                                           std::int64_t size_bytes) {
  const abi::NotifyInvalInode notice{static_cast<std::uint64_t>(node), offset_bytes, size_bytes};
  return core_->notify(abi::kNotifyInvalInode, fixed_part(notice), {});
}

Status FuseSession::invalidate_all_entries() {
  if (!core_->has_epoch_) return std::errc::operation_not_supported;
  FM_CHECK(core_->notify(abi::kNotifyIncEpoch, {}, {}));
  return {};
}

std::vector<FuseSession::Pending> FuseSession::pending() const {
  std::vector<Pending> all;
  const auto now = std::chrono::steady_clock::now();
  core_->on_every_loop([&](unsigned loop) {
    for (const auto& [unique, waiting] : core_->state(loop).waiting) {
      all.push_back({waiting.operation, unique,
                     std::chrono::duration_cast<std::chrono::milliseconds>(now - waiting.since)});
    }
  });
  return all;
}

}  // namespace fermata::mountd
