// Raft messages, snapshot descriptors and memberships to bytes and back (schema/raft.capnp).
//
// Decoding trusts nothing: malformed bytes, unknown kinds and values out of bounds are
// Errc::kBadMessage. What fields must say together is the core's to check. Thread-safe: no state.
#pragma once

#include <string>

#include "common/base/bytes.h"
#include "common/base/result.h"
#include "common/wire/raft.h"

namespace fermata {

inline constexpr std::uint32_t kRaftEntriesMax = 8192;       ///< in one message
inline constexpr std::uint32_t kRaftMembersMax = 64;         ///< in one membership
inline constexpr std::uint32_t kSnapshotFilesMax = 65536;    ///< in one snapshot
inline constexpr std::uint32_t kMemberAddressSizeMax = 300;  ///< bytes
inline constexpr std::uint32_t kSnapshotNameSizeMax = 255;   ///< bytes

std::string encode(const RaftMessage& message);
std::string encode(const SnapshotDescriptor& snapshot);
/// The data of an entry of kind kMembership.
std::string encode_membership(const Membership& membership);

Result<RaftMessage> decode_raft_message(ByteView bytes);
Result<SnapshotDescriptor> decode_snapshot_descriptor(ByteView bytes);
/// Members sorted by id, each once; may be empty.
Result<Membership> decode_membership(ByteView bytes);

}  // namespace fermata
