// The command line of fermata-mountd, and its -o mount options.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "mountd/fs/atime.h"
#include "mountd/fs/identity.h"
#include "mountd/fuse/fuse_session.h"

namespace fermata::mountd {

struct MountdOptions {
  std::vector<std::string> servers;  ///< HOST:PORT
  std::string mount_point;           ///< absolute
  std::string cache_dir;             ///< absolute
  std::uint64_t cache_size_bytes = 10ULL << 30;
  std::string pidfile;
  std::string log_file;  ///< empty: stderr
  std::string log_level = "info";
  bool foreground = false;
  std::chrono::seconds mount_timeout{30};  ///< for the first answer of the cluster
  unsigned loop_count = 0;                 ///< 0: one per CPU

  // -o
  bool read_only = false;
  AtimeRule atime = AtimeRule::kRelative;
  bool suid = false;
  bool dev = false;
  bool exec = true;
  bool passthrough = true;
  bool lock_delegation = true;
  bool exclusive = true;
  IoUring io_uring = IoUring::kAuto;
  bool soft = false;
  std::chrono::seconds soft_timeout{30};
  std::chrono::nanoseconds attr_timeout = std::chrono::hours(1);
  std::chrono::nanoseconds entry_timeout = std::chrono::hours(1);
  Identity identity;
};

/// Takes one -o argument ("ro,attr_timeout=5"). The error is a sentence for the user; empty is
/// success. An unknown option is an error: a misspelt "ro" must not mount read-write.
std::string apply_mount_options(MountdOptions& to, const std::string& text);

/// All of them, for --help.
std::string mount_option_names();

/// "10G", "512M", "1048576": bytes; EINVAL for anything else.
Result<std::uint64_t> parse_size(const std::string& text);

}  // namespace fermata::mountd
