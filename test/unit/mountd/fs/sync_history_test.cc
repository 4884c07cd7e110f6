#include "mountd/fs/sync_history.h"

#include <stdlib.h>

#include <catch2/catch_test_macros.hpp>
#include <filesystem>

namespace fermata::mountd {
namespace {
constexpr InodeId kFile{7};
}

TEST_CASE("SyncHistory: files that are committed again and again while open", "[mountd][fs]") {
  SyncHistory history;
  CHECK_FALSE(history.wants_tracking(kFile));
  history.note_opening(kFile, SyncHistory::kSyncsMin - 1, 0, false);
  CHECK_FALSE(history.wants_tracking(kFile));
  history.note_opening(kFile, SyncHistory::kSyncsMin, 0, false);
  CHECK(history.wants_tracking(kFile));
  CHECK_FALSE(history.wants_tracking(InodeId(8)));
  // A look without a write says nothing.
  history.note_opening(kFile, 0, 0, true);
  history.note_opening(kFile, 0, 3, true);
  CHECK(history.wants_tracking(kFile));
  // A bulk load.
  history.note_opening(kFile, 1, 2 * SyncHistory::kWritesPerSyncMax + 1, true);
  CHECK_FALSE(history.wants_tracking(kFile));
}

TEST_CASE("SyncHistory: a very large file that is to be changed, until that was a bulk load",
          "[mountd][fs]") {
  SyncHistory history;
  CHECK(history.wants_tracking(kFile, SyncHistory::kLargeBytes));
  CHECK_FALSE(history.wants_tracking(kFile, SyncHistory::kLargeBytes - 1));
  history.note_opening(kFile, 0, SyncHistory::kWritesPerSyncMax + 1, true);
  CHECK_FALSE(history.wants_tracking(kFile, SyncHistory::kLargeBytes));
  history.note_opening(kFile, SyncHistory::kSyncsMin, 0, false);
  CHECK(history.wants_tracking(kFile, SyncHistory::kLargeBytes));
}

TEST_CASE("SyncHistory: keeps the latest files", "[mountd][fs]") {
  SyncHistory history;
  const auto synced = [&](std::uint64_t inode) {
    history.note_opening(InodeId(inode), 9, 9, true);
  };
  for (std::uint64_t i = 1; i <= SyncHistory::kFilesMax; ++i) synced(i);
  synced(1);
  synced(SyncHistory::kFilesMax + 1);
  CHECK(history.wants_tracking(InodeId(1)));
  CHECK_FALSE(history.wants_tracking(InodeId(2)));
  CHECK(history.wants_tracking(InodeId(3)));
}

TEST_CASE("SyncHistory: over a restart", "[mountd][fs]") {
  std::string dir = (std::filesystem::temp_directory_path() / "fermata_fs_XXXXXX").string();
  REQUIRE(::mkdtemp(dir.data()) != nullptr);
  const std::string path = dir + "/synced";
  SyncHistory history;
  history.load(path);  // there is none yet
  for (std::uint64_t i = 1; i <= SyncHistory::kFilesMax; ++i) {
    CHECK(history.note_opening(InodeId(i), 9, 9, true));
  }
  CHECK_FALSE(history.note_opening(InodeId(1), 9, 9, true));
  REQUIRE(history.save());
  {
    SyncHistory next;
    next.load(path);
    CHECK(next.wants_tracking(InodeId(1)));
    CHECK(next.wants_tracking(InodeId(SyncHistory::kFilesMax)));
    // In the same order.
    CHECK(next.note_opening(InodeId(SyncHistory::kFilesMax + 1), 9, 9, true));
    CHECK(next.wants_tracking(InodeId(1)));
    CHECK_FALSE(next.wants_tracking(InodeId(2)));
  }
  std::filesystem::resize_file(path, 1000);
  SyncHistory damaged;
  damaged.load(path);
  CHECK_FALSE(damaged.wants_tracking(InodeId(1)));
  std::filesystem::remove_all(dir);
}

}  // namespace fermata::mountd
