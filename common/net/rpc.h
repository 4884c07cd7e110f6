// Remote calls between Fermata's programs: many requests in flight on one connection, answers in
// any order, either end may ask. docs/PROTOCOL.md has the frame; this header is what callers see.
// Bound to TCP by tcp_network.h and, with faults, to a seeded network by the simulator.
//
// Thread-safety: a Network and its connections belong to one executor (the one it was made with):
// call and destroy them there.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/base/buffer.h"
#include "common/base/ids.h"
#include "common/base/result.h"
#include "common/env/clock.h"

namespace fermata {

/// Who speaks, said once at the start of a connection and checked by the other end.
struct Hello {
  enum class Kind : std::uint8_t { kClient = 1, kNode = 2, kAdmin = 3 };
  Kind kind = Kind::kClient;
  ClusterId
      cluster;  ///< zero: not known yet; the answering node tells. Else a mismatch is kWrongCluster
  NodeId node;  ///< kNode: the speaker's id
  SessionId session;  ///< kClient: for logs
  std::string name;   ///< for logs: host and process
};

struct Request {
  std::uint16_t method = 0;  ///< common/wire/methods.h
  GroupId group = kFirstGroup;
  VolumeId volume;
  std::string body;  ///< one encoded message
  Buffer payload;    ///< raw bytes beside it, never copied through the message
};

struct Response {
  std::error_code error;  ///< the callee's verdict; travels in the frame header
  std::string body;       ///< may be there with an error too (a hint to the primary)
  Buffer payload;
};

class Connection {
 public:
  virtual ~Connection() = default;
  /// Asks and waits for the answer. A Result error is the transport's (kConnectionLost: outcome
  /// unknown; kDeadlineExceeded; kTooLarge: not sent); the callee's own is Response::error.
  /// Cancelling the coroutine tells the peer and resumes with operation_canceled.
  virtual Task<Response> call(Request request, Duration timeout) = 0;
  /// Sends without an answer; silently dropped if the connection is closed or its queue is over its
  /// bound.
  virtual void send(Request request) = 0;
  virtual void close() = 0;
  virtual bool is_open() const = 0;
  virtual const Hello& peer() const = 0;  ///< what the other end said of itself
  virtual const std::string& peer_address() const = 0;
};

/// What a program does with requests that arrive.
class Handler {
 public:
  virtual ~Handler() = default;
  /// Runs as a coroutine of its own; cancelled when the peer cancels or the connection ends. For a
  /// one-way message the answer is dropped.
  virtual boost::asio::awaitable<Response> handle(std::shared_ptr<Connection> from,
                                                  Request request) = 0;
  /// A connection said hello; an error refuses it.
  virtual Status on_connect(const std::shared_ptr<Connection>&) { return {}; }
  virtual void on_disconnect(const std::shared_ptr<Connection>&) {}
};

class Listener {
 public:
  virtual ~Listener() = default;                   ///< stops listening and closes what it accepted
  virtual const std::string& address() const = 0;  ///< HOST:PORT, with the real port
};

/// Counts since the start of the Network.
struct NetworkStats {
  std::uint64_t accepted = 0;       ///< connections taken from the listening sockets
  std::uint64_t connected = 0;      ///< connections that connect() opened
  std::uint64_t refused = 0;        ///< closed before they were open: limits, hello, handler's no
  std::uint64_t silent = 0;         ///< the other end closed before its hello: looked at the port
  std::uint64_t malformed = 0;      ///< connections closed for bytes that are not the protocol's
  std::uint64_t dead = 0;           ///< connections closed for silence
  std::uint64_t accept_errors = 0;  ///< EMFILE and the like; the listener goes on
  std::uint64_t bytes_in = 0;
  std::uint64_t bytes_out = 0;
  std::uint64_t frames_in = 0;
  std::uint64_t frames_out = 0;
  std::uint64_t writes = 0;         ///< system calls' worth: frames_out / writes are gathered
  std::uint64_t calls = 0;          ///< call()s made here
  std::uint64_t requests = 0;       ///< requests and one-way messages that arrived
  std::uint64_t sends_dropped = 0;  ///< send()s dropped for a full queue
};

class Network {
 public:
  virtual ~Network() = default;
  /// `handler` answers what the other end asks on this connection; may be null. It outlives the
  /// connection. Errors: ECONNREFUSED and other errnos, kDeadlineExceeded, kVersionMismatch,
  /// kWrongCluster.
  virtual Task<std::shared_ptr<Connection>> connect(std::string address, Hello hello,
                                                    Handler* handler, Duration timeout) = 0;
  /// `hello` is what this end answers. EADDRINUSE and the like.
  virtual Result<std::unique_ptr<Listener>> listen(const std::string& address, Hello hello,
                                                   Handler& handler) = 0;
  virtual const NetworkStats& stats() const = 0;
};

}  // namespace fermata
