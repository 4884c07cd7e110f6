#include "test/sim/cluster/oracle.h"

#include <xxhash.h>

#include <algorithm>

#include "common/base/assert.h"
#include "common/base/bytes.h"
#include "common/base/checksum.h"
#include "common/wire/command_codec.h"
#include "serverd/meta/digest.h"
#include "serverd/service/patch_folder.h"

namespace fermata::test {
namespace {

using serverd::Content;

std::uint64_t hash_of(ByteView bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string text(InodeId inode) { return "inode " + std::to_string(inode.value()); }
std::string text(LogIndex index) { return std::to_string(index.value()); }

/// The request did not come to be carried out by this command; another one may.
bool is_attempt_only(const std::error_code& error) {
  return error == Errc::kRetry || error == Errc::kSessionExpired || error == Errc::kStaleEpoch;
}

/// The client does not know whether it was carried out.
bool is_unknown(const std::error_code& error) {
  return error == Errc::kSessionExpired || error == Errc::kShuttingDown ||
         error == std::errc::interrupted || error == std::errc::timed_out ||
         error == std::errc::operation_canceled;
}

bool same(const Content& a, const Content& b) {
  return a.kind == b.kind && a.version == b.version && a.size_bytes == b.size_bytes &&
         a.inline_bytes == b.inline_bytes && a.chunks == b.chunks && a.patches == b.patches;
}

const char* name_of(const Mutation& op) {
  constexpr const char* kNames[] = {
      "create",        "link",        "unlink",      "rmdir",    "rename",       "setattr",
      "setxattr",      "removexattr", "commit",      "release",  "lock",         "noteReads",
      "createUnnamed", "setQuota",    "returnLocks", "makeFile", "reserveInodes"};
  static_assert(std::size(kNames) == std::variant_size_v<Mutation>);
  return kNames[op.index()];
}

/// Where two states part, for the report.
std::string first_difference(const serverd::KvReader& mine, const serverd::KvReader& theirs) {
  for (const serverd::Family family : serverd::kFamilies) {
    const auto a = mine.iterate(family, {}, {});
    const auto b = theirs.iterate(family, {}, {});
    for (; a->valid() && b->valid(); a->next(), b->next()) {
      if (a->key() == b->key() && a->value() == b->value()) continue;
      const bool value = a->key() == b->key();
      const auto hex = [](std::string_view bytes) {
        return to_hex(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
      };
      return std::string("\n  ") + serverd::to_string(family) + " key " + hex(a->key()) +
             (value ? ": " + hex(a->value()) + " and " + hex(b->value())
                    : " and key " + hex(b->key()));
    }
    if (a->valid() || b->valid())
      return std::string("\n  ") + serverd::to_string(family) + " has other numbers of records";
  }
  return "";
}

}  // namespace

// ---------------------------------------------------------------- histories

template <class T>
const T& Oracle::History<T>::at(LogIndex index) const {
  const auto after =
      std::upper_bound(changes_.begin(), changes_.end(), index,
                       [](LogIndex i, const auto& change) { return i < change.first; });
  return after == changes_.begin() ? none_ : std::prev(after)->second;
}

template <class T>
void Oracle::History<T>::note(LogIndex index, T value) {
  if ((changes_.empty() ? none_ : changes_.back().second) == value) return;
  changes_.emplace_back(index, std::move(value));
}

template <class T>
void Oracle::History<T>::add_points(std::vector<LogIndex>& to) const {
  for (const auto& change : changes_) to.push_back(change.first);
}

/// Takes the first index from `floor` on at which `holds`.
template <class Holds>
bool Oracle::settle(LogIndex floor, std::vector<LogIndex> points, Holds holds) {
  ++counts_.checks;
  points.push_back(floor);
  std::sort(points.begin(), points.end());
  for (const LogIndex point : points) {
    if (point < floor || !holds(point)) continue;
    floor_ = std::max(floor_, point);
    return true;
  }
  return false;
}

Oracle::Oracle() : disk_(1) {
  auto store = serverd::MemStore::open(disk_, "/truth");
  FM_ASSERT(store.has_value());
  store_ = std::move(*store);
  auto truth = serverd::Namespace::open(*store_);
  FM_ASSERT(truth.has_value());
  truth_ = std::move(*truth);
}
Oracle::~Oracle() = default;

void Oracle::fail(std::string what) {
  if (violation_.empty()) violation_ = std::move(what);
}

bool Oracle::explain(const std::string& what) {
  fail(what);
  return false;
}

const Oracle::Attrs* Oracle::attrs(InodeId inode) const {
  const auto found = attrs_.find(inode);
  return found == attrs_.end() ? nullptr : &found->second;
}

std::string Oracle::story(InodeId inode) const {
  std::string out = "\n  " + text(inode) + ":";
  if (const Attrs* history = attrs(inode)) {
    for (const auto& [index, attr] : history->changes()) {
      out += " [" + text(index) + "] ";
      out += attr ? "version " + std::to_string(attr->version.value()) + " nlink " +
                        std::to_string(attr->nlink) + " mode " + std::to_string(attr->mode)
                  : "gone";
    }
  }
  return out;
}

std::string Oracle::story(InodeId parent, const std::string& name) const {
  std::string out = "\n  " + text(parent) + "/" + name + ":";
  if (const auto dir = entries_.find(parent); dir != entries_.end()) {
    if (const auto entry = dir->second.find(name); entry != dir->second.end()) {
      for (const auto& [index, child] : entry->second.changes())
        out += " [" + text(index) + "] " + std::to_string(child.value());
    }
  }
  return out;
}

// ---------------------------------------------------------------- the log

void Oracle::on_apply(NodeId node, std::span<const serverd::StateMachine::Command> batch,
                      LogIndex before, LogIndex last, const std::vector<std::string>& results) {
  if (failed()) return;
  const std::string who = "node " + std::to_string(node.value());
  if (results.size() != batch.size()) return fail(who + " answers another number of commands");
  auto known = log_.upper_bound(before);
  for (std::size_t i = 0; i < batch.size(); ++i) {
    const auto& command = batch[i];
    if (command.index <= before) continue;
    const std::uint64_t hash = hash_of(as_bytes(*command.data));
    if (command.index > applied_) {
      if (known != log_.end()) {
        return fail(who + " leaves out the command at index " + text(known->first) +
                    " (state machine safety)");
      }
      apply(command);
      if (failed()) return;
      known = std::prev(log_.end());
    } else if (known == log_.end() || known->first != command.index) {
      return fail(who + " applies a command at index " + text(command.index) +
                  " where others have none, or leaves one out (state machine safety)");
    }
    if (known->second.hash != hash) {
      return fail(who + " applies another command at index " + text(command.index) +
                  " than was applied there before (state machine safety)");
    }
    if (known->second.result != results[i]) {
      const auto mine = decode_command_result(as_bytes(known->second.result));
      const auto theirs = decode_command_result(as_bytes(results[i]));
      return fail(who + " answers the command at index " + text(command.index) +
                  " otherwise than the reference (" +
                  (theirs ? from_wire(theirs->error).message() : std::string("nothing")) +
                  " instead of " + (mine ? from_wire(mine->error).message() : std::string("?")) +
                  ")");
    }
    ++known;
  }
  if (known != log_.end() && known->first <= last) {
    return fail(who + " leaves out the command at index " + text(known->first) +
                " (state machine safety)");
  }
  if (last > truth_->applied_index())
    (void)truth_->apply_entries({}, last);  // entries of no command
  applied_ = std::max(applied_, last);
}

void Oracle::on_primary(NodeId node, Term term) {
  const auto [known, fresh] = primaries_.try_emplace(term, node);
  if (fresh || known->second == node) return;
  fail("nodes " + std::to_string(known->second.value()) + " and " + std::to_string(node.value()) +
       " both are primary of term " + std::to_string(term.value()) + " (election safety)");
}

void Oracle::apply(const serverd::StateMachine::Command& raw) {
  auto command = decode_command(as_bytes(*raw.data));
  if (!command) return fail("a command in the log cannot be read");
  const auto* fold = std::get_if<FoldPatchesCommand>(&command->body);
  if (fold != nullptr) check_fold(raw.index, *fold);
  serverd::Namespace::Entry entry{raw.index, *command};
  auto results = truth_->apply_entries({&entry, 1}, raw.index);
  if (!results || !(*results)[0]) return fail("the reference state cannot apply a command");
  const CommandResult& result = *(*results)[0];
  applied_ = raw.index;
  log_[raw.index] = {hash_of(as_bytes(*raw.data)), encode(result)};
  ++counts_.commands;
  if (const auto* mutate = std::get_if<MutateCommand>(&command->body)) {
    on_mutation(raw.index, *command, *mutate, result);
  } else if (std::holds_alternative<BootstrapCommand>(command->body)) {
    refresh(raw.index, kRootInode);
  } else if (std::holds_alternative<OpenSessionCommand>(command->body)) {
    if (result.error == 0) live_.insert(result.session);
  } else if (const auto* end = std::get_if<EndSessionsCommand>(&command->body)) {
    for (const SessionId session : end->sessions) live_.erase(session);
    for (const InodeId inode : std::set<InodeId>(unlinked_)) refresh(raw.index, inode);
  } else if (std::holds_alternative<CountQuotaCommand>(command->body)) {
    counts_.quota_records += result.count;
  } else if (fold != nullptr && result.count != 0) {
    counts_.folded += result.count;
    auto content = truth_->content(fold->inode, 0, 100'000);
    if (!content) return fail("the reference has no content for a fold");
    folded_contents_[content->version].push_back(std::move(*content));
    refresh(raw.index, fold->inode);  // which must change nothing: no client was told
  }
}

void Oracle::check_fold(LogIndex index, const FoldPatchesCommand& fold) {
  const auto patches = truth_->patches(fold.inode);
  if (!patches) return fail("the reference cannot read patches");
  for (const auto& chunk : fold.chunks) {
    const auto base = truth_->chunk(fold.inode, chunk.index);
    if (!base || base->value_or(ChunkId{}) != chunk.from) continue;  // overtaken: it is void
    serverd::PatchedChunk patched{chunk.index, {}};
    for (const auto& name : chunk.patches) {
      for (const auto& stored : *patches) {
        if (stored.index == name.index && stored.number == name.number &&
            stored.since == name.since)
          patched.patches.push_back(stored);
      }
    }
    if (patched.patches.size() != chunk.patches.size()) continue;
    const Buffer bytes =
        serverd::fold_chunk(chunk.from ? chunk_bytes_.at(chunk.from) : Buffer(), patched);
    if (chunk_id_of(bytes.view()) != chunk.to) {
      return fail("index " + text(index) + ": a fold of " + text(fold.inode) +
                  " puts a chunk that is not what the patches make (C2)");
    }
    note_chunk(chunk.to, bytes);
  }
}

void Oracle::on_mutation(LogIndex index, const Command& command, const MutateCommand& mutate,
                         const CommandResult& result) {
  const std::error_code error = from_wire(result.error);
  const std::uint64_t id = command.cred.groups.empty() ? 0 : command.cred.groups.front();
  const auto* release = std::get_if<ReleaseOrphansOp>(&mutate.op);
  if (release != nullptr && release->inodes.empty()) return;  // the client's own: ClientSession
  const auto found = ops_.find(id);
  if (found == ops_.end()) return fail("a mutation that no client asked for is in the log");
  Op& op = found->second;
  Mutation asked = op.op;
  if (auto* lock = std::get_if<LockOp>(&asked); lock != nullptr && lock->delegate)
    lock->delegate = std::get<LockOp>(mutate.op).delegate;  // the primary's to refuse
  if (!(mutate.op == asked) || hash_of(as_bytes(mutate.payload)) != op.payload_hash) {
    return fail("a mutation came into the log altered");
  }
  if (error == Errc::kSessionExpired) ++counts_.fenced;
  if (!live_.contains(command.session) && error != Errc::kSessionExpired) {
    return fail("index " + text(index) + ": a mutation of session " +
                std::to_string(command.session.value()) + ", which has ended, was not fenced");
  }
  if (error == Errc::kRetry) ++counts_.retries;
  if (error == Errc::kStaleBase) ++counts_.stale_bases;
  if (is_attempt_only(error)) return;
  const auto [request, fresh] = requests_.try_emplace({command.session, command.sequence}, index);
  if (!fresh) {
    ++counts_.duplicates;
    if (encode(op.result) != encode(result)) fail("a duplicate was answered otherwise (D2)");
    return;
  }
  if (op.index) {
    return fail(std::string("a ") + name_of(op.op) + " took effect twice, at " + text(op.index) +
                " and " + text(index) + " (D2)");
  }
  op.index = index;
  op.result = result;
  if (result.error != 0) return;
  if (op.state == Op::State::kFailed) {
    return fail(std::string("a ") + name_of(op.op) +
                " took effect after its client was told that it failed (D2)");
  }
  note_effects(index, mutate, result);
}

void Oracle::note_effects(LogIndex index, const MutateCommand& mutate,
                          const CommandResult& result) {
  for (const InodeId inode : {result.inode, result.removed, mutate.expected_target}) {
    if (inode) refresh(index, inode);
  }
  const Mutation& op = mutate.op;
  const auto named = [&](InodeId parent, const std::string& name) {
    refresh(index, parent);
    refresh_entry(index, parent, name);
  };
  const auto* make = std::get_if<MakeFileOp>(&op);
  const auto* create = make != nullptr ? &make->create : std::get_if<CreateOp>(&op);
  if (create != nullptr) named(create->parent, create->name);
  if (create != nullptr && create->inode) keep_promise(index, create->inode);
  if (const auto* link = std::get_if<LinkOp>(&op)) named(link->parent, link->name);
  if (const auto* unlink = std::get_if<UnlinkOp>(&op)) named(unlink->parent, unlink->name);
  if (const auto* rmdir = std::get_if<RmdirOp>(&op)) named(rmdir->parent, rmdir->name);
  if (const auto* rename = std::get_if<RenameOp>(&op)) {
    named(rename->parent, rename->name);
    named(rename->new_parent, rename->new_name);
  }
  if (const auto* set = std::get_if<SetXattrOp>(&op)) refresh_xattrs(index, set->inode);
  if (const auto* remove = std::get_if<RemoveXattrOp>(&op)) refresh_xattrs(index, remove->inode);
  if (const auto* release = std::get_if<ReleaseOrphansOp>(&op)) {
    for (const InodeId inode : release->inodes) refresh(index, inode);
  }
  if (const auto* commit = make != nullptr ? &make->content : std::get_if<CommitOp>(&op)) {
    if (commit->replace_newer) ++counts_.replaced_newer;
    auto content = truth_->content(commit->inode, 0, 100'000);
    if (!content) return fail("the reference has no content for a commit");
    contents_[result.version] = std::move(*content);
  }
}

void Oracle::locked(const std::string& who, InodeId inode, LockSpace space, const HeldLock& lock,
                    bool here) {
  if (!live_.contains(lock.owner.session)) {
    // One that has asked has not heard of its end yet.
    if (here) fail(who + " grants a lock of " + text(inode) + " after its session (C4)");
    return;
  }
  LockList& held = locked_[{inode, space}];
  std::erase_if(held, [&](const HeldLock& each) { return !live_.contains(each.owner.session); });
  if (const auto other = find_conflict(held, lock)) {
    return fail(who + " holds a lock of " + text(inode) + " beside one of session " +
                std::to_string(other->owner.session.value()) + " (C4)");
  }
  set_lock(held, lock);
}

void Oracle::unlocked(InodeId inode, LockSpace space, const LockOwner& owner) {
  set_lock(locked_[{inode, space}], {owner, kWholeFile, LockType::kUnlock, 0});
}

void Oracle::refresh(LogIndex index, InodeId inode) {
  auto attr = truth_->attr(inode);
  if (attr && attr->nlink == 0) {
    counts_.orphaned += unlinked_.insert(inode).second ? 1 : 0;
  } else {
    unlinked_.erase(inode);
  }
  attrs_[inode].note(index, attr ? std::optional<Attr>(std::move(*attr)) : std::nullopt);
}

void Oracle::refresh_entry(LogIndex index, InodeId parent, const std::string& name) {
  const auto entry = truth_->lookup(parent, name);
  entries_[parent][name].note(index, entry && *entry ? (*entry)->inode : InodeId());
}

void Oracle::refresh_xattrs(LogIndex index, InodeId inode) {
  auto xattrs = truth_->xattrs(inode);
  if (xattrs) xattrs_[inode].note(index, std::move(*xattrs));
}

void Oracle::check_digest(NodeId node, const serverd::KvReader& store) {
  if (failed()) return;
  ++counts_.digests;
  const auto mine = serverd::digest_of(*store_);
  const auto theirs = serverd::digest_of(store);
  if (!mine || !theirs || *mine != *theirs) {
    fail("the state of node " + std::to_string(node.value()) + " at index " + text(applied_) +
         " differs from the reference (R2)" + first_difference(*store_, store));
  }
}

// ---------------------------------------------------------------- promises

std::uint64_t Oracle::promise(InodeId parent, const std::string& name, InodeId inode,
                              SessionId session) {
  const std::uint64_t id = next_promise_++;
  promises_[id] = {parent, name, inode, session, {}, false};
  promise_of_[inode] = id;
  ++counts_.made_here;
  return id;
}

void Oracle::end_promise(std::uint64_t id, std::error_code why) {
  Promise& promise = promises_.at(id);
  promise.over = true;
  const bool allowed = !why || why == Errc::kSessionExpired || why == Errc::kStaleEpoch ||
                       why == std::errc::no_space_on_device || why == from_errno(EDQUOT);
  if (!allowed) {
    fail("a file made as " + std::to_string(promise.parent.value()) + "/" + promise.name +
         " by the only mount that may was refused: " + why.message());
  }
}

void Oracle::keep_promise(LogIndex index, InodeId inode) {
  const auto found = promise_of_.find(inode);
  if (found == promise_of_.end()) return fail("a file with an id of nobody's reserve was made");
  promises_.at(found->second).kept = index;
  ++counts_.kept;
}

std::vector<std::uint64_t> Oracle::promises() const {
  std::vector<std::uint64_t> open;
  for (const auto& [id, promise] : promises_)
    if (!promise.kept && !promise.over && live_.contains(promise.session)) open.push_back(id);
  return open;
}

LogIndex Oracle::floor_of(LogIndex floor, const std::vector<std::uint64_t>& promised,
                          const std::string& how, InodeId parent, const std::string& name) {
  for (const std::uint64_t id : promised) {
    const Promise& promise = promises_.at(id);
    if (promise.parent != parent || (!name.empty() && promise.name != name)) continue;
    if (promise.kept) {
      floor = std::max(floor, promise.kept);
    } else if (!promise.over && live_.contains(promise.session)) {
      fail(how + " was answered although session " + std::to_string(promise.session.value()) +
           " had made " + text(parent) + "/" + promise.name + " before, and has not told");
    }
  }
  return floor;
}

// ---------------------------------------------------------------- reads

LogIndex Oracle::begin_cached(const std::set<std::uint64_t>& own) const {
  LogIndex floor = floor_;
  for (const std::uint64_t id : own) {
    const LogIndex index = index_of(id);
    if (index && index <= floor) floor = index.prev();
  }
  return floor;
}

bool Oracle::saw_attr(LogIndex floor, const std::string& how, const Attr& attr) {
  if (failed()) return false;
  const Attrs* history = attrs(attr.inode);
  std::vector<LogIndex> points;
  if (history != nullptr) history->add_points(points);
  const bool good = history != nullptr && settle(floor, std::move(points), [&](LogIndex at) {
                      return history->at(at) == attr;
                    });
  return good || explain(how + " shows attributes of " + text(attr.inode) + " (version " +
                         std::to_string(attr.version.value()) + ", change " + text(attr.change) +
                         ", nlink " + std::to_string(attr.nlink) + ", mode " +
                         std::to_string(attr.mode) + ") that it did not have from index " +
                         text(floor) + " to " + text(applied_) + story(attr.inode));
}

bool Oracle::saw_no_inode(LogIndex floor, const std::string& how, InodeId inode) {
  if (failed()) return false;
  const Attrs* history = attrs(inode);
  if (history == nullptr) return true;
  std::vector<LogIndex> points;
  history->add_points(points);
  return settle(floor, std::move(points), [&](LogIndex at) { return !history->at(at); }) ||
         explain(how + " says that " + text(inode) + " does not exist; it did from index " +
                 text(floor) + " to " + text(applied_) + story(inode));
}

InodeId Oracle::entry_at(InodeId parent, const std::string& name, LogIndex index) const {
  const auto dir = entries_.find(parent);
  if (dir == entries_.end()) return {};
  const auto entry = dir->second.find(name);
  return entry == dir->second.end() ? InodeId() : entry->second.at(index);
}

bool Oracle::saw_entry(LogIndex floor, const std::string& how, InodeId parent,
                       const std::string& name, InodeId child, const Attr* attr) {
  if (failed()) return false;
  std::vector<LogIndex> points;
  if (const auto dir = entries_.find(parent); dir != entries_.end()) {
    if (const auto entry = dir->second.find(name); entry != dir->second.end())
      entry->second.add_points(points);
  }
  const Attrs* history = attr != nullptr ? attrs(child) : nullptr;
  if (history != nullptr) history->add_points(points);
  const bool good = settle(floor, std::move(points), [&](LogIndex at) {
    if (entry_at(parent, name, at) != child) return false;
    return attr == nullptr || (history != nullptr && history->at(at) == *attr);
  });
  return good || explain(how + " shows " + text(parent) + "/" + name + " as " +
                         std::to_string(child.value()) +
                         (attr != nullptr ? " (change " + text(attr->change) + ")" : "") +
                         ", which it was not from index " + text(floor) + " to " + text(applied_) +
                         story(parent, name) + (child ? story(child) : ""));
}

bool Oracle::saw_listing(LogIndex floor, const std::string& how, InodeId directory,
                         const std::map<std::string, InodeId>& entries) {
  if (failed()) return false;
  const auto& known = entries_[directory];
  std::vector<LogIndex> points;
  for (const auto& [name, history] : known) history.add_points(points);
  const bool good = settle(floor, std::move(points), [&](LogIndex at) {
    std::size_t count = 0;
    for (const auto& [name, history] : known) {
      const InodeId child = history.at(at);
      const auto seen = entries.find(name);
      if ((seen == entries.end() ? InodeId() : seen->second) != child) return false;
      count += child ? 1 : 0;
    }
    return count == entries.size();
  });
  if (good) return true;
  std::string what = how + " lists " + text(directory) + " with";
  for (const auto& [name, child] : entries)
    what += " " + name + "=" + std::to_string(child.value());
  what += ", which it did not hold from index " + text(floor) + " to " + text(applied_);
  for (const auto& [name, history] : known) what += story(directory, name);
  return explain(what);
}

bool Oracle::saw_xattrs(LogIndex floor, const std::string& how, InodeId inode,
                        const std::map<std::string, std::string>& xattrs) {
  if (failed()) return false;
  const Xattrs& history = xattrs_[inode];
  std::vector<LogIndex> points;
  history.add_points(points);
  return settle(floor, std::move(points), [&](LogIndex at) { return history.at(at) == xattrs; }) ||
         explain(how + " shows xattrs of " + text(inode) + " that it did not have from index " +
                 text(floor) + " to " + text(applied_));
}

bool Oracle::saw_content(const std::string& how, InodeId inode, const Content& content) {
  if (failed()) return false;
  ++counts_.checks;
  if (!content.version) return true;
  const Content* known = content_of(content.version);
  if (known == nullptr) {
    return explain(how + " shows a version " + std::to_string(content.version.value()) + " of " +
                   text(inode) + " that was never committed");
  }
  if (same(*known, content)) return true;
  for (const Content& folded : folded_contents_[content.version]) {
    if (same(folded, content)) return true;
  }
  return explain(how + " shows another content of " + text(inode) + " version " +
                 std::to_string(content.version.value()) + " than was committed (C2, R1)");
}

bool Oracle::is_newest(InodeId inode, Version version) const {
  const auto attr = truth_->attr(inode);
  return attr && attr->version == version;
}

bool Oracle::names_chunk(InodeId inode, ChunkId id) const {
  const auto content = truth_->content(inode, 0, 100'000);
  if (!content) return false;
  return std::any_of(content->chunks.begin(), content->chunks.end(),
                     [&](const ChunkRef& ref) { return ref.id == id; });
}

const Content* Oracle::content_of(Version version) const {
  const auto found = contents_.find(version);
  return found == contents_.end() ? nullptr : &found->second;
}

// ---------------------------------------------------------------- mutations

std::uint64_t Oracle::begin_mutation(Mutation op, ByteView payload, SessionId under) {
  Op record;
  record.under = under;
  record.op = std::move(op);
  record.payload_hash = hash_of(payload);
  record.floor = floor_;
  record.promised = promises();
  ops_.emplace(next_op_, std::move(record));
  return next_op_++;
}

std::string Oracle::describe(std::uint64_t id) const {
  const auto found = ops_.find(id);
  if (found == ops_.end()) return "?";
  const Mutation& op = found->second.op;
  const auto at = [](InodeId parent, const std::string& name) {
    return " " + std::to_string(parent.value()) + "/" + name;
  };
  std::string out = name_of(op);
  if (const auto* create = std::get_if<CreateOp>(&op)) out += at(create->parent, create->name);
  if (const auto* make = std::get_if<MakeFileOp>(&op))
    out += at(make->create.parent, make->create.name) + " as " +
           std::to_string(make->create.inode.value());
  if (const auto* link = std::get_if<LinkOp>(&op))
    out += " " + std::to_string(link->inode.value()) + at(link->parent, link->name);
  if (const auto* unlink = std::get_if<UnlinkOp>(&op)) out += at(unlink->parent, unlink->name);
  if (const auto* rmdir = std::get_if<RmdirOp>(&op)) out += at(rmdir->parent, rmdir->name);
  if (const auto* rename = std::get_if<RenameOp>(&op))
    out += at(rename->parent, rename->name) + at(rename->new_parent, rename->new_name) + " " +
           std::to_string(rename->flags);
  if (const auto* commit = std::get_if<CommitOp>(&op))
    out += " " + std::to_string(commit->inode.value()) + " base " +
           std::to_string(commit->base.value());
  return out;
}

LogIndex Oracle::index_of(std::uint64_t id) const {
  const auto found = ops_.find(id);
  return found == ops_.end() ? LogIndex() : found->second.index;
}

/// The error with which the primary refuses the operation without asking the log, if the state is
/// that of `index`.
std::error_code Oracle::refusal_at(const Mutation& op, LogIndex index) const {
  const auto no_entry = std::make_error_code(std::errc::no_such_file_or_directory);
  const auto exists = std::make_error_code(std::errc::file_exists);
  const auto at = [&](InodeId inode) -> std::optional<Attr> {
    const Attrs* history = attrs(inode);
    return history == nullptr ? std::nullopt : history->at(index);
  };
  const auto in_directory = [&](InodeId parent) -> std::error_code {
    const auto attr = at(parent);
    if (!attr) return no_entry;
    return attr->type == FileType::kDirectory ? std::error_code()
                                              : std::make_error_code(std::errc::not_a_directory);
  };
  const auto type_of = [&](InodeId inode) {
    const auto attr = at(inode);
    return attr ? attr->type : FileType::kRegular;
  };
  const auto* make = std::get_if<MakeFileOp>(&op);
  if (const auto* create = make != nullptr ? &make->create : std::get_if<CreateOp>(&op)) {
    if (const auto bad = in_directory(create->parent)) return bad;
    return entry_at(create->parent, create->name, index) && create->exclusive ? exists
                                                                              : std::error_code();
  }
  if (const auto* link = std::get_if<LinkOp>(&op)) {
    if (const auto bad = in_directory(link->parent)) return bad;
    if (entry_at(link->parent, link->name, index)) return exists;
    return at(link->inode) ? std::error_code() : no_entry;
  }
  if (const auto* lock = std::get_if<LockOp>(&op)) {
    // Who held it at an index is not kept: locked() sees that nobody gets what is held.
    return at(lock->inode) ? std::make_error_code(std::errc::resource_unavailable_try_again)
                           : no_entry;
  }
  if (const auto* back = std::get_if<ReturnLocksOp>(&op))
    return at(back->inode) ? std::error_code() : no_entry;
  if (const auto* unlink = std::get_if<UnlinkOp>(&op)) {
    if (const auto bad = in_directory(unlink->parent)) return bad;
    const InodeId child = entry_at(unlink->parent, unlink->name, index);
    if (!child) return no_entry;
    return type_of(child) == FileType::kDirectory ? std::make_error_code(std::errc::is_a_directory)
                                                  : std::error_code();
  }
  if (const auto* rmdir = std::get_if<RmdirOp>(&op)) {
    if (const auto bad = in_directory(rmdir->parent)) return bad;
    const InodeId child = entry_at(rmdir->parent, rmdir->name, index);
    if (!child) return no_entry;
    return type_of(child) != FileType::kDirectory ? std::make_error_code(std::errc::not_a_directory)
                                                  : std::error_code();
  }
  if (const auto* rename = std::get_if<RenameOp>(&op)) {
    if (const auto bad = in_directory(rename->parent)) return bad;
    if (const auto bad = in_directory(rename->new_parent)) return bad;
    const InodeId to = entry_at(rename->new_parent, rename->new_name, index);
    if (!entry_at(rename->parent, rename->name, index)) return no_entry;
    if (to && (rename->flags & RenameOp::kNoReplace) != 0) return exists;
    return !to && (rename->flags & RenameOp::kExchange) != 0 ? no_entry : std::error_code();
  }
  InodeId inode;
  if (const auto* set = std::get_if<SetAttrOp>(&op)) inode = set->inode;
  if (const auto* set = std::get_if<SetXattrOp>(&op)) inode = set->inode;
  if (const auto* remove = std::get_if<RemoveXattrOp>(&op)) inode = remove->inode;
  if (const auto* commit = std::get_if<CommitOp>(&op)) inode = commit->inode;
  return inode && !at(inode) ? no_entry : std::error_code();
}

bool Oracle::is_delegated(const ReturnLocksOp& list, SessionId session) const {
  const auto held = truth_->locks(list.inode, list.space);
  return held && delegate_of(*held) == session;
}

bool Oracle::end_mutation(std::uint64_t id, const Result<MutationReply>& answer) {
  if (failed()) return false;
  Op& op = ops_.at(id);
  const std::string what = std::string("a ") + name_of(op.op);
  if (answer) {
    op.state = Op::State::kAcknowledged;
    ++counts_.acknowledged;
    const auto* create = std::get_if<CreateOp>(&op.op);
    const auto* back = std::get_if<ReturnLocksOp>(&op.op);
    if (op.index && op.result.error == 0) {
      ++counts_.checks;
      if (op.index <= op.floor) {
        return explain(what + " took effect at index " + text(op.index) +
                       ", before what was acknowledged when it began (" + text(op.floor) + ")");
      }
      floor_ = std::max(floor_, op.index);
      if (answer->version != op.result.version) return explain(what + " names another version");
    } else if (create != nullptr && !create->exclusive && answer->attr) {
      if (!saw_entry(op.floor, what, create->parent, create->name, answer->attr->inode, nullptr))
        return false;
    } else if (back == nullptr || is_delegated(*back, op.under)) {
      return explain(what + " was acknowledged and is not in the log (D1)");
    }
    const LogIndex from = op.index ? op.index : op.floor;
    for (const auto* attr :
         {&answer->attr, &answer->parent, &answer->new_parent, &answer->removed}) {
      if (*attr && !saw_attr(from, "the answer to " + what, **attr)) return false;
    }
    return true;
  }
  const std::error_code error = answer.error();
  if (is_unknown(error)) {
    op.state = Op::State::kUnknown;
    ++counts_.unknown;
    return true;
  }
  op.state = Op::State::kFailed;
  if (op.index) {
    if (op.result.error == to_wire(error)) {
      floor_ = std::max(floor_, op.index);
      return true;
    }
    return explain(
        what + " is in the log with another outcome than its client was told: " + error.message());
  }
  if (error == Errc::kMissingChunk) return true;
  // A primary that has not heard of every member yet.
  if (error == std::errc::operation_not_supported &&
      std::holds_alternative<ReserveInodesOp>(op.op)) {
    return true;
  }
  if (error == std::errc::no_space_on_device && may_lack_space_) return true;
  // A refusal is a read of the state that refuses.
  if (const auto* create = std::get_if<CreateOp>(&op.op); create != nullptr && !create->inode)
    op.floor = floor_of(op.floor, op.promised, what, create->parent, create->name);
  if (const auto* unlink = std::get_if<UnlinkOp>(&op.op))
    op.floor = floor_of(op.floor, op.promised, what, unlink->parent, unlink->name);
  if (const auto* link = std::get_if<LinkOp>(&op.op))
    op.floor = floor_of(op.floor, op.promised, what, link->parent, link->name);
  if (const auto* rename = std::get_if<RenameOp>(&op.op)) {
    op.floor = floor_of(op.floor, op.promised, what, rename->parent, rename->name);
    op.floor = floor_of(op.floor, op.promised, what, rename->new_parent, rename->new_name);
  }
  std::vector<LogIndex> points;
  for (LogIndex i = op.floor; i <= applied_; i = i.next()) points.push_back(i);
  return settle(op.floor, std::move(points),
                [&](LogIndex at) { return refusal_at(op.op, at) == error; }) ||
         explain(what + " was refused (" + error.message() + "), but at no index from " +
                 text(op.floor) + " to " + text(applied_) + " there was reason to");
}

}  // namespace fermata::test
