// The mounts of this process' mount namespace, as proc(5) lists them in /proc/self/mountinfo.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fermata {

struct MountInfo {
  std::uint64_t device_number = 0;  ///< st_dev
  std::string mount_point;
  std::string type;
  std::string source;
};

/// All mounts, a later one over an earlier one; none if the table cannot be read. Asks no mounted
/// filesystem. Thread-safe.
std::vector<MountInfo> mount_table();

/// One line of the table; none if it is not one.
std::optional<MountInfo> parse_mountinfo(const std::string& line);

}  // namespace fermata
