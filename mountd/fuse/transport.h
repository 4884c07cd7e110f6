// How requests come from the kernel and answers go back, below libfuse.
//
// libfuse decodes requests that TransportHost::process() is given and writes each answer through
// Transport::reply(). There are two: /dev/fuse (transport_dev.h), and above it FUSE over io_uring
// (transport_uring.h).
//
// A request belongs to the loop that read it: process() runs on that loop's thread, and so does
// reply() for it, now or later.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <string>
#include <system_error>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "mountd/fuse/fuse_abi.h"

namespace fermata::mountd {

class TransportHost {
 public:
  virtual ~TransportHost() = default;
  /// One whole request, on its loop. The bytes are used only until this returns or the request is
  /// answered, whichever is first.
  virtual void process(unsigned loop, MutableByteView request) = 0;
  /// The kernel's end is gone: unmounted or aborted. May be called by several loops.
  virtual void connection_lost(std::error_code why) = 0;
};

struct TransportCounters {
  std::uint64_t device_request_count = 0;  ///< read from /dev/fuse, FORGET and INTERRUPT included
  std::uint64_t ring_request_count = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  /// Begins to read, on the loops.
  virtual Status start() = 0;
  /// On return no loop calls process() any more. Call it on none of the loops. Idempotent.
  virtual void stop_reading() = 0;
  /// Writes one whole answer; returns as writev(2) does, with errno. On the loop of the request.
  virtual ssize_t reply(unsigned loop, const iovec* parts, int count) = 0;
  /// Where data of the answer to an unanswered request may be put so that reply() need not copy it;
  /// empty if there is no such place. It overwrites names and data of the request. On its loop.
  virtual MutableByteView answer_buffer(unsigned /*loop*/, std::uint64_t /*unique*/) { return {}; }
  /// Lets a transport take part in the INIT that passes on /dev/fuse.
  virtual void before_init_reply(const abi::InitIn&, abi::InitOut&) {}
  virtual void after_init_reply() {}
  /// Once, after INIT has been answered: waits until the way of requests is settled. Empty, or why
  /// it is not the one that was wished. Call it on none of the loops.
  virtual std::string settle() { return {}; }
  /// Requests come over io_uring.
  virtual bool over_ring() const { return false; }
  virtual TransportCounters counters() const = 0;
  /// A descriptor of the connection on which notifications and ioctls go, from any thread.
  virtual int control_fd() const = 0;
  /// Closes the device: the kernel fails every request that is not answered. Calls after it do
  /// nothing. After stop_reading(). Idempotent.
  virtual void close() = 0;
};

}  // namespace fermata::mountd
