#include "mountd/fs/attributes.h"

#include <algorithm>
#include <limits>

namespace fermata::mountd {

mode_t mode_type(FileType type) {
  switch (type) {
    case FileType::kRegular:
      return S_IFREG;
    case FileType::kDirectory:
      return S_IFDIR;
    case FileType::kSymlink:
      return S_IFLNK;
    case FileType::kFifo:
      return S_IFIFO;
    case FileType::kSocket:
      return S_IFSOCK;
    case FileType::kCharDevice:
      return S_IFCHR;
    case FileType::kBlockDevice:
      return S_IFBLK;
  }
  return S_IFREG;
}

FileType type_of_mode(mode_t mode) {
  switch (mode & S_IFMT) {
    case S_IFDIR:
      return FileType::kDirectory;
    case S_IFLNK:
      return FileType::kSymlink;
    case S_IFIFO:
      return FileType::kFifo;
    case S_IFSOCK:
      return FileType::kSocket;
    case S_IFCHR:
      return FileType::kCharDevice;
    case S_IFBLK:
      return FileType::kBlockDevice;
    default:
      return FileType::kRegular;
  }
}

struct stat to_stat(const Attr& attr) {
  struct stat out {};
  out.st_ino = attr.inode.value();
  out.st_mode = mode_type(attr.type) | (attr.mode & 07777);
  out.st_nlink = attr.nlink;
  out.st_uid = attr.uid;
  out.st_gid = attr.gid;
  out.st_rdev = attr.rdev;
  out.st_size = static_cast<off_t>(attr.size_bytes);
  out.st_blksize = 4096;
  // In whole pages, as the cached copy of it has them: the number does not change with a close.
  constexpr std::uint64_t kPage = 4096;
  out.st_blocks = static_cast<blkcnt_t>((attr.allocated_bytes + kPage - 1) / kPage * (kPage / 512));
  out.st_atim = to_timespec(attr.atime);
  out.st_mtim = to_timespec(attr.mtime);
  out.st_ctim = to_timespec(attr.ctime);
  return out;
}

void overlay_backing(struct stat& to, const BackingStat& backing) {
  to.st_size = static_cast<off_t>(backing.size_bytes);
  to.st_blocks = static_cast<blkcnt_t>((backing.allocated_bytes + 511) / 512);
}

bool means_gone(std::error_code error) {
  return error == std::errc::no_such_file_or_directory || error == from_errno(ESTALE);
}

std::int64_t to_ns(const Timestamp& time) {
  constexpr std::int64_t kSecondsMax = std::numeric_limits<std::int64_t>::max() / 1'000'000'000 - 1;
  if (time.seconds > kSecondsMax) return std::numeric_limits<std::int64_t>::max();
  if (time.seconds < -kSecondsMax) return std::numeric_limits<std::int64_t>::min();
  return time.seconds * 1'000'000'000 + time.nanoseconds;
}

Timestamp from_ns(std::int64_t ns) {
  std::int64_t seconds = ns / 1'000'000'000;
  std::int64_t rest = ns % 1'000'000'000;
  if (rest < 0) {
    rest += 1'000'000'000;
    --seconds;
  }
  return {seconds, static_cast<std::uint32_t>(rest)};
}

Timestamp from_timespec(const timespec& time) {
  return {time.tv_sec, static_cast<std::uint32_t>(time.tv_nsec)};
}

timespec to_timespec(const Timestamp& time) {
  return {static_cast<time_t>(time.seconds), static_cast<long>(time.nanoseconds)};
}

}  // namespace fermata::mountd
