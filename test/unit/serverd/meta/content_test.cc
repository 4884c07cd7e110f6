// Versions: inline, chunks, patches, conflicts, history and garbage.
#include "common/base/limits.h"
#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;

namespace {
constexpr std::uint64_t kMiB = kChunkSizeBytes;

struct Heard final : NamespaceListener {
  void on_chunks_referenced(std::span<const ChunkId> ids) override {
    referenced.insert(referenced.end(), ids.begin(), ids.end());
  }
  void on_chunks_dropped(std::span<const ChunkId> ids, LogIndex) override {
    dropped.insert(dropped.end(), ids.begin(), ids.end());
  }
  std::vector<ChunkId> referenced, dropped;
};
struct ContentWorld : Memory {
  ContentWorld() : d(*store, &heard) {
    d.bootstrap();
    f = d.create(kRootInode, "f").inode;
  }
  ~ContentWorld() { CHECK(d.problems() == std::vector<std::string>{}); }
  Content content() { return *d.ns->content(f, 0, 1000); }
  Heard heard;
  Driver d;
  InodeId f;
};
using Refs = std::vector<ChunkRef>;
}  // namespace

TEST_CASE_METHOD(ContentWorld, "commit: inline, chunks and back", "[serverd][meta]") {
  CHECK(content().kind == ContentKind::kEmpty);
  const auto inline_version = d.write(f, "hello").version;
  CHECK(content().inline_bytes == "hello");
  CHECK(d.ns->attr(f)->size_bytes == 5);
  CHECK(d.ns->attr(f)->allocated_bytes == 5);
  // Chunks over inline must say what chunk 0 is.
  CHECK(d.write_chunks(f, 3 * kMiB, {{1, chunk(1)}}).error != 0);
  const auto chunked = d.write_chunks(f, 2 * kMiB + 7, {{0, chunk(1)}, {2, chunk(2)}});
  REQUIRE(chunked.error == 0);
  CHECK(content().chunks == Refs{{0, chunk(1)}, {2, chunk(2)}});
  CHECK(d.ns->attr(f)->allocated_bytes == kMiB + 7);
  CHECK(heard.referenced == std::vector<ChunkId>{chunk(1), chunk(2)});
  REQUIRE(d.write(f, "small").error == 0);
  CHECK(content().chunks.empty());
  CHECK(d.ns->content_at(f, inline_version, 0, 10)->inline_bytes == "hello");
  CHECK(d.ns->content_at(f, chunked.version, 0, 10)->chunks.size() == 2);
  const auto page = d.ns->content_at(f, chunked.version, 0, 1);
  CHECK(page->chunks == Refs{{0, chunk(1)}});
  CHECK(page->more_chunks);
  CHECK(d.ns->content_at(f, Version(99999), 0, 10).error() == Errc::kTruncatedHistory);
  REQUIRE(d.write(f, "").error == 0);
  CHECK(content().kind == ContentKind::kEmpty);
}

TEST_CASE_METHOD(ContentWorld, "commit: deltas, holes and truncation", "[serverd][meta]") {
  REQUIRE(d.write_chunks(f, 4 * kMiB, {{0, chunk(1)}, {1, chunk(2)}, {3, chunk(3)}}).error == 0);
  REQUIRE(d.write_chunks(f, 4 * kMiB, {{1, ChunkId{}}, {2, chunk(1)}}).error == 0);
  CHECK(content().chunks == Refs{{0, chunk(1)}, {2, chunk(1)}, {3, chunk(3)}});
  CHECK(*d.ns->chunk_references(chunk(1)) == 2);
  // Into the middle of a chunk: only with that chunk.
  CHECK(d.write_chunks(f, 2 * kMiB + 5, {}).error != 0);
  REQUIRE(d.write_chunks(f, 2 * kMiB + 5, {{2, chunk(9)}}).error == 0);
  CHECK(content().chunks == Refs{{0, chunk(1)}, {2, chunk(9)}});
  CHECK(d.write_chunks(f, kMiB, {{1, chunk(5)}}).error != 0);  // beyond its own size
  REQUIRE(d.write_chunks(f, kMiB, {}).error == 0);
  CHECK(content().chunks == Refs{{0, chunk(1)}});
  CHECK(d.ns->attr(f)->allocated_bytes == kMiB);
  REQUIRE(d.write_chunks(f, 9 * kMiB, {{8, chunk(4)}}, true).error == 0);
  CHECK(content().chunks == Refs{{8, chunk(4)}});
}

TEST_CASE_METHOD(ContentWorld, "commit: patches lie over chunks until those are replaced",
                 "[serverd][meta]") {
  REQUIRE(d.patch(f, 10, 2, "abc").error == 0);  // small: inline
  CHECK(content().inline_bytes == std::string("\0\0abc\0\0\0\0\0", 10));
  REQUIRE(d.write_chunks(f, 3 * kMiB, {{0, chunk(1)}, {1, chunk(2)}}).error == 0);
  REQUIRE(d.patch(f, 3 * kMiB, kMiB - 2, "1234").error == 0);  // over a boundary
  REQUIRE(d.patch(f, 3 * kMiB + 9, 3 * kMiB, "tail").error == 0);
  REQUIRE(content().patches.size() == 3);
  CHECK(content().patches[0] == PatchRecord{kMiB - 2, "12"});
  CHECK(content().patches[1] == PatchRecord{kMiB, "34"});
  const auto before = d.version(f);
  REQUIRE(d.write_chunks(f, 3 * kMiB + 2, {{1, chunk(3)}}).error == 0);
  CHECK(content().patches == std::vector<PatchRecord>{{kMiB - 2, "12"}, {3 * kMiB, "ta"}});
  CHECK(d.ns->content_at(f, before, 0, 9)->patches.size() == 3);
  CHECK(d.ns->content_at(f, before, 0, 9)->chunks[1].id == chunk(2));
  // Bounded.
  CHECK(Driver::code(d.patch(f, 6 * kMiB, 0, std::string(kPatchBytesMax, 'x'))) == Errc::kTooLarge);
  std::uint32_t stored = 2;
  while (d.patch(f, 3 * kMiB + 2, 5, "y").error == 0) ++stored;
  CHECK(stored == kPatchesMax);
  CHECK(Driver::code(d.patch(f, kMiB + 1, 5, "y")) == Errc::kTooLarge);  // cuts chunk 1
}

TEST_CASE_METHOD(ContentWorld, "fold: chunks take the place of patches, and the version stays",
                 "[serverd][meta]") {
  REQUIRE(d.write_chunks(f, 3 * kMiB, {{0, chunk(1)}, {1, chunk(2)}}).error == 0);
  REQUIRE(d.patch(f, 3 * kMiB, 5, "one").error == 0);
  const auto older = d.version(f);
  REQUIRE(d.patch(f, 3 * kMiB, 9, "two").error == 0);
  REQUIRE(d.patch(f, 3 * kMiB, 2 * kMiB + 1, "hole").error == 0);
  const Attr before = *d.ns->attr(f);
  const auto fold = d.fold_of(f, 0, chunk(10));
  const auto of_hole = d.fold_of(f, 2, chunk(12));
  REQUIRE(d.patch(f, 3 * kMiB, 7, "later").error == 0);
  const Attr newest = *d.ns->attr(f);
  CHECK(d.run(d.command(fold)).count == 1);
  CHECK(d.run(d.command(of_hole)).count == 1);
  CHECK(content().chunks == Refs{{0, chunk(10)}, {1, chunk(2)}, {2, chunk(12)}});
  CHECK(content().patches == std::vector<PatchRecord>{{7, "later"}});
  CHECK(*d.ns->attr(f) == newest);
  // The past is as it was: its chunks and patches.
  const Content past = *d.ns->content_at(f, before.version, 0, 9);
  CHECK(past.chunks == Refs{{0, chunk(1)}, {1, chunk(2)}});
  CHECK(past.patches.size() == 3);
  // A version that was folded while it was the newest stays so: a list that was begun then goes on
  // with chunks that hold what its patches did not.
  const auto folded = d.version(f);
  REQUIRE(d.patch(f, 3 * kMiB, 20, "last").error == 0);
  CHECK(d.ns->content_at(f, folded, 0, 9)->chunks ==
        Refs{{0, chunk(10)}, {1, chunk(2)}, {2, chunk(12)}});
  CHECK(d.ns->content_at(f, folded, 0, 9)->patches == std::vector<PatchRecord>{{7, "later"}});
  CHECK(d.ns->content_at(f, older, 0, 9)->patches.size() == 1);
  CHECK(d.ns->attr_at(f, LogIndex(before.version.value()))->version == before.version);
  CHECK(*d.ns->chunk_references(chunk(1)) == 1);  // history's
  // Until that is pruned.
  d.run(d.command(PruneHistoryCommand{d.ns->applied_index(), 1000}));
  CHECK(*d.ns->chunk_references(chunk(1)) == 0);
  CHECK(*d.ns->chunk_references(chunk(10)) == 1);
  CHECK(content().patches.size() == 2);
}

TEST_CASE_METHOD(ContentWorld, "fold: what a commit has changed since is left alone",
                 "[serverd][meta]") {
  const auto setup = [&] {
    REQUIRE(d.write_chunks(f, 3 * kMiB, {{0, chunk(1)}, {1, chunk(2)}}, true).error == 0);
    REQUIRE(d.patch(f, 3 * kMiB, 5, "one").error == 0);
    REQUIRE(d.patch(f, 3 * kMiB, 3 * kMiB - 4, "tail").error == 0);
  };
  const auto is_void = [&](const FoldPatchesCommand& fold) {
    const Content now = content();
    CHECK(d.run(d.command(fold)).count == 0);
    CHECK(content().chunks == now.chunks);
    CHECK(content().patches == now.patches);
  };
  SECTION("the chunk is another one") {
    setup();
    const auto fold = d.fold_of(f, 0, chunk(10));
    REQUIRE(d.write_chunks(f, 3 * kMiB, {{0, chunk(3)}}).error == 0);
    is_void(fold);
  }
  SECTION("the chunk is the same one again, without its patches") {
    setup();
    const auto fold = d.fold_of(f, 0, chunk(10));
    REQUIRE(d.write_chunks(f, 3 * kMiB, {{0, chunk(1)}}).error == 0);
    CHECK(content().patches.size() == 1);
    is_void(fold);
    REQUIRE(d.patch(f, 3 * kMiB, 5, "one").error == 0);  // the same bytes, of another commit
    is_void(fold);
  }
  SECTION("a patch was cut") {
    setup();
    const auto fold = d.fold_of(f, 2, chunk(12));
    REQUIRE(d.write_chunks(f, 3 * kMiB - 2, {}).error == 0);
    is_void(fold);
    CHECK(d.run(d.command(d.fold_of(f, 2, chunk(13)))).count == 1);
  }
  SECTION("it was folded already") {
    setup();
    const auto fold = d.fold_of(f, 0, chunk(10));
    CHECK(d.run(d.command(fold)).count == 1);
    is_void(fold);
  }
  SECTION("the content is inline, or the file is gone") {
    setup();
    const auto fold = d.fold_of(f, 0, chunk(10));
    REQUIRE(d.write(f, "small").error == 0);
    is_void(fold);
    REQUIRE(d.unlink(kRootInode, "f").error == 0);
    CHECK(d.run(d.command(fold)).count == 0);
    CHECK(*d.ns->chunk_references(chunk(10)) == 0);
  }
  SECTION("one chunk of two") {
    setup();
    auto fold = d.fold_of(f, 0, chunk(10));
    fold.chunks.push_back(d.fold_of(f, 2, chunk(12)).chunks.front());
    REQUIRE(d.write_chunks(f, 3 * kMiB, {{0, chunk(3)}}).error == 0);
    CHECK(d.run(d.command(fold)).count == 1);
    CHECK(content().chunks == Refs{{0, chunk(3)}, {1, chunk(2)}, {2, chunk(12)}});
    CHECK(content().patches.empty());
  }
}

TEST_CASE_METHOD(ContentWorld, "commit: a stale base changes nothing, or is listed as a conflict",
                 "[serverd][meta]") {
  const auto mine = d.write(f, "one").version;
  const SessionId first = d.session;
  d.session = d.open_session("another-client-0");
  d.sequence = {};
  CommitOp op;
  op.inode = f;
  op.base = Version();
  op.size_bytes = 3;
  op.path_hint = "/f";
  CHECK(Driver::code(d.mutate(op, "two")) == Errc::kStaleBase);
  CHECK(content().inline_bytes == "one");
  op.replace_newer = true;
  const auto theirs = d.mutate(op, "two");
  REQUIRE(theirs.error == 0);
  CHECK(content().inline_bytes == "two");
  CHECK(d.ns->content_at(f, mine, 0, 1)->inline_bytes == "one");
  const auto conflicts = d.ns->conflicts(10);
  REQUIRE(conflicts->size() == 1);
  const Conflict& c = conflicts->front();
  CHECK(c.replaced == mine);
  CHECK(c.replaced_writer == first);
  CHECK(c.replaced_host == "host-client-0123456789");
  CHECK(c.writer_host == "host-another-client-0");
  CHECK(c.path_hint == "/f");
  // With the version that it tells of it is forgotten.
  CHECK(d.ns->counters().conflicts == 1);
  CHECK(d.run(d.command(PruneHistoryCommand{d.ns->applied_index(), 1000})).count > 0);
  CHECK(d.ns->conflicts(10)->empty());
  CHECK(d.ns->counters().conflicts == 0);
}

TEST_CASE_METHOD(ContentWorld, "commit: the file changed when it was written", "[serverd][meta]") {
  const auto write_at = [&](Timestamp mtime) {
    CommitOp op;
    op.inode = f;
    op.base = d.version(f);
    op.whole = true;
    op.size_bytes = 1;
    op.mtime = mtime;
    REQUIRE(d.mutate(op, "x").error == 0);
    return *d.ns->attr(f);
  };
  const auto plus = [](Timestamp time, std::int64_t seconds) {
    time.seconds += seconds;
    return time;
  };
  const Timestamp created = d.ns->attr(f)->ctime;
  const Timestamp written{created.seconds, created.nanoseconds + 1};
  CHECK(write_at(written).mtime == written);
  CHECK(d.ns->attr(f)->ctime == written);  // not when it was closed
  // Times that hide the change, or are no clock's: now.
  const Timestamp hidden = write_at(written).ctime;
  CHECK(hidden > written);
  // Written, but with the same bytes.
  SetAttrOp same;
  same.inode = f;
  same.written = true;
  same.mtime = Timestamp{hidden.seconds, hidden.nanoseconds + 1};
  REQUIRE(d.mutate(same).error == 0);
  CHECK(d.ns->attr(f)->mtime == *same.mtime);
  CHECK(d.ns->attr(f)->ctime == *same.mtime);
  const Timestamp future = plus(hidden, 1'000'000);
  const auto after = write_at(future);
  CHECK(after.mtime == future);
  CHECK((after.ctime > hidden && after.ctime < future));
  CHECK(write_at(plus(created, -1000)).ctime == after.ctime);  // never backwards
}

TEST_CASE_METHOD(ContentWorld, "history: names and attributes as of an index", "[serverd][meta]") {
  const LogIndex made = d.ns->applied_index();
  d.write(f, "one");
  d.rename(kRootInode, "f", kRootInode, "g");
  const LogIndex renamed = d.ns->applied_index();
  d.unlink(kRootInode, "g");
  const LogIndex gone = d.ns->applied_index();
  d.create(kRootInode, "f");
  CHECK((*d.ns->lookup_at(kRootInode, "f", made))->inode == f);
  CHECK(!*d.ns->lookup_at(kRootInode, "f", made.prev()));
  CHECK(!*d.ns->lookup_at(kRootInode, "f", renamed));
  CHECK((*d.ns->lookup_at(kRootInode, "g", renamed))->inode == f);
  CHECK(!*d.ns->lookup_at(kRootInode, "g", gone));
  CHECK(d.ns->attr_at(f, made)->size_bytes == 0);
  CHECK(d.ns->attr_at(f, renamed)->size_bytes == 3);
  CHECK(!d.ns->attr_at(f, gone));
  CHECK(d.ns->readdir_at(kRootInode, renamed, {}, 10)->entries.front().name == "g");
  CHECK(d.ns->readdir_at(kRootInode, gone, {}, 10)->entries.empty());
  CHECK(d.ns->readdir_at(kRootInode, d.ns->applied_index(), {}, 10)->entries.size() == 1);
  CHECK(d.ns->readdir_at(kRootInode, renamed, "g", 10)->entries.empty());
}

TEST_CASE_METHOD(ContentWorld, "history: a command that keeps none frees at once what it replaces",
                 "[serverd][meta]") {
  const auto first = d.write_chunks(f, 2 * kMiB, {{0, chunk(1)}, {1, chunk(2)}}).version;
  const auto second = d.write_chunks(f, 2 * kMiB, {{0, chunk(3)}}).version;
  d.no_history = true;
  REQUIRE(d.unlink(kRootInode, "f").error == 0);
  d.no_history = false;
  const LogIndex gone = d.ns->applied_index();
  CHECK(d.ns->history_start() == gone);
  CHECK(*d.ns->chunk_references(chunk(3)) == 0);
  CHECK(*d.ns->chunk_references(chunk(1)) == 1);  // in history since before, until that is pruned
  CHECK(d.ns->content_at(f, first, 0, 9).error() == Errc::kTruncatedHistory);
  CHECK(d.ns->content_at(f, second, 0, 9).error() == Errc::kTruncatedHistory);
  CHECK(d.ns->lookup_at(kRootInode, "f", gone.prev()).error() == Errc::kTruncatedHistory);
  CHECK(!*d.ns->lookup_at(kRootInode, "f", gone));
  CHECK(d.run(d.command(PruneHistoryCommand{gone, 1000})).count > 0);
  CHECK(d.run(d.command(PruneHistoryCommand{gone, 1000})).count == 0);
  CHECK(d.ns->counters().garbage == 3);
  // A refused one changes nothing.
  d.create(kRootInode, "g");
  d.no_history = true;
  CHECK(d.unlink(kRootInode, "absent").error != 0);
  CHECK(d.ns->history_start() == gone);
}

TEST_CASE_METHOD(ContentWorld, "history: pruning frees chunks, dropping deletes them",
                 "[serverd][meta]") {
  const auto first = d.write_chunks(f, 2 * kMiB, {{0, chunk(1)}, {1, chunk(2)}}).version;
  const auto second = d.write_chunks(f, 2 * kMiB, {{0, chunk(3)}}).version;
  CHECK(*d.ns->chunk_references(chunk(1)) == 1);  // held by history
  PruneHistoryCommand prune{.up_to = LogIndex(second.value()), .keys_max = 1};
  std::uint64_t rounds = 0;
  while (d.run(d.command(prune)).count > 0) ++rounds;
  CHECK(rounds > 2);
  CHECK(*d.ns->chunk_references(chunk(1)) == 0);
  CHECK(d.ns->content_at(f, first, 0, 9).error() == Errc::kTruncatedHistory);
  CHECK(d.ns->content_at(f, second, 0, 9)->chunks.size() == 2);
  CHECK(d.ns->attr_at(f, LogIndex(first.value())).error() == Errc::kTruncatedHistory);
  CHECK(*d.ns->garbage(d.ns->applied_index(), 10) == std::vector<ChunkId>{chunk(1)});
  CHECK(d.ns->chunk_uses({}, 10)->size() == 3);
  // Referred to again in time: stays.
  REQUIRE(d.write_chunks(f, 2 * kMiB, {{0, chunk(1)}}).error == 0);
  CHECK(d.run(d.command(DropChunksCommand{{chunk(1), chunk(77)}})).count == 1);
  CHECK(heard.dropped == std::vector<ChunkId>{chunk(77)});
  // A version that is still the newest is readable however much is pruned.
  CHECK(d.ns->content_at(f, d.version(f), 0, 9)->chunks.size() == 2);
  REQUIRE(d.unlink(kRootInode, "f").error == 0);
  d.run(d.command(PruneHistoryCommand{d.ns->applied_index(), 1000}));
  CHECK(d.ns->counters().garbage == 3);
  CHECK(d.run(d.command(DropChunksCommand{*d.ns->garbage(LogIndex(UINT64_MAX), 100)})).count == 3);
  CHECK(d.ns->counters().garbage == 0);
}
