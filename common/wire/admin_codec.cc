// Chunks, snapshots, status and the other questions of tools.
#include "common/wire/message_codec.h"
#include "common/wire/shapes.h"
#include "schema/admin.capnp.h"
#include "schema/chunk.capnp.h"

namespace fermata {

using wire::blob;

std::string encode(const ChunkRequest& value) {
  wire::Writer<schema::ChunkRequest> writer;
  auto id = writer.root().initId();
  id.setAlgorithm(value.id.algorithm);
  id.setDigest(blob(value.id.digest.data(), value.id.digest.size()));
  writer.root().setSizeBytes(value.size_bytes);
  writer.root().setAsOf(value.as_of.value());
  return writer.finish();
}
template <>
Result<ChunkRequest> decode<ChunkRequest>(std::string_view bytes) {
  return wire::decode_message<schema::ChunkRequest>(
      as_bytes(bytes), [](schema::ChunkRequest::Reader in) -> Result<ChunkRequest> {
        ChunkRequest value;
        value.id.algorithm = in.getId().getAlgorithm();
        const auto digest = in.getId().getDigest();
        if (value.id.algorithm != ChunkId::kSha256 || digest.size() != value.id.digest.size())
          return Errc::kBadMessage;
        std::memcpy(value.id.digest.data(), digest.begin(), digest.size());
        value.size_bytes = in.getSizeBytes();
        value.as_of = LogIndex(in.getAsOf());
        return value;
      });
}

std::string encode(const ChunkList& value) {
  wire::Writer<schema::ChunkList> writer;
  writer.root().setIds(blob(wire::pack_chunk_ids(value.ids)));
  writer.root().setAsOf(value.as_of.value());
  return writer.finish();
}
template <>
Result<ChunkList> decode<ChunkList>(std::string_view bytes) {
  return wire::decode_message<schema::ChunkList>(
      as_bytes(bytes), [](schema::ChunkList::Reader in) -> Result<ChunkList> {
        ChunkList value;
        FM_TRY(value.ids, wire::unpack_chunk_ids(in.getIds(), wire::kChunkIdsMax));
        value.as_of = LogIndex(in.getAsOf());
        return value;
      });
}

std::string encode(const ChunkFlags& value) {
  wire::Writer<schema::ChunkFlags> writer;
  auto flags = writer.root().initFlags(static_cast<unsigned>(value.flags.size()));
  for (unsigned i = 0; i < value.flags.size(); ++i) flags.set(i, value.flags[i]);
  return writer.finish();
}
template <>
Result<ChunkFlags> decode<ChunkFlags>(std::string_view bytes) {
  return wire::decode_message<schema::ChunkFlags>(
      as_bytes(bytes), [](schema::ChunkFlags::Reader in) -> Result<ChunkFlags> {
        if (in.getFlags().size() > wire::kChunkIdsMax) return Errc::kBadMessage;
        ChunkFlags value;
        for (const bool flag : in.getFlags()) value.flags.push_back(flag);
        return value;
      });
}

std::string encode(const ReadSnapshotRequest& value) {
  wire::Writer<schema::ReadSnapshotRequest> writer;
  writer.root().setSnapshotId(value.snapshot_id);
  writer.root().setFile(value.file);
  writer.root().setOffsetBytes(value.offset_bytes);
  writer.root().setSizeBytes(value.size_bytes);
  return writer.finish();
}
template <>
Result<ReadSnapshotRequest> decode<ReadSnapshotRequest>(std::string_view bytes) {
  return wire::decode_message<schema::ReadSnapshotRequest>(
      as_bytes(bytes), [](schema::ReadSnapshotRequest::Reader in) -> Result<ReadSnapshotRequest> {
        ReadSnapshotRequest value;
        value.snapshot_id = in.getSnapshotId();
        FM_TRY(value.file, wire::read_text(in.getFile(), wire::kNameMax));
        if (!is_valid_name(value.file)) return Errc::kBadMessage;
        value.offset_bytes = in.getOffsetBytes();
        value.size_bytes = in.getSizeBytes();
        return value;
      });
}

std::string encode(const PrimaryHint& value) {
  wire::Writer<schema::PrimaryHint> writer;
  writer.root().setPrimary(value.primary.value());
  writer.root().setAddress(value.address);
  writer.root().setTerm(value.term.value());
  return writer.finish();
}
template <>
Result<PrimaryHint> decode<PrimaryHint>(std::string_view bytes) {
  return wire::decode_message<schema::PrimaryHint>(
      as_bytes(bytes), [](schema::PrimaryHint::Reader in) -> Result<PrimaryHint> {
        PrimaryHint value{NodeId(in.getPrimary()), {}, Term(in.getTerm())};
        FM_TRY(value.address, wire::read_text(in.getAddress(), 300));
        return value;
      });
}

std::string encode(const NodeStatus& value) {
  wire::Writer<schema::NodeStatus> writer;
  auto out = writer.root();
  out.setNode(value.node.value());
  out.setAddress(value.address);
  out.setCluster(blob(value.cluster.bytes.data(), value.cluster.bytes.size()));
  out.setVersion(value.version);
  out.setRole(value.role);
  out.setTerm(value.term.value());
  out.setPrimary(value.primary.value());
  out.setFirst(value.first.value());
  out.setLast(value.last.value());
  out.setCommit(value.commit.value());
  out.setApplied(value.applied.value());
  wire::write(out.initMembers(static_cast<unsigned>(value.members.size())), value.members);
  auto peers = out.initPeers(static_cast<unsigned>(value.peers.size()));
  for (unsigned i = 0; i < value.peers.size(); ++i) {
    peers[i].setNode(value.peers[i].node.value());
    peers[i].setMatch(value.peers[i].match.value());
    peers[i].setActive(value.peers[i].active);
  }
  out.setChunkCount(value.chunk_count);
  out.setChunkBytes(value.chunk_bytes);
  out.setChunksMissing(value.chunks_missing);
  out.setChunksCorrupt(value.chunks_corrupt);
  out.setSessionCount(value.session_count);
  out.setInodeCount(value.inode_count);
  out.setDiskTotalBytes(value.disk_total_bytes);
  out.setDiskFreeBytes(value.disk_free_bytes);
  out.setDiskFull(value.disk_full);
  out.setDiskLow(value.disk_low);
  out.setCommandLevel(value.command_level);
  out.setUptimeMs(value.uptime_ms);
  auto counters = out.initCounters(static_cast<unsigned>(value.counters.size()));
  unsigned i = 0;
  for (const auto& [name, count] : value.counters) {
    counters[i].setName(name);
    counters[i].setValue(count);
    ++i;
  }
  return writer.finish();
}
template <>
Result<NodeStatus> decode<NodeStatus>(std::string_view bytes) {
  return wire::decode_message<
      schema::NodeStatus>(as_bytes(bytes), [](schema::NodeStatus::Reader in) -> Result<NodeStatus> {
    NodeStatus value;
    value.node = NodeId(in.getNode());
    FM_TRY(value.address, wire::read_text(in.getAddress(), 300));
    FM_TRY(value.cluster, wire::read_cluster(in.getCluster()));
    FM_TRY(value.version, wire::read_text(in.getVersion(), 100));
    FM_TRY(value.role, wire::read_text(in.getRole(), 32));
    value.term = Term(in.getTerm());
    value.primary = NodeId(in.getPrimary());
    value.first = LogIndex(in.getFirst());
    value.last = LogIndex(in.getLast());
    value.commit = LogIndex(in.getCommit());
    value.applied = LogIndex(in.getApplied());
    FM_TRY(value.members, wire::read(in.getMembers()));
    if (in.getPeers().size() > wire::kMembersMax || in.getCounters().size() > 1000)
      return Errc::kBadMessage;
    for (const auto peer : in.getPeers())
      value.peers.push_back({NodeId(peer.getNode()), LogIndex(peer.getMatch()), peer.getActive()});
    value.chunk_count = in.getChunkCount();
    value.chunk_bytes = in.getChunkBytes();
    value.chunks_missing = in.getChunksMissing();
    value.chunks_corrupt = in.getChunksCorrupt();
    value.session_count = in.getSessionCount();
    value.inode_count = in.getInodeCount();
    value.disk_total_bytes = in.getDiskTotalBytes();
    value.disk_free_bytes = in.getDiskFreeBytes();
    value.disk_full = in.getDiskFull();
    value.disk_low = in.getDiskLow();
    value.command_level = in.getCommandLevel();
    value.uptime_ms = in.getUptimeMs();
    for (const auto counter : in.getCounters()) {
      FM_TRY(std::string name, wire::read_text(counter.getName(), 200));
      value.counters.emplace(std::move(name), counter.getValue());
    }
    return value;
  });
}

std::string encode(const DigestRequest& value) {
  wire::Writer<schema::Digest> writer;
  writer.root().setAt(value.at.value());
  return writer.finish();
}
template <>
Result<DigestRequest> decode<DigestRequest>(std::string_view bytes) {
  return wire::decode_message<schema::Digest>(
      as_bytes(bytes), [](schema::Digest::Reader in) -> Result<DigestRequest> {
        return DigestRequest{LogIndex(in.getAt())};
      });
}
std::string encode(const DigestReply& value) {
  wire::Writer<schema::Digest> writer;
  writer.root().setAt(value.at.value());
  writer.root().setDigest(value.digest);
  return writer.finish();
}
template <>
Result<DigestReply> decode<DigestReply>(std::string_view bytes) {
  return wire::decode_message<schema::Digest>(
      as_bytes(bytes), [](schema::Digest::Reader in) -> Result<DigestReply> {
        DigestReply value{LogIndex(in.getAt()), {}};
        FM_TRY(value.digest, wire::read_text(in.getDigest(), 200));
        return value;
      });
}

std::string encode(const TransferRequest& value) {
  wire::Writer<schema::TransferRequest> writer;
  writer.root().setTo(value.to.value());
  return writer.finish();
}
template <>
Result<TransferRequest> decode<TransferRequest>(std::string_view bytes) {
  return wire::decode_message<schema::TransferRequest>(
      as_bytes(bytes), [](schema::TransferRequest::Reader in) -> Result<TransferRequest> {
        return TransferRequest{NodeId(in.getTo())};
      });
}

std::string encode(const SessionList& value) {
  wire::Writer<schema::SessionList> writer;
  auto sessions = writer.root().initSessions(static_cast<unsigned>(value.sessions.size()));
  for (unsigned i = 0; i < value.sessions.size(); ++i) {
    const auto& session = value.sessions[i];
    sessions[i].setSession(session.session.value());
    sessions[i].setEpoch(session.epoch.value());
    sessions[i].setHost(session.host);
    sessions[i].setMountPoint(session.mount_point);
    sessions[i].setLeaseLeftMs(session.lease_left_ms);
    sessions[i].setLeases(session.leases);
  }
  return writer.finish();
}
template <>
Result<SessionList> decode<SessionList>(std::string_view bytes) {
  return wire::decode_message<schema::SessionList>(
      as_bytes(bytes), [](schema::SessionList::Reader in) -> Result<SessionList> {
        SessionList value;
        if (in.getSessions().size() > wire::kIdsMax) return Errc::kBadMessage;
        for (const auto session : in.getSessions()) {
          SessionList::Session read;
          read.session = SessionId(session.getSession());
          read.epoch = Epoch(session.getEpoch());
          FM_TRY(read.host, wire::read_text(session.getHost(), 255));
          FM_TRY(read.mount_point, wire::read_text(session.getMountPoint()));
          read.lease_left_ms = session.getLeaseLeftMs();
          read.leases = session.getLeases();
          value.sessions.push_back(std::move(read));
        }
        return value;
      });
}

}  // namespace fermata
