#include "test/sim/raft/sim_checker.h"

namespace fermata::test {
namespace {

std::string show(NodeId id) { return "node " + std::to_string(id.value()); }
std::string show(LogIndex index) { return "index " + std::to_string(index.value()); }
std::string show(Term term) { return "term " + std::to_string(term.value()); }

}  // namespace

void SimChecker::fail(std::string what) {
  if (violation_.empty()) violation_ = std::move(what);  // the first one explains the others
}

void SimChecker::on_primary(NodeId node, Term term, const SimLog& log) {
  const auto [known, is_new] = primaries_.emplace(term.value(), node);
  if (!check(known->second == node)) {
    fail("election safety: " + show(node) + " and " + show(known->second) + " are primary in " +
         show(term));
  }
  // What later terms have committed it may lack: its votes may come late.
  auto last = committed_.size();
  while (last > 0 && committed_[last - 1].in >= term) --last;
  if (!is_new || last == 0) return;
  const auto chain = log.chain_at(LogIndex(last));
  const bool compacted = log.first_index() > LogIndex(last).next();
  if (!check(compacted || chain == committed_[last - 1].chain)) {
    fail("leader completeness: " + show(node) + " of " + show(term) + " lacks committed " +
         show(LogIndex(last)));
  }
}

void SimChecker::on_append(NodeId node, const SimLog& log, LogIndex index) {
  const std::uint64_t key = (log.entry(index).term.value() << 40) | index.value();
  const std::uint64_t chain = *log.chain_at(index);
  const auto [known, is_new] = entries_.emplace(key, chain);
  if (!check(known->second == chain)) {
    fail("log matching: " + show(node) + " differs at or before " + show(index));
  }
}

void SimChecker::on_commit(NodeId node, Term term, const SimLog& log, LogIndex from, LogIndex to) {
  if (!check(to >= from)) {
    return fail("commit monotonicity: " + show(node) + " went back to " + show(to));
  }
  for (LogIndex i = from.next(); i <= to; i = i.next()) {
    const auto chain = log.chain_at(i);
    if (i < log.first_index()) continue;  // in its snapshot
    if (!check(chain.has_value())) {
      return fail("commit: " + show(node) + " has no " + show(i) + " which it committed");
    }
    if (i.value() > committed_.size()) {
      committed_.push_back({*chain, term});
    } else if (!check(committed_[i.value() - 1].chain == *chain)) {
      return fail("state machine safety: " + show(node) + " committed another entry at " + show(i));
    }
  }
}

void SimChecker::on_primary_commit(NodeId node, Term term, Term entry_term,
                                   std::size_t durable_voters, std::size_t voters) {
  if (!check(entry_term == term)) {
    fail("commit rule: " + show(node) + " of " + show(term) + " counted copies of an entry of " +
         show(entry_term));
  }
  if (!check(durable_voters * 2 > voters)) {
    fail("commit rule: " + show(node) + " committed with " + std::to_string(durable_voters) +
         " of " + std::to_string(voters) + " durable copies");
  }
}

void SimChecker::on_apply(NodeId node, Term term, const SimLog& log, LogIndex index) {
  if (index.value() > committed_.size()) {
    // Nobody has committed it: what is applied counts as history all the same.
    on_commit(node, term, log, LogIndex(committed_.size()), index);
    return;
  }
  if (!check(log.chain_at(index) == committed_[index.value() - 1].chain)) {
    fail("state machine safety: " + show(node) + " applied another entry at " + show(index));
  }
}

void SimChecker::on_install(NodeId node, LogIndex index, std::uint64_t chain) {
  if (!check(index.value() <= committed_.size() && committed_[index.value() - 1].chain == chain)) {
    fail("state machine safety: " + show(node) + " installed another state at " + show(index));
  }
}

void SimChecker::on_acknowledge(LogIndex index) { acknowledged_ = std::max(acknowledged_, index); }

void SimChecker::on_read(NodeId node, const char* how, LogIndex served, LogIndex needed) {
  if (!check(served >= needed)) {
    fail(std::string("reads: ") + show(node) + " serves " + show(served) + " by " + how + ", but " +
         show(needed) + " was acknowledged before");
  }
}

}  // namespace fermata::test
