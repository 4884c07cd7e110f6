#include "common/wire/raft_codec.h"

#include <capnp/message.h>

#include "common/wire/capnp_io.h"
#include "schema/raft.capnp.h"

namespace fermata {
namespace {

kj::StringPtr text(const std::string& value) { return {value.c_str(), value.size()}; }

void write(schema::RaftMembership::Builder to, const Membership& from) {
  auto members = to.initMembers(static_cast<unsigned>(from.members.size()));
  for (unsigned i = 0; i < members.size(); ++i) {
    members[i].setId(from.members[i].id.value());
    members[i].setAddress(text(from.members[i].address));
    members[i].setVoter(from.members[i].voter);
  }
}

void write(schema::RaftSnapshot::Builder to, const SnapshotDescriptor& from) {
  to.setIndex(from.index.value());
  to.setTerm(from.term.value());
  if (!from.membership.members.empty()) write(to.initMembership(), from.membership);
  if (!from.files.empty()) {
    auto files = to.initFiles(static_cast<unsigned>(from.files.size()));
    for (unsigned i = 0; i < files.size(); ++i) {
      files[i].setName(text(from.files[i].name));
      files[i].setSizeBytes(from.files[i].size_bytes);
      files[i].setCrc32c(from.files[i].crc32c);
    }
  }
  to.setId(from.id);
}

void write(schema::RaftEntry::Builder to, const LogEntry& from) {
  to.setIndex(from.index.value());
  to.setTerm(from.term.value());
  to.setKind(static_cast<std::uint8_t>(from.kind));
  to.setData({reinterpret_cast<const kj::byte*>(from.data->data()), from.data->size()});
}

Result<Membership> read(schema::RaftMembership::Reader from) {
  const auto members = from.getMembers();
  if (members.size() > kRaftMembersMax) return Errc::kBadMessage;
  Membership membership;
  membership.members.reserve(members.size());
  NodeId before;
  for (const auto member : members) {
    const auto address = member.getAddress();
    const NodeId id(member.getId());
    if (id <= before || address.size() > kMemberAddressSizeMax) return Errc::kBadMessage;
    before = id;
    membership.members.push_back({id, {address.begin(), address.size()}, member.getVoter()});
  }
  return membership;
}

/// One path component that names a file of its directory and nothing else.
bool is_file_name(std::string_view name) {
  if (name.empty() || name.size() > kSnapshotNameSizeMax || name == "." || name == "..") {
    return false;
  }
  return name.find('/') == name.npos && name.find('\0') == name.npos;
}

Result<SnapshotDescriptor> read(schema::RaftSnapshot::Reader from) {
  SnapshotDescriptor snapshot;
  snapshot.index = LogIndex(from.getIndex());
  snapshot.term = Term(from.getTerm());
  snapshot.id = from.getId();
  FM_TRY(snapshot.membership, read(from.getMembership()));
  const auto files = from.getFiles();
  if (files.size() > kSnapshotFilesMax) return Errc::kBadMessage;
  snapshot.files.reserve(files.size());
  for (const auto file : files) {
    const auto name = file.getName();
    if (!is_file_name({name.begin(), name.size()})) return Errc::kBadMessage;
    snapshot.files.push_back({{name.begin(), name.size()}, file.getSizeBytes(), file.getCrc32c()});
  }
  return snapshot;
}

Result<LogEntry> read(schema::RaftEntry::Reader from) {
  const auto kind = static_cast<EntryKind>(from.getKind());
  if (kind < EntryKind::kNoop || kind > EntryKind::kMembership) return Errc::kBadMessage;
  const auto data = from.getData();
  return LogEntry{LogIndex(from.getIndex()), Term(from.getTerm()), kind,
                  std::make_shared<const std::string>(reinterpret_cast<const char*>(data.begin()),
                                                      data.size())};
}

Result<RaftMessage> read(schema::RaftMessage::Reader from) {
  RaftMessage message;
  message.kind = static_cast<RaftKind>(from.getKind());
  if (message.kind < RaftKind::kPreVote || message.kind > RaftKind::kTimeoutNow) {
    return Errc::kBadMessage;
  }
  message.group = GroupId(from.getGroup());
  message.from = NodeId(from.getFrom());
  message.to = NodeId(from.getTo());
  message.term = Term(from.getTerm());
  message.prev_index = LogIndex(from.getPrevIndex());
  message.prev_term = Term(from.getPrevTerm());
  message.commit = LogIndex(from.getCommit());
  message.round = from.getRound();
  message.reject = from.getReject();
  message.match = LogIndex(from.getMatch());
  message.match_term = Term(from.getMatchTerm());
  message.transfer = from.getTransfer();
  message.rejoin = from.getRejoin();
  message.rejoin_until = LogIndex(from.getRejoinUntil());
  message.silence_ms = from.getSilenceMs();
  const auto entries = from.getEntries();
  if (entries.size() > kRaftEntriesMax) return Errc::kBadMessage;
  message.entries.reserve(entries.size());
  for (const auto entry : entries) {
    FM_TRY(LogEntry decoded, read(entry));
    message.entries.push_back(std::move(decoded));
  }
  if (from.hasSnapshot()) {
    FM_TRY(message.snapshot, read(from.getSnapshot()));
  }
  return message;
}

}  // namespace

std::string encode(const RaftMessage& message) {
  capnp::MallocMessageBuilder builder;
  auto to = builder.initRoot<schema::RaftMessage>();
  to.setKind(static_cast<std::uint8_t>(message.kind));
  to.setGroup(message.group.value());
  to.setFrom(message.from.value());
  to.setTo(message.to.value());
  to.setTerm(message.term.value());
  to.setPrevIndex(message.prev_index.value());
  to.setPrevTerm(message.prev_term.value());
  to.setCommit(message.commit.value());
  to.setRound(message.round);
  to.setReject(message.reject);
  to.setMatch(message.match.value());
  to.setMatchTerm(message.match_term.value());
  to.setTransfer(message.transfer);
  to.setRejoin(message.rejoin);
  to.setRejoinUntil(message.rejoin_until.value());
  to.setSilenceMs(message.silence_ms);
  if (!message.entries.empty()) {
    auto entries = to.initEntries(static_cast<unsigned>(message.entries.size()));
    for (unsigned i = 0; i < entries.size(); ++i) write(entries[i], message.entries[i]);
  }
  if (message.kind == RaftKind::kSnapshot || message.kind == RaftKind::kSnapshotReply) {
    write(to.initSnapshot(), message.snapshot);
  }
  return encode_message(builder);
}

std::string encode(const SnapshotDescriptor& snapshot) {
  capnp::MallocMessageBuilder builder;
  write(builder.initRoot<schema::RaftSnapshot>(), snapshot);
  return encode_message(builder);
}

std::string encode_membership(const Membership& membership) {
  capnp::MallocMessageBuilder builder;
  write(builder.initRoot<schema::RaftMembership>(), membership);
  return encode_message(builder);
}

Result<RaftMessage> decode_raft_message(ByteView bytes) {
  return decode_message(bytes, [](capnp::MessageReader& reader) {
    return read(reader.getRoot<schema::RaftMessage>());
  });
}

Result<SnapshotDescriptor> decode_snapshot_descriptor(ByteView bytes) {
  return decode_message(bytes, [](capnp::MessageReader& reader) {
    return read(reader.getRoot<schema::RaftSnapshot>());
  });
}

Result<Membership> decode_membership(ByteView bytes) {
  return decode_message(bytes, [](capnp::MessageReader& reader) {
    return read(reader.getRoot<schema::RaftMembership>());
  });
}

}  // namespace fermata
