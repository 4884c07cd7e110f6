// A log in memory whose entries carry a hash of everything up to them, so that two logs are equal
// up to an index if and only if the hashes there are.
#pragma once

#include <vector>

#include "serverd/raft/raft_core.h"

namespace fermata::test {

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  std::uint64_t x = a ^ (b + 0x9e3779b97f4a7c15ULL + (a << 6) + (a >> 2));
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

inline std::uint64_t chain_after(std::uint64_t before, const LogEntry& entry) {
  std::uint64_t hash = mix(before, entry.term.value());
  hash = mix(hash, static_cast<std::uint64_t>(entry.kind));
  return mix(hash, std::hash<std::string>()(*entry.data));
}

class SimLog final : public serverd::LogView {
 public:
  LogIndex first_index() const override { return base_.next(); }
  LogIndex last_index() const override { return LogIndex(base_.value() + records_.size()); }
  std::optional<Term> term_at(LogIndex index) const override {
    if (index == base_) return base_term_;
    if (index < base_ || index > last_index()) return std::nullopt;
    return at(index).entry.term;
  }
  Result<std::vector<LogEntry>> read(LogIndex first, LogIndex last,
                                     std::size_t bytes_max) const override {
    if (first <= base_ || last > last_index()) return Errc::kTruncatedHistory;
    std::vector<LogEntry> entries;
    std::size_t bytes = 0;
    for (LogIndex i = first; i <= last && (entries.empty() || bytes < bytes_max); i = i.next()) {
      entries.push_back(at(i).entry);
      bytes += entries.back().data->size();
    }
    return entries;
  }

  /// Of everything up to `index`; nullopt if that is not known here.
  std::optional<std::uint64_t> chain_at(LogIndex index) const {
    if (index == base_) return base_chain_;
    if (index < base_ || index > last_index()) return std::nullopt;
    return at(index).chain;
  }
  const LogEntry& entry(LogIndex index) const { return at(index).entry; }

  /// Truncates at the entry's index if need be. False: it leaves a gap or cuts the snapshot.
  bool append(const LogEntry& entry) {
    if (entry.index <= base_ || entry.index > last_index().next()) return false;
    records_.resize(entry.index.value() - base_.value() - 1);
    const std::uint64_t before = records_.empty() ? base_chain_ : records_.back().chain;
    records_.push_back({entry, chain_after(before, entry)});
    return true;
  }
  void compact_to(LogIndex index) {
    if (index <= base_ || index > last_index()) return;
    base_term_ = *term_at(index);
    base_chain_ = *chain_at(index);
    const auto count = static_cast<std::ptrdiff_t>(index.value() - base_.value());
    records_.erase(records_.begin(), records_.begin() + count);
    base_ = index;
  }
  void reset(LogIndex index, Term term, std::uint64_t chain) {
    base_ = index;
    base_term_ = term;
    base_chain_ = chain;
    records_.clear();
  }

 private:
  struct Record {
    LogEntry entry;
    std::uint64_t chain;
  };
  const Record& at(LogIndex index) const { return records_[index.value() - base_.value() - 1]; }

  LogIndex base_;
  Term base_term_;
  std::uint64_t base_chain_ = 0;
  std::vector<Record> records_;
};

}  // namespace fermata::test
