#include "common/wire/command_codec.h"

#include "common/wire/shapes.h"
#include "schema/command.capnp.h"

namespace fermata {
namespace {

using wire::blob;

constexpr std::size_t kPayloadMax = 16U << 20;

struct BodyWriter {
  schema::Command::Builder out;

  void operator()(const BootstrapCommand& body) {
    auto b = out.initBootstrap();
    b.setCluster(blob(body.cluster.bytes.data(), body.cluster.bytes.size()));
    b.setRootUid(body.root_uid);
    b.setRootGid(body.root_gid);
    b.setRootMode(body.root_mode);
  }
  void operator()(const OpenSessionCommand& body) {
    auto b = out.initOpenSession();
    b.setClientId(body.client_id);
    b.setHost(body.host);
    b.setMountPoint(body.mount_point);
    b.setLeaseMs(body.lease_ms);
  }
  void operator()(const EndSessionsCommand& body) {
    wire::write_ids(out.initEndSessions(static_cast<unsigned>(body.sessions.size())),
                    body.sessions);
  }
  void operator()(const MutateCommand& body) {
    auto b = out.initMutate();
    wire::write(b.initOp(), body.op);
    if (!body.payload.empty()) b.setPayload(blob(body.payload));
    b.setExpectedInode(body.expected_inode.value());
    b.setExpectedTarget(body.expected_target.value());
    if (!body.open_in.empty())
      wire::write_ids(b.initOpenIn(static_cast<unsigned>(body.open_in.size())), body.open_in);
    b.setNoHistory(body.no_history);
  }
  void operator()(const DigestCommand&) { out.setDigest(); }
  void operator()(const PruneHistoryCommand& body) {
    auto b = out.initPruneHistory();
    b.setUpTo(body.up_to.value());
    b.setKeysMax(body.keys_max);
  }
  void operator()(const DropChunksCommand& body) {
    out.setDropChunks(blob(wire::pack_chunk_ids(body.chunks)));
  }
  void operator()(const FoldPatchesCommand& body) {
    auto b = out.initFoldPatches();
    b.setInode(body.inode.value());
    auto chunks = b.initChunks(static_cast<unsigned>(body.chunks.size()));
    for (unsigned i = 0; i < body.chunks.size(); ++i) write(chunks[i], body.chunks[i]);
  }
  void operator()(const CountQuotaCommand& body) {
    auto b = out.initCountQuota();
    b.setKind(static_cast<std::uint8_t>(body.kind));
    b.setId(body.id);
    b.setRecordsMax(body.records_max);
  }
  static void write(schema::Command::FoldedChunk::Builder b,
                    const FoldPatchesCommand::Chunk& chunk) {
    b.setIndex(chunk.index);
    if (chunk.from) b.setFrom(blob(wire::pack_chunk_ids({chunk.from})));
    b.setTo(blob(wire::pack_chunk_ids({chunk.to})));
    auto patches = b.initPatches(static_cast<unsigned>(chunk.patches.size()));
    for (unsigned i = 0; i < chunk.patches.size(); ++i) {
      patches[i].setIndex(chunk.patches[i].index.value());
      patches[i].setNumber(chunk.patches[i].number);
      patches[i].setSince(chunk.patches[i].since.value());
    }
  }
};

Result<BootstrapCommand> read_bootstrap(schema::Command::Bootstrap::Reader in) {
  BootstrapCommand body;
  FM_TRY(body.cluster, wire::read_cluster(in.getCluster()));
  body.root_uid = in.getRootUid();
  body.root_gid = in.getRootGid();
  body.root_mode = in.getRootMode();
  return body;
}
Result<OpenSessionCommand> read_open_session(schema::Command::OpenSession::Reader in) {
  OpenSessionCommand body;
  FM_TRY(body.client_id, wire::read_text(in.getClientId(), 64));
  FM_TRY(body.host, wire::read_text(in.getHost(), 255));
  FM_TRY(body.mount_point, wire::read_text(in.getMountPoint()));
  body.lease_ms = in.getLeaseMs();
  return body;
}
Result<MutateCommand> read_mutate(schema::Command::Mutate::Reader in) {
  MutateCommand body;
  FM_TRY(body.op, wire::read(in.getOp()));
  FM_TRY(body.payload, wire::read_bytes(in.getPayload(), kPayloadMax));
  body.expected_inode = InodeId(in.getExpectedInode());
  body.expected_target = InodeId(in.getExpectedTarget());
  FM_TRY(body.open_in, wire::read_ids<SessionId>(in.getOpenIn()));
  body.no_history = in.getNoHistory();
  return body;
}
Result<FoldPatchesCommand::Chunk> read_folded(schema::Command::FoldedChunk::Reader in) {
  FoldPatchesCommand::Chunk chunk;
  chunk.index = in.getIndex();
  FM_TRY(const auto from, wire::unpack_chunk_ids(in.getFrom(), 1));
  FM_TRY(const auto to, wire::unpack_chunk_ids(in.getTo(), 1));
  if (to.empty() || in.getPatches().size() > wire::kPatchesMax) return Errc::kBadMessage;
  if (!from.empty()) chunk.from = from.front();
  chunk.to = to.front();
  for (const auto patch : in.getPatches()) {
    chunk.patches.push_back(
        {LogIndex(patch.getIndex()), patch.getNumber(), LogIndex(patch.getSince())});
  }
  return chunk;
}
Result<FoldPatchesCommand> read_fold(schema::Command::FoldPatches::Reader in) {
  FoldPatchesCommand body;
  body.inode = InodeId(in.getInode());
  if (in.getChunks().size() > wire::kChunkIdsMax) return Errc::kBadMessage;
  for (const auto each : in.getChunks()) {
    FM_TRY(auto chunk, read_folded(each));
    body.chunks.push_back(std::move(chunk));
  }
  return body;
}

Result<Command> read_command(schema::Command::Reader in) {
  Command command;
  command.volume = VolumeId(in.getVolume());
  command.session = SessionId(in.getSession());
  command.epoch = Epoch(in.getEpoch());
  command.sequence = Sequence(in.getSequence());
  command.answered_below = Sequence(in.getAnsweredBelow());
  FM_TRY(command.time, wire::read(in.getTime()));
  FM_TRY(command.cred, wire::read(in.getCred()));
  switch (in.which()) {
    case schema::Command::BOOTSTRAP: {
      FM_TRY(command.body, read_bootstrap(in.getBootstrap()));
      return command;
    }
    case schema::Command::OPEN_SESSION: {
      FM_TRY(command.body, read_open_session(in.getOpenSession()));
      return command;
    }
    case schema::Command::END_SESSIONS: {
      FM_TRY(auto sessions, wire::read_ids<SessionId>(in.getEndSessions()));
      command.body = EndSessionsCommand{std::move(sessions)};
      return command;
    }
    case schema::Command::MUTATE: {
      FM_TRY(command.body, read_mutate(in.getMutate()));
      return command;
    }
    case schema::Command::DIGEST:
      command.body = DigestCommand{};
      return command;
    case schema::Command::PRUNE_HISTORY:
      command.body = PruneHistoryCommand{LogIndex(in.getPruneHistory().getUpTo()),
                                         in.getPruneHistory().getKeysMax()};
      return command;
    case schema::Command::DROP_CHUNKS: {
      FM_TRY(auto chunks, wire::unpack_chunk_ids(in.getDropChunks(), wire::kIdsMax));
      command.body = DropChunksCommand{std::move(chunks)};
      return command;
    }
    case schema::Command::COUNT_QUOTA: {
      CountQuotaCommand body;
      FM_TRY(body.kind, wire::read_quota_kind(in.getCountQuota().getKind()));
      body.id = in.getCountQuota().getId();
      body.records_max = in.getCountQuota().getRecordsMax();
      command.body = body;
      return command;
    }
    case schema::Command::FOLD_PATCHES: {
      FM_TRY(command.body, read_fold(in.getFoldPatches()));
      return command;
    }
  }
  return Errc::kUnsupported;
}

}  // namespace

std::string encode(const Command& command) {
  wire::Writer<schema::Command> writer;
  auto out = writer.root();
  out.setVolume(command.volume.value());
  out.setSession(command.session.value());
  out.setEpoch(command.epoch.value());
  out.setSequence(command.sequence.value());
  out.setAnsweredBelow(command.answered_below.value());
  wire::write(out.initTime(), command.time);
  wire::write(out.initCred(), command.cred);
  std::visit(BodyWriter{out}, command.body);
  return writer.finish();
}

Result<Command> decode_command(ByteView bytes) {
  return wire::decode_message<schema::Command>(bytes, read_command);
}

std::string encode(const CommandResult& result) {
  wire::Writer<schema::CommandResult> writer;
  auto out = writer.root();
  out.setError(result.error);
  out.setInode(result.inode.value());
  out.setRemoved(result.removed.value());
  out.setSession(result.session.value());
  out.setEpoch(result.epoch.value());
  out.setVersion(result.version.value());
  out.setCount(result.count);
  return writer.finish();
}

Result<CommandResult> decode_command_result(ByteView bytes) {
  return wire::decode_message<schema::CommandResult>(
      bytes, [](schema::CommandResult::Reader in) -> Result<CommandResult> {
        CommandResult result;
        result.error = in.getError();
        result.inode = InodeId(in.getInode());
        result.removed = InodeId(in.getRemoved());
        result.session = SessionId(in.getSession());
        result.epoch = Epoch(in.getEpoch());
        result.version = Version(in.getVersion());
        result.count = in.getCount();
        return result;
      });
}

}  // namespace fermata
