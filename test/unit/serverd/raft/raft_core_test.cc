// Transcripts for the rules of Raft; numbers in brackets are sections of [thesis].
#include "serverd/raft/raft_core.h"

#include <catch2/catch_test_macros.hpp>

#include "common/wire/raft_codec.h"
#include "test/unit/serverd/raft/group.h"

namespace fermata::serverd {
namespace {

RaftMessage message_to(TestNode& to, unsigned from, RaftKind kind, std::uint64_t term) {
  RaftMessage message;
  message.kind = kind;
  message.from = NodeId(from);
  message.to = to.options.self;
  message.term = Term(term);
  return message;
}

LogEntry command(std::uint64_t index, std::uint64_t term, const std::string& data = "x") {
  return {LogIndex(index), Term(term), EntryKind::kCommand, bytes(data)};
}

/// A backup in `term` whose log has these terms, at indexes from 1.
std::unique_ptr<TestNode> backup_with(unsigned id, std::vector<std::uint64_t> terms,
                                      std::uint64_t term, TimePoint now) {
  auto node = std::make_unique<TestNode>(id, voters({1, 2, 3, 4, 5}), now);
  for (std::size_t i = 0; i < terms.size(); ++i) node->log.append(command(i + 1, terms[i]));
  node->hard.term = Term(term);
  node->restart(now);
  return node;
}

TEST_CASE("RaftCore: three nodes elect one primary and replicate [3.4]", "[raft]") {
  Group group(3);
  group.run_for(std::chrono::seconds(3));
  const unsigned primary = group.primary();
  REQUIRE(primary != 0);
  REQUIRE(group[primary].propose("a", group.now).value() == LogIndex(2));
  group.run_for(milliseconds(300));
  for (unsigned id = 1; id <= 3; ++id) {
    CAPTURE(id);
    CHECK(group[id].core->commit() == LogIndex(2));
    CHECK(group[id].core->primary() == NodeId(primary));
    CHECK(*group[id].log.entry(LogIndex(2)).data == "a");
  }
  CHECK(group[primary == 1 ? 2 : 1].propose("b", group.now).error() ==
        make_error_code(Errc::kNotPrimary));
}

TEST_CASE("RaftCore: a group of one serves alone, but only what is durable", "[raft]") {
  Group group(1);
  group[1].slow_disk = true;
  group.run_for(std::chrono::seconds(2));
  CHECK(group.primary() == 0);  // its own vote is not durable yet
  group[1].persist(group.now);
  CHECK(group.primary() == 1);
  REQUIRE(group[1].propose("a", group.now).has_value());
  CHECK(group[1].core->commit() < LogIndex(2));
  group[1].persist(group.now);
  CHECK(group[1].core->commit() == LogIndex(2));
  CHECK(group[1].core->may_read(group.now));
}

TEST_CASE("RaftCore: no vote and no acknowledgement before it is durable", "[raft]") {
  const TimePoint now(std::chrono::seconds(100));
  TestNode node(1, voters({1, 2, 3}), now);
  node.slow_disk = true;
  node.receive(message_to(node, 2, RaftKind::kVote, 1), now);
  CHECK(node.take_sent().empty());
  node.persist(now);
  auto sent = node.take_sent();
  REQUIRE(sent.size() == 1);
  CHECK_FALSE(sent[0].reject);
  CHECK(node.hard == HardState{Term(1), NodeId(2)});

  RaftMessage append = message_to(node, 2, RaftKind::kAppend, 1);
  append.entries = {command(1, 1)};
  node.receive(append, now);
  CHECK(node.take_sent().empty());
  node.persist(now);
  sent = node.take_sent();
  REQUIRE(sent.size() == 1);
  CHECK(sent[0].match == LogIndex(1));
}

TEST_CASE("RaftCore: one vote per term, also after a restart", "[raft]") {
  const TimePoint now(std::chrono::seconds(100));
  TestNode node(1, voters({1, 2, 3}), now);
  node.receive(message_to(node, 2, RaftKind::kVote, 1), now);
  CHECK_FALSE(node.take_sent().at(0).reject);
  node.receive(message_to(node, 3, RaftKind::kVote, 1), now);
  CHECK(node.take_sent().at(0).reject);
  node.restart(now);
  const TimePoint later = now + std::chrono::seconds(1);
  node.receive(message_to(node, 3, RaftKind::kVote, 1), later);
  CHECK(node.take_sent().at(0).reject);
  node.receive(message_to(node, 2, RaftKind::kVote, 1), later);
  CHECK_FALSE(node.take_sent().at(0).reject);
}

TEST_CASE("RaftCore: no vote for a log that is behind [3.6.1]", "[raft]") {
  const TimePoint now(std::chrono::seconds(100));
  const auto later = now + std::chrono::seconds(2);
  struct Case {
    std::uint64_t index, term;
    bool granted;
  };
  for (const Case& c : {Case{3, 2, true}, Case{2, 2, false}, Case{9, 1, false}, Case{1, 3, true}}) {
    CAPTURE(c.index, c.term);
    auto node = backup_with(1, {1, 1, 2}, 3, now);
    RaftMessage vote = message_to(*node, 2, RaftKind::kVote, 4);
    vote.prev_index = LogIndex(c.index);
    vote.prev_term = Term(c.term);
    node->receive(vote, later);
    CHECK(node->take_sent().at(0).reject != c.granted);
    CHECK(node->core->term() == Term(4));
  }
}

TEST_CASE("RaftCore: the six logs of figure 3.6 come to equal the primary's", "[raft]") {
  const std::vector<std::uint64_t> primary{1, 1, 1, 4, 4, 5, 5, 6, 6, 6};
  const std::vector<std::vector<std::uint64_t>> others{
      {1, 1, 1, 4, 4, 5, 5, 6, 6},
      {1, 1, 1, 4},
      {1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6},
      {1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7},
      {1, 1, 1, 4, 4, 4, 4},
      {1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3},
  };
  for (const auto& log : others) {
    Group group(3, voters({1, 2, 3}));
    for (std::size_t i = 0; i < primary.size(); ++i) {
      group[1].log.append(command(i + 1, primary[i]));
      group[3].log.append(command(i + 1, primary[i]));
    }
    for (std::size_t i = 0; i < log.size(); ++i) group[2].log.append(command(i + 1, log[i]));
    for (unsigned id = 1; id <= 3; ++id) {
      group[id].hard.term = Term(7);
      group[id].restart(group.now);
    }
    group.elect(1);
    group.run_for(milliseconds(500));
    CHECK(group[2].log.last_index() == LogIndex(11));
    CHECK(group[2].log.chain_at(LogIndex(11)) == group[1].log.chain_at(LogIndex(11)));
    CHECK(group[2].core->commit() == LogIndex(11));
  }
}

TEST_CASE("RaftCore: copies of an old entry on a majority do not commit it [3.6.2, figure 3.7]",
          "[raft]") {
  const TimePoint start(std::chrono::seconds(100));
  auto node = backup_with(1, {1, 2}, 3, start);
  const TimePoint now = node->core->next_tick();
  node->tick(now);  // pre-vote
  for (const unsigned from : {2U, 3U}) {
    node->receive(message_to(*node, from, RaftKind::kPreVoteReply, 4), now);
  }
  for (const unsigned from : {2U, 3U}) {
    node->receive(message_to(*node, from, RaftKind::kVoteReply, 4), now);
  }
  REQUIRE(node->core->role() == Role::kPrimary);
  const auto acknowledge = [&](unsigned from, std::uint64_t index) {
    RaftMessage reply = message_to(*node, from, RaftKind::kAppendReply, 4);
    reply.match = LogIndex(index);
    reply.prev_index = LogIndex(2);
    node->receive(reply, now);
  };
  acknowledge(2, 2);
  acknowledge(3, 2);
  CHECK(node->core->commit() == LogIndex(0));  // a majority has entry 2 of term 2
  acknowledge(2, 3);
  CHECK(node->core->commit() == LogIndex(0));
  acknowledge(3, 3);
  CHECK(node->core->commit() == LogIndex(3));
}

TEST_CASE("RaftCore: an isolated node comes back without disturbing the primary [9.6]", "[raft]") {
  Group group(3);
  group.elect(1);
  group.connect_only({1, 2});
  group.run_for(std::chrono::seconds(10));
  CHECK(group[3].core->role() == Role::kCandidate);
  CHECK(group[3].core->term() == Term(1));
  group.heal();
  group.run_for(std::chrono::seconds(2));
  CHECK(group.primary() == 1);
  CHECK(group[1].core->term() == Term(1));
  CHECK(group[3].core->primary() == NodeId(1));
}

TEST_CASE("RaftCore: no vote while a primary is alive, unless it asked for that [6.4.1]",
          "[raft]") {
  Group group(3);
  group.elect(1);
  RaftMessage vote = message_to(group[2], 3, RaftKind::kVote, 9);
  vote.prev_index = LogIndex(50);
  vote.prev_term = Term(8);
  group[2].receive(vote, group.now);
  CHECK(group[2].take_sent().at(0).reject);
  CHECK(group[2].core->term() == Term(1));
  vote.transfer = true;
  group[2].receive(vote, group.now);
  CHECK_FALSE(group[2].take_sent().at(0).reject);
  CHECK(group[2].core->term() == Term(9));
}

TEST_CASE("RaftCore: a restarted node keeps the promise it may have given before", "[raft]") {
  Group group(3);
  group.elect(1);
  group.deliver();
  group[2].restart(group.now);
  RaftMessage vote = message_to(group[2], 3, RaftKind::kVote, 9);
  vote.prev_index = LogIndex(50);
  vote.prev_term = Term(8);
  group[2].receive(vote, group.now + milliseconds(599));
  CHECK(group[2].take_sent().at(0).reject);
  group[2].receive(vote, group.now + milliseconds(600));
  CHECK_FALSE(group[2].take_sent().at(0).reject);
}

TEST_CASE("RaftCore: a backup keeps silent for as long as its primary counts on, restarted or not",
          "[raft]") {
  Group group(3);
  group[2].options.election_timeout_min = milliseconds(200);  // the primary: 600 ms
  group[2].options.clock_drift_max = milliseconds(20);
  group[2].restart(group.now);
  group.elect(1);
  group.deliver();
  RaftMessage vote = message_to(group[2], 3, RaftKind::kVote, 9);
  vote.prev_index = LogIndex(50);
  vote.prev_term = Term(8);
  group[2].receive(vote, group.now + milliseconds(599));
  CHECK(group[2].take_sent().at(0).reject);
  group[2].restart(group.now);
  group[2].receive(vote, group.now + milliseconds(599));
  CHECK(group[2].take_sent().at(0).reject);
  group[2].receive(vote, group.now + milliseconds(600));
  CHECK_FALSE(group[2].take_sent().at(0).reject);
}

TEST_CASE("RaftCore: the silence that a backup keeps becomes shorter with its primary's",
          "[raft]") {
  const TimePoint now(std::chrono::seconds(100));
  TestNode node(2, voters({1, 2, 3}), now);
  RaftMessage append = message_to(node, 1, RaftKind::kAppend, 1);
  append.silence_ms = 5000;
  node.receive(append, now);
  append.silence_ms = 600;
  node.receive(append, now + std::chrono::seconds(1));
  CHECK(node.hard.silence_ms == 5000);  // the longer one is not over
  node.receive(append, now + milliseconds(4500));
  CHECK(node.hard.silence_ms == 600);
}

/// The node comes back with an empty disk.
void lose_disk(TestNode& node, TimePoint now) {
  node.hard = HardState{};
  node.hard.rejoining = true;
  node.log = SimLog();
  node.restart(now);
}

TEST_CASE("RaftCore: a node that lost its log elects nobody until it has everything again",
          "[raft]") {
  Group group(3);
  group.elect(1);
  group.connect_only({1, 3});
  const LogIndex kept = group[1].propose("kept by 1 and 3", group.now).value();
  group.run_for(milliseconds(200));
  REQUIRE(group[1].core->commit() == kept);
  lose_disk(group[3], group.now);
  group.connect_only({2, 3});  // neither has it
  group.run_for(std::chrono::seconds(10));
  CHECK(group.primary() == 0);
  CHECK(group[2].core->role() == Role::kCandidate);
  CHECK(group[3].core->rejoining());
  group.connect_only({1, 3});  // two, but only one that knows anything
  group.run_for(std::chrono::seconds(10));
  CHECK(group.primary() == 0);
  group.heal();
  group.run_for(std::chrono::seconds(10));
  REQUIRE(group.primary() != 0);
  CHECK_FALSE(group[3].core->rejoining());
  CHECK_FALSE(group[3].hard.rejoining);
  CHECK(*group[3].log.entry(kept).data == "kept by 1 and 3");
  // It counts again.
  group.connect_only({1, 3});
  group.run_for(std::chrono::seconds(10));
  CHECK(group.primary() != 0);
}

TEST_CASE("RaftCore: a deposed primary commits and reads nothing with a node that forgot its term",
          "[raft]") {
  Group group(3);
  group.elect(1);
  const LogIndex before = group[1].core->commit();
  group.connect_only({2, 3});
  group.elect(2);
  REQUIRE(group[2].propose("new", group.now).has_value());
  group.deliver();
  lose_disk(group[3], group.now);
  group.connect_only({1, 3});
  REQUIRE(group[1].core->role() == Role::kPrimary);
  REQUIRE(group[1].propose("old", group.now).has_value());
  group.deliver();
  CHECK(group[3].core->last_index() == group[1].core->last_index());  // it follows who it hears
  CHECK(group[1].core->commit() == before);
  CHECK_FALSE(group[1].core->may_read(group.now));
  group[1].tick(group.now);
  CHECK(group[1].core->role() != Role::kPrimary);  // no majority heard
}

TEST_CASE("RaftCore: what a node acknowledged before it lost its log does not count after it",
          "[raft]") {
  Group group(5);
  group.elect(1);
  group.connect_only({1, 5});
  const LogIndex last = group[1].propose("on 1 and 5", group.now).value();
  group.deliver();
  REQUIRE(group[1].core->progress().at(NodeId(5)).match == last);
  const LogIndex committed = group[1].core->commit();
  lose_disk(group[5], group.now);
  group.lost = [last](const RaftMessage& message) {
    return message.to == NodeId(5) && !message.entries.empty() &&
           message.entries.back().index >= last;
  };
  const auto held = [&](const RaftMessage& message) {
    return message.to.value() > 1 && message.to.value() < 5 && !message.entries.empty() &&
           message.entries.back().index >= last;
  };
  const auto lost = group.lost;
  group.lost = [=](const RaftMessage& message) { return lost(message) || held(message); };
  group.run_for(std::chrono::seconds(1));
  CHECK(group[1].core->progress().at(NodeId(5)).match < last);
  group.lost = [=](const RaftMessage& message) {
    return lost(message) || (held(message) && message.to != NodeId(4));
  };
  group.run_for(milliseconds(300));
  CHECK(group[1].core->progress().at(NodeId(4)).match == last);
  CHECK(group[1].core->commit() == committed);  // on 1 and 4 only
}

TEST_CASE("RaftCore: in a group of two the other has everything: who lost its log counts at once",
          "[raft]") {
  Group group(2);
  group.elect(1);
  REQUIRE(group[1].propose("a", group.now).has_value());
  group.run_for(milliseconds(300));
  lose_disk(group[2], group.now);
  group.run_for(std::chrono::seconds(10));
  CHECK(group.primary() == 1);
  CHECK_FALSE(group[2].hard.rejoining);
  CHECK(group[2].log.last_index() == group[1].log.last_index());
}

TEST_CASE("RaftCore: a backup that lacks what it had acknowledged gets it again", "[raft]") {
  Group group(3);
  group.elect(1);
  for (int i = 0; i < 5; ++i) REQUIRE(group[1].propose("x", group.now).has_value());
  group.run_for(milliseconds(300));
  const LogIndex last = group[1].core->last_index();
  REQUIRE(group[1].core->progress().at(NodeId(2)).match == last);
  const LogEntry first = group[2].log.entry(LogIndex(1));
  group[2].log = SimLog();
  REQUIRE(group[2].log.append(first));
  group[2].restart(group.now);
  group.run_for(std::chrono::seconds(2));
  CHECK(group.primary() == 1);
  CHECK(group[2].log.last_index() == last);
  CHECK(group[1].core->progress().at(NodeId(2)).match == last);
}

TEST_CASE("RaftCore: an isolated primary refuses reads, then steps down [6.4]", "[raft]") {
  Group group(3);
  group.elect(1);
  group.run_for(milliseconds(500));
  REQUIRE(group[1].core->may_read(group.now));
  CHECK(group[1].core->read_index() == group[1].core->commit());
  const TimePoint lease = group[1].core->lease_until();
  CHECK(lease <= group.now + milliseconds(540));
  group.connect_only({2, 3});
  group.run_for(milliseconds(550));
  CHECK(group.now > lease);
  CHECK_FALSE(group[1].core->may_read(group.now));
  group.run_for(milliseconds(200));
  CHECK(group[1].core->role() == Role::kBackup);  // check-quorum [6.2]
  group.run_for(std::chrono::seconds(2));
  CHECK((group.primary() == 2 || group.primary() == 3));
}

TEST_CASE("RaftCore: a read waits for its round [6.4]", "[raft]") {
  Group group(3);
  group.elect(1);
  group.run_for(milliseconds(200));
  const auto begin = [&](RaftCore& core, Output& out) { return core.begin_read(group.now, out); };
  const auto ticket = group[1].run(group.now, begin);
  REQUIRE(ticket.has_value());
  CHECK(group[1].core->read_state(*ticket) == ReadState::kWaiting);
  group.deliver();
  CHECK(group[1].core->read_state(*ticket) == ReadState::kReady);
  CHECK(ticket->index == group[1].core->commit());

  group.connect_only({2, 3});
  const auto cut_off = group[1].run(group.now, begin);
  group.run_for(std::chrono::seconds(3));
  CHECK(group[1].core->read_state(*cut_off) == ReadState::kLost);
}

TEST_CASE("RaftCore: leadership is transferred without a timeout [3.10]", "[raft]") {
  Group group(3);
  group.elect(1);
  group.run_for(milliseconds(200));
  const auto transfer = [&](unsigned to) {
    return group[1].run(group.now, [&](RaftCore& core, Output& out) {
      return core.transfer_leadership(NodeId(to), group.now, out);
    });
  };
  CHECK(transfer(1).error() == std::errc::invalid_argument);
  CHECK(transfer(7).error() == std::errc::invalid_argument);
  REQUIRE(transfer(3).has_value());
  CHECK_FALSE(group[1].core->may_read(group.now));  // no lease once another was told
  CHECK(group[1].propose("late", group.now).error() == make_error_code(Errc::kRetry));
  group.deliver();
  CHECK(group.primary() == 3);
  CHECK(group[3].core->term() == Term(2));
  CHECK(group[1].core->role() == Role::kBackup);
}

TEST_CASE("RaftCore: an old order to take over does nothing once the lease is back", "[raft]") {
  Group group(3);
  group.elect(1);
  group.run_for(milliseconds(200));
  REQUIRE(group[1]
              .run(group.now,
                   [&](RaftCore& core, Output& out) {
                     return core.transfer_leadership(NodeId(3), group.now, out);
                   })
              .has_value());
  RaftMessage order;
  for (const RaftMessage& message : group[1].take_sent()) {
    if (message.kind == RaftKind::kTimeoutNow) order = message;
  }
  REQUIRE(order.kind == RaftKind::kTimeoutNow);
  group.lost = [](const RaftMessage& m) { return m.kind == RaftKind::kTimeoutNow; };
  group.run_for(std::chrono::seconds(1));  // given up
  CHECK(group[1].core->may_read(group.now));
  CHECK(group[1].propose("goes on", group.now).has_value());
  group[3].receive(order, group.now);
  CHECK(group[3].core->role() == Role::kBackup);
}

TEST_CASE("RaftCore: appends are pipelined up to the limit, and batched", "[raft]") {
  Group group(3);
  for (unsigned id = 1; id <= 3; ++id) {
    group[id].options.inflight_max = 4;
    group[id].options.append_bytes_max = 1;
    group[id].restart(group.now);
  }
  group.elect(1);
  group.run_for(milliseconds(200));
  group.connect_only({});
  std::size_t appends = 0;
  for (int i = 0; i < 20; ++i) REQUIRE(group[1].propose("x", group.now).has_value());
  for (const RaftMessage& message : group[1].take_sent()) appends += message.to == NodeId(2);
  CHECK(appends == 4);
  group.heal();
  group.run_for(milliseconds(400));
  CHECK(group[2].core->commit() == group[1].core->last_index());
  CHECK(group[3].core->commit() == group[1].core->last_index());

  group[1].options.append_bytes_max = 1 << 20;
  group[1].restart(group.now);
  group.elect(1);
  group.run_for(milliseconds(200));
  Output out;
  for (int i = 0; i < 20; ++i)
    REQUIRE(group[1].core->propose(bytes("x"), group.now, out).has_value());
  CHECK(out.append.size() == 20);
  CHECK(out.messages.size() == 2);
  CHECK(out.messages[0].entries.size() == 20);
}

TEST_CASE("RaftCore: old, repeated and overtaken appends change nothing", "[raft]") {
  const TimePoint now(std::chrono::seconds(100));
  auto node = backup_with(1, {}, 0, now);
  RaftMessage append = message_to(*node, 2, RaftKind::kAppend, 1);
  append.entries = {command(1, 1), command(2, 1), command(3, 1)};
  append.commit = LogIndex(3);
  node->receive(append, now);
  CHECK(node->core->commit() == LogIndex(3));
  RaftMessage shorter = append;
  shorter.entries.resize(1);
  node->receive(shorter, now);
  node->receive(append, now);
  CHECK(node->log.last_index() == LogIndex(3));
  RaftMessage stale = message_to(*node, 3, RaftKind::kAppend, 0);
  stale.entries = {command(1, 0)};
  node->take_sent();
  node->receive(stale, now);
  const auto sent = node->take_sent();
  REQUIRE(sent.size() == 1);
  CHECK(sent[0].reject);
  CHECK(sent[0].term == Term(1));
  CHECK(node->log.last_index() == LogIndex(3));
}

TEST_CASE("RaftCore: messages that no correct node sends do no harm", "[raft]") {
  const TimePoint now(std::chrono::seconds(100));
  auto node = backup_with(1, {1, 1}, 1, now);
  const LogEntry gap = command(9, 1);
  const LogEntry from_future = command(3, 8);
  LogEntry bad_members = command(3, 2, "not a membership");
  bad_members.kind = EntryKind::kMembership;
  LogEntry null = command(3, 2);
  null.data = nullptr;
  for (const LogEntry& entry : {gap, from_future, bad_members, null}) {
    RaftMessage append = message_to(*node, 2, RaftKind::kAppend, 2);
    append.prev_index = LogIndex(2);
    append.prev_term = Term(1);
    append.entries = {entry};
    node->receive(append, now);
    CHECK(node->log.last_index() == LogIndex(2));
  }
  for (int kind = 1; kind <= 9; ++kind) {
    for (const std::uint64_t number : {std::uint64_t{0}, std::uint64_t{7}, UINT64_MAX}) {
      RaftMessage message = message_to(*node, 3, static_cast<RaftKind>(kind), 2);
      message.prev_index = message.match = message.commit = LogIndex(number);
      message.prev_term = message.match_term = Term(number);
      message.round = number;
      message.snapshot.index = LogIndex(number);
      node->receive(message, now);
      message.reject = true;
      node->receive(message, now);
    }
  }
  CHECK(node->log.last_index() == LogIndex(2));
}

TEST_CASE("RaftCore: a learner is added, catches up, is promoted, and counts [4.2.1]", "[raft]") {
  Group group(3);
  group.elect(1);
  for (int i = 0; i < 10; ++i) REQUIRE(group[1].propose("x", group.now).has_value());
  group.run_for(milliseconds(200));
  group.join(4);
  Membership next = voters({1, 2, 3, 4});
  next.members[3].voter = false;
  REQUIRE(group[1].change(next, group.now).has_value());
  CHECK(group[1].change(voters({1, 2}), group.now).error() == make_error_code(Errc::kRetry));
  group.run_for(milliseconds(500));
  CHECK(group[4].core->role() == Role::kLearner);
  CHECK(group[4].core->commit() == group[1].core->commit());
  CHECK(group[1].change(voters({1, 2, 3}), group.now).has_value());  // and removed again
  group.run_for(milliseconds(300));
  REQUIRE(group[1].change(next, group.now).has_value());
  group.run_for(milliseconds(300));
  REQUIRE(group[1].change(voters({1, 2, 3, 4}), group.now).has_value());
  group.run_for(milliseconds(300));
  CHECK(group[4].core->role() == Role::kBackup);
  CHECK(group[4].core->membership() == voters({1, 2, 3, 4}));
  group.connect_only({1, 2});  // two of four are no majority
  const LogIndex before = group[1].core->commit();
  REQUIRE(group[1].propose("y", group.now).has_value());
  group.run_for(milliseconds(300));
  CHECK(group[1].core->commit() == before);
  group.connect_only({1, 2, 4});
  group.run_for(milliseconds(1500));
  CHECK(group[1].core->commit() > before);
}

TEST_CASE("RaftCore: only one change at a time, of one member", "[raft]") {
  Group group(3);
  group.elect(1);
  const auto error = [&](const Membership& next) {
    return group[1].change(next, group.now).error();
  };
  group.run_for(milliseconds(200));
  CHECK(error(voters({1})) == std::errc::invalid_argument);        // two removed
  CHECK(error(voters({1, 2, 3})) == std::errc::invalid_argument);  // nothing
  CHECK(error(voters({1, 2, 3, 4, 5})) == std::errc::invalid_argument);
  CHECK(error(Membership()) == std::errc::invalid_argument);
  CHECK(error(voters({3, 2, 1, 4})) == std::errc::invalid_argument);  // not sorted
}

TEST_CASE("RaftCore: a membership goes with its truncated entry [4.1]", "[raft]") {
  Group group(3);
  group.elect(1);
  group.run_for(milliseconds(200));
  group.connect_only({1});
  REQUIRE(group[1].change(voters({1, 2}), group.now).has_value());
  CHECK(group[1].core->membership() == voters({1, 2}));
  group.connect_only({2, 3});
  group.run_for(std::chrono::seconds(4));
  REQUIRE(group[2].core->role() != group[3].core->role());
  group.heal();
  group.run_for(std::chrono::seconds(2));
  CHECK(group[1].core->membership() == voters({1, 2, 3}));
  CHECK(group[1].log.chain_at(group[1].log.last_index()) ==
        group[2].log.chain_at(group[2].log.last_index()));
}

TEST_CASE("RaftCore: a primary that removes itself leaves when that is committed [4.2.2]",
          "[raft]") {
  Group group(3);
  group.elect(1);
  group.run_for(milliseconds(200));
  REQUIRE(group[1].change(voters({2, 3}), group.now).has_value());
  CHECK(group[1].core->role() == Role::kPrimary);  // manages the group until then
  group.deliver();
  CHECK(group[1].core->role() == Role::kLearner);
  const unsigned heir = group.primary();
  REQUIRE((heir == 2 || heir == 3));  // at once, without a timeout
  REQUIRE(group[heir].propose("x", group.now).has_value());
  group.run_for(std::chrono::seconds(5));
  CHECK(group.primary() == heir);
  CHECK(group[heir].core->term() == Term(2));  // and node 1 disturbs nobody
  CHECK(group[heir].core->commit() == group[heir].core->last_index());
}

TEST_CASE("RaftCore: memberships are found in the log after a restart", "[raft]") {
  Group group(3);
  group.elect(1);
  group.run_for(milliseconds(200));
  REQUIRE(group[1].change(voters({1, 2, 3, 4}), group.now).has_value());
  group.run_for(milliseconds(200));
  group[2].restart(group.now);
  CHECK(group[2].core->membership() == voters({1, 2, 3, 4}));
}

TEST_CASE("RaftCore: a peer that is too far behind gets a snapshot, then the log", "[raft]") {
  Group group(3);
  group.elect(1);
  group.connect_only({1, 2});
  for (int i = 0; i < 20; ++i) REQUIRE(group[1].propose("x", group.now).has_value());
  group.run_for(milliseconds(300));
  REQUIRE(group[1].core->commit() == LogIndex(21));
  group[1].log.compact_to(LogIndex(15));
  group.run_for(std::chrono::seconds(2));
  group[1].wants_snapshot.clear();
  group.heal();
  group.run_for(milliseconds(800));
  REQUIRE_FALSE(group[1].wants_snapshot.empty());
  CHECK(group[1].wants_snapshot[0] == NodeId(3));

  SnapshotDescriptor snapshot;
  snapshot.index = LogIndex(15);
  snapshot.term = Term(1);
  snapshot.membership = voters({1, 2, 3});
  snapshot.files = {{"state", 100, 7}};
  snapshot.id = 42;
  const auto offer = [&] {
    group[1].run(group.now, [&](RaftCore& core, Output& out) {
      return core.send_snapshot(NodeId(3), snapshot, group.now, out), 0;
    });
    group.deliver();
  };
  offer();
  REQUIRE(group[3].fetch == snapshot);
  CHECK(group[1].core->progress().at(NodeId(3)).in_snapshot);

  SECTION("fetched") {
    group[3].log.reset(LogIndex(15), Term(1), *group[1].log.chain_at(LogIndex(15)));
    group[3].run(group.now, [&](RaftCore& core, Output& out) {
      return core.on_snapshot_installed(snapshot, group.now, out), 0;
    });
    CHECK(group[3].core->commit() == LogIndex(15));
  }
  SECTION("given up, and offered again") {
    group[3].run(group.now, [&](RaftCore& core, Output& out) {
      return core.on_snapshot_failed(snapshot, group.now, out), 0;
    });
    group[1].wants_snapshot.clear();
    group[3].fetch.reset();
    group.run_for(std::chrono::seconds(1));
    REQUIRE_FALSE(group[1].wants_snapshot.empty());
    offer();
    REQUIRE(group[3].fetch == snapshot);
    group[3].log.reset(LogIndex(15), Term(1), *group[1].log.chain_at(LogIndex(15)));
    group[3].run(group.now, [&](RaftCore& core, Output& out) {
      return core.on_snapshot_installed(snapshot, group.now, out), 0;
    });
  }
  group.run_for(milliseconds(500));
  CHECK(group[3].core->commit() == LogIndex(21));
  CHECK(group[3].log.chain_at(LogIndex(21)) == group[2].log.chain_at(LogIndex(21)));
}

TEST_CASE("RaftCore: a late report does not cover an entry that was cut and came back", "[raft]") {
  const TimePoint now(std::chrono::seconds(100));
  auto node = backup_with(1, {}, 0, now);
  const auto append = [&](std::uint64_t term, std::vector<LogEntry> entries) {
    RaftMessage message = message_to(*node, 2, RaftKind::kAppend, term);
    message.entries = std::move(entries);
    Output out;
    node->core->receive(message, now, out);
    return out.sequence;
  };
  const auto first = append(1, {command(1, 1), command(2, 1)});
  append(2, {command(1, 2)});                                    // cuts both
  const auto third = append(3, {command(1, 1), command(2, 1)});  // and they come back
  Output out;
  node->core->on_persisted(first, now, out);
  CHECK(node->core->durable_index() == LogIndex(0));
  node->core->on_persisted(third, now, out);
  CHECK(node->core->durable_index() == LogIndex(2));
}

}  // namespace
}  // namespace fermata::serverd
