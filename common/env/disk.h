// The disk as the program sees it: blocking calls on files, so that a simulation can lose, tear or
// refuse what was not synced. Paths are absolute or relative to the process.
//
// Thread-safety: a Disk may be used from any thread; a File from one thread at a time, except
// read_at, which may run beside anything. Calls block: run them on the blocking pool.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace fermata {

class File {
 public:
  virtual ~File() = default;
  /// Reads up to `out.size()` bytes; fewer only at the end of the file.
  virtual Result<std::size_t> read_at(std::uint64_t offset_bytes, MutableByteView out) const = 0;
  /// Writes all of `bytes` or fails; a failed or unsynced write may leave any part.
  virtual Status write_at(std::uint64_t offset_bytes, ByteView bytes) = 0;
  virtual Status truncate(std::uint64_t size_bytes) = 0;
  /// fdatasync(2). An error means that what was written may be lost whatever a later call says
  /// (Rebello et al., USENIX ATC 2020): the caller must stop, never retry.
  virtual Status sync() = 0;
  virtual Result<std::uint64_t> size_bytes() const = 0;
};

struct DiskSpace {
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;  ///< for an unprivileged user
};

class Disk {
 public:
  virtual ~Disk() = default;
  enum class Mode { kRead, kReadWrite, kCreate, kCreateNew };  ///< kCreateNew fails with EEXIST
  virtual Result<std::unique_ptr<File>> open(const std::string& path, Mode mode) = 0;
  /// Replaces `to`. Durable after sync_dir of both parents.
  virtual Status rename(const std::string& from, const std::string& to) = 0;
  virtual Status remove(const std::string& path) = 0;
  /// Removes a file or a whole directory tree; success if it is not there.
  virtual Status remove_all(const std::string& path) = 0;
  /// Creates the directory and its missing parents; success if it is there.
  virtual Status make_dirs(const std::string& path) = 0;
  /// The names in a directory without "." and "..", sorted.
  virtual Result<std::vector<std::string>> list(const std::string& path) = 0;
  virtual Result<bool> exists(const std::string& path) = 0;
  /// Makes creations, renames and removals in `path` durable. As File::sync for errors.
  virtual Status sync_dir(const std::string& path) = 0;
  virtual Result<DiskSpace> space(const std::string& path) = 0;
};

/// Reads a whole file (at most `size_max_bytes`, else Errc::kTooLarge).
Result<Bytes> read_file(Disk& disk, const std::string& path, std::uint64_t size_max_bytes);
/// Writes `path` whole or not at all: temporary name, sync, rename, sync of the directory.
Status write_file_atomically(Disk& disk, const std::string& path, ByteView bytes);
/// The directory part of `path` ("." if none).
std::string parent_of(const std::string& path);

}  // namespace fermata
