#include "serverd/meta/check.h"

#include <map>
#include <set>

#include "common/base/limits.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/ops/ops.h"
#include "serverd/meta/quota.h"

namespace fermata::serverd {
namespace {

/// What the records of other families say about an inode.
struct Tally {
  InodeRecord record;
  std::uint64_t names = 0;    // entries that lead here
  std::uint64_t entries = 0;  // entries in it
  std::uint64_t subdirectories = 0;
  std::uint64_t cookies = 0;
  std::uint64_t xattr_names = 0, xattr_bytes = 0;
  std::uint64_t chunks = 0, patches = 0, patch_bytes = 0;
  std::uint64_t open = 0;  // sessions that keep it as an orphan
  bool inline_content = false;
};

class Checker {
 public:
  Checker(const KvReader& reader, std::size_t problems_max)
      : reader_(reader), problems_max_(problems_max) {}

  Result<std::vector<std::string>> run() {
    FM_TRY(const auto value, reader_.get(Family::kCounters, kStateKey));
    if (!value) return std::move(problems_);  // nothing applied yet
    FM_TRY(state_, decode_state(*value));
    FM_CHECK(read_inodes());
    FM_CHECK(read_dentries());
    FM_CHECK(read_cookies());
    FM_CHECK(read_attachments());
    FM_CHECK(read_sessions());
    FM_CHECK(read_history());
    FM_CHECK(read_chunk_refs());
    FM_CHECK(read_quotas());
    for (const auto& [inode, tally] : inodes_) judge(inode, tally);
    judge_tree();
    judge_quotas();
    return std::move(problems_);
  }

 private:
  void problem(std::string text) {
    if (problems_.size() < problems_max_) problems_.push_back(std::move(text));
  }
  static std::string name_of(InodeId inode) { return "inode " + std::to_string(inode.value()); }
  void expect(InodeId inode, const char* what, std::uint64_t recorded, std::uint64_t found) {
    if (recorded != found)
      problem(name_of(inode) + ": " + what + " is recorded as " + std::to_string(recorded) +
              ", found " + std::to_string(found));
  }
  Tally* find(InodeId inode, const char* what) {
    const auto at = inodes_.find(inode);
    if (at != inodes_.end()) return &at->second;
    problem(std::string(what) + " of " + name_of(inode) + ", which does not exist");
    return nullptr;
  }
  template <class Visit>
  Status walk(Family family, Visit visit) {
    const auto it = reader_.iterate(family, {}, {});
    for (; it->valid(); it->next()) FM_CHECK(visit(it->key(), it->value()));
    return it->status();
  }

  Status read_inodes() {
    return walk(Family::kInodes, [&](std::string_view key, std::string_view value) -> Status {
      FM_TRY(auto record, decode_inode(value));
      inodes_[InodeId(number_in(key, 0))].record = std::move(record);
      return {};
    });
  }

  Status read_dentries() {
    return walk(Family::kDentries, [&](std::string_view key, std::string_view value) -> Status {
      FM_TRY(const Dirent entry, decode_dentry(key.substr(8), value));
      const InodeId parent(number_in(key, 0));
      FM_TRY(const auto listed, reader_.get(Family::kCookies, key_of(parent, entry.cookie)));
      Dirent at_cookie;
      if (listed) {
        FM_TRY(at_cookie, decode_cookie(entry.cookie, *listed));
      }
      if (at_cookie.name != entry.name || at_cookie.inode != entry.inode ||
          at_cookie.type != entry.type)
        problem(name_of(parent) + ": entry " + entry.name + " is not listed as it is");
      Tally* directory = find(parent, "entry");
      Tally* child = find(entry.inode, "name");
      if (!directory || !child) return {};
      ++directory->entries;
      ++child->names;
      entries_.push_back({parent, entry.inode});
      if (entry.type == FileType::kDirectory) ++directory->subdirectories;
      if (!directory->record.is_directory())
        problem(name_of(parent) + " has entries and is no directory");
      if (entry.type != child->record.type)
        problem(name_of(entry.inode) + ": its entry has another type");
      if (child->record.is_directory() && child->record.parent != parent)
        problem(name_of(entry.inode) + ": its parent is another directory than its name's");
      if (entry.cookie >= directory->record.next_cookie)
        problem(name_of(parent) + ": a cookie that was not given out yet");
      return {};
    });
  }

  Status read_cookies() {
    return walk(Family::kCookies, [&](std::string_view key, std::string_view) -> Status {
      if (Tally* directory = find(InodeId(number_in(key, 0)), "cookie")) ++directory->cookies;
      return {};
    });
  }

  Status read_attachments() {
    FM_CHECK(walk(Family::kXattrs, [&](std::string_view key, std::string_view value) -> Status {
      FM_TRY(const std::string bytes, decode_bytes(value));
      if (Tally* tally = find(InodeId(number_in(key, 0)), "xattr")) {
        tally->xattr_names += key.size() - 8 + 1;
        tally->xattr_bytes += key.size() - 8 + bytes.size();
      }
      return {};
    }));
    FM_CHECK(walk(Family::kInline, [&](std::string_view key, std::string_view value) -> Status {
      FM_TRY(const std::string bytes, decode_bytes(value));
      if (Tally* tally = find(InodeId(number_in(key, 0)), "inline content")) {
        tally->inline_content = true;
        expect(InodeId(number_in(key, 0)), "size", tally->record.size_bytes, bytes.size());
      }
      return {};
    }));
    FM_CHECK(walk(Family::kChunks, [&](std::string_view key, std::string_view value) -> Status {
      FM_TRY(const ChunkId id, decode_chunk(value));
      ++references_[id];
      const InodeId inode(number_in(key, 0));
      if (Tally* tally = find(inode, "chunk")) {
        ++tally->chunks;
        if (chunk_index_in(key) * std::uint64_t{kChunkSizeBytes} >= tally->record.size_bytes)
          problem(name_of(inode) + ": a chunk beyond its size");
      }
      return {};
    }));
    return walk(Family::kPatches, [&](std::string_view key, std::string_view value) -> Status {
      FM_TRY(const PatchRecord patch, decode_patch(value));
      const InodeId inode(number_in(key, 0));
      const std::uint64_t end = patch.offset_bytes + patch.bytes.size();
      if (Tally* tally = find(inode, "patch")) {
        ++tally->patches;
        tally->patch_bytes += patch.bytes.size();
        if (end > tally->record.size_bytes) problem(name_of(inode) + ": a patch beyond its size");
      }
      if (patch.offset_bytes / kChunkSizeBytes != (end - 1) / kChunkSizeBytes)
        problem(name_of(inode) + ": a patch over two chunks");
      return {};
    });
  }

  Status read_sessions() {
    std::set<SessionId> sessions;
    std::map<SessionId, std::uint64_t> answered_below;
    std::uint64_t clients = 0;
    FM_CHECK(walk(Family::kSessions, [&](std::string_view key, std::string_view value) -> Status {
      FM_TRY(const Session session, decode_session(SessionId(number_in(key, 0)), value));
      sessions.insert(session.id);
      FM_TRY(const auto client, reader_.get(Family::kClients, session.client_id));
      if (!client || *client != encode_number(session.id.value()))
        problem("session " + std::to_string(session.id.value()) + " is not its client's");
      return {};
    }));
    FM_CHECK(walk(Family::kClients, [&](std::string_view, std::string_view) -> Status {
      ++clients;
      return {};
    }));
    if (clients != sessions.size()) problem("a client id without a session");
    FM_CHECK(walk(Family::kRequests, [&](std::string_view key, std::string_view value) -> Status {
      const SessionId session(number_in(key, 0));
      const std::uint64_t sequence = number_in(key, 8);
      if (!sessions.contains(session)) problem("a request of a session that is over");
      if (sequence == 0) {
        FM_TRY(answered_below[session], decode_number(value));
      } else if (sequence < answered_below[session]) {
        problem("a request whose answer has arrived is kept");
      }
      return {};
    }));
    FM_CHECK(walk(Family::kLocks, [&](std::string_view key, std::string_view value) -> Status {
      const InodeId inode(number_in(key, 0));
      (void)find(inode, "lock");
      FM_TRY(const LockList locks, decode_locks(value));
      if (locks.empty()) problem(name_of(inode) + ": an empty list of locks is kept");
      for (std::size_t i = 0; i < locks.size(); ++i) {
        if (locks[i].owner.number == kDelegate && locks.size() != 1)
          problem(name_of(inode) + ": locks beside a delegation");
        if (!sessions.contains(locks[i].owner.session))
          problem(name_of(inode) + ": a lock of a session that is over");
        for (std::size_t j = 0; j < i; ++j)
          if (conflicts(locks[j], locks[i])) problem(name_of(inode) + ": locks that conflict");
      }
      return {};
    }));
    return walk(Family::kOrphans, [&](std::string_view key, std::string_view) -> Status {
      const InodeId inode(number_in(key, 0));
      if (!sessions.contains(SessionId(number_in(key, 8))))
        problem(name_of(inode) + ": an orphan of a session that is over");
      if (Tally* tally = find(inode, "orphan entry")) {
        ++tally->open;
        if (tally->record.nlink != 0) problem(name_of(inode) + ": an orphan with a name");
      }
      return {};
    });
  }

  Status read_history() {
    std::uint64_t records = 0, indexed = 0;
    FM_CHECK(walk(Family::kHistory, [&](std::string_view key, std::string_view value) -> Status {
      ++records;
      if (key.size() < 10) return Errc::kCorruptStore;
      const LogIndex ended(number_in(key, key.size() - 8));
      const auto family = static_cast<Family>(key[0]);
      FM_TRY(const LogIndex since, since_of(value));
      if (since >= ended) problem("a history record that ended before it began");
      const std::string_view old_key = key.substr(1, key.size() - 10);
      FM_TRY(const auto index,
             reader_.get(Family::kHistoryIndex, history_index_key(ended, family, old_key)));
      if (!index) problem("a history record without its index");
      if (family == Family::kChunks) {
        FM_TRY(const ChunkId id, decode_chunk(value));
        ++references_[id];
      }
      return {};
    }));
    FM_CHECK(walk(Family::kHistoryIndex, [&](std::string_view, std::string_view) -> Status {
      ++indexed;
      return {};
    }));
    if (records != indexed) problem("history and its index differ in number");
    return {};
  }

  Status read_chunk_refs() {
    std::uint64_t counted = 0, garbage = 0;
    FM_CHECK(walk(Family::kChunkRefs, [&](std::string_view key, std::string_view value) -> Status {
      ++counted;
      FM_TRY(const ChunkId id, decode_chunk_key(key));
      FM_TRY(const std::uint64_t count, decode_number(value));
      const auto at = references_.find(id);
      if (at == references_.end() || at->second != count)
        problem("chunk " + id.hex() + ": " + std::to_string(count) + " references recorded, " +
                std::to_string(at == references_.end() ? 0 : at->second) + " found");
      return {};
    }));
    if (counted != references_.size()) problem("a chunk that records name has no count");
    FM_CHECK(walk(Family::kGarbage, [&](std::string_view key, std::string_view) -> Status {
      ++garbage;
      FM_TRY(const ChunkId id, decode_chunk_key(key));
      if (references_.contains(id)) problem("chunk " + id.hex() + " is garbage and referred to");
      return {};
    }));
    if (state_.chunks != counted) problem("the count of chunks is wrong");
    if (state_.garbage != garbage) problem("the count of garbage chunks is wrong");
    if (state_.inodes != inodes_.size()) problem("the count of inodes is wrong");
    return {};
  }

  Status read_quotas() {
    FM_CHECK(walk(Family::kCounters, [&](std::string_view key, std::string_view value) -> Status {
      if (key.substr(0, 1) == quota_prefix(QuotaKind::kTree).substr(0, 1)) {
        FM_TRY(const QuotaRecord quota, decode_quota(key, value));
        quotas_[{quota.kind, quota.id}].record = quota;
      } else if (key != kStateKey) {
        walks_.emplace(InodeId(number_in(key, 1)), InodeId(number_in(key, 9)));
      }
      return {};
    }));
    if (state_.quotas != quotas_.size()) problem("the count of quotas is wrong");
    return {};
  }

  /// The tree's own record; a problem if there is none.
  const QuotaRecord* tree(InodeId id, const char* what) {
    const auto at = quotas_.find({QuotaKind::kTree, id.value()});
    if (at != quotas_.end()) return &at->second.record;
    problem(std::string(what) + " the quota of " + name_of(id) + ", which has none");
    return nullptr;
  }
  /// As tree_in_force() (quota.h).
  InodeId in_force(InodeId id) {
    while (id) {
      const QuotaRecord* quota = tree(id, "a record names");
      if (quota == nullptr || quota->phase != QuotaPhase::kRemoving) break;
      id = quota->parent;
    }
    return id;
  }

  /// Every quota counts what it should, and once nothing is being counted every directory is
  /// in the tree of its own.
  void judge_quotas() {
    if (quotas_.empty() && walks_.empty()) {
      for (const auto& [inode, tally] : inodes_)
        if (tally.record.quota) problem(name_of(inode) + " is in a tree without a quota");
      return;
    }
    bool exact = walks_.empty();
    for (const auto& [inode, tally] : inodes_) {
      const Charge charge = charge_of(tally.record);
      std::size_t depth = 0;
      for (InodeId id = tally.record.quota; id && depth <= quotas_.size(); ++depth) {
        const QuotaRecord* quota = tree(id, "an inode is in");
        if (quota == nullptr) break;
        quotas_[{QuotaKind::kTree, id.value()}].add(charge);
        id = quota->parent;
      }
      if (depth > quotas_.size()) problem("trees with quotas lie in a circle");
      const auto user = quotas_.find({QuotaKind::kUser, tally.record.uid});
      if (user != quotas_.end() && counts(user->second.record, inode)) user->second.add(charge);
    }
    for (const auto& [key, found] : quotas_) {
      const QuotaRecord& quota = found.record;
      const std::string name =
          (quota.kind == QuotaKind::kTree ? "the quota of inode " : "the quota of user ") +
          std::to_string(quota.id);
      if (quota.bytes != found.bytes || quota.inodes != found.inodes)
        problem(name + " counts " + std::to_string(quota.bytes) + " bytes, " +
                std::to_string(quota.inodes) + " inodes, found " + std::to_string(found.bytes) +
                ", " + std::to_string(found.inodes));
      if (quota.phase != QuotaPhase::kExact) exact = false;
      if (quota.kind != QuotaKind::kTree || quota.phase == QuotaPhase::kRemoving) continue;
      const auto directory = inodes_.find(InodeId(quota.id));
      if (directory == inodes_.end() || directory->second.record.quota.value() != quota.id)
        problem(name + " is not set on a directory of its own tree");
    }
    for (const auto& [tree_id, directory] : walks_) {
      const QuotaRecord* quota = tree(tree_id, "a walk belongs to");
      if (quota != nullptr && quota->phase == QuotaPhase::kExact)
        problem(name_of(directory) + " is to be walked for a quota that is exact");
      const auto at = inodes_.find(directory);
      if (at == inodes_.end() || at->second.record.quota != tree_id)
        problem(name_of(directory) + " is to be walked for a quota that does not count it");
    }
    if (!exact) return;
    for (const auto& [parent, child] : entries_) {
      const InodeRecord& record = inodes_[child].record;
      if (!record.is_directory()) continue;  // it may have, or have had, names in several trees
      const InodeId around = in_force(inodes_[parent].record.quota);
      const auto own = quotas_.find({QuotaKind::kTree, child.value()});
      const InodeId tree_id = own != quotas_.end() ? own->second.record.parent : record.quota;
      if (in_force(tree_id) != around)
        problem(name_of(child) + " is not in the tree of its directory");
    }
  }

  void judge(InodeId inode, const Tally& tally) {
    const InodeRecord& record = tally.record;
    expect(inode, "entries", record.entries, tally.entries);
    expect(inode, "listed entries", tally.entries, tally.cookies);
    if (record.is_directory()) {
      const bool root = inode == kRootInode;
      expect(inode, "link count", record.nlink,
             root || tally.names > 0 ? 2 + tally.subdirectories : 0);
      if (tally.names > 1 || (root && tally.names > 0))
        problem(name_of(inode) + ": a directory with too many names");
    } else {
      expect(inode, "link count", record.nlink, tally.names);
    }
    if (record.nlink == 0 && tally.open == 0)
      problem(name_of(inode) + " has no name and nobody has it open");
    if (record.nlink != 0 && record.linkable)
      problem(name_of(inode) + ": named, and still waiting for its first name");
    expect(inode, "xattr name bytes", record.xattr_name_bytes, tally.xattr_names);
    expect(inode, "xattr bytes", record.xattr_bytes, tally.xattr_bytes);
    expect(inode, "chunk count", record.chunks, tally.chunks);
    expect(inode, "patch count", record.patches, tally.patches);
    expect(inode, "patch bytes", record.patch_bytes, tally.patch_bytes);
    expect(inode, "inline content", record.content == ContentKind::kInline, tally.inline_content);
    if (record.content != ContentKind::kChunks && (tally.chunks > 0 || tally.patches > 0))
      problem(name_of(inode) + ": chunks of a file that has none");
    if (record.patches > kPatchesMax || record.patch_bytes > kPatchBytesMax)
      problem(name_of(inode) + ": too many patches");
    if (inode.value() >= state_.next_inode)
      problem(name_of(inode) + ": its number was not given out yet");
    if (record.change > state_.applied) problem(name_of(inode) + " changed in the future");
  }

  /// Every directory with a name comes to the root.
  void judge_tree() {
    std::set<InodeId> reached{kRootInode};
    for (const auto& [inode, tally] : inodes_) {
      if (!tally.record.is_directory() || tally.record.nlink == 0) continue;
      std::vector<InodeId> path;
      InodeId at = inode;
      while (!reached.contains(at) && path.size() <= inodes_.size()) {
        path.push_back(at);
        const auto found = inodes_.find(at);
        if (found == inodes_.end()) break;
        at = found->second.record.parent;
      }
      if (reached.contains(at)) {
        reached.insert(path.begin(), path.end());
      } else {
        problem(name_of(inode) + " is not below the root");
      }
    }
  }

  const KvReader& reader_;
  const std::size_t problems_max_;
  std::vector<std::string> problems_;
  StateRecord state_;
  std::map<InodeId, Tally> inodes_;
  std::map<ChunkId, std::uint64_t> references_;
  struct Entry {
    InodeId parent, child;
  };
  std::vector<Entry> entries_;
  struct Counted {
    QuotaRecord record;
    std::uint64_t bytes = 0, inodes = 0;  // found
    void add(const Charge& charge) {
      bytes += charge.bytes;
      inodes += charge.inodes;
    }
  };
  std::map<std::pair<QuotaKind, std::uint64_t>, Counted> quotas_;
  std::set<std::pair<InodeId, InodeId>> walks_;  // tree, directory
};

}  // namespace

Result<std::vector<std::string>> check(const KvReader& reader, std::size_t problems_max) {
  return Checker(reader, problems_max).run();
}

}  // namespace fermata::serverd
