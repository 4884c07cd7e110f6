// The replicated commands: what the primary puts into the log and every node applies.
// schema/command.capnp is the form in the log, so it outlives programs: see the rule for its
// evolution there.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "common/wire/messages.h"

namespace fermata {

/// The first command of a cluster's life: makes the root directory.
struct BootstrapCommand {
  ClusterId cluster;
  std::uint32_t root_uid = 0, root_gid = 0, root_mode = 0755;
  bool operator==(const BootstrapCommand&) const = default;
};
/// Registers a session; one with the same client id that lives is the answer instead.
struct OpenSessionCommand {
  std::string client_id, host, mount_point;
  std::uint32_t lease_ms = 0;  ///< of the session's lease; 0: what each primary has configured
  bool operator==(const OpenSessionCommand&) const = default;
};
/// Ends sessions (lease over, or closed by the client): their orphans are released, their later
/// commands fenced.
struct EndSessionsCommand {
  std::vector<SessionId> sessions;
  bool operator==(const EndSessionsCommand&) const = default;
};
/// A client's mutation. The primary has called back the leases of what it read; apply checks that
/// it still is so.
struct MutateCommand {
  Mutation op;
  std::string payload;  ///< of the request
  /// What the names led to when the primary looked: another one at apply is kRetry. None: no such
  /// entry.
  InodeId
      expected_inode;  ///< unlink, rmdir, rename: of the (old) name; create: of the existing entry
  InodeId expected_target;         ///< rename: of the new name
  std::vector<SessionId> open_in;  ///< sessions that have the inode open that loses its last link
  /// What it replaces is not kept, and all history before is given up: room is short.
  bool no_history = false;
  bool operator==(const MutateCommand&) const = default;
};
/// Every node digests its state at this index.
struct DigestCommand {
  bool operator==(const DigestCommand&) const = default;
};
/// Forgets history of indexes up to this one; chunks that nothing refers to any more become
/// garbage.
struct PruneHistoryCommand {
  LogIndex up_to;
  std::uint32_t keys_max = 0;  ///< bound of work in one command
  bool operator==(const PruneHistoryCommand&) const = default;
};
/// Deletes chunks that nothing refers to. Those that came to be referred to again stay.
struct DropChunksCommand {
  std::vector<ChunkId> chunks;
  bool operator==(const DropChunksCommand&) const = default;
};
/// Puts chunks in the place of older ones and the patches over them: the content of the file, and
/// its version, stay what they are. The chunks are on a majority's disks. One whose base or whose
/// patches are no longer the ones named here is left alone, whatever becomes of the others.
struct FoldPatchesCommand {
  /// A patch as kept: its key, and when its bytes were last written (cut by a commit: later).
  struct PatchName {
    LogIndex index;
    std::uint32_t number = 0;
    LogIndex since;
    bool operator==(const PatchName&) const = default;
  };
  struct Chunk {
    std::uint32_t index = 0;
    ChunkId from;                    ///< none: a hole
    ChunkId to;                      ///< `from` with `patches` laid over it
    std::vector<PatchName> patches;  ///< the oldest over this chunk; later ones stay
    bool operator==(const Chunk&) const = default;
  };
  InodeId inode;
  std::vector<Chunk> chunks;
  bool operator==(const FoldPatchesCommand&) const = default;
};

/// A part of what setting or removing a quota leaves to be done: counts, or lets go of, so many
/// records.
struct CountQuotaCommand {
  QuotaKind kind = QuotaKind::kTree;
  std::uint64_t id = 0;  ///< as SetQuotaOp's
  std::uint32_t records_max = 0;
  bool operator==(const CountQuotaCommand&) const = default;
};

struct Command {
  VolumeId volume;
  SessionId session;  ///< none for the primary's own
  Epoch epoch;
  Sequence sequence;
  Sequence answered_below;
  Timestamp time;  ///< the primary's clock: becomes ctime and "now"
  Credentials cred;
  std::variant<BootstrapCommand, OpenSessionCommand, EndSessionsCommand, MutateCommand,
               DigestCommand, PruneHistoryCommand, DropChunksCommand, FoldPatchesCommand,
               CountQuotaCommand>
      body;
};

/// What this program applies that older ones do not, or otherwise: a level has all of those below
/// it. It is proposed once every member of the group knows it (schema/README.md).
enum CommandLevel : std::uint32_t {
  kLevelLockDelegation = 1,        ///< LockOp::delegate, ReturnLocksOp
  kLevelExclusiveDirectories = 3,  ///< MakeFileOp, ReserveInodesOp; CreateOp::set was not in 2
};
inline constexpr CommandLevel kCommandLevel = kLevelExclusiveDirectories;

/// What apply answers; also what the duplicate-request table keeps, so it stays small.
struct CommandResult {
  std::uint32_t error = 0;  ///< to_wire() form; 0 is success
  InodeId inode;            ///< created, linked, committed, changed, moved
  InodeId removed;          ///< lost a name; exchanged: the other inode
  SessionId session;        ///< OpenSession
  Epoch epoch;              ///< OpenSession
  Version version;          ///< Commit
  std::uint64_t count = 0;  ///< PruneHistory: keys done; DropChunks: dropped; FoldPatches: chunks
                            ///< put; CountQuota: records looked at; Lock: 1: delegated
  bool operator==(const CommandResult&) const = default;
};

}  // namespace fermata
