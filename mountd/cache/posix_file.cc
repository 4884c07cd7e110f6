#include "mountd/cache/posix_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <limits>

#include "common/env/disk.h"

namespace fermata::mountd {
namespace {

// Saturates: 64 bits of nanoseconds end in 2262.
std::int64_t to_ns(const timespec& time) {
  constexpr std::int64_t kSecondsMax = std::numeric_limits<std::int64_t>::max() / 1'000'000'000 - 1;
  if (time.tv_sec > kSecondsMax) return std::numeric_limits<std::int64_t>::max();
  if (time.tv_sec < -kSecondsMax) return std::numeric_limits<std::int64_t>::min();
  return static_cast<std::int64_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}

namespace posix {

std::int64_t wall_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Result<std::shared_ptr<Fd>> open_file(const std::string& path, int flags, unsigned mode) {
  while (true) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    if (fd >= 0) return std::make_shared<Fd>(fd);
    if (errno == EPERM && (flags & O_NOATIME) != 0) {
      flags &= ~O_NOATIME;  // the file's owner may, others do without
    } else if (errno != EINTR) {
      return last_errno();
    }
  }
}

Result<BackingStat> stat_file(const Fd& fd) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0) return last_errno();
  return BackingStat{static_cast<std::uint64_t>(st.st_size),
                     static_cast<std::uint64_t>(st.st_blocks) * 512, to_ns(st.st_atim),
                     to_ns(st.st_mtim), to_ns(st.st_ctim)};
}

Result<std::array<char, 40>> boot_id() {
  std::array<char, 40> id{};
  FM_TRY(const auto fd, open_file("/proc/sys/kernel/random/boot_id", O_RDONLY));
  FM_TRY(const auto size, read_at(*fd, 0, std::as_writable_bytes(std::span(id))));
  static_cast<void>(size);
  return id;
}

Result<std::size_t> read_at(const Fd& fd, std::uint64_t offset_bytes, MutableByteView out) {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd.get(), out.data() + done, out.size() - done,
                              static_cast<off_t>(offset_bytes + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return last_errno();
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  return done;
}

Status write_at(const Fd& fd, std::uint64_t offset_bytes, ByteView bytes) {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::pwrite(fd.get(), bytes.data() + done, bytes.size() - done,
                               static_cast<off_t>(offset_bytes + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return last_errno();
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<Bytes> read_whole(const std::string& path, std::uint64_t size_max_bytes) {
  FM_TRY(const auto fd, open_file(path, O_RDONLY));
  FM_TRY(const auto st, stat_file(*fd));
  if (st.size_bytes > size_max_bytes) return Errc::kTooLarge;
  Bytes bytes(st.size_bytes);
  FM_TRY(const auto size, read_at(*fd, 0, bytes));
  bytes.resize(size);
  return bytes;
}

Status replace_file(const std::string& path, ByteView bytes, Durability durability) {
  const std::string temporary = path + ".tmp";
  const Status status = [&]() -> Status {
    FM_TRY(const auto fd, open_file(temporary, O_WRONLY | O_CREAT | O_TRUNC));
    FM_CHECK(write_at(*fd, 0, bytes));
    if (durability == Durability::kSynced && ::fdatasync(fd->get()) != 0) return last_errno();
    if (::rename(temporary.c_str(), path.c_str()) != 0) return last_errno();
    if (durability == Durability::kSynced) {
      FM_TRY(const auto dir, open_file(parent_of(path), O_RDONLY | O_DIRECTORY));
      if (::fsync(dir->get()) != 0) return last_errno();
    }
    return {};
  }();
  if (!status) ::unlink(temporary.c_str());
  return status;
}

Status overwrite_file(const std::string& path, ByteView bytes) {
  FM_TRY(const auto fd, open_file(path, O_WRONLY));
  return write_at(*fd, 0, bytes);
}

Status remove_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) return last_errno();
  return {};
}

Status make_dir(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return last_errno();
  return {};
}

Result<std::vector<std::string>> list_dir(const std::string& path) {
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return last_errno();
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(dir)) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  const std::error_code error = errno != 0 ? last_errno() : std::error_code();
  ::closedir(dir);
  if (error) return error;
  return names;
}

Result<std::uint64_t> seek_data(const Fd& fd, std::uint64_t offset_bytes,
                                std::uint64_t size_bytes) {
  const off_t at = ::lseek(fd.get(), static_cast<off_t>(offset_bytes), SEEK_DATA);
  if (at >= 0) return static_cast<std::uint64_t>(at);
  if (errno == ENXIO) return size_bytes;     // only a hole up to the end
  if (errno == EINVAL) return offset_bytes;  // a filesystem that knows no holes
  return last_errno();
}

Status write_pages_out(const Fd& fd) {
  constexpr unsigned kAll =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  if (::sync_file_range(fd.get(), 0, 0, kAll) == 0) return {};
  if (errno != EINVAL && errno != ENOSYS && errno != ESPIPE) return last_errno();
  if (::fdatasync(fd.get()) != 0) return last_errno();
  return {};
}

}  // namespace posix
}  // namespace fermata::mountd
