#include "common/wire/methods.h"

namespace fermata {

const char* to_string(Method method) {
  switch (method) {
    case Method::kOpenSession:
      return "open_session";
    case Method::kRenewSession:
      return "renew_session";
    case Method::kCloseSession:
      return "close_session";
    case Method::kBindCallbacks:
      return "bind_callbacks";
    case Method::kCallback:
      return "callback";
    case Method::kLookup:
      return "lookup";
    case Method::kGetAttr:
      return "getattr";
    case Method::kReadDir:
      return "readdir";
    case Method::kOpen:
      return "open";
    case Method::kContent:
      return "content";
    case Method::kGetXattrs:
      return "getxattrs";
    case Method::kStatFs:
      return "statfs";
    case Method::kFindLock:
      return "find_lock";
    case Method::kWaitLock:
      return "wait_lock";
    case Method::kQuotas:
      return "quotas";
    case Method::kMutate:
      return "mutate";
    case Method::kQueryChunks:
      return "query_chunks";
    case Method::kPutChunk:
      return "put_chunk";
    case Method::kGetChunk:
      return "get_chunk";
    case Method::kReplicateChunk:
      return "replicate_chunk";
    case Method::kHasChunks:
      return "has_chunks";
    case Method::kOfferChunks:
      return "offer_chunks";
    case Method::kRaft:
      return "raft";
    case Method::kReadSnapshot:
      return "read_snapshot";
    case Method::kStatus:
      return "status";
    case Method::kDigest:
      return "digest";
    case Method::kTransferPrimary:
      return "transfer_primary";
    case Method::kSessions:
      return "sessions";
  }
  return "unknown";
}

std::uint32_t body_size_max(std::uint16_t method) {
  switch (static_cast<Method>(method)) {
    case Method::kCallback:
    case Method::kReadDir:
    case Method::kOpen:
    case Method::kSessions:
    case Method::kQuotas:
      return 4U << 20;
    case Method::kMutate:
    case Method::kGetXattrs:
      return 1U << 20;
    case Method::kStatus:
      return 256U << 10;
    default:
      return 64U << 10;
  }
}

}  // namespace fermata
