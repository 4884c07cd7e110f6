// Tells when the last writer of a backing file is gone, also one that only has it mapped.
//
// With passthrough a process may close a file and go on storing through a mapping: the kernel says
// nothing, but the backing file's IN_CLOSE_WRITE comes at the last munmap (docs/FUSE.md rule 5).
//
// Thread-safety: add() and remove() from any thread; the callback runs on the executor.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <functional>
#include <memory>
#include <string>

#include "common/base/result.h"

namespace fermata::mountd {

class MappedWatch {
 public:
  explicit MappedWatch(boost::asio::any_io_executor executor);
  ~MappedWatch();
  MappedWatch(const MappedWatch&) = delete;
  MappedWatch& operator=(const MappedWatch&) = delete;

  /// `on_close` is called at each IN_CLOSE_WRITE of `path` until remove(). The key is for remove().
  Result<int> add(const std::string& path, std::function<void()> on_close);
  void remove(int watch);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace fermata::mountd
