#include "serverd/service/patch_folder.h"

#include <catch2/catch_test_macros.hpp>

#include "common/base/limits.h"

using namespace fermata;
using namespace fermata::serverd;

namespace {
constexpr std::uint64_t kMiB = kChunkSizeBytes;

StoredPatch patch(std::uint64_t index, std::uint64_t offset, std::string bytes) {
  StoredPatch stored;
  stored.index = stored.since = LogIndex(index);
  stored.patch = {offset, std::move(bytes)};
  return stored;
}
std::string text(const Buffer& buffer) { return std::string(as_text(buffer.view())); }
}  // namespace

TEST_CASE("fold_chunk: later patches lie over earlier ones, and zeros fill what lies between",
          "[serverd][service]") {
  const Buffer base = Buffer::copy_of(as_bytes("0123456789"));
  const PatchedChunk chunk{
      3, {patch(1, 3 * kMiB + 2, "aaaa"), patch(2, 3 * kMiB + 4, "bb"), patch(3, 3 * kMiB, "c")}};
  CHECK(text(fold_chunk(base, chunk)) == "c1aabb6789");
  const PatchedChunk beyond{3, {patch(1, 3 * kMiB + 12, "zz")}};
  CHECK(text(fold_chunk(base, beyond)) == std::string("0123456789\0\0zz", 14));
  CHECK(text(fold_chunk(Buffer(), beyond)) == std::string("\0\0\0\0\0\0\0\0\0\0\0\0zz", 14));
}

TEST_CASE("plan_fold: under pressure the chunks with the most patches, and no more than needed",
          "[serverd][service]") {
  std::vector<StoredPatch> patches;
  for (std::uint64_t i = 0; i < 600; ++i)
    patches.push_back(patch(i, (i % 3 == 0 ? 7 : 2) * kMiB, "x"));
  patches.push_back(patch(1000, 9 * kMiB, "y"));
  const auto all = plan_fold(patches, false);
  REQUIRE(all.size() == 3);
  CHECK(all[0].index == 2);
  CHECK(all[1].index == 7);
  CHECK(all[2].index == 9);
  CHECK(all[0].patches.size() == 400);
  CHECK(all[0].patches.front().index < all[0].patches.back().index);
  const auto few = plan_fold(patches, true);
  REQUIRE(few.size() == 1);  // 201 patches are left
  CHECK(few[0].index == 2);
  // Bytes count, too.
  patches.assign(1, patch(1, 0, std::string(kPatchBytesMax / 2, 'z')));
  CHECK(plan_fold(patches, true).size() == 1);
  patches.assign(1, patch(1, 0, "z"));
  CHECK(plan_fold(patches, true).empty());
}
