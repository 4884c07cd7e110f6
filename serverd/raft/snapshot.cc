#include "serverd/raft/snapshot.h"

#include <algorithm>

#include "common/base/checksum.h"
#include "common/wire/raft_codec.h"

namespace fermata::serverd {
namespace {

constexpr std::string_view kIncoming = "incoming-";
constexpr std::uint64_t kNoteBytesMax = std::uint64_t{32} << 20;

std::string hex(std::uint64_t id) {
  const std::uint64_t big_endian = __builtin_bswap64(id);
  return to_hex(reinterpret_cast<const std::uint8_t*>(&big_endian), sizeof big_endian);
}

/// Size and CRC of a whole file, a piece at a time.
Result<SnapshotDescriptor::File> measure(const File& file, std::string name) {
  SnapshotDescriptor::File result{.name = std::move(name), .size_bytes = 0, .crc32c = 0};
  Bytes piece(SnapshotStore::kPieceBytes);
  for (;;) {
    FM_TRY(const std::size_t count, file.read_at(result.size_bytes, piece));
    if (count == 0) return result;
    result.crc32c = crc32c(ByteView(piece).first(count), result.crc32c);
    result.size_bytes += count;
  }
}

}  // namespace

SnapshotStore::SnapshotStore(Disk& disk, std::string dir) : disk_(disk), dir_(std::move(dir)) {}

std::string SnapshotStore::path_of(std::uint64_t id) const { return dir_ + "/" + hex(id); }
std::string SnapshotStore::incoming_path(std::uint64_t id) const {
  return dir_ + "/" + std::string(kIncoming) + hex(id);
}

Status SnapshotStore::open() {
  FM_CHECK(disk_.make_dirs(dir_));
  FM_CHECK(disk_.sync_dir(parent_of(dir_)));
  FM_TRY(const auto names, disk_.list(dir_));
  for (const std::string& name : names) {
    if (!name.starts_with(kIncoming) && name != "installing")
      FM_CHECK(disk_.remove_all(dir_ + "/" + name));
  }
  return {};
}

Result<SnapshotDescriptor::File> SnapshotStore::describe(const std::string& dir,
                                                         const std::string& name) {
  FM_TRY(const auto file, disk_.open(dir + "/" + name, Disk::Mode::kRead));
  return measure(*file, name);
}

Result<SnapshotDescriptor> SnapshotStore::make(StateMachine& machine, std::uint64_t id) {
  const std::string path = path_of(id);
  SnapshotDescriptor snapshot;
  snapshot.id = id;
  FM_TRY(snapshot.index, machine.checkpoint(path));
  FM_TRY(const auto names, disk_.list(path));
  for (const std::string& name : names) {
    FM_TRY(auto file, describe(path, name));
    snapshot.files.push_back(std::move(file));
  }
  return snapshot;
}

Status SnapshotStore::remove(std::uint64_t id) { return disk_.remove_all(path_of(id)); }

Result<Buffer> SnapshotStore::read(std::uint64_t id, const std::string& file,
                                   std::uint64_t offset_bytes, std::uint32_t size_bytes) {
  if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos) {
    return std::errc::invalid_argument;
  }
  FM_TRY(const auto from, disk_.open(path_of(id) + "/" + file, Disk::Mode::kRead));
  Buffer piece = Buffer::allocate(std::min(size_bytes, kPieceBytes));
  FM_TRY(const std::size_t count, from->read_at(offset_bytes, piece.mutable_view()));
  return piece.slice(0, count);
}

Status SnapshotStore::remove_incoming(const std::string& but) {
  FM_TRY(const auto names, disk_.list(dir_));
  for (const std::string& name : names) {
    if (name.starts_with(kIncoming) && dir_ + "/" + name != but)
      FM_CHECK(disk_.remove_all(dir_ + "/" + name));
  }
  return {};
}

Status SnapshotStore::begin_fetch(const SnapshotDescriptor& snapshot) {
  const std::string path = incoming_path(snapshot.id);
  FM_CHECK(remove_incoming(path));
  FM_CHECK(disk_.make_dirs(path));
  FM_CHECK(disk_.sync_dir(dir_));
  // Files that this snapshot does not have: another node's snapshot once had the same id.
  FM_TRY(const auto names, disk_.list(path));
  for (const std::string& name : names) {
    const bool known =
        std::any_of(snapshot.files.begin(), snapshot.files.end(),
                    [&](const SnapshotDescriptor::File& file) { return file.name == name; });
    if (!known) FM_CHECK(disk_.remove_all(path + "/" + name));
  }
  return {};
}

Result<std::uint64_t> SnapshotStore::fetched_bytes(std::uint64_t id,
                                                   const SnapshotDescriptor::File& file) {
  FM_TRY(const auto part, disk_.open(incoming_path(id) + "/" + file.name, Disk::Mode::kCreate));
  FM_TRY(const std::uint64_t size, part->size_bytes());
  if (size <= file.size_bytes) return size;
  FM_CHECK(part->truncate(0));
  return std::uint64_t{0};
}

Status SnapshotStore::write(std::uint64_t id, const std::string& file, std::uint64_t offset_bytes,
                            ByteView bytes) {
  FM_TRY(const auto part, disk_.open(incoming_path(id) + "/" + file, Disk::Mode::kReadWrite));
  return part->write_at(offset_bytes, bytes);
}

Status SnapshotStore::check_file(std::uint64_t id, const SnapshotDescriptor::File& file) {
  const std::string path = incoming_path(id) + "/" + file.name;
  FM_TRY(const auto part, disk_.open(path, Disk::Mode::kReadWrite));
  FM_TRY(const auto found, measure(*part, file.name));
  if (found == file) {
    const Status synced = part->sync();
    // What a failed sync was to write may be lost, and a second one would not say so: fetch anew.
    if (!synced) (void)disk_.remove(path);
    return synced;
  }
  FM_CHECK(disk_.remove(path));
  return Errc::kHashMismatch;
}

Status SnapshotStore::begin_install(const SnapshotDescriptor& snapshot) {
  FM_CHECK(disk_.sync_dir(incoming_path(snapshot.id)));
  return write_file_atomically(disk_, note_path(), as_bytes(encode(snapshot)));
}

Result<std::optional<SnapshotDescriptor>> SnapshotStore::interrupted_install() {
  std::optional<SnapshotDescriptor> found;
  FM_TRY(const bool there, disk_.exists(note_path()));
  if (!there) return found;
  FM_TRY(const auto bytes, read_file(disk_, note_path(), kNoteBytesMax));
  FM_TRY(found, decode_snapshot_descriptor(bytes));
  return found;
}

Status SnapshotStore::end_install() {
  FM_TRY(const bool there, disk_.exists(note_path()));
  if (there) FM_CHECK(disk_.remove(note_path()));
  FM_CHECK(remove_incoming(""));
  return disk_.sync_dir(dir_);
}

}  // namespace fermata::serverd
