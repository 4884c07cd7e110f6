// An ordered key-value store in families: what the namespace is kept in, whatever keeps the bytes.
//
// Atomic batches go in, and a consistent cut of them is durable after flush(). There is no log of
// its own: the replicated log is the write-ahead log, and the applied index is a record in the same
// batch as its effects, so after a crash the store stands at some earlier index, whole. RocksStore
// (rocks_store.h) is the real one, MemStore (mem_store.h) the simulator's.
//
// Thread-safety: one writer at a time; reads, snapshot(), flush() and checkpoint() from any thread
// beside it. install() beside reads only. Everything may block on the disk. A snapshot or an
// iterator stays good after install() and after the store is destroyed (a read of it may then fail
// with EIO).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/ids.h"
#include "common/base/result.h"

namespace fermata::serverd {

/// What a record is of; docs/format/meta.md has keys and values. Numbers are on disk: never reuse
/// one.
enum class Family : std::uint8_t {
  kCounters = 1,       ///< the state record: applied index, next inode, counts
  kInodes = 2,         ///< inode -> attributes
  kDentries = 3,       ///< parent, name -> inode, type, cookie
  kCookies = 4,        ///< parent, cookie -> inode, type, name
  kXattrs = 5,         ///< inode, name -> value
  kInline = 6,         ///< inode -> content of at most 64 KiB
  kChunks = 7,         ///< inode, chunk index -> chunk id
  kPatches = 8,        ///< inode, log index, number -> offset, bytes
  kSessions = 9,       ///< session -> epoch, client, host
  kClients = 10,       ///< client id -> its live session
  kHosts = 11,         ///< session, ended ones too -> host, for the conflict list
  kRequests = 12,      ///< session, sequence -> result
  kOrphans = 13,       ///< inode without a name, session that has it open
  kChunkRefs = 14,     ///< chunk id -> records that name it, in kChunks and kHistory
  kGarbage = 15,       ///< chunk id that nothing refers to since
  kHistory = 16,       ///< family, key, index -> the value that was in force until index
  kHistoryIndex = 17,  ///< index, family, key: the same, for pruning
  kConflicts = 18,     ///< inode, index -> who replaced whose version
  kLocks = 19,         ///< inode, space -> the locks held
};
inline constexpr int kFamilyCount = 19;
inline constexpr std::array<Family, kFamilyCount> kFamilies = [] {
  std::array<Family, kFamilyCount> all{};
  for (int i = 0; i < kFamilyCount; ++i)
    all[static_cast<std::size_t>(i)] = static_cast<Family>(i + 1);
  return all;
}();
const char* to_string(Family family);

/// Walks keys upwards. key() and value() are good until next() or the iterator's end.
class KvIterator {
 public:
  virtual ~KvIterator() = default;
  virtual bool valid() const = 0;
  virtual void next() = 0;  ///< only when valid
  virtual std::string_view key() const = 0;
  virtual std::string_view value() const = 0;
  /// Ask when valid() turned false: the end, or an error (kCorruptStore, EIO).
  virtual Status status() const = 0;
};

class KvReader {
 public:
  virtual ~KvReader() = default;
  /// Errors: kCorruptStore; EIO.
  virtual Result<std::optional<std::string>> get(Family family, std::string_view key) const = 0;
  /// Over [lower, upper) in byte order; an empty `upper` is the end. Of the reader's state at this
  /// call.
  virtual std::unique_ptr<KvIterator> iterate(Family family, std::string_view lower,
                                              std::string_view upper) const = 0;
};

/// Writes that happen together; a later one of the same key wins.
class KvBatch {
 public:
  struct Write {
    Family family;
    std::string key;
    std::optional<std::string> value;  ///< none: erase
  };
  void put(Family family, std::string key, std::string value) {
    writes_.push_back({family, std::move(key), std::move(value)});
  }
  void erase(Family family, std::string key) {
    writes_.push_back({family, std::move(key), std::nullopt});
  }
  const std::vector<Write>& writes() const { return writes_; }
  bool empty() const { return writes_.empty(); }

 private:
  std::vector<Write> writes_;
};

class KvStore : public KvReader {
 public:
  /// Atomic, seen at once by readers, durable with the next flush() or earlier. ENOSPC has had no
  /// effect, and comes until a flush() has succeeded. Another error leaves the store unusable: stop
  /// the node.
  virtual Status write(const KvBatch& batch) = 0;
  /// The state as it is now, unmoved by later writes. Hold it shortly: it keeps old data on disk.
  virtual std::unique_ptr<KvReader> snapshot() const = 0;
  /// On return what was written before the call survives a power cut. ENOSPC loses nothing: try
  /// again once there is room. Another error stops the node.
  virtual Status flush() = 0;
  /// Writes a consistent copy of the state into the new directory `path` (files only, synced) and
  /// returns a reader of that copy: the cut is somewhere between call and return.
  virtual Result<std::unique_ptr<KvReader>> checkpoint(const std::string& path) = 0;
  /// Replaces the state by the checkpoint in `path`, moved from there (the same file system);
  /// durable and atomic: a crash leaves the old or the new state. kCorruptStore, kVersionMismatch
  /// and kWrongCluster are found out before anything is changed.
  virtual Status install(const std::string& path) = 0;
  /// The cluster that the files belong to; none until bound.
  virtual ClusterId cluster() const = 0;
  /// Writes the cluster's id into the store's FORMAT file; kWrongCluster if it has another.
  /// Durable.
  virtual Status bind_cluster(ClusterId cluster) = 0;
  virtual std::uint64_t approximate_bytes(Family family) const = 0;
};

/// The smallest key above all that begin with `prefix`; empty if there is none.
std::string prefix_end(std::string_view prefix);

}  // namespace fermata::serverd
