@0xb7c0f1d2a4e85b12;
# A client's session with the cluster, and the callbacks to it.
using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("fermata::schema");
using T = import "types.capnp";

struct OpenSessionRequest { clientId @0 :Text; host @1 :Text; mountPoint @2 :Text; }
struct OpenSessionReply {
  session @0 :UInt64;
  epoch @1 :UInt64;
  leaseMs @2 :UInt32;
  term @3 :UInt64;
  cluster @4 :Data;
  members @5 :List(T.WireMember);
  stamp @6 :UInt64;
}
struct RenewSessionRequest { session @0 :UInt64; epoch @1 :UInt64; givenUpBefore @2 :UInt64; }
struct RenewSessionReply { leaseMs @0 :UInt32; term @1 :UInt64; members @2 :List(T.WireMember); quotas @3 :Bool; }
struct SessionRef { session @0 :UInt64; epoch @1 :UInt64; }  # CloseSession, BindCallbacks

struct CallbackRequest {
  stamp @0 :UInt64;
  items @1 :List(Item);
  struct Item {
    inode @0 :UInt64;
    attributes @1 :Bool;
    allEntries @2 :Bool;
    names @3 :List(Data);
    asksOpen @4 :Bool;
  }
  recalls @2 :List(Recall);
  struct Recall { inode @0 :UInt64; space @1 :UInt8; }  # LockSpace
}
struct CallbackReply { open @0 :List(UInt64); }
