#include "mountd/cache/cache_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/base/checksum.h"
#include "common/env/random.h"
#include "test/support/print.h"

namespace fermata::mountd {
namespace {

namespace fs = std::filesystem;
constexpr std::uint64_t kMiB = 1 << 20;
constexpr ClusterId kCluster{{1, 2, 3}};
constexpr auto kClosed = CachedCopy::After::kClosed;
constexpr auto kStillWritable = CachedCopy::After::kStillWritable;
constexpr auto kTracked = CachedCopy::Writes::kTracked;
constexpr auto kUntracked = CachedCopy::Writes::kUntracked;

struct TempDir {
  TempDir() {
    std::string name = (fs::temp_directory_path() / "fermata_cache_XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~TempDir() {
    std::error_code ignored;
    fs::remove_all(path, ignored);
  }
  fs::path path;
};

CacheOptions options_for(const fs::path& dir, std::uint64_t limit_bytes = 1ULL << 30) {
  CacheOptions options;
  options.dir = dir.string();
  options.cluster = kCluster;
  options.limit_bytes = limit_bytes;
  options.free_ratio_min = 0;
  return options;
}

std::unique_ptr<CacheStore> open_store(const CacheOptions& options) {
  auto store = CacheStore::open(options);
  REQUIRE(store);
  return std::move(*store);
}

Bytes random_bytes(std::size_t size, std::uint64_t seed) {
  SeededRandom random(seed);
  Bytes bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(random.next() >> 13);
  return bytes;
}

CachePin fill(CacheStore& store, std::uint64_t inode, std::uint64_t version, const Bytes& bytes) {
  auto fill =
      store.begin_fill(InodeId(inode), Version(version), bytes.size(), bytes.size(), 0100644, "f");
  REQUIRE(fill);
  REQUIRE(fill->created);
  for (std::size_t at = 0; at < bytes.size(); at += kMiB) {
    const auto part = ByteView(bytes).subspan(at, std::min<std::size_t>(kMiB, bytes.size() - at));
    REQUIRE(fill->copy->write_fill(at, part));
  }
  REQUIRE(fill->copy->finish_fill({}));
  return fill->copy;
}

Bytes content_of(CachedCopy& copy) {
  Bytes bytes(copy.stat()->size_bytes);
  REQUIRE(copy.read_at(0, bytes).value() == bytes.size());
  return bytes;
}

using Blocks = std::vector<std::uint64_t>;

TEST_CASE("CacheStore: a filled copy is found, reads back and survives a restart",
          "[mountd][cache]") {
  TempDir dir;
  const Bytes bytes = random_bytes(3 * kMiB + 17, 1);
  {
    const auto store = open_store(options_for(dir.path));
    CHECK_FALSE(store->find(InodeId(5), Version(9)));
    const CachePin copy = fill(*store, 5, 9, bytes);
    CHECK(store->find(InodeId(5), Version(9)) == copy);
    CHECK(content_of(*copy) == bytes);
    CHECK_FALSE(copy->is_modified().value());
    store->rename(InodeId(5), "dir/renamed");
  }
  const auto store = open_store(options_for(dir.path));
  const CachePin copy = store->find(InodeId(5), Version(9));
  REQUIRE(copy);
  CHECK(content_of(*copy) == bytes);
  CHECK(store->list().at(0).path_hint == "dir/renamed");
  CHECK(store->recovered_dirty().empty());
  const CacheStats stats = store->stats();
  CHECK(stats.files == 1);
  CHECK(stats.bytes >= bytes.size());
}

TEST_CASE("CacheStore: a filling copy gives what is there, wakes waiters, and dies with its mountd",
          "[mountd][cache]") {
  TempDir dir;
  const Bytes bytes = random_bytes(4 * kMiB, 2);
  {
    const auto store = open_store(options_for(dir.path));
    auto begun = store->begin_fill(InodeId(1), Version(1), bytes.size(), bytes.size(), 0, "");
    REQUIRE(begun);
    CachedCopy& copy = *begun->copy;
    auto second = store->begin_fill(InodeId(1), Version(1), bytes.size(), bytes.size(), 0, "");
    CHECK((second && !second->created));

    Bytes out(kMiB);
    CHECK(copy.read_at(kMiB, out).error() == Errc::kRetry);
    std::vector<std::error_code> woken;
    copy.when_present(kMiB, kMiB, [&](std::error_code error) { woken.push_back(error); });
    REQUIRE(copy.write_fill(2 * kMiB, ByteView(bytes).subspan(2 * kMiB, kMiB)));
    CHECK(woken.empty());
    REQUIRE(copy.write_fill(kMiB, ByteView(bytes).subspan(kMiB, kMiB)));
    CHECK(woken == std::vector<std::error_code>{{}});
    CHECK(copy.read_at(kMiB, out).value() == kMiB);
    CHECK(std::equal(out.begin(), out.end(), bytes.begin() + kMiB));
    CHECK(copy.missing(0, 4 * kMiB) == std::vector<ByteRange>{{0, kMiB}, {3 * kMiB, 4 * kMiB}});
    CHECK(copy.finish_fill({}).error() == std::errc::invalid_argument);
    CHECK(copy.mark_maybe_dirty(kTracked).error() == Errc::kRetry);
  }
  {
    const auto store = open_store(options_for(dir.path));
    CHECK_FALSE(store->find(InodeId(1), Version(1)));
    CHECK(store->stats().files == 0);
    auto begun = store->begin_fill(InodeId(1), Version(1), bytes.size(), bytes.size(), 0, "");
    REQUIRE((begun && begun->created));
    std::error_code seen;
    begun->copy->when_present(0, 1, [&](std::error_code error) { seen = error; });
    begun->copy->fail_fill(from_errno(ETIMEDOUT));
    CHECK(seen == std::errc::timed_out);
    CHECK_FALSE(store->find(InodeId(1), Version(1)));
  }
}

TEST_CASE("CacheStore: truncation to nothing ends a fill", "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  auto begun = store->begin_fill(InodeId(1), Version(1), 4 * kMiB, 4 * kMiB, 0, "");
  REQUIRE(begun);
  CachedCopy& copy = *begun->copy;
  REQUIRE(copy.write_fill(0, random_bytes(kMiB, 3)));
  REQUIRE(copy.truncate(0));
  CHECK(copy.complete());
  CHECK(copy.maybe_dirty());
  CHECK(copy.write_fill(kMiB, random_bytes(kMiB, 3)).error() == std::errc::operation_canceled);
  CHECK(copy.stat()->size_bytes == 0);
  CHECK(copy.is_modified().value());
  REQUIRE(copy.write_at(0, as_bytes("new")));
  const auto scan = copy.changed_blocks();
  REQUIRE(scan);
  CHECK(scan->changed == Blocks{0});
}

TEST_CASE("CacheStore: evicts the least recently used under its limit, never a pinned one",
          "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path, 8 * kMiB + kMiB / 2));
  const CachePin pinned = fill(*store, 1, 1, random_bytes(2 * kMiB, 1));
  for (std::uint64_t inode = 2; inode <= 4; ++inode) {
    fill(*store, inode, 1, random_bytes(2 * kMiB, inode));
  }
  CHECK(store->find(InodeId(2), Version(1)));  // 3 is the oldest unpinned now
  fill(*store, 5, 1, random_bytes(2 * kMiB, 5));
  CHECK(store->find(InodeId(1), Version(1)));
  CHECK(store->find(InodeId(2), Version(1)));
  CHECK_FALSE(store->find(InodeId(3), Version(1)));
  CHECK(store->find(InodeId(4), Version(1)));
  CHECK(store->find(InodeId(5), Version(1)));
  CHECK(store->stats().evictions == 1);
  CHECK(store->stats().bytes <= 8 * kMiB + kMiB / 2);
  CHECK(content_of(*pinned).size() == 2 * kMiB);

  const CachePin a = store->find(InodeId(2), Version(1));
  const CachePin b = store->find(InodeId(4), Version(1));
  const CachePin c = store->find(InodeId(5), Version(1));
  CHECK(store->reserve(kMiB).error() == std::errc::no_space_on_device);
  CHECK(store->stats().files == 4);
}

TEST_CASE("CacheStore: what would never fit drives nothing out", "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path, 4 * kMiB));
  fill(*store, 1, 1, random_bytes(2 * kMiB, 1));
  CHECK(store->begin_fill(InodeId(2), Version(1), 5 * kMiB, 5 * kMiB, 0, "").error() ==
        std::errc::no_space_on_device);
  CHECK(store->find(InodeId(1), Version(1)));
}

TEST_CASE("CacheStore: the order of use survives a restart", "[mountd][cache]") {
  TempDir dir;
  {
    const auto store = open_store(options_for(dir.path));
    for (std::uint64_t inode = 1; inode <= 3; ++inode) {
      fill(*store, inode, 1, random_bytes(2 * kMiB, inode));
    }
    CHECK(store->find(InodeId(1), Version(1)));
  }
  const auto store = open_store(options_for(dir.path, 7 * kMiB));
  fill(*store, 4, 1, random_bytes(2 * kMiB, 4));
  CHECK(store->find(InodeId(1), Version(1)));
  CHECK_FALSE(store->find(InodeId(2), Version(1)));
  CHECK(store->find(InodeId(3), Version(1)));
}

TEST_CASE("CacheStore: changed_blocks finds exactly the changed blocks", "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  const Bytes bytes = random_bytes(5 * kMiB + 100, 1);
  const CachePin copy = fill(*store, 1, 1, bytes);
  const auto scan_of = [&] {
    auto scan = copy->changed_blocks();
    REQUIRE(scan);
    return std::move(*scan);
  };

  SECTION("tracked writes") {
    REQUIRE(copy->mark_maybe_dirty(kTracked));
    CHECK_FALSE(copy->is_modified().value());
    REQUIRE(copy->write_at(kMiB - 1, as_bytes("xyz")));
    CHECK(copy->is_modified().value());
    const ChangeScan scan = scan_of();
    CHECK(scan.changed == Blocks{0, 1});
    CHECK_FALSE(scan.size_changed);
    CHECK(scan_of().changed == Blocks{0, 1});  // until a commit succeeded
    REQUIRE(copy->note_clean(Version(2), scan, {}, kClosed));
    CHECK_FALSE(copy->maybe_dirty());
    CHECK(copy->base() == Version(2));
    CHECK(store->find(InodeId(1), Version(2)) == copy);
    CHECK_FALSE(store->find(InodeId(1), Version(1)));
  }
  SECTION("a tracked write after the scan belongs to the next one") {
    REQUIRE(copy->mark_maybe_dirty(kTracked));
    REQUIRE(copy->write_at(0, as_bytes("a")));
    const ChangeScan scan = scan_of();
    REQUIRE(copy->write_at(3 * kMiB, as_bytes("b")));
    REQUIRE(copy->note_clean(Version(2), scan, {}, kClosed));
    CHECK(copy->maybe_dirty());
    CHECK(copy->is_modified().value());
    CHECK(scan_of().changed == Blocks{3});
  }
  SECTION("the same bytes again are no change") {
    REQUIRE(copy->mark_maybe_dirty(kTracked));
    REQUIRE(copy->write_at(2 * kMiB, ByteView(bytes).subspan(2 * kMiB, kMiB)));
    CHECK_FALSE(scan_of().modified());
  }
  SECTION("writes that pass the daemon by, also through a mapping") {
    REQUIRE(copy->mark_maybe_dirty(kUntracked));
    CHECK(copy->is_modified().value() == !store->ctime_reliable());
    const int fd = ::open(copy->data_path().c_str(), O_RDWR | O_CLOEXEC);
    REQUIRE(::pwrite(fd, "q", 1, 2 * kMiB + 5) == 1);
    CHECK(copy->is_modified().value());
    void* const map = ::mmap(nullptr, 5 * kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REQUIRE(map != MAP_FAILED);
    char* const text = static_cast<char*>(map);
    text[4 * kMiB + 9] = static_cast<char>(text[4 * kMiB + 9] + 1);
    CHECK(copy->has_writable_users().value());
    ::close(fd);
    CHECK(copy->has_writable_users().value());  // the mapping
    const ChangeScan scan = scan_of();
    CHECK(scan.changed == Blocks{2, 4});
    REQUIRE(copy->note_clean(Version(2), scan, {}, CachedCopy::After::kStillWritable));
    CHECK(copy->is_modified().value() == !store->ctime_reliable());
    text[4 * kMiB + 9] = static_cast<char>(text[4 * kMiB + 9] + 1);  // its page was mapped before
    CHECK(copy->is_modified().value());
    CHECK(scan_of().changed == Blocks{4});
    ::munmap(map, 5 * kMiB);
    CHECK_FALSE(copy->has_writable_users().value());
  }
  SECTION("truncation and growth") {
    REQUIRE(copy->mark_maybe_dirty(kTracked));
    REQUIRE(copy->truncate(3 * kMiB + 5));
    ChangeScan scan = scan_of();
    CHECK((scan.size_changed && scan.changed == Blocks{3} && scan.digests.size() == 4));
    REQUIRE(copy->note_clean(Version(2), scan, {}, kClosed));
    REQUIRE(copy->mark_maybe_dirty(kTracked));
    REQUIRE(copy->truncate(9 * kMiB));
    scan = scan_of();
    CHECK((scan.changed == Blocks{3} && scan.digests.size() == 9));
    CHECK(scan.digests[8] == kHoleDigest);
    REQUIRE(copy->punch(kMiB, kMiB));
    CHECK(scan_of().changed == Blocks{1, 3});
    CHECK(scan_of().digests[1] == kHoleDigest);
  }
}

struct Tracked {
  Tracked() : store(open_store(options_for(dir.path))), bytes(random_bytes(4 * kMiB + 100, 1)) {
    copy = fill(*store, 1, 1, bytes);
    REQUIRE(copy->mark_maybe_dirty(kTracked));
  }
  void write(std::uint64_t offset, std::string_view text) {
    REQUIRE(copy->write_at(offset, as_bytes(text)));
    if (bytes.size() < offset + text.size()) bytes.resize(offset + text.size());
    std::memcpy(bytes.data() + offset, text.data(), text.size());
  }
  std::optional<DirtyBytes> dirty() {
    auto found = copy->dirty_bytes({4, 1000});
    REQUIRE(found);
    return std::move(*found);
  }
  void reopen() {
    copy = {};
    store.reset();
    store = open_store(options_for(dir.path));
  }
  /// The data and the sidecar as a killed mountd leaves them are work on version `base`.
  void check_after_kill(Version base) const {
    TempDir other;
    fs::copy(dir.path, other.path, fs::copy_options::recursive);
    fs::remove(other.path / "lock");
    const auto next = open_store(options_for(other.path));
    const auto left = next->recovered_dirty();
    REQUIRE(left.size() == 1);
    CHECK(left.front()->base() == base);
    CHECK(content_of(*left.front()) == bytes);
  }
  TempDir dir;
  std::unique_ptr<CacheStore> store;
  Bytes bytes;
  CachePin copy;
};
using Ranges = std::vector<ByteRange>;

TEST_CASE_METHOD(Tracked, "CachedCopy: the bytes that were written are known exactly",
                 "[mountd][cache]") {
  CHECK_FALSE(dirty());
  write(10, "abc");
  write(kMiB - 1, "xy");
  write(11, "B");
  const auto found = dirty();
  REQUIRE(found);
  CHECK(found->ranges == Ranges{{10, 13}, {kMiB - 1, kMiB + 1}});
  CHECK(as_text(found->bytes.view()) == "aBcxy");
  CHECK(found->size_bytes == bytes.size());
  // Until they are committed they are all to be sent.
  write(20, "later");
  CHECK(dirty()->ranges.size() == 3);
  REQUIRE(copy->note_patched(Version(2), *found));
  CHECK(copy->base() == Version(2));
  CHECK_FALSE(copy->is_modified().value());
  write(kMiB, "q");
  CHECK(dirty()->ranges == Ranges{{kMiB, kMiB + 1}});
  // What came after the ones that were sent is the next commit's.
  const auto sent = dirty();
  write(30, "r");
  REQUIRE(copy->note_patched(Version(3), *sent));
  CHECK(copy->is_modified().value());
  CHECK(dirty()->ranges == Ranges{{30, 31}});
}

TEST_CASE_METHOD(Tracked, "CachedCopy: more than a few bytes, and a cut file, are for a scan",
                 "[mountd][cache]") {
  SECTION("bytes") { write(0, std::string(1001, 'x')); }
  SECTION("ranges") {
    for (std::uint64_t i = 0; i < 5; ++i) write(i * 100, "x");
  }
  SECTION("it has shrunk") {
    write(0, "x");
    REQUIRE(copy->truncate(4 * kMiB));
    bytes.resize(4 * kMiB);
  }
  SECTION("others may have written") {
    write(0, "x");
    copy->expect_untracked_writes();
  }
  CHECK_FALSE(dirty());
  const auto scan = copy->changed_blocks();
  REQUIRE(scan);
  CHECK(scan->modified());
  REQUIRE(copy->note_clean(Version(2), *scan, {}, kClosed));
  CHECK(content_of(*copy) == bytes);
}

TEST_CASE_METHOD(Tracked, "CachedCopy: a file that grows a little is patched", "[mountd][cache]") {
  write(bytes.size(), "tail");
  auto found = dirty();
  REQUIRE(found);
  CHECK(found->size_bytes == bytes.size());
  CHECK(found->ranges == Ranges{{bytes.size() - 4, bytes.size()}});
  REQUIRE(copy->note_patched(Version(2), *found));
  CHECK_FALSE(copy->is_modified().value());
  // What was grown and cut again is not part of it.
  write(7, "x");
  REQUIRE(copy->write_at(bytes.size(), as_bytes("gone")));
  REQUIRE(copy->truncate(bytes.size() + 2));
  found = dirty();
  REQUIRE(found);
  CHECK(found->size_bytes == bytes.size() + 2);
  CHECK(found->ranges.back().end_bytes == bytes.size() + 2);
}

TEST_CASE_METHOD(Tracked, "CachedCopy: blocks that were patched count as changed until digested",
                 "[mountd][cache]") {
  write(kMiB + 5, "abc");
  REQUIRE(copy->note_patched(Version(2), *dirty()));
  SECTION("settled") {
    REQUIRE(copy->settle_digests());
    REQUIRE(copy->mark_maybe_dirty(kUntracked));
    CHECK_FALSE(copy->changed_blocks()->modified());
    copy->note_closed();
    reopen();
    CHECK(store->recovered_dirty().empty());
  }
  SECTION("not settled") {
    copy->expect_untracked_writes();
    CHECK(copy->changed_blocks()->changed == Blocks{1});
  }
  SECTION("written since") {
    write(kMiB + 9, "d");
    REQUIRE(copy->settle_digests());
    copy->expect_untracked_writes();
    CHECK(copy->changed_blocks()->changed == Blocks{1});
  }
}

TEST_CASE_METHOD(Tracked, "CachedCopy: it is known what patched blocks are made of",
                 "[mountd][cache]") {
  const auto some_id = [](std::uint64_t number) {
    return chunk_id_of(as_bytes(std::to_string(number)));
  };
  const std::vector<ChunkId> ids{some_id(1), {}, some_id(3), kPatchedChunk, some_id(5)};
  const auto scan = copy->changed_blocks();
  REQUIRE(scan);
  REQUIRE(copy->note_clean(Version(2), *scan, ids, kStillWritable));
  CHECK(copy->patched_blocks().empty());
  write(kMiB - 1, "ab");  // over a boundary
  write(2 * kMiB + 7, "c");
  write(3 * kMiB, "d");  // of this one nothing was known
  REQUIRE(copy->note_patched(Version(3), *dirty()));
  write(kMiB + 100, "e");
  REQUIRE(copy->note_patched(Version(4), *dirty()));
  const auto b = with_patch(0, kMiB, as_bytes("b"));
  const PatchedBlocks expected{{0, {some_id(1), with_patch(0, kMiB - 1, as_bytes("a"))}},
                               {1, {ChunkId{}, with_patch(b, kMiB + 100, as_bytes("e"))}},
                               {2, {some_id(3), with_patch(0, 2 * kMiB + 7, as_bytes("c"))}}};
  CHECK((copy->patched_blocks() == expected));
  // A block that is sent as a chunk is patched no more.
  copy->expect_untracked_writes();
  const auto next = copy->changed_blocks();
  REQUIRE(next);
  auto chunks = copy->chunks();
  CHECK(chunks[0] == kPatchedChunk);
  chunks[0] = some_id(9);
  REQUIRE(copy->note_clean(Version(5), *next, chunks, kStillWritable));
  CHECK(copy->patched_blocks().size() == 2);
}

TEST_CASE_METHOD(Tracked, "CachedCopy: a block's clean bytes, if they can be had",
                 "[mountd][cache]") {
  const auto block = [&](std::uint32_t index) {
    const auto found = copy->clean_block(index);
    REQUIRE(found);
    return *found;
  };
  const auto same = [&](const Buffer& found, std::uint64_t begin) {
    return std::ranges::equal(found.view(), ByteView(bytes).subspan(begin, found.size()));
  };
  CHECK(same(*block(0), 0));
  CHECK(block(4)->size() == 100);
  CHECK_FALSE(block(5));
  write(kMiB + 3, "abc");
  CHECK_FALSE(block(1));
  CHECK(block(0));
  const auto sent = dirty();
  CHECK_FALSE(block(1));  // not committed yet
  REQUIRE(copy->note_patched(Version(2), *sent));
  REQUIRE(block(1));
  CHECK(same(*block(1), kMiB));
  // Nobody knows any more.
  copy->expect_untracked_writes();
  CHECK_FALSE(block(1));
  CHECK(block(0));
}

TEST_CASE_METHOD(Tracked,
                 "CachedCopy: digesting beside commits takes no older bytes for the newest",
                 "[mountd][cache]") {
  std::atomic<bool> ended{false};
  std::thread settling([&] {
    while (!ended) (void)copy->settle_digests();
  });
  for (std::uint64_t version = 2; version < 3000; ++version) {
    write(kMiB + 5, std::string(1, static_cast<char>('a' + version % 7)));
    REQUIRE(copy->note_patched(Version(version), *dirty()));
    // Whatever is known of the block is true of what was committed last.
    const std::uint64_t known = copy->meta().clean.digests[1];
    const bool right =
        known == kStaleDigest || known == block_digest(ByteView(bytes).subspan(kMiB, kMiB));
    if (!right) FAIL("after version " << version);
  }
  ended = true;
  settling.join();
}

TEST_CASE_METHOD(Tracked, "CachedCopy: after a crash its base is the version last committed",
                 "[mountd][cache]") {
  const std::string meta = copy->data_path().substr(0, copy->data_path().size() - 4) + "meta";
  const auto size_before = fs::file_size(meta);
  for (std::uint64_t version = 2; version < 1500; ++version) {
    write(version * 2000, "v" + std::to_string(version));
    REQUIRE(copy->note_patched(Version(version), *dirty()));
  }
  CHECK(fs::file_size(meta) < size_before + 60'000);  // written anew now and then
  const Bytes sidecar = [&] {
    std::ifstream in(meta, std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(in), {});
    return Bytes(as_bytes(text).begin(), as_bytes(text).end());
  }();
  auto whole = decode_copy_meta(sidecar);
  REQUIRE(whole);
  CHECK(whole->base == Version(1499));
  CHECK(whole->clean.size_bytes == bytes.size());
  CHECK(whole->maybe_dirty);
  // Cut off anywhere in the last step it is the one before.
  for (std::size_t cut = 1; cut < 52; ++cut) {
    const auto torn = decode_copy_meta(ByteView(sidecar).first(sidecar.size() - cut));
    REQUIRE(torn);
    CHECK(torn->base == Version(1498));
  }
  check_after_kill(Version(1499));
}

TEST_CASE_METHOD(Tracked, "CachedCopy: a sidecar that was written over takes steps again",
                 "[mountd][cache]") {
  std::uint64_t version = 1;
  const auto commit = [&] {
    ++version;
    write(version * 2000, "v" + std::to_string(version));
    REQUIRE(copy->note_patched(Version(version), *dirty()));
  };
  for (int i = 0; i < 3; ++i) commit();
  copy->set_path_hint("/a/much/longer/path/than/the/one/before");
  REQUIRE(copy->save_if_stale());
  for (int i = 0; i < 2; ++i) {
    REQUIRE(copy->settle_digests());
    copy->set_path_hint("/short");
    REQUIRE(copy->save_if_stale());
    commit();
    commit();
  }
  check_after_kill(Version(version));
}

TEST_CASE("CacheStore: an open that meets the search for writers ends nothing", "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  const CachePin copy = fill(*store, 1, 1, random_bytes(5000, 1));
  std::atomic<bool> stop{false};
  std::thread opener([&] {
    while (!stop) ::close(::open(copy->data_path().c_str(), O_RDWR | O_CLOEXEC));
  });
  // The signal of a broken lease that is not the ignored one ends this very process.
  int met = 0;
  for (int i = 0; i < 2'000 || (met == 0 && i < 100'000); ++i) {
    met += copy->has_writable_users().value() ? 1 : 0;
  }
  stop = true;
  opener.join();
  CHECK(met > 0);
  CHECK_FALSE(copy->has_writable_users().value());
}

TEST_CASE("CacheStore: a read is seen in the atime each time that it is expected",
          "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  const std::size_t size = GENERATE(5000, 200'000);
  const CachePin copy = fill(*store, 1, 1, random_bytes(size, 1));
  for (int round = 0; round < 3; ++round) {
    CAPTURE(round);
    REQUIRE(copy->arm_access_time());
    const std::int64_t before = copy->stat()->atime_ns;
    Bytes buffer(10);
    REQUIRE(copy->read_at(0, buffer));  // the daemon's own
    CHECK(copy->stat()->atime_ns == before);
    const int fd = ::open(copy->data_path().c_str(), O_RDONLY | O_CLOEXEC);
    char byte = 0;
    REQUIRE(::read(fd, &byte, 1) == 1);
    ::close(fd);
    CHECK(copy->stat()->atime_ns > before);
  }
  // It is not taken for a change.
  REQUIRE(copy->mark_maybe_dirty(kUntracked));
  CHECK(copy->is_modified().value() == (size > kInlineBytesMax && !store->ctime_reliable()));
}

TEST_CASE("CacheStore: a small file's store through a living mapping is seen", "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  const CachePin copy = fill(*store, 1, 1, random_bytes(5000, 1));
  REQUIRE(copy->mark_maybe_dirty(kUntracked));
  const int fd = ::open(copy->data_path().c_str(), O_RDWR | O_CLOEXEC);
  char* const map =
      static_cast<char*>(::mmap(nullptr, 5000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  ::close(fd);
  for (std::uint64_t round = 2; round < 50; ++round) {
    map[round * 7] = static_cast<char>(map[round * 7] + 1);
    CHECK(copy->is_modified().value());
    const auto scan = copy->changed_blocks();
    REQUIRE((scan && scan->changed == Blocks{0}));
    REQUIRE(copy->note_clean(Version(round), *scan, {}, CachedCopy::After::kStillWritable));
    CHECK_FALSE(copy->is_modified().value());
  }
  ::munmap(map, 5000);
}

TEST_CASE("CacheStore: sparse files stay sparse", "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path, 16 * kMiB));
  CHECK(store->begin_fill(InodeId(2), Version(1), 512 * kMiB, 17 * kMiB, 0, "").error() ==
        std::errc::no_space_on_device);
  auto begun = store->begin_fill(InodeId(1), Version(1), 512 * kMiB, kMiB, 0, "");
  REQUIRE(begun);
  CHECK(store->stats().bytes == kMiB);
  CachedCopy& copy = *begun->copy;
  REQUIRE(copy.fill_hole(0, 511 * kMiB));
  REQUIRE(copy.write_fill(511 * kMiB, random_bytes(kMiB, 1)));
  REQUIRE(copy.finish_fill({}));
  REQUIRE(copy.mark_maybe_dirty(kUntracked));
  const auto scan = copy.changed_blocks();
  REQUIRE(scan);
  CHECK_FALSE(scan->modified());
  CHECK(copy.stat()->allocated_bytes < 2 * kMiB);
  CHECK(store->stats().bytes < 2 * kMiB);
}

TEST_CASE("CacheStore: dirty copies are kept over a restart and never evicted", "[mountd][cache]") {
  TempDir dir;
  const Bytes old_bytes = random_bytes(2 * kMiB, 1);
  {
    const auto store = open_store(options_for(dir.path, 16 * kMiB));
    const CachePin touched = fill(*store, 1, 1, old_bytes);
    const CachePin opened = fill(*store, 2, 1, old_bytes);
    REQUIRE(touched->mark_maybe_dirty(kTracked));
    REQUIRE(touched->write_at(5, as_bytes("mine")));
    REQUIRE(opened->mark_maybe_dirty(kUntracked));  // and nothing written
    const auto created = store->create(InodeId(3), Version(4), kTracked, 0100644, "new");
    REQUIRE(created);
    REQUIRE((*created)->write_at(0, as_bytes("hello")));
    REQUIRE(store->create(InodeId(4), Version(), kTracked, 0100644, "never committed"));
    CHECK_FALSE(store->drop(InodeId(1), Version(1)));
  }
  {
    const auto store = open_store(options_for(dir.path, 3 * kMiB));
    std::vector<std::uint64_t> inodes;
    for (const CachePin& copy : store->recovered_dirty()) inodes.push_back(copy->inode().value());
    std::ranges::sort(inodes);
    CHECK(inodes == std::vector<std::uint64_t>{1, 3, 4});
    CHECK(store->drop_clean() == 1);
    const CachePin copy = store->find(InodeId(1), Version(1));
    REQUIRE(copy);
    CHECK(copy->is_modified().value());
    const auto scan = copy->changed_blocks();
    REQUIRE((scan && scan->changed == Blocks{0}));
    REQUIRE(copy->mark_conflict());
    CHECK_FALSE(store->find(InodeId(1), Version(1)));
    CHECK(store->stats().conflict_files == 1);
    fill(*store, 1, 1, old_bytes.size() > 0 ? random_bytes(kMiB / 2, 9) : old_bytes);
  }
  const auto store = open_store(options_for(dir.path));
  CHECK(store->recovered_dirty().size() == 2);  // the conflict was reported once, and is listed
  CHECK(store->copies_of(InodeId(1)).size() == 2);
  for (const CachePin& copy : store->copies_of(InodeId(1))) {
    if (copy->conflict()) {
      Bytes out(4);
      CHECK(copy->read_at(5, out).value() == 4);
      CHECK(as_text(out) == "mine");
      copy->discard();
    }
  }
  CHECK(store->stats().conflict_files == 0);
}

TEST_CASE("CacheStore: an update in place that was cut short leaves no copy", "[mountd][cache]") {
  TempDir dir;
  {
    const auto store = open_store(options_for(dir.path));
    const CachePin copy = fill(*store, 1, 1, random_bytes(kMiB, 1));
    REQUIRE(copy->begin_update());
    REQUIRE(copy->write_at(0, as_bytes("half of version 2")));
  }
  const auto store = open_store(options_for(dir.path));
  CHECK(store->stats().files == 0);
  CHECK(store->recovered_dirty().empty());
}

TEST_CASE("CacheStore: a torn sidecar's data goes to lost+found", "[mountd][cache]") {
  TempDir dir;
  const Bytes bytes = random_bytes(100'000, 1);
  std::string data;
  {
    const auto store = open_store(options_for(dir.path));
    data = fill(*store, 1, 1, bytes)->data_path();
  }
  const fs::path meta = fs::path(data).replace_extension(".meta");
  const auto size = fs::file_size(meta);
  const int damage = GENERATE(0, 1, 2);
  CAPTURE(damage);
  if (damage == 0) fs::resize_file(meta, size / 2);
  if (damage == 1) fs::resize_file(meta, 0);
  if (damage == 2) {
    std::fstream file(meta, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(40);
    file.put('!');
  }
  const auto store = open_store(options_for(dir.path));
  CHECK_FALSE(store->find(InodeId(1), Version(1)));
  CHECK(store->stats().lost_found == 1);
  const fs::path kept = dir.path / "lost+found" / fs::path(data).filename();
  REQUIRE(fs::exists(kept));
  CHECK(fs::file_size(kept) == bytes.size());
  CHECK_FALSE(fs::exists(data));
}

TEST_CASE("CacheStore: after the machine went down a clean copy is verified before use",
          "[mountd][cache]") {
  TempDir dir;
  const Bytes bytes = random_bytes(2 * kMiB, 1);
  std::string damaged;
  {
    const auto store = open_store(options_for(dir.path));
    fill(*store, 1, 1, bytes);
    damaged = fill(*store, 2, 1, bytes)->data_path();
  }
  {
    std::fstream file(damaged, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(kMiB + 5);
    file.put('!');  // what a lost page looks like: the size is right
  }
  fs::resize_file(dir.path / "boot", 1);  // as good as another boot's
  for (int start = 0; start < 2; ++start) {
    const auto store = open_store(options_for(dir.path));
    CHECK_FALSE(store->find(InodeId(1), Version(1)));
    const auto whole = store->begin_fill(InodeId(1), Version(1), bytes.size(), bytes.size(), 0, "");
    REQUIRE((whole && !whole->created));
    CHECK(content_of(*whole->copy) == bytes);
    CHECK(store->find(InodeId(1), Version(1)));
    if (start == 0) continue;
    const auto lost = store->begin_fill(InodeId(2), Version(1), bytes.size(), bytes.size(), 0, "");
    REQUIRE((lost && lost->created));
    CHECK(store->stats().verify_failed == 1);
  }
}

TEST_CASE("CacheStore: refuses a second opener, foreign and newer directories", "[mountd][cache]") {
  TempDir dir;
  {
    const auto store = open_store(options_for(dir.path));
    const auto second = CacheStore::open(options_for(dir.path));
    REQUIRE_FALSE(second);
    CHECK(second.error() == std::errc::device_or_resource_busy);
  }
  CacheOptions foreign = options_for(dir.path);
  foreign.cluster.bytes[0] = 99;
  CHECK(CacheStore::open(foreign).error() == Errc::kWrongCluster);
  {
    std::fstream file(dir.path / "FORMAT", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(8);
    file.put(7);
  }
  CHECK(CacheStore::open(options_for(dir.path)).error() == Errc::kVersionMismatch);
  TempDir other;
  std::ofstream(other.path / "precious") << "x";
  CHECK(CacheStore::open(options_for(other.path)).error() == std::errc::directory_not_empty);
  CHECK_FALSE(fs::exists(other.path / "lock"));
}

TEST_CASE("CacheStore: a dropped copy serves those who hold it", "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  const Bytes bytes = random_bytes(1000, 1);
  CachePin copy = fill(*store, 1, 1, bytes);
  copy->close_writer();
  CHECK(store->drop(InodeId(1), Version(1)));
  CHECK_FALSE(store->find(InodeId(1), Version(1)));
  fill(*store, 1, 1, random_bytes(10, 2));
  CHECK(content_of(*copy) == bytes);
  const std::string path = copy->data_path();
  copy = {};
  CHECK_FALSE(fs::exists(path));
}

TEST_CASE("CacheStore: a copy in use is kept when another turns out to be its version",
          "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  const CachePin recovered = fill(*store, 1, 1, random_bytes(1000, 1));
  REQUIRE(recovered->mark_maybe_dirty(kTracked));
  REQUIRE(recovered->write_at(0, as_bytes("committed as version 2")));
  const auto scan = recovered->changed_blocks();
  REQUIRE(scan);
  CachePin open = fill(*store, 1, 2, random_bytes(1000, 1));
  REQUIRE(recovered->note_clean(Version(2), *scan, {}, CachedCopy::After::kClosed));
  REQUIRE(open->mark_maybe_dirty(kTracked));
  REQUIRE(open->write_at(0, as_bytes("later work")));
  REQUIRE(open->mark_conflict());
  CHECK(store->stats().conflict_files == 1);
  const std::string path = open->data_path();
  open = {};
  CHECK(fs::exists(path));
}

TEST_CASE("CacheStore: keeps few descriptors open", "[mountd][cache]") {
  TempDir dir;
  CacheOptions options = options_for(dir.path);
  options.open_files_max = 16;
  const auto store = open_store(options);
  const auto count_fds = [] {
    return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  };
  const auto before = count_fds();
  for (std::uint64_t inode = 1; inode <= 100; ++inode) fill(*store, inode, 1, random_bytes(10, 1));
  CHECK(count_fds() - before <= 20);
  for (std::uint64_t inode = 1; inode <= 100; ++inode) {
    const CachePin copy = store->find(InodeId(inode), Version(1));
    CHECK(content_of(*copy).size() == 10);
  }
  CHECK(count_fds() - before <= 20);
}

TEST_CASE("CacheStore: a full disk evicts, then says ENOSPC and keeps what is dirty",
          "[mountd][cache]") {
  TempDir dir;
  if (::geteuid() != 0 ||
      ::mount("tmpfs", dir.path.c_str(), "tmpfs", 0, "size=16m,mode=0700") != 0) {
    SKIP("needs a mount of its own");
  }
  struct Unmount {
    ~Unmount() { ::umount2(path.c_str(), MNT_DETACH); }
    fs::path path;
  } const unmount{dir.path};
  const auto store = open_store(options_for(dir.path));
  const auto dirty = store->create(InodeId(1), Version(1), kTracked, 0100644, "dirty");
  REQUIRE(dirty);
  const Bytes work = random_bytes(6 * kMiB, 1);
  REQUIRE((*dirty)->write_at(0, work));
  fill(*store, 2, 1, random_bytes(6 * kMiB, 2));
  fill(*store, 3, 1, random_bytes(6 * kMiB, 3));  // 18 MiB in all: the clean 2 goes
  CHECK(store->stats().files == 2);
  REQUIRE((*dirty)->write_at(6 * kMiB, work));  // and now 3
  CHECK(store->stats().files == 1);
  CHECK((*dirty)->write_at(12 * kMiB, work).error() == std::errc::no_space_on_device);
  const Bytes kept = content_of(**dirty);
  REQUIRE(kept.size() >= 12 * kMiB);
  CHECK(std::equal(work.begin(), work.end(), kept.begin()));
  CHECK(std::equal(work.begin(), work.end(), kept.begin() + 6 * kMiB));
  CHECK(store->reserve(0));
  // What was kept in reserve is for readers and for what is known of the copies.
  CHECK(content_of(*fill(*store, 4, 1, random_bytes(100'000, 4))) == random_bytes(100'000, 4));
  CHECK((*dirty)->write_at(12 * kMiB, work).error() == std::errc::no_space_on_device);
  const auto scan = (*dirty)->changed_blocks();
  REQUIRE(scan);
  CHECK((*dirty)->note_clean(Version(2), *scan, {}, kClosed));
  CHECK(store->begin_fill(InodeId(5), Version(1), 15 * kMiB, 15 * kMiB, 0, "").error() ==
        std::errc::no_space_on_device);
}

TEST_CASE("CacheStore: copies pinned to have them at hand are let go for room, the oldest first",
          "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path, 8 * kMiB + kMiB / 2));
  std::vector<CachePin> at_hand;
  for (std::uint64_t inode = 1; inode <= 4; ++inode) {
    at_hand.push_back(fill(*store, inode, 1, random_bytes(2 * kMiB, inode)));
  }
  std::swap(at_hand[0], at_hand[1]);  // 2 has not been used for the longest
  const auto let_go = [&](std::uint64_t bytes) {
    std::uint64_t released = 0;
    while (released < bytes && !at_hand.empty()) {
      released += at_hand.front()->size_bytes();
      store->touch(*at_hand.front());
      at_hand.erase(at_hand.begin());
    }
    return released != 0;
  };
  store->on_pressure(let_go);
  fill(*store, 5, 1, random_bytes(2 * kMiB, 5));
  CHECK_FALSE(store->find(InodeId(2), Version(1)));
  CHECK(at_hand.size() == 3);
  CHECK(store->find(InodeId(1), Version(1)));
  // One that is all hole gives nothing back: the next goes as well.
  auto hole = store->begin_fill(InodeId(7), Version(1), 6 * kMiB, 0, 0100644, "f");
  REQUIRE(hole);
  REQUIRE(hole->copy->fill_hole(0, 6 * kMiB));
  REQUIRE(hole->copy->finish_fill({}));
  at_hand.insert(at_hand.begin(), hole->copy);
  hole->copy = {};
  const CachePin pinned = store->find(InodeId(5), Version(1));
  REQUIRE(pinned);
  CachePin eighth = fill(*store, 8, 1, random_bytes(2 * kMiB, 8));
  CHECK(at_hand.size() == 2);
  store->on_pressure({});
  CHECK(store->begin_fill(InodeId(6), Version(1), 6 * kMiB, 6 * kMiB, 0, "").error() ==
        std::errc::no_space_on_device);
  at_hand.clear();
}

TEST_CASE("CachedCopy: a false alarm of a writer that is gone is settled by the digests",
          "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  const Bytes bytes = random_bytes(3 * kMiB, 1);
  const CachePin copy = fill(*store, 1, 1, bytes);
  REQUIRE(copy->mark_maybe_dirty(kUntracked));
  std::fstream file(copy->data_path(), std::ios::in | std::ios::out | std::ios::binary);
  SECTION("the same bytes again") {
    file.write(reinterpret_cast<const char*>(bytes.data()), 100);
    file.close();
    CHECK(copy->is_modified().value());
    CHECK(copy->settle_closed().value());
    CHECK_FALSE(copy->maybe_dirty());
    CHECK_FALSE(copy->is_modified().value());
  }
  SECTION("other bytes") {
    file.write("other", 5);
    file.close();
    CHECK_FALSE(copy->settle_closed().value());
    CHECK(copy->maybe_dirty());
    CHECK(copy->is_modified().value());
  }
}

TEST_CASE("CachedCopy: a false alarm beside a living writer is settled by the digests",
          "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path));
  const CachePin copy = fill(*store, 1, 1, random_bytes(3 * kMiB, 1));
  REQUIRE(copy->mark_maybe_dirty(kUntracked));
  const Fd writer(::open(copy->data_path().c_str(), O_RDWR | O_CLOEXEC));
  const timespec times[2] = {{1'000'000'000, 0}, {1'000'000'000, 0}};
  REQUIRE(::futimens(writer.get(), times) == 0);
  CHECK(copy->is_modified().value());
  CHECK_FALSE(copy->surely_modified().value());
  CHECK(copy->is_modified().value() == !store->ctime_reliable());
  CHECK(copy->base() == Version(1));
  CHECK(copy->maybe_dirty());  // the writer lives
  REQUIRE(::pwrite(writer.get(), "x", 1, 2 * kMiB) == 1);
  CHECK(copy->surely_modified().value());
  CHECK(copy->changed_blocks().value().changed == Blocks{2});
}

TEST_CASE("CacheStore: threads find, fill, write and evict together", "[mountd][cache]") {
  TempDir dir;
  const auto store = open_store(options_for(dir.path, kMiB));
  std::atomic<int> failures = 0;
  std::vector<std::thread> threads;
  for (std::uint64_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      SeededRandom random(thread);
      for (int round = 0; round < 1500; ++round) {
        const InodeId inode(1 + random.below(40));
        CachePin copy = store->find(inode, Version(1));
        if (!copy) {
          auto begun = store->begin_fill(inode, Version(1), 50'000, 50'000, 0, "");
          if (!begun) continue;  // all else is pinned
          copy = begun->copy;
          const Bytes bytes(50'000, static_cast<std::byte>(inode.value()));
          if (begun->created && !(copy->write_fill(0, bytes) && copy->finish_fill({}))) ++failures;
        }
        if (!copy->complete()) continue;
        std::array<std::byte, 64> out{};
        const auto size = copy->read_at(random.below(49'000), out);
        if (!size || out[5] != static_cast<std::byte>(inode.value())) ++failures;
        if (random.chance(1, 50)) store->drop(inode, Version(1));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failures == 0);
  CHECK(store->stats().bytes <= kMiB);
}

}  // namespace
}  // namespace fermata::mountd
