// System calls on files with their errors as Results: the cache needs real descriptors, which FUSE
// passthrough hands to the kernel, so it does not go through fermata::Disk.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace fermata::mountd {

/// Owns a descriptor.
class Fd {
 public:
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd();
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

struct BackingStat {
  std::uint64_t size_bytes = 0;
  std::uint64_t allocated_bytes = 0;
  std::int64_t atime_ns = 0;
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;
};

namespace posix {

/// The kernel's text: another one after each start of the machine.
Result<std::array<char, 40>> boot_id();

/// Since 1970, as files' times are.
std::int64_t wall_ns();

/// O_CLOEXEC is added.
Result<std::shared_ptr<Fd>> open_file(const std::string& path, int flags, unsigned mode = 0600);
Result<BackingStat> stat_file(const Fd& fd);
/// Fewer bytes than `out` only at the end of the file.
Result<std::size_t> read_at(const Fd& fd, std::uint64_t offset_bytes, MutableByteView out);
/// On an error a part may have been written.
Status write_at(const Fd& fd, std::uint64_t offset_bytes, ByteView bytes);
Result<Bytes> read_whole(const std::string& path, std::uint64_t size_max_bytes);

enum class Durability { kNone, kSynced };
/// Temporary name, then rename; with kSynced also fdatasync and the sync of the directory.
Status replace_file(const std::string& path, ByteView bytes, Durability durability);
/// Writes over the beginning of a file that is there.
Status overwrite_file(const std::string& path, ByteView bytes);
/// Success if it is not there.
Status remove_file(const std::string& path);
/// Success if it is there; not recursive.
Status make_dir(const std::string& path);
/// Names without "." and "..", in no order.
Result<std::vector<std::string>> list_dir(const std::string& path);
/// The first byte of data at or after `offset_bytes`; `size_bytes` if there is none.
Result<std::uint64_t> seek_data(const Fd& fd, std::uint64_t offset_bytes, std::uint64_t size_bytes);
/// Writes dirty pages out and waits. Mappings are write-protected by that, so that a later store
/// through one changes ctime; it is no promise of durability.
Status write_pages_out(const Fd& fd);

}  // namespace posix
}  // namespace fermata::mountd
