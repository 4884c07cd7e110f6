#include "common/wire/raft_codec.h"

#include <catch2/catch_test_macros.hpp>

#include "common/env/random.h"

namespace fermata {
namespace {

RaftMessage example(RaftKind kind) {
  RaftMessage message;
  message.kind = kind;
  message.group = GroupId(3);
  message.from = NodeId(1);
  message.to = NodeId(2);
  message.term = Term(7);
  message.prev_index = LogIndex(100);
  message.prev_term = Term(6);
  for (std::uint64_t i = 101; i < 105; ++i) {
    message.entries.push_back(
        {LogIndex(i), Term(7), EntryKind::kCommand,
         std::make_shared<const std::string>(std::string("bytes\0with a zero", 17))});
  }
  message.entries.push_back(
      {LogIndex(105), Term(7), EntryKind::kNoop, std::make_shared<const std::string>()});
  message.commit = LogIndex(99);
  message.round = 12345;
  message.reject = true;
  message.match = LogIndex(98);
  message.match_term = Term(5);
  message.transfer = true;
  if (kind == RaftKind::kSnapshot) {
    message.snapshot.index = LogIndex(90);
    message.snapshot.term = Term(4);
    message.snapshot.membership.members = {{NodeId(1), "10.0.0.1:7001", true},
                                           {NodeId(2), "host:7001", false}};
    message.snapshot.files = {{"000012.sst", 4096, 0xdeadbeef}, {"CURRENT", 16, 1}};
    message.snapshot.id = 77;
  }
  return message;
}

TEST_CASE("raft codec: what goes in comes out", "[wire][raft]") {
  for (int kind = 1; kind <= 9; ++kind) {
    CAPTURE(kind);
    const RaftMessage in = example(static_cast<RaftKind>(kind));
    const auto out = decode_raft_message(as_bytes(encode(in)));
    REQUIRE(out.has_value());
    CHECK(out->kind == in.kind);
    CHECK(out->group == in.group);
    CHECK(out->from == in.from);
    CHECK(out->to == in.to);
    CHECK(out->term == in.term);
    CHECK(out->prev_index == in.prev_index);
    CHECK(out->prev_term == in.prev_term);
    CHECK(out->commit == in.commit);
    CHECK(out->round == in.round);
    CHECK(out->reject == in.reject);
    CHECK(out->match == in.match);
    CHECK(out->match_term == in.match_term);
    CHECK(out->transfer == in.transfer);
    CHECK(out->snapshot == in.snapshot);
    REQUIRE(out->entries.size() == in.entries.size());
    for (std::size_t i = 0; i < in.entries.size(); ++i) {
      CHECK(out->entries[i].index == in.entries[i].index);
      CHECK(out->entries[i].term == in.entries[i].term);
      CHECK(out->entries[i].kind == in.entries[i].kind);
      CHECK(*out->entries[i].data == *in.entries[i].data);
    }
    CHECK(encode(*out) == encode(in));
  }
}

TEST_CASE("raft codec: an append of many small entries is not taken for an attack",
          "[wire][raft]") {
  RaftMessage in = example(RaftKind::kAppend);
  in.entries.resize(kRaftEntriesMax, in.entries[4]);
  CHECK(decode_raft_message(as_bytes(encode(in))).has_value());
  in.entries.resize(kRaftEntriesMax + 1, in.entries[4]);
  CHECK_FALSE(decode_raft_message(as_bytes(encode(in))).has_value());
}

TEST_CASE("raft codec: names that leave the directory are refused", "[wire][raft]") {
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"),
        std::string("a\0b", 3), std::string(256, 'a')}) {
    SnapshotDescriptor snapshot = example(RaftKind::kSnapshot).snapshot;
    snapshot.files[0].name = name;
    CHECK(decode_snapshot_descriptor(as_bytes(encode(snapshot))).error() ==
          make_error_code(Errc::kBadMessage));
  }
}

TEST_CASE("raft codec: unknown kinds and disordered members are refused", "[wire][raft]") {
  for (const int kind : {0, 10, 255}) {
    CHECK_FALSE(
        decode_raft_message(as_bytes(encode(example(static_cast<RaftKind>(kind))))).has_value());
  }
  RaftMessage message = example(RaftKind::kAppend);
  message.entries[0].kind = static_cast<EntryKind>(9);
  CHECK_FALSE(decode_raft_message(as_bytes(encode(message))).has_value());
  Membership membership{{{NodeId(2), "b:1", true}, {NodeId(1), "a:1", true}}};
  CHECK_FALSE(decode_membership(as_bytes(encode_membership(membership))).has_value());
  membership.members = {{NodeId(1), "a:1", true}, {NodeId(1), "a:1", true}};
  CHECK_FALSE(decode_membership(as_bytes(encode_membership(membership))).has_value());
}

TEST_CASE("raft codec: cut or altered bytes never do harm", "[wire][raft]") {
  SeededRandom random(1);
  const std::string good = encode(example(RaftKind::kSnapshot));
  for (std::size_t size = 0; size < good.size(); ++size) {
    CHECK_FALSE(decode_raft_message(as_bytes(std::string_view(good).substr(0, size))).has_value());
  }
  for (int round = 0; round < 20000; ++round) {
    std::string bad = good;
    for (std::uint64_t i = 0, count = 1 + random.below(4); i < count; ++i) {
      bad[random.below(bad.size())] = static_cast<char>(random.next());
    }
    if (const auto out = decode_raft_message(as_bytes(bad))) {
      CHECK(decode_raft_message(as_bytes(encode(*out)))
                .has_value());  // whatever it says, it says properly
    }
    std::string noise(random.below(200), '\0');
    for (char& c : noise) c = static_cast<char>(random.next());
    (void)decode_raft_message(as_bytes(noise)).has_value();
  }
}

}  // namespace
}  // namespace fermata
