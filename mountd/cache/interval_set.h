// A set of byte positions, kept as disjoint, non-adjacent intervals [begin, end).
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <vector>

namespace fermata::mountd {

struct ByteRange {
  std::uint64_t begin_bytes = 0;
  std::uint64_t end_bytes = 0;
  bool operator==(const ByteRange&) const = default;
};

/// Not thread-safe. Operations cost O(log n) and what they merge.
class IntervalSet {
 public:
  void add(std::uint64_t begin, std::uint64_t end) {
    if (begin >= end) return;
    auto next = intervals_.upper_bound(begin);
    if (next != intervals_.begin() && std::prev(next)->second >= begin) {
      --next;
      begin = next->first;
    }
    while (next != intervals_.end() && next->first <= end) {
      end = std::max(end, next->second);
      next = intervals_.erase(next);
    }
    intervals_.emplace_hint(next, begin, end);
  }
  void remove(std::uint64_t begin, std::uint64_t end) {
    if (begin >= end) return;
    auto next = intervals_.upper_bound(begin);
    if (next != intervals_.begin()) --next;
    while (next != intervals_.end() && next->first < end) {
      const auto [from, to] = *next;
      if (to <= begin) {
        ++next;
        continue;
      }
      next = intervals_.erase(next);
      if (from < begin) intervals_.emplace(from, begin);
      if (to > end) next = intervals_.emplace(end, to).first;
    }
  }
  void add_all(const IntervalSet& other) {
    for (const auto& [begin, end] : other.intervals_) add(begin, end);
  }
  bool contains(std::uint64_t begin, std::uint64_t end) const {
    if (begin >= end) return true;
    const auto next = intervals_.upper_bound(begin);
    return next != intervals_.begin() && std::prev(next)->second >= end;
  }
  bool intersects(std::uint64_t begin, std::uint64_t end) const {
    if (begin >= end) return false;
    const auto next = intervals_.lower_bound(end);
    return next != intervals_.begin() && std::prev(next)->second > begin;
  }
  /// What of [begin, end) is not in the set, in order.
  std::vector<ByteRange> gaps(std::uint64_t begin, std::uint64_t end) const {
    std::vector<ByteRange> out;
    auto next = intervals_.upper_bound(begin);
    if (next != intervals_.begin()) --next;
    for (; begin < end && next != intervals_.end() && next->first < end; ++next) {
      if (next->second <= begin) continue;
      if (next->first > begin) out.push_back({begin, next->first});
      begin = next->second;
    }
    if (begin < end) out.push_back({begin, end});
    return out;
  }
  std::vector<ByteRange> ranges() const {
    std::vector<ByteRange> out;
    for (const auto& [begin, end] : intervals_) out.push_back({begin, end});
    return out;
  }
  bool empty() const { return intervals_.empty(); }
  void clear() { intervals_.clear(); }

 private:
  std::map<std::uint64_t, std::uint64_t> intervals_;  // begin -> end
};

}  // namespace fermata::mountd
