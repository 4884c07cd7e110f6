#include "test/integration/cluster/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "common/env/random.h"

namespace fermata::test {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

Fd::Fd(const std::string& path, int flags, mode_t mode)
    : fd_(::open(path.c_str(), flags | O_CLOEXEC, mode)), path_(path) {
  if (fd_ < 0) fail("open " + path);
}
Fd::~Fd() {
  if (fd_ >= 0) ::close(fd_);
}
std::string Fd::pread(std::size_t size, off_t offset) const {
  std::string out(size, '\0');
  std::size_t done = 0;
  while (done < size) {
    const ssize_t n =
        ::pread(fd_, out.data() + done, size - done, offset + static_cast<off_t>(done));
    if (n < 0) fail("pread " + path_);
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  out.resize(done);
  return out;
}
void Fd::pwrite(const std::string& bytes, off_t offset) const {
  std::size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n =
        ::pwrite(fd_, bytes.data() + done, bytes.size() - done, offset + static_cast<off_t>(done));
    if (n < 0) fail("pwrite " + path_);
    done += static_cast<std::size_t>(n);
  }
}
void Fd::close() {
  const int fd = fd_;
  fd_ = -1;
  if (::close(fd) != 0) fail("close " + path_);
}

void write_file(const std::string& path, const std::string& content) {
  Fd fd(path, O_WRONLY | O_CREAT | O_TRUNC);
  fd.pwrite(content, 0);
  fd.close();
}

int write_error(const std::string& path, const std::string& content) {
  try {
    write_file(path, content);
  } catch (const std::system_error& error) {
    return error.code().value();
  }
  return 0;
}

std::string read_file(const std::string& path) {
  const Fd fd(path, O_RDONLY);
  struct stat st {};
  if (fstat(fd.get(), &st) != 0) fail("fstat " + path);
  return fd.pread(static_cast<std::size_t>(st.st_size), 0);
}

int read_error(const std::string& path) {
  try {
    read_file(path);
  } catch (const std::system_error& error) {
    return error.code().value();
  }
  return 0;
}

std::int64_t ns_of(const timespec& time) { return time.tv_sec * 1'000'000'000 + time.tv_nsec; }

struct stat stat_of(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) fail("lstat " + path);
  return st;
}

bool exists(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) == 0) return true;
  if (errno == ENOENT) return false;
  fail("lstat " + path);
}

int errno_of(int result) { return result == 0 ? 0 : errno; }

std::string random_bytes(std::size_t size, std::uint64_t seed) {
  SeededRandom random(seed);
  std::string out;
  out.reserve(size + 8);
  while (out.size() < size) {
    const std::uint64_t word = random.next();
    out.append(reinterpret_cast<const char*>(&word), sizeof word);
  }
  out.resize(size);
  return out;
}

}  // namespace fermata::test
