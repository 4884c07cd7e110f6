// ACLs: their form, and how creation, chmod and xattrs keep them and the mode in agreement.
#include "common/access/acl.h"

#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;
using Tag = AclEntry::Tag;

namespace {

constexpr std::uint32_t kAlice = 1001;

/// user::rw-, user:alice:<alice>, group::r--, mask::<mask>, other::---
Acl acl_for_alice(std::uint16_t alice, std::uint16_t mask) {
  return {{Tag::kOwner, 6, 0},
          {Tag::kUser, alice, kAlice},
          {Tag::kGroup, 4, 0},
          {Tag::kMask, mask, 0},
          {Tag::kOther, 0, 0}};
}

struct AclWorld : World {
  std::error_code set(InodeId inode, std::string_view name, const Acl& acl,
                      bool clear_sgid = false) {
    SetXattrOp op{inode, std::string(name), encode_acl(acl)};
    op.clear_sgid = clear_sgid;
    return Driver::code(d.mutate(op));
  }
  /// Empty if there is none.
  Acl get(InodeId inode, std::string_view name) {
    const auto all = d.ns->xattrs(inode);
    REQUIRE(all);
    const auto found = all->find(std::string(name));
    if (found == all->end()) return {};
    const auto acl = parse_acl(found->second);
    REQUIRE(acl);
    return *acl;
  }
  InodeId make(InodeId parent, const std::string& name, std::uint32_t mode, std::uint32_t umask,
               FileType type = FileType::kRegular) {
    CreateOp op;
    op.parent = parent;
    op.name = name;
    op.type = type;
    op.mode = mode;
    op.umask = umask;
    return d.mutate(op).inode;
  }
  std::uint32_t mode(InodeId inode) { return d.ns->attr(inode)->mode; }
};

}  // namespace

TEST_CASE("acl: what is encoded is parsed, and anything else is refused", "[serverd][meta][acl]") {
  const Acl acl = acl_for_alice(6, 4);
  const std::string bytes = encode_acl(acl);
  CHECK(bytes.size() == 4 + 5 * 8);
  REQUIRE(parse_acl(bytes));
  CHECK(*parse_acl(bytes) == acl);
  CHECK(mode_of(acl) == 0640);
  // Every cut and every change of a byte is an error or another well-formed ACL, never a crash.
  for (std::size_t size = 0; size < bytes.size(); ++size) CHECK(!parse_acl(bytes.substr(0, size)));
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ 1 << bit);
      const auto parsed = parse_acl(changed);
      if (parsed) CHECK(*parse_acl(encode_acl(*parsed)) == *parsed);
    }
  }
  std::string version = bytes;
  version[0] = 1;
  CHECK(parse_acl(version).error() == std::errc::operation_not_supported);
  const Acl bad[] = {
      {},
      {{Tag::kOwner, 6, 0}, {Tag::kGroup, 4, 0}},
      {{Tag::kOwner, 6, 0}, {Tag::kOwner, 6, 0}, {Tag::kGroup, 4, 0}, {Tag::kOther, 0, 0}},
      {{Tag::kOwner, 6, 0}, {Tag::kUser, 6, kAlice}, {Tag::kGroup, 4, 0}, {Tag::kOther, 0, 0}},
      {{Tag::kGroup, 4, 0}, {Tag::kOwner, 6, 0}, {Tag::kOther, 0, 0}},
      {{Tag::kOwner, 8, 0}, {Tag::kGroup, 4, 0}, {Tag::kOther, 0, 0}},
  };
  for (const Acl& each : bad) CHECK(!parse_acl(encode_acl(each)));
}

TEST_CASE_METHOD(AclWorld, "acl: an access ACL and the mode move together",
                 "[serverd][meta][acl]") {
  const InodeId f = make(kRootInode, "f", 06755, 0);
  CHECK(d.ns->attr(f)->no_xattrs);
  REQUIRE(!set(f, kAclAccess, acl_for_alice(6, 7)));
  CHECK(mode(f) == 06670);
  CHECK(get(f, kAclAccess) == acl_for_alice(6, 7));
  CHECK(!d.ns->attr(f)->no_xattrs);
  SetAttrOp chmod;
  chmod.inode = f;
  chmod.mode = 0741;
  REQUIRE(d.mutate(chmod).error == 0);
  CHECK(mode(f) == 0741);
  CHECK(get(f, kAclAccess) == Acl{{Tag::kOwner, 7, 0},
                                  {Tag::kUser, 6, kAlice},
                                  {Tag::kGroup, 4, 0},
                                  {Tag::kMask, 4, 0},
                                  {Tag::kOther, 1, 0}});
  // One that says no more than the mode is the mode.
  REQUIRE(!set(f, kAclAccess, {{Tag::kOwner, 6, 0}, {Tag::kGroup, 2, 0}, {Tag::kOther, 4, 0}}));
  CHECK(mode(f) == 0624);
  CHECK(d.ns->attr(f)->no_xattrs);
}

TEST_CASE_METHOD(AclWorld, "acl: setgid goes when one outside the group sets it",
                 "[serverd][meta][acl]") {
  const InodeId f = make(kRootInode, "f", 02755, 0);
  REQUIRE(!set(f, kAclAccess, acl_for_alice(6, 7), true));
  CHECK(mode(f) == 0670);
}

TEST_CASE_METHOD(AclWorld, "acl: what has which ACL", "[serverd][meta][acl]") {
  const InodeId f = make(kRootInode, "f", 0644, 0);
  const InodeId l = d.create(kRootInode, "l", FileType::kSymlink).inode;
  CHECK(set(f, kAclDefault, acl_for_alice(6, 6)) == std::errc::permission_denied);
  CHECK(set(l, kAclAccess, acl_for_alice(6, 6)) == std::errc::operation_not_supported);
  SetXattrOp rubbish{f, std::string(kAclAccess), "rubbish"};
  CHECK(Driver::code(d.mutate(rubbish)) == std::errc::operation_not_supported);
  CHECK(mode(f) == 0644);
}

TEST_CASE_METHOD(AclWorld, "acl: a default ACL is inherited in the umask's place",
                 "[serverd][meta][acl]") {
  const InodeId plain = make(kRootInode, "plain", 0666, 027);
  CHECK(mode(plain) == 0640);
  const InodeId dir = make(kRootInode, "d", 0777, 0, FileType::kDirectory);
  REQUIRE(!set(dir, kAclDefault, acl_for_alice(6, 7)));
  CHECK(mode(dir) == 0777);
  const InodeId f = make(dir, "f", 04644, 077);
  CHECK(mode(f) == 04640);
  CHECK(get(f, kAclAccess) == acl_for_alice(6, 4));
  CHECK(get(f, kAclDefault).empty());
  const InodeId sub = make(dir, "sub", 0755, 077, FileType::kDirectory);
  CHECK(mode(sub) == 0650);
  CHECK(get(sub, kAclAccess) == acl_for_alice(6, 5));
  CHECK(get(sub, kAclDefault) == acl_for_alice(6, 7));
  const InodeId link = make(dir, "p", 0666, 077, FileType::kFifo);
  CHECK(get(link, kAclAccess) == acl_for_alice(6, 6));
  const InodeId symlink = d.create(dir, "l", FileType::kSymlink).inode;
  CHECK(mode(symlink) == 0777);
  CHECK(d.ns->attr(symlink)->no_xattrs);
  // A minimal one leaves a mode alone.
  REQUIRE(!set(dir, kAclDefault, {{Tag::kOwner, 7, 0}, {Tag::kGroup, 5, 0}, {Tag::kOther, 1, 0}}));
  const InodeId g = make(dir, "g", 0666, 077);
  CHECK(mode(g) == 0640);
  CHECK(d.ns->attr(g)->no_xattrs);
}
