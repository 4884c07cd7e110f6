// The log as the core sees it: what is durable is in the view, the rest in `tail`.
#include "serverd/raft/raft_core_impl.h"

namespace fermata::serverd {
std::optional<Term> RaftCore::Impl::term_at(LogIndex index) const {
  if (!index) return Term();
  if (index > last) return std::nullopt;
  if (index > durable) return tail[index.value() - durable.value() - 1].term;
  return view.term_at(index);
}

/// Entries from `from` (at most last) on, cut after `bytes_max` of data but at least one.
Result<std::vector<LogEntry>> RaftCore::Impl::read(LogIndex from, std::size_t bytes_max) const {
  RAFT_ASSERT(from && from <= last);
  if (from <= durable) {
    const LogIndex to(std::min(durable.value(), from.value() + kEntriesPerAppendMax - 1));
    return view.read(from, to, bytes_max);
  }
  std::vector<LogEntry> entries;
  std::size_t bytes = 0;
  const auto count = std::min(last.value() - from.value() + 1, kEntriesPerAppendMax);
  const auto offset = from.value() - durable.value() - 1;
  for (std::uint64_t i = 0; i < count && (i == 0 || bytes < bytes_max); ++i) {
    entries.push_back(tail[offset + i]);
    bytes += entries.back().data->size();
  }
  return entries;
}

void RaftCore::Impl::append(LogEntry entry, Output& out) {
  RAFT_ASSERT(entry.index == last.next());
  RAFT_ASSERT(entry.term >= last_term && entry.term <= hard.term);
  last = entry.index;
  last_term = entry.term;
  out.append.push_back(entry);
  tail.push_back(std::move(entry));
  if (!marks.empty() && marks.back().sequence == sequence) {
    marks.back().index = last;
  } else {
    marks.push_back({sequence, last});
  }
}

/// Forgets entries from `index` on. The Output says so by appending another entry at `index`.
void RaftCore::Impl::truncate_from(LogIndex index) {
  RAFT_ASSERT(index > commit);          // a committed entry is never truncated
  RAFT_ASSERT(role != Role::kPrimary);  // leader append-only [thesis 3.5]
  RAFT_ASSERT(index >= first_index() && index <= last);
  while (last >= index && last > durable) {
    tail.pop_back();
    last = last.prev();
  }
  last = std::min(last, index.prev());
  durable = std::min(durable, last);
  last_term = term_at(last).value_or(Term());
  for (Mark& mark : marks) mark.index = std::min(mark.index, last);
  revert_membership_from(index);
}

/// Where two logs can still be equal, given that one has `term` at `index` [thesis 3.3].
LogIndex RaftCore::Impl::last_index_with_term_at_most(LogIndex index, Term term) const {
  index = std::min(index, last);
  while (index > commit) {
    const auto here = term_at(index);
    if (!here || *here <= term) break;
    index = index.prev();
  }
  return index;
}

void RaftCore::Impl::reset_log(LogIndex index, Term term) {
  tail.clear();
  marks.clear();
  durable = last = index;
  last_term = term;
}

}  // namespace fermata::serverd
