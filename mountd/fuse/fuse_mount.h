// Making and undoing the mount itself: mount(2) as root, fusermount3 else; and what
// /proc/self/mountinfo says of it. Nothing here sends a request to the mounted filesystem.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/base/mount_table.h"
#include "mountd/fuse/fuse_session.h"

namespace fermata::mountd {

inline constexpr const char* kFilesystemType = "fuse.fermata";

/// The topmost mount at exactly `path` (absolute, no symbolic links), if there is one.
std::optional<MountInfo> find_mount(const std::string& path);
/// A mount of the filesystem with that st_dev.
std::optional<MountInfo> find_mount(std::uint64_t device_number);

/// Checks that `options.mount_point` can be mounted on, and returns its real path. On failure
/// returns an empty path and fills `error`.
std::string check_mount_point(const MountOptions& options, MountError& error);

/// mount(2) on a fresh /dev/fuse descriptor, which it returns; below 0: `error` is filled.
int mount_as_root(const MountOptions& options, const std::string& path, MountError& error);

/// The -o list for libfuse, which hands it to fusermount3.
std::string fusermount_options(const MountOptions& options);

/// Detaches the mount at `path` if it still is the one with `device_number`.
Status detach_mount(const std::string& path, std::uint64_t device_number);

/// Whether this process has CAP_SYS_ADMIN, which mount(2) and passthrough take.
bool has_admin_capability();

}  // namespace fermata::mountd
