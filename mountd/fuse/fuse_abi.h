// The parts of the kernel's FUSE protocol (include/uapi/linux/fuse.h, protocol 7.9 to 7.45) that we
// read or write ourselves, because libfuse 3.14 and Debian 12's headers do not know them.
//
// Only mountd/fuse includes this. Sizes are asserted: they are the kernel's.
#pragma once

#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>

namespace fermata::mountd::abi {

enum Opcode : std::uint32_t {
  kLookup = 1,
  kForget = 2,
  kGetattr = 3,
  kSetattr = 4,
  kOpen = 14,
  kRead = 15,
  kWrite = 16,
  kFsync = 20,
  kSetxattr = 21,
  kFlush = 25,
  kInit = 26,
  kOpendir = 27,
  kGetlk = 31,
  kSetlk = 32,
  kSetlkw = 33,
  kCreate = 35,
  kInterrupt = 36,
  kDestroy = 38,
  kNotifyReply = 41,  ///< to kNotifyRetrieve
  kBatchForget = 42,
  kTmpfile = 51,  ///< a CREATE whose name means nothing
  kStatx = 52,    ///< begins as a GETATTR does
};

struct InHeader {
  std::uint32_t size;
  std::uint32_t opcode;
  std::uint64_t unique;
  std::uint64_t node;
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint32_t pid;
  std::uint32_t extensions;
};
static_assert(sizeof(InHeader) == 40);

/// With unique 0 a notification, whose code is in `error`.
struct OutHeader {
  std::uint32_t size;
  std::int32_t error;
  std::uint64_t unique;
};
static_assert(sizeof(OutHeader) == 16);

// INIT flags, bits 0-31 in `flags`, 32-63 in `flags2` (valid when kInitExt is set).
inline constexpr std::uint64_t kAsyncRead = 1ull << 0;
inline constexpr std::uint64_t kAtomicOTrunc = 1ull << 3;
inline constexpr std::uint64_t kExportSupport = 1ull << 4;
inline constexpr std::uint64_t kBigWrites = 1ull << 5;
inline constexpr std::uint64_t kDontMask = 1ull << 6;
inline constexpr std::uint64_t kReaddirplusAuto = 1ull << 14;
inline constexpr std::uint64_t kAsyncDio = 1ull << 15;
inline constexpr std::uint64_t kParallelDirops = 1ull << 18;
inline constexpr std::uint64_t kPosixAcl = 1ull << 20;
inline constexpr std::uint64_t kCacheSymlinks = 1ull << 23;
inline constexpr std::uint64_t kExplicitInvalData = 1ull << 25;
inline constexpr std::uint64_t kHandleKillpriv = 1ull << 19;
inline constexpr std::uint64_t kHandleKillprivV2 = 1ull << 28;
inline constexpr std::uint64_t kSetxattrExt = 1ull << 29;
inline constexpr std::uint64_t kInitExt = 1ull << 30;
inline constexpr std::uint64_t kWritebackCache = 1ull << 16;
inline constexpr std::uint64_t kReaddirplus = 1ull << 13;
inline constexpr std::uint64_t kHasExpireOnly = 1ull << 35;
inline constexpr std::uint64_t kDirectIoAllowMmap = 1ull << 36;
inline constexpr std::uint64_t kPassthrough = 1ull << 37;
inline constexpr std::uint64_t kOverIoUring = 1ull << 41;  ///< kernel 6.14

struct InitIn {
  std::uint32_t major;
  std::uint32_t minor;
  std::uint32_t max_readahead;
  std::uint32_t flags;
  std::uint32_t flags2;
  std::uint32_t unused[11];
};
static_assert(sizeof(InitIn) == 64);

struct InitOut {
  std::uint32_t major;
  std::uint32_t minor;
  std::uint32_t max_readahead;
  std::uint32_t flags;
  std::uint16_t max_background;
  std::uint16_t congestion_threshold;
  std::uint32_t max_write;
  std::uint32_t time_granularity;
  std::uint16_t max_pages;
  std::uint16_t map_alignment;
  std::uint32_t flags2;
  std::uint32_t max_stack_depth;  ///< 1: the backing may be on a filesystem that is not stacked
  std::uint32_t unused[6];
};
static_assert(sizeof(InitOut) == 64);

struct OpenIn {
  std::uint32_t flags;
  std::uint32_t open_flags;
};
struct CreateIn {
  std::uint32_t flags;
  std::uint32_t mode;
  std::uint32_t umask;
  std::uint32_t open_flags;
};
inline constexpr std::uint32_t kOpenKillSuidgid = 1u << 0;

struct OpenOut {
  std::uint64_t fh;
  std::uint32_t open_flags;
  std::int32_t backing_id;
};
static_assert(sizeof(OpenOut) == 16);

struct SetattrIn {
  std::uint32_t valid;
  std::uint32_t padding;
};

struct WriteIn {
  std::uint64_t fh;
  std::uint64_t offset;
  std::uint32_t size;
  std::uint32_t write_flags;
  std::uint64_t lock_owner;
  std::uint32_t flags;
  std::uint32_t padding;
};
inline constexpr std::uint32_t kWriteKillSuidgid = 1u << 2;

/// Followed by the name and the value. Without kSetxattrExt the last two fields are not there.
struct SetxattrIn {
  std::uint32_t size;
  std::uint32_t flags;
  std::uint32_t setxattr_flags;
  std::uint32_t padding;
};
inline constexpr std::size_t kSetxattrExtBytes = 8;
inline constexpr std::uint32_t kSetxattrAclKillSgid = 1u << 0;

struct InterruptIn {
  std::uint64_t unique;
};

struct Attr {
  std::uint64_t ino;
  std::uint64_t size;
  std::uint64_t blocks;
  std::uint64_t atime;
  std::uint64_t mtime;
  std::uint64_t ctime;
  std::uint32_t atime_ns;
  std::uint32_t mtime_ns;
  std::uint32_t ctime_ns;
  std::uint32_t mode;
  std::uint32_t nlink;
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint32_t rdev;
  std::uint32_t block_size;
  std::uint32_t flags;
};
static_assert(sizeof(Attr) == 88);

struct EntryOut {
  std::uint64_t node;
  std::uint64_t generation;
  std::uint64_t entry_valid;
  std::uint64_t attr_valid;
  std::uint32_t entry_valid_ns;
  std::uint32_t attr_valid_ns;
  Attr attr;
};
static_assert(sizeof(EntryOut) == 128);

struct CreateOut {
  EntryOut entry;
  OpenOut open;
};

struct AttrOut {
  std::uint64_t attr_valid;
  std::uint32_t attr_valid_ns;
  std::uint32_t padding;
  Attr attr;
};
static_assert(sizeof(AttrOut) == 104);

struct StatxTime {
  std::int64_t seconds;
  std::uint32_t nanoseconds;
  std::int32_t reserved;
};
/// As struct statx of statx(2), `mask` included.
struct Statx {
  std::uint32_t mask;
  std::uint32_t block_size;
  std::uint64_t attributes;
  std::uint32_t nlink;
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint16_t mode;
  std::uint16_t reserved;
  std::uint64_t ino;
  std::uint64_t size;
  std::uint64_t blocks;
  std::uint64_t attributes_mask;
  StatxTime atime;
  StatxTime btime;
  StatxTime ctime;
  StatxTime mtime;
  std::uint32_t rdev_major;
  std::uint32_t rdev_minor;
  std::uint32_t dev_major;
  std::uint32_t dev_minor;
  std::uint64_t reserved2[14];
};
static_assert(sizeof(Statx) == 256);

struct StatxOut {
  std::uint64_t attr_valid;
  std::uint32_t attr_valid_ns;
  std::uint32_t flags;
  std::uint64_t reserved[2];
  Statx stat;
};
static_assert(sizeof(StatxOut) == 288);

/// Followed by the name, padded to 8 bytes.
struct Dirent {
  std::uint64_t ino;
  std::uint64_t cookie;
  std::uint32_t name_size;
  std::uint32_t type;
};
static_assert(sizeof(Dirent) == 24);

// Notifications.
enum Notify : std::int32_t {
  kNotifyInvalInode = 2,
  kNotifyInvalEntry = 3,
  kNotifyRetrieve = 5,  ///< asks for cached pages, which come with a kNotifyReply
  kNotifyDelete = 6,
  kNotifyIncEpoch = 8,  ///< kernel 6.16
};

struct NotifyInvalInode {
  std::uint64_t node;
  std::int64_t offset;
  std::int64_t size;
};
struct NotifyInvalEntry {
  std::uint64_t parent;
  std::uint32_t name_size;
  std::uint32_t flags;
};
inline constexpr std::uint32_t kExpireOnly = 1u << 0;
struct NotifyDelete {
  std::uint64_t parent;
  std::uint64_t child;
  std::uint32_t name_size;
  std::uint32_t padding;
};
struct NotifyRetrieve {
  std::uint64_t unique;  ///< of the request that will come
  std::uint64_t node;
  std::uint64_t offset;
  std::uint32_t size;
  std::uint32_t padding;
};

// Device ioctls.
struct BackingMap {
  std::int32_t fd;
  std::uint32_t flags;
  std::uint64_t padding;
};
static_assert(sizeof(BackingMap) == 16);
inline constexpr unsigned long kIoctlClone = _IOR(229, 0, std::uint32_t);
inline constexpr unsigned long kIoctlBackingOpen = _IOW(229, 1, BackingMap);
inline constexpr unsigned long kIoctlBackingClose = _IOW(229, 2, std::uint32_t);

// FUSE over io_uring.
enum UringCommandCode : std::uint32_t {
  kUringRegister = 1,        ///< an entry that has never been with the kernel
  kUringCommitAndFetch = 2,  ///< an answer; the entry waits for the next request
};

/// The 80 bytes of command in a 128-byte submission entry begin with this.
struct UringCommand {
  std::uint64_t flags;
  std::uint64_t commit_id;  ///< of the request that is answered
  std::uint16_t queue;
  std::uint8_t padding[6];
};
static_assert(sizeof(UringCommand) == 24);

/// What an entry shares with the kernel beside the payload. `message` is the InHeader of a request,
/// then the OutHeader of its answer; `operation` the first fixed part of a request.
struct UringHeader {
  std::byte message[128];
  std::byte operation[128];
  std::uint64_t flags;
  std::uint64_t commit_id;
  std::uint32_t payload_size;
  std::uint32_t padding;
  std::uint64_t reserved;
};
static_assert(sizeof(UringHeader) == 288);

}  // namespace fermata::mountd::abi
