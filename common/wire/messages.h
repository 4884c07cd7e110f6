// Every message between clients and nodes, as plain structs. schema/*.capnp is the wire form and
// the codecs beside this header translate (encode/decode); docs/PROTOCOL.md tells the
// conversations.
//
// Names in messages are single components: 1 to 255 bytes, no '/' or NUL, not "." or "..". Decoders
// check that, and every length, count and enum value, so what leaves a decoder is well formed.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "common/base/ids.h"
#include "common/base/range_locks.h"
#include "common/wire/raft.h"

namespace fermata {

// ---------------------------------------------------------------- attributes

enum class FileType : std::uint8_t {
  kRegular = 1,
  kDirectory = 2,
  kSymlink = 3,
  kFifo = 4,
  kSocket = 5,
  kCharDevice = 6,
  kBlockDevice = 7,
};

struct Timestamp {
  std::int64_t seconds = 0;       ///< since 1970 UTC; may be negative
  std::uint32_t nanoseconds = 0;  ///< below 1e9
  auto operator<=>(const Timestamp&) const = default;
};

/// What stat(2) shows of an inode, and its content's version.
struct Attr {
  InodeId inode;
  FileType type = FileType::kRegular;
  std::uint32_t mode = 0;  ///< permission, setuid, setgid and sticky bits: 07777
  std::uint32_t nlink = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t rdev = 0;  ///< device nodes: as st_rdev
  std::uint64_t size_bytes =
      0;  ///< regular: of `version`; symlink: of the target; directory: entries * 32
  std::uint64_t allocated_bytes = 0;  ///< regular: without holes
  Timestamp atime, mtime, ctime, btime;
  Version version;  ///< regular files: of the content; 0 while it never had any (empty)
  LogIndex change;  ///< the log index that last changed anything here, entries and xattrs included
  InodeId parent;   ///< directories: of ".."; the root's is itself
  std::string symlink_target;  ///< symlinks only
  bool no_xattrs = false;      ///< it has none, ACLs included; false says nothing
  bool operator==(const Attr&) const = default;
};

// ---------------------------------------------------------------- sessions

struct Credentials {
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::vector<std::uint32_t> groups;  ///< supplementary, at most 1,024
  bool operator==(const Credentials&) const = default;
};

struct OpenSessionRequest {
  std::string
      client_id;     ///< 16 to 64 characters, random, of this mount: a retry finds the same session
  std::string host;  ///< for people: `fermata status`
  std::string mount_point;
};
struct OpenSessionReply {
  SessionId session;
  Epoch epoch;
  std::uint32_t lease_ms = 0;  ///< the client's lease ends this long after it *sent* the request
  Term term;                   ///< of the answering primary
  Stamp stamp;                 ///< every lease of this session is stamped later than this
  ClusterId cluster;
  std::vector<Member> members;  ///< where chunks can be read and a new primary be found
};
struct RenewSessionRequest {
  SessionId session;
  Epoch epoch;
  /// The client has given up every lease stamped with an older term: the primary of this term need
  /// no longer treat it as a holder of everything. 0: not yet.
  Term given_up_before;
};
struct RenewSessionReply {
  std::uint32_t lease_ms = 0;
  Term term;
  std::vector<Member> members;
  bool quotas = false;  ///< the volume has some: what is written may have less room than there is
};
struct CloseSessionRequest {
  SessionId session;
  Epoch epoch;
};
struct BindCallbacksRequest {
  SessionId session;
  Epoch epoch;
};

/// "Forget what you cached of these": answered when the client and its kernel have.
struct CallbackRequest {
  Stamp stamp;  ///< a lease granted with a lower stamp that arrives later is void for these inodes
  struct Item {
    InodeId inode;
    bool attributes = false;   ///< attributes, xattrs and (files) which version is the newest
    bool all_entries = false;  ///< directories: every entry, every absence and the listing
    std::vector<std::string>
        names;  ///< directories: these entries or absences, and that the listing is complete
    bool asks_open = false;  ///< the inode is about to lose its last link: is it open here?
    bool operator==(const Item&) const = default;
  };
  std::vector<Item> items;
  /// Delegations that others ask for: answered when they are returned (ReturnLocksOp).
  struct Recall {
    InodeId inode;
    LockSpace space = LockSpace::kPosix;
    bool operator==(const Recall&) const = default;
  };
  std::vector<Recall> recalls = {};
};
struct CallbackReply {
  std::vector<InodeId> open;  ///< of the items that ask, those that are open in this client
};

// ---------------------------------------------------------------- reads

/// At the head of every read. A read needs a live session only to be granted leases.
struct ReadHeader {
  SessionId session;
  Epoch epoch;
  Credentials cred;
};

struct LookupRequest {
  ReadHeader header;
  InodeId parent;
  std::string name;
};
struct LookupReply {
  Stamp stamp;
  bool entry_leased = false;  ///< the entry (or its absence) may be cached under the parent's lease
  bool leased = false;        ///< `attr` may be cached
  std::optional<Attr> attr;   ///< none: there is no such entry
};
struct GetAttrRequest {
  ReadHeader header;
  InodeId inode;
};
struct GetAttrReply {
  Stamp stamp;
  bool leased = false;
  Attr attr;
};
struct ReadDirRequest {
  ReadHeader header;
  InodeId inode;
  Cookie after;                 ///< 0: from the start. "." and ".." are the client's
  std::uint32_t bytes_max = 0;  ///< of the answer, about
  bool with_attributes = false;
};
struct ReadDirReply {
  Stamp stamp;
  bool entries_leased = false;  ///< the entries may be cached, and at `end` of a listing read
                                ///< wholly under one unbroken lease also that there are no others
  bool end = false;
  Attr directory;
  bool directory_leased = false;
  struct Entry {
    std::string name;
    InodeId inode;
    FileType type = FileType::kRegular;
    Cookie cookie;             ///< go on after this one
    std::optional<Attr> attr;  ///< with_attributes
    bool leased = false;       ///< attr may be cached
  };
  std::vector<Entry> entries;  ///< in cookie order
};

/// Chunk `index` of a file; a none id is a hole. In payloads: 37-byte records (u32 index, u8
/// algorithm, 32 bytes), little-endian, sorted by index (chunk_records.h).
struct ChunkRef {
  std::uint32_t index = 0;
  ChunkId id;
  bool operator==(const ChunkRef&) const = default;
};
/// Bytes laid over the chunks, later patches over earlier ones.
struct Patch {
  std::uint64_t offset_bytes = 0;
  std::uint32_t size_bytes = 0;
  bool operator==(const Patch&) const = default;
};

struct OpenRequest {
  ReadHeader header;
  InodeId inode;
  Version have;  ///< the newest version in the client's cache: its content is not sent again
};
struct OpenReply {
  Stamp stamp;
  bool leased = false;
  Attr attr;
  /// How the content of attr.version comes, unless it is `have` (kNone) or empty. The payload
  /// holds, in this order: kInline: the bytes. kChunks: the patches' bytes one after the other,
  /// then chunk records from index 0 up to the frame's limit.
  enum class Content : std::uint8_t {
    kNone = 0,
    kInline = 1,
    kChunks = 2
  } content = Content::kNone;
  std::vector<Patch> patches;
  bool more_chunks = false;  ///< go on with kContent after the last record's index
};
struct ContentRequest {
  ReadHeader header;
  InodeId inode;
  Version version;  ///< kTruncatedHistory if it is no longer kept
  std::uint32_t first_chunk = 0;
};
struct ContentReply {
  bool more_chunks = false;
};
struct GetXattrsRequest {
  ReadHeader header;
  InodeId inode;
};
struct GetXattrsReply {
  Stamp stamp;
  bool leased = false;
  std::map<std::string, std::string> xattrs;  ///< all of the inode's
};
struct StatFsRequest {
  ReadHeader header;
  InodeId inode;  ///< whose quotas count; none: no quotas
};
struct StatFsReply {
  /// What the smallest majority of nodes could hold; under a quota that leaves less room, its
  /// limit.
  std::uint64_t total_bytes = 0;
  std::uint64_t free_bytes = 0;
  std::uint64_t inodes = 0;      ///< in use; under a quota on inodes those it counts
  bool quotas = false;           ///< the volume has some
  std::uint64_t inodes_max = 0;  ///< of the quota on inodes that leaves the least room; 0: no limit
  /// What `inode` may grow by, its owner's quota counted too.
  std::uint64_t room_bytes = UINT64_MAX;
};

enum class QuotaKind : std::uint8_t { kTree = 1, kUser = 2 };
enum class QuotaPhase : std::uint8_t {
  kExact = 0,
  kCounting = 1,  ///< what was there before the quota is still being counted
  kRemoving = 2   ///< holds nobody back any more
};
/// All quotas, or those that count an inode (nearest tree first, then its owner's). Only user 0 may
/// ask for all.
struct QuotasRequest {
  ReadHeader header;
  InodeId inode;  ///< none: all
};
struct QuotaList {
  struct Quota {
    QuotaKind kind = QuotaKind::kTree;
    std::uint64_t id = 0;          ///< the directory's inode; the user
    InodeId parent;                ///< of a tree within another one: that one
    std::uint64_t bytes_max = 0;   ///< 0: no limit
    std::uint64_t inodes_max = 0;  ///< 0: no limit
    std::uint64_t bytes = 0;
    std::uint64_t inodes = 0;
    QuotaPhase phase = QuotaPhase::kExact;
    std::string path;  ///< of a tree, from the volume's root; empty: not known
    bool operator==(const Quota&) const = default;
  };
  std::vector<Quota> quotas;
};

// ---------------------------------------------------------------- mutations

struct SetAttrOp {
  InodeId inode;
  std::optional<std::uint32_t> mode;
  std::optional<std::uint32_t> uid;
  std::optional<std::uint32_t> gid;
  std::optional<Timestamp> atime;
  std::optional<Timestamp> mtime;
  bool atime_now = false;  ///< the command's time
  bool mtime_now = false;
  bool clear_suid_sgid = false;  ///< killpriv: after a write or chown by one without CAP_FSETID
  bool written = false;  ///< `mtime` is when a write left the same bytes: the ctime follows it
  LogIndex opened;       ///< with `written`, clear_suid_sgid: as CommitOp's
  bool operator==(const SetAttrOp&) const = default;
};
/// mknod, mkdir, symlink and the create half of open. The client has decided mode and owner; what
/// depends on the parent is the state machine's: its group if it is setgid, its default ACL, and
/// the umask, which counts only without one.
struct CreateOp {
  InodeId parent;
  std::string name;
  FileType type = FileType::kRegular;
  std::uint32_t mode = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t rdev = 0;
  std::string symlink_target;
  std::uint32_t umask = 0;  ///< still to be applied to `mode`
  bool exclusive = true;    ///< else an existing regular file is success (its inode is the answer)
  /// Of the session's reserve (ReserveInodesOp): the caller has shown the file already. None: the
  /// state gives it one. Only regular files, and only with `exclusive`.
  InodeId inode{};
  Timestamp made{};  ///< with `inode`: when the caller made it
  /// With `inode`: what its maker has set of it since, times as values, and when.
  std::optional<SetAttrOp> set{};
  Timestamp changed{};
  bool operator==(const CreateOp&) const = default;
};
/// O_TMPFILE: a regular file without a name, which this session has open. It goes when that closes
/// it or ends, unless a LinkOp of the same session has named it. `parent` is where it would be
/// made: the rules of CreateOp about group, default ACL and umask hold.
struct CreateUnnamedOp {
  InodeId parent;
  std::uint32_t mode = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint32_t umask = 0;  ///< still to be applied to `mode`
  bool linkable = true;     ///< else it never gets a name (O_EXCL)
  /// As CreateOp's: a file that its maker has shown already, and removed again.
  InodeId inode{};
  Timestamp made{};
  std::optional<SetAttrOp> set{};
  Timestamp changed{};
  bool operator==(const CreateUnnamedOp&) const = default;
};
struct LinkOp {
  InodeId inode;
  InodeId parent;
  std::string name;
  bool operator==(const LinkOp&) const = default;
};
struct UnlinkOp {
  InodeId parent;
  std::string name;
  bool open_here = false;  ///< the caller's mount has it open
  bool operator==(const UnlinkOp&) const = default;
};
struct RmdirOp {
  InodeId parent;
  std::string name;
  bool operator==(const RmdirOp&) const = default;
};
struct RenameOp {
  InodeId parent;
  std::string name;
  InodeId new_parent;
  std::string new_name;
  enum Flags : std::uint32_t {
    kNoReplace = 1,
    kExchange = 2,
    kWhiteout = 4  ///< leaves a character device 0/0 of the caller's under the old name
  };               ///< as renameat2(2); others are EINVAL
  std::uint32_t flags = 0;
  bool target_open_here = false;  ///< the caller's mount has the replaced file open
  bool operator==(const RenameOp&) const = default;
};
struct SetXattrOp {
  InodeId inode;
  std::string name;
  std::string value;
  enum Flags : std::uint32_t { kCreate = 1, kReplace = 2 };  ///< as setxattr(2)
  std::uint32_t flags = 0;
  bool clear_sgid = false;  ///< an access ACL, set by one outside the file's group
  bool operator==(const SetXattrOp&) const = default;
};
struct RemoveXattrOp {
  InodeId inode;
  std::string name;
  bool operator==(const RemoveXattrOp&) const = default;
};
/// A close or fsync: the file's new version. The payload by kind:
/// kInline: the whole content (size_bytes <= 64 KiB).
/// kChunks: chunk records of what changed against base (whole: of everything, holes left out).
/// kPatches: the patches' bytes one after the other; chunks stay.
struct CommitOp {
  InodeId inode;
  Version base;  ///< that the content was derived from
  enum class Kind : std::uint8_t { kInline = 1, kChunks = 2, kPatches = 3 } kind = Kind::kInline;
  bool whole = false;  ///< does not build on base: always so for kInline
  bool replace_newer =
      false;  ///< base is stale, put this version over the newer one and list the conflict; only if
              ///< whole. Without it a stale base is kStaleBase and changes nothing
  std::uint64_t size_bytes = 0;
  std::vector<Patch> patches;
  Timestamp mtime;
  std::optional<Timestamp> atime;
  bool clear_suid_sgid = false;  ///< somebody without CAP_FSETID wrote
  std::string path_hint;         ///< for the conflict list; may be empty
  /// What the caller knew of the file (Attr::change) when it opened it: who was allowed to write
  /// then may commit still (open(2) decides, not close). None: who may write now.
  LogIndex opened;
  bool operator==(const CommitOp&) const = default;
};
/// A CreateOp with an id of the session's reserve and the first CommitOp of what it makes, in one
/// command: `content` is kInline, its base none. The payload is its content.
struct MakeFileOp {
  CreateOp create;
  CommitOp content;
  bool operator==(const MakeFileOp&) const = default;
};
/// Ids for files that the session makes from here on. They are this session's, each is used once at
/// most, and what is left ends with the session. EINVAL: the session has kReservedInodesMax.
struct ReserveInodesOp {
  static constexpr std::uint32_t kCountMax = 4096;
  std::uint32_t count = 0;
  bool operator==(const ReserveInodesOp&) const = default;
};
/// The session has closed its last handle of these unlinked inodes.
struct ReleaseOrphansOp {
  std::vector<InodeId> inodes;
  bool operator==(const ReleaseOrphansOp&) const = default;
};

/// flock(2), fcntl(2): takes, changes or releases an advisory lock, never waiting: std::errc
/// ::resource_unavailable_try_again if another owner's lock conflicts. The owner's session is the
/// request's. The answer's attributes say which version the lock's holder is to see.
struct LockOp {
  InodeId inode;
  LockSpace space = LockSpace::kPosix;
  LockType type = LockType::kUnlock;
  std::uint64_t owner = 0;
  LockRange range;
  std::uint32_t pid = 0;
  /// Not 0: the owner waits in the primary's queue under this number (WaitLock) and takes its turn.
  std::uint64_t ticket = 0;
  /// With a lock: the session asks to answer for the file's locks of this space from now on. In the
  /// command: the primary has nothing against it. It becomes so (MutationReply::delegated) if no
  /// other session holds one.
  bool delegate = false;
  bool operator==(const LockOp&) const = default;
};

/// Ends a delegation of the session: `held` are the locks that its programs hold at that moment. If
/// the file is not delegated to it, nothing changes.
struct ReturnLocksOp {
  InodeId inode;
  LockSpace space = LockSpace::kPosix;
  LockList held;  ///< the owners' session is the request's; at most kLocksPerFileMax
  bool operator==(const ReturnLocksOp&) const = default;
};

/// What was read, and when: the inode's atime rises to that, unless something has changed the inode
/// since. Nobody is called back for it: others see it when they ask again for another reason.
struct NoteReadsOp {
  struct Read {
    InodeId inode;
    Timestamp time;
    bool operator==(const Read&) const = default;
  };
  static constexpr std::size_t kReadsMax = 1'000;
  std::vector<Read> reads;
  bool operator==(const NoteReadsOp&) const = default;
};

/// Sets, changes or removes a quota: what a directory's tree, or a user's files, may take together.
/// Only user 0 may. Errors: EPERM; ENOENT, ENOTDIR (of the tree); EINVAL (user 0); EBUSY (one that
/// was here is still being removed); ENOSPC (too many); ENODATA (none to remove).
struct SetQuotaOp {
  QuotaKind kind = QuotaKind::kTree;
  std::uint64_t id = 0;  ///< the directory's inode; the user
  bool remove = false;
  std::optional<std::uint64_t> bytes_max;   ///< 0: no limit; none: as it is
  std::optional<std::uint64_t> inodes_max;  ///< likewise
  bool operator==(const SetQuotaOp&) const = default;
};

using Mutation =
    std::variant<CreateOp, LinkOp, UnlinkOp, RmdirOp, RenameOp, SetAttrOp, SetXattrOp,
                 RemoveXattrOp, CommitOp, ReleaseOrphansOp, LockOp, NoteReadsOp, CreateUnnamedOp,
                 SetQuotaOp, ReturnLocksOp, MakeFileOp, ReserveInodesOp>;

struct MutationRequest {
  SessionId session;
  Epoch epoch;
  Sequence sequence;  ///< a retry carries the same one
  Sequence
      answered_below;  ///< answers to all lower ones have arrived: their results may be forgotten
  Credentials cred;
  Mutation op;
  /// Of creates: the caller would make more files in the directory (or in the one it makes) by
  /// itself, if it may have an exclusive lease of it.
  bool asks_exclusive = false;
};
/// The state after the mutation, as of when the answer was made. Fields that do not apply are
/// absent.
struct MutationReply {
  Stamp stamp;
  std::optional<Attr> attr;  ///< of the inode created, linked, changed, committed, renamed
  bool leased = false;
  std::optional<Attr> parent;  ///< of the (first) directory
  bool parent_leased = false;  ///< also: the entry that the mutation made or removed may be cached
  std::optional<Attr> new_parent;  ///< rename across directories
  bool new_parent_leased = false;
  std::optional<Attr> removed;  ///< what lost a name: unlink, rmdir, a rename's target (nlink may
                                ///< be 0); of an exchange the other inode
  bool removed_leased = false;
  Version version;  ///< commit: the new version
  /// LockOp: the session answers for the file's locks of that space. What it holds and does not
  /// hold there is its own to say; an unlock has changed nothing.
  bool delegated = false;
  bool exclusive = false;         ///< of `attr`, a new directory: nobody else asks about it without
                                  ///< a callback first
  bool parent_exclusive = false;  ///< the same of `parent`
  InodeId reserved;               ///< ReserveInodesOp: the first of
  std::uint32_t reserved_count = 0;
};

// ---------------------------------------------------------------- locks

/// FindLock: what keeps `lock` from being granted (F_GETLK)?
/// WaitLock: answered when it is `lock`'s turn, or after a while with free = false: ask again. The
/// place in the queue is kept by session, owner and ticket as long as the client keeps asking.
/// Errors: EDEADLK; ENOLCK (the queue is full).
struct LockQuery {
  ReadHeader header;
  LockOp lock;
  bool detect_deadlock = false;  ///< WaitLock: fcntl's process locks, neither OFD nor flock
  bool give_up = false;          ///< WaitLock: leaves the queue
};
struct FindLockReply {
  std::optional<HeldLock> held;
};
struct WaitLockReply {
  bool free = false;
};

// ---------------------------------------------------------------- chunks

struct ChunkRequest {
  ChunkId id;
  std::uint32_t size_bytes = 0;  ///< of the payload sent
  LogIndex as_of{};              ///< of a primary: what it has applied (ChunkFetcher::vouch)
};
struct ChunkList {
  std::vector<ChunkId> ids;  ///< at most 1,000
  LogIndex as_of{};          ///< of a primary: what it has applied
};
struct ChunkFlags {
  std::vector<bool> flags;  ///< as asked
};

// ---------------------------------------------------------------- node to node, operation

struct ReadSnapshotRequest {
  std::uint64_t snapshot_id = 0;
  std::string file;
  std::uint64_t offset_bytes = 0;
  std::uint32_t size_bytes = 0;  ///< at most 4 MiB
};

/// In the body of a kNotPrimary answer.
struct PrimaryHint {
  NodeId primary;  ///< none: unknown
  std::string address;
  Term term;
};

struct NodeStatus {
  NodeId node;
  std::string address;
  ClusterId cluster;
  std::string version;  ///< of the program
  std::string role;     ///< primary, backup, candidate, learner
  Term term;
  NodeId primary;
  LogIndex first, last, commit, applied;
  std::vector<Member> members;
  struct Peer {
    NodeId node;
    LogIndex match;
    bool active = false;
  };
  std::vector<Peer> peers;  ///< at the primary: how far each one is
  std::uint64_t chunk_count = 0;
  std::uint64_t chunk_bytes = 0;
  std::uint64_t chunks_missing = 0;  ///< referenced here and not yet fetched
  std::uint64_t chunks_corrupt =
      0;  ///< found since the start (and repaired from a peer where possible)
  std::uint64_t session_count = 0;
  std::uint64_t inode_count = 0;
  std::uint64_t disk_total_bytes = 0;
  std::uint64_t disk_free_bytes = 0;
  bool disk_full = false;           ///< takes nothing new
  bool disk_low = false;            ///< soon: history is forgotten early
  std::uint32_t command_level = 0;  ///< what it can apply (commands.h)
  std::uint64_t uptime_ms = 0;
  std::map<std::string, std::uint64_t>
      counters;  ///< RPCs by method, malformed frames, callbacks, ...
};
struct DigestRequest {
  LogIndex at;  ///< 0: the primary orders a digest through the log and answers with its index
};
struct DigestReply {
  LogIndex at;
  std::string digest;  ///< hexadecimal; of the whole replicated state at that index
};
struct TransferRequest {
  NodeId to;  ///< none: the best one
};
struct SessionList {
  struct Session {
    SessionId session;
    Epoch epoch;
    std::string host, mount_point;
    std::uint64_t lease_left_ms = 0;
    std::uint64_t leases = 0;
  };
  std::vector<Session> sessions;
};

}  // namespace fermata
