// A replica group of RaftCores in virtual time, on bad networks, disks and machines.
//
// One seed is one run: the scheduler, the network (loss, duplication, reordering, delay, partitions
// both ways and one way), the disks (latency; what was not synced is lost or torn by a crash),
// clocks that run at different speeds, crashes, compaction, membership changes, transfers and load.
// After every step the checkers of sim_checker.h look at what the step changed; at the end
// everything is healed and the group must make progress.
//
// A Mutation breaks one rule, in the core or in the harness, to see that the checkers notice.
#pragma once

#include <cstdint>
#include <string>

#include "common/env/clock.h"
#include "serverd/raft/raft_core.h"

namespace fermata::test {

enum class Mutation : std::uint8_t {
  kNone,
  // The core disobeys.
  kVoteTwice,
  kVoteForOldLog,
  kVoteDuringLease,
  kCommitBeforeQuorum,
  kCommitOldTermByCounting,
  kServeReadsWithoutLease,
  kIgnoreTerm,
  kTruncateCommitted,
  kManyMemberships,
  kKeepTruncatedMembers,
  kLeaseDuringTransfer,
  // The driver disobeys.
  kAckBeforePersist,
  kSkipHardStateSync,
  kSkipLogSync,
  kApplyBeforeCommit,
  kForgetLeaseAtRestart,
  kForgetLostDisk,  ///< a node without its disk comes back as if it were new (needs lose_disks)
};
inline constexpr Mutation kLastMutation = Mutation::kForgetLostDisk;
const char* to_string(Mutation mutation);

struct RaftSimOptions {
  unsigned members = 0;  ///< at the start; 0: the seed chooses 3 or 5 (seldom 1 or 2)
  unsigned spares = 2;   ///< nodes that may be added
  Duration chaos = std::chrono::seconds(12);   ///< virtual time with faults
  Duration settle = std::chrono::seconds(15);  ///< virtual time within which it must then recover
  bool lose_disks = false;  ///< now and then a node comes back without its disk, and rejoins
  Mutation mutation = Mutation::kNone;
  bool trace = false;  ///< says every step on standard error
};

/// What happened. Counts add up over seeds.
struct RaftSimCounts {
  std::uint64_t runs = 0;
  std::uint64_t steps = 0;
  std::uint64_t virtual_ms = 0;
  std::uint64_t proposals = 0;
  std::uint64_t acknowledged = 0;
  std::uint64_t messages = 0;
  std::uint64_t dropped = 0;
  std::uint64_t duplicated = 0;
  std::uint64_t through_codec = 0;
  std::uint64_t elections = 0;  ///< nodes that became primary
  std::uint64_t crashes = 0;
  std::uint64_t power_cuts = 0;   ///< of all nodes at once
  std::uint64_t torn_tails = 0;   ///< crashes that cut a write in the middle
  std::uint64_t lost_writes = 0;  ///< crashes that lost a write as a whole
  std::uint64_t truncations = 0;
  std::uint64_t partitions = 0;
  std::uint64_t one_way_partitions = 0;
  std::uint64_t compactions = 0;
  std::uint64_t snapshots_installed = 0;
  std::uint64_t snapshots_failed = 0;
  std::uint64_t membership_changes = 0;  ///< committed
  std::uint64_t primaries_removed = 0;
  std::uint64_t memberships_reverted = 0;
  std::uint64_t transfers = 0;       ///< asked for
  std::uint64_t transfer_votes = 0;  ///< asked for by their targets
  std::uint64_t lease_reads = 0;
  std::uint64_t index_reads = 0;    ///< confirmed by a round
  std::uint64_t reads_refused = 0;  ///< a primary without a lease
  std::uint64_t disks_lost = 0;     ///< only with lose_disks
  std::uint64_t rejoined = 0;       ///< of them, whole again
  std::uint64_t checks = 0;

  RaftSimCounts& operator+=(const RaftSimCounts& other);
  /// One "name value" per line.
  std::string describe() const;
  /// The first kind of event that never happened, or "": a run over many seeds must have seen all.
  std::string never_happened() const;
};

struct RaftSimReport {
  std::uint64_t seed = 0;
  std::string violation;  ///< empty: all is well
  RaftSimCounts counts;
  std::uint64_t trace_hash = 0;  ///< equal for equal seeds and options
  bool ok() const { return violation.empty(); }
};

RaftSimReport run_raft_sim(std::uint64_t seed, const RaftSimOptions& options = {});

}  // namespace fermata::test
