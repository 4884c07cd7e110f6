#include "mountd/fs/mapped_watch.h"

#include <sys/inotify.h>
#include <unistd.h>

#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <unordered_map>
#include <utility>
#include <vector>

#include "common/base/mutex.h"

namespace fermata::mountd {
namespace asio = boost::asio;

struct MappedWatch::State : std::enable_shared_from_this<State> {
  explicit State(asio::any_io_executor executor) : descriptor(std::move(executor)) {}
  asio::posix::stream_descriptor descriptor;
  Mutex mutex;
  std::unordered_map<int, std::function<void()>> watches FM_GUARDED_BY(mutex);

  void wait() {
    descriptor.async_wait(asio::posix::stream_descriptor::wait_read,
                          [self = shared_from_this()](boost::system::error_code error) {
                            if (error) return;
                            self->drain();
                            self->wait();
                          });
  }
  void drain() {
    alignas(inotify_event) char buffer[4096];
    while (true) {
      const ssize_t size = ::read(descriptor.native_handle(), buffer, sizeof buffer);
      if (size <= 0) return;
      for (const char* at = buffer; at < buffer + size;) {
        inotify_event event;
        std::memcpy(&event, at, sizeof event);
        at += sizeof event + event.len;
        if ((event.mask & IN_CLOSE_WRITE) != 0) call(event.wd);
      }
    }
  }
  void call(int watch) {
    std::function<void()> on_close;
    {
      MutexLock lock(mutex);
      const auto found = watches.find(watch);
      if (found != watches.end()) on_close = found->second;
    }
    if (on_close) on_close();
  }
};

MappedWatch::MappedWatch(asio::any_io_executor executor)
    : state_(std::make_shared<State>(executor)) {
  const int fd = ::inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  if (fd < 0) return;
  state_->descriptor.assign(fd);
  asio::post(executor, [state = state_] { state->wait(); });
}

MappedWatch::~MappedWatch() {
  asio::post(state_->descriptor.get_executor(), [state = state_] {
    boost::system::error_code ignored;
    state->descriptor.close(ignored);
  });
}

Result<int> MappedWatch::add(const std::string& path, std::function<void()> on_close) {
  MutexLock lock(state_->mutex);
  const int watch =
      ::inotify_add_watch(state_->descriptor.native_handle(), path.c_str(), IN_CLOSE_WRITE);
  if (watch < 0) return last_errno();
  state_->watches[watch] = std::move(on_close);
  return watch;
}

void MappedWatch::remove(int watch) {
  MutexLock lock(state_->mutex);
  state_->watches.erase(watch);
  ::inotify_rm_watch(state_->descriptor.native_handle(), watch);
}

}  // namespace fermata::mountd
