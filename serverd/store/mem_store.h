// A KvStore in memory, for simulations and tests: small states, no threads of its own.
//
// Each family is an ordered map, copied when it is written while a snapshot holds it. flush()
// writes all of it as one checksummed image through a Disk, whole or not at all; opening reads that
// image, so a crash goes back to the last flush, and a SimDisk can fail or tear what this relies
// on.
#pragma once

#include <map>

#include "common/base/mutex.h"
#include "common/env/disk.h"
#include "serverd/store/kv_store.h"

namespace fermata::serverd {

class MemStore final : public KvStore {
 public:
  using Map = std::map<std::string, std::string, std::less<>>;
  struct State {
    std::array<std::shared_ptr<const Map>, kFamilyCount> maps;
    ClusterId cluster;
  };

  /// Opens what was flushed to the directory `path`, or makes an empty store there. `disk` outlives
  /// this. Errors: kVersionMismatch, kWrongCluster, kCorruptStore; the disk's.
  static Result<std::unique_ptr<MemStore>> open(Disk& disk, const std::string& path,
                                                ClusterId cluster = {});

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

 private:
  MemStore(Disk& disk, std::string path) : disk_(disk), path_(std::move(path)) {}
  State state() const;

  Disk& disk_;
  const std::string path_;
  mutable Mutex mutex_;
  State state_ FM_GUARDED_BY(mutex_);
};

}  // namespace fermata::serverd
