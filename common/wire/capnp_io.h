// Between Cap'n Proto messages and byte strings. Only codecs include this header: capnp and kj go no further.
//
// Debian's Cap'n Proto is 0.9.2, which lacks the fix for a segment count that overflows (first in 1.4.0), so the
// segment table is checked here before the library sees a message; traversal and nesting are bounded, and
// kj's exceptions end here as kBadMessage.
#pragma once

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/exception.h>

#include <array>
#include <string>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace fermata::wire {

inline constexpr std::uint32_t kSegmentsMax = 16;
inline constexpr int kNestingMax = 16;

/// Builds one message with its first 4 KiB on the stack.
template <class Schema>
class Writer {
 public:
  Writer() : builder_(kj::arrayPtr(scratch_.data(), scratch_.size())), root_(builder_.initRoot<Schema>()) {}
  typename Schema::Builder root() { return root_; }
  /// The message with its segment table, as in the framing of capnproto.org/encoding.html.
  std::string finish();

 private:
  std::array<capnp::word, 512> scratch_{};
  capnp::MallocMessageBuilder builder_;
  typename Schema::Builder root_;
};

std::string flatten(capnp::MessageBuilder& builder);

template <class Schema>
std::string Writer<Schema>::finish() {
  return flatten(builder_);
}

/// A message's bytes, aligned and with their segment table checked.
class CheckedMessage {
 public:
  static Result<CheckedMessage> check(ByteView bytes);
  kj::ArrayPtr<const capnp::word> words() const { return {words_.data(), words_.size()}; }
  capnp::ReaderOptions options() const;

 private:
  std::vector<capnp::word> words_;
};

/// Decodes `bytes` as Schema by `read(Schema::Reader) -> Result<T>`.
template <class Schema, class Read>
auto decode_message(ByteView bytes, Read&& read) -> decltype(read(std::declval<typename Schema::Reader>())) {
  auto checked = CheckedMessage::check(bytes);
  if (!checked) return checked.error();
  try {
    capnp::FlatArrayMessageReader reader(checked->words(), checked->options());
    return read(reader.getRoot<Schema>());
  } catch (const kj::Exception&) {
    return Errc::kBadMessage;
  } catch (const std::exception&) {
    return Errc::kBadMessage;
  }
}

}  // namespace fermata::wire
