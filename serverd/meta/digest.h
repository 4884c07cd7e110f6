// The digest of a whole state: equal on two nodes at the same index, or they have diverged.
#pragma once

#include <deque>
#include <map>

#include "common/base/mutex.h"
#include "serverd/meta/namespace.h"

namespace fermata::serverd {

/// XXH3 (128 bits) over every family's records in key order, sizes included; hexadecimal. Reads
/// everything.
Result<std::string> digest_of(const KvReader& reader);

/// Digests that were ordered, and those that were computed; the last few of each.
struct Namespace::Digests {
 public:
  static constexpr std::size_t kOrderedMax = 4;  // each holds a snapshot
  static constexpr std::size_t kKeptMax = 16;

  void order(LogIndex index, std::unique_ptr<KvReader> reader);
  std::shared_ptr<DigestWork> next(const std::shared_ptr<Digests>& self);
  void keep(LogIndex index, std::string digest);
  std::optional<std::string> find(LogIndex index) const;
  void clear();

 private:
  struct Ordered {
    LogIndex index;
    std::unique_ptr<KvReader> reader;
  };
  mutable Mutex mutex_;
  std::deque<Ordered> ordered_ FM_GUARDED_BY(mutex_);
  std::map<LogIndex, std::string> kept_ FM_GUARDED_BY(mutex_);
};

}  // namespace fermata::serverd
