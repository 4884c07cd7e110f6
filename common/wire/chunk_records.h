// Chunk lists as they travel in payloads and lie in the log: fixed records of 37 bytes.
#pragma once

#include <vector>

#include "common/base/buffer.h"
#include "common/base/result.h"
#include "common/wire/messages.h"

namespace fermata {

inline constexpr std::size_t kChunkRecordBytes = 37;

/// u32 index, u8 algorithm, 32 bytes digest, each; `refs` sorted by index.
void append_chunk_records(std::string& out, const std::vector<ChunkRef>& refs);
/// kBadMessage if the size is no multiple, indexes do not rise, or an algorithm is unknown (0, a
/// hole, is allowed).
Result<std::vector<ChunkRef>> parse_chunk_records(ByteView bytes);

}  // namespace fermata
