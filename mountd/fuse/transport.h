// How requests come from the kernel and answers go back, below libfuse.
//
// libfuse decodes requests that TransportHost::process() is given and writes each answer through
// Transport::reply(). Today there is /dev/fuse (transport_dev.h); FUSE over io_uring fits under the
// same calls (rings are made in before_init_reply() and registered in after_init_reply(); `reply`
// fills the ring's header and payload; INTERRUPT, FORGET and notifications stay on /dev/fuse).
//
// A request belongs to the loop that read it: process() runs on that loop's thread, and so does
// reply() for it, now or later.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <system_error>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "mountd/fuse/fuse_abi.h"

namespace fermata::mountd {

class TransportHost {
 public:
  virtual ~TransportHost() = default;
  /// One whole request, on its loop. The bytes are used only until this returns.
  virtual void process(unsigned loop, MutableByteView request) = 0;
  /// The kernel's end is gone: unmounted or aborted. May be called by several loops.
  virtual void connection_lost(std::error_code why) = 0;
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
  /// Lets a transport take part in the INIT that passes on /dev/fuse.
  virtual void before_init_reply(const abi::InitIn&, abi::InitOut&) {}
  virtual void after_init_reply() {}
  /// A descriptor of the connection on which notifications and ioctls go, from any thread.
  virtual int control_fd() const = 0;
  /// Closes the device: the kernel fails every request that is not answered. Calls after it do
  /// nothing. After stop_reading(). Idempotent.
  virtual void close() = 0;
};

}  // namespace fermata::mountd
