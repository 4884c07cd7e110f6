@0xe3f2a7b9c1d06c13;
# Reads and mutations of the tree. Names are bytes, not text: POSIX knows no encoding.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fermata::schema");
using T = import "types.capnp";

struct ReadHeader { session @0 :UInt64; epoch @1 :UInt64; cred @2 :T.Credentials; }

# Lookup, GetAttr, ReadDir, Open, Content, GetXattrs, StatFs and Quotas requests: the fields that each one uses.
struct ReadRequest {
  header @0 :ReadHeader;
  inode @1 :UInt64;          # Lookup: the parent; StatFs, Quotas: 0: none
  name @2 :Data;             # Lookup
  after @3 :UInt64;          # ReadDir: the cookie
  bytesMax @4 :UInt32;       # ReadDir
  withAttributes @5 :Bool;   # ReadDir
  version @6 :UInt64;        # Open: have; Content
  firstChunk @7 :UInt32;     # Content
}

struct LookupReply { stamp @0 :UInt64; entryLeased @1 :Bool; leased @2 :Bool; attr @3 :T.Attr; }  # no attr: absent
struct GetAttrReply { stamp @0 :UInt64; leased @1 :Bool; attr @2 :T.Attr; }
struct ReadDirReply {
  stamp @0 :UInt64;
  entriesLeased @1 :Bool;
  end @2 :Bool;
  directory @3 :T.Attr;
  directoryLeased @4 :Bool;
  entries @5 :List(Entry);
  struct Entry {
    name @0 :Data;
    inode @1 :UInt64;
    type @2 :UInt8;
    cookie @3 :UInt64;
    attr @4 :T.Attr;
    leased @5 :Bool;
  }
}
struct OpenReply {
  stamp @0 :UInt64;
  leased @1 :Bool;
  attr @2 :T.Attr;
  content @3 :UInt8;
  patches @4 :List(T.Patch);
  moreChunks @5 :Bool;
}
struct ContentReply { moreChunks @0 :Bool; }
struct Xattr { name @0 :Data; value @1 :Data; }
struct GetXattrsReply { stamp @0 :UInt64; leased @1 :Bool; xattrs @2 :List(Xattr); }
struct StatFsReply {
  totalBytes @0 :UInt64;
  freeBytes @1 :UInt64;
  inodes @2 :UInt64;
  quotas @3 :Bool;
  inodesMax @4 :UInt64;                          # 0: no limit
  roomBytes @5 :UInt64 = 0xffffffffffffffff;     # all ones: no limit
}
struct QuotaList {
  quotas @0 :List(Quota);
  struct Quota {
    kind @0 :UInt8;            # QuotaKind
    id @1 :UInt64;             # a directory's inode; a user id
    parent @2 :UInt64;
    bytesMax @3 :UInt64;       # 0: no limit
    inodesMax @4 :UInt64;      # 0: no limit
    bytes @5 :UInt64;
    inodes @6 :UInt64;
    phase @7 :UInt8;           # QuotaPhase
    path @8 :Data;             # empty: not known
  }
}

struct Mutation {
  union {
    create @0 :Create;
    link @1 :Link;
    unlink @2 :Unlink;
    rmdir @3 :Rmdir;
    rename @4 :Rename;
    setAttr @5 :SetAttr;
    setXattr @6 :SetXattr;
    removeXattr @7 :RemoveXattr;
    commit @8 :Commit;
    releaseOrphans @9 :ReleaseOrphans;
    lock @10 :Lock;
    noteReads @11 :NoteReads;
    createUnnamed @12 :CreateUnnamed;
    setQuota @13 :SetQuota;
    returnLocks @14 :ReturnLocks;
    makeFile @15 :MakeFile;
    reserveInodes @16 :ReserveInodes;
  }
  struct Create {
    parent @0 :UInt64;
    name @1 :Data;
    type @2 :UInt8;
    mode @3 :UInt32;
    uid @4 :UInt32;
    gid @5 :UInt32;
    rdev @6 :UInt64;
    symlinkTarget @7 :Data;
    exclusive @8 :Bool;
    umask @9 :UInt32;
    inode @10 :UInt64;         # reserved; 0: the state gives one
    made @11 :T.Timestamp;     # with inode
    set @12 :SetAttr;          # with inode; absent: nothing
    changed @13 :T.Timestamp;  # with set
  }
  struct CreateUnnamed {
    parent @0 :UInt64;
    mode @1 :UInt32;
    uid @2 :UInt32;
    gid @3 :UInt32;
    umask @4 :UInt32;
    linkable @5 :Bool;
    inode @6 :UInt64;          # reserved; 0: the state gives one
    made @7 :T.Timestamp;      # with inode
    set @8 :SetAttr;           # with inode; absent: nothing
    changed @9 :T.Timestamp;   # with set
  }
  struct Link { inode @0 :UInt64; parent @1 :UInt64; name @2 :Data; }
  struct Unlink { parent @0 :UInt64; name @1 :Data; openHere @2 :Bool; }
  struct Rmdir { parent @0 :UInt64; name @1 :Data; }
  struct Rename {
    parent @0 :UInt64;
    name @1 :Data;
    newParent @2 :UInt64;
    newName @3 :Data;
    flags @4 :UInt32;
    targetOpenHere @5 :Bool;
  }
  struct SetAttr {
    inode @0 :UInt64;
    mode @1 :T.OptionalUInt32;
    uid @2 :T.OptionalUInt32;
    gid @3 :T.OptionalUInt32;
    atime @4 :T.OptionalTimestamp;
    mtime @5 :T.OptionalTimestamp;
    atimeNow @6 :Bool;
    mtimeNow @7 :Bool;
    clearSuidSgid @8 :Bool;
    written @9 :Bool;
    opened @10 :UInt64;        # log index; 0: not said
  }
  struct SetXattr { inode @0 :UInt64; name @1 :Data; value @2 :Data; flags @3 :UInt32; clearSgid @4 :Bool; }
  struct RemoveXattr { inode @0 :UInt64; name @1 :Data; }
  struct Commit {
    inode @0 :UInt64;
    base @1 :UInt64;
    kind @2 :UInt8;
    whole @3 :Bool;
    replaceNewer @4 :Bool;
    sizeBytes @5 :UInt64;
    patches @6 :List(T.Patch);
    mtime @7 :T.Timestamp;
    atime @8 :T.OptionalTimestamp;
    clearSuidSgid @9 :Bool;
    pathHint @10 :Data;
    opened @11 :UInt64;        # log index; 0: not said
  }
  struct MakeFile { create @0 :Create; content @1 :Commit; }
  struct ReserveInodes { count @0 :UInt32; }
  struct ReleaseOrphans { inodes @0 :List(UInt64); }
  struct NoteReads {
    reads @0 :List(Read);
    struct Read { inode @0 :UInt64; time @1 :T.Timestamp; }
  }
  struct SetQuota {
    kind @0 :UInt8;            # QuotaKind
    id @1 :UInt64;
    remove @2 :Bool;
    setsBytes @3 :Bool;
    bytesMax @4 :UInt64;
    setsInodes @5 :Bool;
    inodesMax @6 :UInt64;
  }
  struct Lock {
    inode @0 :UInt64;
    space @1 :UInt8;           # LockSpace
    type @2 :UInt8;            # LockType
    owner @3 :UInt64;
    first @4 :UInt64;
    last @5 :UInt64;           # included
    pid @6 :UInt32;
    ticket @7 :UInt64;
    delegate @8 :Bool;
  }
  struct ReturnLocks {
    inode @0 :UInt64;
    space @1 :UInt8;           # LockSpace
    held @2 :List(Held);       # at most 10,000
    struct Held {
      owner @0 :UInt64;
      first @1 :UInt64;
      last @2 :UInt64;         # included
      type @3 :UInt8;          # LockType
      pid @4 :UInt32;
    }
  }
}

struct MutationRequest {
  session @0 :UInt64;
  epoch @1 :UInt64;
  sequence @2 :UInt64;
  answeredBelow @3 :UInt64;
  cred @4 :T.Credentials;
  op @5 :Mutation;
  asksExclusive @6 :Bool;
}
struct MutationReply {
  stamp @0 :UInt64;
  attr @1 :T.Attr;
  leased @2 :Bool;
  parent @3 :T.Attr;
  parentLeased @4 :Bool;
  newParent @5 :T.Attr;
  newParentLeased @6 :Bool;
  removed @7 :T.Attr;
  removedLeased @8 :Bool;
  version @9 :UInt64;
  delegated @10 :Bool;
  exclusive @11 :Bool;
  parentExclusive @12 :Bool;
  reserved @13 :UInt64;
  reservedCount @14 :UInt32;
}

# FindLock and WaitLock requests.
struct LockQuery {
  header @0 :ReadHeader;
  lock @1 :Mutation.Lock;
  detectDeadlock @2 :Bool;   # WaitLock
  giveUp @3 :Bool;           # WaitLock
}
struct FindLockReply {
  found @0 :Bool;
  session @1 :UInt64;
  type @2 :UInt8;
  first @3 :UInt64;
  last @4 :UInt64;
  pid @5 :UInt32;
}
struct WaitLockReply { free @0 :Bool; }
