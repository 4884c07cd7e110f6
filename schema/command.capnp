@0xf1e7d5c3b9a09f16;
# The replicated commands and their results: on every node's disk. schema/README.md rules 1 to 3 hold strictly.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fermata::schema");
using T = import "types.capnp";
using N = import "namespace.capnp";

struct Command {
  volume @0 :UInt16;
  session @1 :UInt64;
  epoch @2 :UInt64;
  sequence @3 :UInt64;
  answeredBelow @4 :UInt64;
  time @5 :T.Timestamp;
  cred @6 :T.Credentials;
  union {
    bootstrap @7 :Bootstrap;
    openSession @8 :OpenSession;
    endSessions @9 :List(UInt64);
    mutate @10 :Mutate;
    digest @11 :Void;
    pruneHistory @12 :PruneHistory;
    dropChunks @13 :Data;               # 33 bytes each
    foldPatches @14 :FoldPatches;
    countQuota @15 :CountQuota;
  }
  struct Bootstrap { cluster @0 :Data; rootUid @1 :UInt32; rootGid @2 :UInt32; rootMode @3 :UInt32; }
  struct OpenSession { clientId @0 :Text; host @1 :Text; mountPoint @2 :Text; leaseMs @3 :UInt32; }
  struct Mutate {
    op @0 :N.Mutation;
    payload @1 :Data;
    expectedInode @2 :UInt64;
    expectedTarget @3 :UInt64;
    openIn @4 :List(UInt64);
    noHistory @5 :Bool;
  }
  struct FoldPatches {
    inode @0 :UInt64;
    chunks @1 :List(FoldedChunk);
  }
  struct FoldedChunk {
    index @0 :UInt32;
    from @1 :Data;                      # 33 bytes; empty: a hole
    to @2 :Data;                        # 33 bytes
    patches @3 :List(PatchName);
  }
  struct PatchName { index @0 :UInt64; number @1 :UInt32; since @2 :UInt64; }
  struct CountQuota { kind @0 :UInt8; id @1 :UInt64; recordsMax @2 :UInt32; }
  struct PruneHistory { upTo @0 :UInt64; keysMax @1 :UInt32; }
}

struct CommandResult {
  error @0 :UInt32;
  inode @1 :UInt64;
  removed @2 :UInt64;
  session @3 :UInt64;
  epoch @4 :UInt64;
  version @5 :UInt64;
  count @6 :UInt64;
}
