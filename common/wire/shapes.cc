#include "common/wire/shapes.h"

#include "common/wire/message_codec.h"

namespace fermata {

bool is_valid_name(std::string_view name) {
  return !name.empty() && name.size() <= wire::kNameMax && name != "." && name != ".." &&
         name.find('/') == std::string_view::npos && name.find('\0') == std::string_view::npos;
}

}  // namespace fermata

namespace fermata::wire {

Result<std::string> read_name(capnp::Data::Reader value) {
  if (value.size() > kNameMax) return Errc::kBadMessage;
  std::string name = text(value);
  if (!is_valid_name(name)) return Errc::kBadMessage;
  return name;
}

Result<std::string> read_text(capnp::Text::Reader value, std::size_t size_max) {
  if (value.size() > size_max) return Errc::kBadMessage;
  std::string result = text(value);
  if (result.find('\0') != std::string::npos) return Errc::kBadMessage;
  return result;
}

Result<std::string> read_bytes(capnp::Data::Reader value, std::size_t size_max) {
  if (value.size() > size_max) return Errc::kBadMessage;
  return text(value);
}

Result<ClusterId> read_cluster(capnp::Data::Reader value) {
  ClusterId id;
  if (value.size() != id.bytes.size()) return Errc::kBadMessage;
  std::memcpy(id.bytes.data(), value.begin(), id.bytes.size());
  return id;
}

Result<QuotaKind> read_quota_kind(std::uint8_t value) {
  if (value != static_cast<std::uint8_t>(QuotaKind::kTree) &&
      value != static_cast<std::uint8_t>(QuotaKind::kUser))
    return Errc::kUnsupported;
  return static_cast<QuotaKind>(value);
}

Result<LockSpace> read_lock_space(std::uint8_t value) {
  if (value != static_cast<std::uint8_t>(LockSpace::kPosix) &&
      value != static_cast<std::uint8_t>(LockSpace::kFlock))
    return Errc::kUnsupported;
  return static_cast<LockSpace>(value);
}

Result<FileType> read_file_type(std::uint8_t value) {
  if (value < static_cast<std::uint8_t>(FileType::kRegular) ||
      value > static_cast<std::uint8_t>(FileType::kBlockDevice))
    return Errc::kBadMessage;
  return static_cast<FileType>(value);
}

void write(schema::Timestamp::Builder out, const Timestamp& value) {
  out.setSeconds(value.seconds);
  out.setNanoseconds(value.nanoseconds);
}

namespace {

Result<Timestamp> make_timestamp(std::int64_t seconds, std::uint32_t nanoseconds) {
  if (nanoseconds >= 1'000'000'000) return Errc::kBadMessage;
  return Timestamp{seconds, nanoseconds};
}

}  // namespace

Result<Timestamp> read(schema::Timestamp::Reader in) {
  return make_timestamp(in.getSeconds(), in.getNanoseconds());
}

void write(schema::Attr::Builder out, const Attr& value) {
  out.setInode(value.inode.value());
  out.setType(static_cast<std::uint8_t>(value.type));
  out.setMode(value.mode);
  out.setNlink(value.nlink);
  out.setUid(value.uid);
  out.setGid(value.gid);
  out.setRdev(value.rdev);
  out.setSizeBytes(value.size_bytes);
  out.setAllocatedBytes(value.allocated_bytes);
  out.setAtimeSeconds(value.atime.seconds);
  out.setMtimeSeconds(value.mtime.seconds);
  out.setCtimeSeconds(value.ctime.seconds);
  out.setBtimeSeconds(value.btime.seconds);
  out.setAtimeNanoseconds(value.atime.nanoseconds);
  out.setMtimeNanoseconds(value.mtime.nanoseconds);
  out.setCtimeNanoseconds(value.ctime.nanoseconds);
  out.setBtimeNanoseconds(value.btime.nanoseconds);
  out.setVersion(value.version.value());
  out.setChange(value.change.value());
  out.setParent(value.parent.value());
  if (!value.symlink_target.empty()) out.setSymlinkTarget(blob(value.symlink_target));
  out.setNoXattrs(value.no_xattrs);
}

Result<Attr> read(schema::Attr::Reader in) {
  Attr attr;
  attr.inode = InodeId(in.getInode());
  FM_TRY(attr.type, read_file_type(in.getType()));
  attr.mode = in.getMode();
  if ((attr.mode & ~07777U) != 0) return Errc::kBadMessage;
  attr.nlink = in.getNlink();
  attr.uid = in.getUid();
  attr.gid = in.getGid();
  attr.rdev = in.getRdev();
  attr.size_bytes = in.getSizeBytes();
  attr.allocated_bytes = in.getAllocatedBytes();
  FM_TRY(attr.atime, make_timestamp(in.getAtimeSeconds(), in.getAtimeNanoseconds()));
  FM_TRY(attr.mtime, make_timestamp(in.getMtimeSeconds(), in.getMtimeNanoseconds()));
  FM_TRY(attr.ctime, make_timestamp(in.getCtimeSeconds(), in.getCtimeNanoseconds()));
  FM_TRY(attr.btime, make_timestamp(in.getBtimeSeconds(), in.getBtimeNanoseconds()));
  attr.version = Version(in.getVersion());
  attr.change = LogIndex(in.getChange());
  attr.parent = InodeId(in.getParent());
  FM_TRY(attr.symlink_target, read_bytes(in.getSymlinkTarget(), kSymlinkMax));
  attr.no_xattrs = in.getNoXattrs();
  return attr;
}

void write(schema::Credentials::Builder out, const Credentials& value) {
  out.setUid(value.uid);
  out.setGid(value.gid);
  if (value.groups.empty()) return;
  auto groups = out.initGroups(static_cast<unsigned>(value.groups.size()));
  for (unsigned i = 0; i < value.groups.size(); ++i) groups.set(i, value.groups[i]);
}

Result<Credentials> read(schema::Credentials::Reader in) {
  Credentials cred{in.getUid(), in.getGid(), {}};
  const auto groups = in.getGroups();
  if (groups.size() > kGroupsMax) return Errc::kBadMessage;
  for (const auto group : groups) cred.groups.push_back(group);
  return cred;
}

void write(schema::Patch::Builder out, const Patch& value) {
  out.setOffsetBytes(value.offset_bytes);
  out.setSizeBytes(value.size_bytes);
}

Result<std::vector<Patch>> read(capnp::List<schema::Patch>::Reader in) {
  if (in.size() > kPatchesMax) return Errc::kBadMessage;
  std::vector<Patch> patches;
  patches.reserve(in.size());
  for (const auto patch : in) {
    if (patch.getOffsetBytes() > static_cast<std::uint64_t>(INT64_MAX) - patch.getSizeBytes())
      return Errc::kBadMessage;
    patches.push_back({patch.getOffsetBytes(), patch.getSizeBytes()});
  }
  return patches;
}

void write(capnp::List<schema::WireMember>::Builder out, const std::vector<Member>& members) {
  for (unsigned i = 0; i < members.size(); ++i) {
    out[i].setId(members[i].id.value());
    out[i].setAddress(members[i].address);
    out[i].setVoter(members[i].voter);
  }
}

Result<std::vector<Member>> read(capnp::List<schema::WireMember>::Reader in) {
  if (in.size() > kMembersMax) return Errc::kBadMessage;
  std::vector<Member> members;
  for (const auto member : in) {
    FM_TRY(std::string address, read_text(member.getAddress(), 300));
    members.push_back({NodeId(member.getId()), std::move(address), member.getVoter()});
  }
  return members;
}

std::string pack_chunk_ids(const std::vector<ChunkId>& ids) {
  std::string out;
  out.reserve(ids.size() * ChunkId::kSizeBytes);
  for (const ChunkId& id : ids) {
    append_le(out, id.algorithm);
    out.append(reinterpret_cast<const char*>(id.digest.data()), id.digest.size());
  }
  return out;
}

Result<std::vector<ChunkId>> unpack_chunk_ids(capnp::Data::Reader in, std::size_t count_max) {
  if (in.size() % ChunkId::kSizeBytes != 0 || in.size() / ChunkId::kSizeBytes > count_max)
    return Errc::kBadMessage;
  std::vector<ChunkId> ids(in.size() / ChunkId::kSizeBytes);
  const kj::byte* at = in.begin();
  for (ChunkId& id : ids) {
    id.algorithm = *at;
    if (id.algorithm != ChunkId::kSha256) return Errc::kBadMessage;
    std::memcpy(id.digest.data(), at + 1, id.digest.size());
    at += ChunkId::kSizeBytes;
  }
  return ids;
}

}  // namespace fermata::wire
