// The properties that a replica group never loses, checked step by step [thesis 3.2, figure 3.2]:
//
//   election safety       one primary per term
//   log matching          same index and term: same log up to there
//   leader completeness   a new primary's log holds everything that was ever committed
//   state machine safety  every node applies the same entry at an index, and in order
//   commit rule           a primary commits an entry of its own term that a majority has durably
//   commit monotonicity   while a node runs, its commit index never goes back
//   reads                 a read that a lease or a round allows sees every acknowledged proposal
//
// It keeps the one true history by hashes (sim_log.h), so each check costs little.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "test/sim/raft/sim_log.h"

namespace fermata::test {

class SimChecker {
 public:
  bool failed() const { return !violation_.empty(); }
  const std::string& violation() const { return violation_; }
  std::uint64_t checks() const { return checks_; }
  void fail(std::string what);

  void on_primary(NodeId node, Term term, const SimLog& log);
  void on_append(NodeId node, const SimLog& log, LogIndex index);
  /// `durable_voters` of `voters` have the entry at `to` on disk; only looked at if `as_primary`.
  void on_commit(NodeId node, Term term, const SimLog& log, LogIndex from, LogIndex to);
  void on_primary_commit(NodeId node, Term term, Term entry_term, std::size_t durable_voters,
                         std::size_t voters);
  void on_apply(NodeId node, Term term, const SimLog& log, LogIndex index);
  void on_install(NodeId node, LogIndex index, std::uint64_t chain);
  void on_acknowledge(LogIndex index);
  void on_read(NodeId node, const char* how, LogIndex served, LogIndex needed);

  std::uint64_t elections() const { return primaries_.size(); }
  LogIndex acknowledged() const { return acknowledged_; }
  LogIndex committed() const { return LogIndex(committed_.size()); }

 private:
  bool check(bool holds) {
    ++checks_;
    return holds;
  }

  struct Committed {
    std::uint64_t chain = 0;
    Term in;  ///< whoever committed it first was in this term
  };

  std::string violation_;
  std::uint64_t checks_ = 0;
  std::unordered_map<std::uint64_t, NodeId> primaries_;       ///< by term
  std::unordered_map<std::uint64_t, std::uint64_t> entries_;  ///< (term, index) -> chain
  std::vector<Committed> committed_;                          ///< by index - 1
  LogIndex acknowledged_;
};

}  // namespace fermata::test
