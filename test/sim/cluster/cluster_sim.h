// A whole cluster in one thread and virtual time: real nodes, real client code, bad networks, disks
// and machines, and an oracle that knows what is true.
//
// One seed is one run. It decides everything: how slow and lossy the links are, which kinds of
// faults occur and when, what the clients do. First the faults, then everything is healed and the
// cluster must come to rest: pending operations end, a fresh client reads everything, sessions and
// orphans go, all nodes hold the same bytes. What is checked, and how, is told in oracle.h; the
// invariants' names (D1, D2, C1 to C3, R1, R2, L1) are those of docs/ARCHITECTURE.md.
//
// A broken rule is injected to see that the checks notice; production code cannot reach it.
#pragma once

#include <cstdint>
#include <string>

#include "common/env/clock.h"

namespace fermata::test {

enum class BrokenRule : std::uint8_t {
  kNone,
  kVoteTwice,            ///< a node forgets whom it voted for in a term
  kApplyBeforeCommit,    ///< what is durable on one node is applied, and answered
  kSkipSync,             ///< one node's disk says yes to every sync and does nothing
  kServeWhenDeposed,     ///< a primary reads without lease or round
  kForgetRequests,       ///< the table of answered requests is not kept
  kAckBeforeMajority,    ///< an entry counts as committed once the primary has it
  kSkipCallbacks,        ///< mutations do not call leases back
  kIgnoreSessionEnd,     ///< a session goes on after it was ended
  kIgnoreCallbacks,      ///< a client answers callbacks and keeps what it cached
  kTrustExpiredLeases,   ///< a client trusts its cache after its session lease
  kKeepDelegations,      ///< a client returns a file's locks and goes on to grant them
  kTrustOldDelegations,  ///< a client grants them after its session lease
  kSkipRecalls,          ///< reads do not ask who may have made files in the directory alone
  kGiveUpUntold,         ///< a client gives a directory up and has not told what it made there
};
inline constexpr BrokenRule kLastBrokenRule = BrokenRule::kGiveUpUntold;
const char* to_string(BrokenRule rule);

struct ClusterSimOptions {
  BrokenRule broken = BrokenRule::kNone;
  bool trace = false;  ///< says what happens on standard error
};

/// What happened. Counts add up over seeds.
struct ClusterSimCounts {
  std::uint64_t runs = 0;
  std::uint64_t steps = 0;
  std::uint64_t virtual_ms = 0;
  // Faults.
  std::uint64_t crashes = 0;     ///< of one node's process
  std::uint64_t power_cuts = 0;  ///< of one node
  std::uint64_t power_cuts_of_all = 0;
  std::uint64_t torn_tails = 0;     ///< files of which a power cut left a part
  std::uint64_t disk_faults = 0;    ///< syncs and writes that failed, or cut the power
  std::uint64_t full_disks = 0;     ///< disks that took no more, or little, for a while
  std::uint64_t nodes_stopped = 0;  ///< by their own decision, after a fault of their disk
  std::uint64_t corruptions = 0;    ///< of a chunk on one node's disk
  std::uint64_t partitions = 0;
  std::uint64_t one_way_partitions = 0;
  std::uint64_t resets = 0;  ///< of connections
  std::uint64_t clogs = 0;   ///< links that stood still a while
  std::uint64_t client_crashes = 0;
  std::uint64_t client_partitions = 0;
  // What they led to.
  std::uint64_t elections = 0;
  std::uint64_t snapshots_installed = 0;
  std::uint64_t sessions_expired = 0;
  std::uint64_t callbacks = 0;
  std::uint64_t callbacks_failed = 0;
  std::uint64_t recalls = 0;         ///< of directories that a mount had alone
  std::uint64_t duplicates = 0;      ///< retried mutations answered from the table or in flight
  std::uint64_t retries = 0;         ///< mutations overtaken by another one (kRetry)
  std::uint64_t stale_bases = 0;     ///< commits refused for a stale base
  std::uint64_t replaced_newer = 0;  ///< commits put over a newer version, as conflicts
  std::uint64_t folded = 0;          ///< chunks put in the place of patches
  std::uint64_t quota_records = 0;   ///< looked at after a quota was set or removed
  std::uint64_t fenced = 0;          ///< mutations of ended sessions refused by the state
  std::uint64_t read_barriers = 0;
  std::uint64_t chunks_found_corrupt = 0;
  std::uint64_t chunks_fetched = 0;  ///< by a node from its peers: missing or damaged
  std::uint64_t chunks_deleted = 0;  ///< from nodes' disks
  std::uint64_t without_room = 0;    ///< mutations refused with ENOSPC
  std::uint64_t stalls = 0;          ///< nodes that waited for room
  std::uint64_t orphans = 0;         ///< inodes kept for those who had them open
  // The load.
  std::uint64_t operations = 0;    ///< of clients
  std::uint64_t mutations = 0;     ///< acknowledged
  std::uint64_t unknown = 0;       ///< mutations without a known outcome
  std::uint64_t cached_reads = 0;  ///< answered under a lease without a call
  std::uint64_t opens = 0;
  std::uint64_t locks_here = 0;      ///< granted by a client, under a delegation
  std::uint64_t locks_returned = 0;  ///< delegations
  std::uint64_t made_here = 0;       ///< files made without a call
  std::uint64_t commits = 0;         ///< acknowledged
  std::uint64_t commands = 0;        ///< in the log
  std::uint64_t digests = 0;         ///< compared
  std::uint64_t checks = 0;

  ClusterSimCounts& operator+=(const ClusterSimCounts& other);
  /// One "name value" per line.
  std::string describe() const;
  /// The first kind of event that never happened, or "": a run over many seeds must have seen all.
  std::string never_happened() const;
};

struct ClusterSimReport {
  std::uint64_t seed = 0;
  std::string violation;  ///< empty: all is well
  ClusterSimCounts counts;
  std::uint64_t trace_hash = 0;  ///< equal for equal seeds and options
  bool ok() const { return violation.empty(); }
};

ClusterSimReport run_cluster_sim(std::uint64_t seed, const ClusterSimOptions& options = {});

}  // namespace fermata::test
