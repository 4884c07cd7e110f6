#include "mountd/fuse/transport_uring.h"

#include <fcntl.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/buffer.hpp>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "common/base/assert.h"
#include "common/base/errc.h"

namespace fermata::mountd {
namespace {

constexpr const char* kSwitch = "/sys/module/fuse/parameters/enable_uring";
constexpr std::size_t kPage = 4096;
/// Submissions between two calls of enter().
constexpr unsigned kRingSize = 256;
/// Entries that a queue has beside those whose requests wait. So many requests of one CPU can
/// arrive before its loop runs again; more wait until one of the queue's is answered.
constexpr std::size_t kEntriesInStore = 32;
/// The same at first for a CPU that is not there: it may come.
constexpr std::size_t kEntriesOffline = 2;
constexpr std::size_t kEntriesMax = 16384;
constexpr unsigned kCpusMax = 65536;
/// Requests of one wake-up before other work of the loop has its turn.
constexpr int kServeBudget = 64;

/// The CPUs that are `what` ("possible": they could ever be there; "online"); empty: cannot be
/// told.
std::vector<unsigned> cpus_that_are(const char* what) {
  // Such as "0-3" or "0,2-5".
  std::ifstream file(std::string("/sys/devices/system/cpu/") + what);
  std::vector<unsigned> cpus;
  for (std::string range; std::getline(file, range, ',');) {
    char* end = nullptr;
    const auto first = std::strtoul(range.c_str(), &end, 10);
    const auto last = *end == '-' ? std::strtoul(end + 1, nullptr, 10) : first;
    if (end == range.c_str() || last < first || last >= kCpusMax) return {};
    for (auto cpu = first; cpu <= last; ++cpu) cpus.push_back(static_cast<unsigned>(cpu));
  }
  return cpus;
}

abi::UringHeader& header_of(std::byte* page) { return *reinterpret_cast<abi::UringHeader*>(page); }

io_uring_sqe& push_command(IoRing& ring, std::uint32_t code, abi::UringCommand command,
                           const void* about) {
  auto& to = ring.next();
  to.opcode = IORING_OP_URING_CMD;
  to.flags = IOSQE_FIXED_FILE;
  to.fd = 0;  // the device
  to.cmd_op = code;
  to.user_data = reinterpret_cast<std::uint64_t>(about);
  std::memcpy(to.cmd, &command, sizeof command);
  return to;
}

bool is_about_open_file(std::uint32_t opcode) {
  switch (opcode) {
    case abi::kOpen:
    case abi::kRead:
    case abi::kWrite:
    case abi::kFsync:
    case abi::kFlush:
    case abi::kGetlk:
    case abi::kSetlk:
    case abi::kSetlkw:
      return true;
    default:
      return false;
  }
}

bool means_disconnected(int error) {
  return error == ENOTCONN || error == ECONNABORTED || error == ECANCELED || error == ENODEV;
}

}  // namespace

std::string UringTransport::why_unavailable() {
  // Where the kernel has FUSE as a module, opening the device loads it, and the switch with it.
  if (const int device = ::open("/dev/fuse", O_RDWR | O_CLOEXEC); device >= 0) ::close(device);
  std::ifstream file(kSwitch);
  char state = 0;
  if (!(file >> state)) return "this kernel has none (Linux 6.14 or newer)";
  if (state != 'Y') return std::string("it is switched off: echo Y >") + kSwitch;
  if (cpus_that_are("possible").empty()) return "/sys does not tell how many CPUs there could be";
  return {};
}

Result<std::shared_ptr<UringTransport>> UringTransport::create(int device_fd, Loops& loops,
                                                               unsigned reader_count,
                                                               TransportHost& host,
                                                               std::size_t request_size_max) {
  std::shared_ptr<UringTransport> transport(new UringTransport(loops, host));
  FM_TRY(transport->dev_,
         DevTransport::create(device_fd, loops, reader_count, host, request_size_max));
  for (unsigned index = 0; index < loops.count(); ++index) {
    transport->at_.push_back(std::make_unique<Loop>());
    transport->at_.back()->index = index;
  }
  transport->assign_queues();
  return transport;
}

UringTransport::~UringTransport() {
  MutexLock lock(areas_mutex_);
  for (const auto& area : areas_) ::munmap(area.start, area.size);
}

void UringTransport::assign_queues() {
  // The kernel counts the possible ones and numbers their queues from 0.
  const auto count = static_cast<unsigned>(cpus_that_are("possible").size());
  const auto online = cpus_that_are("online");
  for (unsigned cpu = 0; cpu < count; ++cpu) {
    unsigned owner = cpu % loops_.count();
    for (unsigned index = 0; index < loops_.count(); ++index) {
      if (loops_.cpu(index) == cpu) owner = index;
    }
    auto queue = std::make_unique<Queue>();
    queue->number = static_cast<std::uint16_t>(cpu);
    const bool there = std::find(online.begin(), online.end(), cpu) != online.end();
    queue->first_entries = there || online.empty() ? kEntriesInStore : kEntriesOffline;
    at_[owner]->queues.push_back(std::move(queue));
  }
}

void UringTransport::on_each_loop(const std::function<void(Loop&)>& task) {
  FM_ASSERT(!loops_.current());
  for (auto& at : at_) {
    std::promise<void> done;
    boost::asio::post(loops_.context(at->index), [&] {
      task(*at);
      done.set_value();
    });
    done.get_future().wait();
  }
}

// ------------------------------------------------------------------------------------- beginning

// A ring belongs to the thread that makes it. All are there before INIT is answered: from then on
// the kernel holds every request back until each queue has an entry.
Status UringTransport::start() {
  std::error_code trouble;
  on_each_loop([&](Loop& at) {
    if (trouble || at.queues.empty()) return;
    auto ring = IoRing::create(kRingSize);
    Status ready;
    if (ring) ready = (*ring)->use_file(dev_->control_fd());
    if (!ring || !ready) {
      trouble = ring ? ready.error() : ring.error();
      return;
    }
    at.ring = std::move(*ring);
    at.event = std::make_unique<boost::asio::posix::stream_descriptor>(loops_.context(at.index),
                                                                       at.ring->event_fd());
    at.again = std::make_unique<boost::asio::steady_timer>(loops_.context(at.index));
  });
  if (trouble) {
    MutexLock lock(trouble_mutex_);
    trouble_ =
        "io_uring_setup: " + trouble.message() +
        (trouble == std::errc::operation_not_permitted ? " (kernel.io_uring_disabled?)" : "");
  }
  rings_made_ = !trouble;
  return dev_->start();
}

void UringTransport::before_init_reply(const abi::InitIn& in, abi::InitOut& out) {
  if (!rings_made_) return;
  const bool offered = (in.flags & abi::kInitExt) != 0 &&
                       (in.flags2 & static_cast<std::uint32_t>(abi::kOverIoUring >> 32)) != 0;
  // The kernel's own rule for the least size of a payload, and a little room for long answers.
  constexpr std::size_t kPayloadMin = 2 * kPage;
  payload_size_ = std::max<std::size_t>({kPayloadMin, out.max_write, out.max_pages * kPage});
  bool memory = true;
  for (auto& at : at_) {
    for (auto& queue : at->queues) {
      memory = memory && add_entries(*queue, queue->first_entries);
    }
  }
  MutexLock lock(trouble_mutex_);
  if (!offered) trouble_ = "the kernel does not offer it";
  if (!memory) trouble_ = "no memory for its buffers";
  if (!offered || !memory) return;
  agreed_ = true;
  out.flags2 |= static_cast<std::uint32_t>(abi::kOverIoUring >> 32);
}

// Now and not before, else the kernel says EAGAIN.
void UringTransport::after_init_reply() {
  if (!agreed_) return registered({});
  for (auto& at : at_) loops_to_register_ += at->ring ? 1 : 0;
  for (auto& at : at_) {
    if (!at->ring) continue;
    boost::asio::post(loops_.context(at->index),
                      [self = shared_from_this(), to = at.get()] { self->register_queues(*to); });
  }
}

void UringTransport::register_queues(Loop& at) {
  for (auto& queue : at.queues) {
    for (auto& entry : queue->entries) push_register(at, entry);
  }
  // A REGISTER that succeeds completes with a request; one that fails, at once.
  wait(at);
  serve(at);
  std::string trouble;
  // As long as a queue has no entry, the kernel sends no request this way. Once each has one it
  // sends all of them, also when it has refused others: then there is no way back.
  for (const auto& queue : at.queues) {
    if (queue->lost < queue->entries.size()) continue;
    trouble = "the kernel refused a queue: " + from_errno(at.register_error).message();
  }
  registered(std::move(trouble));
}

void UringTransport::registered(std::string trouble) {
  {
    MutexLock lock(trouble_mutex_);
    if (!trouble.empty()) trouble_ = std::move(trouble);
  }
  if (!agreed_ || loops_to_register_.fetch_sub(1) == 1) all_registered_.set_value();
}

std::string UringTransport::settle() {
  all_registered_.get_future().wait();
  std::string trouble;
  {
    MutexLock lock(trouble_mutex_);
    trouble = trouble_;
  }
  if (agreed_ && trouble.empty()) {
    over_ring_.store(true, std::memory_order_release);
    // FORGET and INTERRUPT come that way still; each watcher would be woken for each.
    dev_->read_on_one_loop();
  } else {
    close_rings();
  }
  return trouble;
}

bool UringTransport::add_entries(Queue& queue, std::size_t count) {
  const std::size_t each = kPage + payload_size_;
  const std::size_t size = count * each;
  void* start = ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (start == MAP_FAILED) return false;
  // Most pages are never touched: a huge page would make memory of them.
  ::madvise(start, size, MADV_NOHUGEPAGE);
  ::madvise(start, size, MADV_DONTFORK);
  {
    MutexLock lock(areas_mutex_);
    areas_.push_back({start, size});
  }
  for (std::size_t i = 0; i < count; ++i) {
    auto& entry = queue.entries.emplace_back();
    entry.queue = &queue;
    entry.header = static_cast<std::byte*>(start) + i * each;
    entry.payload = entry.header + kPage;
    entry.parts[0] = {entry.header, sizeof(abi::UringHeader)};
    entry.parts[1] = {entry.payload, payload_size_};
  }
  return true;
}

void UringTransport::push_register(Loop& at, Entry& entry) {
  auto& to = push_command(*at.ring, abi::kUringRegister,
                          {.flags = 0, .commit_id = 0, .queue = entry.queue->number, .padding = {}},
                          &entry);
  to.addr = reinterpret_cast<std::uint64_t>(entry.parts);
  to.len = 2;
}

// --------------------------------------------------------------------------------------- serving

// Reading the eventfd, as opposed to waiting for it, needs no call that arms it again.
void UringTransport::wait(Loop& at) {
  at.event->async_read_some(
      boost::asio::buffer(&at.event_count, sizeof at.event_count),
      [self = shared_from_this(), &at](const boost::system::error_code& error, std::size_t) {
        if (error || !at.ring) return;
        self->wait(at);
        self->serve(at);
      });
}

// Without memory the kernel takes nothing, and gives nothing: nobody would wake us again.
bool UringTransport::enter(Loop& at) {
  constexpr auto kLater = std::chrono::milliseconds(1);
  const auto error = at.ring->enter();
  if (!error) return true;
  if (!IoRing::is_passing(error)) {
    spdlog::error("fuse: io_uring_enter: {}", error.message());
    host_.connection_lost(error);
    return false;
  }
  at.again->expires_after(kLater);
  at.again->async_wait(
      [self = shared_from_this(), &at](const boost::system::error_code& cancelled) {
        if (!cancelled && at.ring) self->serve(at);
      });
  return false;
}

void UringTransport::serve(Loop& at) {
  auto& ring = *at.ring;
  at.serving = true;
  ring.mute(true);
  for (int budget = kServeBudget;;) {
    if (!enter(at)) {
      ring.mute(false);
      break;
    }
    const auto stirred = std::exchange(at.stirred, {});
    io_uring_cqe completion{};
    while (ring.take(completion)) {
      --budget;
      complete(at, completion);
    }
    for (const auto& entry : stirred) {
      // It came with the call that submitted the answer: there may be others.
      if (entry->fetched) at.to_stir.push_back(entry->queue);
    }
    if (!at.to_stir.empty() && !ring.has_unsubmitted()) stir_queues(at);
    if (budget <= 0) {
      // The loop's other work has its turn; muted, because the ring's comes right after it.
      if (ring.has_unsubmitted() && !enter(at)) {
        ring.mute(false);
        break;
      }
      boost::asio::post(loops_.context(at.index), [self = shared_from_this(), &at] {
        if (at.ring) self->serve(at);
      });
      break;
    }
    if (ring.has_unsubmitted()) continue;
    ring.mute(false);
    if (!ring.has_work()) break;
    ring.mute(true);
  }
  at.serving = false;
}

void UringTransport::complete(Loop& at, const io_uring_cqe& completion) {
  auto& entry = *reinterpret_cast<Entry*>(completion.user_data);
  if (completion.res >= 0) {
    entry.registered = true;
    entry.fetched = true;
    if (!at.stopped) dispatch(at, entry);
    return;
  }
  const int error = -completion.res;
  if (means_disconnected(error)) {
    if (!at.stopped) host_.connection_lost(from_errno(error));
  } else {
    // The kernel has forgotten the entry, and the request with it if there was one.
    ++entry.queue->lost;
    if (!entry.registered) at.register_error = error;
    spdlog::error("fuse: {} was refused: {}", entry.registered ? "an answer" : "an entry",
                  from_errno(error).message());
  }
}

void UringTransport::dispatch(Loop& at, Entry& entry) {
  const auto& shared = header_of(entry.header);
  abi::InHeader in{};
  std::memcpy(&in, shared.message, sizeof in);
  const std::size_t payload = shared.payload_size;
  entry.unique = in.unique;
  entry.commit_id = shared.commit_id;
  at.request_count.fetch_add(1, std::memory_order_relaxed);
  const bool sound = payload <= payload_size_ && in.size >= sizeof in + payload &&
                     in.size - sizeof in - payload <= sizeof shared.operation;
  if (!sound) {
    spdlog::error("fuse: a request (operation {}) of {} bytes with {} in its payload", in.opcode,
                  in.size, payload);
    return answer_empty(at, entry, EIO);
  }
  entry.file_node = is_about_open_file(in.opcode) ? in.node : 0;
  if (in.opcode == abi::kOpen) last_file_node_.store(in.node, std::memory_order_relaxed);
  if (in.opcode == abi::kNotifyReply) {
    entry.fetched = false;
    at.stirred.push_back(&entry);
    return answer_empty(at, entry, 0);
  }
  // Before the payload, where a reader of /dev/fuse would see them.
  const std::size_t fixed = in.size - sizeof in - payload;
  std::memcpy(entry.payload - fixed, shared.operation, fixed);
  std::memcpy(entry.payload - fixed - sizeof in, &in, sizeof in);
  at.current = &entry;
  host_.process(at.index, {entry.payload - fixed - sizeof in, in.size});
  at.current = nullptr;
  if (entry.unique == 0) return;
  at.waiting[entry.unique] = &entry;
  ++entry.queue->waiting;
  keep_entries_in_store(at, *entry.queue);
}

void UringTransport::keep_entries_in_store(Loop& at, Queue& queue) {
  const auto before = queue.entries.size();
  if (before - queue.waiting - queue.lost >= kEntriesInStore / 2) return;
  if (before >= kEntriesMax || !add_entries(queue, kEntriesInStore / 2)) {
    if (!std::exchange(queue.complained, true)) {
      spdlog::warn("fuse: {} requests of CPU {} wait: later ones wait for them", queue.waiting,
                   queue.number);
    }
    return;
  }
  for (auto i = before; i < queue.entries.size(); ++i) push_register(at, queue.entries[i]);
  at.to_stir.push_back(&queue);
}

void UringTransport::stir_queues(Loop& at) {
  auto queues = std::exchange(at.to_stir, {});
  std::sort(queues.begin(), queues.end());
  queues.erase(std::unique(queues.begin(), queues.end()), queues.end());
  for (const auto* queue : queues) stir(at, *queue);
}

/// NOTIFY_RETRIEVE of nothing: makes the kernel send a request about `node`, which must be a
/// regular file's and known to it.
bool UringTransport::ask_for_request(Loop& at, std::uint64_t node) {
  if (node == 0) return false;
  constexpr std::uint64_t kOwnNumbers = 1ULL << 63;  // above the kernel's; even, as those are
  abi::NotifyRetrieve what{};
  what.unique = kOwnNumbers + (std::uint64_t{at.index} << 48) + 2 * ++at.stir_count;
  what.node = node;
  abi::OutHeader header{sizeof header + sizeof what, abi::kNotifyRetrieve, 0};
  const iovec parts[2] = {{&header, sizeof header}, {&what, sizeof what}};
  return ::writev(control_fd(), parts, 2) >= 0;
}

// The kernel puts a request into the queue of the CPU on which it is made: here, by this thread.
// Without a file, or on a CPU that we may not use, the requests have to wait for the next answer;
// only waiting for a lock lasts, and a lock has a file.
void UringTransport::stir(Loop& at, const Queue& queue) {
  const bool there = loops_.cpu(at.index) == queue.number;
  cpu_set_t before;
  CPU_ZERO(&before);
  if (!there) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(queue.number, &one);
    if (::sched_getaffinity(0, sizeof before, &before) != 0) return;
    if (::sched_setaffinity(0, sizeof one, &one) != 0) return;
  }
  bool sent = ask_for_request(at, last_file_node_.load(std::memory_order_relaxed));
  for (auto entry = queue.entries.begin(); !sent && entry != queue.entries.end(); ++entry) {
    if (entry->unique != 0) sent = ask_for_request(at, entry->file_node);
  }
  if (!there) ::sched_setaffinity(0, sizeof before, &before);
}

// --------------------------------------------------------------------------------------- answers

UringTransport::Entry* UringTransport::find(Loop& at, std::uint64_t unique) {
  if (at.current != nullptr && at.current->unique == unique) return at.current;
  const auto found = at.waiting.find(unique);
  return found == at.waiting.end() ? nullptr : found->second;
}

MutableByteView UringTransport::answer_buffer(unsigned loop, std::uint64_t unique) {
  const auto* entry = find(*at_[loop], unique);
  return entry == nullptr ? MutableByteView{} : MutableByteView{entry->payload, payload_size_};
}

ssize_t UringTransport::reply(unsigned loop, const iovec* parts, int count) {
  auto& at = *at_[loop];
  const auto unique = static_cast<const abi::OutHeader*>(parts[0].iov_base)->unique;
  auto* entry = find(at, unique);
  if (entry == nullptr) return dev_->reply(loop, parts, count);
  ssize_t size = 0;
  for (int i = 0; i < count; ++i) size += static_cast<ssize_t>(parts[i].iov_len);
  if (entry != at.current) {
    at.waiting.erase(unique);
    --entry->queue->waiting;
  }
  answer(at, *entry, parts, count);
  return size;
}

void UringTransport::answer_empty(Loop& at, Entry& entry, int error) {
  abi::OutHeader out{sizeof out, -error, entry.unique};
  const iovec part{&out, sizeof out};
  answer(at, entry, &part, 1);
}

void UringTransport::answer(Loop& at, Entry& entry, const iovec* parts, int count) {
  FM_DASSERT(parts[0].iov_len == sizeof(abi::OutHeader));
  abi::OutHeader out{};
  std::memcpy(&out, parts[0].iov_base, sizeof out);
  std::size_t size = 0;
  for (int i = 1; i < count; ++i) {
    if (parts[i].iov_len > payload_size_ - size) {
      spdlog::error("fuse: an answer of more than {} bytes: its caller gets EIO", payload_size_);
      out.error = -EIO;
      size = 0;
      break;
    }
    // It may lie there already: answer_buffer().
    if (parts[i].iov_base != entry.payload + size) {
      std::memmove(entry.payload + size, parts[i].iov_base, parts[i].iov_len);
    }
    size += parts[i].iov_len;
  }
  auto& shared = header_of(entry.header);
  out.size = static_cast<std::uint32_t>(sizeof out + size);
  std::memcpy(shared.message, &out, sizeof out);
  shared.payload_size = static_cast<std::uint32_t>(size);
  entry.unique = 0;
  if (!at.ring) return;  // the kernel has failed it
  push_command(
      *at.ring, abi::kUringCommitAndFetch,
      {.flags = 0, .commit_id = entry.commit_id, .queue = entry.queue->number, .padding = {}},
      &entry);
  if (!at.serving) enter(at);
}

TransportCounters UringTransport::counters() const {
  auto all = dev_->counters();
  for (const auto& at : at_) {
    all.ring_request_count += at->request_count.load(std::memory_order_relaxed);
  }
  return all;
}

// ----------------------------------------------------------------------------------------- ending

void UringTransport::stop_reading() {
  dev_->stop_reading();
  on_each_loop([](Loop& at) { at.stopped = true; });
}

void UringTransport::close_rings() {
  on_each_loop([](Loop& at) {
    at.stopped = true;
    if (at.event) {
      at.event->cancel();
      at.event->release();
    }
    at.event.reset();
    at.again.reset();
    at.ring.reset();
  });
}

// The rings hold the device as open files do, so they go first: then the kernel fails what is left.
void UringTransport::close() {
  if (closed_.exchange(true)) return;
  close_rings();
  dev_->close();
}

}  // namespace fermata::mountd
