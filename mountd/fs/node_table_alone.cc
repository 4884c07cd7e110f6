// NodeTable: directories that this mount has alone, and what it has made there and not sent yet.
#include <algorithm>

#include "mountd/fs/node_table.h"

namespace fermata::mountd {

bool NodeTable::is_unsent(InodeId id) {
  if (!id) return false;
  const auto found = inodes_.find(id);
  return found != inodes_.end() && found->second->unsent != nullptr;
}

void NodeTable::hold_alone(InodeId id, Stamp stamp) {
  MutexLock lock(mutex_);
  Inode& of = inode(id);
  if (stamp > of.called_back) of.alone = std::max(of.alone, stamp);
}

bool NodeTable::has_alone(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  return of != nullptr && alone(*of);
}

std::optional<NodeTable::View> NodeTable::make_unsent(Unsent what, Timestamp now) {
  MutexLock lock(mutex_);
  CreateOp& op = what.op;
  (void)inode(op.inode);  // may trim: before anything is held on to
  Inode* dir = peek_inode(op.parent);
  if (dir == nullptr || !dir->directory || !alone(*dir) || !attr_valid(*dir)) return std::nullopt;
  const Attr& above = dir->attr;
  // What an ACL of the directory makes of it is for the cluster to say.
  if (above.type != FileType::kDirectory || above.nlink == 0 || !above.no_xattrs)
    return std::nullopt;
  Directory& in = *dir->directory;
  const auto entry = in.entries.find(op.name);
  const bool known = entry != in.entries.end();
  if (known && (entry->second.child || !session_.lease_holds(entry->second.stamp)))
    return std::nullopt;
  if (!known && (!in.complete || !session_.lease_holds(in.complete_stamp))) return std::nullopt;

  // Newer than what is known of the directory, if the clocks are close enough to mean that.
  constexpr std::int64_t kNearSeconds = 5;
  const Timestamp before = std::max(above.ctime, dir->changed_here);
  op.made = now;
  if (now <= before && before.seconds - now.seconds < kNearSeconds) {
    op.made = before;
    op.made.nanoseconds < 999'999'999 ? ++op.made.nanoseconds
                                      : (op.made.nanoseconds = 0, ++op.made.seconds);
  }
  constexpr std::uint32_t kSetGid = 02000;
  Inode& of = inode(op.inode);
  of.attr = Attr{};
  of.attr.inode = op.inode;
  of.attr.mode = op.mode & ~op.umask & 07777;
  of.attr.nlink = 1;
  of.attr.uid = op.uid;
  of.attr.gid = (above.mode & kSetGid) != 0 ? above.gid : op.gid;
  of.attr.atime = of.attr.mtime = of.attr.ctime = of.attr.btime = op.made;
  of.attr.no_xattrs = true;
  of.known = true;
  dir->changed_here = std::max(dir->changed_here, op.made);
  dir->unsent_names.insert(op.inode);
  ++in.changes;
  in.listing.reset();
  if (known) {
    entry->second = {op.inode, dir->alone};
  } else {
    in.entries.emplace(op.name, Dentry{op.inode, dir->alone});
    ++entry_count_;
  }
  note_name(of, op.parent, op.name);
  note_seen(of, op.parent, op.name);
  unsent_.insert(op.inode);
  of.unsent = std::make_unique<Unsent>(std::move(what));
  Node& node = newest_node(of);
  node.file->unsent = true;
  ++node.lookups;
  return view(node, of);
}

std::optional<Unsent> NodeTable::unsent(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  if (of == nullptr || !of->unsent) return std::nullopt;
  return *of->unsent;
}

std::optional<NodeTable::View> NodeTable::set_unsent(NodeHandle handle, const SetAttrOp& set,
                                                     Timestamp now) {
  MutexLock lock(mutex_);
  const auto found = nodes_.find(raw(handle));
  if (found == nodes_.end()) return std::nullopt;
  Inode& of = inode(found->second.inode);
  if (!of.unsent) return std::nullopt;
  CreateOp& op = of.unsent->op;
  if (!op.set) op.set.emplace();
  op.set->inode = op.inode;
  Attr& attr = of.attr;
  if (set.mode) attr.mode = *(op.set->mode = set.mode);
  if (set.uid) attr.uid = *(op.set->uid = set.uid);
  if (set.gid) attr.gid = *(op.set->gid = set.gid);
  if (set.atime) attr.atime = *(op.set->atime = set.atime);
  if (set.mtime) attr.mtime = *(op.set->mtime = set.mtime);
  attr.ctime = op.changed = std::max(attr.ctime, now);
  return view(found->second, of);
}

std::vector<InodeId> NodeTable::unsent_in(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  if (of == nullptr) return {};
  return {of->unsent_names.begin(), of->unsent_names.end()};
}

std::vector<InodeId> NodeTable::all_unsent() {
  MutexLock lock(mutex_);
  return {unsent_.begin(), unsent_.end()};
}

void NodeTable::put_off(InodeId id, TimePoint now) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  if (of != nullptr && of->unsent) of->unsent->since = now;
}

// In one step: the directory is never seen with the file counted twice, or not at all.
void NodeTable::sent(InodeId id, const MutationReply& reply) {
  MutexLock lock(mutex_);
  Inode& of = inode(id);
  if (!of.unsent) return;
  const InodeId parent = of.unsent->op.parent;
  const std::string name = std::move(of.unsent->op.name);
  of.unsent.reset();
  unsent_.erase(id);
  for (const NodeHandle handle : of.nodes) {
    const Node& node = nodes_.at(raw(handle));
    if (node.file) node.file->unsent = false;
  }
  if (reply.attr) apply_locked(of, *reply.attr, reply.stamp, reply.leased);
  Inode* dir = peek_inode(parent);
  if (dir == nullptr) return;
  dir->unsent_names.erase(id);
  if (reply.parent) apply_locked(*dir, *reply.parent, reply.stamp, reply.parent_leased);
  if (!dir->directory) return;
  (void)enter(*dir, name, id, reply.stamp, reply.parent_leased);
}

bool NodeTable::drop_unsent(InodeId id, Timestamp now, Drop how, int why) {
  MutexLock lock(mutex_);
  Inode* of = peek_inode(id);
  if (of == nullptr || !of->unsent) return false;
  const InodeId parent = of->unsent->op.parent;
  const std::string name = of->unsent->op.name;
  if (how == Drop::kRemoved) of->nameless = std::move(of->unsent);
  of->unsent.reset();
  unsent_.erase(id);
  for (const NodeHandle handle : of->nodes) {
    const Node& node = nodes_.at(raw(handle));
    if (!node.file) continue;
    if (how == Drop::kLost) node.file->lost = why;  // before anybody sees that it is sent no more
    node.file->unsent = false;
  }
  of->gone = true;
  of->attr.nlink = 0;
  of->attr.ctime = std::max(of->attr.ctime, now);
  Inode* dir = peek_inode(parent);
  if (dir == nullptr) return true;
  dir->unsent_names.erase(id);
  dir->changed_here = std::max(dir->changed_here, now);
  if (!dir->directory) return true;
  ++dir->directory->changes;
  dir->directory->listing.reset();
  const auto entry = dir->directory->entries.find(name);
  // Nobody else knew of it: the name is as absent as it was.
  if (entry != dir->directory->entries.end() && entry->second.child == id)
    entry->second.child = InodeId{};
  return true;
}

std::optional<Unsent> NodeTable::nameless(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  if (of == nullptr || !of->nameless) return std::nullopt;
  return *of->nameless;
}

void NodeTable::sent_nameless(InodeId id, const MutationReply& reply) {
  MutexLock lock(mutex_);
  Inode& of = inode(id);
  of.nameless.reset();
  of.gone = false;
  if (reply.attr) apply_locked(of, *reply.attr, reply.stamp, reply.leased);
}

std::optional<Timestamp> NodeTable::untold_change(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  if (of == nullptr || !of->unsent_names.empty() || of->gone) return std::nullopt;
  if (!of->known || of->changed_here <= of->attr.ctime) return std::nullopt;
  return of->changed_here;
}

void NodeTable::settle_times(InodeId id) {
  MutexLock lock(mutex_);
  Inode* of = peek_inode(id);
  if (of != nullptr && of->unsent_names.empty()) of->changed_here = Timestamp{};
}

bool NodeTable::is_gone(InodeId id) {
  MutexLock lock(mutex_);
  const Inode* of = peek_inode(id);
  return of != nullptr && of->gone;
}

}  // namespace fermata::mountd
