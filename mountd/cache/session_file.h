// Which session the mountd of a cache has, so that the next one with the same cache can end it.
//
// One that was killed leaves its session behind for as long as its lease runs, and others wait for
// what it holds; so does the next mount in its place. Whoever has the cache's lock knows that the
// former one is gone: if it ran since the machine was started, and here, not where this directory
// was copied from.
//
// Of use only: what cannot be read is no session. Format: docs/format/cache.md. Thread-safety:
// none.
#pragma once

#include <optional>
#include <string>

#include "common/base/ids.h"
#include "common/base/result.h"

namespace fermata::mountd {

class SessionFile {
 public:
  struct Mark {
    SessionId session;
    Epoch epoch;
    bool operator==(const Mark&) const = default;
  };
  /// `directory`: the cache's, locked by the caller.
  explicit SessionFile(std::string directory) : directory_(std::move(directory)) {}
  /// Blocking. Of a mountd that is gone.
  std::optional<Mark> former() const;
  /// Blocking. The caller's own.
  Status save(const Mark& mark) const;

 private:
  std::string path() const { return directory_ + "/session"; }
  const std::string directory_;
};

}  // namespace fermata::mountd
