// Calls to the cluster as the operations make them: each finds the primary, retries over failovers,
// and ends with an answer, an error of the operation, or EINTR when its coroutine is cancelled.
//
// A hard mount (the default) waits for a primary for ever; a soft one gives up with ETIMEDOUT after
// `soft_timeout`. A mutation keeps its sequence number over retries, so it is applied once.
// A session that expired is opened anew by the SessionKeeper; a mutation whose outcome is unknown
// when that happens ends with kSessionExpired (ESTALE), one that surely was not applied is run in
// the new session.
//
// Thread-safety: one ClusterClient belongs to one loop (its Env's executor). They share the
// session.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/base/buffer.h"
#include "common/base/result.h"
#include "common/env/env.h"
#include "common/net/rpc.h"
#include "common/wire/chunk_records.h"
#include "common/wire/messages.h"
#include "mountd/client/session.h"

namespace fermata::mountd {

struct ClientOptions {
  std::vector<std::string> servers;  ///< HOST:PORT of some nodes; the rest is learnt
  std::string client_id;             ///< see OpenSessionRequest
  std::string host;
  std::string mount_point;
  bool soft = false;
  Duration soft_timeout = std::chrono::seconds(30);
  bool asks_exclusive = false;                         ///< creates ask for the directory alone
  Duration attempt_timeout = std::chrono::seconds(5);  ///< of one call to one node
  Duration retry_min = std::chrono::milliseconds(10);
  Duration retry_max = std::chrono::milliseconds(500);
};

/// What is known of the cluster, shared by the loops' clients. Thread-safe (cluster_map.h).
class ClusterMap;
class Router;  // router.h

/// Content of a file as the cluster describes it.
struct FileContent {
  fermata::OpenReply::Content kind = fermata::OpenReply::Content::kNone;
  Buffer inline_bytes;                            ///< kInline
  std::vector<ChunkRef> chunks;                   ///< kChunks: sorted by index, holes absent
  std::vector<std::pair<Patch, Buffer>> patches;  ///< kChunks: laid over the chunks in this order
};
struct Opened {
  Stamp stamp;
  bool leased = false;
  Attr attr;
  FileContent content;
};

class ClusterClient {
 public:
  ClusterClient(Env& env, Network& network, ClientSession& session, std::shared_ptr<ClusterMap> map,
                ClientOptions options);
  ~ClusterClient();

  // Reads. Errors: the operation's (ENOENT, ESTALE for an inode that is gone, EACCES, ...).
  Task<LookupReply> lookup(Credentials cred, InodeId parent, std::string name);
  Task<GetAttrReply> getattr(Credentials cred, InodeId inode);
  Task<ReadDirReply> readdir(Credentials cred, InodeId inode, Cookie after, std::uint32_t bytes_max,
                             bool with_attributes);
  /// With the whole content description (all chunk records), unless the newest version is `have`.
  Task<Opened> open(Credentials cred, InodeId inode, Version have);
  Task<GetXattrsReply> getxattrs(Credentials cred, InodeId inode);
  /// Within the quotas of `inode`; none: of the whole volume.
  Task<StatFsReply> statfs(Credentials cred, InodeId inode);
  /// Ends a session that is not the client's own: of a mountd that is gone.
  Task<void> close_session(SessionId session, Epoch epoch);
  Task<QuotaList> quotas(Credentials cred, InodeId inode);

  /// The open session; waits for one while there is none. Errors: ETIMEDOUT (soft mount), EINTR.
  Task<SessionId> session();
  /// Every mutation. The payload as CommitOp says.
  /// With `under`: in that session only, else kSessionExpired and nothing was sent.
  Task<MutationReply> mutate(Credentials cred, Mutation op, Buffer payload = {},
                             SessionId under = {});
  /// F_GETLK: the lock of another owner that is in the way.
  Task<FindLockReply> find_lock(LockOp lock);
  /// Waits in the primary's queue until it is `lock`'s turn (true) or for some seconds (false).
  Task<bool> wait_lock(LockOp lock, bool detect_deadlock);
  /// Leaves the queue. What is lost on the way is forgotten there by itself.
  Task<void> give_up_lock(LockOp lock);

  // Chunks. get_chunk tries all nodes and verifies the hash (kCorruptChunk if no good copy is
  // found).
  Task<Buffer> get_chunk(ChunkId id);
  /// Stored by a majority on return.
  Task<void> put_chunk(ChunkId id, Buffer bytes);
  /// Which of them the cluster has already (durable on a majority, kept until a commit can name
  /// them).
  Task<std::vector<bool>> query_chunks(std::vector<ChunkId> ids);

  /// Closes the connections; calls under way end with kShuttingDown.
  void stop();

  /// Calls made so far, by method: the RPC counters of benchmarks and tests.
  static std::map<std::string, std::uint64_t> call_counts();

  /// For the parts of the client only.
  std::shared_ptr<Router> router();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

/// Keeps the session: opens it, renews its lease every third of the term, carries callbacks,
/// follows new primaries. Belongs to one loop.
class SessionKeeper {
 public:
  class Events {
   public:
    virtual ~Events() = default;
    /// Invalidate, the kernel's caches too, then return. Runs on the keeper's loop; callbacks may
    /// overlap.
    virtual boost::asio::awaitable<CallbackReply> on_callback(CallbackRequest request) = 0;
    /// Leases stamped below `stamp` are void from now on: drop or mark what they covered, the
    /// kernel's caches too.
    virtual boost::asio::awaitable<void> on_leases_void(Stamp stamp) = 0;
    /// The session expired and a new one is open (`fresh`): its epoch fences what the old one left
    /// behind.
    virtual boost::asio::awaitable<void> on_new_session(SessionId fresh) = 0;
    /// A new primary is to be told that nothing is held of what older ones granted. False: files
    /// that were made without telling are not all sent yet, after `patience`; asked again.
    virtual boost::asio::awaitable<bool> give_up_alone(Duration /*patience*/) { co_return true; }
  };
  SessionKeeper(Env& env, Network& network, ClusterClient& client, ClientSession& session,
                Events& events);
  ~SessionKeeper();

  /// Opens the session; returns when it is (hard mount) or with the error after `timeout`.
  Task<void> start(Duration timeout);
  /// Ends the session at the cluster, best effort within `timeout`, and stops renewing.
  Task<void> stop(Duration timeout);
  ClusterId cluster() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

std::shared_ptr<ClusterMap> make_cluster_map(std::vector<std::string> servers);

}  // namespace fermata::mountd
