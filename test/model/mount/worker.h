// The processes that run a program's calls on one directory, and what came of each call.
//
// Every process of the program is a process here, with its own descriptors, umask and user, its
// root directory changed to the directory under test: absolute symlinks and `..` stay inside. They
// run one call at a time, when told.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "test/model/mount/program.h"

namespace fermata::test::model {

/// What stat says about a thing that a call was about.
struct Seen {
  bool exists = false;
  std::uint64_t inode = 0;
  std::uint64_t rdev = 0;
  std::uint32_t mode = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t nlink = 0;
  std::int64_t size_bytes = 0;
  std::int64_t atime_ns = 0;
  std::int64_t mtime_ns = 0;
  std::int64_t ctime_ns = 0;
};

enum Thing : std::size_t { kPath, kPathFollowed, kParent, kPath2, kParent2, kDescriptor, kThings };

struct Outcome {
  std::int64_t result = 0;
  int error = 0;
  std::uint64_t digest = 0;  ///< of bytes that came back
  Seen seen[kThings];
  char detail[512] = {};  ///< for people and for comparing: names, link targets, lock owners
};

class Workers {
 public:
  /// Process i works below roots[i % roots.size()]. They know `program` from the start.
  Workers(const std::vector<std::string>& roots, const Shape& shape,
          const std::vector<Op>& program);
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  /// Runs program[index] in its process. A process that died answers result -1, error -1.
  Outcome run(std::size_t index);
  /// Everything below the root of `process`, one line each, sorted: name, type, mode, owner,
  /// link count, size, link target, digests of content and of xattrs.
  std::string tree(int process);
  /// Closes every descriptor of every process.
  void close_all();

 private:
  struct Process {
    pid_t pid = -1;
    int channel = -1;
  };
  Outcome ask(int process, std::size_t what);

  const std::vector<Op>& program_;  // outlives this
  std::vector<Process> processes_;
};

}  // namespace fermata::test::model
