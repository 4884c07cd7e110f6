// A namespace on a store in memory, and short words for commands.
#pragma once

#include <catch2/catch_test_macros.hpp>
#include <set>

#include "common/base/limits.h"
#include "common/env/sim_disk.h"
#include "common/wire/chunk_records.h"
#include "serverd/meta/check.h"
#include "serverd/meta/digest.h"
#include "serverd/meta/namespace.h"
#include "serverd/store/mem_store.h"
#include "test/support/print.h"

namespace fermata::serverd::test {

inline ChunkId chunk(std::uint32_t n) {
  ChunkId id;
  id.algorithm = ChunkId::kSha256;
  std::memcpy(id.digest.data(), &n, sizeof n);
  return id;
}
inline std::string records(const std::vector<ChunkRef>& refs) {
  std::string out;
  append_chunk_records(out, refs);
  return out;
}
inline Timestamp at(std::uint64_t index) { return {static_cast<std::int64_t>(1000 + index), 5}; }

/// Makes commands as the primary would: looks first, then says what it saw.
class Driver {
 public:
  explicit Driver(KvStore& kv, NamespaceListener* listener = nullptr) : store(kv) {
    auto opened = Namespace::open(kv, listener);
    REQUIRE(opened);
    ns = std::move(*opened);
  }
  void bootstrap() {
    BootstrapCommand body;
    body.cluster.bytes[0] = 9;
    CHECK(run(command(body)).error == 0);
    session = open_session("client-0123456789");
  }
  SessionId open_session(const std::string& client) {
    return run(command(OpenSessionCommand{client, "host-" + client, "/mnt"})).session;
  }
  template <class Body>
  Command command(Body body) {
    Command c;
    c.body = std::move(body);
    return c;
  }
  /// Applies as the next entry.
  CommandResult run(Command c) {
    const LogIndex index = ns->applied_index().next();
    if (c.time == Timestamp{}) c.time = at(index.value());
    log.push_back({index, c});
    const auto results = ns->apply_entries(std::span(&log.back(), 1), index);
    REQUIRE(results);
    REQUIRE((*results)[0]);
    return *(*results)[0];
  }
  InodeId see(InodeId parent, const std::string& name) {
    const auto found = ns->lookup(parent, name);
    return found && *found ? (*found)->inode : InodeId();
  }
  Command mutation(Mutation op, std::string payload = {}) {
    MutateCommand m;
    if (const auto* o = std::get_if<CreateOp>(&op)) m.expected_inode = see(o->parent, o->name);
    if (const auto* o = std::get_if<UnlinkOp>(&op)) m.expected_inode = see(o->parent, o->name);
    if (const auto* o = std::get_if<RmdirOp>(&op)) m.expected_inode = see(o->parent, o->name);
    if (const auto* o = std::get_if<RenameOp>(&op)) {
      m.expected_inode = see(o->parent, o->name);
      m.expected_target = see(o->new_parent, o->new_name);
    }
    m.op = std::move(op);
    m.payload = std::move(payload);
    m.no_history = no_history;
    Command c = command(std::move(m));
    c.cred = cred;
    c.session = session;
    c.epoch = Epoch(1);
    c.sequence = sequence = sequence.next();
    c.answered_below = Sequence(sequence.value() > 3 ? sequence.value() - 3 : 0);
    return c;
  }
  CommandResult mutate(Mutation op, std::string payload = {}) {
    return run(mutation(std::move(op), std::move(payload)));
  }
  static std::error_code code(const CommandResult& result) { return from_wire(result.error); }

  CommandResult create(InodeId parent, const std::string& name, FileType type = FileType::kRegular,
                       std::uint32_t mode = 0644) {
    CreateOp op;
    op.parent = parent;
    op.name = name;
    op.type = type;
    op.mode = mode;
    if (type == FileType::kSymlink) op.symlink_target = "target";
    return mutate(op);
  }
  CommandResult mkdir(InodeId parent, const std::string& name, std::uint32_t mode = 0755) {
    return create(parent, name, FileType::kDirectory, mode);
  }
  CommandResult unlink(InodeId parent, const std::string& name, bool open_here = false) {
    return mutate(UnlinkOp{parent, name, open_here});
  }
  CommandResult rename(InodeId parent, const std::string& name, InodeId to,
                       const std::string& new_name, std::uint32_t flags = 0) {
    return mutate(RenameOp{parent, name, to, new_name, flags, false});
  }
  Version version(InodeId inode) { return ns->attr(inode)->version; }
  CommandResult write(InodeId inode, const std::string& bytes) {
    CommitOp op;
    op.inode = inode;
    op.base = version(inode);
    op.whole = true;
    op.size_bytes = bytes.size();
    op.mtime = at(1);
    return mutate(op, bytes);
  }
  CommandResult write_chunks(InodeId inode, std::uint64_t size, const std::vector<ChunkRef>& refs,
                             bool whole = false) {
    CommitOp op;
    op.inode = inode;
    op.base = version(inode);
    op.kind = CommitOp::Kind::kChunks;
    op.whole = whole;
    op.size_bytes = size;
    return mutate(op, records(refs));
  }
  CommandResult patch(InodeId inode, std::uint64_t size, std::uint64_t offset,
                      const std::string& bytes) {
    CommitOp op;
    op.inode = inode;
    op.base = version(inode);
    op.kind = CommitOp::Kind::kPatches;
    op.size_bytes = size;
    if (!bytes.empty()) op.patches = {{offset, static_cast<std::uint32_t>(bytes.size())}};
    return mutate(op, bytes);
  }
  /// What the primary would propose to put `to` in the place of a chunk and the patches over it.
  FoldPatchesCommand fold_of(InodeId inode, std::uint32_t index, ChunkId to) {
    FoldPatchesCommand::Chunk folded;
    folded.index = index;
    folded.from = ns->chunk(inode, index)->value_or(ChunkId{});
    folded.to = to;
    const auto patches = ns->patches(inode);
    REQUIRE(patches);
    for (const StoredPatch& stored : *patches) {
      if (stored.patch.offset_bytes / kChunkSizeBytes == index)
        folded.patches.push_back({stored.index, stored.number, stored.since});
    }
    return {inode, {folded}};
  }
  std::vector<std::string> problems() {
    auto found = check(store);
    REQUIRE(found);
    return *found;
  }
  std::string digest() {
    const auto digest = digest_of(store);
    REQUIRE(digest);
    return *digest;
  }

  bool no_history = false;  ///< of mutations from now on
  Credentials cred;         ///< likewise
  KvStore& store;
  std::unique_ptr<Namespace> ns;
  SessionId session;
  Sequence sequence;
  std::vector<Namespace::Entry> log;
};

struct Memory {
  Memory() {
    REQUIRE(disk.make_dirs("/n"));
    REQUIRE(disk.sync_dir("/"));
    reopen();
  }
  void reopen() {
    store.reset();
    auto opened = MemStore::open(disk, "/n/meta");
    REQUIRE(opened);
    store = std::move(*opened);
  }
  SimDisk disk{5};
  std::unique_ptr<MemStore> store;
};

struct World : Memory {
  World() : d(*store) { d.bootstrap(); }
  ~World() { CHECK(d.problems() == std::vector<std::string>{}); }
  Driver d;
};

}  // namespace fermata::serverd::test
