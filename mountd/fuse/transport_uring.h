// The transport over io_uring(7) (Linux 6.14): each loop owns a ring, and a request is answered on
// the CPU that made it, without waking another one.
//
// The kernel keeps a queue for each CPU that could be there. A queue is a set of *entries*: memory
// that the kernel fills with a request and from which it takes the answer. One submission answers
// and asks for the next request. A queue belongs to the loop that is pinned to its CPU, or to some
// loop. /dev/fuse stays in use for INIT, FORGET, INTERRUPT and notifications (DevTransport).
//
// An entry is taken from its arrival to its answer, and a request that waits (for a lock, for the
// cluster) holds one for as long. So a queue has entries in store and gets more as they are taken:
// the kernel would let requests wait for an entry that only such a request could free. A request
// that came when there was none is not given a new entry, only one that has just answered; so a
// queue that got new ones is *stirred*: the kernel is made to send a request that is answered at
// once.
//
// What the kernel must be told in which order, and what else it expects: docs/FUSE.md.
#pragma once

#include <atomic>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <future>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/base/mutex.h"
#include "mountd/fuse/io_ring.h"
#include "mountd/fuse/transport_dev.h"

namespace fermata::mountd {

class UringTransport : public Transport, public std::enable_shared_from_this<UringTransport> {
 public:
  /// Why requests cannot go over io_uring on this machine, as far as that can be told before
  /// mounting; else empty.
  static std::string why_unavailable();

  /// As DevTransport::create(), which it builds on.
  static Result<std::shared_ptr<UringTransport>> create(int device_fd, Loops& loops,
                                                        unsigned reader_count, TransportHost& host,
                                                        std::size_t request_size_max);
  ~UringTransport() override;

  Status start() override;
  void stop_reading() override;
  ssize_t reply(unsigned loop, const iovec* parts, int count) override;
  MutableByteView answer_buffer(unsigned loop, std::uint64_t unique) override;
  void before_init_reply(const abi::InitIn& in, abi::InitOut& out) override;
  void after_init_reply() override;
  std::string settle() override;
  bool over_ring() const override { return over_ring_.load(std::memory_order_acquire); }
  TransportCounters counters() const override;
  int control_fd() const override { return dev_->control_fd(); }
  void close() override;

 private:
  struct Queue;
  struct Entry {
    Queue* queue = nullptr;
    std::byte* header = nullptr;   ///< a page; its tail holds the request's fixed parts once read
    std::byte* payload = nullptr;  ///< the next byte after that page
    iovec parts[2] = {};           ///< for REGISTER
    std::uint64_t unique = 0;      ///< of the request that it holds; 0: it is with the kernel
    std::uint64_t commit_id = 0;
    std::uint64_t file_node = 0;  ///< of that request, if it is about an open regular file
    bool registered = false;      ///< it has been seen with a request
    bool fetched = false;         ///< since its last stirring answer it has been given a request
  };
  struct Queue {
    std::uint16_t number = 0;
    std::size_t first_entries = 0;
    std::deque<Entry> entries;  ///< addresses stay
    std::size_t waiting = 0;    ///< entries whose request is not answered and not being processed
    std::size_t lost = 0;       ///< entries that the kernel does not have any more
    bool complained = false;
  };
  struct Loop {  // of its loop
    unsigned index = 0;
    std::vector<std::unique_ptr<Queue>> queues;
    std::unique_ptr<IoRing> ring;
    std::unique_ptr<boost::asio::posix::stream_descriptor> event;
    std::unique_ptr<boost::asio::steady_timer> again;  ///< to serve() when the kernel could not
    std::uint64_t event_count = 0;                     ///< what the eventfd gave
    bool serving = false;                              ///< serve() will submit
    bool stopped = false;
    int register_error = 0;
    Entry* current = nullptr;  ///< whose request is being processed
    std::vector<Queue*> to_stir;
    std::vector<Entry*> stirred;  ///< have answered for that, and ask for the next request
    std::unordered_map<std::uint64_t, Entry*> waiting;
    std::uint64_t stir_count = 0;
    std::atomic<std::uint64_t> request_count{0};
  };

  UringTransport(Loops& loops, TransportHost& host) : loops_(loops), host_(host) {}
  void assign_queues();
  bool add_entries(Queue& queue, std::size_t count);
  void push_register(Loop& at, Entry& entry);
  void register_queues(Loop& at);
  void registered(std::string trouble);
  void wait(Loop& at);
  /// Enters the ring. False: it will be tried again, or the connection is lost.
  bool enter(Loop& at);
  void serve(Loop& at);
  void complete(Loop& at, const io_uring_cqe& completion);
  void dispatch(Loop& at, Entry& entry);
  void keep_entries_in_store(Loop& at, Queue& queue);
  void stir_queues(Loop& at);
  void stir(Loop& at, const Queue& queue);
  bool ask_for_request(Loop& at, std::uint64_t node);
  void answer_empty(Loop& at, Entry& entry, int error);
  void answer(Loop& at, Entry& entry, const iovec* parts, int count);
  Entry* find(Loop& at, std::uint64_t unique);
  void on_each_loop(const std::function<void(Loop&)>& task);
  void close_rings();

  Loops& loops_;
  TransportHost& host_;
  std::shared_ptr<DevTransport> dev_;
  std::vector<std::unique_ptr<Loop>> at_;
  std::size_t payload_size_ = 0;
  struct Area {
    void* start;
    std::size_t size;
  };
  Mutex areas_mutex_;
  std::vector<Area> areas_ FM_GUARDED_BY(areas_mutex_);

  // Between INIT and settle().
  bool rings_made_ = false;
  bool agreed_ = false;
  Mutex trouble_mutex_;
  std::string trouble_ FM_GUARDED_BY(trouble_mutex_);
  std::atomic<std::size_t> loops_to_register_{0};
  std::promise<void> all_registered_;

  std::atomic<std::uint64_t> last_file_node_{0};
  std::atomic<bool> over_ring_{false};
  std::atomic<bool> closed_{false};
};

}  // namespace fermata::mountd
