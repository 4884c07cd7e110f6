// NodeTable: what a callback, or the end of all leases, makes invalid.
#include <algorithm>

#include "mountd/fs/node_table.h"

namespace fermata::mountd {

void NodeTable::add_names(const Inode& of, Invalidation& to) {
  if (of.more_names) {
    to.all_entries = true;
    return;
  }
  for (const auto& [parent, name] : of.names) {
    const Inode* dir = peek_inode(parent);
    if (dir == nullptr || dir->current == kNoNode) continue;
    to.items.push_back({Notifier::Kind::kExpireEntry, dir->current, name, {}, -1, 0});
  }
}

std::vector<InodeId> NodeTable::begin_call_back(const CallbackRequest& request) {
  MutexLock lock(mutex_);
  std::vector<InodeId> had_alone;
  for (const auto& item : request.items) {
    Inode& of = inode(item.inode);
    of.called_back = std::max(of.called_back, request.stamp);
    if (alone(of) || !of.unsent_names.empty()) had_alone.push_back(item.inode);
    of.alone = Stamp{};
  }
  return had_alone;
}

NodeTable::Invalidation NodeTable::call_back(const CallbackRequest& request) {
  MutexLock lock(mutex_);
  Invalidation out;
  for (const auto& item : request.items) {
    Inode& of = inode(item.inode);
    of.called_back = std::max(of.called_back, request.stamp);
    if (of.unsent_names.empty()) of.changed_here = Timestamp{};
    if (item.attributes) {
      of.leased = false;
      of.xattrs.reset();
      bool used = false;
      for (const NodeHandle handle : of.nodes) {
        out.items.push_back({Notifier::Kind::kInvalidateInode, handle, {}, {}, -1, 0});
        used = used || !idle(nodes_.at(raw(handle)));
      }
      // An idle node takes a newer version itself; of one in use the names may lead elsewhere now.
      if (used && !of.directory) add_names(of, out);
    }
    if (item.asks_open) {
      bool open = false;
      for (const NodeHandle handle : of.nodes) {
        Node& node = nodes_.at(raw(handle));
        if (!maybe_open(node, of)) continue;
        open = true;
        node.told_open = true;
        if (node.file) node.file->unlinked_elsewhere = true;
      }
      if (open) out.open.push_back(item.inode);
    }
    if (item.all_entries) {
      if (of.directory) entry_count_ -= of.directory->entries.size();
      of.directory = std::make_unique<Directory>();
      out.all_entries = true;
    }
    for (const auto& name : item.names) {
      if (of.directory) {
        ++of.directory->changes;
        erase_entry(*of.directory, name);
      }
      if (of.current != kNoNode) {
        out.items.push_back({Notifier::Kind::kExpireEntry, of.current, name, {}, -1, 0});
      }
    }
  }
  return out;
}

NodeTable::Invalidation NodeTable::everything() {
  constexpr std::size_t kNodesMax = 10'000;
  MutexLock lock(mutex_);
  Invalidation out;
  out.all_entries = true;
  for (const auto& [handle, node] : nodes_) {
    const bool open = node.file && node.file->holds.load() != 0;
    if (open || node.handle == kRootNode || nodes_.size() <= kNodesMax) {
      out.items.push_back({Notifier::Kind::kInvalidateInode, node.handle, {}, {}, -1, 0});
    }
  }
  return out;
}

NodeTable::Invalidation NodeTable::expire_names(InodeId id) {
  MutexLock lock(mutex_);
  Invalidation out;
  if (Inode* of = peek_inode(id)) add_names(*of, out);
  return out;
}

NodeTable::Counters NodeTable::counters() {
  MutexLock lock(mutex_);
  return {inodes_.size(), entry_count_, nodes_.size()};
}

}  // namespace fermata::mountd
