// Cuts a stream into frames. Small frames are read many at a time through a buffer; a big payload
// goes from the stream straight into the Buffer it is handed on in.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/base/buffer.h"
#include "common/net/stream.h"
#include "common/wire/frame.h"

namespace fermata {

struct Frame {
  FrameHeader header;
  std::string body;
  Buffer payload;
};

class FrameReader {
 public:
  /// `on_bytes` hears of every read. `stream` outlives this.
  FrameReader(Stream& stream, FrameLimits limits, std::function<void(std::size_t)> on_bytes);

  /// The next frame, checked; with `only`, a frame of another kind is kBadMessage before its body
  /// is read. kConnectionLost at the end of the stream; else as decode_header and check_content.
  /// After an error the stream is out of step: close it.
  Task<Frame> next(std::optional<FrameKind> only = {});
  /// The stream ended within a frame.
  bool truncated() const { return truncated_; }

 private:
  boost::asio::awaitable<bool> fill(std::size_t size);      ///< until so much is buffered
  boost::asio::awaitable<bool> take(MutableByteView into);  ///< buffered bytes first
  boost::asio::awaitable<std::size_t> read(MutableByteView into);
  std::size_t buffered() const { return end_ - begin_; }

  Stream& stream_;
  const FrameLimits limits_;
  const std::function<void(std::size_t)> on_bytes_;
  std::vector<std::byte> buffer_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  bool truncated_ = false;
};

}  // namespace fermata
