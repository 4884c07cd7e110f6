// The transport over /dev/fuse: a clone of the descriptor on each reading loop.
//
// Descriptors are non-blocking. A wake-up reads requests until EAGAIN or a small budget (so that
// the loop's sockets get their turn). An answer must be written to the clone that its request was
// read from: the kernel looks for it there alone.
//
// Closing replaces each descriptor by /dev/null with dup2(2) instead of close(2): a late answer or
// notification on another thread then goes nowhere, and never into a file that got the same number.
#pragma once

#include <atomic>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <memory>
#include <vector>

#include "mountd/fuse/loops.h"
#include "mountd/fuse/transport.h"

namespace fermata::mountd {

class DevTransport : public Transport, public std::enable_shared_from_this<DevTransport> {
 public:
  /// Takes over `device_fd`, the mounted /dev/fuse descriptor; clones it for loops 1 to
  /// `reader_count` - 1 and for control. `host` outlives this.
  static Result<std::shared_ptr<DevTransport>> create(int device_fd, Loops& loops,
                                                      unsigned reader_count, TransportHost& host,
                                                      std::size_t request_size_max);
  ~DevTransport() override;

  Status start() override;
  void stop_reading() override;
  ssize_t reply(unsigned loop, const iovec* parts, int count) override;
  TransportCounters counters() const override;
  int control_fd() const override { return control_fd_; }
  void close() override;
  /// From now on loop 0 alone reads: for a connection of which little comes this way. Call it on
  /// none of the loops.
  void read_on_one_loop();

 private:
  DevTransport(Loops& loops, TransportHost& host) : loops_(loops), host_(host) {}
  struct Reader {
    unsigned loop = 0;
    int fd = -1;
    std::unique_ptr<boost::asio::posix::stream_descriptor> watch;  ///< of the loop
    std::unique_ptr<std::byte[]> buffer;
    bool reading = false;  ///< of the loop
    bool crowded = false;  ///< the last look found another request
    unsigned turn_count = 0;
    std::atomic<std::uint64_t> request_count{0};
  };
  void read_next(Reader& reader);
  void read_more(Reader& reader);
  void take(Reader& reader, std::size_t size, int error);
  void stop_reading_on(Reader& reader);

  Loops& loops_;
  TransportHost& host_;
  std::vector<std::unique_ptr<Reader>> readers_;
  std::size_t buffer_size_ = 0;
  int control_fd_ = -1;
  std::atomic<bool> closed_{false};
  bool stopped_ = false;
};

}  // namespace fermata::mountd
