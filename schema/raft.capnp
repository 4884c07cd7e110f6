@0xc4f1b7a0653e92d8;
# What the nodes of a replica group say about the log. common/wire/raft.h says what the fields
# mean, common/wire/raft_codec.h bounds them. Rules for changes: schema/README.md; in short, fields
# are only added, numbers and types never change, and a default means "as before". A receiver drops
# a message whose kind it does not know, as if the network had lost it, so a new kind may only
# carry what is sent again. The membership is also an entry in the log: an old log must stay readable.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fermata::schema");

struct RaftMessage {
  kind @0 :UInt8;              # RaftKind
  group @1 :UInt32;
  from @2 :UInt32;
  to @3 :UInt32;
  term @4 :UInt64;
  prevIndex @5 :UInt64;
  prevTerm @6 :UInt64;
  entries @7 :List(RaftEntry);
  commit @8 :UInt64;
  round @9 :UInt64;
  reject @10 :Bool;
  match @11 :UInt64;
  matchTerm @12 :UInt64;
  transfer @13 :Bool;
  snapshot @14 :RaftSnapshot;  # null but in kSnapshot and kSnapshotReply
  rejoin @15 :UInt64;
  rejoinUntil @16 :UInt64;
  silenceMs @17 :UInt32;       # 0: a program that does not say it
}

struct RaftEntry {
  index @0 :UInt64;
  term @1 :UInt64;
  kind @2 :UInt8;              # EntryKind
  data @3 :Data;
}

struct RaftMember {
  id @0 :UInt32;
  address @1 :Text;            # HOST:PORT
  voter @2 :Bool;
}

struct RaftMembership {        # also the data of an entry of kind kMembership
  members @0 :List(RaftMember);
}

struct RaftSnapshotFile {
  name @0 :Text;               # one path component
  sizeBytes @1 :UInt64;
  crc32c @2 :UInt32;
}

struct RaftSnapshot {          # also the manifest that a node keeps beside a snapshot
  index @0 :UInt64;
  term @1 :UInt64;
  membership @2 :RaftMembership;
  files @3 :List(RaftSnapshotFile);
  id @4 :UInt64;
}
