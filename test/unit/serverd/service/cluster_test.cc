// Three real daemons: what clients are promised, over failovers and restarts.
#include <catch2/catch_test_macros.hpp>
#include <future>

#include "common/base/checksum.h"
#include "common/wire/chunk_records.h"
#include "daemons.h"

using namespace fermata;
using namespace fermata::test;
using namespace std::chrono_literals;

namespace {

CreateOp create_op(const std::string& name, FileType type = FileType::kRegular) {
  CreateOp op;
  op.parent = kRootInode;
  op.name = name;
  op.type = type;
  op.mode = type == FileType::kDirectory ? 0755 : 0644;
  return op;
}
CommitOp inline_op(const Attr& file, std::string_view text) {
  CommitOp op;
  op.inode = file.inode;
  op.base = file.version;
  op.whole = true;
  op.size_bytes = text.size();
  return op;
}
SetAttrOp chmod_op(InodeId inode, std::uint32_t mode) {
  SetAttrOp op;
  op.inode = inode;
  op.mode = mode;
  return op;
}
LookupRequest lookup_of(const Client& client, const std::string& name) {
  return {client.header(), kRootInode, name};
}
Buffer bytes_of(std::string_view text) { return Buffer::copy_of(as_bytes(text)); }

/// The digests of all three at one index.
std::array<std::string, 3> digests(Client& client) {
  const auto ordered = client.ask<DigestReply>(Method::kDigest, DigestRequest{});
  REQUIRE(ordered.has_value());
  std::array<std::string, 3> result;
  for (int node = 1; node <= 3; ++node) {
    const auto answer =
        client.call_node(node, Method::kDigest, encode(DigestRequest{ordered->at}), 10s);
    REQUIRE(answer.has_value());
    REQUIRE(!answer->error);
    const auto reply = decode<DigestReply>(answer->body);
    REQUIRE(reply.has_value());
    result[static_cast<std::size_t>(node - 1)] = reply->digest;
  }
  return result;
}

/// The writer's mutation, while the reader is there to answer callbacks.
Result<MutationReply> mutate_beside(Client& writer, Client& reader, const Mutation& op) {
  auto running = std::async(std::launch::async, [&] { return writer.mutate(op); });
  while (running.wait_for(0s) != std::future_status::ready) reader.run_for(5ms);
  return running.get();
}

}  // namespace

TEST_CASE("cluster: files, duplicates, a killed primary, a restart of all", "[service]") {
  Daemons daemons;
  daemons.start_all();
  Client client(daemons);
  REQUIRE(client.open_session().has_value());

  // Create, commit inline, read back.
  auto created = client.mutate(create_op("hello"));
  REQUIRE(created.has_value());
  REQUIRE(created->attr);
  CHECK(created->leased);
  CHECK(created->parent_leased);
  const Attr file = *created->attr;
  auto committed = client.mutate(inline_op(file, "hello, world"), bytes_of("hello, world"));
  REQUIRE(committed.has_value());
  CHECK(committed->version);
  CHECK(committed->stamp > created->stamp);
  const auto looked = client.ask<LookupReply>(Method::kLookup, lookup_of(client, "hello"));
  REQUIRE(looked.has_value());
  REQUIRE(looked->attr);
  CHECK(looked->attr->size_bytes == 12);
  CHECK(looked->leased);
  CHECK(looked->entry_leased);
  auto opened = client.call(Method::kOpen, encode(OpenRequest{client.header(), file.inode, {}}));
  REQUIRE(opened.has_value());
  CHECK(as_text(opened->payload.view()) == "hello, world");
  opened = client.call(Method::kOpen,
                       encode(OpenRequest{client.header(), file.inode, committed->version}));
  CHECK(opened->payload.empty());  // the client has it

  // An absence, and errors.
  const auto absent = client.ask<LookupReply>(Method::kLookup, lookup_of(client, "nothing"));
  REQUIRE(absent.has_value());
  CHECK_FALSE(absent->attr);
  CHECK(absent->entry_leased);
  CHECK(client.mutate(create_op("hello")).error() == std::errc::file_exists);
  CHECK(client.mutate(UnlinkOp{kRootInode, "nothing", false}).error() ==
        std::errc::no_such_file_or_directory);
  CHECK(client.mutate(inline_op(file, "stale"), bytes_of("stale")).error() == Errc::kStaleBase);

  // The same sequence again is the same answer.
  const Sequence again = client.next_sequence;
  const auto first = client.mutate_as(again, create_op("once"));
  const auto second = client.mutate_as(again, create_op("once"));
  client.next_sequence = again.next();
  REQUIRE(first.has_value());
  REQUIRE(second.has_value());
  CHECK(second->attr->inode == first->attr->inode);

  // A chunked file: a chunk nobody has is refused, a put one is accepted and comes to every node.
  std::string chunk(700'000, 'x');
  const ChunkId id = chunk_id_of(as_bytes(chunk));
  std::string records;
  append_chunk_records(records, {{0, id}});
  CommitOp chunked;
  chunked.inode = first->attr->inode;
  chunked.kind = CommitOp::Kind::kChunks;
  chunked.whole = true;
  chunked.size_bytes = chunk.size();
  CHECK(client.mutate(chunked, bytes_of(records)).error() == Errc::kMissingChunk);
  const ChunkRequest put{id, static_cast<std::uint32_t>(chunk.size())};
  const auto stored = client.call(Method::kPutChunk, encode(put), bytes_of(chunk));
  REQUIRE(stored.has_value());
  REQUIRE(!stored->error);
  const auto flags =
      client.ask<ChunkFlags>(Method::kQueryChunks, ChunkList{{id, chunk_id_of(as_bytes("y"))}});
  REQUIRE(flags.has_value());
  CHECK(flags->flags == std::vector<bool>{true, false});
  const auto big = client.mutate(chunked, bytes_of(records));
  REQUIRE(big.has_value());
  for (int node = 1; node <= 3; ++node) {
    // A backup that has not applied the commit yet knows no such chunk.
    bool same = false;
    for (const auto until = std::chrono::steady_clock::now() + 20s;
         !same && std::chrono::steady_clock::now() < until; client.run_for(5ms)) {
      const auto got = client.call_node(node, Method::kGetChunk, encode(ChunkRequest{id, 0}), 10s);
      REQUIRE(got.has_value());
      same = as_text(got->payload.view()) == chunk;
    }
    CHECK(same);
  }

  // The primary dies.
  const auto primary = client.primary();
  REQUIRE(primary);
  daemons.kill(*primary);
  const auto before = std::chrono::steady_clock::now();
  const auto after = client.mutate(create_op("after"));
  REQUIRE(after.has_value());
  const auto pause = std::chrono::steady_clock::now() - before;
  CHECK(pause < 3s);
  WARN("writes went on after " << pause / 1ms << " ms");
  // The retry of an old request finds its recorded result at the new primary.
  const auto retried = client.mutate_as(again, create_op("once"));
  REQUIRE(retried.has_value());
  CHECK(retried->attr->inode == first->attr->inode);
  daemons.start(*primary);

  // All die at once, and come back.
  for (int node = 1; node <= 3; ++node) daemons.kill(node);
  daemons.start_all();
  const auto still = client.ask<LookupReply>(Method::kLookup, lookup_of(client, "after"));
  REQUIRE(still.has_value());
  CHECK(still->attr);
  opened = client.call(Method::kOpen, encode(OpenRequest{client.header(), file.inode, {}}));
  REQUIRE(opened.has_value());
  CHECK(as_text(opened->payload.view()) == "hello, world");
  const auto seen = digests(client);
  CHECK(seen[0] == seen[1]);
  CHECK(seen[1] == seen[2]);

  // A clean stop.
  daemons.kill(1, SIGTERM);
  CHECK(daemons.last_exit() == 0);
}

TEST_CASE(
    "cluster: a mutation waits for the callbacks of other sessions, and for no dead one for long",
    "[service]") {
  Daemons daemons({"--lease-ms", "1500"});
  daemons.start_all();
  Client writer(daemons);
  Client reader(daemons);
  REQUIRE(writer.open_session().has_value());
  REQUIRE(reader.open_session().has_value());
  const auto file = writer.mutate(create_op("shared"));
  REQUIRE(file.has_value());
  const InodeId inode = file->attr->inode;
  const auto looked = reader.ask<LookupReply>(Method::kLookup, lookup_of(reader, "shared"));
  REQUIRE(looked.has_value());
  REQUIRE(looked->leased);

  // The reader answers after a while; meanwhile the writer waits.
  reader.callback_delay = 300ms;
  const auto change = [&](std::uint32_t mode) {
    const auto begun = std::chrono::steady_clock::now();
    const auto changed = mutate_beside(writer, reader, chmod_op(inode, mode));
    CHECK(changed.has_value());
    return std::chrono::steady_clock::now() - begun;
  };
  CHECK(change(0600) >= 300ms);
  REQUIRE(reader.callbacks.size() == 1);
  CHECK(reader.callbacks[0].stamp > looked->stamp);
  CHECK(reader.callbacks[0].items[0].inode == inode);
  CHECK(change(0640) < 300ms);  // no holder any more
  CHECK(reader.callbacks.size() == 1);

  // An unlinked file that the reader has open stays.
  reader.callback_delay = {};
  REQUIRE(reader.renew().has_value());
  REQUIRE(reader.ask<LookupReply>(Method::kLookup, lookup_of(reader, "shared")).has_value());
  reader.open_inodes = {inode};
  REQUIRE(mutate_beside(writer, reader, UnlinkOp{kRootInode, "shared", false}).has_value());
  const auto orphan =
      reader.ask<GetAttrReply>(Method::kGetAttr, GetAttrRequest{reader.header(), inode});
  REQUIRE(orphan.has_value());
  CHECK(orphan->attr.nlink == 0);

  // A reader that is gone holds nobody up for longer than its lease; then its orphan goes too.
  REQUIRE(writer.renew().has_value());
  REQUIRE(reader.renew().has_value());
  const auto other = mutate_beside(writer, reader, create_op("other"));
  REQUIRE(other.has_value());
  REQUIRE(reader.ask<LookupReply>(Method::kLookup, lookup_of(reader, "other"))->leased);
  reader.answer_callbacks = false;
  const auto begun = std::chrono::steady_clock::now();
  // The writer's own lease may run out beside it: it waits without renewing here.
  const auto outcome = mutate_beside(writer, reader, chmod_op(other->attr->inode, 0600));
  const auto waited = std::chrono::steady_clock::now() - begun;
  CHECK((outcome.has_value() || outcome.error() == Errc::kSessionExpired));
  CHECK(waited > 1s);
  CHECK(waited < 4s);
  CHECK(reader.renew().error() == Errc::kSessionExpired);
  const auto gone =
      reader.ask<GetAttrReply>(Method::kGetAttr, GetAttrRequest{reader.header(), inode});
  CHECK_FALSE(gone.has_value());
}

TEST_CASE("cluster: a session that renews but answers no callback ends, not before its lease",
          "[service]") {
  const auto now = [] { return std::chrono::steady_clock::now(); };
  Daemons daemons({"--lease-ms", "1500"});
  daemons.start_all();
  Client writer(daemons);
  Client reader(daemons);
  REQUIRE(writer.open_session().has_value());
  REQUIRE(reader.open_session().has_value());
  const auto file = writer.mutate(create_op("shared"));
  REQUIRE(file.has_value());
  REQUIRE(reader.ask<LookupReply>(Method::kLookup, lookup_of(reader, "shared"))->leased);
  reader.answer_callbacks = false;
  const auto begun = now();
  // What becomes of the writer, which waits without renewing, is of no interest here.
  auto running = std::async(std::launch::async, [&] {
    return writer.mutate(chmod_op(file->attr->inode, 0600)).has_value();
  });
  auto renewed = begun;
  Status status;
  while (now() < begun + 15s) {
    const auto sent = now();
    status = reader.renew();
    if (!status && status.error() == Errc::kSessionExpired) break;
    if (status) renewed = sent;
    reader.run_for(50ms);
  }
  const auto ended = now();
  CHECK(status.error() == Errc::kSessionExpired);
  CHECK(ended - renewed >= 1500ms);
  CHECK(renewed - begun >= 1s);  // it was renewed while there was patience
  running.get();
}

TEST_CASE("cluster: sessions expire also after a transfer of the role has failed", "[service]") {
  const auto now = [] { return std::chrono::steady_clock::now(); };
  Daemons daemons({"--lease-ms", "1500"});
  daemons.start_all();
  Client client(daemons);
  std::array<std::unique_ptr<Client>, 4> visitors;
  for (auto& visitor : visitors) {
    visitor = std::make_unique<Client>(daemons);
    REQUIRE(visitor->open_session().has_value());
    visitor->run_for(150ms);
  }
  const auto primary = client.primary();
  REQUIRE(primary);
  const int dead = *primary % 3 + 1;
  daemons.kill(dead);
  // Each transfer to the dead node holds proposals up for an election timeout, half of the time
  // until it is given up; so one of the sessions at least falls due under one of them.
  const TransferRequest to{NodeId(static_cast<std::uint32_t>(dead))};
  for (const auto until = now() + 2500ms; now() < until;) {
    const auto moved = client.call(Method::kTransferPrimary, encode(to));
    REQUIRE(moved.has_value());
    CHECK(moved->error);
  }
  CHECK(client.primary() == primary);
  for (auto& visitor : visitors) {
    Status status;
    for (const auto until = now() + 10s; now() < until; visitor->run_for(50ms)) {
      status = visitor->renew();
      if (status.has_value() || status.error() == Errc::kSessionExpired) break;
    }
    CHECK(status.error() == Errc::kSessionExpired);
  }
}

TEST_CASE("cluster: a node that lost its directory rejoins, without a vote until it has everything",
          "[service]") {
  const auto eventually = [](Client& client, const std::function<bool()>& done) {
    for (const auto until = std::chrono::steady_clock::now() + 20s;
         std::chrono::steady_clock::now() < until; client.run_for(20ms)) {
      if (done()) return true;
    }
    return false;
  };
  Daemons daemons;
  daemons.start_all();
  Client client(daemons);
  REQUIRE(client.open_session().has_value());
  REQUIRE(client.mutate(create_op("before")).has_value());
  const auto primary = client.primary();
  REQUIRE(primary);
  const int lost = *primary % 3 + 1;
  const int other = lost % 3 + 1;
  const auto rejoining = [&] {
    const auto status = client.status(lost);
    return status && status->counters.contains("rejoining");
  };
  const auto is_whole = [&] {
    const auto status = client.status(lost);
    return status && !status->counters.contains("rejoining");
  };
  REQUIRE(eventually(client, is_whole));  // it may have come late to the cluster's beginning
  // Without the other one, nobody can say what was committed: it must wait.
  daemons.kill(lost);
  daemons.kill(other);
  std::filesystem::remove_all(daemons.dir(lost));
  daemons.start(lost);
  client.run_for(2s);
  CHECK(rejoining());
  daemons.start(other);
  CHECK(eventually(client, is_whole));
  REQUIRE(client.mutate(create_op("after")).has_value());
  const auto seen = digests(client);
  CHECK(seen[0] == seen[1]);
  CHECK(seen[1] == seen[2]);
  daemons.kill(other);  // and it counts
  CHECK(client.mutate(create_op("without the other")).has_value());
}

TEST_CASE("cluster: a new primary treats old sessions as holders until they have given up",
          "[service]") {
  Daemons daemons;
  daemons.start_all();
  Client writer(daemons);
  Client reader(daemons);
  REQUIRE(writer.open_session().has_value());
  REQUIRE(reader.open_session().has_value());
  const auto file = writer.mutate(create_op("file"));
  REQUIRE(file.has_value());
  const auto primary = writer.primary();
  REQUIRE(primary);
  daemons.kill(*primary);
  REQUIRE(reader.bind().has_value());
  REQUIRE(writer.bind().has_value());
  const auto chmod = [&](std::uint32_t mode) {
    auto running = std::async(std::launch::async,
                              [&] { return writer.mutate(chmod_op(file->attr->inode, mode)); });
    while (running.wait_for(0s) != std::future_status::ready) reader.run_for(5ms);
    CHECK(running.get().has_value());
  };
  chmod(0600);  // the reader never looked at it
  CHECK(reader.callbacks.size() == 1);
  REQUIRE(reader.renew().has_value());
  REQUIRE(reader.renew(reader.term).has_value());
  chmod(0640);
  CHECK(reader.callbacks.size() == 1);
}

TEST_CASE("serverd: what does not fit is refused with one message and changes nothing",
          "[service]") {
  Daemons daemons;
  const auto refused = [&](std::vector<std::string> arguments, int code, const std::string& word) {
    const Ran ran = run_serverd(std::move(arguments));
    CAPTURE(ran.output);
    CHECK(ran.exit_code == code);
    CHECK(ran.output.find(word) != std::string::npos);
  };
  const std::string dir = daemons.dir(1);
  refused({"--data-dir", dir}, 1, "create it first");
  refused({"--no-such-flag"}, 2, "--no-such-flag");
  refused({}, 2, "data-dir");
  std::filesystem::create_directories(dir);
  refused({"--data-dir", dir}, 1, "no node.toml");
  refused({"--data-dir", dir, "--init"}, 2, "--node-id");
  refused({"--data-dir", dir, "--init", "--node-id", "4", "--peers", daemons.peers()}, 2,
          "does not list node 4");
  refused({"--data-dir", dir, "--cluster-id", "xyz"}, 2, "32 hexadecimal");
  refused({"--data-dir", dir, "--rejoin"}, 2, "--rejoin goes with --init");
  CHECK(std::filesystem::is_empty(dir));
  daemons.start(1);
  refused({"--data-dir", dir}, 1, "in use by a running");
  std::filesystem::create_directories(daemons.dir(2));
  refused({"--data-dir", daemons.dir(2), "--init", "--node-id", "2", "--peers", daemons.peers(),
           "--listen", daemons.address(1)},
          1, "cannot listen");
  CHECK(std::filesystem::is_empty(daemons.dir(2)));
  daemons.kill(1, SIGTERM);
  CHECK(daemons.last_exit() == 0);
  refused({"--data-dir", dir, "--node-id", "2"}, 1, "node 1, not of node 2");
  refused({"--data-dir", dir, "--cluster-id", "ffffffffffffffffffffffffffffffff"}, 1,
          "belongs to cluster");
  std::ofstream(dir + "/node.toml") << "format = 9\n";
  refused({"--data-dir", dir}, 1, "newer");
}
