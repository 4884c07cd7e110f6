// One end of a connection: the protocol of docs/PROTOCOL.md over a Stream.
//
// A reader coroutine cuts the stream into frames and starts a coroutine per request; a writer
// coroutine sends what is queued, many frames in one write. Both hold the connection; it lives
// until they end, which end() brings about. Calls live in the frames of the coroutines that made
// them and are registered here by request id.
//
// Back-pressure: requests wait in parked_calls_ while too many bytes are queued or too many calls
// are unanswered; responses wait in parked_responses_, each keeping its handler's slot, and when
// the slots are used up the reader stops. A caller keeps below the other end's number of slots
// (calls_max <= handled_max), so answers are not stuck behind requests that nobody reads, and
// the two ends may call each other over one connection.
//
// Thread-safety: the network's executor.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <unordered_map>

#include "common/net/frame_reader.h"
#include "common/net/network_core.h"
#include "common/net/rpc.h"

namespace fermata {

class RpcConnection final : public Connection, public std::enable_shared_from_this<RpcConnection> {
 public:
  RpcConnection(std::shared_ptr<NetworkCore> core, std::unique_ptr<Stream> stream,
                Handler* handler);
  ~RpcConnection() override;

  Task<Response> call(Request request, Duration timeout) override;
  void send(Request request) override;
  void close() override;
  bool is_open() const override { return state_ == State::kOpen; }
  const Hello& peer() const override { return peer_; }
  const std::string& peer_address() const override { return stream_->peer_address(); }

  /// Makes it known to the network, which closes it with the others.
  void enlist();
  /// The connecting end's half of the hello; open when it returns without an error.
  static Task<void> greet(std::shared_ptr<RpcConnection> self, Hello hello);
  /// The accepting end's half. Counts and logs what it refuses.
  static boost::asio::awaitable<void> welcome(std::shared_ptr<RpcConnection> self,
                                              std::shared_ptr<ListenerCore> listener);
  /// Ends it without a goodbye; also one that is not open yet.
  void abort();

 private:
  enum class State { kOpening, kOpen, kClosing, kClosed };  // kClosing: the queue is still written
  struct PendingCall;
  struct Handled;
  struct OutFrame;
  enum class Alarm : std::uint8_t { kCall, kHandled };

  void open();
  void end(bool flush);
  void fail_calls();
  void cancel_handlers();
  void refuse(std::error_code error);
  void malformed(const char* what, std::error_code error);
  Status check_hello(const HelloBody& theirs, const Hello& ours) const;

  static boost::asio::awaitable<void> read_loop(std::shared_ptr<RpcConnection> self);
  static boost::asio::awaitable<void> write_loop(std::shared_ptr<RpcConnection> self);
  boost::asio::awaitable<std::error_code> write_batch();
  void read_failed(std::error_code error);
  void take(Frame frame);
  void take_request(Frame frame);
  void take_response(Frame frame);
  void take_cancel(std::uint64_t request_id);

  static Task<Response> do_call(std::shared_ptr<RpcConnection> self, Request request,
                                Duration timeout);
  static boost::asio::awaitable<void> serve(std::shared_ptr<RpcConnection> self,
                                            std::shared_ptr<Handled> handled, Request request);
  void handler_ended(const std::shared_ptr<Handled>& handled, std::exception_ptr escaped);
  void answer(const std::shared_ptr<Handled>& handled, Response response);
  void finish_call(std::uint64_t request_id, Result<Response> result);

  bool has_room(std::size_t size_bytes) const;
  bool may_call(std::size_t size_bytes) const;
  void enqueue(OutFrame frame);
  void enqueue_bare(FrameKind kind, std::uint64_t request_id = 0);
  void pump();  ///< moves parked frames into the queue as far as there is room
  bool reading_must_pause() const;

  void arm_alarm();
  void on_alarm();
  void keep_alive(TimePoint now);
  TimePoint now() const { return core_->timers->now(); }

  const std::shared_ptr<NetworkCore> core_;
  const std::unique_ptr<Stream> stream_;
  Handler* handler_;  // outlives this; null: nothing is answered
  const std::uint64_t id_;
  const bool checksums_;
  FrameLimits limits_;
  FrameReader reader_;
  State state_ = State::kOpening;
  Hello peer_;
  bool accepted_ = false;
  bool half_open_ = false;

  // Out.
  std::deque<OutFrame> out_;
  std::size_t out_bytes_ = 0;    // queued or being written
  std::vector<OutFrame> batch_;  // being written
  std::vector<ByteView> parts_;
  std::deque<OutFrame> parked_calls_;
  std::deque<OutFrame> parked_responses_;
  Waiter out_ready_;

  // Calls made here.
  std::unordered_map<std::uint64_t, PendingCall*> calls_;
  std::size_t calls_sent_ = 0;  // of calls_, those whose request left parked_calls_
  std::uint64_t next_request_id_ = 1;
  std::uint64_t last_sent_id_ = 0;

  // Requests being handled here; one-way messages have keys of their own, from the top.
  std::map<std::uint64_t, std::shared_ptr<Handled>> handled_;
  std::size_t handled_count_ = 0;
  std::size_t handled_bytes_ = 0;
  std::uint64_t last_request_id_ = 0;
  std::uint64_t next_one_way_key_ = ~std::uint64_t{0};
  bool paused_ = false;
  Waiter resume_reading_;

  // Time. One timer serves every deadline and the pings.
  std::set<std::tuple<TimePoint, Alarm, std::uint64_t>> deadlines_;
  std::unique_ptr<Timer> timer_;
  TimePoint armed_ = TimePoint::max();
  TimePoint hard_limit_ = TimePoint::max();  // end of hello or linger
  TimePoint last_heard_;
  TimePoint last_sent_;
};

}  // namespace fermata
