// Small helpers of the tests on mounts: files by plain system calls, every failure an exception
// with its errno.
#pragma once

#include <sys/stat.h>

#include <string>

#define FM_NEEDS_MOUNTS() \
  if (const auto why = ::fermata::test::why_no_mounts(); !why.empty()) SKIP(why)

namespace fermata::test {

/// open(O_TRUNC|O_CREAT), write, close; throws with the errno of whatever failed, close() too.
void write_file(const std::string& path, const std::string& content);
/// The errno of that, 0 for success.
int write_error(const std::string& path, const std::string& content);
std::string read_file(const std::string& path);
/// The errno of opening and reading it to the end, 0 for success.
int read_error(const std::string& path);
/// A descriptor that closes itself.
class Fd {
 public:
  Fd(const std::string& path, int flags, mode_t mode = 0644);
  ~Fd();
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }
  std::string pread(std::size_t size, off_t offset) const;
  void pwrite(const std::string& bytes, off_t offset) const;
  void close();  ///< throws if close(2) fails

 private:
  int fd_;
  std::string path_;
};
struct stat stat_of(const std::string& path);
std::int64_t ns_of(const timespec& time);
bool exists(const std::string& path);
/// 0 or the errno.
int errno_of(int result);
/// `size` bytes that depend on `seed` alone.
std::string random_bytes(std::size_t size, std::uint64_t seed);

}  // namespace fermata::test
