// Cases that pass on a local filesystem and are known to fail on a mount, each with its reason.
// docs/POSIX.md tells the same to users. A case that is here and passes is an error too: the line
// has to go.
#pragma once

#include <string_view>

namespace fermata::posix {

enum class Path { kBoth, kPassthrough, kOrdinary };

struct KnownDifference {
  std::string_view name;  ///< of the case, or of all that begin with it if it ends with '*'
  Path path;
  std::string_view reason;
};

inline constexpr KnownDifference kKnownDifferences[] = {
    {"fallocate: COLLAPSE_RANGE takes blocks out", Path::kBoth,
     "the kernel's FUSE passes on neither mode and answers EOPNOTSUPP itself"},
    {"fallocate: INSERT_RANGE puts a hole in", Path::kBoth,
     "the kernel's FUSE passes on neither mode and answers EOPNOTSUPP itself"},
    {"OFD lock: F_GETLK shows it with the process id -1", Path::kBoth,
     "the kernel's FUSE takes the answer for a process id of its own and makes 0 of it"},
};

}  // namespace fermata::posix
