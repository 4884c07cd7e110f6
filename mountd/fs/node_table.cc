#include "mountd/fs/node_table.h"

#include <algorithm>

#include "common/base/assert.h"

namespace fermata::mountd {
NodeTable::NodeTable(const ClientSession& session, Limits limits)
    : session_(session), limits_(limits) {
  MutexLock lock(mutex_);
  Inode& root = inode(kRootInode);
  Node node;
  node.handle = kRootNode;
  node.inode = kRootInode;
  node.lookups = 1;  // the kernel's own, never given back
  nodes_.emplace(raw(kRootNode), std::move(node));
  root.current = kRootNode;
  root.nodes.push_back(kRootNode);
}

// ------------------------------------------------------------------------------------- inodes

NodeTable::Inode* NodeTable::peek_inode(InodeId id) {
  const auto found = inodes_.find(id);
  if (found == inodes_.end()) return nullptr;
  lru_.splice(lru_.end(), lru_, found->second->place);
  return found->second.get();
}

NodeTable::Inode& NodeTable::inode(InodeId id) {
  if (Inode* found = peek_inode(id)) return *found;
  trim();
  auto made = std::make_unique<Inode>();
  made->id = id;
  made->place = lru_.insert(lru_.end(), id);
  return *inodes_.emplace(id, std::move(made)).first->second;
}

NodeTable::Directory& NodeTable::directory(InodeId id) {
  Inode& of = inode(id);
  if (!of.directory) of.directory = std::make_unique<Directory>();
  return *of.directory;
}

// Forgetting an inode also forgets when it was last called back. That is safe only if no answer
// older than that callback can still arrive; such an answer would have to be overtaken by all the
// traffic that filled the table.
void NodeTable::trim() {
  int scan = 64;
  while ((inodes_.size() >= limits_.inode_count || entry_count_ >= limits_.entry_count) &&
         scan-- > 0 && !lru_.empty()) {
    const auto found = inodes_.find(lru_.front());
    Inode& victim = *found->second;
    if (victim.directory && victim.unsent_names.empty()) {
      entry_count_ -= victim.directory->entries.size();
      victim.directory.reset();
    }
    if (!victim.nodes.empty() || !victim.locks.expired() || victim.unsent ||
        !victim.unsent_names.empty()) {
      lru_.splice(lru_.end(), lru_, victim.place);
      continue;
    }
    lru_.erase(victim.place);
    inodes_.erase(found);
  }
}

bool NodeTable::attr_valid(const Inode& of) const {
  return of.gone || of.unsent || (of.known && of.leased && session_.lease_holds(of.stamp));
}

void NodeTable::apply_locked(Inode& to, const Attr& attr, Stamp stamp, bool leased) {
  if (to.known && stamp < to.stamp) return;
  // Set by somebody, here or elsewhere: what was read before that counts no more.
  if (attr.atime != to.attr.atime && attr.atime != to.told_read) to.noted_read.reset();
  to.known = true;
  to.attr = attr;
  to.stamp = stamp;
  to.leased = leased && stamp > to.called_back;
}

void NodeTable::apply(const Attr& attr, Stamp stamp, bool leased) {
  MutexLock lock(mutex_);
  apply_locked(inode(attr.inode), attr, stamp, leased);
}

void NodeTable::distrust(InodeId id, std::optional<Timestamp> lost_name) {
  MutexLock lock(mutex_);
  Inode* of = peek_inode(id);
  if (of == nullptr) return;
  of->leased = false;
  if (lost_name) of->lost_name = *lost_name;
}

void NodeTable::note_gone(InodeId id) {
  MutexLock lock(mutex_);
  Inode* of = peek_inode(id);
  if (of == nullptr || !of->known) return;
  of->gone = true;
  of->attr.nlink = 0;
  of->attr.ctime = std::max(of->attr.ctime, of->lost_name);
}

// -------------------------------------------------------------------------------------- nodes

bool NodeTable::idle(const Node& node) { return !node.file || node.file->holds.load() == 0; }

bool NodeTable::maybe_open(const Node& node, const Inode& of) {
  if (node.file) return !idle(node);
  const FileType type = of.attr.type;
  const bool special =
      type != FileType::kRegular && type != FileType::kDirectory && type != FileType::kSymlink;
  return of.known && special && node.lookups != 0;
}

bool NodeTable::unsettled(const Node& node, const Inode& of) {
  return node.file && node.version != of.attr.version && !node.file->sticky.load() &&
         (node.file->writers.load() != 0 || node.file->mapped.load());
}

NodeTable::Node* NodeTable::settled_node(Inode& of) {
  if (of.current != kNoNode && unsettled(nodes_.at(raw(of.current)), of)) return nullptr;
  return &newest_node(of);
}

std::shared_ptr<InodeLocks> NodeTable::shared_locks(Inode& of) {
  auto locks = of.locks.lock();
  if (!locks) of.locks = locks = std::make_shared<InodeLocks>();
  return locks;
}

std::shared_ptr<InodeLocks> NodeTable::locks_of(InodeId id) {
  MutexLock lock(mutex_);
  return shared_locks(inode(id));
}

NodeTable::Node& NodeTable::make_node(Inode& of) {
  Node made;
  made.handle = NodeHandle{next_node_++};
  made.inode = of.id;
  made.version = of.attr.version;
  if (of.attr.type == FileType::kRegular) {
    made.file = std::make_shared<FileState>(of.id, made.handle, shared_locks(of));
    made.shown = of.attr;
  }
  of.nodes.push_back(made.handle);
  of.current = made.handle;
  return nodes_.emplace(raw(made.handle), std::move(made)).first->second;
}

NodeTable::Node& NodeTable::newest_node(Inode& of) {
  if (of.current == kNoNode) return make_node(of);
  Node& node = nodes_.at(raw(of.current));
  if (!node.file || node.version == of.attr.version) {
    if (node.file) node.shown = of.attr;
    return node;
  }
  if (idle(node) && !node.file->sticky.load()) {
    node.version = of.attr.version;
    node.shown = of.attr;
    return node;
  }
  if (node.file->sticky.load()) return node;  // what is dirty here stays the mount's file
  return make_node(of);
}

NodeTable::View NodeTable::view(const Node& node, const Inode& of) const {
  View out;
  out.node = node.handle;
  out.inode = node.inode;
  out.current = of.current == node.handle;
  out.alone = of.nodes.size() == 1;
  out.attr_known = of.known;
  out.attr_valid = attr_valid(of);
  out.attr = of.attr;
  out.attr.inode = of.id;
  if (of.attr.type == FileType::kDirectory) {
    constexpr std::uint64_t kEntryBytes = 32;  // Attr::size_bytes
    out.attr.size_bytes += of.unsent_names.size() * kEntryBytes;
    if (of.changed_here > out.attr.ctime) out.attr.mtime = out.attr.ctime = of.changed_here;
  }
  if (of.noted_read && *of.noted_read > out.attr.atime) {
    out.attr.atime = *of.noted_read;
    out.noted_read = true;
  }
  out.version = node.version;
  out.file = node.file;
  if (node.file && of.known && node.version != of.attr.version) {
    out.shown = out.attr;
    out.shown->size_bytes = node.shown.size_bytes;
    out.shown->allocated_bytes = node.shown.allocated_bytes;
    out.shown->mtime = node.shown.mtime;
    out.shown->version = node.version;
  }
  return out;
}

std::optional<NodeTable::View> NodeTable::find(NodeHandle node) {
  MutexLock lock(mutex_);
  const auto found = nodes_.find(raw(node));
  if (found == nodes_.end()) return std::nullopt;
  return view(found->second, inode(found->second.inode));
}

std::optional<InodeId> NodeTable::inode_of(NodeHandle node) {
  MutexLock lock(mutex_);
  const auto found = nodes_.find(raw(node));
  if (found == nodes_.end()) return std::nullopt;
  return found->second.inode;
}

NodeHandle NodeTable::node_of(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  return of == nullptr ? kNoNode : of->current;
}

NodeTable::View NodeTable::bind(const Attr& attr, Stamp stamp, bool leased) {
  MutexLock lock(mutex_);
  Inode& of = inode(attr.inode);
  apply_locked(of, attr, stamp, leased);
  Node& node = newest_node(of);
  ++node.lookups;
  return view(node, of);
}

NodeTable::View NodeTable::adopt(const Attr& attr, Stamp stamp, bool leased) {
  MutexLock lock(mutex_);
  Inode& of = inode(attr.inode);
  apply_locked(of, attr, stamp, leased);
  Node& node = newest_node(of);
  if (node.file) node.file->holds.fetch_add(1);
  return view(node, of);
}

std::shared_ptr<FileState> NodeTable::remove_if_unused(NodeHandle handle) {
  const auto found = nodes_.find(raw(handle));
  if (found == nodes_.end() || handle == kRootNode) return nullptr;
  Node& node = found->second;
  if (node.lookups != 0 || !idle(node)) return nullptr;
  if (node.file && node.file->sticky.load()) return nullptr;  // uncommitted work: kept and listed
  if (node.file && node.file->unsent.load()) return nullptr;
  auto file = std::move(node.file);
  if (Inode* of = peek_inode(node.inode)) {
    std::erase(of->nodes, handle);
    if (of->current == handle) of->current = of->nodes.empty() ? kNoNode : of->nodes.back();
    if (of->nodes.empty()) {
      of->names.clear();
      of->more_names = false;
    }
  }
  nodes_.erase(found);
  return file;
}

bool NodeTable::granted(NodeHandle handle) {
  MutexLock lock(mutex_);
  const auto found = nodes_.find(raw(handle));
  if (found == nodes_.end() || found->second.lookups == 0) return false;
  return !found->second.file || !found->second.file->creating.load();
}

NodeTable::Forgotten NodeTable::forget_lookup(NodeHandle handle, std::uint64_t count) {
  MutexLock lock(mutex_);
  Forgotten out;
  const auto found = nodes_.find(raw(handle));
  if (found == nodes_.end() || handle == kRootNode) return out;
  Node& node = found->second;
  const Inode& of = inode(node.inode);
  const bool was_open = maybe_open(node, of);
  node.lookups -= std::min(node.lookups, count);
  if (node.lookups != 0) return out;
  const bool unlinked = node.told_open || (of.attr.nlink == 0 && !of.gone);
  if (!node.file && was_open && unlinked) out.orphan = node.inode;
  out.file = remove_if_unused(handle);
  return out;
}

std::shared_ptr<FileState> NodeTable::reap(NodeHandle node) {
  MutexLock lock(mutex_);
  return remove_if_unused(node);
}

// ------------------------------------------------------------------------------------ entries

void NodeTable::erase_entry(Directory& from, std::string_view name) {
  const auto found = from.entries.find(name);
  if (found != from.entries.end()) {
    from.entries.erase(found);
    --entry_count_;
  }
  ++from.losses;
  from.complete = false;
  from.listing.reset();
}

void NodeTable::note_name(Inode& of, InodeId parent, std::string_view name) {
  for (const auto& [dir, known] : of.names) {
    if (dir == parent && known == name) return;
  }
  if (of.names.size() >= limits_.names_per_inode) {
    of.more_names = true;
  } else {
    of.names.emplace_back(parent, std::string(name));
  }
}

void NodeTable::note_seen(Inode& of, InodeId parent, std::string_view name) {
  of.seen_in = parent;
  if (of.seen_as != name) of.seen_as = name;
}

void NodeTable::note_place(InodeId child, InodeId parent, std::string_view name) {
  MutexLock lock(mutex_);
  note_seen(inode(child), parent, name);
}

std::string NodeTable::path_of(InodeId id) {
  constexpr std::size_t kDepthMax = 200;
  MutexLock lock(mutex_);
  std::vector<std::string_view> parts;
  while (id != kRootInode && parts.size() < kDepthMax) {
    const auto found = inodes_.find(id);
    const bool known = found != inodes_.end() && !found->second->seen_as.empty();
    if (!known && parts.empty()) return {};
    parts.push_back(known ? std::string_view(found->second->seen_as) : "...");
    if (!known) break;
    id = found->second->seen_in;
  }
  std::string path;
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
    if (!path.empty()) path += '/';
    path += *part;
  }
  return path;
}

NodeTable::Found NodeTable::lookup(InodeId parent, std::string_view name) {
  MutexLock lock(mutex_);
  Found out;
  Inode* dir = peek_inode(parent);
  if (dir == nullptr || !dir->directory) return out;
  const auto entry = dir->directory->entries.find(name);
  if (entry == dir->directory->entries.end()) {
    const bool all =
        dir->directory->complete && session_.lease_holds(dir->directory->complete_stamp);
    if (all) out.known = Known::kAbsent;
    return out;
  }
  const bool made_here = is_unsent(entry->second.child);
  if (!made_here && !session_.lease_holds(entry->second.stamp)) return out;
  if (!entry->second.child) {
    out.known = Known::kAbsent;
    return out;
  }
  Inode* of = peek_inode(entry->second.child);
  if (of == nullptr || of->gone || !attr_valid(*of)) return out;
  Node* node = settled_node(*of);
  if (node == nullptr) return out;
  ++node->lookups;
  if (node->file) note_name(*of, parent, name);
  out.known = Known::kPresent;
  out.child = view(*node, *of);
  return out;
}

InodeId NodeTable::peek(InodeId parent, std::string_view name) {
  MutexLock lock(mutex_);
  Inode* dir = peek_inode(parent);
  if (dir == nullptr || !dir->directory) return {};
  const auto entry = dir->directory->entries.find(name);
  return entry == dir->directory->entries.end() ? InodeId{} : entry->second.child;
}

bool NodeTable::set_entry(InodeId parent, std::string_view name, InodeId child, Stamp stamp,
                          bool leased, By by) {
  MutexLock lock(mutex_);
  if (child) (void)inode(child);  // may trim: before anything is held on to
  Inode& dir = inode(parent);
  if (!dir.directory) dir.directory = std::make_unique<Directory>();
  Directory& in = *dir.directory;
  if (by == By::kOwnMutation) {
    ++in.changes;
    in.listing.reset();
  }
  if (Inode* of = child ? peek_inode(child) : nullptr; of != nullptr) {
    if (of->attr.type == FileType::kRegular) note_name(*of, parent, name);
    note_seen(*of, parent, name);
  }
  return enter(dir, name, child, stamp, leased);
}

bool NodeTable::enter(Inode& dir, std::string_view name, InodeId child, Stamp stamp, bool leased) {
  Directory& in = *dir.directory;
  const auto found = in.entries.find(name);
  if (found != in.entries.end()) {
    if (found->second.stamp > stamp) return found->second.child == child;
    if (is_unsent(found->second.child)) return found->second.child == child;
  }
  if (!leased || stamp <= dir.called_back) {
    erase_entry(in, name);
    return false;
  }
  if (found != in.entries.end()) {
    found->second = {child, stamp};
    return true;
  }
  in.entries.emplace(std::string(name), Dentry{child, stamp});
  ++entry_count_;
  return true;
}

void NodeTable::drop_entry(InodeId parent, std::string_view name) {
  MutexLock lock(mutex_);
  Directory& in = directory(parent);
  ++in.changes;
  const auto found = in.entries.find(name);
  if (found != in.entries.end() && is_unsent(found->second.child)) return;
  erase_entry(in, name);
}

void NodeTable::set_empty_directory(InodeId id, Stamp stamp, bool leased) {
  MutexLock lock(mutex_);
  Inode& of = inode(id);
  if (!leased || stamp <= of.called_back || of.directory) return;
  of.directory = std::make_unique<Directory>();
  of.directory->complete = true;
  of.directory->complete_stamp = stamp;
  auto empty = std::make_shared<Listing>();
  empty->stamp = stamp;
  of.directory->listing = std::move(empty);
}

// ----------------------------------------------------------------------------------- listings

NodeTable::ListingToken NodeTable::begin_listing(InodeId id) {
  MutexLock lock(mutex_);
  const Directory& in = directory(id);
  return {in.serial, in.changes, in.losses, inode(id).called_back};
}

void NodeTable::keep_listing(InodeId id, ListingToken token,
                             std::shared_ptr<const Listing> listing) {
  MutexLock lock(mutex_);
  Directory& in = directory(id);
  if (in.serial != token.serial || in.changes != token.changes) return;
  if (inode(id).called_back != token.called_back) return;
  if (!session_.lease_holds(listing->stamp)) return;
  in.complete = true;
  in.complete_stamp = listing->stamp;
  in.listing = std::move(listing);
}

void NodeTable::know_all_names(InodeId id, ListingToken token, Stamp stamp) {
  MutexLock lock(mutex_);
  Directory& in = directory(id);
  if (in.serial != token.serial || in.losses != token.losses) return;
  if (inode(id).called_back != token.called_back) return;
  if (!session_.lease_holds(stamp)) return;
  in.complete = true;
  in.complete_stamp = stamp;
}

bool NodeTable::knows_all_names(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  return of != nullptr && of->directory && of->directory->complete &&
         session_.lease_holds(of->directory->complete_stamp);
}

std::shared_ptr<const Listing> NodeTable::listing(InodeId id) {
  MutexLock lock(mutex_);
  Inode* of = peek_inode(id);
  if (of == nullptr || !of->directory || !of->directory->listing) return nullptr;
  const auto& kept = of->directory->listing;
  return session_.lease_holds(kept->stamp) ? kept : nullptr;
}

// ------------------------------------------------------------------------------------- xattrs

std::shared_ptr<const NodeTable::Xattrs> NodeTable::xattrs(InodeId id) {
  MutexLock lock(mutex_);
  static const auto kNone = std::make_shared<const Xattrs>();
  Inode* of = peek_inode(id);
  if (of == nullptr) return nullptr;
  if (of->attr.no_xattrs && attr_valid(*of)) return kNone;
  if (!of->xattrs || !session_.lease_holds(of->xattrs_stamp)) return nullptr;
  return of->xattrs;
}

void NodeTable::drop_xattrs(InodeId id, Stamp stamp) {
  MutexLock lock(mutex_);
  Inode& of = inode(id);
  of.xattrs.reset();
  of.xattrs_stamp = std::max(of.xattrs_stamp, stamp);
}

void NodeTable::set_xattrs(InodeId id, Xattrs values, Stamp stamp, bool leased) {
  MutexLock lock(mutex_);
  Inode& of = inode(id);
  if (!leased || stamp <= of.called_back || stamp < of.xattrs_stamp) return;
  of.xattrs = std::make_shared<const Xattrs>(std::move(values));
  of.xattrs_stamp = stamp;
}

void NodeTable::change_xattr(InodeId id, const std::string& name, std::optional<std::string> value,
                             Stamp stamp, bool leased) {
  MutexLock lock(mutex_);
  Inode& of = inode(id);
  // Answers of two changes may overtake each other: then nothing is known.
  if (!of.xattrs || !leased || stamp <= of.called_back || stamp < of.xattrs_stamp ||
      !session_.lease_holds(of.xattrs_stamp)) {
    of.xattrs.reset();
    of.xattrs_stamp = std::max(of.xattrs_stamp, stamp);
    return;
  }
  auto changed = std::make_shared<Xattrs>(*of.xattrs);
  if (value) {
    (*changed)[name] = std::move(*value);
  } else {
    changed->erase(name);
  }
  of.xattrs = std::move(changed);
  of.xattrs_stamp = stamp;
}

// ------------------------------------------------------------------------------- access times

bool NodeTable::wants_read(const Inode& of, Timestamp now, AtimeRule rule) {
  constexpr std::int64_t kDay = 24 * 60 * 60;
  if (rule == AtimeRule::kNever || !of.known || of.gone) return false;
  if (rule == AtimeRule::kAlways) return true;
  const Timestamp last = of.noted_read ? std::max(*of.noted_read, of.attr.atime) : of.attr.atime;
  return last <= of.attr.mtime || last <= of.attr.ctime || now.seconds - last.seconds >= kDay;
}

bool NodeTable::wants_read(InodeId id, Timestamp now, AtimeRule rule) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  return of != nullptr && wants_read(*of, now, rule);
}

bool NodeTable::note_read(InodeId id, Timestamp now, AtimeRule rule) {
  MutexLock lock(mutex_);
  Inode* of = peek_inode(id);
  if (of == nullptr || !wants_read(*of, now, rule)) return false;
  // What it read was there after the last change, whatever this machine's clock says.
  Timestamp after = of->attr.ctime;
  after.nanoseconds < 999'999'999 ? ++after.nanoseconds : ++after.seconds;
  of->noted_read = std::max(now, after);
  return true;
}

std::optional<Timestamp> NodeTable::noted_read(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  return of == nullptr ? std::nullopt : of->noted_read;
}

void NodeTable::clear_read(InodeId id) {
  MutexLock lock(mutex_);
  if (Inode* of = peek_inode(id)) of->noted_read.reset();
}

std::vector<NoteReadsOp::Read> NodeTable::noted_reads(const std::vector<InodeId>& inodes) {
  MutexLock lock(mutex_);
  std::vector<NoteReadsOp::Read> out;
  for (const InodeId id : inodes) {
    const auto found = inodes_.find(id);
    if (found == inodes_.end() || found->second->gone || !found->second->noted_read) continue;
    found->second->told_read = found->second->noted_read;
    out.push_back({id, *found->second->noted_read});
  }
  return out;
}

// ----------------------------------------------------------------------------------- lineages

std::optional<NodeTable::View> NodeTable::hold(NodeHandle handle) {
  MutexLock lock(mutex_);
  const auto found = nodes_.find(raw(handle));
  if (found == nodes_.end()) return std::nullopt;
  if (found->second.file) found->second.file->holds.fetch_add(1);
  return view(found->second, inode(found->second.inode));
}

bool NodeTable::take_newest(NodeHandle handle, std::uint32_t own_holds, Which which) {
  MutexLock lock(mutex_);
  const auto found = nodes_.find(raw(handle));
  if (found == nodes_.end()) return false;
  Node& node = found->second;
  Inode& of = inode(node.inode);
  if (of.current != handle && which == Which::kCurrent) return false;
  if (node.version == of.attr.version) return true;
  if (node.file->holds.load() > own_holds || node.file->sticky.load()) return false;
  node.version = of.attr.version;
  node.shown = of.attr;
  return true;
}

bool NodeTable::committed(NodeHandle handle, Version version) {
  MutexLock lock(mutex_);
  const auto found = nodes_.find(raw(handle));
  if (found == nodes_.end()) return false;
  Node& node = found->second;
  Inode& of = inode(node.inode);
  node.version = version;
  if (of.attr.version == version) node.shown = of.attr;
  if (of.current == handle || of.attr.version > version) return false;
  of.current = handle;
  return true;
}

void NodeTable::retire(NodeHandle handle) {
  MutexLock lock(mutex_);
  const auto found = nodes_.find(raw(handle));
  if (found != nodes_.end()) found->second.version = Version{};
}

bool NodeTable::in_use(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  return of != nullptr &&
         std::any_of(of->nodes.begin(), of->nodes.end(), [this, of](NodeHandle handle) {
           return maybe_open(nodes_.at(raw(handle)), *of);
         });
}

std::vector<std::shared_ptr<FileState>> NodeTable::files_of(InodeId id) {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<FileState>> out;
  const Inode* of = peek_inode(id);
  if (of == nullptr) return out;
  for (const NodeHandle handle : of->nodes) {
    const Node& node = nodes_.at(raw(handle));
    if (node.file) out.push_back(node.file);
  }
  return out;
}

std::vector<std::shared_ptr<FileState>> NodeTable::held_files() {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<FileState>> out;
  for (const auto& [handle, node] : nodes_) {
    if (node.file &&
        (node.file->holds.load() != 0 || node.file->sticky.load() || node.file->unsent.load())) {
      out.push_back(node.file);
    }
  }
  return out;
}

}  // namespace fermata::mountd
