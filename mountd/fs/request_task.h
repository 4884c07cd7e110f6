// A FUSE request that becomes a coroutine: its reply, its cancellation, its end.
//
// The coroutine gives a Result; whatever it is, the caller is answered once. An INTERRUPT cancels
// the coroutine when the caller is being killed, at once or as soon as that is seen; a signal that
// the program handles lets the operation finish (caller.h says why).
//
// Thread-safety: everything happens on the loop that read the request.
#pragma once

#include <atomic>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <chrono>
#include <exception>
#include <memory>

#include "common/base/result.h"
#include "mountd/fuse/caller.h"
#include "mountd/fuse/operations.h"
#include "mountd/fuse/reply.h"

namespace fermata::mountd {

/// What a getattr answers.
struct AttrReplyValue {
  struct stat attr {};
  Timeout timeout{0};
  timespec btime{};
};

/// What the caller is told. A change whose session ended before its answer came may have been
/// carried out: that is EIO and not ESTALE, after which the kernel would carry it out once more.
inline std::error_code as_interrupt(std::error_code error) {
  if (error == std::errc::operation_canceled) return from_errno(EINTR);
  return error == Errc::kSessionExpired ? from_errno(EIO) : error;
}

/// Cancelled operations return errors instead of throwing from here on.
template <class T>
Task<T> without_throwing(Task<T> task) {
  co_await boost::asio::this_coro::throw_if_cancelled(false);
  co_return co_await std::move(task);
}

/// How long a process that is being killed waits for what it wrote to be committed: longer than
/// that takes if the cluster is well.
inline constexpr auto kLastWordsPatience = std::chrono::seconds(2);

/// Which signals end a request: those that kill the caller, the same after kLastWordsPatience (the
/// close of what it wrote), or any (a wait for a lock: fcntl(2)).
enum class Interrupts { kFatal, kFatalLate, kAny };

template <class R>
struct RequestTask : std::enable_shared_from_this<RequestTask<R>> {
  RequestTask(R r, pid_t thread, Interrupts ends_it = Interrupts::kFatal)
      : reply(std::move(r)), caller(thread), interrupts(ends_it), timer(reply.executor()) {}
  R reply;
  pid_t caller;
  Interrupts interrupts;
  boost::asio::cancellation_signal cancel;
  boost::asio::steady_timer timer;
  bool over = false;
  bool late = false;  // kFatalLate: it is being killed, and has been given time

  void watch_interrupts() {
    reply.on_interrupt([weak = this->weak_from_this()] {
      if (auto self = weak.lock()) self->interrupted();
    });
  }
  void interrupted() {
    constexpr auto kLookAgain = std::chrono::milliseconds(100);
    if (over) return;
    const bool ends = interrupts == Interrupts::kAny || is_being_killed(caller);
    const bool now = ends && (interrupts != Interrupts::kFatalLate || late);
    // Once more later if it goes on: what was under way just then may not have listened.
    if (now) cancel.emit(boost::asio::cancellation_type::terminal);
    if (over) return;
    late = ends;
    timer.expires_after(ends && !now ? boost::asio::steady_timer::duration(kLastWordsPatience)
                                     : boost::asio::steady_timer::duration(kLookAgain));
    timer.async_wait([weak = this->weak_from_this()](boost::system::error_code error) {
      auto self = weak.lock();
      if (self && !error) self->interrupted();
    });
  }
  void finish() {
    over = true;
    timer.cancel();
  }
};

/// Requests whose coroutine lives: they refer to the filesystem, which must outlive them.
inline std::atomic<std::size_t> live_requests{0};

/// Runs `task` on the request's loop; then `answer(reply, value)`, or its error.
template <class T, class R, class Answer>
void run_request(const RequestContext& ctx, R reply, Task<T> task, Answer answer,
                 Interrupts interrupts = Interrupts::kFatal) {
  auto call = std::make_shared<RequestTask<R>>(std::move(reply), ctx.pid, interrupts);
  call->watch_interrupts();
  const auto executor = call->reply.executor();
  live_requests.fetch_add(1);
  boost::asio::co_spawn(
      executor, without_throwing(std::move(task)),
      boost::asio::bind_cancellation_slot(
          call->cancel.slot(), [call, answer](std::exception_ptr thrown, Result<T> result) {
            live_requests.fetch_sub(1);  // the coroutine's frame is gone
            call->finish();
            if (!call->reply) return;
            if (thrown) {
              call->reply.error(EINTR);  // only a cancellation throws here
            } else if (!result) {
              call->reply.error(as_interrupt(result.error()));
            } else if constexpr (std::is_void_v<T>) {
              answer(call->reply);
            } else {
              answer(call->reply, *result);
            }
          }));
}

}  // namespace fermata::mountd
