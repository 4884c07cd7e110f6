// What every codec shares: Cap'n Proto messages to bytes and back, safely. Only codecs (.cc files
// of common/wire and tests) include this; capnp and kj are seen nowhere else.
//
// The segment table is checked here before the library sees it (Debian's 0.9.2 lacks the check of
// segment counts that came with 1.4.0), reading is bounded against amplification, and kj's
// exceptions end here.
#pragma once

#include <capnp/message.h>
#include <capnp/serialize.h>
#include <kj/exception.h>

#include <string>
#include <utility>

#include "common/base/bytes.h"
#include "common/base/result.h"

namespace fermata {

inline constexpr std::uint32_t kCapnpSegmentCountMax = 16;
inline constexpr int kCapnpNestingMax = 16;
/// Reading may follow pointers to at most 8 times the message's words, and a small message always
/// to 64 KiB: what a reader walks twice counts twice.
inline constexpr std::uint64_t kCapnpTraversalFactor = 8;
inline constexpr std::uint64_t kCapnpTraversalWordsMin = 64 * 1024 / sizeof(capnp::word);

/// The whole message with its segment table, ready for a frame's body.
std::string encode_message(capnp::MessageBuilder& message);

/// kBadMessage unless `bytes` is a segment table of at most kCapnpSegmentCountMax segments, each of
/// them there, and nothing else. An empty first segment is refused: no message of ours is one.
Status check_segment_table(ByteView bytes);

/// The bytes in memory aligned as capnp needs them; copies only if they are not.
class AlignedMessage {
 public:
  explicit AlignedMessage(ByteView bytes);
  kj::ArrayPtr<const capnp::word> words() const { return words_; }
  capnp::ReaderOptions options() const;

 private:
  kj::Array<capnp::word> copy_;
  kj::ArrayPtr<const capnp::word> words_;
};

/// Runs `read(capnp::MessageReader&)`, which returns a Result, on a message of `bytes`. What it
/// returns must not refer to the message. kBadMessage if the table, a bound or a pointer is wrong.
template <class F>
auto decode_message(ByteView bytes, F&& read)
    -> decltype(read(std::declval<capnp::MessageReader&>())) {
  FM_CHECK(check_segment_table(bytes));
  try {
    const AlignedMessage message(bytes);
    capnp::FlatArrayMessageReader reader(message.words(), message.options());
    return std::forward<F>(read)(reader);
  } catch (const kj::Exception&) {
    return Errc::kBadMessage;
  }
}

}  // namespace fermata
