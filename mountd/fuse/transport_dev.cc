#include "mountd/fuse/transport_dev.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <future>

#include "common/base/assert.h"
#include "common/base/errc.h"

namespace fermata::mountd {
namespace {

/// Requests of one wake-up before other work of the loop has its turn.
constexpr int kReadBudget = 32;
/// So often a reader that finds one request at a time looks whether there is another.
constexpr unsigned kProbeEvery = 16;

Result<int> clone_device(int device_fd) {
  const int fd = ::open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return last_errno();
  auto source = static_cast<std::uint32_t>(device_fd);
  if (::ioctl(fd, abi::kIoctlClone, &source) != 0) {
    const auto error = last_errno();
    ::close(fd);
    return error;
  }
  return fd;
}

}  // namespace

Result<std::shared_ptr<DevTransport>> DevTransport::create(int device_fd, Loops& loops,
                                                           unsigned reader_count,
                                                           TransportHost& host,
                                                           std::size_t request_size_max) {
  std::shared_ptr<DevTransport> transport(new DevTransport(loops, host));
  transport->buffer_size_ = request_size_max;
  for (unsigned loop = 0; loop < reader_count; ++loop) {
    auto reader = std::make_unique<Reader>();
    reader->loop = loop;
    if (loop == 0) {
      reader->fd = device_fd;
      const int flags = ::fcntl(device_fd, F_GETFL);
      if (flags < 0 || ::fcntl(device_fd, F_SETFL, flags | O_NONBLOCK) != 0) return last_errno();
    } else {
      FM_TRY(reader->fd, clone_device(device_fd));
    }
    // Not value-initialised: the pages cost memory only once a large WRITE has touched them.
    reader->buffer.reset(new std::byte[request_size_max]);
    transport->readers_.push_back(std::move(reader));
  }
  FM_TRY(transport->control_fd_, clone_device(device_fd));
  return transport;
}

DevTransport::~DevTransport() {
  for (auto& reader : readers_) {
    if (reader->watch) reader->watch->release();
    if (reader->fd >= 0) ::close(reader->fd);
  }
  if (control_fd_ >= 0) ::close(control_fd_);
}

Status DevTransport::start() {
  for (auto& reader : readers_) {
    auto* at = reader.get();
    boost::asio::post(loops_.context(at->loop), [self = shared_from_this(), at] {
      at->watch = std::make_unique<boost::asio::posix::stream_descriptor>(
          self->loops_.context(at->loop), at->fd);
      at->reading = true;
      self->read_next(*at);
    });
  }
  return {};
}

// Waiting for the descriptor and then reading would take a call to arm the wait each time.
void DevTransport::read_next(Reader& reader) {
  reader.watch->async_read_some(
      boost::asio::buffer(reader.buffer.get(), buffer_size_),
      [self = shared_from_this(), &reader](const boost::system::error_code& error,
                                           std::size_t size) {
        if (!reader.reading) return;
        const bool at_end = error == boost::asio::error::eof;  // the device was closed
        self->take(reader, size, error && !at_end ? error.value() : 0);
        if (reader.reading && (reader.crowded || ++reader.turn_count % kProbeEvery == 0)) {
          self->read_more(reader);
        }
        if (reader.reading) self->read_next(reader);
      });
}

// Saves going through the loop for each request while there are many.
void DevTransport::read_more(Reader& reader) {
  for (int budget = kReadBudget; budget > 0 && reader.reading; --budget) {
    const auto size = ::read(reader.fd, reader.buffer.get(), buffer_size_);
    reader.crowded = size >= 0 || errno != EAGAIN;
    if (!reader.crowded) return;
    take(reader, size < 0 ? 0 : static_cast<std::size_t>(size), size < 0 ? errno : 0);
  }
}

void DevTransport::take(Reader& reader, std::size_t size, int error) {
  // ENOENT: the request was interrupted before it was read. EINTR: a signal.
  if (error == ENOENT || error == EINTR) return;
  if (error == 0 && size > 0) {
    reader.request_count.fetch_add(1, std::memory_order_relaxed);
    host_.process(reader.loop, {reader.buffer.get(), size});
    return;
  }
  reader.reading = false;
  reader.watch->release();
  reader.watch.reset();
  host_.connection_lost(from_errno(error > 0 ? error : ENODEV));
}

void DevTransport::stop_reading() {
  if (std::exchange(stopped_, true)) return;
  for (auto& reader : readers_) stop_reading_on(*reader);
}

void DevTransport::read_on_one_loop() {
  for (auto& reader : readers_) {
    if (reader->loop != 0) stop_reading_on(*reader);
  }
}

void DevTransport::stop_reading_on(Reader& reader) {
  std::promise<void> done;
  boost::asio::post(loops_.context(reader.loop), [&reader, &done] {
    reader.reading = false;
    if (reader.watch)
      reader.watch->release();  // ends the wait; the descriptor stays open for answers
    reader.watch.reset();
    done.set_value();
  });
  done.get_future().wait();
}

TransportCounters DevTransport::counters() const {
  TransportCounters all;
  for (const auto& reader : readers_) {
    all.device_request_count += reader->request_count.load(std::memory_order_relaxed);
  }
  return all;
}

ssize_t DevTransport::reply(unsigned loop, const iovec* parts, int count) {
  if (loop >= readers_.size()) {  // it has read no request
    errno = ENOENT;
    return -1;
  }
  return ::writev(readers_[loop]->fd, parts, count);
}

void DevTransport::close() {
  if (closed_.exchange(true)) return;
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) {
    spdlog::error("fuse: cannot open /dev/null to retire the device: {}", last_errno().message());
    return;
  }
  // Readers first: their requests fail then, which frees a notification that waits in the kernel.
  for (auto& reader : readers_) ::dup3(null, reader->fd, O_CLOEXEC);
  ::dup3(null, control_fd_, O_CLOEXEC);
  ::close(null);
}

}  // namespace fermata::mountd
