// Lookup, getattr, readdir, open, content, xattrs, statfs.
#include "common/wire/message_codec.h"
#include "common/wire/shapes.h"

namespace fermata {
namespace {

using wire::blob;
using RequestReader = schema::ReadRequest::Reader;
using RequestWriter = wire::Writer<schema::ReadRequest>;

constexpr std::size_t kEntriesMax = 1U << 20;

void write_header(schema::ReadHeader::Builder out, const ReadHeader& header) {
  out.setSession(header.session.value());
  out.setEpoch(header.epoch.value());
  wire::write(out.initCred(), header.cred);
}
void write_header(RequestWriter& writer, const ReadHeader& header, InodeId inode = {}) {
  write_header(writer.root().initHeader(), header);
  writer.root().setInode(inode.value());
}

Result<ReadHeader> read_header(schema::ReadHeader::Reader in) {
  ReadHeader value{SessionId(in.getSession()), Epoch(in.getEpoch()), {}};
  FM_TRY(value.cred, wire::read(in.getCred()));
  return value;
}
Result<ReadHeader> read_header(RequestReader in) { return read_header(in.getHeader()); }

/// Requests that are a header and an inode.
template <class Message>
std::string encode_simple(const Message& value) {
  RequestWriter writer;
  write_header(writer, value.header, value.inode);
  return writer.finish();
}
template <class Message>
Result<Message> read_simple(RequestReader in) {
  Message value;
  FM_TRY(value.header, read_header(in));
  value.inode = InodeId(in.getInode());
  return value;
}

}  // namespace

std::string encode(const LookupRequest& value) {
  RequestWriter writer;
  write_header(writer, value.header, value.parent);
  writer.root().setName(blob(value.name));
  return writer.finish();
}
template <>
Result<LookupRequest> decode<LookupRequest>(std::string_view bytes) {
  return wire::decode_message<schema::ReadRequest>(
      as_bytes(bytes), [](RequestReader in) -> Result<LookupRequest> {
        LookupRequest value;
        FM_TRY(value.header, read_header(in));
        value.parent = InodeId(in.getInode());
        FM_TRY(value.name, wire::read_name(in.getName()));
        return value;
      });
}

std::string encode(const LookupReply& value) {
  wire::Writer<schema::LookupReply> writer;
  auto out = writer.root();
  out.setStamp(value.stamp.value());
  out.setEntryLeased(value.entry_leased);
  out.setLeased(value.leased);
  if (value.attr) wire::write(out.initAttr(), *value.attr);
  return writer.finish();
}
template <>
Result<LookupReply> decode<LookupReply>(std::string_view bytes) {
  return wire::decode_message<schema::LookupReply>(
      as_bytes(bytes), [](schema::LookupReply::Reader in) -> Result<LookupReply> {
        LookupReply value{Stamp(in.getStamp()), in.getEntryLeased(), in.getLeased(), {}};
        if (in.hasAttr()) {
          FM_TRY(value.attr, wire::read(in.getAttr()));
        }
        return value;
      });
}

std::string encode(const GetAttrRequest& value) { return encode_simple(value); }
template <>
Result<GetAttrRequest> decode<GetAttrRequest>(std::string_view bytes) {
  return wire::decode_message<schema::ReadRequest>(as_bytes(bytes), read_simple<GetAttrRequest>);
}

std::string encode(const GetAttrReply& value) {
  wire::Writer<schema::GetAttrReply> writer;
  auto out = writer.root();
  out.setStamp(value.stamp.value());
  out.setLeased(value.leased);
  wire::write(out.initAttr(), value.attr);
  return writer.finish();
}
template <>
Result<GetAttrReply> decode<GetAttrReply>(std::string_view bytes) {
  return wire::decode_message<schema::GetAttrReply>(
      as_bytes(bytes), [](schema::GetAttrReply::Reader in) -> Result<GetAttrReply> {
        GetAttrReply value{Stamp(in.getStamp()), in.getLeased(), {}};
        FM_TRY(value.attr, wire::read(in.getAttr()));
        return value;
      });
}

std::string encode(const ReadDirRequest& value) {
  RequestWriter writer;
  write_header(writer, value.header, value.inode);
  writer.root().setAfter(value.after.value());
  writer.root().setBytesMax(value.bytes_max);
  writer.root().setWithAttributes(value.with_attributes);
  return writer.finish();
}
template <>
Result<ReadDirRequest> decode<ReadDirRequest>(std::string_view bytes) {
  return wire::decode_message<schema::ReadRequest>(as_bytes(bytes),
                                                   [](RequestReader in) -> Result<ReadDirRequest> {
                                                     ReadDirRequest value;
                                                     FM_TRY(value.header, read_header(in));
                                                     value.inode = InodeId(in.getInode());
                                                     value.after = Cookie(in.getAfter());
                                                     value.bytes_max = in.getBytesMax();
                                                     value.with_attributes = in.getWithAttributes();
                                                     return value;
                                                   });
}

std::string encode(const ReadDirReply& value) {
  wire::Writer<schema::ReadDirReply> writer;
  auto out = writer.root();
  out.setStamp(value.stamp.value());
  out.setEntriesLeased(value.entries_leased);
  out.setEnd(value.end);
  wire::write(out.initDirectory(), value.directory);
  out.setDirectoryLeased(value.directory_leased);
  auto entries = out.initEntries(static_cast<unsigned>(value.entries.size()));
  for (unsigned i = 0; i < value.entries.size(); ++i) {
    const auto& entry = value.entries[i];
    entries[i].setName(blob(entry.name));
    entries[i].setInode(entry.inode.value());
    entries[i].setType(static_cast<std::uint8_t>(entry.type));
    entries[i].setCookie(entry.cookie.value());
    if (entry.attr) wire::write(entries[i].initAttr(), *entry.attr);
    entries[i].setLeased(entry.leased);
  }
  return writer.finish();
}

namespace {

Result<ReadDirReply::Entry> read_entry(schema::ReadDirReply::Entry::Reader in) {
  ReadDirReply::Entry entry;
  FM_TRY(entry.name, wire::read_name(in.getName()));
  entry.inode = InodeId(in.getInode());
  FM_TRY(entry.type, wire::read_file_type(in.getType()));
  entry.cookie = Cookie(in.getCookie());
  if (in.hasAttr()) {
    FM_TRY(entry.attr, wire::read(in.getAttr()));
  }
  entry.leased = in.getLeased();
  return entry;
}

}  // namespace

template <>
Result<ReadDirReply> decode<ReadDirReply>(std::string_view bytes) {
  return wire::decode_message<schema::ReadDirReply>(
      as_bytes(bytes), [](schema::ReadDirReply::Reader in) -> Result<ReadDirReply> {
        ReadDirReply value;
        value.stamp = Stamp(in.getStamp());
        value.entries_leased = in.getEntriesLeased();
        value.end = in.getEnd();
        FM_TRY(value.directory, wire::read(in.getDirectory()));
        value.directory_leased = in.getDirectoryLeased();
        if (in.getEntries().size() > kEntriesMax) return Errc::kBadMessage;
        value.entries.reserve(in.getEntries().size());
        for (const auto entry : in.getEntries()) {
          FM_TRY(auto read, read_entry(entry));
          value.entries.push_back(std::move(read));
        }
        return value;
      });
}

std::string encode(const OpenRequest& value) {
  RequestWriter writer;
  write_header(writer, value.header, value.inode);
  writer.root().setVersion(value.have.value());
  return writer.finish();
}
template <>
Result<OpenRequest> decode<OpenRequest>(std::string_view bytes) {
  return wire::decode_message<schema::ReadRequest>(
      as_bytes(bytes), [](RequestReader in) -> Result<OpenRequest> {
        FM_TRY(OpenRequest value, read_simple<OpenRequest>(in));
        value.have = Version(in.getVersion());
        return value;
      });
}

std::string encode(const OpenReply& value) {
  wire::Writer<schema::OpenReply> writer;
  auto out = writer.root();
  out.setStamp(value.stamp.value());
  out.setLeased(value.leased);
  wire::write(out.initAttr(), value.attr);
  out.setContent(static_cast<std::uint8_t>(value.content));
  auto patches = out.initPatches(static_cast<unsigned>(value.patches.size()));
  for (unsigned i = 0; i < value.patches.size(); ++i) wire::write(patches[i], value.patches[i]);
  out.setMoreChunks(value.more_chunks);
  return writer.finish();
}
template <>
Result<OpenReply> decode<OpenReply>(std::string_view bytes) {
  return wire::decode_message<schema::OpenReply>(
      as_bytes(bytes), [](schema::OpenReply::Reader in) -> Result<OpenReply> {
        OpenReply value;
        value.stamp = Stamp(in.getStamp());
        value.leased = in.getLeased();
        FM_TRY(value.attr, wire::read(in.getAttr()));
        if (in.getContent() > static_cast<std::uint8_t>(OpenReply::Content::kChunks))
          return Errc::kBadMessage;
        value.content = static_cast<OpenReply::Content>(in.getContent());
        FM_TRY(value.patches, wire::read(in.getPatches()));
        value.more_chunks = in.getMoreChunks();
        return value;
      });
}

std::string encode(const ContentRequest& value) {
  RequestWriter writer;
  write_header(writer, value.header, value.inode);
  writer.root().setVersion(value.version.value());
  writer.root().setFirstChunk(value.first_chunk);
  return writer.finish();
}
template <>
Result<ContentRequest> decode<ContentRequest>(std::string_view bytes) {
  return wire::decode_message<schema::ReadRequest>(
      as_bytes(bytes), [](RequestReader in) -> Result<ContentRequest> {
        FM_TRY(ContentRequest value, read_simple<ContentRequest>(in));
        value.version = Version(in.getVersion());
        value.first_chunk = in.getFirstChunk();
        return value;
      });
}

std::string encode(const ContentReply& value) {
  wire::Writer<schema::ContentReply> writer;
  writer.root().setMoreChunks(value.more_chunks);
  return writer.finish();
}
template <>
Result<ContentReply> decode<ContentReply>(std::string_view bytes) {
  return wire::decode_message<schema::ContentReply>(
      as_bytes(bytes), [](schema::ContentReply::Reader in) -> Result<ContentReply> {
        return ContentReply{in.getMoreChunks()};
      });
}

std::string encode(const GetXattrsRequest& value) { return encode_simple(value); }
template <>
Result<GetXattrsRequest> decode<GetXattrsRequest>(std::string_view bytes) {
  return wire::decode_message<schema::ReadRequest>(as_bytes(bytes), read_simple<GetXattrsRequest>);
}

std::string encode(const GetXattrsReply& value) {
  wire::Writer<schema::GetXattrsReply> writer;
  auto out = writer.root();
  out.setStamp(value.stamp.value());
  out.setLeased(value.leased);
  auto xattrs = out.initXattrs(static_cast<unsigned>(value.xattrs.size()));
  unsigned i = 0;
  for (const auto& [name, content] : value.xattrs) {
    xattrs[i].setName(blob(name));
    xattrs[i].setValue(blob(content));
    ++i;
  }
  return writer.finish();
}
template <>
Result<GetXattrsReply> decode<GetXattrsReply>(std::string_view bytes) {
  return wire::decode_message<schema::GetXattrsReply>(
      as_bytes(bytes), [](schema::GetXattrsReply::Reader in) -> Result<GetXattrsReply> {
        GetXattrsReply value{Stamp(in.getStamp()), in.getLeased(), {}};
        if (in.getXattrs().size() > wire::kIdsMax) return Errc::kBadMessage;
        for (const auto xattr : in.getXattrs()) {
          FM_TRY(std::string name, wire::read_bytes(xattr.getName(), wire::kNameMax));
          FM_TRY(std::string content, wire::read_bytes(xattr.getValue(), wire::kXattrValueMax));
          value.xattrs.emplace(std::move(name), std::move(content));
        }
        return value;
      });
}

namespace {

/// A request that says nothing but which inode it is about.
template <typename Request>
std::string encode_about_inode(const Request& value) {
  RequestWriter writer;
  write_header(writer, value.header);
  writer.root().setInode(value.inode.value());
  return writer.finish();
}
template <typename Request>
Result<Request> decode_about_inode(std::string_view bytes) {
  return wire::decode_message<schema::ReadRequest>(as_bytes(bytes),
                                                   [](RequestReader in) -> Result<Request> {
                                                     Request value;
                                                     FM_TRY(value.header, read_header(in));
                                                     value.inode = InodeId(in.getInode());
                                                     return value;
                                                   });
}

}  // namespace

std::string encode(const StatFsRequest& value) { return encode_about_inode(value); }
template <>
Result<StatFsRequest> decode<StatFsRequest>(std::string_view bytes) {
  return decode_about_inode<StatFsRequest>(bytes);
}
std::string encode(const StatFsReply& value) {
  wire::Writer<schema::StatFsReply> writer;
  auto out = writer.root();
  out.setTotalBytes(value.total_bytes);
  out.setFreeBytes(value.free_bytes);
  out.setInodes(value.inodes);
  out.setQuotas(value.quotas);
  out.setInodesMax(value.inodes_max);
  out.setRoomBytes(value.room_bytes);
  return writer.finish();
}
template <>
Result<StatFsReply> decode<StatFsReply>(std::string_view bytes) {
  return wire::decode_message<schema::StatFsReply>(
      as_bytes(bytes), [](schema::StatFsReply::Reader in) -> Result<StatFsReply> {
        return StatFsReply{in.getTotalBytes(), in.getFreeBytes(), in.getInodes(),
                           in.getQuotas(),     in.getInodesMax(), in.getRoomBytes()};
      });
}

std::string encode(const QuotasRequest& value) { return encode_about_inode(value); }
template <>
Result<QuotasRequest> decode<QuotasRequest>(std::string_view bytes) {
  return decode_about_inode<QuotasRequest>(bytes);
}
std::string encode(const QuotaList& value) {
  wire::Writer<schema::QuotaList> writer;
  auto quotas = writer.root().initQuotas(static_cast<unsigned>(value.quotas.size()));
  for (unsigned i = 0; i < value.quotas.size(); ++i) {
    const QuotaList::Quota& quota = value.quotas[i];
    quotas[i].setKind(static_cast<std::uint8_t>(quota.kind));
    quotas[i].setId(quota.id);
    quotas[i].setParent(quota.parent.value());
    quotas[i].setBytesMax(quota.bytes_max);
    quotas[i].setInodesMax(quota.inodes_max);
    quotas[i].setBytes(quota.bytes);
    quotas[i].setInodes(quota.inodes);
    quotas[i].setPhase(static_cast<std::uint8_t>(quota.phase));
    if (!quota.path.empty()) quotas[i].setPath(blob(quota.path));
  }
  return writer.finish();
}
template <>
Result<QuotaList> decode<QuotaList>(std::string_view bytes) {
  return wire::decode_message<schema::QuotaList>(
      as_bytes(bytes), [](schema::QuotaList::Reader in) -> Result<QuotaList> {
        QuotaList value;
        if (in.getQuotas().size() > wire::kIdsMax) return Errc::kBadMessage;
        for (const auto each : in.getQuotas()) {
          QuotaList::Quota quota;
          FM_TRY(quota.kind, wire::read_quota_kind(each.getKind()));
          quota.id = each.getId();
          quota.parent = InodeId(each.getParent());
          quota.bytes_max = each.getBytesMax();
          quota.inodes_max = each.getInodesMax();
          quota.bytes = each.getBytes();
          quota.inodes = each.getInodes();
          if (each.getPhase() > 2) return Errc::kUnsupported;
          quota.phase = static_cast<QuotaPhase>(each.getPhase());
          FM_TRY(quota.path, wire::read_bytes(each.getPath(), wire::kTextMax));
          value.quotas.push_back(std::move(quota));
        }
        return value;
      });
}

std::string encode(const LockQuery& value) {
  wire::Writer<schema::LockQuery> writer;
  auto out = writer.root();
  write_header(out.initHeader(), value.header);
  wire::write(out.initLock(), value.lock);
  out.setDetectDeadlock(value.detect_deadlock);
  out.setGiveUp(value.give_up);
  return writer.finish();
}
template <>
Result<LockQuery> decode<LockQuery>(std::string_view bytes) {
  return wire::decode_message<schema::LockQuery>(
      as_bytes(bytes), [](schema::LockQuery::Reader in) -> Result<LockQuery> {
        LockQuery value;
        FM_TRY(value.header, read_header(in.getHeader()));
        FM_TRY(value.lock, wire::read(in.getLock()));
        value.detect_deadlock = in.getDetectDeadlock();
        value.give_up = in.getGiveUp();
        return value;
      });
}

std::string encode(const FindLockReply& value) {
  wire::Writer<schema::FindLockReply> writer;
  auto out = writer.root();
  out.setFound(value.held.has_value());
  if (value.held) {
    out.setSession(value.held->owner.session.value());
    out.setType(static_cast<std::uint8_t>(value.held->type));
    out.setFirst(value.held->range.first);
    out.setLast(value.held->range.last);
    out.setPid(value.held->pid);
  }
  return writer.finish();
}
template <>
Result<FindLockReply> decode<FindLockReply>(std::string_view bytes) {
  return wire::decode_message<schema::FindLockReply>(
      as_bytes(bytes), [](schema::FindLockReply::Reader in) -> Result<FindLockReply> {
        FindLockReply value;
        if (!in.getFound()) return value;
        HeldLock held;
        held.owner.session = SessionId(in.getSession());
        if (in.getType() < 1 || in.getType() > 2) return Errc::kBadMessage;
        held.type = static_cast<LockType>(in.getType());
        held.range = {in.getFirst(), in.getLast()};
        if (held.range.first > held.range.last) return Errc::kBadMessage;
        held.pid = in.getPid();
        value.held = held;
        return value;
      });
}

std::string encode(const WaitLockReply& value) {
  wire::Writer<schema::WaitLockReply> writer;
  writer.root().setFree(value.free);
  return writer.finish();
}
template <>
Result<WaitLockReply> decode<WaitLockReply>(std::string_view bytes) {
  return wire::decode_message<schema::WaitLockReply>(
      as_bytes(bytes), [](schema::WaitLockReply::Reader in) -> Result<WaitLockReply> {
        return WaitLockReply{in.getFree()};
      });
}

}  // namespace fermata
