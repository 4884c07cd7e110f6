// Tables for people. Programs use --json.
#pragma once

#include <string>
#include <vector>

namespace fermata::ctl {

class Table {
 public:
  explicit Table(std::vector<std::string> head) : rows_{std::move(head)} {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  /// Columns padded to their widest cell, two spaces between.
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

/// "1.5 GiB"
std::string human_bytes(std::uint64_t bytes);

}  // namespace fermata::ctl
