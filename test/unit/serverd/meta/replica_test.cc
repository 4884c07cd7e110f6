// The namespace as a replicated state machine: equal bytes, replay, checkpoints, digests.
#include <cstdlib>

#include "common/base/limits.h"
#include "common/env/real_env.h"
#include "common/wire/command_codec.h"
#include "serverd/store/rocks_store.h"
#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;

namespace {

/// A history with something of everything, refusals included.
std::vector<Namespace::Entry> some_history(std::uint64_t seed, int steps) {
  Memory memory;
  Driver d(*memory.store);
  d.bootstrap();
  SeededRandom random(seed);
  std::vector<InodeId> directories{kRootInode}, files;
  FoldPatchesCommand late;  // of some time ago
  InodeId reserved;
  const auto name = [&] { return std::string(1, static_cast<char>('a' + random.below(6))); };
  const auto directory = [&] { return directories[random.below(directories.size())]; };
  for (int i = 0; i < steps; ++i) {
    const auto file = files.empty() ? InodeId(2) : files[random.below(files.size())];
    const std::uint64_t size = random.below(4 * kChunkSizeBytes) + 1;
    switch (random.below(17)) {
      case 0:
      case 1:
        if (const auto made = d.create(directory(), name()); made.error == 0)
          files.push_back(made.inode);
        break;
      case 2:
        if (const auto made = d.mkdir(directory(), name()); made.error == 0)
          directories.push_back(made.inode);
        break;
      case 3:
        d.unlink(directory(), name(), random.chance(1, 3));
        break;
      case 4:
        d.mutate(RmdirOp{directory(), name()});
        break;
      case 5:
        d.rename(directory(), name(), directory(), name(),
                 static_cast<std::uint32_t>(random.below(3)));
        break;
      case 6:
        d.mutate(LinkOp{file, directory(), name()});
        break;
      case 7:
        d.mutate(SetXattrOp{file, "user." + name(), name(), 0});
        break;
      case 8:
        if (d.ns->attr(file)) d.write(file, std::string(random.below(200), 'x'));
        break;
      case 9:
        if (d.ns->attr(file))
          d.write_chunks(file, size,
                         {{0, chunk(static_cast<std::uint32_t>(random.below(9)))},
                          {static_cast<std::uint32_t>((size - 1) / kChunkSizeBytes),
                           chunk(static_cast<std::uint32_t>(random.below(9)))}},
                         true);
        break;
      case 10:
        if (d.ns->attr(file)) d.patch(file, size, random.below(size), "p");
        break;
      case 11:
        d.mutate(ReleaseOrphansOp{{file}});
        d.mutate(CreateUnnamedOp{directory(), 0600, 1, 2, 022, random.below(2) == 0});
        d.mutate(NoteReadsOp{{{file, at(d.sequence.value())}}});
        reserved = d.mutate(ReserveInodesOp{2}).inode;
        for (std::uint64_t n = 0; n < 2; ++n) {
          MakeFileOp make;
          make.create.parent = directory();
          make.create.name = name();
          make.create.inode = make.content.inode = InodeId(reserved.value() + n);
          make.content.size_bytes = n;
          d.mutate(make, std::string(n, 'm'));
        }
        break;
      case 12:
        d.run(d.command(PruneHistoryCommand{LogIndex(random.below(d.log.size() + 1)), 20}));
        break;
      case 13:
        d.run(d.command(DropChunksCommand{*d.ns->garbage(LogIndex(UINT64_MAX), 3)}));
        break;
      case 14: {
        LockOp op;
        op.inode = file;
        op.type = static_cast<LockType>(random.below(3));
        op.owner = random.below(3);
        op.range.first = random.below(20);
        op.range.last = op.range.first + random.below(20);
        op.delegate = random.below(4) == 0;
        d.mutate(op);
        if (random.below(3) != 0) break;
        d.mutate(ReturnLocksOp{file, op.space, {{{{}, op.owner}, op.range, LockType::kShared, 1}}});
        break;
      }
      case 15: {
        if (!d.ns->attr(file)) break;
        late = d.fold_of(file, static_cast<std::uint32_t>(random.below(3)),
                         chunk(static_cast<std::uint32_t>(random.below(9))));
        if (random.below(2) == 0) d.run(d.command(late));
        break;
      }
      case 16:
        if (late.inode) d.run(d.command(late));
        break;
    }
  }
  d.run(d.command(DigestCommand{}));
  CHECK(d.problems() == std::vector<std::string>{});
  return d.log;
}

std::string digest_at_end(Namespace& ns) {
  const auto work = ns.digest_work();
  REQUIRE(work);
  REQUIRE(work->run());
  return ns.digest(work->index()).value_or("none");
}

struct TemporaryDirectory {
  TemporaryDirectory() {
    char name[] = "/tmp/fermata_meta_XXXXXX";
    path = ::mkdtemp(name);
  }
  ~TemporaryDirectory() { (void)RealDisk().remove_all(path); }
  std::string path;
};

}  // namespace

TEST_CASE("Namespace: replicas come to the same bytes, however the log is cut and replayed",
          "[serverd][meta]") {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    CAPTURE(seed);
    const auto log = some_history(seed, 600);
    const std::span<const Namespace::Entry> all(log);

    Memory whole;
    auto a = *Namespace::open(*whole.store);
    REQUIRE(a->apply_entries(all, log.back().index));
    const std::string expected = digest_at_end(*a);

    // Small batches, flushes and crashes in between; the log is then applied again from an earlier
    // place.
    Memory broken;
    SeededRandom random(seed);
    auto b = *Namespace::open(*broken.store);
    while (b->applied_index() < log.back().index) {
      const std::size_t from = random.below(b->applied_index().value() + 1);
      const std::size_t count = std::min<std::size_t>(1 + random.below(40), log.size() - from);
      REQUIRE(b->apply_entries(all.subspan(from, count), log[from + count - 1].index));
      if (random.chance(1, 4)) {
        REQUIRE(b->flush());
        CHECK(b->durable_index() == b->applied_index());
      }
      if (random.chance(1, 8)) {
        const LogIndex durable = b->durable_index();
        b.reset();
        broken.store.reset();
        broken.disk.power_cut(random);
        broken.reopen();
        b = *Namespace::open(*broken.store);
        CHECK(b->applied_index() == durable);
      }
    }
    // A crash may have taken the order away; the digest was the last entry, so the state is the
    // same.
    CHECK(*digest_of(*broken.store) == expected);

    // RocksDB through the codec, a checkpoint in the middle carried to a third replica.
    TemporaryDirectory directory;
    auto rocks = *RocksStore::open(directory.path + "/c");
    auto c = *Namespace::open(*rocks);
    const auto feed = [&](Namespace& ns, std::size_t from, std::size_t to) {
      std::vector<StateMachine::Command> batch;
      for (std::size_t i = from; i < to; ++i)
        batch.push_back(
            {log[i].index, Term(1), std::make_shared<const std::string>(encode(log[i].command))});
      const auto results = ns.apply(batch, log[to - 1].index);
      REQUIRE(results);
      CHECK(results->size() == batch.size());
    };
    const std::size_t half = log.size() / 2;
    feed(*c, 0, half);
    const auto index = c->checkpoint(directory.path + "/checkpoint");
    REQUIRE(index);
    CHECK(*index == log[half - 1].index);
    auto rocks_d = *RocksStore::open(directory.path + "/d");
    auto d = *Namespace::open(*rocks_d);
    REQUIRE(d->install(directory.path + "/checkpoint"));
    CHECK(d->applied_index() == *index);
    CHECK(d->durable_index() == *index);
    feed(*c, half, log.size());
    feed(*d, half, log.size());
    CHECK(digest_at_end(*c) == expected);
    CHECK(digest_at_end(*d) == expected);
    CHECK(*check(*rocks_d) == std::vector<std::string>{});
  }
}

TEST_CASE("Namespace: a digest is of its index, whatever comes after", "[serverd][meta]") {
  Memory memory;
  Driver d(*memory.store);
  d.bootstrap();
  d.create(kRootInode, "f");
  const auto at = d.ns->applied_index().next();
  const auto ordered = d.command(DigestCommand{});
  // In the middle of a batch.
  std::vector<Namespace::Entry> batch{
      {at, ordered},
      {at.next(), d.mutation(CreateOp{.parent = kRootInode, .name = "g", .symlink_target = {}})}};
  REQUIRE(d.ns->apply_entries(batch, at.next()));
  const std::string digest = digest_at_end(*d.ns);
  CHECK(d.ns->digest(at) == digest);
  CHECK(d.digest() != digest);
  CHECK(!d.ns->digest(at.next()));
  CHECK(!d.ns->digest_work());
}

/// The disk is full after some writes.
class FullStore final : public KvStore {
 public:
  explicit FullStore(KvStore& inner) : inner_(inner) {}
  int writes_left = 1000;

  Result<std::optional<std::string>> get(Family family, std::string_view key) const override {
    return inner_.get(family, key);
  }
  std::unique_ptr<KvIterator> iterate(Family family, std::string_view lower,
                                      std::string_view upper) const override {
    return inner_.iterate(family, lower, upper);
  }
  Status write(const KvBatch& batch) override {
    if (writes_left-- <= 0) return std::errc::no_space_on_device;
    return inner_.write(batch);
  }
  std::unique_ptr<KvReader> snapshot() const override { return inner_.snapshot(); }
  Status flush() override { return inner_.flush(); }
  Result<std::unique_ptr<KvReader>> checkpoint(const std::string& path) override {
    return inner_.checkpoint(path);
  }
  Status install(const std::string& path) override { return inner_.install(path); }
  ClusterId cluster() const override { return inner_.cluster(); }
  Status bind_cluster(ClusterId cluster) override { return inner_.bind_cluster(cluster); }
  std::uint64_t approximate_bytes(Family family) const override {
    return inner_.approximate_bytes(family);
  }

 private:
  KvStore& inner_;
};

TEST_CASE("Namespace: a disk that is full behind a digest's order: what is done is done",
          "[serverd][meta]") {
  Memory memory;
  FullStore store(*memory.store);
  Driver d(store);
  d.bootstrap();
  const auto at = d.ns->applied_index().next();
  const auto create = [&](const char* name) {
    return d.mutation(CreateOp{.parent = kRootInode, .name = name, .symlink_target = {}});
  };
  const std::vector<Namespace::Entry> batch{
      {at, create("f")}, {at.next(), d.command(DigestCommand{})}, {at.next().next(), create("g")}};
  store.writes_left = 1;
  const auto results = d.ns->apply_entries(batch, batch.back().index);
  REQUIRE(results);
  CHECK(d.ns->applied_index() == at.next());
  CHECK((*results)[0]->error == 0);
  CHECK(*d.ns->lookup(kRootInode, "f"));
  CHECK(!*d.ns->lookup(kRootInode, "g"));
  // The rest alone: nothing of it is done, until there is room.
  const auto rest = std::span(batch).subspan(2);
  CHECK(d.ns->apply_entries(rest, batch.back().index).error() == std::errc::no_space_on_device);
  CHECK(d.ns->applied_index() == at.next());
  store.writes_left = 1000;
  REQUIRE(d.ns->apply_entries(rest, batch.back().index));
  CHECK(*d.ns->lookup(kRootInode, "g"));
}

TEST_CASE("Namespace: a disk that is full at the second digest of a batch: so much is done",
          "[serverd][meta]") {
  Memory memory;
  FullStore store(*memory.store);
  Driver d(store);
  d.bootstrap();
  const auto create = [&](const char* name) {
    return d.mutation(CreateOp{.parent = kRootInode, .name = name, .symlink_target = {}});
  };
  LogIndex index = d.ns->applied_index();
  std::vector<Namespace::Entry> batch;
  for (const char* name : {"f", "", "g", ""}) {
    index = index.next();
    batch.push_back({index, *name != '\0' ? create(name) : d.command(DigestCommand{})});
  }
  store.writes_left = 1;
  const auto results = d.ns->apply_entries(batch, index);
  REQUIRE(results);  // not "nothing happened": the first digest's write stands
  CHECK(d.ns->applied_index() == batch[1].index);
  CHECK((*results)[0]->error == 0);
  CHECK(d.ns->digest_work());
  CHECK(!*d.ns->lookup(kRootInode, "g"));
  store.writes_left = 1000;
  REQUIRE(d.ns->apply_entries(std::span(batch).subspan(2), index));
  CHECK(*d.ns->lookup(kRootInode, "g"));
  CHECK(d.ns->applied_index() == index);
}

TEST_CASE("Namespace: entries that carry no command still move the applied index",
          "[serverd][meta]") {
  Memory memory;
  auto ns = *Namespace::open(*memory.store);
  REQUIRE(ns->apply({}, LogIndex(7)));
  CHECK(ns->applied_index() == LogIndex(7));
  CHECK(ns->durable_index() == LogIndex());
  REQUIRE(ns->flush());
  CHECK(ns->durable_index() == LogIndex(7));
  // What this program cannot read stops the node.
  const StateMachine::Command garbage{LogIndex(8), Term(1),
                                      std::make_shared<const std::string>("not a command")};
  CHECK(!ns->apply(std::span(&garbage, 1), LogIndex(8)));
  CHECK(ns->applied_index() == LogIndex(7));
}
