// A disk in memory that keeps its promises and no more: a power cut takes what was not synced.
//
// Model. A write, truncate, creation, rename or removal is seen at once by every later call, but is
// only pending on the medium. File::sync makes a file's pending writes durable, not its name;
// sync_dir makes a directory's entries durable, not the contents of the files. At a power cut each
// file keeps none, all, a prefix or any subset of its pending writes, torn at sectors or at bytes,
// with zeros where a size was kept and data was not; each directory keeps a prefix of its pending
// changes. That is weaker than ext4 and XFS in places, as POSIX allows (Pillai et al., OSDI 2014).
//
// A failed sync loses what it should have written and leaves it readable, as Linux's file systems
// do (Rebello et al., USENIX ATC 2020), so code that tries again after an error is found out.
//
// Thread-safety: as Disk. Deterministic: the same calls with the same seed give the same bytes.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/env/disk.h"
#include "common/env/random.h"

namespace fermata {

class SimDisk final : public Disk {
 public:
  enum class Fault {
    kPowerCutBefore,  ///< the operation has no effect; from here every call fails with EIO
    kPowerCutAfter,   ///< it has its (unsynced) effect, then the same
    kEio,             ///< it fails; a write may leave a part, a sync loses what was pending
    kEnospc,          ///< it fails with nothing done (a sync as kEio: delayed allocation)
    kShortWrite,      ///< a write leaves half of its bytes and fails with ENOSPC; others as kEnospc
  };

  explicit SimDisk(std::uint64_t seed);
  ~SimDisk() override;

  Result<std::unique_ptr<File>> open(const std::string& path, Mode mode) override;
  Status rename(const std::string& from, const std::string& to) override;
  Status remove(const std::string& path) override;
  Status remove_all(const std::string& path) override;
  Status make_dirs(const std::string& path) override;
  Result<std::vector<std::string>> list(const std::string& path) override;
  Result<bool> exists(const std::string& path) override;
  Status sync_dir(const std::string& path) override;
  Result<DiskSpace> space(const std::string& path) override;

  /// Operations that changed something or should have (writes, truncations, syncs, creations,
  /// renames, removals), counted from 0; reads are free.
  std::uint64_t operations() const;
  /// Operation number `operation` meets `fault`. Only one is armed at a time.
  void fail_at(std::uint64_t operation, Fault fault);
  /// A fault cut the power; call power_cut() to start again.
  bool is_off() const;
  /// Called, once and without locks, when a fault cuts the power: the place to crash the node.
  void on_power_off(std::function<void()> callback);

  /// Cuts the power and starts again: what was pending is lost or kept by chance from `random`.
  /// Open files are dead (EIO for ever); the armed fault is disarmed.
  void power_cut(Random& random);
  /// What a process leaves behind when it alone dies: pending changes stay (the kernel has them),
  /// its open files are dead.
  void close_all();

  /// Flips the bits of `mask` in one byte, on the medium and in the cache. False: no such byte.
  bool corrupt(const std::string& path, std::uint64_t offset_bytes, std::uint8_t mask);
  /// Total size of the files; beyond it writes fail with ENOSPC. Unlimited at first.
  void set_capacity(std::uint64_t bytes);
  /// Syncs asked for so far: what group commit saves.
  std::uint64_t syncs() const;
  /// Files of which power cuts so far left something between what was durable and what was written.
  std::uint64_t torn_files() const;
  /// From here on syncs succeed and do nothing: a drive that lies. Only to see that tests notice.
  void ignore_syncs(bool ignore);

 private:
  struct Impl;
  class SimFile;
  std::shared_ptr<Impl> impl_;  // shared with open files
};

}  // namespace fermata
