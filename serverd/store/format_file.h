// The FORMAT file beside a store's data: what wrote it, and for which cluster. docs/format/meta.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/env/disk.h"

namespace fermata::serverd {

inline constexpr std::uint32_t kStoreFormatVersion = 1;

struct StoreFormat {
  std::uint32_t version = kStoreFormatVersion;
  ClusterId cluster;  ///< none: not bound yet
};

std::string encode_format(const StoreFormat& format);
/// kVersionMismatch for other magic or a newer version; kCorruptStore for a bad checksum.
Result<StoreFormat> decode_format(ByteView bytes);

/// None if there is no such file.
Result<std::optional<StoreFormat>> read_format(Disk& disk, const std::string& path);
/// Durable and atomic.
Status write_format(Disk& disk, const std::string& path, const StoreFormat& format);

/// kWrongCluster if both are known and differ.
Status check_cluster(ClusterId found, ClusterId expected);

}  // namespace fermata::serverd
