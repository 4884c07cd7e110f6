@0xd5a1c2b0f6e94a11;
# Types that several conversations use. Rules for changes: schema/README.md.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fermata::schema");

struct Timestamp { seconds @0 :Int64; nanoseconds @1 :UInt32; }
struct OptionalTimestamp { union { none @0 :Void; some @1 :Timestamp; } }
struct OptionalUInt32 { union { none @0 :Void; some @1 :UInt32; } }

struct Attr {
  inode @0 :UInt64;
  type @1 :UInt8;
  mode @2 :UInt32;
  nlink @3 :UInt32;
  uid @4 :UInt32;
  gid @5 :UInt32;
  rdev @6 :UInt64;
  sizeBytes @7 :UInt64;
  allocatedBytes @8 :UInt64;
  atimeSeconds @9 :Int64;
  mtimeSeconds @10 :Int64;
  ctimeSeconds @11 :Int64;
  btimeSeconds @12 :Int64;
  atimeNanoseconds @13 :UInt32;
  mtimeNanoseconds @14 :UInt32;
  ctimeNanoseconds @15 :UInt32;
  btimeNanoseconds @16 :UInt32;
  version @17 :UInt64;
  change @18 :UInt64;
  parent @19 :UInt64;
  symlinkTarget @20 :Data;
  noXattrs @21 :Bool;
}

struct Credentials { uid @0 :UInt32; gid @1 :UInt32; groups @2 :List(UInt32); }
struct ChunkId { algorithm @0 :UInt8; digest @1 :Data; }
struct Patch { offsetBytes @0 :UInt64; sizeBytes @1 :UInt32; }
struct WireMember { id @0 :UInt32; address @1 :Text; voter @2 :Bool; }
