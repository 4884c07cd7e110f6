// A connected stream of bytes, the only thing a connection (connection.h) knows of the world below
// it: a TCP socket, or a pipe of the simulator.
//
// TLS has its place here: a TlsStream wraps a TcpStream, does its handshake between connect or
// accept and the hello (TcpNetwork makes its streams in one function, make_stream), and reports
// needs_checksums() == false. Nothing above changes.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <cstddef>
#include <span>
#include <string>
#include <system_error>

#include "common/base/bytes.h"

namespace fermata {

struct IoResult {
  std::error_code error;
  std::size_t size_bytes = 0;  ///< 0 without an error: the peer has ended the stream
};

class Stream {
 public:
  virtual ~Stream() = default;
  /// Reads what is there, at least one byte. One reader and one writer at a time.
  virtual boost::asio::awaitable<IoResult> read_some(MutableByteView into) = 0;
  /// Writes all parts in order. `parts` and what they refer to outlive the call.
  virtual boost::asio::awaitable<std::error_code> write(std::span<const ByteView> parts) = 0;
  /// Ends both directions; what was written before is still sent. A pending read or write resumes
  /// with an error. Idempotent.
  virtual void close() = 0;
  virtual const std::string& peer_address() const = 0;
  virtual bool needs_checksums() const { return true; }
};

}  // namespace fermata
