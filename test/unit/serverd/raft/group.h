// A handful of cores driven by hand: each test says who hears whom and when disks finish.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/assert.h"
#include "serverd/raft/raft_core.h"
#include "test/sim/raft/sim_log.h"

namespace fermata::serverd {

using std::chrono::milliseconds;
using test::SimLog;

inline std::shared_ptr<const std::string> bytes(std::string text) {
  return std::make_shared<const std::string>(std::move(text));
}

inline Membership voters(std::initializer_list<unsigned> ids) {
  Membership membership;
  for (const unsigned id : ids) {
    membership.members.push_back({NodeId(id), "node" + std::to_string(id) + ":1", true});
  }
  return membership;
}

/// One core with its log in memory. Persists at once unless `slow_disk`.
class TestNode {
 public:
  TestNode(unsigned id, Membership membership, TimePoint now, HardState hard_state = {})
      : hard(hard_state), first_membership_(std::move(membership)) {
    options.self = NodeId(id);
    options.seed = id;
    restart(now);
  }
  /// As after a crash, with everything that was written.
  void restart(TimePoint now) {
    core.reset();
    waiting_.clear();
    sent.clear();
    core.emplace(options, hard, first_membership_, log.first_index().prev(), log, now);
  }

  template <class F>
  auto run(TimePoint now, F event) {
    Output out;
    auto result = event(*core, out);
    carry_out(out, now);
    return result;
  }
  void tick(TimePoint now) {
    run(now, [now](RaftCore& c, Output& out) { return c.tick(now, out), 0; });
  }
  void receive(const RaftMessage& message, TimePoint now) {
    run(now, [&](RaftCore& c, Output& out) { return c.receive(message, now, out), 0; });
  }
  Result<LogIndex> propose(std::string data, TimePoint now) {
    return run(now, [&](RaftCore& c, Output& out) { return c.propose(bytes(data), now, out); });
  }
  Result<LogIndex> change(Membership next, TimePoint now) {
    return run(now, [&](RaftCore& c, Output& out) { return c.propose_membership(next, now, out); });
  }
  /// The disk finishes what it was given.
  void persist(TimePoint now) {
    while (!waiting_.empty()) {
      Waiting waiting = std::move(waiting_.front());
      waiting_.pop_front();
      if (waiting.hard) hard = *waiting.hard;
      for (RaftMessage& message : waiting.after) sent.push_back(std::move(message));
      run(now,
          [&](RaftCore& c, Output& out) { return c.on_persisted(waiting.sequence, now, out), 0; });
    }
  }
  std::vector<RaftMessage> take_sent() { return std::exchange(sent, {}); }

  RaftOptions options;
  HardState hard;
  SimLog log;
  std::optional<RaftCore> core;
  std::vector<RaftMessage> sent;
  bool slow_disk = false;
  std::optional<SnapshotDescriptor> fetch;
  std::vector<NodeId> wants_snapshot;

 private:
  struct Waiting {
    std::uint64_t sequence;
    std::optional<HardState> hard;
    std::vector<RaftMessage> after;
  };
  void carry_out(Output& out, TimePoint now) {
    for (const LogEntry& entry : out.append) FM_ASSERT(log.append(entry));
    for (RaftMessage& message : out.messages) sent.push_back(std::move(message));
    if (out.fetch_snapshot) fetch = out.fetch_snapshot;
    for (const NodeId id : out.wants_snapshot) wants_snapshot.push_back(id);
    if (!out.needs_persist() && out.messages_after_persist.empty()) return;
    waiting_.push_back({out.sequence, out.hard_state, std::move(out.messages_after_persist)});
    if (!slow_disk) persist(now);
  }

  Membership first_membership_;
  std::deque<Waiting> waiting_;
};

/// Nodes 1..n and the time.
class Group {
 public:
  explicit Group(unsigned count, Membership membership = {}) {
    if (membership.members.empty()) {
      for (unsigned id = 1; id <= count; ++id) {
        membership.members.push_back({NodeId(id), "node" + std::to_string(id) + ":1", true});
      }
    }
    for (unsigned id = 1; id <= count; ++id) nodes.push_back(make(id, membership));
  }
  TestNode& operator[](unsigned id) { return *nodes[id - 1]; }
  TestNode& join(unsigned id) {
    nodes.push_back(make(id, {}));
    return *nodes.back();
  }

  /// Delivers everything on the way, and what that causes, except what `lost` says.
  void deliver() {
    for (int round = 0; round < 200; ++round) {
      std::vector<RaftMessage> all;
      for (auto& node : nodes) {
        for (RaftMessage& message : node->take_sent()) all.push_back(std::move(message));
      }
      if (all.empty()) return;
      for (const RaftMessage& message : all) {
        if (lost && lost(message)) continue;
        if (message.to.value() <= nodes.size()) (*this)[message.to.value()].receive(message, now);
      }
    }
    FM_ASSERT(!"the cores never stop talking");
  }
  /// Lets time pass in small steps.
  void run_for(Duration duration) {
    for (const TimePoint end = now + duration; now < end; now += milliseconds(10)) {
      for (auto& node : nodes) {
        if (node->core->next_tick() <= now) node->tick(now);
      }
      deliver();
    }
  }
  /// Waits until `id`'s election timeout makes it primary; the others' timers stand still.
  void elect(unsigned id) {
    now = std::max(now + milliseconds(1300), (*this)[id].core->next_tick());
    (*this)[id].tick(now);
    deliver();
    FM_ASSERT((*this)[id].core->role() == Role::kPrimary);
  }
  /// Only these hear each other from now on.
  void connect_only(std::vector<unsigned> ids) {
    lost = [ids = std::move(ids)](const RaftMessage& message) {
      const auto has = [&](NodeId id) {
        return std::find(ids.begin(), ids.end(), id.value()) != ids.end();
      };
      return !has(message.from) || !has(message.to);
    };
  }
  void heal() { lost = nullptr; }
  unsigned primary() {
    unsigned found = 0;
    for (auto& node : nodes) {
      if (node->core->role() == Role::kPrimary) found = node->options.self.value();
    }
    return found;
  }

  TimePoint now = TimePoint(std::chrono::seconds(100));
  std::vector<std::unique_ptr<TestNode>> nodes;
  std::function<bool(const RaftMessage&)> lost;

 private:
  std::unique_ptr<TestNode> make(unsigned id, const Membership& membership) {
    return std::make_unique<TestNode>(id, membership, now);
  }
};

}  // namespace fermata::serverd
