// Random operations on the data of files, checked against copies of them in memory.
#pragma once

#include <cstdint>
#include <string>

namespace fermata::test::data {

struct Options {
  std::string dir;
  std::string other;  ///< the same directory through another mount; or empty
  std::uint64_t seed = 1;
  std::uint64_t ops = 2000;
  int files = 8;
  int open_max = 3;  ///< at a time
  std::uint64_t size_max_bytes = 3 << 20;
};

/// What differed and the operations before it; empty if nothing did. Throws std::system_error when
/// a call fails that must not.
std::string check(const Options& options);

}  // namespace fermata::test::data
