// Random programs of filesystem calls, made from a seed.
//
// A program is a list of operations over a few names, a few descriptors per process and a few
// users, so that they meet: most calls find something there, and many fail in ways that a
// filesystem must get right. An operation does not depend on what the ones before it returned:
// any part of a program is a program, which is what lets a failing one be made small.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fermata::test::model {

enum class Call : std::uint8_t {
  kOpen,
  kClose,
  kDup,
  kRead,
  kPread,
  kWrite,
  kPwrite,
  kLseek,
  kFtruncate,
  kFallocate,
  kFsync,
  kFdatasync,
  kSyncFileRange,
  kMmapWrite,
  kMmapRead,
  kCopyFileRange,
  kFchmod,
  kFchown,
  kFutimens,
  kFlock,
  kSetLock,
  kGetLock,
  kTruncate,
  kStore,
  kLoad,
  kStat,
  kAccess,
  kMkdir,
  kRmdir,
  kUnlink,
  kRename,
  kRenameat2,
  kLink,
  kSymlink,
  kReadlink,
  kMknod,
  kChmod,
  kChown,
  kUtimens,
  kSetxattr,
  kGetxattr,
  kListxattr,
  kRemovexattr,
  kReaddir,
  kUmask,
  kBecome,
};

/// One call of one process. What the numbers mean depends on the call: see text().
struct Op {
  Call call{};
  int process = 0;
  int slot = 0;   ///< descriptor
  int slot2 = 0;  ///< the other descriptor of dup2 and copy_file_range
  std::string path;
  std::string path2;  ///< also an xattr's name, and a symlink's target
  std::int64_t a = 0;
  std::int64_t b = 0;
  std::int64_t c = 0;
};

inline constexpr int kSlots = 5;  ///< descriptors per process

struct Shape {
  int processes = 1;
  std::size_t ops = 400;
  /// Processes are on different mounts. Bytes are then written and read by calls that open, do it
  /// and close: what one closes is what the next one opens, and session semantics equal local ones.
  /// Descriptors that stay open serve locks, modes, owners and times.
  bool sessions = false;
};

std::vector<Op> make_program(std::uint64_t seed, const Shape& shape);

/// As it would stand in a C program, on one line.
std::string text(const Op& op);

/// The bytes that a write of `op` writes.
std::string payload(const Op& op, std::size_t size);

}  // namespace fermata::test::model
