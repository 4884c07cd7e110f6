// data_check: random reads, writes, maps, cuts, holes and copies of files in a directory, against
// copies in memory.
//
// `data_check --dir D` for any directory; with `--other E`, a second mount of the same tree, each
// file is also read there whenever it is closed here. Exit status: 0 no difference, 1 a difference,
// with what was done to the file before it, 2 a wrong command line.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>

#include "test/model/data/data_check.h"

int main(int argc, char** argv) {
  using fermata::test::data::Options;
  Options options;
  CLI::App app("Random operations on files, compared with copies in memory");
  app.add_option("--dir", options.dir, "where the files are made")->required();
  app.add_option("--other", options.other, "the same directory through another mount");
  app.add_option("--seed", options.seed, "of the random numbers");
  app.add_option("--ops", options.ops, "operations");
  app.add_option("--files", options.files, "files")->check(CLI::Range(1, 1000));
  app.add_option("--open-max", options.open_max, "files open at a time")
      ->check(CLI::Range(2, 1000));
  app.add_option("--size-max", options.size_max_bytes, "bytes of the largest file")
      ->check(CLI::Range(std::uint64_t{1}, std::uint64_t{1} << 40));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    const std::string difference = fermata::test::data::check(options);
    if (difference.empty()) return 0;
    std::printf("seed %llu: %s", static_cast<unsigned long long>(options.seed), difference.c_str());
  } catch (const std::exception& error) {
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(options.seed), error.what());
  }
  return 1;
}
