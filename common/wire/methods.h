// The numbers of the remote procedures (Request::method). Never reuse one.
#pragma once

#include <cstdint>

namespace fermata {

enum class Method : std::uint16_t {
  // Client to primary: sessions.
  kOpenSession = 1,   ///< OpenSessionRequest -> OpenSessionReply
  kRenewSession = 2,  ///< RenewSessionRequest -> RenewSessionReply
  kCloseSession = 3,  ///< CloseSessionRequest -> nothing
  kBindCallbacks =
      4,  ///< BindCallbacksRequest -> nothing: this connection carries the session's callbacks
  kCallback = 5,  ///< primary to client: CallbackRequest -> CallbackReply
  // Client to primary: reads.
  kLookup = 10,   ///< LookupRequest -> LookupReply
  kGetAttr = 11,  ///< GetAttrRequest -> GetAttrReply
  kReadDir = 12,  ///< ReadDirRequest -> ReadDirReply
  kOpen = 13,  ///< OpenRequest -> OpenReply, payload: inline bytes or patches, then chunk records
  kContent = 14,    ///< ContentRequest -> ContentReply, payload: chunk records
  kGetXattrs = 15,  ///< GetXattrsRequest -> GetXattrsReply
  kStatFs = 16,     ///< StatFsRequest -> StatFsReply
  kFindLock = 17,   ///< LockQuery -> FindLockReply
  kWaitLock = 18,   ///< LockQuery -> WaitLockReply
  kQuotas = 19,     ///< QuotasRequest -> QuotaList
  // Client to primary: every mutation.
  kMutate = 20,  ///< MutationRequest, payload as Commit says -> MutationReply
  // Chunks. Payload: the chunk's bytes.
  kQueryChunks = 30,  ///< client to primary: ChunkList -> ChunkFlags, true: a majority has it (and
                      ///< keeps it a while)
  kPutChunk = 31,     ///< client to primary: ChunkRequest, stored by a majority on return
  kGetChunk = 32,     ///< anyone to any node: ChunkRequest -> payload
  kReplicateChunk = 33,  ///< node to node: ChunkRequest, stored here on return
  kHasChunks = 34,       ///< node to node: ChunkList -> ChunkFlags
  kOfferChunks = 35,     ///< node to primary: ChunkList, stored there and named by nothing
  // Node to node: the log.
  kRaft = 40,          ///< one way: a RaftMessage
  kReadSnapshot = 41,  ///< ReadSnapshotRequest -> payload
  // Anyone to any node: operation.
  kStatus = 50,           ///< nothing -> NodeStatus
  kDigest = 51,           ///< DigestRequest -> DigestReply
  kTransferPrimary = 52,  ///< TransferRequest -> nothing
  kSessions = 53,         ///< nothing -> SessionList
};

/// Name for logs and counters.
const char* to_string(Method method);

/// The largest body of a request or response: NetworkOptions::body_size_max of every program.
std::uint32_t body_size_max(std::uint16_t method);

}  // namespace fermata
