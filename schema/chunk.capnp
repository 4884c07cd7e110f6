@0xa9d4c3e5b2f17d14;
# Chunks of file content; their bytes are frame payloads.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fermata::schema");
using T = import "types.capnp";

struct ChunkRequest { id @0 :T.ChunkId; sizeBytes @1 :UInt32; asOf @2 :UInt64; }
struct ChunkList { ids @0 :Data; asOf @1 :UInt64; }     # 33 bytes each: algorithm, digest
struct ChunkFlags { flags @0 :List(Bool); }
struct ReadSnapshotRequest { snapshotId @0 :UInt64; file @1 :Text; offsetBytes @2 :UInt64; sizeBytes @3 :UInt32; }
