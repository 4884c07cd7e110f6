// Checksums and digests, each by a library or an instruction of the CPU.
#pragma once

#include <cstdint>

#include "common/base/bytes.h"
#include "common/base/ids.h"

namespace fermata {

/// CRC-32C (Castagnoli), as in RFC 3720; `seed` continues an earlier part.
std::uint32_t crc32c(ByteView bytes, std::uint32_t seed = 0);

/// XXH3, 64 bits: finds changed blocks, not forgeries.
std::uint64_t xxh3(ByteView bytes);

/// The name of `bytes` as a chunk: SHA-256 (OpenSSL, with the CPU's SHA instructions).
ChunkId chunk_id_of(ByteView bytes);

}  // namespace fermata
