#include "common/net/frame_reader.h"

#include <algorithm>
#include <cstring>

namespace fermata {

namespace {
constexpr std::size_t kBufferSize = 32 * 1024;
// Content up to this size is read through the buffer, together with what follows it.
constexpr std::size_t kBufferedMax = kBufferSize / 2;
}  // namespace

FrameReader::FrameReader(Stream& stream, FrameLimits limits,
                         std::function<void(std::size_t)> on_bytes)
    : stream_(stream), limits_(limits), on_bytes_(std::move(on_bytes)), buffer_(kBufferSize) {}

boost::asio::awaitable<std::size_t> FrameReader::read(MutableByteView into) {
  const IoResult got = co_await stream_.read_some(into);
  if (got.error) co_return 0;
  if (got.size_bytes != 0) on_bytes_(got.size_bytes);
  co_return got.size_bytes;
}

boost::asio::awaitable<bool> FrameReader::fill(std::size_t size) {
  while (buffered() < size) {
    if (begin_ != 0) {
      std::memmove(buffer_.data(), buffer_.data() + begin_, buffered());
      end_ -= begin_;
      begin_ = 0;
    }
    const std::size_t got = co_await read(MutableByteView(buffer_).subspan(end_));
    if (got == 0) co_return false;
    end_ += got;
  }
  co_return true;
}

boost::asio::awaitable<bool> FrameReader::take(MutableByteView into) {
  const std::size_t ready = std::min(into.size(), buffered());
  if (ready != 0) std::memcpy(into.data(), buffer_.data() + begin_, ready);
  begin_ += ready;
  into = into.subspan(ready);
  while (!into.empty()) {
    const std::size_t got = co_await read(into);
    if (got == 0) co_return false;
    into = into.subspan(got);
  }
  co_return true;
}

Task<Frame> FrameReader::next(std::optional<FrameKind> only) {
  while (buffered() < kFrameHeaderSize) {
    const bool more = co_await fill(buffered() + 1);
    const ByteView begun = ByteView(buffer_).subspan(begin_, buffered());
    if (!may_begin_frame(begun)) co_return Errc::kBadMessage;
    if (more) continue;
    truncated_ = !begun.empty();
    co_return Errc::kConnectionLost;
  }
  const std::span<const std::byte, kFrameHeaderSize> head(buffer_.data() + begin_,
                                                          kFrameHeaderSize);
  FM_CO_TRY(const FrameHeader header, decode_header(head, limits_));
  if (only && header.kind != *only) co_return Errc::kBadMessage;
  begin_ += kFrameHeaderSize;

  Frame frame;
  frame.header = header;
  const std::size_t content_size = std::size_t{header.body_size} + header.payload_size;
  truncated_ = true;  // until all of it is here
  if (content_size <= kBufferedMax && buffered() < content_size && !co_await fill(content_size)) {
    co_return Errc::kConnectionLost;
  }
  frame.body.resize(header.body_size);
  const MutableByteView body(reinterpret_cast<std::byte*>(frame.body.data()), frame.body.size());
  if (!body.empty() && !co_await take(body)) co_return Errc::kConnectionLost;
  if (header.payload_size != 0) {
    frame.payload = Buffer::allocate(header.payload_size);
    if (!co_await take(frame.payload.mutable_view())) co_return Errc::kConnectionLost;
  }
  truncated_ = false;
  FM_CO_CHECK(check_content(header, body, frame.payload.view()));
  co_return frame;
}

}  // namespace fermata
