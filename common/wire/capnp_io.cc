#include "common/wire/capnp_io.h"

#include <algorithm>
#include <cstring>

namespace fermata {

std::string encode_message(capnp::MessageBuilder& message) {
  const auto segments = message.getSegmentsForOutput();
  const auto count = static_cast<std::uint32_t>(segments.size());
  std::size_t words = 0;
  for (const auto& segment : segments) words += segment.size();
  std::string out;
  const std::size_t table_size = (count / 2 + 1) * sizeof(capnp::word);
  out.reserve(table_size + words * sizeof(capnp::word));
  append_le<std::uint32_t>(out, count - 1);
  for (const auto& segment : segments) {
    append_le<std::uint32_t>(out, static_cast<std::uint32_t>(segment.size()));
  }
  out.resize(table_size, '\0');  // pads the table to a whole word
  for (const auto& segment : segments) {
    const auto bytes = segment.asBytes();
    out.append(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  }
  return out;
}

Status check_segment_table(ByteView bytes) {
  constexpr std::size_t kWord = sizeof(capnp::word);
  if (bytes.size() < kWord || bytes.size() % kWord != 0) return Errc::kBadMessage;
  const auto last = load_le<std::uint32_t>(bytes.data());
  if (last >= kCapnpSegmentCountMax) return Errc::kBadMessage;
  const std::size_t count = last + 1U;
  const std::size_t table_size = (count / 2 + 1) * kWord;
  if (bytes.size() < table_size) return Errc::kBadMessage;
  const std::uint64_t words_there = (bytes.size() - table_size) / kWord;
  std::uint64_t words = 0;  // 16 times 2^32 fits
  for (std::size_t i = 0; i < count; ++i) {
    const auto size = load_le<std::uint32_t>(bytes.data() + 4 + 4 * i);
    if (i == 0 && size == 0) return Errc::kBadMessage;
    words += size;
  }
  if (words != words_there) return Errc::kBadMessage;
  return {};
}

AlignedMessage::AlignedMessage(ByteView bytes) {
  const std::size_t count = bytes.size() / sizeof(capnp::word);
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % alignof(capnp::word) == 0) {
    words_ = kj::arrayPtr(reinterpret_cast<const capnp::word*>(bytes.data()), count);
    return;
  }
  copy_ = kj::heapArray<capnp::word>(count);
  std::memcpy(copy_.begin(), bytes.data(), count * sizeof(capnp::word));
  words_ = copy_;
}

capnp::ReaderOptions AlignedMessage::options() const {
  capnp::ReaderOptions options;
  options.traversalLimitInWords =
      std::max(words_.size() * kCapnpTraversalFactor, kCapnpTraversalWordsMin);
  options.nestingLimit = kCapnpNestingMax;
  return options;
}

}  // namespace fermata
