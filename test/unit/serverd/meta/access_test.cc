// What a command may do by its credentials, whatever the caller's machine has let pass.
#include "common/access/access.h"

#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;

namespace {

constexpr std::uint32_t kAlice = 1001, kBob = 1002, kStaff = 2001, kOther = 2002;
const std::error_code kOk;
const std::error_code kAccess = std::make_error_code(std::errc::permission_denied);
const std::error_code kPerm = std::make_error_code(std::errc::operation_not_permitted);

struct AccessWorld : World {
  AccessWorld() {
    home = made(kRootInode, "home", 0755);
    own(home, kAlice, kStaff);
    shared = made(kRootInode, "shared", 0775);
    own(shared, 0, kStaff);
    drop = made(kRootInode, "drop", 01777);
  }
  InodeId made(InodeId parent, const std::string& name, std::uint32_t mode) {
    const auto result = d.mkdir(parent, name, mode);
    REQUIRE(result.error == 0);
    return result.inode;
  }
  static SetAttrOp of(InodeId inode) {
    SetAttrOp op;
    op.inode = inode;
    return op;
  }
  void as_root(const SetAttrOp& op) {
    const Credentials before = std::exchange(d.cred, {});
    REQUIRE(d.mutate(op).error == 0);
    d.cred = before;
  }
  void own(InodeId inode, std::uint32_t uid, std::uint32_t gid) {
    SetAttrOp op = of(inode);
    op.uid = uid;
    op.gid = gid;
    as_root(op);
  }
  void chmod(InodeId inode, std::uint32_t mode) {
    SetAttrOp op = of(inode);
    op.mode = mode;
    as_root(op);
  }
  void become(std::uint32_t uid, std::uint32_t gid, std::vector<std::uint32_t> groups = {}) {
    d.cred = {uid, gid, std::move(groups)};
  }
  /// A file of the caller's, or what was in the way.
  CommandResult file(InodeId parent, const std::string& name, std::uint32_t mode = 0644,
                     FileType type = FileType::kRegular) {
    CreateOp op;
    op.parent = parent;
    op.name = name;
    op.type = type;
    op.mode = mode;
    op.uid = d.cred.uid;
    op.gid = d.cred.gid;
    return d.mutate(op);
  }
  std::error_code commit(InodeId inode, LogIndex opened = {}) {
    CommitOp op;
    op.inode = inode;
    op.base = d.version(inode);
    op.whole = true;
    op.size_bytes = 3;
    op.opened = opened;
    return Driver::code(d.mutate(op, "new"));
  }
  template <class Op>
  std::error_code code(Op op) {
    return Driver::code(d.mutate(op));
  }
  InodeId home, shared, drop;
};

TEST_CASE_METHOD(AccessWorld, "access: names are made and taken by who may write the directory") {
  become(kBob, kOther);
  CHECK(Driver::code(file(home, "f")) == kAccess);
  CHECK(Driver::code(file(shared, "f")) == kAccess);
  CHECK(code(CreateUnnamedOp{shared, 0600, kBob, kOther}) == kAccess);
  become(kBob, kOther, {kStaff});  // the group counts, wherever it stands
  const auto made = file(shared, "f");
  REQUIRE(Driver::code(made) == kOk);
  CHECK(d.ns->attr(made.inode)->uid == kBob);
  CHECK(Driver::code(file(shared, "sub", 0755, FileType::kDirectory)) == kOk);
  CHECK(code(LinkOp{made.inode, home, "l"}) == kAccess);
  CHECK(code(LinkOp{made.inode, shared, "l"}) == kOk);
  CHECK(code(RenameOp{shared, "f", home, "f", 0, false}) == kAccess);
  become(kAlice, kOther);
  CHECK(code(UnlinkOp{shared, "l", false}) == kAccess);
  CHECK(code(RmdirOp{shared, "sub"}) == kAccess);
  CHECK(code(RenameOp{shared, "f", home, "f", 0, false}) == kAccess);
  CHECK(code(RenameOp{shared, "none", home, "f", 0, false}) ==
        std::make_error_code(std::errc::no_such_file_or_directory));
  // Without search nothing is said of what is there.
  chmod(shared, 0770);
  CHECK(code(UnlinkOp{shared, "none", false}) == kAccess);
  CHECK(Driver::code(file(shared, "f")) == kAccess);
}

TEST_CASE_METHOD(AccessWorld, "access: nobody makes what is another's, nor devices") {
  become(kBob, kOther);
  CreateOp op;
  op.parent = drop;
  op.name = "gift";
  op.mode = 0644;
  op.uid = kAlice;
  op.gid = kOther;
  CHECK(code(op) == kPerm);
  op.uid = kBob;
  op.gid = kStaff;
  CHECK(code(op) == kPerm);
  op.gid = kOther;
  op.type = FileType::kBlockDevice;
  CHECK(code(op) == kPerm);
  op.type = FileType::kFifo;
  CHECK(code(op) == kOk);
}

TEST_CASE_METHOD(AccessWorld, "access: sticky directories keep everybody's own") {
  become(kAlice, kStaff);
  REQUIRE(Driver::code(file(drop, "alices", 0666)) == kOk);
  become(kBob, kOther);
  REQUIRE(Driver::code(file(drop, "bobs")) == kOk);
  CHECK(code(UnlinkOp{drop, "alices", false}) == kPerm);
  CHECK(code(RenameOp{drop, "alices", drop, "mine", 0, false}) == kPerm);
  CHECK(code(RenameOp{drop, "bobs", drop, "alices", 0, false}) == kPerm);
  CHECK(code(RenameOp{drop, "bobs", drop, "alices", RenameOp::kExchange, false}) == kPerm);
  CHECK(code(RenameOp{drop, "bobs", drop, "mine", 0, false}) == kOk);
  CHECK(code(UnlinkOp{drop, "mine", false}) == kOk);
}

TEST_CASE_METHOD(AccessWorld, "access: a directory that changes its parent is written to") {
  const auto one = made(kRootInode, "one", 0777), two = made(kRootInode, "two", 0777);
  become(kAlice, kStaff);
  REQUIRE(Driver::code(file(one, "dir", 0755, FileType::kDirectory)) == kOk);
  become(kBob, kOther);
  CHECK(code(RenameOp{one, "dir", one, "here", 0, false}) == kOk);
  CHECK(code(RenameOp{one, "here", two, "there", 0, false}) == kAccess);
  become(kAlice, kStaff);
  CHECK(code(RenameOp{one, "here", two, "there", 0, false}) == kOk);
}

TEST_CASE_METHOD(AccessWorld, "access: attributes are their owner's to change") {
  become(kAlice, kStaff);
  const auto f = file(home, "f", 0664).inode;
  SetAttrOp mode = of(f);
  mode.mode = 0777;
  SetAttrOp give = of(f);
  give.uid = kBob;
  SetAttrOp group = of(f);
  group.gid = kOther;
  SetAttrOp time = of(f);
  time.mtime = at(5);
  SetAttrOp touch = of(f);
  touch.atime_now = true;
  touch.mtime_now = true;
  become(kBob, kStaff);
  CHECK(code(mode) == kPerm);
  CHECK(code(give) == kPerm);
  CHECK(code(group) == kPerm);
  CHECK(code(time) == kPerm);
  CHECK(code(touch) == kOk);  // he may write it
  become(kBob, kOther);
  CHECK(code(touch) == kAccess);
  become(kAlice, kStaff, {kOther});
  CHECK(code(give) == kPerm);  // CAP_CHOWN
  CHECK(code(group) == kOk);
  CHECK(code(time) == kOk);
  CHECK(code(mode) == kOk);
  become(kAlice, kStaff);
  group.gid = 2003;
  CHECK(code(group) == kPerm);
}

TEST_CASE_METHOD(AccessWorld, "access: xattrs by their namespace") {
  become(kAlice, kStaff);
  const auto f = file(home, "f", 0664).inode;
  const auto set = [&](const std::string& name, const std::string& value = "v") {
    return code(SetXattrOp{f, name, value});
  };
  const std::string acl = encode_acl({{AclEntry::Tag::kOwner, 6, 0},
                                      {AclEntry::Tag::kUser, 6, kBob},
                                      {AclEntry::Tag::kGroup, 4, 0},
                                      {AclEntry::Tag::kMask, 6, 0},
                                      {AclEntry::Tag::kOther, 0, 0}});
  CHECK(set("user.a") == kOk);
  CHECK(set("trusted.a") == kPerm);
  CHECK(set("security.capability") == kPerm);
  become(kBob, kOther);
  CHECK(set("user.b") == kAccess);
  CHECK(code(RemoveXattrOp{f, "user.a"}) == kAccess);
  CHECK(set(std::string(kAclAccess), acl) == kPerm);
  CHECK(commit(f) == kAccess);
  become(kAlice, kStaff);
  CHECK(set(std::string(kAclAccess), acl) == kOk);
  become(kBob, kOther);  // whom the ACL names
  CHECK(set("user.b") == kOk);
  CHECK(commit(f) == kOk);
}

TEST_CASE_METHOD(AccessWorld, "access: what open has granted, close may commit") {
  become(kAlice, kStaff);
  const auto f = file(home, "f", 0664).inode;
  chmod(f, 0444);
  CHECK(commit(f) == kOk);  // its owner: made read-only and filled afterwards
  chmod(f, 0664);
  const LogIndex opened = d.ns->attr(f)->change;
  become(kBob, kStaff);
  CHECK(commit(f) == kOk);
  chmod(f, 0644);
  CHECK(commit(f) == kAccess);
  CHECK(commit(f, opened) == kOk);
  become(kBob, kOther);
  CHECK(commit(f, opened) == kAccess);  // never had the right
  become(kBob, kStaff);
  own(f, kAlice, kOther);
  CHECK(commit(f, opened) == kOk);
  CHECK(commit(f, d.ns->attr(f)->change) == kAccess);
  // In one batch with the change it is the same: a replica applies as many at once as it has.
  chmod(f, 0666);
  const LogIndex before = d.ns->attr(f)->change;
  const Credentials bob = std::exchange(d.cred, {});
  SetAttrOp mode = of(f);
  mode.mode = 0600;
  Command narrow = d.mutation(mode);
  d.cred = bob;
  CommitOp op;
  op.inode = f;
  op.base = d.version(f);
  op.whole = true;
  op.size_bytes = 3;
  op.opened = before;
  Command late = d.mutation(op, "abc");
  op.opened = {};
  op.base = Version(d.ns->applied_index().value() + 2);
  Command denied = d.mutation(op, "abc");
  std::vector<Namespace::Entry> batch;
  LogIndex index = d.ns->applied_index();
  for (Command* each : {&narrow, &late, &denied}) {
    index = index.next();
    each->time = at(index.value());
    batch.push_back({index, *each});
  }
  const auto results = d.ns->apply_entries(batch, index);
  REQUIRE(results);
  CHECK(Driver::code(*(*results)[0]) == kOk);
  CHECK(Driver::code(*(*results)[1]) == kOk);
  CHECK(Driver::code(*(*results)[2]) == kAccess);
}

}  // namespace
