// Snapshots as files: those this node made and serves, and the one it is fetching.
//
//   DIR/ID/            a checkpoint of the state machine, ID in hexadecimal
//   DIR/incoming-ID/   files fetched so far, possibly in part; kept over restarts, so that a fetch
//   goes on
//                      where it stopped. Every file is checked against its CRC when it is complete.
//   DIR/installing     the descriptor of a snapshot that is being installed: tells a restart that
//   the state
//                      machine may already be ahead of the log
//
// Thread-safety: none of its own; every call blocks. The node calls one at a time per directory.
#pragma once

#include <optional>
#include <string>

#include "common/base/buffer.h"
#include "common/env/disk.h"
#include "serverd/raft/replicated_log.h"

namespace fermata::serverd {

class SnapshotStore {
 public:
  static constexpr std::uint32_t kPieceBytes = 1U << 20;

  SnapshotStore(Disk& disk, std::string dir);

  /// Creates the directory, removes what an earlier run had made (never what it was fetching).
  Status open();

  /// A checkpoint of `machine` under `id`, described except for term and membership.
  Result<SnapshotDescriptor> make(StateMachine& machine, std::uint64_t id);
  Status remove(std::uint64_t id);
  /// At most kPieceBytes of a file; fewer only at its end. Errors: ENOENT; EINVAL; EIO.
  Result<Buffer> read(std::uint64_t id, const std::string& file, std::uint64_t offset_bytes,
                      std::uint32_t size_bytes);

  /// Makes room for fetching `snapshot`; drops what was fetched of any other.
  Status begin_fetch(const SnapshotDescriptor& snapshot);
  /// How much of the file is there already.
  Result<std::uint64_t> fetched_bytes(std::uint64_t id, const SnapshotDescriptor::File& file);
  Status write(std::uint64_t id, const std::string& file, std::uint64_t offset_bytes,
               ByteView bytes);
  /// Checks and syncs a complete file. kHashMismatch: it was removed, fetch it again.
  Status check_file(std::uint64_t id, const SnapshotDescriptor::File& file);
  /// Every file is complete: makes their names durable and notes that the install begins.
  Status begin_install(const SnapshotDescriptor& snapshot);
  std::string incoming_path(std::uint64_t id) const;
  /// The install that a crash interrupted.
  Result<std::optional<SnapshotDescriptor>> interrupted_install();
  /// The log stands at the snapshot: forgets the note and what is left of the files.
  Status end_install();

 private:
  std::string path_of(std::uint64_t id) const;
  std::string note_path() const { return dir_ + "/installing"; }
  Status remove_incoming(const std::string& but);
  Result<SnapshotDescriptor::File> describe(const std::string& dir, const std::string& name);

  Disk& disk_;
  const std::string dir_;
};

}  // namespace fermata::serverd
