// The messages as bytes: `encode(message)` and `decode<Message>(bytes)`. A decoder returns
// kBadMessage for what is malformed or out of its bounds, and kUnsupported for a union member of a
// newer version; never throws.
#pragma once

#include <string>
#include <string_view>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/wire/messages.h"

namespace fermata {

/// A single path component: 1 to 255 bytes, no '/' or NUL, not "." or "..".
bool is_valid_name(std::string_view name);

template <class Message>
Result<Message> decode(std::string_view bytes);

#define FM_MESSAGE(Message)                 \
  std::string encode(const Message& value); \
  template <>                               \
  Result<Message> decode<Message>(std::string_view bytes);

FM_MESSAGE(OpenSessionRequest)
FM_MESSAGE(OpenSessionReply)
FM_MESSAGE(RenewSessionRequest)
FM_MESSAGE(RenewSessionReply)
FM_MESSAGE(CloseSessionRequest)
FM_MESSAGE(BindCallbacksRequest)
FM_MESSAGE(CallbackRequest)
FM_MESSAGE(CallbackReply)
FM_MESSAGE(LookupRequest)
FM_MESSAGE(LookupReply)
FM_MESSAGE(GetAttrRequest)
FM_MESSAGE(GetAttrReply)
FM_MESSAGE(ReadDirRequest)
FM_MESSAGE(ReadDirReply)
FM_MESSAGE(OpenRequest)
FM_MESSAGE(OpenReply)
FM_MESSAGE(ContentRequest)
FM_MESSAGE(ContentReply)
FM_MESSAGE(GetXattrsRequest)
FM_MESSAGE(GetXattrsReply)
FM_MESSAGE(StatFsRequest)
FM_MESSAGE(StatFsReply)
FM_MESSAGE(QuotasRequest)
FM_MESSAGE(QuotaList)
FM_MESSAGE(MutationRequest)
FM_MESSAGE(MutationReply)
FM_MESSAGE(LockQuery)
FM_MESSAGE(FindLockReply)
FM_MESSAGE(WaitLockReply)
FM_MESSAGE(ChunkRequest)
FM_MESSAGE(ChunkList)
FM_MESSAGE(ChunkFlags)
FM_MESSAGE(ReadSnapshotRequest)
FM_MESSAGE(PrimaryHint)
FM_MESSAGE(NodeStatus)
FM_MESSAGE(DigestRequest)
FM_MESSAGE(DigestReply)
FM_MESSAGE(TransferRequest)
FM_MESSAGE(SessionList)
#undef FM_MESSAGE

}  // namespace fermata
