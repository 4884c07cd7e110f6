#include "common/env/disk.h"

namespace fermata {

Result<Bytes> read_file(Disk& disk, const std::string& path, std::uint64_t size_max_bytes) {
  FM_TRY(const auto file, disk.open(path, Disk::Mode::kRead));
  FM_TRY(const std::uint64_t size, file->size_bytes());
  if (size > size_max_bytes) return Errc::kTooLarge;
  Bytes bytes(size);
  FM_TRY(const std::size_t count, file->read_at(0, bytes));
  bytes.resize(count);
  return bytes;
}

Status write_file_atomically(Disk& disk, const std::string& path, ByteView bytes) {
  const std::string temporary = path + ".tmp";
  {
    FM_TRY(const auto file, disk.open(temporary, Disk::Mode::kCreate));
    FM_CHECK(file->truncate(0));
    FM_CHECK(file->write_at(0, bytes));
    FM_CHECK(file->sync());
  }
  FM_CHECK(disk.rename(temporary, path));
  return disk.sync_dir(parent_of(path));
}

std::string parent_of(const std::string& path) {
  const auto slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace fermata
