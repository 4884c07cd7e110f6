#include "common/wire/message_codec.h"

#include <catch2/catch_test_macros.hpp>

#include "common/base/checksum.h"
#include "common/env/random.h"
#include "common/wire/chunk_records.h"
#include "common/wire/command_codec.h"
#include "test/support/print.h"

namespace fermata {
namespace {

Attr sample_attr() {
  Attr attr;
  attr.inode = InodeId(77);
  attr.type = FileType::kSymlink;
  attr.mode = 0751;
  attr.nlink = 3;
  attr.uid = 1000;
  attr.gid = 1001;
  attr.rdev = 5;
  attr.size_bytes = 1ULL << 40;
  attr.allocated_bytes = 4096;
  attr.atime = {-5, 999'999'999};
  attr.mtime = {1'700'000'000, 1};
  attr.ctime = {5'000'000'000, 0};
  attr.btime = {1, 2};
  attr.version = Version(9);
  attr.change = LogIndex(12);
  attr.parent = InodeId(1);
  attr.symlink_target = "../somewhere";
  return attr;
}

std::vector<Mutation> sample_mutations() {
  CreateOp create{InodeId(1), "name\xff", FileType::kSymlink, 04755, 1, 2, 3, "target", true};
  SetAttrOp setattr;
  setattr.inode = InodeId(4);
  setattr.mode = 0644;
  setattr.gid = 0;
  setattr.mtime = Timestamp{-1, 5};
  setattr.atime_now = true;
  CommitOp commit;
  commit.inode = InodeId(6);
  commit.base = Version(2);
  commit.kind = CommitOp::Kind::kPatches;
  commit.size_bytes = 1 << 20;
  commit.patches = {{4096, 100}, {0, 1}};
  commit.mtime = {7, 8};
  commit.path_hint = "a/b";
  CreateOp reserved = create;
  reserved.type = FileType::kRegular;
  reserved.symlink_target.clear();
  reserved.exclusive = true;
  reserved.inode = InodeId(77);
  reserved.made = {3, 4};
  reserved.set.emplace();
  reserved.set->inode = reserved.inode;
  reserved.set->mode = 0600;
  reserved.set->mtime = Timestamp{1, 2};
  reserved.changed = {5, 6};
  CommitOp content;
  content.inode = reserved.inode;
  content.size_bytes = 7;
  content.mtime = {3, 5};
  return {create,
          reserved,
          MakeFileOp{reserved, content},
          ReserveInodesOp{1024},
          LinkOp{InodeId(2), InodeId(1), "x"},
          UnlinkOp{InodeId(1), "x", true},
          RmdirOp{InodeId(1), "d"},
          RenameOp{InodeId(1), "a", InodeId(2), "b", RenameOp::kExchange, true},
          setattr,
          SetXattrOp{InodeId(1), "user.x", std::string("\0v", 2), SetXattrOp::kCreate},
          RemoveXattrOp{InodeId(1), "user.x"},
          commit,
          ReleaseOrphansOp{{InodeId(1), InodeId(5)}},
          NoteReadsOp{{{InodeId(1), {-5, 7}}, {InodeId(2), {9, 0}}}},
          CreateUnnamedOp{InodeId(1), 0640, 1, 2, 027, true, {}, {}},
          CreateUnnamedOp{InodeId(1), 0640, 1, 2, 027, false, InodeId(7), {8, 9}},
          SetQuotaOp{QuotaKind::kTree, 7, false, 1 << 20, {}},
          SetQuotaOp{QuotaKind::kUser, 1000, true, {}, 5},
          LockOp{InodeId(6), LockSpace::kPosix, LockType::kShared, 7, {1, 9}, 4, 3, true},
          ReturnLocksOp{InodeId(6),
                        LockSpace::kFlock,
                        {{{SessionId(), 7}, kWholeFile, LockType::kExclusive, 3},
                         {{SessionId(), 8}, {5, 5}, LockType::kShared, 0}}}};
}

TEST_CASE("codec: every mutation survives request and command", "[wire]") {
  for (const Mutation& op : sample_mutations()) {
    CAPTURE(op.index());
    MutationRequest request{SessionId(3), Epoch(1), Sequence(9), Sequence(8), {1, 2, {3, 4}}, op};
    const auto back = decode<MutationRequest>(encode(request));
    REQUIRE(back);
    CHECK(back->op == op);
    CHECK(back->cred == request.cred);
    CHECK(back->sequence == Sequence(9));

    Command command;
    command.session = SessionId(3);
    command.time = {5, 6};
    command.body = MutateCommand{op, "payload", InodeId(1), InodeId(2), {SessionId(1)}};
    const std::string bytes = encode(command);
    const auto again = decode_command(as_bytes(bytes));
    REQUIRE(again);
    CHECK(std::get<MutateCommand>(again->body) == std::get<MutateCommand>(command.body));
    CHECK(again->time == command.time);
    CHECK(encode(*again) == bytes);  // the log's bytes do not depend on who wrote them
  }
}

TEST_CASE("codec: commands of the primary survive", "[wire]") {
  Command command;
  const auto round_trip = [&] {
    const std::string bytes = encode(command);
    const auto back = decode_command(as_bytes(bytes));
    REQUIRE(back);
    CHECK(back->body.index() == command.body.index());
    CHECK(encode(*back) == bytes);
  };
  ClusterId cluster;
  cluster.bytes.fill(7);
  command.body = BootstrapCommand{cluster, 1, 2, 0700};
  round_trip();
  command.body = OpenSessionCommand{"0123456789abcdef", "host", "/mnt", 10000};
  round_trip();
  command.body = EndSessionsCommand{{SessionId(4)}};
  round_trip();
  command.body = DigestCommand{};
  round_trip();
  command.body = PruneHistoryCommand{LogIndex(4), 100};
  round_trip();
  command.body = DropChunksCommand{{chunk_id_of(as_bytes("x"))}};
  round_trip();
  const CountQuotaCommand count{QuotaKind::kUser, 1000, 256};
  command.body = count;
  round_trip();
  CHECK(std::get<CountQuotaCommand>(decode_command(as_bytes(encode(command)))->body) == count);
  const ChunkId from = chunk_id_of(as_bytes("x")), to = chunk_id_of(as_bytes("y"));
  const FoldPatchesCommand fold{
      InodeId(5),
      {{0, from, to, {{LogIndex(7), 1, LogIndex(9)}}}, {3, {}, to, {{LogIndex(8), 0, {}}}}}};
  command.body = fold;
  round_trip();
  CHECK(std::get<FoldPatchesCommand>(decode_command(as_bytes(encode(command)))->body) == fold);
}

TEST_CASE("codec: answers survive", "[wire]") {
  const Attr attr = sample_attr();
  const auto lookup = decode<LookupReply>(encode(LookupReply{Stamp(5), true, false, attr}));
  REQUIRE(lookup);
  CHECK(lookup->attr == attr);
  CHECK(decode<LookupReply>(encode(LookupReply{Stamp(5), true, false, {}}))->attr == std::nullopt);

  ReadDirReply listing;
  listing.stamp = Stamp(6);
  listing.end = true;
  listing.directory = attr;
  listing.entries.push_back({"n", InodeId(3), FileType::kRegular, Cookie(4), attr, true});
  listing.entries.push_back({"m", InodeId(4), FileType::kDirectory, Cookie(9), {}, false});
  const auto dir = decode<ReadDirReply>(encode(listing));
  REQUIRE(dir);
  REQUIRE(dir->entries.size() == 2);
  CHECK(dir->entries[0].attr == attr);
  CHECK(dir->entries[1].cookie == Cookie(9));

  MutationReply mutation;
  mutation.attr = attr;
  mutation.removed = attr;
  mutation.version = Version(4);
  mutation.delegated = true;
  const auto reply = decode<MutationReply>(encode(mutation));
  REQUIRE(reply);
  CHECK(reply->attr == attr);
  CHECK(!reply->parent);
  CHECK(reply->removed == attr);
  CHECK(reply->delegated);

  CallbackRequest callback{Stamp(8),
                           {{InodeId(1), true, false, {"a", "b"}, true}},
                           {{InodeId(1), LockSpace::kFlock}, {InodeId(2), LockSpace::kPosix}}};
  CHECK(decode<CallbackRequest>(encode(callback))->recalls == callback.recalls);
  CHECK(decode<CallbackRequest>(encode(callback))->items == callback.items);
  GetXattrsReply xattrs{Stamp(1), true, {{"user.a", "1"}, {"user.b", ""}}};
  CHECK(decode<GetXattrsReply>(encode(xattrs))->xattrs == xattrs.xattrs);
  const auto space = decode<StatFsReply>(encode(StatFsReply{9, 8, 7, true, 6, 5}));
  REQUIRE(space);
  CHECK(space->quotas);
  CHECK(space->inodes_max == 6);
  CHECK(space->room_bytes == 5);
  const auto renewal = decode<RenewSessionReply>(encode(RenewSessionReply{5, Term(2), {}, true}));
  REQUIRE(renewal);
  CHECK(renewal->quotas);
  const QuotaList quotas{
      {{QuotaKind::kTree, 7, InodeId(3), 1, 2, 3, 4, QuotaPhase::kCounting, "/a"},
       {QuotaKind::kUser, 1000, {}, 5, 6, 7, 8, QuotaPhase::kExact, ""}}};
  const auto listed = decode<QuotaList>(encode(quotas));
  REQUIRE(listed);
  CHECK(listed->quotas == quotas.quotas);
  NodeStatus status;
  status.role = "primary";
  status.counters["x"] = 4;
  status.members = {{NodeId(1), "127.0.0.1:1", true}};
  status.command_level = 3;
  CHECK(decode<NodeStatus>(encode(status))->members == status.members);
  CHECK(decode<NodeStatus>(encode(status))->command_level == 3);
}

TEST_CASE("codec: names that are no components are refused", "[wire]") {
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"),
        std::string("a\0b", 3), std::string(256, 'x')}) {
    LookupRequest request;
    request.name = name;
    CHECK(decode<LookupRequest>(encode(request)).error() == Errc::kBadMessage);
  }
}

TEST_CASE("codec: truncated and mutated bytes give an error or a well-formed value, never a crash",
          "[wire]") {
  SeededRandom random(42);
  std::vector<std::string> seeds;
  for (const Mutation& op : sample_mutations()) {
    Command command;
    command.body = MutateCommand{op, "payload", {}, {}, {SessionId(1)}};
    seeds.push_back(encode(command));
    seeds.push_back(encode(
        MutationRequest{SessionId(3), Epoch(1), Sequence(9), Sequence(8), {1, 2, {3, 4}}, op}));
  }
  ReadDirReply listing;
  listing.entries.push_back({"n", InodeId(3), FileType::kRegular, Cookie(4), sample_attr(), true});
  seeds.push_back(encode(listing));
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string bytes = seeds[random.below(seeds.size())];
    if (random.chance(1, 4)) bytes.resize(random.below(bytes.size() + 1));
    for (std::uint64_t n = random.below(4); n != 0 && !bytes.empty(); --n)
      bytes[random.below(bytes.size())] = static_cast<char>(random.next());
    const auto command = decode_command(as_bytes(bytes));
    const auto request = decode<MutationRequest>(bytes);
    const auto dir = decode<ReadDirReply>(bytes);
    const auto status = decode<NodeStatus>(bytes);
    (command || request || dir || status ? accepted : refused)++;
    if (request) {
      if (const auto* op = std::get_if<CreateOp>(&request->op)) CHECK(is_valid_name(op->name));
    }
  }
  CHECK(accepted > 100);
  CHECK(refused > 100);
}

TEST_CASE("chunk records: round trip; disorder and odd sizes are refused", "[wire]") {
  const std::vector<ChunkRef> refs = {
      {0, chunk_id_of(as_bytes("a"))}, {5, {}}, {6, chunk_id_of(as_bytes("b"))}};
  std::string bytes;
  append_chunk_records(bytes, refs);
  CHECK(bytes.size() == 3 * kChunkRecordBytes);
  CHECK(*parse_chunk_records(as_bytes(bytes)) == refs);
  CHECK(!parse_chunk_records(as_bytes(bytes).first(40)));
  std::string twice = bytes + bytes;
  CHECK(!parse_chunk_records(as_bytes(twice)));
}

}  // namespace
}  // namespace fermata
