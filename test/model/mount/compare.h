// Runs a program on the directory under test and on a local one, side by side, and says where they
// first differ.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "test/model/mount/program.h"

namespace fermata::test::model {

struct Place {
  std::vector<std::string> mounts;  ///< directories under test, the same filesystem each
  std::string local;                ///< on the oracle: ext4
};

struct Difference {
  std::size_t step = 0;  ///< index of the operation; the program's size: only the last tree differs
  std::string what;      ///< for people, with the operation
  std::string kind;      ///< the same for differences of one sort, whatever the bytes and times are
};

/// Below new directories of `place`, which are removed again. Empty: no difference.
std::optional<Difference> compare(const Place& place, const std::vector<Op>& program,
                                  const Shape& shape);

/// The smallest part of `program` found in `runs_max` tries that still differs.
std::vector<Op> minimise(const Place& place, std::vector<Op> program, const Shape& shape,
                         int runs_max);

}  // namespace fermata::test::model
