// The union of mutations, which requests and log commands share.
#include "common/base/limits.h"
#include "common/wire/shapes.h"

namespace fermata::wire {
namespace {

using schema::Mutation;

void write(schema::OptionalTimestamp::Builder out, const std::optional<Timestamp>& value) {
  if (value) wire::write(out.initSome(), *value);
}
void write(schema::OptionalUInt32::Builder out, const std::optional<std::uint32_t>& value) {
  if (value) out.setSome(*value);
}
Result<std::optional<Timestamp>> read_optional(schema::OptionalTimestamp::Reader in) {
  if (!in.isSome()) return std::optional<Timestamp>{};
  FM_TRY(const Timestamp value, read(in.getSome()));
  return std::optional(value);
}
std::optional<std::uint32_t> read_optional(schema::OptionalUInt32::Reader in) {
  return in.isSome() ? std::optional(in.getSome()) : std::nullopt;
}

void write(Mutation::SetAttr::Builder b, const SetAttrOp& op) {
  b.setInode(op.inode.value());
  write(b.initMode(), op.mode);
  write(b.initUid(), op.uid);
  write(b.initGid(), op.gid);
  write(b.initAtime(), op.atime);
  write(b.initMtime(), op.mtime);
  b.setAtimeNow(op.atime_now);
  b.setMtimeNow(op.mtime_now);
  b.setClearSuidSgid(op.clear_suid_sgid);
  b.setWritten(op.written);
  b.setOpened(op.opened.value());
}
/// What a file that was made under a reserved id brings with it. Create, CreateUnnamed.
template <class Builder, class Op>
void write_made(Builder b, const Op& op) {
  if (!op.inode) return;
  b.setInode(op.inode.value());
  wire::write(b.initMade(), op.made);
  if (!op.set) return;
  write(b.initSet(), *op.set);
  wire::write(b.initChanged(), op.changed);
}
void write(Mutation::Create::Builder b, const CreateOp& op) {
  b.setParent(op.parent.value());
  b.setName(blob(op.name));
  b.setType(static_cast<std::uint8_t>(op.type));
  b.setMode(op.mode);
  b.setUid(op.uid);
  b.setGid(op.gid);
  b.setRdev(op.rdev);
  if (!op.symlink_target.empty()) b.setSymlinkTarget(blob(op.symlink_target));
  b.setExclusive(op.exclusive);
  b.setUmask(op.umask);
  write_made(b, op);
}
void write(Mutation::Commit::Builder b, const CommitOp& op) {
  b.setInode(op.inode.value());
  b.setBase(op.base.value());
  b.setKind(static_cast<std::uint8_t>(op.kind));
  b.setWhole(op.whole);
  b.setReplaceNewer(op.replace_newer);
  b.setSizeBytes(op.size_bytes);
  if (!op.patches.empty()) {
    auto patches = b.initPatches(static_cast<unsigned>(op.patches.size()));
    for (unsigned i = 0; i < op.patches.size(); ++i) wire::write(patches[i], op.patches[i]);
  }
  wire::write(b.initMtime(), op.mtime);
  write(b.initAtime(), op.atime);
  b.setClearSuidSgid(op.clear_suid_sgid);
  if (!op.path_hint.empty()) b.setPathHint(blob(op.path_hint));
  b.setOpened(op.opened.value());
}
void write_held(schema::Mutation::ReturnLocks::Held::Builder out, const HeldLock& value) {
  out.setOwner(value.owner.number);
  out.setFirst(value.range.first);
  out.setLast(value.range.last);
  out.setType(static_cast<std::uint8_t>(value.type));
  out.setPid(value.pid);
}

struct OpWriter {
  schema::Mutation::Builder out;

  void operator()(const CreateOp& op) { write(out.initCreate(), op); }
  void operator()(const MakeFileOp& op) {
    auto b = out.initMakeFile();
    write(b.initCreate(), op.create);
    write(b.initContent(), op.content);
  }
  void operator()(const ReserveInodesOp& op) { out.initReserveInodes().setCount(op.count); }
  void operator()(const CreateUnnamedOp& op) {
    auto b = out.initCreateUnnamed();
    b.setParent(op.parent.value());
    b.setMode(op.mode);
    b.setUid(op.uid);
    b.setGid(op.gid);
    b.setUmask(op.umask);
    b.setLinkable(op.linkable);
    write_made(b, op);
  }
  void operator()(const LinkOp& op) {
    auto b = out.initLink();
    b.setInode(op.inode.value());
    b.setParent(op.parent.value());
    b.setName(blob(op.name));
  }
  void operator()(const UnlinkOp& op) {
    auto b = out.initUnlink();
    b.setParent(op.parent.value());
    b.setName(blob(op.name));
    b.setOpenHere(op.open_here);
  }
  void operator()(const RmdirOp& op) {
    auto b = out.initRmdir();
    b.setParent(op.parent.value());
    b.setName(blob(op.name));
  }
  void operator()(const RenameOp& op) {
    auto b = out.initRename();
    b.setParent(op.parent.value());
    b.setName(blob(op.name));
    b.setNewParent(op.new_parent.value());
    b.setNewName(blob(op.new_name));
    b.setFlags(op.flags);
    b.setTargetOpenHere(op.target_open_here);
  }
  void operator()(const SetAttrOp& op) { write(out.initSetAttr(), op); }
  void operator()(const SetXattrOp& op) {
    auto b = out.initSetXattr();
    b.setInode(op.inode.value());
    b.setName(blob(op.name));
    b.setValue(blob(op.value));
    b.setFlags(op.flags);
    b.setClearSgid(op.clear_sgid);
  }
  void operator()(const RemoveXattrOp& op) {
    auto b = out.initRemoveXattr();
    b.setInode(op.inode.value());
    b.setName(blob(op.name));
  }
  void operator()(const CommitOp& op) { write(out.initCommit(), op); }
  void operator()(const ReleaseOrphansOp& op) {
    write_ids(out.initReleaseOrphans().initInodes(static_cast<unsigned>(op.inodes.size())),
              op.inodes);
  }
  void operator()(const LockOp& op) { wire::write(out.initLock(), op); }
  void operator()(const ReturnLocksOp& op) {
    auto b = out.initReturnLocks();
    b.setInode(op.inode.value());
    b.setSpace(static_cast<std::uint8_t>(op.space));
    auto held = b.initHeld(static_cast<unsigned>(op.held.size()));
    for (unsigned i = 0; i < op.held.size(); ++i) write_held(held[i], op.held[i]);
  }
  void operator()(const SetQuotaOp& op) {
    auto b = out.initSetQuota();
    b.setKind(static_cast<std::uint8_t>(op.kind));
    b.setId(op.id);
    b.setRemove(op.remove);
    b.setSetsBytes(op.bytes_max.has_value());
    b.setBytesMax(op.bytes_max.value_or(0));
    b.setSetsInodes(op.inodes_max.has_value());
    b.setInodesMax(op.inodes_max.value_or(0));
  }
  void operator()(const NoteReadsOp& op) {
    auto reads = out.initNoteReads().initReads(static_cast<unsigned>(op.reads.size()));
    for (unsigned i = 0; i < op.reads.size(); ++i) {
      reads[i].setInode(op.reads[i].inode.value());
      wire::write(reads[i].initTime(), op.reads[i].time);
    }
  }
};

Result<SetAttrOp> read_setattr(Mutation::SetAttr::Reader in) {
  SetAttrOp op;
  op.inode = InodeId(in.getInode());
  op.mode = read_optional(in.getMode());
  if (op.mode && (*op.mode & ~07777U) != 0) return Errc::kBadMessage;
  op.uid = read_optional(in.getUid());
  op.gid = read_optional(in.getGid());
  FM_TRY(op.atime, read_optional(in.getAtime()));
  FM_TRY(op.mtime, read_optional(in.getMtime()));
  op.atime_now = in.getAtimeNow();
  op.mtime_now = in.getMtimeNow();
  op.clear_suid_sgid = in.getClearSuidSgid();
  op.written = in.getWritten();
  op.opened = LogIndex(in.getOpened());
  return op;
}
template <class Reader, class Op>
Status read_made(Reader in, Op& op) {
  FM_TRY(op.made, read(in.getMade()));
  if (!in.hasSet()) return {};
  FM_TRY(op.set, read_setattr(in.getSet()));
  FM_TRY(op.changed, read(in.getChanged()));
  const SetAttrOp& set = *op.set;
  const bool of_commits = set.written || set.clear_suid_sgid || set.opened;
  const bool own = set.inode == op.inode && !set.atime_now && !set.mtime_now && !of_commits;
  return own ? Status() : Status(Errc::kBadMessage);
}
Result<CreateOp> read_create(Mutation::Create::Reader in) {
  CreateOp op;
  op.parent = InodeId(in.getParent());
  FM_TRY(op.name, read_name(in.getName()));
  FM_TRY(op.type, read_file_type(in.getType()));
  op.mode = in.getMode();
  if ((op.mode & ~07777U) != 0) return Errc::kBadMessage;
  op.uid = in.getUid();
  op.gid = in.getGid();
  op.rdev = in.getRdev();
  FM_TRY(op.symlink_target, read_bytes(in.getSymlinkTarget(), kSymlinkMax));
  if ((op.type == FileType::kSymlink) == op.symlink_target.empty()) return Errc::kBadMessage;
  if (op.symlink_target.find('\0') != std::string::npos) return Errc::kBadMessage;
  op.exclusive = in.getExclusive();
  op.umask = in.getUmask() & 0777U;
  op.inode = InodeId(in.getInode());
  if (!op.inode) return op;
  if (op.type != FileType::kRegular || !op.exclusive) return Errc::kBadMessage;
  FM_CHECK(read_made(in, op));
  return op;
}
Result<CreateUnnamedOp> read_create_unnamed(Mutation::CreateUnnamed::Reader in) {
  CreateUnnamedOp op;
  op.parent = InodeId(in.getParent());
  op.mode = in.getMode();
  if ((op.mode & ~07777U) != 0) return Errc::kBadMessage;
  op.uid = in.getUid();
  op.gid = in.getGid();
  op.umask = in.getUmask() & 0777U;
  op.linkable = in.getLinkable();
  op.inode = InodeId(in.getInode());
  if (!op.inode) return op;
  FM_CHECK(read_made(in, op));
  return op;
}
Result<LinkOp> read_link(Mutation::Link::Reader in) {
  LinkOp op{InodeId(in.getInode()), InodeId(in.getParent()), {}};
  FM_TRY(op.name, read_name(in.getName()));
  return op;
}
Result<UnlinkOp> read_unlink(Mutation::Unlink::Reader in) {
  UnlinkOp op{InodeId(in.getParent()), {}, in.getOpenHere()};
  FM_TRY(op.name, read_name(in.getName()));
  return op;
}
Result<RmdirOp> read_rmdir(Mutation::Rmdir::Reader in) {
  RmdirOp op{InodeId(in.getParent()), {}};
  FM_TRY(op.name, read_name(in.getName()));
  return op;
}
Result<RenameOp> read_rename(Mutation::Rename::Reader in) {
  RenameOp op;
  op.parent = InodeId(in.getParent());
  FM_TRY(op.name, read_name(in.getName()));
  op.new_parent = InodeId(in.getNewParent());
  FM_TRY(op.new_name, read_name(in.getNewName()));
  op.flags = in.getFlags();
  op.target_open_here = in.getTargetOpenHere();
  return op;
}
Result<std::string> read_xattr_name(capnp::Data::Reader in) {
  FM_TRY(std::string name, read_bytes(in, kNameMax));
  if (name.empty() || name.find('\0') != std::string::npos) return Errc::kBadMessage;
  return name;
}
Result<SetXattrOp> read_setxattr(Mutation::SetXattr::Reader in) {
  SetXattrOp op;
  op.inode = InodeId(in.getInode());
  FM_TRY(op.name, read_xattr_name(in.getName()));
  FM_TRY(op.value, read_bytes(in.getValue(), kXattrValueMax));
  op.flags = in.getFlags();
  op.clear_sgid = in.getClearSgid();
  return op;
}
Result<RemoveXattrOp> read_removexattr(Mutation::RemoveXattr::Reader in) {
  RemoveXattrOp op{InodeId(in.getInode()), {}};
  FM_TRY(op.name, read_xattr_name(in.getName()));
  return op;
}
Result<CommitOp> read_commit(Mutation::Commit::Reader in) {
  CommitOp op;
  op.inode = InodeId(in.getInode());
  op.base = Version(in.getBase());
  if (in.getKind() < 1 || in.getKind() > 3) return Errc::kUnsupported;
  op.kind = static_cast<CommitOp::Kind>(in.getKind());
  op.whole = in.getWhole();
  op.replace_newer = in.getReplaceNewer();
  op.size_bytes = in.getSizeBytes();
  if (op.size_bytes > static_cast<std::uint64_t>(INT64_MAX)) return Errc::kBadMessage;
  FM_TRY(op.patches, read(in.getPatches()));
  if (op.patches.empty() == (op.kind == CommitOp::Kind::kPatches)) return Errc::kBadMessage;
  FM_TRY(op.mtime, read(in.getMtime()));
  FM_TRY(op.atime, read_optional(in.getAtime()));
  op.clear_suid_sgid = in.getClearSuidSgid();
  FM_TRY(op.path_hint, read_bytes(in.getPathHint(), kTextMax));
  op.opened = LogIndex(in.getOpened());
  return op;
}
Result<MakeFileOp> read_make_file(Mutation::MakeFile::Reader in) {
  MakeFileOp op;
  FM_TRY(op.create, read_create(in.getCreate()));
  FM_TRY(op.content, read_commit(in.getContent()));
  if (!op.create.inode || op.content.inode != op.create.inode) return Errc::kBadMessage;
  if (op.content.kind != CommitOp::Kind::kInline || op.content.base) return Errc::kBadMessage;
  return op;
}
Result<ReserveInodesOp> read_reserve(Mutation::ReserveInodes::Reader in) {
  if (in.getCount() == 0 || in.getCount() > ReserveInodesOp::kCountMax) return Errc::kBadMessage;
  return ReserveInodesOp{in.getCount()};
}
Result<ReleaseOrphansOp> read_release(Mutation::ReleaseOrphans::Reader in) {
  ReleaseOrphansOp op;
  FM_TRY(op.inodes, read_ids<InodeId>(in.getInodes()));
  return op;
}

Result<NoteReadsOp> read_note_reads(Mutation::NoteReads::Reader in) {
  NoteReadsOp op;
  if (in.getReads().size() > NoteReadsOp::kReadsMax) return Errc::kBadMessage;
  for (const auto each : in.getReads()) {
    NoteReadsOp::Read one;
    one.inode = InodeId(each.getInode());
    FM_TRY(one.time, read(each.getTime()));
    op.reads.push_back(one);
  }
  return op;
}

Result<SetQuotaOp> read_set_quota(Mutation::SetQuota::Reader in) {
  SetQuotaOp op;
  FM_TRY(op.kind, read_quota_kind(in.getKind()));
  op.id = in.getId();
  if (op.kind == QuotaKind::kUser && op.id > UINT32_MAX) return Errc::kBadMessage;
  op.remove = in.getRemove();
  if (in.getSetsBytes()) op.bytes_max = in.getBytesMax();
  if (in.getSetsInodes()) op.inodes_max = in.getInodesMax();
  return op;
}

template <class Op>
Result<fermata::Mutation> wrap(Result<Op> op) {
  if (!op) return op.error();
  return fermata::Mutation(std::move(*op));
}

bool is_range(const LockRange& range) {
  return range.first <= range.last && range.last <= kLockEnd;
}

Result<HeldLock> read_held(Mutation::ReturnLocks::Held::Reader in) {
  HeldLock lock;
  lock.owner.number = in.getOwner();
  lock.range = {in.getFirst(), in.getLast()};
  if (in.getType() < 1 || in.getType() > 2) return Errc::kUnsupported;
  lock.type = static_cast<LockType>(in.getType());
  lock.pid = in.getPid();
  if (!is_range(lock.range)) return Errc::kBadMessage;
  return lock;
}

Result<ReturnLocksOp> read_return_locks(Mutation::ReturnLocks::Reader in) {
  ReturnLocksOp op;
  op.inode = InodeId(in.getInode());
  FM_TRY(op.space, wire::read_lock_space(in.getSpace()));
  if (in.getHeld().size() > kLocksPerFileMax) return Errc::kBadMessage;
  for (const auto each : in.getHeld()) {
    FM_TRY(const HeldLock lock, read_held(each));
    op.held.push_back(lock);
  }
  return op;
}

}  // namespace

void write(schema::Mutation::Lock::Builder out, const LockOp& value) {
  out.setInode(value.inode.value());
  out.setSpace(static_cast<std::uint8_t>(value.space));
  out.setType(static_cast<std::uint8_t>(value.type));
  out.setOwner(value.owner);
  out.setFirst(value.range.first);
  out.setLast(value.range.last);
  out.setPid(value.pid);
  out.setTicket(value.ticket);
  out.setDelegate(value.delegate);
}

Result<LockOp> read(schema::Mutation::Lock::Reader in) {
  LockOp op;
  op.inode = InodeId(in.getInode());
  FM_TRY(op.space, read_lock_space(in.getSpace()));
  if (in.getType() > 2) return Errc::kUnsupported;
  op.type = static_cast<LockType>(in.getType());
  op.owner = in.getOwner();
  op.range = {in.getFirst(), in.getLast()};
  if (!is_range(op.range)) return Errc::kBadMessage;
  op.pid = in.getPid();
  op.ticket = in.getTicket();
  op.delegate = in.getDelegate();
  return op;
}

void write(schema::Mutation::Builder out, const fermata::Mutation& value) {
  std::visit(OpWriter{out}, value);
}

Result<fermata::Mutation> read(schema::Mutation::Reader in) {
  switch (in.which()) {
    case Mutation::CREATE:
      return wrap(read_create(in.getCreate()));
    case Mutation::LINK:
      return wrap(read_link(in.getLink()));
    case Mutation::UNLINK:
      return wrap(read_unlink(in.getUnlink()));
    case Mutation::RMDIR:
      return wrap(read_rmdir(in.getRmdir()));
    case Mutation::RENAME:
      return wrap(read_rename(in.getRename()));
    case Mutation::SET_ATTR:
      return wrap(read_setattr(in.getSetAttr()));
    case Mutation::SET_XATTR:
      return wrap(read_setxattr(in.getSetXattr()));
    case Mutation::REMOVE_XATTR:
      return wrap(read_removexattr(in.getRemoveXattr()));
    case Mutation::COMMIT:
      return wrap(read_commit(in.getCommit()));
    case Mutation::RELEASE_ORPHANS:
      return wrap(read_release(in.getReleaseOrphans()));
    case Mutation::LOCK:
      return wrap(read(in.getLock()));
    case Mutation::NOTE_READS:
      return wrap(read_note_reads(in.getNoteReads()));
    case Mutation::CREATE_UNNAMED:
      return wrap(read_create_unnamed(in.getCreateUnnamed()));
    case Mutation::SET_QUOTA:
      return wrap(read_set_quota(in.getSetQuota()));
    case Mutation::RETURN_LOCKS:
      return wrap(read_return_locks(in.getReturnLocks()));
    case Mutation::MAKE_FILE:
      return wrap(read_make_file(in.getMakeFile()));
    case Mutation::RESERVE_INODES:
      return wrap(read_reserve(in.getReserveInodes()));
  }
  return Errc::kUnsupported;
}

}  // namespace fermata::wire
