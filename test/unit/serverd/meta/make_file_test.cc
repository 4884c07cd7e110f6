// Files whose ids their maker has in reserve, made empty or with their content.
#include <cerrno>

#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;

namespace {

std::error_code posix(std::errc e) { return std::make_error_code(e); }
#define REFUSED(result, why) CHECK(Driver::code(result) == posix(std::errc::why))

struct Makers : World {
  CommandResult reserve(std::uint32_t count) { return d.mutate(ReserveInodesOp{count}); }
  CreateOp op(InodeId parent, const std::string& name, InodeId inode) {
    CreateOp create;
    create.parent = parent;
    create.name = name;
    create.mode = 0644;
    create.inode = inode;
    create.made = {500, 7};
    return create;
  }
  MakeFileOp make(InodeId parent, const std::string& name, InodeId inode, std::size_t size) {
    MakeFileOp both;
    both.create = op(parent, name, inode);
    both.content.inode = inode;
    both.content.size_bytes = size;
    both.content.mtime = {501, 8};
    return both;
  }
  std::vector<std::string> problems() { return d.problems(); }
};

}  // namespace

TEST_CASE_METHOD(Makers, "make: one command makes the inode, its name and its content",
                 "[serverd][meta]") {
  const InodeId first = reserve(10).inode;
  const auto made = d.mutate(make(kRootInode, "f", InodeId(first.value() + 3), 5), "hello");
  REQUIRE(made.error == 0);
  CHECK(made.inode == InodeId(first.value() + 3));
  CHECK(made.version == Version(d.ns->applied_index().value()));
  const Attr attr = *d.ns->attr(made.inode);
  CHECK(d.see(kRootInode, "f") == made.inode);
  CHECK(attr.size_bytes == 5);
  CHECK(attr.version == made.version);
  CHECK(attr.btime == Timestamp{500, 7});
  CHECK(attr.mtime == Timestamp{501, 8});
  CHECK(attr.ctime == Timestamp{501, 8});
  CHECK(d.ns->content(made.inode, 0, 1)->inline_bytes == "hello");
  CHECK(d.ns->counters().inodes == 2);
  CHECK(problems().empty());
}

TEST_CASE_METHOD(Makers, "make: what was set of it since comes with it", "[serverd][meta]") {
  const InodeId first = reserve(3).inode;
  MakeFileOp op = make(kRootInode, "f", first, 5);
  op.create.set.emplace();
  op.create.set->inode = first;
  op.create.set->mode = 0440;
  op.create.set->uid = 7;
  op.create.set->gid = 8;
  op.create.set->atime = Timestamp{100, 1};
  op.create.set->mtime = op.content.mtime = Timestamp{100, 2};
  op.create.changed = {501, 9};
  REQUIRE(d.mutate(op, "hello").error == 0);
  Attr attr = *d.ns->attr(first);
  CHECK(attr.mode == 0440);
  CHECK(attr.uid == 7);
  CHECK(attr.gid == 8);
  CHECK(attr.atime == Timestamp{100, 1});
  CHECK(attr.mtime == Timestamp{100, 2});
  CHECK(attr.btime == Timestamp{500, 7});
  CreateOp empty = op.create;
  empty.name = "g";
  empty.inode = empty.set->inode = InodeId(first.value() + 1);
  REQUIRE(d.mutate(empty).error == 0);
  attr = *d.ns->attr(empty.inode);
  CHECK(attr.mode == 0440);
  CHECK(attr.mtime == Timestamp{100, 2});
  CHECK(attr.ctime == Timestamp{501, 9});
  CreateUnnamedOp unnamed;
  unnamed.parent = kRootInode;
  unnamed.mode = 0600;
  unnamed.inode = InodeId(first.value() + 2);
  unnamed.made = {500, 7};
  unnamed.set = empty.set;
  unnamed.set->inode = unnamed.inode;
  unnamed.changed = {501, 9};
  REQUIRE(d.mutate(unnamed).error == 0);
  CHECK(d.ns->attr(unnamed.inode)->uid == 7);
  CHECK(problems().empty());
}

TEST_CASE_METHOD(Makers, "make: without content it is as create makes it", "[serverd][meta]") {
  const InodeId first = reserve(1).inode;
  REQUIRE(d.mutate(op(kRootInode, "f", first)).inode == first);
  CHECK(d.ns->attr(first)->version == Version());
  CHECK(d.ns->attr(first)->ctime == Timestamp{500, 7});
  CHECK(problems().empty());
}

TEST_CASE_METHOD(Makers, "make: an id in reserve may be made without a name", "[serverd][meta]") {
  const InodeId first = reserve(1).inode;
  CreateUnnamedOp unnamed;
  unnamed.parent = kRootInode;
  unnamed.mode = 0600;
  unnamed.linkable = false;
  unnamed.inode = first;
  unnamed.made = {500, 7};
  REQUIRE(d.mutate(unnamed).inode == first);
  CHECK(d.ns->attr(first)->nlink == 0);
  CHECK(d.ns->attr(first)->btime == Timestamp{500, 7});
  REFUSED(d.mutate(unnamed), invalid_argument);
  REQUIRE(d.mutate(ReleaseOrphansOp{{first}}).error == 0);
  CHECK_FALSE(d.ns->attr(first));
  CHECK(problems().empty());
}

TEST_CASE_METHOD(Makers, "make: the directory's times go forwards only", "[serverd][meta]") {
  const InodeId dir = d.mkdir(kRootInode, "d").inode;
  const Timestamp before = d.ns->attr(dir)->ctime;
  REQUIRE(before > Timestamp{500, 7});
  const InodeId first = reserve(2).inode;
  REQUIRE(d.mutate(op(dir, "f", first)).error == 0);
  CHECK(d.ns->attr(dir)->ctime == before);
  CreateOp late = op(dir, "g", InodeId(first.value() + 1));
  late.made = {9'000'000'000, 0};  // by a clock that is far ahead: the command's time counts
  REQUIRE(d.mutate(late).error == 0);
  CHECK(d.ns->attr(dir)->mtime == at(d.ns->applied_index().value()));
  CHECK(d.ns->attr(dir)->size_bytes == 64);
}

TEST_CASE_METHOD(Makers, "make: an id is used once, by the session that has it in reserve",
                 "[serverd][meta]") {
  const InodeId first = reserve(3).inode;
  const InodeId second(first.value() + 1);
  REFUSED(d.mutate(op(kRootInode, "x", InodeId(first.value() + 3))), invalid_argument);
  REFUSED(d.mutate(op(kRootInode, "x", kRootInode)), invalid_argument);
  REQUIRE(d.mutate(op(kRootInode, "f", second)).error == 0);
  REFUSED(d.mutate(op(kRootInode, "g", second)), invalid_argument);
  REQUIRE(d.unlink(kRootInode, "f").error == 0);
  REFUSED(d.mutate(op(kRootInode, "f", second)), invalid_argument);  // nor when it is free again
  const SessionId mine = d.session;
  d.session = d.open_session("client-9876543210");
  REFUSED(d.mutate(op(kRootInode, "f", first)), invalid_argument);
  d.session = mine;
  REQUIRE(d.mutate(op(kRootInode, "f", first)).error == 0);
  REQUIRE(d.mutate(op(kRootInode, "g", InodeId(first.value() + 2))).error == 0);
  CHECK(d.ns->session(mine)->value().reserved.empty());
  CHECK(problems().empty());
}

TEST_CASE_METHOD(Makers, "make: ids that others are given are apart from those in reserve",
                 "[serverd][meta]") {
  const InodeId first = reserve(100).inode;
  const InodeId other = d.create(kRootInode, "o").inode;
  CHECK(other.value() >= first.value() + 100);
  CHECK(reserve(100).inode.value() > other.value());
  CHECK(problems().empty());
}

TEST_CASE_METHOD(Makers, "make: a reserve has its bounds, and ends with the session",
                 "[serverd][meta]") {
  for (std::uint64_t i = 0; i < kReservedInodesMax; i += 4096) REQUIRE(reserve(4096).error == 0);
  REFUSED(reserve(1), invalid_argument);
  REQUIRE(d.ns->session(d.session)->value().reserved.size() == 1);  // they lie side by side
  const InodeId first(d.ns->session(d.session)->value().reserved[0].first);
  d.run(d.command(EndSessionsCommand{{d.session}}));
  d.session = d.open_session("client-0123456789");  // the same client
  REFUSED(d.mutate(op(kRootInode, "f", first)), invalid_argument);
}

TEST_CASE_METHOD(Makers, "make: what cannot be is refused whole", "[serverd][meta]") {
  const InodeId first = reserve(10).inode;
  REQUIRE(d.create(kRootInode, "taken").error == 0);
  REFUSED(d.mutate(make(kRootInode, "taken", first, 2), "ab"), file_exists);
  REFUSED(d.mutate(make(InodeId(999'999), "f", first, 2), "ab"), no_such_file_or_directory);
  CHECK(Driver::code(d.mutate(make(kRootInode, "f", first, 3), "ab")) ==
        fermata::make_error_code(Errc::kBadMessage));
  CHECK_FALSE(d.see(kRootInode, "f"));
  CHECK(d.ns->counters().inodes == 2);
  d.cred = {1000, 1000, {}};  // may not write in the root directory
  CreateOp mine = op(kRootInode, "f", first);
  mine.uid = mine.gid = 1000;
  REFUSED(d.mutate(mine), permission_denied);
  d.cred = {};
  REQUIRE(d.mutate(make(kRootInode, "f", first, 2), "ab").error == 0);  // none has used the id
  CHECK(problems().empty());
}

TEST_CASE_METHOD(Makers, "make: a repeat of the request is answered, and does nothing",
                 "[serverd][meta]") {
  const InodeId first = reserve(2).inode;
  const Command command = d.mutation(make(kRootInode, "f", first, 2), "ab");
  const auto made = d.run(command);
  REQUIRE(made.error == 0);
  CHECK(d.run(command) == made);
  CHECK(d.ns->counters().inodes == 2);
}

TEST_CASE_METHOD(Makers, "make: a quota refuses the file with its content", "[serverd][meta]") {
  const InodeId dir = d.mkdir(kRootInode, "d").inode;
  REQUIRE(d.mutate(SetQuotaOp{QuotaKind::kTree, dir.value(), false, 20'000, 10}).error == 0);
  while (const auto quota = *d.ns->unfinished_quota())
    d.run(d.command(CountQuotaCommand{quota->kind, quota->id, 100}));
  const InodeId first = reserve(2).inode;
  CHECK(Driver::code(d.mutate(make(dir, "f", first, 30'000), std::string(30'000, 'x'))) ==
        from_errno(EDQUOT));
  CHECK_FALSE(d.see(dir, "f"));
  REQUIRE(d.mutate(make(dir, "f", first, 500), std::string(500, 'x')).error == 0);
  CHECK(problems().empty());
}

TEST_CASE_METHOD(Makers, "make: a user's quota counts a file whose id is older than its walk",
                 "[serverd][meta]") {
  const InodeId first = reserve(4).inode;
  constexpr std::uint32_t kAlice = 1000;
  CreateOp hers = op(kRootInode, "a", first);
  hers.uid = kAlice;
  REQUIRE(d.mutate(SetQuotaOp{QuotaKind::kUser, kAlice, false, 1000, 10}).error == 0);
  REQUIRE(d.mutate(hers).error == 0);  // the walk is still to come by
  while (const auto quota = *d.ns->unfinished_quota())
    d.run(d.command(CountQuotaCommand{quota->kind, quota->id, 1}));
  hers.name = "b";
  hers.inode = InodeId(first.value() + 1);
  REQUIRE(d.mutate(hers).error == 0);
  const auto all = d.ns->quotas();
  REQUIRE(all);
  REQUIRE(all->size() == 1);
  CHECK(all->front().inodes == 2);
  CHECK(problems().empty());
}
