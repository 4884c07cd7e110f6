#include "serverd/service/mutation_plan.h"

#include <algorithm>
#include <set>
#include <utility>
#include <variant>

#include "common/base/limits.h"
#include "common/wire/chunk_records.h"

namespace fermata::serverd {
namespace {

constexpr std::size_t kMutationPayloadMax = 4u << 20;  // records of 113,000 chunks

/// One Touch per inode: a second mention is merged.
Touch& touch(TouchSet& set, InodeId inode, bool directory) {
  const auto it =
      std::find_if(set.begin(), set.end(), [&](const Touch& t) { return t.inode == inode; });
  if (it != set.end()) return *it;
  Touch fresh;
  fresh.inode = inode;
  fresh.directory = directory;
  set.push_back(std::move(fresh));
  return set.back();
}

void touch_name(TouchSet& set, InodeId directory, const std::string& name) {
  Touch& parent = touch(set, directory, true);
  if (std::find(parent.names.begin(), parent.names.end(), name) == parent.names.end()) {
    parent.names.push_back(name);
  }
}

struct Planner {
  const Namespace& state;
  SessionId session;
  MutationPlan plan;

  Status lose_name(const Dirent& entry) {
    FM_TRY(const Attr attr, state.attr(entry.inode));
    Touch& child = touch(plan.touched, entry.inode, entry.type == FileType::kDirectory);
    if (entry.type == FileType::kDirectory) {
      child.all_entries = true;
      return {};
    }
    plan.links = entry.inode;
    if (attr.nlink <= 1) {
      plan.losing = entry.inode;
      child.last_link = true;
    }
    return {};
  }
  Status change(InodeId inode) {
    FM_TRY(const Attr attr, state.attr(inode));
    touch(plan.touched, inode, attr.type == FileType::kDirectory);
    return {};
  }

  Status operator()(const CreateOp& op) {
    FM_TRY(const auto entry, state.lookup(op.parent, op.name));
    touch_name(plan.touched, op.parent, op.name);
    if (!entry) return {};
    if (op.exclusive) return std::errc::file_exists;
    plan.expected_inode = entry->inode;
    if (entry->type == FileType::kRegular) plan.found = entry->inode;
    return {};
  }
  Status operator()(const CreateUnnamedOp&) { return {}; }
  Status operator()(const LinkOp& op) {
    FM_TRY(const auto entry, state.lookup(op.parent, op.name));
    if (entry) return std::errc::file_exists;
    FM_CHECK(change(op.inode));
    plan.links = op.inode;
    touch_name(plan.touched, op.parent, op.name);
    return {};
  }
  Status operator()(const UnlinkOp& op) {
    FM_TRY(const auto entry, state.lookup(op.parent, op.name));
    if (!entry) return std::errc::no_such_file_or_directory;
    if (entry->type == FileType::kDirectory) return std::errc::is_a_directory;
    touch_name(plan.touched, op.parent, op.name);
    plan.expected_inode = entry->inode;
    return lose_name(*entry);
  }
  Status operator()(const RmdirOp& op) {
    FM_TRY(const auto entry, state.lookup(op.parent, op.name));
    if (!entry) return std::errc::no_such_file_or_directory;
    if (entry->type != FileType::kDirectory) return std::errc::not_a_directory;
    touch_name(plan.touched, op.parent, op.name);
    plan.expected_inode = entry->inode;
    return lose_name(*entry);
  }
  Status operator()(const RenameOp& op) {
    FM_TRY(const auto from, state.lookup(op.parent, op.name));
    FM_TRY(const auto to, state.lookup(op.new_parent, op.new_name));
    if (!from) return std::errc::no_such_file_or_directory;
    if (to && (op.flags & RenameOp::kNoReplace) != 0) return std::errc::file_exists;
    if (!to && (op.flags & RenameOp::kExchange) != 0) return std::errc::no_such_file_or_directory;
    touch_name(plan.touched, op.parent, op.name);
    touch_name(plan.touched, op.new_parent, op.new_name);
    touch(plan.touched, from->inode, from->type == FileType::kDirectory);
    plan.expected_inode = from->inode;
    if (!to) return {};
    plan.expected_target = to->inode;
    if (to->inode == from->inode) return {};
    if ((op.flags & RenameOp::kExchange) != 0) {
      touch(plan.touched, to->inode, to->type == FileType::kDirectory);
      return {};
    }
    return lose_name(*to);
  }
  Status operator()(const SetAttrOp& op) { return change(op.inode); }
  Status operator()(const SetXattrOp& op) { return change(op.inode); }
  Status operator()(const RemoveXattrOp& op) { return change(op.inode); }
  Status operator()(const CommitOp& op) {
    if (op.kind == CommitOp::Kind::kPatches) {
      // As the command would, but without a round through the log.
      FM_TRY(const PatchUse use, state.patch_use(op.inode));
      std::uint64_t bytes = use.bytes;
      for (const Patch& patch : op.patches) bytes += patch.size_bytes;
      if (use.patches + op.patches.size() > kPatchesMax || bytes > kPatchBytesMax)
        return Errc::kTooLarge;
    }
    return change(op.inode);
  }
  Status operator()(const MakeFileOp& op) { return (*this)(op.create); }
  Status operator()(const ReserveInodesOp&) { return {}; }
  Status operator()(const ReleaseOrphansOp&) { return {}; }
  Status operator()(const NoteReadsOp&) { return {}; }
  Status operator()(const SetQuotaOp&) { return {}; }
  Status operator()(const LockOp& op) {
    FM_TRY(const Attr attr, state.attr(op.inode));
    // As the command would, but without a round through the log.
    FM_TRY(const LockList held, state.locks(op.inode, op.space));
    const SessionId delegate = delegate_of(held);
    if (delegate == session || op.type == LockType::kUnlock) return {};
    if (delegate) return Errc::kRetry;
    const HeldLock wanted{{session, op.owner}, op.range, op.type, op.pid};
    if (find_conflict(held, wanted)) return std::errc::resource_unavailable_try_again;
    return {};
  }
  Status operator()(const ReturnLocksOp&) { return {}; }
};

/// Fills a reply's fields from the state; an inode that is gone leaves its field absent.
struct Replier {
  const Namespace& state;
  LeaseTable& leases;
  SessionId session;
  const CommandResult& result;
  MutationReply reply;

  bool fill(InodeId inode, std::optional<Attr>& attr) {
    auto found = inode ? state.attr(inode) : Result<Attr>(std::errc::no_such_file_or_directory);
    if (!found) return false;
    attr = std::move(*found);
    return leases.grant(session, inode);
  }
  /// The client takes it that the name leads to `child` (none: to nothing). Other mutations may
  /// have been applied since this one, whose callbacks went out before this lease was there.
  bool entry(InodeId parent, const std::string& name, InodeId child) {
    const auto now = state.lookup(parent, name);
    if (!now || (*now ? (*now)->inode : InodeId()) != child) return false;
    return leases.grant_entry(session, parent, name);
  }

  void operator()(const CreateOp& op) {
    reply.leased = fill(result.inode, reply.attr);
    const bool named = entry(op.parent, op.name, result.inode);
    reply.parent_leased = fill(op.parent, reply.parent) && named;
    leases.opened(session, result.inode, reply.leased);  // the create half of an open
  }
  void operator()(const MakeFileOp& op) {
    (*this)(op.create);
    reply.version = result.version;
  }
  void operator()(const ReserveInodesOp&) {
    leases.note_maker(session);
    reply.reserved = result.inode;
    reply.reserved_count = static_cast<std::uint32_t>(result.count);
  }
  void operator()(const CreateUnnamedOp&) {
    reply.leased = fill(result.inode, reply.attr);
    leases.opened(session, result.inode, reply.leased);
  }
  void operator()(const LinkOp& op) {
    reply.leased = fill(op.inode, reply.attr);
    const bool named = entry(op.parent, op.name, op.inode);
    reply.parent_leased = fill(op.parent, reply.parent) && named;
  }
  void operator()(const UnlinkOp& op) { lost(op.parent, op.name); }
  void operator()(const RmdirOp& op) { lost(op.parent, op.name); }
  void lost(InodeId parent, const std::string& name) {
    const bool named = entry(parent, name, InodeId());
    reply.parent_leased = fill(parent, reply.parent) && named;
    reply.removed_leased = fill(result.removed, reply.removed);
    if (!reply.removed && result.removed) leases.forget_inode(result.removed);
  }
  void operator()(const RenameOp& op) {
    reply.leased = fill(result.inode, reply.attr);
    const bool exchanged = (op.flags & RenameOp::kExchange) != 0;
    const bool old_named = entry(op.parent, op.name, exchanged ? result.removed : InodeId());
    const bool new_named = entry(op.new_parent, op.new_name, result.inode);
    if (op.parent == op.new_parent) {
      reply.parent_leased = fill(op.parent, reply.parent) && old_named && new_named;
    } else {
      reply.parent_leased = fill(op.parent, reply.parent) && old_named;
      reply.new_parent_leased = fill(op.new_parent, reply.new_parent) && new_named;
    }
    reply.removed_leased = fill(result.removed, reply.removed);
    if (!reply.removed && result.removed) leases.forget_inode(result.removed);
  }
  void operator()(const SetAttrOp& op) { reply.leased = fill(op.inode, reply.attr); }
  void operator()(const SetXattrOp& op) { reply.leased = fill(op.inode, reply.attr); }
  void operator()(const RemoveXattrOp& op) { reply.leased = fill(op.inode, reply.attr); }
  void operator()(const CommitOp& op) {
    reply.leased = fill(op.inode, reply.attr);
    reply.version = result.version;
  }
  void operator()(const ReleaseOrphansOp&) {}
  void operator()(const NoteReadsOp&) {}
  void operator()(const SetQuotaOp&) {}
  void operator()(const LockOp& op) {
    reply.leased = fill(op.inode, reply.attr);
    reply.delegated = result.count != 0;
  }
  void operator()(const ReturnLocksOp&) {}
};

}  // namespace

Result<MutationPlan> plan_mutation(const Namespace& state, SessionId session, const Mutation& op) {
  Planner planner{state, session, {}};
  FM_CHECK(std::visit([&](const auto& each) { return planner(each); }, op));
  return std::move(planner.plan);
}

bool settles_recall(const Mutation& op) {
  const CreateOp* create = create_of(op);
  if (create != nullptr) return create->inode != InodeId();
  const auto* set = std::get_if<SetAttrOp>(&op);  // when files came and went
  return (set != nullptr && set->written) || std::holds_alternative<ReturnLocksOp>(op);
}

bool takes_room(const Mutation& op) {
  if (const auto* commit = std::get_if<CommitOp>(&op)) return commit->size_bytes != 0;
  return std::holds_alternative<CreateOp>(op) || std::holds_alternative<MakeFileOp>(op) ||
         std::holds_alternative<CreateUnnamedOp>(op) || std::holds_alternative<LinkOp>(op) ||
         std::holds_alternative<SetXattrOp>(op);
}

Status check_payload(const Mutation& op, ByteView payload) {
  // A command must fit into one message between nodes, or the log would never get past it.
  if (payload.size() > kMutationPayloadMax) return Errc::kTooLarge;
  const auto* make = std::get_if<MakeFileOp>(&op);
  const auto* commit = make != nullptr ? &make->content : std::get_if<CommitOp>(&op);
  if (commit == nullptr) return payload.empty() ? Status() : Status(Errc::kBadMessage);
  switch (commit->kind) {
    case CommitOp::Kind::kInline:
      if (commit->size_bytes > kInlineBytesMax) return Errc::kTooLarge;
      return payload.size() == commit->size_bytes ? Status() : Status(Errc::kBadMessage);
    case CommitOp::Kind::kChunks: {
      FM_TRY(const auto refs, parse_chunk_records(payload));
      return {};
    }
    case CommitOp::Kind::kPatches: {
      std::uint64_t size = 0;
      for (const auto& patch : commit->patches) size += patch.size_bytes;
      return payload.size() == size ? Status() : Status(Errc::kBadMessage);
    }
  }
  return Errc::kBadMessage;
}

Result<std::vector<ChunkId>> chunks_of(const Mutation& op, ByteView payload) {
  const auto* commit = std::get_if<CommitOp>(&op);
  if (commit == nullptr || commit->kind != CommitOp::Kind::kChunks) return std::vector<ChunkId>();
  FM_TRY(const auto refs, parse_chunk_records(payload));
  std::set<ChunkId> ids;
  for (const auto& ref : refs) {
    if (ref.id) ids.insert(ref.id);
  }
  return std::vector<ChunkId>(ids.begin(), ids.end());
}

Result<MutationReply> mutation_reply(const Namespace& state, LeaseTable& leases,
                                     const MutationRequest& request, const CommandResult& result,
                                     TimePoint now) {
  Replier replier{state, leases, request.session, result, {}};
  MutationReply& reply = replier.reply;
  reply.stamp = leases.next_stamp();
  const CreateOp* create = request.asks_exclusive ? create_of(request.op) : nullptr;
  // First: whoever has it alone is not held up by other changes of its own.
  const bool alone =
      create != nullptr && leases.grant_exclusive(request.session, create->parent, now);
  std::visit([&](const auto& each) { replier(each); }, request.op);
  reply.parent_exclusive = alone && reply.parent_leased;
  const bool directory = create != nullptr && create->type == FileType::kDirectory;
  reply.exclusive =
      directory && reply.leased && leases.grant_exclusive(request.session, result.inode, now);
  return std::move(reply);
}

const CreateOp* create_of(const Mutation& op) {
  if (const auto* make = std::get_if<MakeFileOp>(&op)) return &make->create;
  return std::get_if<CreateOp>(&op);
}

namespace {

struct DirectoriesOf {
  const Namespace& state;
  std::vector<InodeId> found;

  void add(InodeId inode) {
    if (std::find(found.begin(), found.end(), inode) == found.end()) found.push_back(inode);
  }
  void named(InodeId parent, const std::string& name) {
    add(parent);
    const auto entry = state.lookup(parent, name);
    if (entry && *entry && (*entry)->type == FileType::kDirectory) add((*entry)->inode);
  }
  void changed(InodeId inode) {
    const auto attr = state.attr(inode);
    if (attr && attr->type == FileType::kDirectory) add(inode);
  }
  void operator()(const CreateOp& op) { add(op.parent); }
  void operator()(const MakeFileOp& op) { add(op.create.parent); }
  void operator()(const CreateUnnamedOp&) {}
  void operator()(const ReserveInodesOp&) {}
  void operator()(const LinkOp& op) { add(op.parent); }
  void operator()(const UnlinkOp& op) { add(op.parent); }
  void operator()(const RmdirOp& op) { named(op.parent, op.name); }
  void operator()(const RenameOp& op) {
    named(op.parent, op.name);
    named(op.new_parent, op.new_name);
  }
  void operator()(const SetAttrOp& op) { changed(op.inode); }
  void operator()(const SetXattrOp& op) { changed(op.inode); }
  void operator()(const RemoveXattrOp& op) { changed(op.inode); }
  void operator()(const CommitOp&) {}
  void operator()(const ReleaseOrphansOp&) {}
  void operator()(const NoteReadsOp&) {}
  void operator()(const LockOp&) {}
  void operator()(const ReturnLocksOp&) {}
  void operator()(const SetQuotaOp& op) {
    if (op.kind == QuotaKind::kTree) add(InodeId(op.id));
  }
};

}  // namespace

std::vector<InodeId> directories_of(const Namespace& state, const Mutation& op) {
  DirectoriesOf visitor{state, {}};
  std::visit([&](const auto& each) { visitor(each); }, op);
  return std::move(visitor.found);
}

}  // namespace fermata::serverd
