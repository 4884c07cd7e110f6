#include "serverd/service/read_service.h"

#include <algorithm>
#include <utility>

#include "common/wire/chunk_records.h"
#include "common/wire/frame.h"
#include "common/wire/message_codec.h"
#include "serverd/meta/records.h"
#include "serverd/service/callbacks.h"
#include "serverd/service/quota_service.h"
#include "serverd/service/space_guard.h"

namespace fermata::serverd {

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t kReadDirBytesMin = 4096;
constexpr std::uint32_t kReadDirBytesMax = 1 << 20;
constexpr std::size_t kReadDirBatch = 256;
// What an entry costs in the message, about.
constexpr std::size_t kEntryBytes = 56;
constexpr std::size_t kAttrBytes = 176;
/// In one answer's payload: patches and chunk records.
constexpr std::size_t kContentPayloadMax = kPayloadSizeMax - 4096;
static_assert(kContentPayloadMax > kPatchBytesMax + (1u << 20));

template <class Reply>
Response answer(const Reply& reply) {
  Response response;
  response.body = encode(reply);
  return response;
}

}  // namespace

Result<Permissions> ReadService::permissions(const Attr& attr) const {
  Permissions out{attr.type, attr.mode, attr.uid, attr.gid};
  if (attr.no_xattrs) return out;
  FM_TRY(const auto xattrs, node_.ns->xattrs(attr.inode));
  if (const auto acl = xattrs.find(std::string(kAclAccess)); acl != xattrs.end()) {
    auto parsed = parse_acl(acl->second);
    if (!parsed) return Errc::kCorruptStore;
    out.acl = std::move(*parsed);
  }
  return out;
}

Status ReadService::check_search(const Credentials& who, InodeId directory) const {
  if (is_superuser(who)) return {};
  FM_TRY(const auto attr, node_.ns->attr(directory));
  FM_TRY(const auto rights, permissions(attr));
  return may(who, rights, kMayExecute) ? Status() : Status(std::errc::permission_denied);
}

// open(2) has checked before what it is for; of whom it lets in nobody can be sure to read: a file
// may be written, or executed, by who may not read it. The owner may always have it open.
Status ReadService::check_content(const Credentials& who, const Attr& attr) const {
  if (owns(who, attr.uid)) return {};
  FM_TRY(const auto rights, permissions(attr));
  for (const std::uint32_t right : {kMayRead, kMayWrite, kMayExecute})
    if (may(who, rights, right)) return {};
  return std::errc::permission_denied;
}

Status ReadService::check_list(const Credentials& who, const Attr& directory) const {
  if (owns(who, directory.uid)) return {};  // who opened it before a chmod goes on
  FM_TRY(const auto rights, permissions(directory));
  return may(who, rights, kMayRead) ? Status() : Status(std::errc::permission_denied);
}

SessionId ReadService::grantee(const ReadHeader& header) const {
  return check_session(node_, header.session, header.epoch) ? header.session : SessionId();
}

Task<void> ReadService::readable_directory(InodeId directory, SessionId session,
                                           const std::string* name) {
  for (;;) {
    FM_CO_CHECK(co_await readable(node_));
    std::vector<InodeId> directories;
    const auto attr = node_.ns->attr(directory);
    if (attr && attr->type == FileType::kDirectory) directories.push_back(directory);
    if (name != nullptr) {
      const auto entry = node_.ns->lookup(directory, *name);
      const bool inner = entry && *entry && (*entry)->type == FileType::kDirectory;
      if (inner) directories.push_back((*entry)->inode);
    }
    for (const InodeId each : directories) node_.leases.note_asked(each, session, node_.env.now());
    if (!node_.callbacks->held_elsewhere(directories, session)) co_return Status();
    FM_CO_CHECK(co_await node_.callbacks->recall(directories, session));
  }
}

Response ReadService::refused(std::error_code error) const {
  return error == Errc::kNotPrimary ? not_primary(node_) : failed(error);
}

asio::awaitable<Response> ReadService::lookup(Request request) {
  auto message = decode<LookupRequest>(request.body);
  if (!message) co_return failed(message.error());
  SessionId session = grantee(message->header);
  const auto status = co_await readable_directory(message->parent, session, &message->name);
  if (!status) co_return refused(status.error());
  if (auto allowed = check_search(message->header.cred, message->parent); !allowed)
    co_return failed(allowed.error());
  auto entry = node_.ns->lookup(message->parent, message->name);
  if (!entry) co_return failed(entry.error());
  LookupReply reply;
  reply.stamp = node_.leases.next_stamp();
  session = grantee(message->header);
  if (*entry) {
    auto attr = node_.ns->attr((*entry)->inode);
    if (!attr) co_return failed(attr.error());
    reply.attr = std::move(*attr);
    reply.leased = node_.leases.grant(session, (*entry)->inode);
  }
  reply.entry_leased = node_.leases.grant_entry(session, message->parent, message->name);
  co_return answer(reply);
}

asio::awaitable<Response> ReadService::getattr(Request request) {
  auto message = decode<GetAttrRequest>(request.body);
  if (!message) co_return failed(message.error());
  const SessionId session = grantee(message->header);
  const auto status = co_await readable_directory(message->inode, session, nullptr);
  if (!status) co_return refused(status.error());
  auto attr = node_.ns->attr(message->inode);
  if (!attr) co_return failed(attr.error());
  GetAttrReply reply;
  reply.stamp = node_.leases.next_stamp();
  reply.attr = std::move(*attr);
  reply.leased = node_.leases.grant(grantee(message->header), message->inode);
  co_return answer(reply);
}

asio::awaitable<Response> ReadService::readdir(Request request) {
  auto message = decode<ReadDirRequest>(request.body);
  if (!message) co_return failed(message.error());
  SessionId session = grantee(message->header);
  const auto status = co_await readable_directory(message->inode, session, nullptr);
  if (!status) co_return refused(status.error());
  auto directory = node_.ns->attr(message->inode);
  if (!directory) co_return failed(directory.error());
  if (auto allowed = check_list(message->header.cred, *directory); !allowed)
    co_return failed(allowed.error());

  ReadDirReply reply;
  reply.stamp = node_.leases.next_stamp();
  session = grantee(message->header);
  const std::size_t budget = std::clamp(message->bytes_max, kReadDirBytesMin, kReadDirBytesMax);
  std::size_t used = kAttrBytes;
  Cookie after = message->after;
  for (bool full = false; !full && !reply.end;) {
    auto listing = node_.ns->readdir(message->inode, after, kReadDirBatch);
    if (!listing) co_return failed(listing.error());
    for (auto& dirent : listing->entries) {
      used += dirent.name.size() + kEntryBytes + (message->with_attributes ? kAttrBytes : 0);
      full = used > budget && !reply.entries.empty();
      if (full) break;
      after = dirent.cookie;
      ReadDirReply::Entry entry{std::move(dirent.name), dirent.inode, dirent.type,
                                dirent.cookie,          {},           false};
      // Of a directory that another session may be making files in, its attributes are for a
      // question of their own.
      const bool known = dirent.type != FileType::kDirectory ||
                         !node_.callbacks->held_elsewhere({dirent.inode}, session);
      if (message->with_attributes && known) {
        auto attr = node_.ns->attr(dirent.inode);
        if (!attr) co_return failed(attr.error());
        used += attr->symlink_target.size();  // may pass the budget by one target, no more
        entry.attr = std::move(*attr);
        entry.leased = node_.leases.grant(session, dirent.inode);
      }
      reply.entries.push_back(std::move(entry));
    }
    reply.end = !full && (listing->end || listing->entries.empty());
  }
  reply.directory = std::move(*directory);
  reply.directory_leased = node_.leases.grant(session, message->inode);
  reply.entries_leased = node_.leases.grant_entries(session, message->inode);
  co_return answer(reply);
}

asio::awaitable<Response> ReadService::open(Request request) {
  auto message = decode<OpenRequest>(request.body);
  if (!message) co_return failed(message.error());
  for (;;) {
    if (auto status = co_await readable(node_); !status) co_return refused(status.error());
    // Whoever takes the last link has asked already who has it open: this one comes after that.
    if (!node_.leases.losing_last_link(message->inode)) break;
    if (const std::error_code stop = co_await node_.env.sleep_for(1ms); stop)
      co_return failed(Errc::kShuttingDown);
  }
  auto attr = node_.ns->attr(message->inode);
  if (!attr) co_return failed(attr.error());
  if (auto allowed = check_content(message->header.cred, *attr); !allowed)
    co_return failed(allowed.error());
  OpenReply reply;
  Response response;
  if (attr->type == FileType::kRegular && attr->version && attr->version != message->have) {
    auto content = node_.ns->content(message->inode, 0, kContentPayloadMax / kChunkRecordBytes);
    if (!content) co_return failed(content.error());
    std::string payload;
    if (content->kind == ContentKind::kInline) {
      reply.content = OpenReply::Content::kInline;
      payload = std::move(content->inline_bytes);
    } else if (content->kind == ContentKind::kChunks) {
      reply.content = OpenReply::Content::kChunks;
      for (auto& patch : content->patches) {
        reply.patches.push_back(
            {patch.offset_bytes, static_cast<std::uint32_t>(patch.bytes.size())});
        payload += patch.bytes;
      }
      const std::size_t left = kContentPayloadMax - std::min(payload.size(), kContentPayloadMax);
      const std::size_t chunks_max = std::max<std::size_t>(left / kChunkRecordBytes, 1);
      reply.more_chunks = content->more_chunks;
      if (content->chunks.size() > chunks_max) {
        content->chunks.resize(chunks_max);
        reply.more_chunks = true;
      }
      append_chunk_records(payload, content->chunks);
    }
    response.payload = Buffer::copy_of(as_bytes(payload));
  }
  reply.stamp = node_.leases.next_stamp();
  reply.attr = std::move(*attr);
  const SessionId session = grantee(message->header);
  reply.leased = node_.leases.grant(session, message->inode);
  node_.leases.opened(session, message->inode, reply.leased);
  response.body = encode(reply);
  co_return response;
}

asio::awaitable<Response> ReadService::content(Request request) {
  auto message = decode<ContentRequest>(request.body);
  if (!message) co_return failed(message.error());
  if (auto status = co_await readable(node_); !status) co_return refused(status.error());
  if (const auto attr = node_.ns->attr(message->inode)) {
    if (auto allowed = check_content(message->header.cred, *attr); !allowed)
      co_return failed(allowed.error());
  }
  auto content = node_.ns->content_at(message->inode, message->version, message->first_chunk,
                                      kContentPayloadMax / kChunkRecordBytes);
  if (!content) co_return failed(content.error());
  ContentReply reply;
  reply.more_chunks = content->more_chunks;
  std::string payload;
  append_chunk_records(payload, content->chunks);
  Response response = answer(reply);
  response.payload = Buffer::copy_of(as_bytes(payload));
  co_return response;
}

asio::awaitable<Response> ReadService::xattrs(Request request) {
  auto message = decode<GetXattrsRequest>(request.body);
  if (!message) co_return failed(message.error());
  if (auto status = co_await readable(node_); !status) co_return refused(status.error());
  auto xattrs = node_.ns->xattrs(message->inode);
  if (!xattrs) co_return failed(xattrs.error());
  GetXattrsReply reply;
  reply.stamp = node_.leases.next_stamp();
  reply.xattrs = std::move(*xattrs);
  reply.leased = node_.leases.grant(grantee(message->header), message->inode);
  co_return answer(reply);
}

asio::awaitable<Response> ReadService::statfs(Request request) {
  auto message = decode<StatFsRequest>(request.body);
  if (!message) co_return failed(message.error());
  if (!node_.serving) co_return not_primary(node_);
  StatFsReply reply;
  const DiskSpace space = node_.space->cluster();
  reply.total_bytes = space.total_bytes;
  reply.free_bytes = space.free_bytes;
  const auto counters = node_.ns->counters();
  reply.inodes = counters.inodes;
  reply.quotas = counters.quotas != 0;
  if (auto kept = keep_within_quotas(*node_.ns, message->inode, reply); !kept)
    co_return failed(kept.error());
  co_return answer(reply);
}

}  // namespace fermata::serverd
