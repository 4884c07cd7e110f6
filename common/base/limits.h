// Limits that the formats and the protocol share. A change to one is a change of format.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fermata {

inline constexpr std::size_t kChunkSizeBytes = 1u << 20;   ///< a file's chunk i is its i-th MiB
inline constexpr std::size_t kChunkSizeMax = 4u << 20;     ///< that a chunk store accepts
inline constexpr std::size_t kInlineBytesMax = 64u << 10;  ///< content kept in the metadata
/// 16 TiB less a block, as ext4, on which caches lie; a client keeps 8 bytes in memory per MiB.
inline constexpr std::uint64_t kFileSizeMax = (1ULL << 44) - 4096;
inline constexpr std::size_t kNameMax = 255;              ///< bytes of a dentry's name
inline constexpr std::size_t kPathMax = 4096;             ///< with the terminating zero
inline constexpr std::size_t kSymlinkMax = 4095;          ///< bytes of a symlink's target
inline constexpr std::size_t kXattrNameMax = 255;         ///< with its namespace ("user.")
inline constexpr std::size_t kXattrValueMax = 64u << 10;  ///< as Linux (XATTR_SIZE_MAX)
inline constexpr std::size_t kXattrListMax = 64u
                                             << 10;  ///< all names of one inode (XATTR_LIST_MAX)
inline constexpr std::size_t kXattrsBytesMax = 256u << 10;  ///< all names and values of one inode
inline constexpr std::uint32_t kLinkCountMax = 65'000;      ///< names of one inode, as ext4
inline constexpr std::size_t kLocksPerFileMax = 10'000;     ///< ranges held, of one kind

}  // namespace fermata
