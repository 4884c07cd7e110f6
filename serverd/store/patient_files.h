// RocksDB's files on a disk that may be full.
//
// RocksDB takes ENOSPC for a failure of the database: it refuses everything until it is resumed,
// and in 7.8 that can leave flushes waiting for each other for ever (its pull request 11872), or
// lose a request for one. So it is not told: a flush waits until there is room for all of it, and
// where it stands if that was not enough; a compaction is put off (RocksDB tries it again a second
// later), and what it had written is removed. What is in memory stays there, and can be read.
//
// Thread-safety: any thread.
#pragma once

#include <rocksdb/file_system.h>
#include <rocksdb/listener.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "common/base/mutex.h"

namespace fermata::serverd {

class PatientFiles final : public rocksdb::FileSystemWrapper {
 public:
  /// For the one database in `directory`.
  explicit PatientFiles(std::string directory);
  const char* Name() const override { return "FermataPatientFiles"; }

  /// Tells it which thread does what, and hears of errors: to be among the database's listeners.
  std::shared_ptr<rocksdb::EventListener> listener() const;

  /// A flush waits for room now.
  bool flush_waits() const;
  /// How often a flush looked for room and found none. It looks again every few milliseconds.
  std::uint64_t refusals() const;
  /// The last compaction that ended found no room.
  bool compaction_put_off() const;
  /// The first error that stopped the database. A full disk is none, unless its file system cannot
  /// set room aside (fallocate(2)) and somebody else took it meanwhile.
  rocksdb::Status error() const;
  void forget_error();
  /// Whoever waits gets ENOSPC: the database is about to be closed.
  void close();

  rocksdb::IOStatus NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* result,
                                    rocksdb::IODebugContext* debug) override;

  struct State;

 private:
  std::shared_ptr<State> state_;
};

}  // namespace fermata::serverd
