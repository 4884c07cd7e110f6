#include "common/net/connection.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/this_coro.hpp>
#include <exception>
#include <utility>

#include "common/base/assert.h"

namespace fermata {

namespace asio = boost::asio;

namespace {

constexpr std::size_t kBatchFramesMax = 20;  // three parts each: below the kernel's usual 64
constexpr std::size_t kBatchBytesMax = 1024 * 1024;

std::uint32_t to_deadline_ms(Duration left) {
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(left).count();
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(ms, 1, UINT32_MAX));
}

std::error_code canceled() { return std::make_error_code(std::errc::operation_canceled); }

}  // namespace

/// A frame on its way out. The header is encoded when it enters the queue.
struct RpcConnection::OutFrame {
  FrameHeader header;
  EncodedHeader encoded{};
  std::string body;
  Buffer payload;
  std::shared_ptr<Handled> slot;  // of a parked response
  std::size_t size() const { return kFrameHeaderSize + body.size() + payload.size(); }
};

/// Lives in the frame of the coroutine that calls; registered in calls_ while it waits.
struct RpcConnection::PendingCall {
  PendingCall(RpcConnection& c, std::uint64_t i)
      : connection(c), id(i), answered(c.core_->executor) {}
  ~PendingCall() { retire(); }
  PendingCall(const PendingCall&) = delete;
  PendingCall& operator=(const PendingCall&) = delete;

  void retire() {
    if (connection.calls_.erase(id) == 0) return;
    if (sent) --connection.calls_sent_;
    connection.deadlines_.erase({deadline, Alarm::kCall, id});
  }

  RpcConnection& connection;
  const std::uint64_t id;
  std::uint16_t method = 0;
  TimePoint deadline;
  bool sent = false;
  Result<Response> result = Errc::kConnectionLost;
  Waiter answered;
};

/// A request being handled. Its slot is free when nobody holds this any more: the coroutine has
/// ended and its response, if any, has left parked_responses_.
struct RpcConnection::Handled {
  ~Handled() {
    const auto owner = connection.lock();
    if (!owner) return;
    --owner->handled_count_;
    owner->handled_bytes_ -= size_bytes;
    if (owner->paused_ && !owner->reading_must_pause()) owner->resume_reading_.notify();
  }
  std::weak_ptr<RpcConnection> connection;
  std::uint64_t key = 0;
  std::uint16_t method = 0;
  bool one_way = false;
  bool cancelled = false;
  TimePoint deadline = TimePoint::max();
  std::size_t size_bytes = 0;
  asio::cancellation_signal signal;
};

RpcConnection::RpcConnection(std::shared_ptr<NetworkCore> core, std::unique_ptr<Stream> stream,
                             Handler* handler)
    : core_(std::move(core)),
      stream_(std::move(stream)),
      handler_(handler),
      id_(core_->next_connection_id++),
      checksums_(stream_->needs_checksums()),
      limits_{.checksums = checksums_, .body_size_max = core_->options.body_size_max},
      reader_(*stream_, limits_,
              [this](std::size_t size) {
                core_->stats.bytes_in += size;
                last_heard_ = now();
              }),
      out_ready_(core_->executor),
      resume_reading_(core_->executor),
      last_heard_(now()),
      last_sent_(last_heard_) {}

RpcConnection::~RpcConnection() {
  FM_ASSERT(calls_.empty());
  core_->connections.erase(id_);  // its coroutines were destroyed, not ended
  if (half_open_) --core_->half_open;
  if (accepted_) --core_->accepted_open;
}

// ---- From hello to end

void RpcConnection::enlist() {
  core_->connections.emplace(id_, this);
  timer_ = core_->timers->make([weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->on_alarm();
  });
}

Status RpcConnection::check_hello(const HelloBody& theirs, const Hello& ours) const {
  HelloBody mine;
  mine.hello = ours;
  FM_TRY([[maybe_unused]] const auto version, agree_version(mine, theirs));
  const ClusterId& cluster = theirs.hello.cluster;
  if (cluster && ours.cluster && cluster != ours.cluster) return Errc::kWrongCluster;
  return {};
}

Task<void> RpcConnection::greet(std::shared_ptr<RpcConnection> self, Hello hello) {
  FrameHeader header;
  header.kind = FrameKind::kHello;
  header.flags = self->checksums_ ? kFrameChecksummed : 0;
  const std::string bytes = encode_frame(header, encode_hello({.hello = hello}));
  const ByteView part = as_bytes(bytes);
  if (const auto error = co_await self->stream_->write({&part, 1})) co_return error;
  self->core_->stats.bytes_out += bytes.size();

  auto reply = co_await self->reader_.next(FrameKind::kHelloReply);
  if (self->state_ != State::kOpening) co_return Errc::kConnectionLost;
  if (!reply) {
    if (reply.error() == make_error_code(Errc::kBadMessage))
      self->malformed("hello", reply.error());
    co_return reply.error();
  }
  if (reply->header.error != 0) co_return from_wire(reply->header.error);
  auto theirs = decode_hello(as_bytes(reply->body));
  if (!theirs) {
    self->malformed("hello", theirs.error());
    co_return theirs.error();
  }
  FM_CO_CHECK(self->check_hello(*theirs, hello));
  self->peer_ = std::move(theirs->hello);
  self->open();
  co_return Status();
}

asio::awaitable<void> RpcConnection::welcome(std::shared_ptr<RpcConnection> self,
                                             std::shared_ptr<ListenerCore> listener) {
  self->accepted_ = true;
  self->half_open_ = true;
  ++self->core_->accepted_open;
  ++self->core_->half_open;
  self->hard_limit_ = self->now() + self->core_->options.hello_timeout;
  self->arm_alarm();
  auto frame = co_await self->reader_.next(FrameKind::kHello);
  if (self->half_open_) {
    self->half_open_ = false;
    --self->core_->half_open;
  }
  if (self->state_ != State::kOpening) co_return;
  self->hard_limit_ = TimePoint::max();
  if (!frame) {
    if (frame.error() == make_error_code(Errc::kVersionMismatch)) {
      self->refuse(frame.error());
    } else if (frame.error() != make_error_code(Errc::kConnectionLost) ||
               self->reader_.truncated()) {
      self->malformed("hello", frame.error());
    } else {
      ++self->core_->stats.silent;
      self->end(false);
    }
    co_return;
  }
  auto theirs = decode_hello(as_bytes(frame->body));
  if (!theirs) {
    self->malformed("hello", theirs.error());
    co_return;
  }
  Status verdict = self->check_hello(*theirs, listener->hello);
  self->peer_ = std::move(theirs->hello);
  if (verdict) verdict = listener->handler->on_connect(self);
  if (self->state_ != State::kOpening) co_return;  // on_connect closed it
  if (!verdict) {
    self->refuse(verdict.error());
    co_return;
  }
  OutFrame reply;
  reply.header.kind = FrameKind::kHelloReply;
  reply.body = encode_hello({.hello = listener->hello});
  self->enqueue(std::move(reply));
  self->open();
}

void RpcConnection::open() {
  state_ = State::kOpen;
  last_heard_ = last_sent_ = now();
  core_->spawn("connection reader", read_loop(shared_from_this()));
  core_->spawn("connection writer", write_loop(shared_from_this()));
  arm_alarm();
}

void RpcConnection::refuse(std::error_code error) {
  // A program that is not yet ready, or not any more: the peer asks again, and nothing is wrong.
  const bool expected = error == make_error_code(Errc::kShuttingDown);
  if (!expected) {
    ++core_->stats.refused;
    if (core_->log_limiter.allow(peer_address(), now())) {
      spdlog::warn("refused connection from {} ({}): {}", peer_address(), peer_.name,
                   error.message());
    }
  }
  OutFrame reply;
  reply.header.kind = FrameKind::kHelloReply;
  reply.header.error = to_wire(error);
  enqueue(std::move(reply));
  end(true);
  core_->spawn("connection writer", write_loop(shared_from_this()));
}

void RpcConnection::malformed(const char* what, std::error_code error) {
  ++core_->stats.malformed;
  if (core_->log_limiter.allow(peer_address(), now())) {
    spdlog::warn("closed connection with {} ({}): malformed {}: {}; is it a Fermata program?",
                 peer_address(), peer_.name, what, error.message());
  }
  end(false);
}

void RpcConnection::close() {
  if (state_ == State::kOpen) {
    enqueue_bare(FrameKind::kGoodbye);
    end(true);
  } else {
    end(false);
  }
}

void RpcConnection::abort() { end(false); }

void RpcConnection::end(bool flush) {
  if (state_ == State::kClosed || (state_ == State::kClosing && flush)) return;
  const auto self = shared_from_this();
  const State before = std::exchange(state_, flush ? State::kClosing : State::kClosed);
  if (flush) {
    hard_limit_ = now() + core_->options.linger_max;
    arm_alarm();
  } else {
    core_->connections.erase(id_);
    timer_.reset();
    stream_->close();
  }
  out_ready_.notify();
  if (before == State::kClosing) return;
  resume_reading_.notify();
  parked_calls_.clear();
  const auto responses = std::exchange(parked_responses_, {});
  fail_calls();
  cancel_handlers();
  if (before == State::kOpen && handler_ != nullptr) handler_->on_disconnect(self);
}

void RpcConnection::fail_calls() {
  while (!calls_.empty()) finish_call(calls_.begin()->first, Errc::kConnectionLost);
}

void RpcConnection::cancel_handlers() {
  const auto handlers = handled_;  // emit may end one, which changes the map
  for (const auto& [key, handled] : handlers) {
    handled->cancelled = true;
    handled->signal.emit(asio::cancellation_type::terminal);
  }
}

// ---- Reading

asio::awaitable<void> RpcConnection::read_loop(std::shared_ptr<RpcConnection> self) {
  while (self->state_ == State::kOpen) {
    auto frame = co_await self->reader_.next();
    if (self->state_ != State::kOpen) break;
    if (!frame) {
      self->read_failed(frame.error());
      break;
    }
    ++self->core_->stats.frames_in;
    self->take(std::move(*frame));
    while (self->state_ == State::kOpen && self->reading_must_pause()) {
      self->paused_ = true;
      (void)co_await self->resume_reading_.wait();
    }
    if (std::exchange(self->paused_, false)) {
      self->last_heard_ = self->now();  // was not listening: no reason to call it dead
      self->arm_alarm();
    }
  }
}

bool RpcConnection::reading_must_pause() const {
  return handled_count_ >= core_->options.handled_max ||
         handled_bytes_ >= core_->options.handled_bytes_max;
}

void RpcConnection::read_failed(std::error_code error) {
  if (error == make_error_code(Errc::kConnectionLost)) {
    end(false);
  } else {
    malformed("frame", error);
  }
}

void RpcConnection::take(Frame frame) {
  switch (frame.header.kind) {
    case FrameKind::kRequest:
    case FrameKind::kOneWay:
      take_request(std::move(frame));
      return;
    case FrameKind::kResponse:
      take_response(std::move(frame));
      return;
    case FrameKind::kCancel:
      take_cancel(frame.header.request_id);
      return;
    case FrameKind::kGoodbye:
      end(false);
      return;
    case FrameKind::kPing:
      return;
    case FrameKind::kHello:
    case FrameKind::kHelloReply:
      malformed("order: a second hello", Errc::kBadMessage);
      return;
  }
}

void RpcConnection::take_request(Frame frame) {
  const FrameHeader& header = frame.header;
  ++core_->stats.requests;
  auto handled = std::make_shared<Handled>();
  handled->one_way = header.kind == FrameKind::kOneWay;
  handled->method = header.method;
  handled->key = handled->one_way ? next_one_way_key_-- : header.request_id;
  handled->size_bytes = frame.body.size() + frame.payload.size();
  if (!handled->one_way) {
    if (header.request_id <= last_request_id_) {
      malformed("order: a request id again", Errc::kBadMessage);
      return;
    }
    last_request_id_ = header.request_id;
  }
  ++handled_count_;
  handled_bytes_ += handled->size_bytes;
  handled->connection = weak_from_this();
  if (handler_ == nullptr) {
    answer(handled, Response{.error = Errc::kUnsupported, .body = {}, .payload = {}});
    return;
  }
  handled_.emplace(handled->key, handled);
  if (header.deadline_ms != 0) {
    handled->deadline = now() + std::chrono::milliseconds(header.deadline_ms);
    deadlines_.emplace(handled->deadline, Alarm::kHandled, handled->key);
    arm_alarm();
  }
  Request request{.method = header.method,
                  .group = header.group,
                  .volume = header.volume,
                  .body = std::move(frame.body),
                  .payload = std::move(frame.payload)};
  const auto self = shared_from_this();
  const auto slot = handled->signal.slot();
  ++core_->running;
  asio::co_spawn(core_->executor, serve(self, handled, std::move(request)),
                 asio::bind_cancellation_slot(slot, [self, handled](std::exception_ptr e) {
                   self->handler_ended(handled, e);
                 }));
}

asio::awaitable<void> RpcConnection::serve(std::shared_ptr<RpcConnection> self,
                                           std::shared_ptr<Handled> handled, Request request) {
  co_await asio::this_coro::throw_if_cancelled(false);
  Response response = co_await self->handler_->handle(self, std::move(request));
  self->answer(handled, std::move(response));
}

void RpcConnection::handler_ended(const std::shared_ptr<Handled>& handled,
                                  std::exception_ptr escaped) {
  if (escaped) {
    try {
      std::rethrow_exception(escaped);
    } catch (const std::exception& e) {
      spdlog::error(
          "method {}: an exception escaped its handler: {}; this is a bug, please report it",
          handled->method, e.what());
    } catch (...) {
      spdlog::error("method {}: an exception escaped its handler; this is a bug, please report it",
                    handled->method);
    }
    answer(handled, Response{.error = from_errno(EIO), .body = {}, .payload = {}});
  }
  handled_.erase(handled->key);
  deadlines_.erase({handled->deadline, Alarm::kHandled, handled->key});
  if (--core_->running == 0) core_->all_ended.notify();
}

void RpcConnection::answer(const std::shared_ptr<Handled>& handled, Response response) {
  if (handled->one_way || handled->cancelled || state_ != State::kOpen) return;
  OutFrame frame;
  frame.header.kind = FrameKind::kResponse;
  frame.header.request_id = handled->key;
  frame.header.method = handled->method;
  if (response.body.size() > limits_.body_limit(handled->method) ||
      response.payload.size() > limits_.payload_size_max) {
    spdlog::error("method {}: its response of {} + {} bytes is over the limit; this is a bug",
                  handled->method, response.body.size(), response.payload.size());
    frame.header.error = to_wire(Errc::kTooLarge);
  } else {
    frame.header.error = to_wire(response.error);
    frame.body = std::move(response.body);
    frame.payload = std::move(response.payload);
  }
  if (parked_responses_.empty() && has_room(frame.size())) {
    enqueue(std::move(frame));
  } else {
    frame.slot = handled;
    parked_responses_.push_back(std::move(frame));
  }
}

void RpcConnection::take_response(Frame frame) {
  const FrameHeader& header = frame.header;
  const auto found = calls_.find(header.request_id);
  if (found == calls_.end()) {
    // Late, after a deadline or a cancellation; or never asked for.
    if (header.request_id > last_sent_id_) malformed("answer to nothing", Errc::kBadMessage);
    return;
  }
  if (!found->second->sent || found->second->method != header.method) {
    malformed("answer to nothing", Errc::kBadMessage);
    return;
  }
  finish_call(header.request_id, Response{.error = from_wire(header.error),
                                          .body = std::move(frame.body),
                                          .payload = std::move(frame.payload)});
  pump();
}

void RpcConnection::take_cancel(std::uint64_t request_id) {
  const auto found = handled_.find(request_id);
  if (found == handled_.end()) return;  // answered already
  const auto handled = found->second;
  if (handled->one_way) return;
  handled->cancelled = true;
  handled->signal.emit(asio::cancellation_type::terminal);
}

// ---- Calling

Task<Response> RpcConnection::call(Request request, Duration timeout) {
  return do_call(shared_from_this(), std::move(request), timeout);
}

Task<Response> RpcConnection::do_call(std::shared_ptr<RpcConnection> self, Request request,
                                      Duration timeout) {
  if (!self->is_open()) co_return Errc::kConnectionLost;
  if (timeout <= Duration::zero()) co_return Errc::kDeadlineExceeded;
  if (request.body.size() > self->limits_.body_limit(request.method) ||
      request.payload.size() > self->limits_.payload_size_max) {
    co_return Errc::kTooLarge;
  }
  ++self->core_->stats.calls;
  PendingCall pending(*self, self->next_request_id_++);
  pending.method = request.method;
  pending.deadline = self->now() + timeout;
  self->calls_.emplace(pending.id, &pending);
  self->deadlines_.emplace(pending.deadline, Alarm::kCall, pending.id);
  self->arm_alarm();

  OutFrame frame;
  frame.header.kind = FrameKind::kRequest;
  frame.header.request_id = pending.id;
  frame.header.group = request.group;
  frame.header.volume = request.volume;
  frame.header.method = request.method;
  frame.body = std::move(request.body);
  frame.payload = std::move(request.payload);
  self->parked_calls_.push_back(std::move(frame));
  self->pump();

  const std::error_code interrupted = co_await pending.answered.wait();
  if (!interrupted) co_return std::move(pending.result);
  const bool tell = pending.sent && self->is_open() && self->calls_.contains(pending.id);
  pending.retire();
  if (tell) self->enqueue_bare(FrameKind::kCancel, pending.id);
  self->pump();
  co_return canceled();
}

void RpcConnection::finish_call(std::uint64_t request_id, Result<Response> result) {
  const auto found = calls_.find(request_id);
  if (found == calls_.end()) return;
  PendingCall& pending = *found->second;
  pending.result = std::move(result);
  pending.retire();
  pending.answered.notify();
}

void RpcConnection::send(Request request) {
  if (!is_open() && state_ != State::kOpening) return;
  OutFrame frame;
  frame.header.kind = FrameKind::kOneWay;
  frame.header.group = request.group;
  frame.header.volume = request.volume;
  frame.header.method = request.method;
  frame.body = std::move(request.body);
  frame.payload = std::move(request.payload);
  if (!is_open() || !has_room(frame.size()) ||
      frame.body.size() > limits_.body_limit(request.method) ||
      frame.payload.size() > limits_.payload_size_max) {
    ++core_->stats.sends_dropped;
    return;
  }
  enqueue(std::move(frame));
}

// ---- Writing

bool RpcConnection::has_room(std::size_t size_bytes) const {
  return out_bytes_ == 0 || out_bytes_ + size_bytes <= core_->options.out_queue_bytes_max;
}

bool RpcConnection::may_call(std::size_t size_bytes) const {
  return calls_sent_ < core_->options.calls_max && has_room(size_bytes);
}

void RpcConnection::enqueue(OutFrame frame) {
  FrameHeader& header = frame.header;
  header.flags = checksums_ ? kFrameChecksummed : 0;
  header.body_size = static_cast<std::uint32_t>(frame.body.size());
  header.payload_size = static_cast<std::uint32_t>(frame.payload.size());
  if (checksums_) header.content_crc = content_crc(as_bytes(frame.body), frame.payload.view());
  frame.encoded = encode_header(header);
  out_bytes_ += frame.size();
  out_.push_back(std::move(frame));
  out_ready_.notify();
}

void RpcConnection::enqueue_bare(FrameKind kind, std::uint64_t request_id) {
  OutFrame frame;
  frame.header.kind = kind;
  frame.header.request_id = request_id;
  enqueue(std::move(frame));
}

void RpcConnection::pump() {
  if (state_ != State::kOpen) return;
  while (!parked_responses_.empty() && has_room(parked_responses_.front().size())) {
    OutFrame frame = std::move(parked_responses_.front());
    parked_responses_.pop_front();
    frame.slot.reset();
    enqueue(std::move(frame));
  }
  while (!parked_calls_.empty()) {
    OutFrame& front = parked_calls_.front();
    const auto found = calls_.find(front.header.request_id);
    if (found != calls_.end()) {  // else it was cancelled or its deadline passed
      if (!may_call(front.size())) return;
      PendingCall& pending = *found->second;
      pending.sent = true;
      ++calls_sent_;
      last_sent_id_ = pending.id;
      front.header.deadline_ms = to_deadline_ms(pending.deadline - now());
      enqueue(std::move(front));
    }
    parked_calls_.pop_front();
  }
}

asio::awaitable<void> RpcConnection::write_loop(std::shared_ptr<RpcConnection> self) {
  while (self->state_ != State::kClosed) {
    if (self->out_.empty()) {
      if (self->state_ == State::kClosing) break;
      (void)co_await self->out_ready_.wait();
      continue;
    }
    const std::error_code error = co_await self->write_batch();
    if (error) break;
    self->pump();
  }
  self->end(false);
}

asio::awaitable<std::error_code> RpcConnection::write_batch() {
  std::size_t size = 0;
  while (!out_.empty() && batch_.size() < kBatchFramesMax && size < kBatchBytesMax) {
    size += out_.front().size();
    batch_.push_back(std::move(out_.front()));
    out_.pop_front();
  }
  for (const OutFrame& frame : batch_) {
    parts_.emplace_back(frame.encoded);
    if (!frame.body.empty()) parts_.push_back(as_bytes(frame.body));
    if (!frame.payload.empty()) parts_.push_back(frame.payload.view());
  }
  const std::error_code error = co_await stream_->write(parts_);
  core_->stats.bytes_out += size;
  core_->stats.frames_out += batch_.size();
  ++core_->stats.writes;
  out_bytes_ -= size;
  last_sent_ = now();
  parts_.clear();
  batch_.clear();
  co_return error;
}

// ---- Time

void RpcConnection::arm_alarm() {
  if (!timer_ || state_ == State::kClosed) return;
  TimePoint when = hard_limit_;
  if (!deadlines_.empty()) when = std::min(when, std::get<TimePoint>(*deadlines_.begin()));
  if (state_ == State::kOpen) {
    when = std::min(when, last_sent_ + core_->options.idle_max);
    if (!paused_) when = std::min(when, last_heard_ + core_->options.dead_after);
  }
  if (when >= armed_) return;  // wakes early enough; on_alarm arms anew
  armed_ = when;
  timer_->arm(when);
}

void RpcConnection::on_alarm() {
  armed_ = TimePoint::max();
  const TimePoint time = now();
  if (hard_limit_ <= time) {
    if (state_ == State::kOpening) {
      ++core_->stats.refused;
      if (core_->log_limiter.allow(peer_address(), time)) {
        spdlog::warn("closed connection from {}: it said no hello in time", peer_address());
      }
    }
    end(false);
    return;
  }
  while (!deadlines_.empty() && std::get<TimePoint>(*deadlines_.begin()) <= time) {
    const auto [when, kind, id] = *deadlines_.begin();
    deadlines_.erase(deadlines_.begin());
    if (kind == Alarm::kHandled) {
      take_cancel(id);  // the caller has given up by its own clock
      continue;
    }
    const auto found = calls_.find(id);
    const bool tell = found != calls_.end() && found->second->sent;
    finish_call(id, Errc::kDeadlineExceeded);
    if (tell && is_open()) enqueue_bare(FrameKind::kCancel, id);
  }
  pump();
  keep_alive(time);
  arm_alarm();
}

void RpcConnection::keep_alive(TimePoint time) {
  if (state_ != State::kOpen) return;
  if (!paused_ && time - last_heard_ >= core_->options.dead_after) {
    ++core_->stats.dead;
    if (core_->log_limiter.allow(peer_address(), time)) {
      spdlog::info(
          "connection with {} ({}) is dead: nothing heard for {} ms", peer_address(), peer_.name,
          std::chrono::duration_cast<std::chrono::milliseconds>(time - last_heard_).count());
    }
    end(false);
    return;
  }
  if (time - last_sent_ < core_->options.idle_max) return;
  last_sent_ = time;  // also when the queue is stuck: ask again after the next idle_max
  if (out_bytes_ == 0) enqueue_bare(FrameKind::kPing);
}

}  // namespace fermata
