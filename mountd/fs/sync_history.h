// Which files are worth their writes' passing through the daemon.
//
// A write that goes from the kernel straight to the cached copy costs next to nothing, but nobody
// knows where it went: the commit after it looks at the whole file. A write through the daemon
// costs ten times as much and the commit after it sends just that. So files whose writers commit
// again and again while they have them open (fsync, the release of a write lock) are opened through
// the daemon the next time, and are forgotten here when their writers do something else. So are
// very large files that are opened to be changed, unless that was found to be of no use.
//
// Of the latest files, and over restarts: a file says which (docs/format/cache.md). It is of use
// only, so what cannot be read of it is forgotten. Thread-safety: any thread.
#pragma once

#include <cstdint>
#include <list>
#include <string>
#include <unordered_map>

#include "common/base/ids.h"
#include "common/base/mutex.h"
#include "common/base/result.h"

namespace fermata::mountd {

class SyncHistory {
 public:
  /// So many commits of one opening make the next one go through the daemon.
  static constexpr std::uint64_t kSyncsMin = 4;
  /// More writes to each commit than this, and they do not any more.
  static constexpr std::uint64_t kWritesPerSyncMax = 256;
  static constexpr std::size_t kFilesMax = 4096;
  /// Looking at so much takes as long as some ten thousand writes that pass the daemon.
  static constexpr std::uint64_t kLargeBytes = 1ULL << 30;

  /// Blocking. Begins with what the file at `path` says, if there is one; save() writes it.
  void load(std::string path);
  /// Blocking.
  Status save();

  /// The last writer of a file has closed it. `syncs`: commits before any close; `writes`: as far
  /// as they passed the daemon, if they did (`tracked`). True if there is something to save.
  bool note_opening(InodeId inode, std::uint64_t syncs, std::uint64_t writes, bool tracked);
  /// `update_bytes`: the size of a file that is opened to be changed, otherwise 0. Of one that is
  /// very large and of which nothing is known each commit would cost a long look.
  bool wants_tracking(InodeId inode, std::uint64_t update_bytes = 0) const;

 private:
  /// The latest first, each once, so many at most.
  class Files {
   public:
    void add(InodeId inode);
    bool remove(InodeId inode);
    bool contains(InodeId inode) const { return places_.contains(inode); }
    const std::list<InodeId>& all() const { return files_; }

   private:
    std::list<InodeId> files_;
    std::unordered_map<InodeId, std::list<InodeId>::iterator> places_;
  };

  Mutex save_mutex_;  // before mutex_: one writer of the file at a time
  std::string path_;
  mutable Mutex mutex_;
  Files synced_ FM_GUARDED_BY(mutex_);
  Files bulk_ FM_GUARDED_BY(mutex_);  // written through the daemon to no use; not saved
};

}  // namespace fermata::mountd
