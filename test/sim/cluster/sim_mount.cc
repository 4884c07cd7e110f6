#include "test/sim/cluster/sim_mount.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "common/base/checksum.h"
#include "common/base/limits.h"
#include "common/wire/chunk_records.h"

namespace fermata::test {

namespace asio = boost::asio;
using serverd::Content;
using serverd::ContentKind;

SimMount::SimMount(World& world, Env& env, mountd::ClusterClient& client,
                   mountd::ClientSession& session, std::string name)
    : world_(world), env_(env), client_(client), session_(session), name_(std::move(name)) {}

// ---------------------------------------------------------------- the cache

bool SimMount::holds(Stamp stamp) const {
  if (world_.breaks(BrokenRule::kTrustExpiredLeases)) return stamp.value() != 0;
  return session_.lease_holds(stamp);
}

bool SimMount::attr_valid(const Inode& inode) const {
  if (inode.attr && unsent_.contains(inode.attr->inode)) return true;
  return inode.attr && inode.leased && holds(inode.stamp);
}

void SimMount::apply(const Attr& attr, Stamp stamp, bool leased) {
  Inode& inode = inodes_[attr.inode];
  if (inode.attr && stamp < inode.stamp) return;
  inode.attr = attr;
  inode.stamp = stamp;
  inode.leased = leased && stamp > inode.called_back;
}

void SimMount::set_entry(InodeId parent, const std::string& name, InodeId child, Stamp stamp,
                         bool leased, bool own) {
  Inode& dir = inodes_[parent];
  if (own) {
    ++dir.changes;
    dir.listing.reset();
  }
  const auto known = dir.entries.find(name);
  if (known != dir.entries.end() && known->second.stamp > stamp) return;
  if (known != dir.entries.end() && unsent_.contains(known->second.child)) return;
  if (!leased || stamp <= dir.called_back) {
    dir.entries.erase(name);
    dir.listing.reset();
    return;
  }
  dir.entries[name] = {child, stamp};
}

asio::awaitable<CallbackReply> SimMount::on_callback(CallbackRequest request) {
  CallbackReply reply;
  for (const auto& item : request.items) {
    Inode& inode = inodes_[item.inode];
    inode.alone = Stamp();
    if (!world_.breaks(BrokenRule::kIgnoreCallbacks))
      inode.called_back = std::max(inode.called_back, request.stamp);
  }
  if (!world_.breaks(BrokenRule::kGiveUpUntold)) {
    for (const auto& item : request.items) (void)co_await send_names(item.inode);
  }
  for (const auto& item : request.items) {
    Inode& inode = inodes_[item.inode];
    if (item.asks_open && inode.holds != 0) {
      inode.maybe_orphan = true;
      reply.open.push_back(item.inode);
    }
    if (world_.breaks(BrokenRule::kIgnoreCallbacks)) continue;
    inode.called_back = std::max(inode.called_back, request.stamp);
    if (item.attributes) {
      inode.leased = false;
      inode.xattrs.reset();
    }
    if (item.all_entries || !item.names.empty()) {
      ++inode.changes;
      inode.listing.reset();
    }
    if (item.all_entries) inode.entries.clear();
    for (const auto& name : item.names) inode.entries.erase(name);
  }
  for (const auto& recall : request.recalls) {
    asio::co_spawn(env_.executor(), hand_back({recall.inode, recall.space}), asio::detached);
  }
  // The kernel's caches take a while.
  (void)co_await env_.sleep_for(std::chrono::microseconds(env_.random().below(500)));
  co_return reply;
}

asio::awaitable<void> SimMount::on_leases_void(Stamp) { co_return; }
asio::awaitable<void> SimMount::on_new_session(SessionId fresh) {
  std::vector<InodeId> old;
  for (const auto& [inode, unsent] : unsent_)
    if (unsent.session != fresh) old.push_back(inode);
  for (const InodeId inode : old) lose(inode, Errc::kSessionExpired);
  co_return;
}

asio::awaitable<bool> SimMount::give_up_alone(Duration) {
  if (world_.breaks(BrokenRule::kGiveUpUntold)) co_return true;
  while (!unsent_.empty()) {
    const InodeId inode = unsent_.begin()->first;
    const auto sent = co_await send(inode, Sending::kForNow);
    if (!sent && unsent_.contains(inode)) co_return false;
  }
  co_return true;
}

// ---------------------------------------------------------------- files made here

std::optional<Attr> SimMount::make_here(InodeId parent, const std::string& name) {
  Inode& dir = inodes_[parent];
  if (changing_.contains(parent)) return std::nullopt;  // the kernel's lock of the directory
  if (!dir.alone || !holds(dir.alone) || !attr_valid(dir) || reserve_.empty()) return std::nullopt;
  if (dir.attr->nlink == 0 || !session_.id() || session_.id() != reserve_of_) return std::nullopt;
  const auto entry = dir.entries.find(name);
  const bool known = entry != dir.entries.end();
  if (known && (entry->second.child || !holds(entry->second.stamp))) return std::nullopt;
  const bool listed = dir.listing && holds(dir.listing_stamp) && !dir.listing->contains(name);
  if (!known && !listed) return std::nullopt;
  Unsent unsent;
  unsent.op.parent = parent;
  unsent.op.name = name;
  unsent.op.mode = 0644;
  unsent.op.inode = reserve_.front();
  unsent.op.made.seconds = static_cast<std::int64_t>(next_token_++);
  unsent.session = session_.id();
  reserve_.pop_front();
  const InodeId inode = unsent.op.inode;
  unsent.promise = world_.oracle.promise(parent, name, inode, unsent.session);
  world_.note(name_, "makes " + std::to_string(parent.value()) + "/" + name + " as " +
                         std::to_string(inode.value()));
  Attr attr;
  attr.inode = inode;
  attr.mode = 0644;
  attr.nlink = 1;
  inodes_[inode].attr = attr;
  dir.entries[name] = {inode, dir.alone};
  ++dir.changes;
  dir.listing.reset();
  unsent_.emplace(inode, std::move(unsent));
  ++world_.counts.made_here;
  asio::co_spawn(env_.executor(), send_later(inode), asio::detached);
  return attr;
}

Task<void> SimMount::known_name(InodeId parent, std::string name) {
  FM_CO_TRY(const auto there, co_await lookup(parent, name));
  static_cast<void>(there);
  co_return Status();
}

asio::awaitable<void> SimMount::fill_reserve_behind() { (void)co_await fill_reserve(); }

Task<void> SimMount::fill_reserve() {
  const SessionId session = session_.id();
  if (reserve_of_ != session) {
    reserve_of_ = session;
    reserve_.clear();
  }
  if (!session || reserving_ || reserve_.size() >= 4) co_return Status();
  reserving_ = true;
  Mutation mutation = ReserveInodesOp{8};
  const auto reply = co_await mutate(std::move(mutation), {}, session);
  reserving_ = false;
  if (!reply) co_return reply.error();
  for (std::uint32_t i = 0; reserve_of_ == session && i < reply->reserved_count; ++i)
    reserve_.push_back(InodeId(reply->reserved.value() + i));
  co_return Status();
}

asio::awaitable<void> SimMount::send_later(InodeId inode) {
  (void)co_await env_.sleep_for(std::chrono::seconds(1));
  (void)co_await send(inode, Sending::kForNow);
}

void SimMount::lose(InodeId inode, std::error_code why) {
  const auto found = unsent_.find(inode);
  if (found == unsent_.end()) return;
  const Unsent unsent = found->second;
  unsent_.erase(found);
  world_.oracle.end_promise(unsent.promise, why);
  inodes_[inode].attr->nlink = 0;
  Inode& dir = inodes_[unsent.op.parent];
  const auto entry = dir.entries.find(unsent.op.name);
  if (entry != dir.entries.end() && entry->second.child == inode) dir.entries.erase(entry);
  dir.listing.reset();
  ++dir.changes;
}

Task<bool> SimMount::begin_sending(InodeId inode) {
  for (;;) {
    const auto found = unsent_.find(inode);
    if (found == unsent_.end()) co_return false;
    if (!found->second.sending) {
      found->second.sending = true;
      co_return true;
    }
    const std::error_code stop = co_await env_.sleep_for(std::chrono::milliseconds(1));
    if (stop) co_return stop;
  }
}

Task<void> SimMount::end_sending(InodeId inode, Result<MutationReply> reply, Sending how) {
  const auto found = unsent_.find(inode);
  if (found == unsent_.end()) co_return Status();  // lost meanwhile
  found->second.sending = false;
  const Unsent unsent = found->second;
  if (!reply && reply.error() == std::errc::file_exists) {
    // By an earlier attempt whose answer was lost?
    const auto there = co_await client_.lookup({}, unsent.op.parent, unsent.op.name);
    if (!there) co_return there.error();
    if (there->attr && there->attr->inode == inode) {
      unsent_.erase(inode);
      inodes_[inode].leased = false;
      inodes_[unsent.op.parent].entries.erase(unsent.op.name);
      co_return Status();
    }
    lose(inode, reply.error());
    co_return reply.error();
  }
  if (reply) {
    unsent_.erase(inode);
    set_entry(unsent.op.parent, unsent.op.name, inode, reply->stamp, reply->parent_leased, true);
    co_return Status();
  }
  const std::error_code error = reply.error();
  const bool full = error == std::errc::no_space_on_device || error == from_errno(EDQUOT);
  const bool may_pass = error == std::errc::timed_out || error == std::errc::interrupted ||
                        error == std::errc::operation_canceled || error == Errc::kShuttingDown;
  if (!may_pass && !(full && how == Sending::kForNow)) lose(inode, error);
  co_return error;
}

Task<void> SimMount::send(InodeId inode, Sending how) {
  for (;;) {
    FM_CO_TRY(const bool unsent, co_await begin_sending(inode));
    if (!unsent) co_return Status();
    const CreateOp op = unsent_.at(inode).op;
    const SessionId session = unsent_.at(inode).session;
    Mutation mutation = op;
    auto reply = co_await mutate(std::move(mutation), {}, session);
    const auto done = co_await end_sending(inode, std::move(reply), how);
    if (done || how == Sending::kForNow || !unsent_.contains(inode)) co_return done;
    const std::error_code stop = co_await env_.sleep_for(std::chrono::milliseconds(50));
    if (stop) co_return stop;
  }
}

std::vector<InodeId> SimMount::all_unsent() const {
  std::vector<InodeId> all;
  for (const auto& [inode, unsent] : unsent_) all.push_back(inode);
  return all;
}

Task<void> SimMount::send_names(InodeId directory) {
  for (;;) {
    std::vector<InodeId> in;
    for (const auto& [inode, unsent] : unsent_)
      if (unsent.op.parent == directory) in.push_back(inode);
    if (in.empty() || !session_.id()) co_return Status();
    for (const InodeId inode : in) {
      const auto sent = co_await send(inode);
      if (!sent && unsent_.contains(inode)) co_return sent.error();
    }
  }
}

// ---------------------------------------------------------------- reads

Task<std::optional<Attr>> SimMount::lookup(InodeId parent, std::string name) {
  ++world_.counts.operations;
  {
    Inode& dir = inodes_[parent];
    const auto entry = dir.entries.find(name);
    InodeId child;
    bool known = false;
    if (entry != dir.entries.end()) {
      known = holds(entry->second.stamp);
      child = entry->second.child;
    } else if (dir.listing && holds(dir.listing_stamp)) {
      known = !dir.listing->contains(name);  // a complete listing proves absence
    }
    if (unsent_.contains(child)) co_return inodes_[child].attr;
    const Inode* of = child ? &inodes_[child] : nullptr;
    if (known && (of == nullptr || attr_valid(*of))) {
      ++world_.counts.cached_reads;
      const Attr* attr = of != nullptr ? &*of->attr : nullptr;
      // While a mutation of its own is on its way, one of the two may have been read after it.
      const LogIndex floor = world_.oracle.begin_cached(own_);
      world_.oracle.saw_entry(floor, name_ + ": a cached lookup", parent, name, child,
                              own_.empty() ? attr : nullptr);
      if (attr != nullptr) world_.oracle.saw_attr(floor, name_ + ": a cached lookup", *attr);
      co_return attr != nullptr ? std::optional<Attr>(*attr) : std::nullopt;
    }
  }
  LogIndex floor = world_.oracle.begin();
  const auto promised = world_.oracle.promises();
  auto reply = co_await client_.lookup({}, parent, name);
  if (!reply) {
    if (reply.error() == std::errc::no_such_file_or_directory)
      world_.oracle.saw_no_inode(floor, name_ + ": a lookup", parent);
    co_return reply.error();
  }
  const InodeId child = reply->attr ? reply->attr->inode : InodeId();
  floor = world_.oracle.floor_of(floor, promised, name_ + ": a lookup", parent, name);
  world_.oracle.saw_entry(floor, name_ + ": a lookup", parent, name, child,
                          reply->attr ? &*reply->attr : nullptr);
  if (reply->attr) apply(*reply->attr, reply->stamp, reply->leased);
  set_entry(parent, name, child, reply->stamp, reply->entry_leased, false);
  co_return reply->attr;
}

Task<Attr> SimMount::getattr(InodeId inode) {
  ++world_.counts.operations;
  if (unsent_.contains(inode)) co_return *inodes_[inode].attr;
  if (const Inode& known = inodes_[inode]; attr_valid(known)) {
    ++world_.counts.cached_reads;
    world_.oracle.saw_attr(world_.oracle.begin_cached(own_), name_ + ": a cached getattr",
                           *known.attr);
    co_return *known.attr;
  }
  (void)co_await send_names(inode);
  LogIndex floor = world_.oracle.begin();
  const auto promised = world_.oracle.promises();
  const unsigned held = inodes_[inode].holds;
  const SessionId session = session_.id();
  auto reply = co_await client_.getattr({}, inode);
  if (!reply) {
    if (reply.error() == std::errc::no_such_file_or_directory) {
      world_.oracle.saw_no_inode(floor, name_ + ": a getattr", inode);
      (void)held;
      (void)session;
    }
    co_return reply.error();
  }
  floor = world_.oracle.floor_of(floor, promised, name_ + ": a getattr", inode, "");
  world_.oracle.saw_attr(floor, name_ + ": a getattr", reply->attr);
  apply(reply->attr, reply->stamp, reply->leased);
  co_return reply->attr;
}

Task<std::map<std::string, InodeId>> SimMount::readdir(InodeId directory) {
  ++world_.counts.operations;
  if (const Inode& known = inodes_[directory]; known.listing && holds(known.listing_stamp)) {
    ++world_.counts.cached_reads;
    const auto listing = *known.listing;
    world_.oracle.saw_listing(world_.oracle.begin_cached(own_), name_ + ": a cached readdir",
                              directory, listing);
    co_return listing;
  }
  (void)co_await send_names(directory);
  const std::uint64_t changes = inodes_[directory].changes;
  const Stamp called_back = inodes_[directory].called_back;
  LogIndex floor = world_.oracle.begin();
  const auto promised = world_.oracle.promises();
  const bool with_attributes = env_.random().chance(1, 2);
  auto reply = co_await client_.readdir({}, directory, Cookie(), 1 << 20, with_attributes);
  if (!reply) {
    if (reply.error() == std::errc::no_such_file_or_directory)
      world_.oracle.saw_no_inode(floor, name_ + ": a readdir", directory);
    co_return reply.error();
  }
  if (!reply->end) co_return std::make_error_code(std::errc::io_error);
  floor = world_.oracle.floor_of(floor, promised, name_ + ": a readdir", directory, "");
  std::map<std::string, InodeId> listing;
  for (const auto& entry : reply->entries) {
    if (!listing.emplace(entry.name, entry.inode).second)
      world_.oracle.fail(name_ + ": a readdir shows " + entry.name + " twice");
    if (entry.attr) {
      world_.oracle.saw_attr(floor, name_ + ": a readdir's entry", *entry.attr);
      apply(*entry.attr, reply->stamp, entry.leased);
    }
  }
  world_.oracle.saw_listing(floor, name_ + ": a readdir", directory, listing);
  world_.oracle.saw_attr(floor, name_ + ": a readdir's directory", reply->directory);
  apply(reply->directory, reply->stamp, reply->directory_leased);
  for (const auto& entry : reply->entries)
    set_entry(directory, entry.name, entry.inode, reply->stamp, reply->entries_leased, false);
  Inode& dir = inodes_[directory];
  if (reply->entries_leased && dir.changes == changes && dir.called_back == called_back &&
      holds(reply->stamp)) {
    dir.listing = listing;
    dir.listing_stamp = reply->stamp;
  }
  co_return listing;
}

Task<std::map<std::string, std::string>> SimMount::getxattrs(InodeId inode) {
  ++world_.counts.operations;
  FM_CO_CHECK(co_await send(inode));
  if (const Inode& known = inodes_[inode]; known.xattrs && holds(known.xattrs_stamp)) {
    ++world_.counts.cached_reads;
    const auto xattrs = *known.xattrs;
    world_.oracle.saw_xattrs(world_.oracle.begin_cached(own_), name_ + ": cached xattrs", inode,
                             xattrs);
    co_return xattrs;
  }
  const LogIndex floor = world_.oracle.begin();
  auto reply = co_await client_.getxattrs({}, inode);
  if (!reply) {
    if (reply.error() == std::errc::no_such_file_or_directory)
      world_.oracle.saw_no_inode(floor, name_ + ": a getxattrs", inode);
    co_return reply.error();
  }
  world_.oracle.saw_xattrs(floor, name_ + ": a getxattrs", inode, reply->xattrs);
  Inode& of = inodes_[inode];
  if (reply->leased && reply->stamp > of.called_back && reply->stamp >= of.xattrs_stamp) {
    of.xattrs = reply->xattrs;
    of.xattrs_stamp = reply->stamp;
  }
  co_return std::move(reply->xattrs);
}

// ---------------------------------------------------------------- files

Task<std::shared_ptr<SimMount::Open>> SimMount::open(InodeId inode) {
  ++world_.counts.operations;
  ++world_.counts.opens;
  ++inodes_[inode].holds;  // from here on a callback that asks is told: open
  auto file = co_await do_open(inode);
  if (!file) --inodes_[inode].holds;
  co_return file;
}

Task<std::shared_ptr<SimMount::Open>> SimMount::do_open(InodeId inode) {
  auto file = std::make_shared<Open>();
  file->inode = inode;
  {
    const Inode& known = inodes_[inode];
    if (unsent_.contains(inode)) {
      file->session = session_.id();
      co_return file;
    }
    const bool here =
        attr_valid(known) &&
        (!known.attr->version || (known.content && known.content->version == known.attr->version));
    if (here) {
      ++world_.counts.cached_reads;
      world_.oracle.saw_attr(world_.oracle.begin_cached(own_), name_ + ": a cached open",
                             *known.attr);
      file->version = known.attr->version;
      if (known.content && file->version) file->content = *known.content;
      file->session = session_.id();
      co_return file;
    }
  }
  const LogIndex floor = world_.oracle.begin();
  const Version have = inodes_[inode].content ? inodes_[inode].content->version : Version();
  auto opened = co_await client_.open({}, inode, have);
  if (!opened) {
    if (opened.error() == std::errc::no_such_file_or_directory)
      world_.oracle.saw_no_inode(floor, name_ + ": an open", inode);
    co_return opened.error();
  }
  world_.oracle.saw_attr(floor, name_ + ": an open", opened->attr);
  apply(opened->attr, opened->stamp, opened->leased);
  file->version = opened->attr.version;
  file->session = session_.id();
  if (opened->content.kind == OpenReply::Content::kNone) {
    const auto& cached = inodes_[inode].content;
    if (!file->version) co_return file;
    if (opened->attr.version == have && cached && cached->version == have) {
      file->content = *cached;
      co_return file;
    }
    // Another open of this mount has replaced what we had meanwhile; or the content is empty.
    if (opened->attr.version == have) co_return std::make_error_code(std::errc::io_error);
  }
  Content content;
  content.version = opened->attr.version;
  content.size_bytes = opened->attr.size_bytes;
  if (opened->content.kind == OpenReply::Content::kInline) {
    content.kind = ContentKind::kInline;
    content.inline_bytes = std::string(as_text(opened->content.inline_bytes.view()));
  } else if (opened->content.kind == OpenReply::Content::kChunks) {
    content.kind = ContentKind::kChunks;
    content.chunks = opened->content.chunks;
    for (const auto& [patch, bytes] : opened->content.patches) {
      content.patches.push_back({patch.offset_bytes, std::string(as_text(bytes.view()))});
    }
  }
  world_.oracle.saw_content(name_ + ": an open", inode, content);
  file->content = content;
  inodes_[inode].content = std::move(content);
  co_return file;
}

Task<void> SimMount::read(std::shared_ptr<Open> file) {
  ++world_.counts.operations;
  world_.oracle.saw_content(name_ + ": a read", file->inode, file->content);
  for (const ChunkRef& ref : file->content.chunks) {
    auto bytes = co_await client_.get_chunk(ref.id);
    if (bytes) continue;  // its hash was checked
    if (bytes.error() == Errc::kCorruptChunk &&
        ((world_.oracle.is_newest(file->inode, file->version) &&
          world_.oracle.names_chunk(file->inode, ref.id)) ||
         (world_.character.history_retention > std::chrono::hours(1) &&
          !world_.character.full_disks))) {  // which end history early
      world_.oracle.fail(name_ + ": a chunk of inode " + std::to_string(file->inode.value()) +
                         " version " + std::to_string(file->version.value()) +
                         " is lost: no node has a good copy (D1)");
    }
    co_return bytes.error();
  }
  co_return Status();
}

std::string SimMount::token() {
  std::string token = name_ + "#" + std::to_string(next_token_++) + ".";
  token.resize(token.size() + env_.random().below(60), 'x');
  return token;
}

/// Two chunks whose bytes end early (zeros follow): small, and yet real chunks.
Task<std::string> SimMount::put_chunks(std::string token) {
  std::vector<ChunkRef> refs;
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::string part = token + std::to_string(i);
    const Buffer bytes = Buffer::copy_of(as_bytes(part));
    const ChunkId id = chunk_id_of(bytes.view());
    refs.push_back({i, id});
    world_.oracle.note_chunk(id, bytes);
    bool there = false;
    if (env_.random().chance(1, 3)) {
      std::vector<ChunkId> ids{id};
      FM_CO_TRY(const auto flags, co_await client_.query_chunks(std::move(ids)));
      there = flags[0];
    }
    if (!there) FM_CO_CHECK(co_await client_.put_chunk(id, bytes));
  }
  std::string records;
  append_chunk_records(records, refs);
  co_return records;
}

Task<void> SimMount::commit(std::shared_ptr<Open> file, Shape shape, bool replace_newer) {
  const std::string bytes = token();
  CommitOp op;
  op.inode = file->inode;
  op.base = file->version;
  op.mtime.seconds = static_cast<std::int64_t>(next_token_);
  op.path_hint = name_;
  std::string payload = bytes;
  if (shape == Shape::kPatch && file->content.size_bytes < 8) shape = Shape::kInline;
  if (shape == Shape::kInline) {
    op.kind = CommitOp::Kind::kInline;
    op.whole = true;
    op.size_bytes = bytes.size();
  } else if (shape == Shape::kPatch) {
    op.kind = CommitOp::Kind::kPatches;
    op.size_bytes = std::max<std::uint64_t>(file->content.size_bytes, 4 + bytes.size());
    op.patches.push_back({4, static_cast<std::uint32_t>(bytes.size())});
  } else {
    op.kind = CommitOp::Kind::kChunks;
    op.whole = true;
    op.size_bytes = 2 * kChunkSizeBytes;
    FM_CO_TRY(payload, co_await put_chunks(bytes));
  }
  Result<MutationReply> reply = Errc::kRetry;
  FM_CO_TRY(const bool unsent, co_await begin_sending(file->inode));
  if (unsent) {
    // Made and written in one, or made first.
    Mutation make = unsent_.at(file->inode).op;
    const SessionId session = unsent_.at(file->inode).session;
    const bool both = shape == Shape::kInline;
    if (both) make = MakeFileOp{unsent_.at(file->inode).op, op};
    std::string with = both ? payload : std::string();
    reply = co_await mutate(std::move(make), std::move(with), session);
    FM_CO_CHECK(co_await end_sending(file->inode, reply, Sending::kForNow));
    if (both && !reply)
      co_return reply.error();  // its own, by an attempt of which it heard nothing
  }
  for (;;) {
    if (unsent && shape == Shape::kInline) break;
    reply = co_await mutate(op, payload);
    if (reply) break;
    if (reply.error() == Errc::kMissingChunk) {
      FM_CO_TRY(payload, co_await put_chunks(bytes));
      continue;
    }
    if (reply.error() != Errc::kStaleBase || !replace_newer || !op.whole || op.replace_newer)
      co_return reply.error();
    op.replace_newer = true;
  }
  ++world_.counts.commits;
  file->version = reply->version;
  if (shape == Shape::kInline) {
    Content content;
    content.kind = ContentKind::kInline;
    content.version = reply->version;
    content.size_bytes = bytes.size();
    content.inline_bytes = bytes;
    file->content = content;
    inodes_[file->inode].content = std::move(content);
  } else if (const Content* known = world_.oracle.content_of(reply->version)) {
    file->content = *known;
  }
  co_return Status();
}

Task<void> SimMount::close(std::shared_ptr<Open> file) {
  ++world_.counts.operations;
  const InodeId id = file->inode;
  FM_CO_CHECK(co_await send(id));
  {
    Inode& inode = inodes_[id];
    if (--inode.holds != 0) co_return Status();
    const bool linked = attr_valid(inode) && inode.attr->nlink != 0;
    if (linked && !inode.maybe_orphan) co_return Status();
    inode.maybe_orphan = false;
  }
  ReleaseOrphansOp op;
  op.inodes.push_back(id);
  Mutation mutation = std::move(op);
  auto reply = co_await mutate(std::move(mutation));
  if (!reply) co_return reply.error();
  co_return Status();
}

// ---------------------------------------------------------------- mutations

Task<MutationReply> SimMount::mutate(Mutation op, std::string payload, SessionId under) {
  ++world_.counts.operations;
  Credentials cred;
  const std::uint64_t id = world_.oracle.begin_mutation(op, as_bytes(payload), under);
  cred.groups.push_back(static_cast<std::uint32_t>(id));
  const Buffer bytes = Buffer::copy_of(as_bytes(payload));
  own_.insert(id);
  if (world_.options.trace)
    world_.note(name_, "begins " + std::to_string(id) + " (" + world_.oracle.describe(id) + ")");
  auto reply = co_await client_.mutate(cred, op, bytes, under);
  own_.erase(id);
  world_.oracle.end_mutation(id, reply);
  world_.note(name_, "mutation " + std::to_string(id) + " (" + world_.oracle.describe(id) +
                         ") at " + std::to_string(world_.oracle.index_of(id).value()) + ": " +
                         (reply ? "done" : reply.error().message()));
  if (reply) {
    ++world_.counts.mutations;
    take(*reply);
  }
  co_return reply;
}

void SimMount::take(const MutationReply& reply) {
  if (reply.attr) apply(*reply.attr, reply.stamp, reply.leased);
  if (reply.parent) apply(*reply.parent, reply.stamp, reply.parent_leased);
  if (reply.new_parent) apply(*reply.new_parent, reply.stamp, reply.new_parent_leased);
  if (reply.removed) apply(*reply.removed, reply.stamp, reply.removed_leased);
}

// --- locks

bool SimMount::answers_for(LockKey file, SessionId session) const {
  if (locks_.delegation(file.first, file.second, session) != Delegation::kHeld) return false;
  return world_.breaks(BrokenRule::kTrustOldDelegations) || session_.runs(session);
}

asio::awaitable<void> SimMount::enter(LockKey file) {
  while (!locking_.insert(file).second) (void)co_await env_.sleep_for(std::chrono::milliseconds(1));
}

Task<bool> SimMount::lock(LockOp op) {
  const LockKey file{op.inode, op.space};
  co_await enter(file);
  auto granted = co_await do_lock(std::move(op));
  leave(file);
  co_return granted;
}

Task<bool> SimMount::do_lock(LockOp op) {
  const SessionId session = session_.id();
  const LockKey file{op.inode, op.space};
  const HeldLock wanted{{session, op.owner}, op.range, op.type, op.pid};
  if (!session || locks_.lost_any(op.inode, op.space, op.owner, session)) co_return false;
  bool here = answers_for(file, session);
  if (here) {
    ++world_.counts.operations;
  } else {
    if (locks_.delegation(op.inode, op.space, session) != Delegation::kNone)
      FM_CO_CHECK(co_await return_locks(file));
    op.delegate = session_.is_settled();
    Mutation mutation = op;
    const auto reply = co_await mutate(std::move(mutation), {}, session);
    const bool refused = !reply && reply.error() == std::errc::resource_unavailable_try_again;
    if (refused) co_return false;
    const bool sure = reply && session_.is_settled();
    const bool delegated = !reply || reply->delegated;
    locks_.set_delegation(op.inode, op.space, session,
                          !delegated ? Delegation::kNone
                          : sure     ? Delegation::kHeld
                                     : Delegation::kUnsure);
    if (!reply) co_return reply.error();
    here = reply->delegated;
  }
  if (here) {
    if (find_conflict(locks_.of_session(op.inode, op.space, session), wanted)) co_return false;
    ++world_.counts.locks_here;
  }
  locks_.apply(op.inode, op.space, wanted);
  world_.oracle.locked(name_, op.inode, op.space, wanted, here);
  co_return true;
}

Task<void> SimMount::unlock(LockOp op) {
  const LockKey file{op.inode, op.space};
  op.type = LockType::kUnlock;
  op.range = kWholeFile;
  co_await enter(file);
  auto done = co_await do_unlock(std::move(op));
  leave(file);
  co_return done;
}

Task<void> SimMount::do_unlock(LockOp op) {
  const LockList held = locks_.of_owner(op.inode, op.space, op.owner);
  const LockKey file{op.inode, op.space};
  SessionId session = session_.id();
  if (!held.empty()) {
    session = held.front().owner.session;
    world_.oracle.unlocked(op.inode, op.space, held.front().owner);
  }
  locks_.apply(op.inode, op.space, {{session, op.owner}, op.range, op.type, op.pid});
  if (answers_for(file, session)) co_return Status();
  if (locks_.delegation(op.inode, op.space, session_.id()) != Delegation::kNone)
    co_return co_await return_locks(file);
  Mutation mutation = op;
  const auto reply = co_await mutate(std::move(mutation), {}, session);
  if (!reply) co_return reply.error();
  co_return Status();
}

asio::awaitable<void> SimMount::hand_back(LockKey file) {
  co_await enter(file);
  (void)co_await return_locks(file);
  leave(file);
}

/// Nobody else asks about the file's locks of that kind meanwhile.
Task<void> SimMount::return_locks(LockKey file) {
  const SessionId session = session_.id();
  if (!session) co_return Status();
  ReturnLocksOp op;
  op.inode = file.first;
  op.space = file.second;
  op.held = locks_.of_session(op.inode, op.space, session);
  for (HeldLock& lock : op.held) lock.owner.session = {};  // it is the command's
  Mutation mutation = std::move(op);
  const auto reply = co_await mutate(std::move(mutation), {}, session);
  const bool over = !reply && (reply.error() == Errc::kSessionExpired ||
                               reply.error() == std::errc::no_such_file_or_directory);
  if (reply) ++world_.counts.locks_returned;
  if (reply && world_.breaks(BrokenRule::kKeepDelegations)) co_return Status();
  locks_.set_delegation(file.first, file.second, session,
                        reply || over ? Delegation::kNone : Delegation::kUnsure);
  if (!reply && !over) co_return reply.error();
  co_return Status();
}

Task<Attr> SimMount::create(InodeId parent, std::string name, FileType type, bool exclusive) {
  if (type == FileType::kRegular) {
    // As the kernel does before it creates.
    if (holds(inodes_[parent].alone)) FM_CO_CHECK(co_await known_name(parent, name));
    if (const auto made = make_here(parent, name)) co_return *made;
  }
  const Changing changing(changing_, parent);
  const auto known = inodes_[parent].entries.find(name);
  if (known != inodes_[parent].entries.end()) {
    const InodeId child = known->second.child;
    FM_CO_CHECK(co_await send(child));
  }
  CreateOp op;
  op.parent = parent;
  op.name = name;
  op.type = type;
  op.mode = type == FileType::kDirectory ? 0755 : 0644;
  op.exclusive = exclusive;
  Mutation mutation = std::move(op);
  FM_CO_TRY(const auto reply, co_await mutate(std::move(mutation)));
  if (!reply.attr) co_return std::make_error_code(std::errc::no_such_file_or_directory);
  set_entry(parent, name, reply.attr->inode, reply.stamp, reply.parent_leased, true);
  const auto alone = [&](InodeId directory) {
    Inode& dir = inodes_[directory];
    if (reply.stamp > dir.called_back) dir.alone = std::max(dir.alone, reply.stamp);
  };
  if (reply.parent_exclusive) alone(parent);
  if (reply.exclusive) alone(reply.attr->inode);
  if (reply.exclusive || reply.parent_exclusive)
    asio::co_spawn(env_.executor(), fill_reserve_behind(), asio::detached);
  co_return *reply.attr;
}

Task<void> SimMount::link(InodeId inode, InodeId parent, std::string name) {
  const Changing changing(changing_, parent);
  FM_CO_CHECK(co_await send(inode));
  if (const auto known = inodes_[parent].entries.find(name);
      known != inodes_[parent].entries.end() && unsent_.contains(known->second.child))
    co_return std::make_error_code(std::errc::file_exists);
  Mutation mutation = LinkOp{inode, parent, name};
  FM_CO_TRY(const auto reply, co_await mutate(std::move(mutation)));
  set_entry(parent, name, reply.attr ? inode : InodeId(), reply.stamp,
            reply.parent_leased && reply.attr, true);
  co_return Status();
}

Task<void> SimMount::unlink(InodeId parent, std::string name) {
  const Changing changing(changing_, parent);
  FM_CO_TRY(const auto victim, co_await lookup(parent, name));
  if (!victim) co_return std::make_error_code(std::errc::no_such_file_or_directory);
  FM_CO_TRY(const bool unsent, co_await begin_sending(victim->inode));
  if (unsent) {
    lose(victim->inode, {});  // of which nobody was told
    co_return Status();
  }
  const bool open_here = inodes_[victim->inode].holds != 0;
  if (open_here) inodes_[victim->inode].maybe_orphan = true;
  Mutation mutation = UnlinkOp{parent, name, open_here};
  FM_CO_TRY(const auto reply, co_await mutate(std::move(mutation)));
  set_entry(parent, name, InodeId(), reply.stamp, reply.parent_leased, true);
  co_return Status();
}

Task<void> SimMount::rmdir(InodeId parent, std::string name) {
  const Changing changing(changing_, parent);
  FM_CO_TRY(const auto victim, co_await lookup(parent, name));
  if (!victim) co_return std::make_error_code(std::errc::no_such_file_or_directory);
  const Changing changing_it(changing_, victim->inode);
  for (const InodeId inode : all_unsent()) FM_CO_CHECK(co_await send(inode));
  Mutation mutation = RmdirOp{parent, name};
  FM_CO_TRY(const auto reply, co_await mutate(std::move(mutation)));
  set_entry(parent, name, InodeId(), reply.stamp, reply.parent_leased, true);
  co_return Status();
}

Task<void> SimMount::rename(RenameOp op) {
  const Changing changing(changing_, op.parent);
  const Changing changing_too(changing_, op.new_parent);
  for (const InodeId inode : all_unsent()) FM_CO_CHECK(co_await send(inode));
  FM_CO_TRY(const auto target, co_await lookup(op.new_parent, op.new_name));
  if (target && inodes_[target->inode].holds != 0) {
    op.target_open_here = true;
    inodes_[target->inode].maybe_orphan = true;
  }
  Mutation mutation = op;
  FM_CO_TRY(const auto reply, co_await mutate(std::move(mutation)));
  const bool exchanged = (op.flags & RenameOp::kExchange) != 0;
  const bool known = !exchanged && reply.attr;  // what else an exchange put there is asked again
  const bool to_leased = op.parent == op.new_parent ? reply.parent_leased : reply.new_parent_leased;
  set_entry(op.parent, op.name, InodeId(), reply.stamp, known && reply.parent_leased, true);
  set_entry(op.new_parent, op.new_name, known ? reply.attr->inode : InodeId(), reply.stamp,
            known && to_leased, true);
  co_return Status();
}

Task<void> SimMount::chmod(InodeId inode, std::uint32_t mode) {
  FM_CO_CHECK(co_await send(inode));
  SetAttrOp op;
  op.inode = inode;
  op.mode = mode;
  Mutation mutation = std::move(op);
  FM_CO_TRY(const auto reply, co_await mutate(std::move(mutation)));
  co_return Status();
}

Task<void> SimMount::set_quota(SetQuotaOp op) {
  Mutation mutation = std::move(op);
  FM_CO_TRY(const auto reply, co_await mutate(std::move(mutation)));
  co_return Status();
}

Task<void> SimMount::setxattr(InodeId inode, std::string name) {
  FM_CO_CHECK(co_await send(inode));
  SetXattrOp op;
  op.inode = inode;
  op.name = name;
  op.value = token();
  Mutation mutation = std::move(op);
  auto reply = co_await mutate(std::move(mutation));
  inodes_[inode].xattrs.reset();
  if (!reply) co_return reply.error();
  inodes_[inode].xattrs_stamp = std::max(inodes_[inode].xattrs_stamp, reply->stamp);
  co_return Status();
}

Task<void> SimMount::removexattr(InodeId inode, std::string name) {
  FM_CO_CHECK(co_await send(inode));
  Mutation mutation = RemoveXattrOp{inode, name};
  auto reply = co_await mutate(std::move(mutation));
  inodes_[inode].xattrs.reset();
  if (!reply) co_return reply.error();
  inodes_[inode].xattrs_stamp = std::max(inodes_[inode].xattrs_stamp, reply->stamp);
  co_return Status();
}

}  // namespace fermata::test
