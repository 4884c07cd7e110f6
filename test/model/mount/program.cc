#include "test/model/mount/program.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <iterator>
#include <random>

namespace fermata::test::model {
namespace {

class Dice {
 public:
  explicit Dice(std::uint64_t seed) : engine_(seed) {}
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(n));
  }
  bool one_in(std::int64_t n) { return below(n) == 0; }
  template <typename T, std::size_t N>
  const T& of(const T (&from)[N]) {
    return from[below(static_cast<std::int64_t>(N))];
  }

 private:
  std::mt19937_64 engine_;
};

struct Weight {
  Call call;
  int weight;
};
constexpr Weight kWeights[] = {
    {Call::kOpen, 90},         {Call::kClose, 50},     {Call::kDup, 6},
    {Call::kRead, 15},         {Call::kPread, 20},     {Call::kWrite, 35},
    {Call::kPwrite, 30},       {Call::kLseek, 15},     {Call::kFtruncate, 14},
    {Call::kFallocate, 14},    {Call::kFsync, 8},      {Call::kFdatasync, 4},
    {Call::kSyncFileRange, 2}, {Call::kMmapWrite, 10}, {Call::kMmapRead, 6},
    {Call::kCopyFileRange, 8}, {Call::kFchmod, 6},     {Call::kFchown, 5},
    {Call::kFutimens, 6},      {Call::kFlock, 8},      {Call::kSetLock, 14},
    {Call::kGetLock, 5},       {Call::kTruncate, 14},  {Call::kStat, 20},
    {Call::kStore, 30},        {Call::kLoad, 16},      {Call::kAccess, 8},
    {Call::kMkdir, 22},        {Call::kRmdir, 14},     {Call::kUnlink, 24},
    {Call::kRename, 26},       {Call::kRenameat2, 14}, {Call::kLink, 16},
    {Call::kSymlink, 12},      {Call::kReadlink, 5},   {Call::kMknod, 6},
    {Call::kChmod, 16},        {Call::kChown, 12},     {Call::kUtimens, 12},
    {Call::kSetxattr, 12},     {Call::kGetxattr, 8},   {Call::kListxattr, 5},
    {Call::kRemovexattr, 5},   {Call::kReaddir, 12},   {Call::kUmask, 3},
    {Call::kBecome, 8},
};

// With several mounts: moves bytes through a descriptor that another call has opened.
constexpr bool moves_bytes(Call call) {
  switch (call) {
    case Call::kRead:
    case Call::kPread:
    case Call::kWrite:
    case Call::kPwrite:
    case Call::kLseek:
    case Call::kFtruncate:
    case Call::kFallocate:
    case Call::kSyncFileRange:
    case Call::kMmapWrite:
    case Call::kMmapRead:
    case Call::kCopyFileRange:
      return true;
    default:
      return false;
  }
}

std::string name(Dice& dice) {
  static const std::string kLongest(255, 'n');
  static const std::string kTooLong(256, 't');
  const auto roll = dice.below(100);
  if (roll < 45) return std::string(1, static_cast<char>('a' + dice.below(4)));
  if (roll < 88) return std::string(1, static_cast<char>('p' + dice.below(3)));
  if (roll < 91) return kLongest;
  if (roll < 92) return kTooLong;
  if (roll < 95) return "..";
  if (roll < 97) return ".";
  return "s";
}

std::string path(Dice& dice) {
  std::string out;
  auto depth = dice.below(10);
  depth = depth < 5 ? 0 : depth < 8 ? 1 : depth < 9 ? 2 : 3;
  for (; depth > 0; --depth) {
    out += "/";
    out += dice.one_in(8) ? name(dice) : std::string(1, static_cast<char>('p' + dice.below(3)));
  }
  out += "/" + name(dice);
  if (dice.one_in(40)) out += "/";
  if (dice.one_in(300)) out.clear();
  return out;
}

std::int64_t offset(Dice& dice) {
  switch (dice.below(6)) {
    case 0:
      return 0;
    case 1:
      return dice.below(64);
    case 2:
      return 4096 * dice.below(8);
    case 3:
      return dice.below(70'000);
    case 4:
      return (1 << 20) - 5 + dice.below(10);
    default:
      return dice.below(2'500'000);
  }
}

std::int64_t size(Dice& dice) {
  switch (dice.below(6)) {
    case 0:
      return dice.below(20);
    case 1:
      return 4096;
    case 2:
      return dice.below(5000);
    case 3:
      return 65'530 + dice.below(12);
    case 4:
      return dice.below(200'000);
    default:
      return 1 + dice.below(300);
  }
}

std::int64_t mode(Dice& dice) {
  static constexpr std::int64_t kModes[] = {0644, 0600, 0755, 0777,  0666,  0700,  0555,
                                            0444, 0000, 0770, 02775, 04755, 01777, 06755};
  return dice.of(kModes);
}

std::int64_t id(Dice& dice) {
  static constexpr std::int64_t kIds[] = {-1, 0, 1000, 1001, 2000};
  return dice.of(kIds);
}

// 0 now, 1 omit, else a time in ns since 1970, before it and after 2106 too.
std::int64_t time_choice(Dice& dice) {
  static constexpr std::int64_t kTimes[] = {0,
                                            1,
                                            1'000'000'000'123'456'789,
                                            -1'234'567'890'000'000'001,
                                            5'000'000'000'999'999'999,
                                            999'999'999,
                                            1'600'000'000'000'000'007};
  return dice.of(kTimes);
}

std::int64_t open_flags(Dice& dice, bool sessions) {
  static constexpr std::int64_t kAccess[] = {O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_RDWR};
  std::int64_t flags = dice.of(kAccess);
  if (dice.below(10) < 6) flags |= O_CREAT;
  if (dice.one_in(6)) flags |= O_EXCL;
  if (!sessions && dice.one_in(6)) flags |= O_TRUNC;
  if (!sessions && dice.one_in(6)) flags |= O_APPEND;
  if (dice.one_in(25)) flags |= O_NOFOLLOW;
  if (dice.one_in(25)) flags |= O_DIRECTORY;
  if (dice.one_in(40)) flags |= O_PATH;
  if (dice.one_in(20)) flags |= O_DSYNC;
  return flags;
}

std::string xattr_name(Dice& dice) {
  static const std::string kNames[] = {"user.one",     "user.two", "user.three",
                                       "trusted.four", "user.",    "nonsense"};
  const auto roll = dice.below(20);
  return kNames[roll < 16 ? roll % 3 : roll - 14 < 4 ? 3 : roll - 14];
}

Op make_op(Dice& dice, const Shape& shape) {
  static constexpr std::int64_t kTotal = [] {
    std::int64_t sum = 0;
    for (const auto& weight : kWeights) sum += weight.weight;
    return sum;
  }();
  Op op;
  do {
    auto roll = dice.below(kTotal);
    for (const auto& weight : kWeights) {
      op.call = weight.call;
      if ((roll -= weight.weight) < 0) break;
    }
  } while (shape.sessions && moves_bytes(op.call));
  op.process = static_cast<int>(dice.below(shape.processes));
  op.slot = static_cast<int>(dice.below(kSlots));
  op.slot2 = static_cast<int>(dice.below(kSlots));
  op.path = path(dice);
  op.path2 = path(dice);
  switch (op.call) {
    case Call::kOpen:
      op.a = open_flags(dice, shape.sessions);
      op.b = mode(dice);
      break;
    case Call::kRead:
    case Call::kWrite:
      op.a = size(dice);
      op.c = dice.below(1 << 30);
      break;
    case Call::kPread:
    case Call::kPwrite:
    case Call::kMmapWrite:
    case Call::kMmapRead:
      op.a = size(dice);
      op.b = offset(dice);
      op.c = dice.below(1 << 30);
      break;
    case Call::kSyncFileRange:
      op.a = size(dice);
      op.b = offset(dice);
      break;
    case Call::kLseek: {
      static constexpr std::int64_t kWhence[] = {SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA,
                                                 SEEK_HOLE};
      op.a = offset(dice) - (dice.one_in(5) ? 100'000 : 0);
      op.b = dice.of(kWhence);
      break;
    }
    case Call::kStore:
      op.a = size(dice);
      op.b = offset(dice);
      op.c = dice.below(1 << 30);
      op.slot2 = dice.one_in(3) ? O_APPEND : dice.one_in(3) ? O_TRUNC : 0;
      break;
    case Call::kFtruncate:
    case Call::kTruncate:
      op.a = offset(dice);
      if (dice.one_in(20)) op.a = -1;
      break;
    case Call::kFallocate: {
      static constexpr std::int64_t kModes[] = {0,
                                                FALLOC_FL_KEEP_SIZE,
                                                FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                                FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                                FALLOC_FL_ZERO_RANGE,
                                                FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                                FALLOC_FL_PUNCH_HOLE};
      op.a = dice.of(kModes);
      op.b = offset(dice);
      op.c = size(dice);
      break;
    }
    case Call::kCopyFileRange:
      op.a = size(dice);
      op.b = offset(dice);
      op.c = offset(dice);
      break;
    case Call::kFchmod:
    case Call::kChmod:
    case Call::kMkdir:
      op.a = mode(dice);
      break;
    case Call::kFchown:
    case Call::kChown:
      op.a = id(dice);
      op.b = id(dice);
      op.c = dice.one_in(4) ? AT_SYMLINK_NOFOLLOW : 0;
      if (op.a == -1 && op.b == -1) op.b = 2000;  // of a setuid file: docs/POSIX.md
      break;
    case Call::kFutimens:
    case Call::kUtimens:
      op.a = time_choice(dice);
      op.b = time_choice(dice);
      op.c = dice.one_in(4) ? AT_SYMLINK_NOFOLLOW : 0;
      break;
    case Call::kFlock: {
      static constexpr std::int64_t kLocks[] = {LOCK_SH, LOCK_EX, LOCK_UN};
      op.a = dice.of(kLocks);
      break;
    }
    case Call::kSetLock:
    case Call::kGetLock: {
      static constexpr std::int64_t kLocks[] = {F_RDLCK, F_WRLCK, F_UNLCK, F_WRLCK};
      op.a = dice.of(kLocks);
      op.b = dice.below(200);
      op.c = dice.below(60);  // 0: to the end
      if (op.call == Call::kGetLock && op.a == F_UNLCK) op.a = F_RDLCK;
      break;
    }
    case Call::kAccess:
      op.a = dice.below(8);
      break;
    case Call::kRenameat2: {
      static constexpr std::int64_t kFlags[] = {RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE,
                                                RENAME_NOREPLACE | RENAME_EXCHANGE, 0};
      op.a = dice.of(kFlags);
      break;
    }
    case Call::kLink:
      op.a = dice.one_in(4) ? AT_SYMLINK_FOLLOW : 0;
      break;
    case Call::kMknod: {
      static constexpr std::int64_t kTypes[] = {S_IFIFO, S_IFSOCK, S_IFCHR, S_IFREG};
      const std::int64_t type = dice.of(kTypes);
      // The two ends of a FIFO must be on one machine.
      op.a = (shape.sessions && type == S_IFIFO ? S_IFCHR : type) | (mode(dice) & 0777);
      break;
    }
    case Call::kSetxattr: {
      static constexpr std::int64_t kFlags[] = {0, 0, XATTR_CREATE, XATTR_REPLACE};
      op.path2 = xattr_name(dice);
      op.a = dice.below(200);
      op.b = dice.of(kFlags);
      op.c = dice.below(1 << 30);
      break;
    }
    case Call::kGetxattr:
    case Call::kRemovexattr:
      op.path2 = xattr_name(dice);
      op.a = dice.one_in(3) ? dice.below(100) : 1000;
      break;
    case Call::kSymlink:
      if (dice.one_in(3)) op.path = op.path.empty() ? "" : op.path.substr(1);  // relative
      break;
    case Call::kUmask: {
      static constexpr std::int64_t kMasks[] = {022, 0, 077, 002};
      op.a = dice.of(kMasks);
      break;
    }
    case Call::kBecome: {
      static constexpr std::int64_t kUsers[] = {0, 0, 1000, 1001};
      op.a = dice.of(kUsers);
      break;
    }
    default:
      break;
  }
  return op;
}

std::string quoted(const std::string& path) {
  if (path.size() < 100) return "\"" + path + "\"";
  return "\"" + path.substr(0, 8) + "...\" (" + std::to_string(path.size()) + " bytes)";
}

std::string octal(std::int64_t mode) {
  std::array<char, 24> out{};
  std::snprintf(out.data(), out.size(), "0%llo", static_cast<unsigned long long>(mode));
  return out.data();
}

std::string flags_text(std::int64_t flags) {
  static constexpr const char* kAccess[] = {"O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"};
  std::string out = kAccess[flags & O_ACCMODE];
  const struct {
    std::int64_t flag;
    const char* text;
  } kFlags[] = {{O_CREAT, "O_CREAT"},   {O_EXCL, "O_EXCL"},         {O_TRUNC, "O_TRUNC"},
                {O_APPEND, "O_APPEND"}, {O_NOFOLLOW, "O_NOFOLLOW"}, {O_DIRECTORY, "O_DIRECTORY"},
                {O_PATH, "O_PATH"},     {O_DSYNC, "O_DSYNC"}};
  for (const auto& entry : kFlags) {
    if ((flags & entry.flag) != 0) out += std::string("|") + entry.text;
  }
  return out;
}

}  // namespace

std::vector<Op> make_program(std::uint64_t seed, const Shape& shape) {
  Dice dice(seed * 0x9E3779B97F4A7C15ULL + 1);
  std::vector<Op> out;
  out.reserve(shape.ops);
  while (out.size() < shape.ops) out.push_back(make_op(dice, shape));
  return out;
}

std::string payload(const Op& op, std::size_t size) {
  std::string out(size, '\0');
  auto state = static_cast<std::uint64_t>(op.c) * 2 + 1;
  for (auto& byte : out) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    byte = static_cast<char>(state >> 56);
  }
  return out;
}

std::string text(const Op& op) {
  const auto number = [](std::int64_t value) { return std::to_string(value); };
  const std::string fd = "fd" + number(op.slot);
  const std::string fd2 = "fd" + number(op.slot2);
  const std::string who = "p" + number(op.process) + ": ";
  const std::string p = quoted(op.path);
  const std::string q = quoted(op.path2);
  const auto two = [&](const char* call) { return who + call + "(" + p + ", " + q + ")"; };
  const auto at = [&](const char* call) {
    return who + call + "(" + fd + ", " + number(op.a) + " bytes at " + number(op.b) + ")";
  };
  switch (op.call) {
    case Call::kOpen:
      return who + fd + " = open(" + p + ", " + flags_text(op.a) + ", " + octal(op.b) + ")";
    case Call::kClose:
      return who + "close(" + fd + ")";
    case Call::kDup:
      return who + fd2 + " = dup(" + fd + ")";
    case Call::kRead:
      return who + "read(" + fd + ", " + number(op.a) + ")";
    case Call::kWrite:
      return who + "write(" + fd + ", " + number(op.a) + ")";
    case Call::kPread:
      return at("pread");
    case Call::kPwrite:
      return at("pwrite");
    case Call::kMmapWrite:
      return at("mmap, store, msync, munmap");
    case Call::kMmapRead:
      return at("mmap, load, munmap");
    case Call::kSyncFileRange:
      return at("sync_file_range");
    case Call::kLseek: {
      static constexpr const char* kWhence[] = {"SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA",
                                                "SEEK_HOLE"};
      return who + "lseek(" + fd + ", " + number(op.a) + ", " + kWhence[op.b] + ")";
    }
    case Call::kFtruncate:
      return who + "ftruncate(" + fd + ", " + number(op.a) + ")";
    case Call::kTruncate:
      return who + "truncate(" + p + ", " + number(op.a) + ")";
    case Call::kStore:
      return who + "open(" + p + ", O_WRONLY|O_CREAT" +
             (op.slot2 == O_APPEND  ? "|O_APPEND"
              : op.slot2 == O_TRUNC ? "|O_TRUNC"
                                    : "") +
             "), pwrite(" + number(op.a) + " bytes at " + number(op.b) + "), close";
    case Call::kLoad:
      return who + "open(" + p + ", O_RDONLY), read all, close";
    case Call::kFallocate:
      return who + "fallocate(" + fd + ", mode " + number(op.a) + ", " + number(op.c) +
             " bytes at " + number(op.b) + ")";
    case Call::kFsync:
      return who + "fsync(" + fd + ")";
    case Call::kFdatasync:
      return who + "fdatasync(" + fd + ")";
    case Call::kCopyFileRange:
      return who + "copy_file_range(" + fd + " at " + number(op.b) + ", " + fd2 + " at " +
             number(op.c) + ", " + number(op.a) + ")";
    case Call::kFchmod:
      return who + "fchmod(" + fd + ", " + octal(op.a) + ")";
    case Call::kFchown:
      return who + "fchown(" + fd + ", " + number(op.a) + ", " + number(op.b) + ")";
    case Call::kFutimens:
      return who + "futimens(" + fd + ", " + number(op.a) + ", " + number(op.b) + ")";
    case Call::kFlock:
      return who + "flock(" + fd + ", " + number(op.a) + "|LOCK_NB)";
    case Call::kSetLock:
      return who + "fcntl(" + fd + ", F_SETLK, type " + number(op.a) + ", " + number(op.c) +
             " bytes at " + number(op.b) + ")";
    case Call::kGetLock:
      return who + "fcntl(" + fd + ", F_GETLK, type " + number(op.a) + ", " + number(op.c) +
             " bytes at " + number(op.b) + ")";
    case Call::kStat:
      return who + "stat(" + p + ")";
    case Call::kAccess:
      return who + "faccessat(" + p + ", " + number(op.a) + ", AT_EACCESS)";
    case Call::kMkdir:
      return who + "mkdir(" + p + ", " + octal(op.a) + ")";
    case Call::kRmdir:
      return who + "rmdir(" + p + ")";
    case Call::kUnlink:
      return who + "unlink(" + p + ")";
    case Call::kRename:
      return two("rename");
    case Call::kRenameat2:
      return who + "renameat2(" + p + ", " + q + ", flags " + number(op.a) + ")";
    case Call::kLink:
      return two(op.a != 0 ? "link following" : "link");
    case Call::kSymlink:
      return two("symlink");
    case Call::kReadlink:
      return who + "readlink(" + p + ")";
    case Call::kMknod:
      return who + "mknod(" + p + ", " + octal(op.a) + ")";
    case Call::kChmod:
      return who + "chmod(" + p + ", " + octal(op.a) + ")";
    case Call::kChown:
      return who + (op.c != 0 ? "lchown(" : "chown(") + p + ", " + number(op.a) + ", " +
             number(op.b) + ")";
    case Call::kUtimens:
      return who + "utimensat(" + p + ", " + number(op.a) + ", " + number(op.b) +
             (op.c != 0 ? ", AT_SYMLINK_NOFOLLOW)" : ")");
    case Call::kSetxattr:
      return who + "setxattr(" + p + ", " + q + ", " + number(op.a) + " bytes, flags " +
             number(op.b) + ")";
    case Call::kGetxattr:
      return who + "getxattr(" + p + ", " + q + ", " + number(op.a) + ")";
    case Call::kListxattr:
      return who + "listxattr(" + p + ")";
    case Call::kRemovexattr:
      return who + "removexattr(" + p + ", " + q + ")";
    case Call::kReaddir:
      return who + "readdir(" + p + ")";
    case Call::kUmask:
      return who + "umask(" + octal(op.a) + ")";
    case Call::kBecome:
      return who + "setfsuid, setfsgid(" + number(op.a) + ")";
  }
  return who + "?";
}

}  // namespace fermata::test::model
