// Attributes between the cluster's form and the kernel's.
#pragma once

#include <sys/stat.h>
#include <time.h>

#include "common/wire/messages.h"
#include "mountd/cache/posix_file.h"

namespace fermata::mountd {

/// S_IFMT bits.
mode_t mode_type(FileType type);
/// From S_IFMT bits; regular for unknown ones.
FileType type_of_mode(mode_t mode);
struct stat to_stat(const Attr& attr);
/// Puts what the backing file knows better over `to`: size and allocation.
void overlay_backing(struct stat& to, const BackingStat& backing);

/// Of an answer about an inode: it has been removed.
bool means_gone(std::error_code error);

/// Since 1970. Saturates: 64 bits of nanoseconds end in 2262.
std::int64_t to_ns(const Timestamp& time);
Timestamp from_ns(std::int64_t ns);
Timestamp from_timespec(const timespec& time);
timespec to_timespec(const Timestamp& time);

}  // namespace fermata::mountd
