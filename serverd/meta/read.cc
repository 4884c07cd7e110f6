// Reads of the applied state.
#include "common/base/limits.h"
#include "serverd/meta/codec.h"
#include "serverd/meta/namespace.h"
#include "serverd/meta/past.h"

namespace fermata::serverd {

Result<InodeRecord> Namespace::inode(InodeId inode) const {
  FM_TRY(const auto value, store_.get(Family::kInodes, key_of(inode)));
  if (!value) return std::errc::no_such_file_or_directory;
  return decode_inode(*value);
}

Result<InodeRecord> Namespace::directory(InodeId inode) const {
  FM_TRY(auto record, this->inode(inode));
  if (!record.is_directory()) return std::errc::not_a_directory;
  return record;
}

Result<Attr> Namespace::attr(InodeId inode) const {
  FM_TRY(const auto record, this->inode(inode));
  return to_attr(inode, record);
}

Result<std::optional<Dirent>> Namespace::lookup(InodeId parent, std::string_view name) const {
  FM_TRY(const auto value, store_.get(Family::kDentries, key_of(parent, name)));
  if (value) {
    FM_TRY(auto entry, decode_dentry(name, *value));
    return std::optional(std::move(entry));
  }
  FM_TRY(const auto record, directory(parent));
  return std::optional<Dirent>();
}

Result<Namespace::Listing> Namespace::readdir(InodeId directory, Cookie after,
                                              std::size_t entries_max) const {
  FM_TRY(const auto record, this->directory(directory));
  Listing listing;
  const std::string end = prefix_end(key_of(directory));
  const auto it = store_.iterate(Family::kCookies, key_of(directory, after.next()), end);
  for (; it->valid() && listing.entries.size() < entries_max; it->next()) {
    FM_TRY(auto entry, decode_cookie(Cookie(number_in(it->key(), 8)), it->value()));
    listing.entries.push_back(std::move(entry));
  }
  listing.end = !it->valid();
  FM_CHECK(it->status());
  return listing;
}

Result<std::map<std::string, std::string>> Namespace::xattrs(InodeId inode) const {
  FM_TRY(const auto record, this->inode(inode));
  std::map<std::string, std::string> xattrs;
  if (record.xattr_name_bytes == 0) return xattrs;
  const std::string prefix = key_of(inode);
  const auto it = store_.iterate(Family::kXattrs, prefix, prefix_end(prefix));
  for (; it->valid(); it->next()) {
    FM_TRY(auto value, decode_bytes(it->value()));
    xattrs.emplace(it->key().substr(prefix.size()), std::move(value));
  }
  FM_CHECK(it->status());
  return xattrs;
}

Result<Content> Namespace::read_content(InodeId inode, const InodeRecord& record,
                                        std::optional<LogIndex> at, std::uint32_t first_chunk,
                                        std::size_t chunks_max) const {
  Content content;
  content.kind = record.content;
  content.version = record.version;
  content.size_bytes = record.size_bytes;
  const LogIndex when = at.value_or(kNow);
  if (record.content == ContentKind::kInline) {
    FM_TRY(const auto value, value_at(store_, Family::kInline, key_of(inode), when));
    if (!value) return Errc::kCorruptStore;
    FM_TRY(content.inline_bytes, decode_bytes(*value));
  }
  if (record.content != ContentKind::kChunks) return content;
  const std::string prefix = key_of(inode), end = prefix_end(prefix);
  // The record's counts are those of now: folding changes them without a new version.
  if (record.chunks > 0 || at) {
    FM_TRY(const auto chunks, records_at(store_, Family::kChunks, chunk_key(inode, first_chunk),
                                         end, when, chunks_max + 1));
    for (const auto& [key, value] : chunks) {
      if (content.chunks.size() == chunks_max) {
        content.more_chunks = true;
        break;
      }
      FM_TRY(const ChunkId id, decode_chunk(value));
      content.chunks.push_back({chunk_index_in(key), id});
    }
  }
  if (record.patches > 0 || at) {
    FM_TRY(const auto patches, records_at(store_, Family::kPatches, prefix, end, when, SIZE_MAX));
    for (const auto& [key, value] : patches) {
      FM_TRY(auto patch, decode_patch(value));
      content.patches.push_back(std::move(patch));
    }
  }
  return content;
}

Result<PatchUse> Namespace::patch_use(InodeId inode) const {
  FM_TRY(const auto record, this->inode(inode));
  return PatchUse{record.patches, record.patch_bytes};
}

Result<std::vector<StoredPatch>> Namespace::patches(InodeId inode) const {
  std::vector<StoredPatch> patches;
  const std::string prefix = key_of(inode);
  const auto it = store_.iterate(Family::kPatches, prefix, prefix_end(prefix));
  for (; it->valid(); it->next()) {
    StoredPatch stored;
    stored.index = LogIndex(number_in(it->key(), 8));
    stored.number = patch_number_in(it->key());
    FM_TRY(stored.since, since_of(it->value()));
    FM_TRY(stored.patch, decode_patch(it->value()));
    patches.push_back(std::move(stored));
  }
  FM_CHECK(it->status());
  return patches;
}

Result<std::vector<InodeId>> Namespace::patched_files(InodeId after, std::size_t files_max) const {
  std::vector<InodeId> files;
  for (std::string from = prefix_end(key_of(after)); files.size() < files_max;) {
    const auto it = store_.iterate(Family::kPatches, from, {});
    FM_CHECK(it->status());
    if (!it->valid()) break;
    files.push_back(InodeId(number_in(it->key(), 0)));
    from = prefix_end(key_of(files.back()));
  }
  return files;
}

Result<std::optional<ChunkId>> Namespace::chunk(InodeId inode, std::uint32_t index) const {
  FM_TRY(const auto value, store_.get(Family::kChunks, chunk_key(inode, index)));
  if (!value) return std::optional<ChunkId>();
  FM_TRY(const ChunkId id, decode_chunk(*value));
  return std::optional(id);
}

Result<Content> Namespace::content(InodeId inode, std::uint32_t first_chunk,
                                   std::size_t chunks_max) const {
  FM_TRY(const auto record, this->inode(inode));
  if (record.is_directory()) return std::errc::is_a_directory;
  if (record.type != FileType::kRegular) return std::errc::invalid_argument;
  return read_content(inode, record, std::nullopt, first_chunk, chunks_max);
}

Result<Content> Namespace::content_at(InodeId inode, Version version, std::uint32_t first_chunk,
                                      std::size_t chunks_max) const {
  FM_TRY(const auto newest, store_.get(Family::kInodes, key_of(inode)));
  if (newest) {
    FM_TRY(const auto record, decode_inode(*newest));
    if (record.is_directory()) return std::errc::is_a_directory;
    if (record.type != FileType::kRegular) return std::errc::invalid_argument;
    if (record.version == version)
      return read_content(inode, record, std::nullopt, first_chunk, chunks_max);
  }
  // The version was in force from its index on; what is pruned below history_start does not matter
  // if it was still in force then.
  const LogIndex at = std::max(LogIndex(version.value()), history_start());
  FM_TRY(const auto value, value_at(store_, Family::kInodes, key_of(inode), at));
  if (!value) return Errc::kTruncatedHistory;
  FM_TRY(const auto record, decode_inode(*value));
  if (record.version != version) return Errc::kTruncatedHistory;
  // As of the last moment of it: whoever has the first part of the list may have got that with
  // patches folded that were not in the beginning. Later folds do not matter to him.
  LogIndex last = at;
  const std::string first = history_key(Family::kInodes, key_of(inode), at.next());
  const std::string end = prefix_end(std::string_view(first).substr(0, first.size() - 8));
  const auto it = store_.iterate(Family::kHistory, first, end);
  for (; it->valid(); it->next()) {
    FM_TRY(const auto later, decode_inode(it->value()));
    if (later.version != version) break;
    last = LogIndex(number_in(it->key(), it->key().size() - 8)).prev();
  }
  FM_CHECK(it->status());
  return read_content(inode, record, last, first_chunk, chunks_max);
}

Result<Attr> Namespace::attr_at(InodeId inode, LogIndex at) const {
  if (at < history_start()) return Errc::kTruncatedHistory;
  FM_TRY(const auto value, value_at(store_, Family::kInodes, key_of(inode), at));
  if (!value) return std::errc::no_such_file_or_directory;
  FM_TRY(const auto record, decode_inode(*value));
  return to_attr(inode, record);
}

Result<std::optional<Dirent>> Namespace::lookup_at(InodeId parent, std::string_view name,
                                                   LogIndex at) const {
  FM_TRY(const Attr directory, attr_at(parent, at));
  if (directory.type != FileType::kDirectory) return std::errc::not_a_directory;
  FM_TRY(const auto value, value_at(store_, Family::kDentries, key_of(parent, name), at));
  if (!value) return std::optional<Dirent>();
  FM_TRY(auto entry, decode_dentry(name, *value));
  return std::optional(std::move(entry));
}

Result<Namespace::Listing> Namespace::readdir_at(InodeId directory, LogIndex at,
                                                 std::string_view after,
                                                 std::size_t entries_max) const {
  FM_TRY(const Attr attr, attr_at(directory, at));
  if (attr.type != FileType::kDirectory) return std::errc::not_a_directory;
  const std::string prefix = key_of(directory);
  std::string lower = key_of(directory, after);
  if (!after.empty()) lower += '\0';  // the least name above
  FM_TRY(const auto records,
         records_at(store_, Family::kDentries, lower, prefix_end(prefix), at, entries_max + 1));
  Listing listing;
  listing.end = records.size() <= entries_max;
  for (const auto& [key, value] : records) {
    if (listing.entries.size() == entries_max) break;
    FM_TRY(auto entry, decode_dentry(std::string_view(key).substr(prefix.size()), value));
    listing.entries.push_back(std::move(entry));
  }
  return listing;
}

Result<std::vector<QuotaRecord>> Namespace::quotas() const {
  std::vector<QuotaRecord> quotas;
  if (counters().quotas == 0) return quotas;
  for (const QuotaKind kind : {QuotaKind::kTree, QuotaKind::kUser}) {
    const std::string prefix = quota_prefix(kind);
    const auto it = store_.iterate(Family::kCounters, prefix, prefix_end(prefix));
    for (; it->valid(); it->next()) {
      FM_TRY(auto quota, decode_quota(it->key(), it->value()));
      quotas.push_back(std::move(quota));
    }
    FM_CHECK(it->status());
  }
  return quotas;
}

Result<std::vector<QuotaRecord>> Namespace::quotas_of(InodeId inode) const {
  std::vector<QuotaRecord> quotas;
  FM_TRY(const auto record, this->inode(inode));
  const std::uint64_t trees_max = counters().quotas;
  if (trees_max == 0) return quotas;
  std::uint64_t trees = 0;
  for (InodeId tree = record.quota; tree;) {
    const std::string key = quota_key(QuotaKind::kTree, tree.value());
    FM_TRY(const auto value, store_.get(Family::kCounters, key));
    if (!value || ++trees > trees_max) break;  // overtaken by a change
    FM_TRY(auto quota, decode_quota(key, *value));
    tree = quota.parent;
    if (quota.phase != QuotaPhase::kRemoving) quotas.push_back(std::move(quota));
  }
  const std::string key = quota_key(QuotaKind::kUser, record.uid);
  FM_TRY(const auto value, store_.get(Family::kCounters, key));
  if (value) {
    FM_TRY(auto quota, decode_quota(key, *value));
    quotas.push_back(std::move(quota));
  }
  return quotas;
}

Result<std::optional<QuotaRecord>> Namespace::unfinished_quota() const {
  FM_TRY(const auto all, quotas());
  for (const QuotaRecord& quota : all)
    if (quota.phase != QuotaPhase::kExact) return std::optional(quota);
  return std::optional<QuotaRecord>();
}

// An entry is found by its name or its cookie, and not by its inode: directories are read until it
// comes.
Result<std::string> Namespace::path_of(InodeId directory, KnownNames& known) const {
  std::string path;
  for (InodeId at = directory; at != kRootInode;) {
    FM_TRY(const auto record, this->directory(at));
    if (known.listed.insert(record.parent).second) {
      const std::string prefix = key_of(record.parent);
      const auto it = store_.iterate(Family::kCookies, prefix, prefix_end(prefix));
      for (; it->valid() && known.entries_left != 0; it->next(), --known.entries_left) {
        FM_TRY(auto entry, decode_cookie(Cookie(number_in(it->key(), 8)), it->value()));
        if (entry.type == FileType::kDirectory) known.names[entry.inode] = std::move(entry.name);
      }
      FM_CHECK(it->status());
    }
    const auto name = known.names.find(at);
    if (name == known.names.end()) return std::string();
    path.insert(0, "/" + name->second);
    at = record.parent;
  }
  return path.empty() ? "/" : path;
}

Result<std::optional<Session>> Namespace::session(SessionId session) const {
  FM_TRY(const auto value, store_.get(Family::kSessions, key_of(session)));
  if (!value) return std::optional<Session>();
  FM_TRY(auto record, decode_session(session, *value));
  return std::optional(std::move(record));
}

Result<std::vector<Session>> Namespace::sessions() const {
  std::vector<Session> sessions;
  const auto it = store_.iterate(Family::kSessions, {}, {});
  for (; it->valid(); it->next()) {
    FM_TRY(auto session, decode_session(SessionId(number_in(it->key(), 0)), it->value()));
    sessions.push_back(std::move(session));
  }
  FM_CHECK(it->status());
  return sessions;
}

Result<std::optional<CommandResult>> Namespace::request_result(SessionId session,
                                                               Sequence sequence) const {
  FM_TRY(const auto value, store_.get(Family::kRequests, key_of(session, sequence)));
  if (value && sequence != kAnsweredBelow) {
    FM_TRY(const auto result, decode_result(*value));
    return std::optional(result);
  }
  FM_TRY(const auto mark, store_.get(Family::kRequests, key_of(session, kAnsweredBelow)));
  if (!mark) return std::optional<CommandResult>();
  FM_TRY(const std::uint64_t below, decode_number(*mark));
  if (sequence.value() < below) return Errc::kStaleEpoch;
  return std::optional<CommandResult>();
}

Namespace::Counters Namespace::counters() const {
  const StateRecord state = this->state();
  return {.cluster = state.cluster,
          .inodes = state.inodes,
          .chunks = state.chunks,
          .garbage = state.garbage,
          .conflicts = state.conflicts,
          .quotas = state.quotas,
          .history_start = state.history_start};
}

Result<LockList> Namespace::locks(InodeId inode, LockSpace space) const {
  FM_TRY(const auto value, store_.get(Family::kLocks, key_of(inode, space)));
  if (!value) return LockList();
  return decode_locks(*value);
}

Result<std::vector<Namespace::OrphanEntry>> Namespace::orphans() const {
  std::vector<OrphanEntry> orphans;
  const auto it = store_.iterate(Family::kOrphans, {}, {});
  for (; it->valid(); it->next())
    orphans.push_back({InodeId(number_in(it->key(), 0)), SessionId(number_in(it->key(), 8))});
  FM_CHECK(it->status());
  return orphans;
}

Result<std::vector<Namespace::ChunkUse>> Namespace::chunk_uses(ChunkId after,
                                                               std::size_t chunks_max) const {
  // Two families, each in id order, no id in both.
  std::string lower;
  if (after) lower = key_of(after) + '\0';
  const auto used = store_.iterate(Family::kChunkRefs, lower, {});
  const auto garbage = store_.iterate(Family::kGarbage, lower, {});
  std::vector<ChunkUse> uses;
  while (uses.size() < chunks_max && (used->valid() || garbage->valid())) {
    const bool take_used = used->valid() && (!garbage->valid() || used->key() < garbage->key());
    KvIterator& it = take_used ? *used : *garbage;
    ChunkUse use;
    FM_TRY(use.id, decode_chunk_key(it.key()));
    if (take_used) {
      FM_TRY(use.references, decode_number(it.value()));
    }
    uses.push_back(use);
    it.next();
  }
  FM_CHECK(used->status());
  FM_CHECK(garbage->status());
  return uses;
}

Result<std::uint64_t> Namespace::chunk_references(ChunkId id) const {
  FM_TRY(const auto value, store_.get(Family::kChunkRefs, key_of(id)));
  if (!value) return std::uint64_t{0};
  return decode_number(*value);
}

Result<std::vector<ChunkId>> Namespace::garbage(LogIndex before, std::size_t chunks_max) const {
  std::vector<ChunkId> chunks;
  const auto it = store_.iterate(Family::kGarbage, {}, {});
  for (; it->valid() && chunks.size() < chunks_max; it->next()) {
    FM_TRY(const std::uint64_t since, decode_number(it->value()));
    if (since >= before.value()) continue;
    FM_TRY(const ChunkId id, decode_chunk_key(it->key()));
    chunks.push_back(id);
  }
  FM_CHECK(it->status());
  return chunks;
}

Result<std::vector<Conflict>> Namespace::conflicts(std::size_t conflicts_max) const {
  std::vector<Conflict> conflicts;
  const auto it = store_.iterate(Family::kConflicts, {}, {});
  for (; it->valid(); it->next()) {
    FM_TRY(auto conflict, decode_conflict(it->key(), it->value()));
    conflicts.push_back(std::move(conflict));
  }
  FM_CHECK(it->status());
  std::sort(conflicts.begin(), conflicts.end(),
            [](const Conflict& a, const Conflict& b) { return a.index < b.index; });
  if (conflicts.size() > conflicts_max)
    conflicts.erase(conflicts.begin(),
                    conflicts.end() - static_cast<std::ptrdiff_t>(conflicts_max));
  return conflicts;
}

}  // namespace fermata::serverd
