#include "mountd/fs/write_back.h"

#include <catch2/catch_test_macros.hpp>

#include "common/base/checksum.h"
#include "mountd/fs/fetch.h"
#include "mountd/fs/options.h"

namespace fermata::mountd {
namespace {

constexpr std::uint64_t kMiB = kBlockSizeBytes;
using Kind = CommitPlan::Kind;
using Source = CommitPlan::Block::Source;

ChunkId chunk(std::uint8_t n) {
  ChunkId id;
  id.algorithm = ChunkId::kSha256;
  id.digest[0] = n;
  return id;
}

ChangeScan scan(std::uint64_t size, std::vector<std::uint64_t> changed,
                std::vector<std::uint64_t> digests) {
  ChangeScan out;
  out.size_bytes = size;
  out.changed = std::move(changed);
  out.digests = std::move(digests);
  return out;
}

}  // namespace

TEST_CASE("plan_commit: unchanged content is not sent", "[mountd][fs]") {
  CHECK(plan_commit(scan(3 * kMiB, {}, {1, 2, 3}), {}, false).kind == Kind::kNothing);
}

TEST_CASE("plan_commit: small content travels whole inside the commit", "[mountd][fs]") {
  auto small = scan(kInlineBytesMax, {0}, {1});
  CHECK(plan_commit(small, {}, false).kind == Kind::kInline);
  CHECK(plan_commit(small, {}, false).whole);
  small.size_bytes += 1;
  CHECK(plan_commit(small, {}, false).kind == Kind::kChunks);
}

TEST_CASE("plan_commit: a delta names changed blocks only, holes without a chunk", "[mountd][fs]") {
  const auto plan = plan_commit(scan(4 * kMiB, {1, 3}, {1, 2, 3, kHoleDigest}),
                                {chunk(1), chunk(2), chunk(3), chunk(4)}, false);
  REQUIRE(plan.blocks.size() == 2);
  CHECK_FALSE(plan.whole);
  CHECK(plan.blocks[0].index == 1);
  CHECK(plan.blocks[0].source == Source::kRead);
  CHECK(plan.blocks[1].index == 3);
  CHECK(plan.blocks[1].source == Source::kHole);
}

TEST_CASE("plan_commit: without known chunks all of the content is named", "[mountd][fs]") {
  const auto plan = plan_commit(scan(3 * kMiB, {2}, {1, kHoleDigest, 3}), {}, false);
  CHECK(plan.whole);
  REQUIRE(plan.blocks.size() == 2);  // the hole is left out
  CHECK(plan.blocks[0].source == Source::kRead);
  CHECK(plan.blocks[1].index == 2);
}

TEST_CASE("plan_commit: over a newer version all is sent, known chunks by name", "[mountd][fs]") {
  const auto plan = plan_commit(scan(2 * kMiB, {1}, {1, 9}), {chunk(1), chunk(2)}, true);
  CHECK(plan.whole);
  REQUIRE(plan.blocks.size() == 2);
  CHECK(plan.blocks[0].source == Source::kKnown);
  CHECK(plan.blocks[0].known == chunk(1));
  CHECK(plan.blocks[1].source == Source::kRead);
}

TEST_CASE("plan_commit: a file cut by its last block changes by its size", "[mountd][fs]") {
  auto cut = scan(2 * kMiB, {}, {1, 2});
  cut.size_changed = true;
  const auto plan = plan_commit(cut, {chunk(1), chunk(2), chunk(3)}, false);
  CHECK(plan.kind == Kind::kChunks);
  CHECK_FALSE(plan.whole);
  CHECK(plan.blocks.empty());
}

TEST_CASE("apply_patches: later ones lie over earlier ones, cut at the block", "[mountd][fs]") {
  Bytes block(8, std::byte{'.'});
  std::vector<std::pair<Patch, Buffer>> patches;
  patches.emplace_back(Patch{100, 4}, Buffer::copy_of(as_bytes("aaaa")));
  patches.emplace_back(Patch{102, 3}, Buffer::copy_of(as_bytes("bbb")));
  patches.emplace_back(Patch{96, 3}, Buffer::copy_of(as_bytes("xyz")));
  patches.emplace_back(Patch{105, 9}, Buffer::copy_of(as_bytes("ccccccccc")));
  apply_patches(block, 98, patches);
  CHECK(as_text(block) == "z.aabbbc");
}

TEST_CASE("Mount options: known ones are taken, unknown ones refused", "[mountd][fs]") {
  MountdOptions options;
  CHECK(apply_mount_options(options, "ro,noatime,nopassthrough,attr_timeout=1.5,cache-size=2G")
            .empty());
  CHECK(options.read_only);
  CHECK_FALSE(options.passthrough);
  CHECK(options.attr_timeout == std::chrono::milliseconds(1500));
  CHECK(options.cache_size_bytes == 2ULL << 30);
  CHECK(apply_mount_options(options, "r0") == "unknown mount option \"r0\"");
  CHECK_FALSE(apply_mount_options(options, "attr_timeout=soon").empty());
  CHECK_FALSE(apply_mount_options(options, "ro=1").empty());
  CHECK(options.io_uring == IoUring::kAuto);
  CHECK(apply_mount_options(options, "io_uring=on").empty());
  CHECK(options.io_uring == IoUring::kOn);
  CHECK_FALSE(apply_mount_options(options, "io_uring").empty());
  CHECK_FALSE(apply_mount_options(options, "io_uring=yes").empty());
  CHECK_FALSE(parse_size("12Q"));
  CHECK_FALSE(parse_size("99999999999T"));
  CHECK(parse_size("512MiB").value() == 512ULL << 20);
}

}  // namespace fermata::mountd
