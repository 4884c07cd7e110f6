#include "common/wire/capnp_io.h"

#include <algorithm>

namespace fermata::wire {

std::string flatten(capnp::MessageBuilder& builder) {
  const auto segments = builder.getSegmentsForOutput();
  std::size_t size = (segments.size() / 2 + 1) * sizeof(capnp::word);
  for (const auto& segment : segments) size += segment.asBytes().size();
  std::string out;
  out.reserve(size);
  append_le(out, static_cast<std::uint32_t>(segments.size() - 1));
  for (const auto& segment : segments) append_le(out, static_cast<std::uint32_t>(segment.size()));
  if (segments.size() % 2 == 0) append_le(out, std::uint32_t{0});
  for (const auto& segment : segments) {
    const auto bytes = segment.asBytes();
    out.append(reinterpret_cast<const char*>(bytes.begin()), bytes.size());
  }
  return out;
}

Result<CheckedMessage> CheckedMessage::check(ByteView bytes) {
  if (bytes.size() < sizeof(capnp::word) || bytes.size() % sizeof(capnp::word) != 0) return Errc::kBadMessage;
  const auto last = load_le<std::uint32_t>(bytes.data());
  if (last >= kSegmentsMax) return Errc::kBadMessage;
  const std::uint64_t count = std::uint64_t{last} + 1;
  const std::uint64_t table_words = count / 2 + 1;
  if (table_words * sizeof(capnp::word) > bytes.size()) return Errc::kBadMessage;
  std::uint64_t words = table_words;
  for (std::uint64_t i = 0; i < count; ++i) words += load_le<std::uint32_t>(bytes.data() + 4 + 4 * i);
  if (words * sizeof(capnp::word) != bytes.size()) return Errc::kBadMessage;
  CheckedMessage message;
  message.words_.resize(bytes.size() / sizeof(capnp::word));
  std::memcpy(message.words_.data(), bytes.data(), bytes.size());
  return message;
}

capnp::ReaderOptions CheckedMessage::options() const {
  capnp::ReaderOptions options;
  options.traversalLimitInWords = std::max<std::uint64_t>(8 * words_.size(), 1024);
  options.nestingLimit = kNestingMax;
  return options;
}

}  // namespace fermata::wire
