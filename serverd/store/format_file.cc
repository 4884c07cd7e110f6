#include "serverd/store/format_file.h"

#include "common/base/checksum.h"

namespace fermata::serverd {
namespace {

constexpr std::string_view kMagic = "FERMMETA";
constexpr std::size_t kBytes = 8 + 4 + 4 + 16 + 4;

}  // namespace

std::string encode_format(const StoreFormat& format) {
  std::string out(kMagic);
  append_le(out, format.version);
  append_le(out, std::uint32_t{0});  // reserved
  append_le(out, format.cluster.bytes);
  append_le(out, crc32c(as_bytes(out)));
  return out;
}

Result<StoreFormat> decode_format(ByteView bytes) {
  if (bytes.size() < 12 || as_text(bytes.first(8)) != kMagic) return Errc::kVersionMismatch;
  StoreFormat format;
  format.version = load_le<std::uint32_t>(bytes.data() + 8);
  if (format.version != kStoreFormatVersion) return Errc::kVersionMismatch;
  if (bytes.size() != kBytes) return Errc::kCorruptStore;
  if (crc32c(bytes.first(kBytes - 4)) != load_le<std::uint32_t>(bytes.data() + kBytes - 4))
    return Errc::kCorruptStore;
  std::memcpy(format.cluster.bytes.data(), bytes.data() + 16, 16);
  return format;
}

Result<std::optional<StoreFormat>> read_format(Disk& disk, const std::string& path) {
  FM_TRY(const bool there, disk.exists(path));
  if (!there) return std::optional<StoreFormat>();
  FM_TRY(const Bytes bytes, read_file(disk, path, 4096));
  FM_TRY(const StoreFormat format, decode_format(bytes));
  return std::optional(format);
}

Status write_format(Disk& disk, const std::string& path, const StoreFormat& format) {
  return write_file_atomically(disk, path, as_bytes(encode_format(format)));
}

Status check_cluster(ClusterId found, ClusterId expected) {
  if (found && expected && found != expected) return Errc::kWrongCluster;
  return {};
}

}  // namespace fermata::serverd
