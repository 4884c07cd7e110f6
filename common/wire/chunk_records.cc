#include "common/wire/chunk_records.h"

namespace fermata {

void append_chunk_records(std::string& out, const std::vector<ChunkRef>& refs) {
  out.reserve(out.size() + refs.size() * kChunkRecordBytes);
  for (const ChunkRef& ref : refs) {
    append_le(out, ref.index);
    append_le(out, ref.id.algorithm);
    out.append(reinterpret_cast<const char*>(ref.id.digest.data()), ref.id.digest.size());
  }
}

Result<std::vector<ChunkRef>> parse_chunk_records(ByteView bytes) {
  if (bytes.size() % kChunkRecordBytes != 0) return Errc::kBadMessage;
  std::vector<ChunkRef> refs(bytes.size() / kChunkRecordBytes);
  const std::byte* at = bytes.data();
  for (std::size_t i = 0; i < refs.size(); ++i, at += kChunkRecordBytes) {
    ChunkRef& ref = refs[i];
    ref.index = load_le<std::uint32_t>(at);
    ref.id.algorithm = load_le<std::uint8_t>(at + 4);
    std::memcpy(ref.id.digest.data(), at + 5, ref.id.digest.size());
    if (ref.id.algorithm > ChunkId::kSha256) return Errc::kBadMessage;
    if (ref.id.algorithm == ChunkId::kNone && ref.id != ChunkId{}) return Errc::kBadMessage;
    if (i != 0 && refs[i - 1].index >= ref.index) return Errc::kBadMessage;
  }
  return refs;
}

}  // namespace fermata
