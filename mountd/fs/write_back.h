// A changed copy goes to the cluster: what to send, and sending it.
//
// Small content travels inside the commit, and so do a few bytes written to larger content, as
// patches, where the cache knows which bytes were written. Other changes of larger content go as
// chunks named by their SHA-256:
// only blocks that changed are hashed, only chunks the cluster lacks are sent, and the commit names
// them (docs/ARCHITECTURE.md; the idea is Venti's and LBFS's). Session semantics decide what
// happens when somebody else committed in between: the last close wins, whole.
//
// Thread-safety: coroutines of the loop whose client they use. One commit of a copy at a time.
#pragma once

#include <optional>
#include <vector>

#include "common/env/env.h"
#include "mountd/cache/cache_store.h"
#include "mountd/client/cluster_client.h"

namespace fermata::mountd {

/// What a commit sends, decided from a scan alone.
struct CommitPlan {
  enum class Kind { kNothing, kInline, kChunks } kind = Kind::kNothing;
  bool whole = false;  ///< does not build on the base version
  struct Block {
    std::uint32_t index = 0;
    enum class Source { kHole, kRead, kKnown } source = Source::kRead;
    ChunkId known;  ///< kKnown: unchanged since the base, under this name
  };
  std::vector<Block> blocks;  ///< kChunks: ascending; of a whole commit holes are left out
};
/// `base_chunks` are those of the copy's base (empty: inline or unknown). `force_whole` is for a
/// stale base.
CommitPlan plan_commit(const ChangeScan& scan, const std::vector<ChunkId>& base_chunks,
                       bool force_whole);

/// What may travel as patches instead of as chunks: less than would be worth a chunk.
inline constexpr DirtyLimits kPatchLimits{256, 256u << 10};

struct CommitInput {
  CachePin copy;
  Credentials cred;
  LogIndex opened;  ///< as CommitOp's
  Timestamp mtime;
  std::optional<Timestamp> atime;
  bool clear_suid_sgid = false;
  /// The cluster does not know the file: it is made with its content, which is small (else
  /// kTooLarge).
  std::optional<CreateOp> make;
  bool may_replace = true;  ///< false: a stale base is final (fenced)
  SessionId under;          ///< that it may be committed in; none: any
  CachedCopy::After after = CachedCopy::After::kStillWritable;
  std::string path_hint;
  /// What the file may have allocated as far as quotas go, bytes; asked before much is uploaded.
  /// None: no quotas.
  std::function<Task<std::uint64_t>()> allocated_max;
};
struct CommitOutcome {
  bool changed = false;   ///< false: the content is that of the base; nothing was sent
  bool replaced = false;  ///< over a newer version: listed as a conflict by the cluster
  MutationReply reply;    ///< if changed
};

/// Commits what changed; on success the copy is clean as of the scan. Errors: kStaleBase when not
/// may_replace, the cluster's, the cache's. After an error the copy is as dirty as before.
Task<CommitOutcome> commit_copy(Env& env, ClusterClient& client, CommitInput input);

}  // namespace fermata::mountd
