#include "common/net/sim_network.h"

#include <algorithm>
#include <array>
#include <boost/asio/post.hpp>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "common/base/assert.h"
#include "common/env/sim_env.h"
#include "common/net/tcp_network.h"
#include "common/wire/frame.h"

namespace fermata {

namespace asio = boost::asio;

namespace {

constexpr std::size_t kWindowBytes = 1024 * 1024;  // written and not yet read, per direction
constexpr std::uint64_t kMillion = 1'000'000;

class SchedulerLink final : public SimLink {
 public:
  explicit SchedulerLink(SimScheduler& scheduler) : scheduler_(scheduler) {}
  TimePoint now() override { return scheduler_.now(); }
  void at(TimePoint when, std::function<void()> action) override {
    scheduler_.at(when, std::move(action));
  }

 private:
  SimScheduler& scheduler_;
};

/// Virtual time for connections. What fires runs on the node's executor, if the timer still lives.
class SimTimer final : public Timer {
 public:
  SimTimer(SimLink& link, asio::any_io_executor executor, std::function<void()> action)
      : link_(link), executor_(std::move(executor)), state_(std::make_shared<State>()) {
    state_->action = std::move(action);
  }
  void arm(TimePoint when) override {
    const std::uint64_t armed = ++state_->armed;
    link_.at(std::max(when, link_.now()),
             [weak = std::weak_ptr(state_), armed, executor = executor_] {
               const auto state = weak.lock();
               if (!state || state->armed != armed) return;
               asio::post(executor, [weak, armed] {
                 const auto alive = weak.lock();
                 if (alive && alive->armed == armed) alive->action();
               });
             });
  }

 private:
  struct State {
    std::uint64_t armed = 0;
    std::function<void()> action;
  };
  SimLink& link_;
  asio::any_io_executor executor_;
  std::shared_ptr<State> state_;
};

class SimTimers final : public Timers {
 public:
  SimTimers(SimLink& link, asio::any_io_executor executor)
      : link_(link), executor_(std::move(executor)) {}
  TimePoint now() const override { return link_.now(); }
  std::unique_ptr<Timer> make(std::function<void()> action) override {
    return std::make_unique<SimTimer>(link_, executor_, std::move(action));
  }

 private:
  SimLink& link_;
  asio::any_io_executor executor_;
};

using HostPair = std::pair<std::string, std::string>;

class SimStream;

/// One direction of a connection: bytes on their way, then bytes ready to be read.
struct Direction {
  struct Chunk {
    TimePoint due;
    std::string bytes;  // empty: the end of the stream
  };
  HostPair hosts;  // from, to
  std::deque<Chunk> in_flight;
  TimePoint last_due;
  bool scheduled = false;
  std::string ready;
  std::size_t ready_begin = 0;
  bool ended = false;
  std::size_t unread_bytes = 0;
};

/// A connection as the fabric sees it. Direction 0 is from who connected. Holds nothing that
/// belongs to a node's executor: `ends` point to the streams, which know when they go.
struct SimConnection {
  std::uint64_t id = 0;
  std::array<Direction, 2> directions;
  std::array<SimStream*, 2> ends{};
  std::array<std::error_code, 2> broken;  // what each end was told
  bool black_hole = false;
};

struct Host {
  std::uint64_t life = 0;  // 0: no network was ever made
  bool alive = false;
  bool silent = false;  // dead, and nobody refuses connections
  std::uint16_t next_port = 20000;
  struct Listening {
    std::weak_ptr<NetworkCore> core;
    std::weak_ptr<ListenerCore> listener;
  };
  std::map<std::uint16_t, Listening> listeners;
};

}  // namespace

struct SimFabric::Impl : std::enable_shared_from_this<SimFabric::Impl> {
  Impl(SimLink& l, std::uint64_t seed) : link(l), random(seed) {}

  const SimLinkFaults& faults(const HostPair& pair) const {
    const auto own = own_faults.find(pair);
    return own == own_faults.end() ? default_faults : own->second;
  }
  bool chance(std::uint32_t ppm) { return ppm != 0 && random.chance(ppm, kMillion); }
  Duration delay(const HostPair& pair) {
    const SimLinkFaults& f = faults(pair);
    const auto width =
        static_cast<std::uint64_t>(std::max<std::int64_t>(0, (f.delay_max - f.delay_min).count()));
    Duration d = f.delay_min + Duration(static_cast<std::int64_t>(random.below(width + 1)));
    if (chance(f.slow_ppm)) {
      ++stats.slow;
      d += f.delay_slow;
    }
    return d;
  }
  bool is_cut(const HostPair& pair) const { return cuts.contains(pair); }
  bool blocked(const SimConnection& c, const Direction& d) const {
    return c.black_hole || is_cut(d.hosts);
  }
  void prune() {
    std::erase_if(connections, [](const auto& entry) { return entry.second.expired(); });
  }
  template <class F>
  void after(Duration wait, F action) {
    link.at(link.now() + wait, [weak = weak_from_this(), action = std::move(action)]() mutable {
      if (const auto self = weak.lock()) action(*self);
    });
  }

  std::shared_ptr<SimConnection> make_connection(const std::string& from, const std::string& to);
  void write(const std::shared_ptr<SimConnection>& c, std::size_t end, std::string bytes);
  void pump(const std::shared_ptr<SimConnection>& c, std::size_t direction);
  void deliver(const std::shared_ptr<SimConnection>& c, std::size_t direction);
  void break_end(SimConnection& c, std::size_t end, std::error_code error);
  void reset(const std::shared_ptr<SimConnection>& c);
  void release(const HostPair& pair);
  void duplicate(std::string& bytes, std::uint32_t ppm);

  SimLink& link;
  SeededRandom random;
  SimNetworkStats stats;
  SimLinkFaults default_faults;
  std::map<HostPair, SimLinkFaults> own_faults;
  std::set<HostPair> cuts;
  std::map<std::string, Host> hosts;
  std::map<std::uint64_t, std::weak_ptr<SimConnection>> connections;
  std::uint64_t next_connection = 1;
};

namespace {

/// One end of a connection, in its node's world.
class SimStream final : public Stream {
 public:
  SimStream(std::shared_ptr<SimFabric::Impl> fabric, std::shared_ptr<SimConnection> connection,
            std::size_t end, const asio::any_io_executor& executor)
      : fabric_(std::move(fabric)),
        connection_(std::move(connection)),
        end_(end),
        peer_(out().hosts.second + ":" + std::to_string(connection_->id)),
        readable(executor),
        writable(executor) {
    connection_->ends[end_] = this;
  }
  ~SimStream() override {
    close();
    connection_->ends[end_] = nullptr;
  }

  asio::awaitable<IoResult> read_some(MutableByteView into) override {
    for (;;) {
      if (const auto error = broken()) co_return IoResult{error, 0};
      Direction& d = in();
      const std::size_t ready = d.ready.size() - d.ready_begin;
      if (ready != 0) {
        const std::size_t size = std::min(ready, into.size());
        std::memcpy(into.data(), d.ready.data() + d.ready_begin, size);
        d.ready_begin += size;
        d.unread_bytes -= size;
        if (d.ready_begin == d.ready.size()) {
          d.ready.clear();
          d.ready_begin = 0;
        }
        if (SimStream* writer = connection_->ends[1 - end_]) writer->writable.notify();
        co_return IoResult{{}, size};
      }
      if (d.ended) co_return IoResult{};
      const std::error_code error = co_await readable.wait();
      if (error) co_return IoResult{error, 0};
    }
  }

  asio::awaitable<std::error_code> write(std::span<const ByteView> parts) override {
    if (const auto error = broken()) co_return error;
    std::string bytes;
    for (const ByteView part : parts) bytes.append(as_text(part));
    fabric_->write(connection_, end_, std::move(bytes));
    std::error_code error = broken();
    while (!error && out().unread_bytes > kWindowBytes) {
      error = co_await writable.wait();
      if (!error) error = broken();
    }
    co_return error;
  }

  void close() override {
    if (std::exchange(closed_, true)) return;
    if (!connection_->broken[end_]) fabric_->write(connection_, end_, {});
    readable.notify();
    writable.notify();
  }

  const std::string& peer_address() const override { return peer_; }

 private:
  Direction& out() { return connection_->directions[end_]; }
  Direction& in() { return connection_->directions[1 - end_]; }
  std::error_code broken() const {
    return closed_ ? std::make_error_code(std::errc::bad_file_descriptor)
                   : connection_->broken[end_];
  }

  const std::shared_ptr<SimFabric::Impl> fabric_;
  const std::shared_ptr<SimConnection> connection_;
  const std::size_t end_;
  const std::string peer_;
  bool closed_ = false;

 public:
  Waiter readable;
  Waiter writable;
};

}  // namespace

std::shared_ptr<SimConnection> SimFabric::Impl::make_connection(const std::string& from,
                                                                const std::string& to) {
  prune();
  auto c = std::make_shared<SimConnection>();
  c->id = next_connection++;
  c->directions[0].hosts = {from, to};
  c->directions[1].hosts = {to, from};
  connections.emplace(c->id, c);
  ++stats.connects;
  return c;
}

/// Repeats one-way frames, at the end of the write: after what was said in between.
void SimFabric::Impl::duplicate(std::string& bytes, std::uint32_t ppm) {
  constexpr FrameLimits kWide{.body_size_max = [](std::uint16_t) { return kBodySizeMax; }};
  const std::size_t original = bytes.size();
  for (std::size_t at = 0; at + kFrameHeaderSize <= original;) {
    const ByteView head = as_bytes(bytes).subspan(at, kFrameHeaderSize);
    const auto header = decode_header(head.first<kFrameHeaderSize>(), kWide);
    if (!header) return;
    const std::size_t size = kFrameHeaderSize + header->body_size + header->payload_size;
    if (at + size > original) return;
    if (header->kind == FrameKind::kOneWay && chance(ppm)) {
      ++stats.duplicates;
      bytes.append(std::string(bytes, at, size));
    }
    at += size;
  }
}

void SimFabric::Impl::write(const std::shared_ptr<SimConnection>& c, std::size_t end,
                            std::string bytes) {
  Direction& d = c->directions[end];
  const SimLinkFaults& f = faults(d.hosts);
  ++stats.writes;
  stats.bytes += bytes.size();
  if (chance(f.drop_ppm)) {
    ++stats.drops;
    c->black_hole = true;
  }
  if (chance(f.reset_ppm)) reset(c);
  if (f.duplicate_ppm != 0) duplicate(bytes, f.duplicate_ppm);
  Duration wait = delay(d.hosts);
  if (chance(f.stall_ppm)) {
    ++stats.stalls;
    wait += f.stall;
  }
  if (blocked(*c, d)) ++stats.held;
  d.last_due = std::max(d.last_due, link.now() + wait);
  d.unread_bytes += bytes.size();
  d.in_flight.push_back({d.last_due, std::move(bytes)});
  pump(c, end);
}

void SimFabric::Impl::pump(const std::shared_ptr<SimConnection>& c, std::size_t direction) {
  Direction& d = c->directions[direction];
  if (d.scheduled || d.in_flight.empty() || blocked(*c, d)) return;
  d.scheduled = true;
  const Duration wait = std::max(Duration::zero(), d.in_flight.front().due - link.now());
  after(wait, [c, direction](Impl& self) { self.deliver(c, direction); });
}

void SimFabric::Impl::deliver(const std::shared_ptr<SimConnection>& c, std::size_t direction) {
  Direction& d = c->directions[direction];
  d.scheduled = false;
  if (blocked(*c, d)) return;  // cut off meanwhile: release() goes on
  const Direction::Chunk chunk = std::move(d.in_flight.front());
  d.in_flight.pop_front();
  if (chunk.bytes.empty()) d.ended = true;
  d.ready.append(chunk.bytes);
  if (SimStream* reader = c->ends[1 - direction]) reader->readable.notify();
  pump(c, direction);
}

void SimFabric::Impl::break_end(SimConnection& c, std::size_t end, std::error_code error) {
  if (c.broken[end]) return;
  c.broken[end] = error;
  if (SimStream* stream = c.ends[end]) {
    stream->readable.notify();
    stream->writable.notify();
  }
}

void SimFabric::Impl::reset(const std::shared_ptr<SimConnection>& c) {
  ++stats.resets;
  c->black_hole = true;
  for (std::size_t end = 0; end < 2; ++end) {
    after(delay(c->directions[end].hosts), [c, end](Impl& self) {
      self.break_end(*c, end, std::make_error_code(std::errc::connection_reset));
    });
  }
}

/// What was held up comes now, by retransmission.
void SimFabric::Impl::release(const HostPair& pair) {
  for (const auto& [id, weak] : connections) {
    const auto c = weak.lock();
    if (!c) continue;
    for (std::size_t i = 0; i < 2; ++i) {
      Direction& d = c->directions[i];
      if (d.hosts != pair || d.in_flight.empty()) continue;
      const TimePoint soonest = link.now() + delay(pair);
      for (auto& chunk : d.in_flight) chunk.due = std::max(chunk.due, soonest);
      d.last_due = std::max(d.last_due, soonest);
      pump(c, i);
    }
  }
}

namespace {

/// A connect() on its way. Belongs to the coroutine that dials.
struct Dial {
  explicit Dial(const asio::any_io_executor& executor) : answered(executor) {}
  std::optional<Result<std::shared_ptr<SimConnection>>> outcome;
  Waiter answered;
  void answer(Result<std::shared_ptr<SimConnection>> result) {
    outcome = std::move(result);
    answered.notify();
  }
};

/// The answer to a dial travels back, unless that way is cut: then it hangs.
void answer_dial(SimFabric::Impl& fabric, const HostPair& back, std::weak_ptr<Dial> dial,
                 Result<std::shared_ptr<SimConnection>> result) {
  if (fabric.is_cut(back)) return;
  fabric.after(fabric.delay(back),
               [dial = std::move(dial), result = std::move(result)](SimFabric::Impl&) {
                 if (const auto waiting = dial.lock()) waiting->answer(result);
               });
}

/// A dial arrives at its host.
void arrive(SimFabric::Impl& fabric, const HostPair& pair, std::uint16_t port,
            std::weak_ptr<Dial> dial) {
  const HostPair back{pair.second, pair.first};
  Host& host = fabric.hosts[pair.second];
  if (host.silent || fabric.is_cut(pair)) return;
  const auto found = host.listeners.find(port);
  const auto core = found == host.listeners.end() ? nullptr : found->second.core.lock();
  const auto listener = found == host.listeners.end() ? nullptr : found->second.listener.lock();
  if (!host.alive || !core || !listener || listener->closed) {
    answer_dial(fabric, back, std::move(dial), std::errc::connection_refused);
    return;
  }
  const auto connection = fabric.make_connection(pair.first, pair.second);
  asio::post(core->executor,
             [self = fabric.shared_from_this(), connection, weak_core = found->second.core,
              weak_listener = found->second.listener] {
               const auto alive = weak_core.lock();
               const auto listening = weak_listener.lock();
               if (!alive || !listening) return;
               accept_stream(alive, listening,
                             std::make_unique<SimStream>(self, connection, 1, alive->executor));
             });
  answer_dial(fabric, back, std::move(dial), connection);
}

asio::awaitable<Result<std::unique_ptr<Stream>>> dial_sim(std::shared_ptr<SimFabric::Impl> fabric,
                                                          std::shared_ptr<NetworkCore> core,
                                                          std::string from, std::uint64_t life,
                                                          std::string address) {
  FM_CO_TRY(const HostPort target, parse_address(address));
  const Host& here = fabric->hosts[from];
  if (!here.alive || here.life != life) co_return std::errc::network_down;
  const HostPair pair{from, target.host};
  const auto port = static_cast<std::uint16_t>(std::stoi(target.port));
  const auto dial = std::make_shared<Dial>(core->executor);
  if (!fabric->is_cut(pair)) {
    fabric->after(fabric->delay(pair),
                  [pair, port, weak = std::weak_ptr(dial)](SimFabric::Impl& self) {
                    arrive(self, pair, port, weak);
                  });
  }
  const std::error_code cancelled = co_await dial->answered.wait();
  if (cancelled) co_return cancelled;
  if (!*dial->outcome) co_return dial->outcome->error();
  std::unique_ptr<Stream> stream =
      std::make_unique<SimStream>(fabric, **dial->outcome, 0, core->executor);
  co_return stream;
}

class SimListener final : public Listener {
 public:
  SimListener(std::shared_ptr<ListenerCore> core, std::string address)
      : core_(std::move(core)), address_(std::move(address)) {}
  ~SimListener() override { core_->close(); }
  const std::string& address() const override { return address_; }

 private:
  std::shared_ptr<ListenerCore> core_;
  std::string address_;
};

class SimNetworkImpl final : public SimNetwork {
 public:
  SimNetworkImpl(std::shared_ptr<SimFabric::Impl> fabric, std::string host, std::uint64_t life,
                 asio::any_io_executor executor, NetworkOptions options)
      : fabric_(std::move(fabric)),
        host_(std::move(host)),
        life_(life),
        core_(std::make_shared<NetworkCore>(
            executor, options, std::make_unique<SimTimers>(fabric_->link, executor))) {}
  ~SimNetworkImpl() override { core_->shut_down(); }

  Task<std::shared_ptr<Connection>> connect(std::string address, Hello hello, Handler* handler,
                                            Duration timeout) override {
    return connect_stream(core_, dial_sim(fabric_, core_, host_, life_, std::move(address)),
                          std::move(hello), handler, timeout);
  }

  Result<std::unique_ptr<Listener>> listen(const std::string& address, Hello hello,
                                           Handler& handler) override {
    FM_TRY(const HostPort where, parse_address(address));
    Host& here = fabric_->hosts[host_];
    if (where.host != host_) return std::errc::address_not_available;
    if (!here.alive || here.life != life_) return std::errc::network_down;
    auto port = static_cast<std::uint16_t>(std::stoi(where.port));
    if (port == 0) port = here.next_port++;
    const auto taken = here.listeners.find(port);
    if (taken != here.listeners.end()) {
      const auto other = taken->second.listener.lock();
      if (other && !other->closed) return std::errc::address_in_use;
    }
    auto listener = std::make_shared<ListenerCore>();
    listener->hello = std::move(hello);
    listener->handler = &handler;
    listener->stop_listening = [] {};
    core_->listeners.push_back(listener);
    here.listeners[port] = {core_, listener};
    return std::unique_ptr<Listener>(
        std::make_unique<SimListener>(listener, host_ + ":" + std::to_string(port)));
  }

  asio::awaitable<void> stop() override { return NetworkCore::stop(core_); }
  const NetworkStats& stats() const override { return core_->stats; }

 private:
  const std::shared_ptr<SimFabric::Impl> fabric_;
  const std::string host_;
  const std::uint64_t life_;
  const std::shared_ptr<NetworkCore> core_;
};

}  // namespace

std::unique_ptr<SimLink> make_sim_link(SimScheduler& scheduler) {
  return std::make_unique<SchedulerLink>(scheduler);
}

SimFabric::SimFabric(SimLink& link, std::uint64_t seed)
    : impl_(std::make_shared<Impl>(link, seed)) {}
SimFabric::~SimFabric() = default;

std::unique_ptr<SimNetwork> SimFabric::make_network(const std::string& host,
                                                    asio::any_io_executor executor,
                                                    NetworkOptions options) {
  Host& entry = impl_->hosts[host];
  ++entry.life;
  entry.alive = true;
  entry.silent = false;
  entry.listeners.clear();
  return std::make_unique<SimNetworkImpl>(impl_, host, entry.life, std::move(executor), options);
}

void SimFabric::set_faults(SimLinkFaults faults) { impl_->default_faults = faults; }
void SimFabric::set_faults(const std::string& from, const std::string& to, SimLinkFaults faults) {
  impl_->own_faults[{from, to}] = faults;
}

void SimFabric::cut(const std::string& from, const std::string& to) {
  if (impl_->cuts.emplace(from, to).second) ++impl_->stats.partitions;
}

void SimFabric::heal(const std::string& from, const std::string& to) {
  if (impl_->cuts.erase({from, to}) != 0) impl_->release({from, to});
}

void SimFabric::partition(const std::set<std::string>& side, const std::set<std::string>& others) {
  for (const auto& a : side) {
    for (const auto& b : others) {
      cut(a, b);
      cut(b, a);
    }
  }
}

void SimFabric::heal_all() {
  for (const auto& pair : std::exchange(impl_->cuts, {})) impl_->release(pair);
}

void SimFabric::kill(const std::string& host, Notice notice) {
  Host& entry = impl_->hosts[host];
  ++impl_->stats.kills;
  entry.alive = false;
  entry.silent = notice == Notice::kAfterTimeout;
  entry.listeners.clear();
  for (const auto& [id, weak] : impl_->connections) {
    const auto c = weak.lock();
    if (!c) continue;
    for (std::size_t end = 0; end < 2; ++end) {
      const HostPair& out = c->directions[end].hosts;
      if (out.first != host) continue;
      c->black_hole = true;
      impl_->break_end(*c, end, std::make_error_code(std::errc::connection_aborted));
      if (notice == Notice::kAfterTimeout || impl_->is_cut(out)) continue;
      impl_->after(impl_->delay(out), [c, end](Impl& self) {
        self.break_end(*c, 1 - end, std::make_error_code(std::errc::connection_reset));
      });
    }
  }
}

bool SimFabric::reset_random_connection() {
  std::vector<std::shared_ptr<SimConnection>> open;
  for (const auto& [id, weak] : impl_->connections) {
    if (auto c = weak.lock(); c && !c->black_hole) open.push_back(std::move(c));
  }
  if (open.empty()) return false;
  impl_->reset(open[impl_->random.below(open.size())]);
  return true;
}

std::size_t SimFabric::open_connections() const {
  impl_->prune();
  return impl_->connections.size();
}

const SimNetworkStats& SimFabric::stats() const { return impl_->stats; }

}  // namespace fermata
