// A KvStore in RocksDB: the only code that sees it.
//
// The write-ahead log is off (the replicated log is one); memtables of all families are flushed
// together (atomic_flush), so what is on disk is always a cut between two batches. Block checksums
// are checked on every read. Memory is bounded: one block cache, and one budget for all memtables
// charged to it.
//
// On disk: `ACTIVE` names the database directory in use (db-1, db-2, ...: install() brings a new
// one), and FORMAT in each says what wrote it. docs/format/meta.md.
#pragma once

#include <atomic>

#include "common/base/mutex.h"
#include "serverd/store/kv_store.h"

namespace fermata::serverd {

struct RocksOptions {
  ClusterId cluster;                    ///< none: any, and not bound when new
  std::size_t cache_bytes = 96u << 20;  ///< blocks, indexes, filters and memtables
  /// Of all families, within cache_bytes. A flush, and the compaction after it, need room for it.
  std::size_t memtable_bytes = 64u << 20;
  int background_jobs = 2;
  /// Of one table file. A compaction needs room for some of them beside what it replaces, also on a
  /// disk that is full to the reserve.
  std::size_t table_bytes = 16u << 20;
};

class RocksStore final : public KvStore {
 public:
  /// Opens or creates the store in the directory `path`. Errors: kVersionMismatch (files of another
  /// program or of a newer format), kWrongCluster, kCorruptStore; the file system's. None of them
  /// changes anything.
  static Result<std::unique_ptr<RocksStore>> open(const std::string& path,
                                                  RocksOptions options = {});
  ~RocksStore() override;  ///< without a flush: flush() first for a quick restart

  Result<std::optional<std::string>> get(Family family, std::string_view key) const override;
  std::unique_ptr<KvIterator> iterate(Family family, std::string_view lower,
                                      std::string_view upper) const override;
  Status write(const KvBatch& batch) override;
  std::unique_ptr<KvReader> snapshot() const override;
  Status flush() override;
  Result<std::unique_ptr<KvReader>> checkpoint(const std::string& path) override;
  Status install(const std::string& path) override;
  ClusterId cluster() const override;
  Status bind_cluster(ClusterId cluster) override;
  std::uint64_t approximate_bytes(Family family) const override;

  struct Database;  // one open database; shared with snapshots and iterators

 private:
  void set_cluster(ClusterId cluster);
  RocksStore(std::string path, RocksOptions options);
  std::shared_ptr<Database> database() const { return database_.load(); }

  const std::string path_;
  const RocksOptions options_;
  std::atomic<std::shared_ptr<Database>> database_;
  std::uint64_t number_ = 0;  // of the active directory
  mutable Mutex mutex_;
  ClusterId cluster_ FM_GUARDED_BY(mutex_);
};

}  // namespace fermata::serverd
