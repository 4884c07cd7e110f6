#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "common/env/real_env.h"

namespace fermata {
namespace {

/// Repeats a system call that a signal interrupted.
template <class Call>
auto retry(Call call) {
  for (;;) {
    const auto result = call();
    if (result >= 0 || errno != EINTR) return result;
  }
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);  // never repeated: Linux has released it even on EINTR
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

class RealFile final : public File {
 public:
  explicit RealFile(int fd) : fd_(fd) {}

  Result<std::size_t> read_at(std::uint64_t offset_bytes, MutableByteView out) const override {
    std::size_t done = 0;
    while (done < out.size()) {
      const ssize_t count = retry([&] {
        return ::pread(fd_.get(), out.data() + done, out.size() - done,
                       static_cast<off_t>(offset_bytes + done));
      });
      if (count < 0) return last_errno();
      if (count == 0) break;
      done += static_cast<std::size_t>(count);
    }
    return done;
  }

  Status write_at(std::uint64_t offset_bytes, ByteView bytes) override {
    std::size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t count = retry([&] {
        return ::pwrite(fd_.get(), bytes.data() + done, bytes.size() - done,
                        static_cast<off_t>(offset_bytes + done));
      });
      if (count < 0) return last_errno();
      if (count == 0) return from_errno(EIO);
      done += static_cast<std::size_t>(count);
    }
    return {};
  }

  Status truncate(std::uint64_t size_bytes) override {
    if (retry([&] { return ::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)); }) < 0)
      return last_errno();
    return {};
  }

  Status sync() override {
    if (retry([&] { return ::fdatasync(fd_.get()); }) < 0) return last_errno();
    return {};
  }

  Result<std::uint64_t> size_bytes() const override {
    struct stat st {};
    if (::fstat(fd_.get(), &st) < 0) return last_errno();
    return static_cast<std::uint64_t>(st.st_size);
  }

 private:
  Descriptor fd_;
};

int open_flags(Disk::Mode mode) {
  switch (mode) {
    case Disk::Mode::kRead:
      return O_RDONLY;
    case Disk::Mode::kReadWrite:
      return O_RDWR;
    case Disk::Mode::kCreate:
      return O_RDWR | O_CREAT;
    case Disk::Mode::kCreateNew:
      return O_RDWR | O_CREAT | O_EXCL;
  }
  return O_RDONLY;
}

}  // namespace

Result<std::unique_ptr<File>> RealDisk::open(const std::string& path, Mode mode) {
  const int fd = retry([&] { return ::open(path.c_str(), open_flags(mode) | O_CLOEXEC, 0640); });
  if (fd < 0) return last_errno();
  return std::unique_ptr<File>(std::make_unique<RealFile>(fd));
}

Status RealDisk::rename(const std::string& from, const std::string& to) {
  if (std::rename(from.c_str(), to.c_str()) < 0) return last_errno();
  return {};
}

Status RealDisk::remove(const std::string& path) {
  if (::unlink(path.c_str()) == 0) return {};
  // Linux says EISDIR for a directory, POSIX EPERM.
  if (errno != EISDIR && errno != EPERM) return last_errno();
  const std::error_code error = last_errno();
  if (::rmdir(path.c_str()) == 0) return {};
  return errno == ENOTDIR ? error : last_errno();
}

Status RealDisk::remove_all(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error && error != std::errc::no_such_file_or_directory) return error;
  return {};
}

Status RealDisk::make_dirs(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return error;
  return {};
}

Result<std::vector<std::string>> RealDisk::list(const std::string& path) {
  std::error_code error;
  std::vector<std::string> names;
  std::filesystem::directory_iterator it(path, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) return error;
  std::sort(names.begin(), names.end());
  return names;
}

Result<bool> RealDisk::exists(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  return last_errno();
}

Status RealDisk::sync_dir(const std::string& path) {
  const Descriptor fd(
      retry([&] { return ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  if (fd.get() < 0) return last_errno();
  if (retry([&] { return ::fsync(fd.get()); }) < 0) return last_errno();
  return {};
}

Result<DiskSpace> RealDisk::space(const std::string& path) {
  struct statvfs st {};
  if (retry([&] { return ::statvfs(path.c_str(), &st); }) < 0) return last_errno();
  const std::uint64_t unit = st.f_frsize;
  return DiskSpace{.total_bytes = unit * st.f_blocks, .free_bytes = unit * st.f_bavail};
}

}  // namespace fermata
