@0xc6b8e1f4d3a28e15;
# What people and tools ask a node.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fermata::schema");
using T = import "types.capnp";

struct PrimaryHint { primary @0 :UInt32; address @1 :Text; term @2 :UInt64; }
struct Counter { name @0 :Text; value @1 :UInt64; }
struct NodeStatus {
  node @0 :UInt32;
  address @1 :Text;
  cluster @2 :Data;
  version @3 :Text;
  role @4 :Text;
  term @5 :UInt64;
  primary @6 :UInt32;
  first @7 :UInt64;
  last @8 :UInt64;
  commit @9 :UInt64;
  applied @10 :UInt64;
  members @11 :List(T.WireMember);
  peers @12 :List(Peer);
  chunkCount @13 :UInt64;
  chunkBytes @14 :UInt64;
  chunksMissing @15 :UInt64;
  chunksCorrupt @16 :UInt64;
  sessionCount @17 :UInt64;
  inodeCount @18 :UInt64;
  diskTotalBytes @19 :UInt64;
  diskFreeBytes @20 :UInt64;
  uptimeMs @21 :UInt64;
  counters @22 :List(Counter);
  diskFull @23 :Bool;
  diskLow @24 :Bool;
  commandLevel @25 :UInt32;   # see README.md; 0: of a version before there were any
  struct Peer { node @0 :UInt32; match @1 :UInt64; active @2 :Bool; }
}
struct Digest { at @0 :UInt64; digest @1 :Text; }   # the request uses `at` only
struct TransferRequest { to @0 :UInt32; }
struct SessionList {
  sessions @0 :List(Session);
  struct Session {
    session @0 :UInt64;
    epoch @1 :UInt64;
    host @2 :Text;
    mountPoint @3 :Text;
    leaseLeftMs @4 :UInt64;
    leases @5 :UInt64;
  }
}
