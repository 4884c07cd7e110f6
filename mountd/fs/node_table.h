// What this mount knows of the namespace: inodes, their attributes and entries, and the kernel's
// node handles.
//
// A handle names one (inode, version lineage): directories, symlinks and special files have one
// per inode, regular files one per lineage (file_state.h). Everything cached here came with a stamp
// and a lease, and is valid while the session's lease holds for that stamp and no callback has
// dropped it (docs/PROTOCOL.md; Gray and Cheriton, "Leases", SOSP 1989). An answer that is older
// than the inode's last callback may be shown once, but is not kept.
//
// A directory that the cluster has granted to this mount alone (docs/adr/0010-exclusive-
// directories.md) may hold files that the cluster does not know yet: *unsent* ones, made here and
// real here. They are never forgotten for want of room, and nothing that the cluster says of their
// names counts, until they are sent, removed or lost.
//
// Memory is bounded: inodes without kernel references leave in LRU order.
//
// Thread-safety: any thread; one mutex, held for table look-ups only.
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "common/base/mutex.h"
#include "common/wire/messages.h"
#include "mountd/client/session.h"
#include "mountd/fs/atime.h"
#include "mountd/fs/file_state.h"
#include "mountd/fuse/notifier.h"

namespace fermata::mountd {

/// A directory's names in cookie order, as of one moment. Without "." and "..".
struct Listing {
  struct Item {
    std::string name;
    InodeId inode;
    FileType type = FileType::kRegular;
    Cookie cookie;
  };
  std::vector<Item> items;
  Stamp stamp;  ///< the oldest of its pages
};

/// A file that was made here and that the cluster does not know.
struct Unsent {
  CreateOp op;  ///< that makes it
  Credentials who;
  SessionId session;  ///< whose reserve its id is of
  TimePoint since;    ///< when it was made, or sending it last failed
};

class NodeTable {
 public:
  struct Limits {
    std::size_t inode_count = 200'000;
    std::size_t entry_count = 2'000'000;
    std::size_t names_per_inode = 8;
  };
  NodeTable(const ClientSession& session, Limits limits);

  /// A node as of now. `attr` is the newest known of its inode; it is valid only if attr_valid.
  /// `shown` is there when the node's content is of another version: what its users are to see.
  struct View {
    NodeHandle node = kNoNode;
    InodeId inode;
    bool current = true;
    bool alone = true;  ///< the only node of its inode
    bool attr_known = false;
    bool attr_valid = false;
    bool noted_read = false;  ///< attr.atime is a read that the cluster may not know yet
    Attr attr;
    std::optional<Attr> shown;
    Version version;
    std::shared_ptr<FileState> file;  ///< regular files only
  };
  std::optional<View> find(NodeHandle node);
  /// The inode's id; none for an unknown handle.
  std::optional<InodeId> inode_of(NodeHandle node);
  /// The newest node of an inode, if the kernel has one.
  NodeHandle node_of(InodeId inode);

  // --- what answers say --------------------------------------------------------------------------
  /// Takes the attributes if they are newer than those known.
  void apply(const Attr& attr, Stamp stamp, bool leased);
  /// The inode is known to have changed, or to be gone: it is asked for again.
  /// `lost_name`: when it lost a name, should that turn out to have been the last.
  void distrust(InodeId inode, std::optional<Timestamp> lost_name = std::nullopt);
  /// The inode is gone from the cluster for good: what is known of it stays valid, with no link.
  void note_gone(InodeId inode);
  /// apply(), then the inode's newest node, made if need be, with one more kernel lookup.
  View bind(const Attr& attr, Stamp stamp, bool leased);
  /// The same without counting a lookup: a node kept alive by its own holds.
  View adopt(const Attr& attr, Stamp stamp, bool leased);
  struct Forgotten {
    std::shared_ptr<FileState> file;  ///< to be torn down
    /// A special file that the cluster may keep for this mount only.
    std::optional<InodeId> orphan;
  };
  /// Whether the kernel has a lookup of it, or soon will have: the answer does not wait for
  /// anybody.
  bool granted(NodeHandle node);
  /// What goes with the kernel's last lookup.
  Forgotten forget_lookup(NodeHandle node, std::uint64_t count);
  /// Removes the node if nothing refers to it any more; returns its file to be torn down.
  std::shared_ptr<FileState> reap(NodeHandle node);

  // --- entries -----------------------------------------------------------------------------------
  enum class Known { kUnknown, kAbsent, kPresent };
  struct Found {
    Known known = Known::kUnknown;
    View child;  ///< kPresent: with a lookup counted
  };
  /// From the cache: present (with valid attributes), surely absent, or to be asked.
  Found lookup(InodeId parent, std::string_view name);
  /// The inode behind a name if that is known, valid or not: a hint.
  InodeId peek(InodeId parent, std::string_view name);
  enum class By { kRead, kOwnMutation };
  /// `child` 0: the name is absent. An own mutation also makes cached listings obsolete. False: it
  /// is not kept (not leased, or called back meanwhile), and the kernel must not keep it either.
  bool set_entry(InodeId parent, std::string_view name, InodeId child, Stamp stamp, bool leased,
                 By by);
  /// What is known of the name is no longer trusted.
  void drop_entry(InodeId parent, std::string_view name);
  /// Where `child` was last seen, for path_of(); set_entry() says so, too.
  void note_place(InodeId child, InodeId parent, std::string_view name);
  /// "dir/file" below the mount's root, for people: as far as names were seen here, ".../file" when
  /// those above are not known. Empty if the inode's own is not.
  std::string path_of(InodeId inode);
  /// A new directory of this client: empty, and all of it is known.
  void set_empty_directory(InodeId inode, Stamp stamp, bool leased);

  // --- directories that this mount has alone -----------------------------------------------------
  /// Granted with an answer.
  void hold_alone(InodeId directory, Stamp stamp);
  bool has_alone(InodeId directory);
  /// Makes an unsent file, with one kernel lookup of it. Decides its owner, mode and time as the
  /// cluster will. None: not here (it has to be asked), or the name may be taken.
  std::optional<View> make_unsent(Unsent what, Timestamp now);
  std::optional<Unsent> unsent(InodeId inode);
  /// Attributes of a file that is not sent: they go with it. `set` has values only.
  std::optional<View> set_unsent(NodeHandle node, const SetAttrOp& set, Timestamp now);
  std::vector<InodeId> unsent_in(InodeId directory);
  std::vector<InodeId> all_unsent();
  /// Sending it has failed, for now.
  void put_off(InodeId inode, TimePoint now);
  /// The cluster has it: what it answered counts from here on.
  void sent(InodeId inode, const MutationReply& reply);
  /// Its name is gone at `now`, and the file is no longer unsent: kLost, or kRemoved with a last
  /// chance to make it without a name, for whoever still has it open. False: it was not unsent.
  enum class Drop { kRemoved, kLost };
  bool drop_unsent(InodeId inode, Timestamp now, Drop how, int why = ESTALE);
  /// A removed one.
  std::optional<Unsent> nameless(InodeId inode);
  /// The cluster has it, without a name.
  void sent_nameless(InodeId inode, const MutationReply& reply);
  /// With nothing in it unsent: the directory's last change if the cluster was never told (a file
  /// made and removed).
  std::optional<Timestamp> untold_change(InodeId directory);
  /// What was shown of such a change is shown no more.
  void settle_times(InodeId directory);
  /// Gone for good, or never there.
  bool is_gone(InodeId inode);

  // --- listings ----------------------------------------------------------------------------------
  struct ListingToken {
    std::uint64_t serial = 0;
    std::uint64_t changes = 0;
    std::uint64_t losses = 0;
    Stamp called_back;
  };
  ListingToken begin_listing(InodeId directory);
  /// Keeps a listing that was read wholly under the lease, unless something came in between.
  void keep_listing(InodeId directory, ListingToken token, std::shared_ptr<const Listing> listing);
  /// All names of the directory have been entered since, from answers no older than `stamp`. Own
  /// changes in between are known beside them.
  void know_all_names(InodeId directory, ListingToken token, Stamp stamp);
  bool knows_all_names(InodeId directory);
  /// The valid complete listing, or null.
  std::shared_ptr<const Listing> listing(InodeId directory);

  // --- xattrs ------------------------------------------------------------------------------------
  using Xattrs = std::map<std::string, std::string>;
  std::shared_ptr<const Xattrs> xattrs(InodeId inode);
  void set_xattrs(InodeId inode, Xattrs xattrs, Stamp stamp, bool leased);
  /// After an own mutation that changed more than it says.
  void drop_xattrs(InodeId inode, Stamp stamp);
  /// After an own mutation: changes the cached value (none: removed), or drops the cache.
  void change_xattr(InodeId inode, const std::string& name, std::optional<std::string> value,
                    Stamp stamp, bool leased);

  // --- access times ------------------------------------------------------------------------------
  /// The inode was read. False if the rule does not want that noted.
  bool note_read(InodeId inode, Timestamp now, AtimeRule rule);
  /// What the last noted read made of the access time, until the cluster's own says it.
  std::optional<Timestamp> noted_read(InodeId inode);
  /// Whether note_read() would note it.
  bool wants_read(InodeId inode, Timestamp now, AtimeRule rule);
  /// The atime was set: what was noted before counts no more.
  void clear_read(InodeId inode);
  /// Of these inodes, those with a noted read that the cluster need not know yet.
  std::vector<NoteReadsOp::Read> noted_reads(const std::vector<InodeId>& inodes);

  // --- lineages ----------------------------------------------------------------------------------
  /// For an open of a regular file: the view with one more hold on its file; none if unknown.
  std::optional<View> hold(NodeHandle node);
  enum class Which { kCurrent, kAny };
  /// Lets a node that is idle but for `own_holds` take the newest version. False if others use it,
  /// or if it is not the one that lookups give and has to be.
  bool take_newest(NodeHandle node, std::uint32_t own_holds, Which which = Which::kCurrent);
  /// The node's content has been committed as `version`. True if the names of the inode led
  /// elsewhere and now lead to this node.
  bool committed(NodeHandle node, Version version);
  /// The node's content has become no version, and will be none: who opens the file from here on
  /// gets another node.
  void retire(NodeHandle node);
  /// Runs `detach` under the table's lock if the node is idle: nobody can start to use it then.
  template <class Fn>
  bool if_idle(const FileState& file, Fn detach) {
    MutexLock lock(mutex_);
    if (file.holds.load() != 0) return false;
    detach();
    return true;
  }
  /// Whether any lineage of the inode is held, or it is a special file that may be open.
  bool in_use(InodeId inode);
  /// What its nodes share, those to come included while the answer is kept.
  std::shared_ptr<InodeLocks> locks_of(InodeId inode);
  /// All lineages of the inode, newest last.
  std::vector<std::shared_ptr<FileState>> files_of(InodeId inode);
  /// Every file that somebody holds.
  std::vector<std::shared_ptr<FileState>> held_files();

  // --- callbacks ---------------------------------------------------------------------------------
  struct Invalidation {
    std::vector<Notifier::Item> items;
    bool all_entries = false;  ///< expire every dentry of the mount
    std::vector<InodeId> open;
  };
  /// First: no file is made unsent in these directories from here on. Those that were had alone,
  /// and may have changed here.
  std::vector<InodeId> begin_call_back(const CallbackRequest& request);
  Invalidation call_back(const CallbackRequest& request);
  /// What the kernel must drop when all leases are void.
  Invalidation everything();
  /// What makes the kernel look up the inode's names again.
  Invalidation expire_names(InodeId inode);

  struct Counters {
    std::size_t inodes = 0, entries = 0, nodes = 0;
  };
  Counters counters();

 private:
  struct Node {
    NodeHandle handle = kNoNode;
    InodeId inode;
    std::uint64_t lookups = 0;
    Version version;
    Attr shown;  // regular files: as it was when `version` was the newest
    std::shared_ptr<FileState> file;
    bool told_open = false;  // special files: to the cluster
  };
  struct Dentry {
    InodeId child;
    Stamp stamp;
  };
  struct StringHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view text) const noexcept {
      return std::hash<std::string_view>()(text);
    }
  };
  struct Directory {
    std::unordered_map<std::string, Dentry, StringHash, std::equal_to<>> entries;
    bool complete = false;  // a name that is not in `entries` is absent
    Stamp complete_stamp;
    std::uint64_t changes = 0;
    std::uint64_t losses = 0;  // names that were known and are not
    const std::uint64_t serial = next_serial();
    static std::uint64_t next_serial() {
      static std::atomic<std::uint64_t> last{0};
      return ++last;
    }
    std::shared_ptr<const Listing> listing;
  };
  struct Inode {
    InodeId id;
    bool known = false;   // `attr` has been set
    bool leased = false;  // and not called back since
    bool gone = false;    // at the cluster too: an id is not used again
    Timestamp lost_name;  // when, if it is gone
    Attr attr;
    Stamp stamp;
    Stamp called_back;
    NodeHandle current = kNoNode;
    std::vector<NodeHandle> nodes;
    std::weak_ptr<InodeLocks> locks;                     // regular files only
    std::vector<std::pair<InodeId, std::string>> names;  // that the kernel may have
    bool more_names = false;
    InodeId seen_in;  // where it was last seen, and under which name; valid or not
    std::string seen_as;
    std::unique_ptr<Directory> directory;
    std::shared_ptr<const Xattrs> xattrs;
    Stamp xattrs_stamp;
    std::optional<Timestamp> noted_read;
    std::optional<Timestamp> told_read;  // the last one that the cluster was told
    std::unique_ptr<Unsent> unsent;
    std::unique_ptr<Unsent> nameless;  // was unsent when it was removed
    // Directories:
    Stamp alone;                     // granted to this mount alone; 0: not
    std::set<InodeId> unsent_names;  // files in it
    Timestamp changed_here;          // the last change that the cluster may not know
    std::list<InodeId>::iterator place;
  };

  Inode& inode(InodeId id) FM_REQUIRES(mutex_);
  Inode* peek_inode(InodeId id) FM_REQUIRES(mutex_);
  Directory& directory(InodeId id) FM_REQUIRES(mutex_);
  bool attr_valid(const Inode& inode) const;
  static bool wants_read(const Inode& of, Timestamp now, AtimeRule rule);
  void apply_locked(Inode& to, const Attr& attr, Stamp stamp, bool leased) FM_REQUIRES(mutex_);
  Node& newest_node(Inode& of) FM_REQUIRES(mutex_);
  std::shared_ptr<InodeLocks> shared_locks(Inode& of) FM_REQUIRES(mutex_);
  Node& make_node(Inode& of) FM_REQUIRES(mutex_);
  View view(const Node& node, const Inode& of) const FM_REQUIRES(mutex_);
  static bool idle(const Node& node);
  /// Opens of devices, FIFOs and sockets are the kernel's alone: one that it knows may be open.
  static bool maybe_open(const Node& node, const Inode& of);
  /// In use, met by a newer version, and it is not known yet whether it holds local work.
  static std::uint64_t raw(NodeHandle node) { return static_cast<std::uint64_t>(node); }
  static bool unsettled(const Node& node, const Inode& of);
  Node* settled_node(Inode& of) FM_REQUIRES(mutex_);
  bool enter(Inode& dir, std::string_view name, InodeId child, Stamp stamp, bool leased)
      FM_REQUIRES(mutex_);
  bool alone(const Inode& dir) const {
    return dir.alone != Stamp{} && session_.lease_holds(dir.alone);
  }
  bool is_unsent(InodeId id) FM_REQUIRES(mutex_);
  void erase_entry(Directory& from, std::string_view name) FM_REQUIRES(mutex_);
  void note_name(Inode& of, InodeId parent, std::string_view name) FM_REQUIRES(mutex_);
  static void note_seen(Inode& of, InodeId parent, std::string_view name);
  void add_names(const Inode& of, Invalidation& to) FM_REQUIRES(mutex_);
  std::shared_ptr<FileState> remove_if_unused(NodeHandle node) FM_REQUIRES(mutex_);
  void trim() FM_REQUIRES(mutex_);

  const ClientSession& session_;
  const Limits limits_;
  Mutex mutex_;
  std::unordered_map<InodeId, std::unique_ptr<Inode>> inodes_ FM_GUARDED_BY(mutex_);
  std::list<InodeId> lru_ FM_GUARDED_BY(mutex_);  // least recently used first
  std::unordered_map<std::uint64_t, Node> nodes_ FM_GUARDED_BY(mutex_);
  std::uint64_t next_node_ FM_GUARDED_BY(mutex_) = 2;
  std::size_t entry_count_ FM_GUARDED_BY(mutex_) = 0;
  std::set<InodeId> unsent_ FM_GUARDED_BY(mutex_);
};

}  // namespace fermata::mountd
