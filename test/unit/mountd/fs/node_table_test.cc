#include "mountd/fs/node_table.h"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

namespace fermata::mountd {
namespace {

class ManualClock final : public Clock {
 public:
  TimePoint now() const override { return now_; }
  std::int64_t wall_ns() const override { return 0; }
  TimePoint now_ = TimePoint(std::chrono::hours(1));
};

constexpr Term kTerm{1};
Stamp at(std::uint64_t count) { return make_stamp(kTerm, count); }

struct Fixture {
  Fixture() {
    session.opened(SessionId(1), Epoch(1), at(0), clock.now() + std::chrono::seconds(10));
  }
  Attr file(std::uint64_t inode, std::uint64_t version) {
    Attr attr;
    attr.inode = InodeId(inode);
    attr.nlink = 1;
    attr.size_bytes = version * 100;
    attr.version = Version(version);
    return attr;
  }
  Attr dir(std::uint64_t inode) {
    Attr attr;
    attr.inode = InodeId(inode);
    attr.type = FileType::kDirectory;
    attr.parent = kRootInode;
    return attr;
  }
  CallbackRequest callback(std::uint64_t stamp, InodeId inode, std::vector<std::string> names,
                           bool attributes) {
    CallbackRequest request;
    request.stamp = at(stamp);
    CallbackRequest::Item item;
    item.inode = inode;
    item.attributes = attributes;
    item.names = std::move(names);
    item.asks_open = true;
    request.items.push_back(std::move(item));
    return request;
  }
  ManualClock clock;
  ClientSession session{clock};
  NodeTable table{session, NodeTable::Limits{}};
};
using Known = NodeTable::Known;
using By = NodeTable::By;

}  // namespace

TEST_CASE("NodeTable: a leased entry answers lookups until it is called back", "[mountd][fs]") {
  Fixture f;
  const auto view = f.table.bind(f.file(10, 1), at(5), true);
  f.table.set_entry(kRootInode, "a", InodeId(10), at(5), true, By::kRead);
  auto found = f.table.lookup(kRootInode, "a");
  REQUIRE(found.known == Known::kPresent);
  CHECK(found.child.node == view.node);
  CHECK(f.table.lookup(kRootInode, "b").known == Known::kUnknown);

  const auto dropped = f.table.call_back(f.callback(7, kRootInode, {"a"}, true));
  CHECK(f.table.lookup(kRootInode, "a").known == Known::kUnknown);
  REQUIRE(dropped.items.size() == 2);  // the directory's attributes and the name
  CHECK(dropped.items[1].kind == Notifier::Kind::kExpireEntry);
  CHECK(dropped.items[1].name == "a");

  // An answer from before the callback that arrives after it is not kept.
  f.table.set_entry(kRootInode, "a", InodeId(10), at(6), true, By::kRead);
  CHECK(f.table.lookup(kRootInode, "a").known == Known::kUnknown);
  f.table.set_entry(kRootInode, "a", InodeId(10), at(8), true, By::kRead);
  CHECK(f.table.lookup(kRootInode, "a").known == Known::kPresent);
}

TEST_CASE("NodeTable: nothing is trusted when the session lease is over or a term has changed",
          "[mountd][fs]") {
  Fixture f;
  f.table.bind(f.file(10, 1), at(5), true);
  f.table.set_entry(kRootInode, "a", InodeId(10), at(5), true, By::kRead);
  SECTION("time") { f.clock.now_ += std::chrono::seconds(11); }
  SECTION("term") { f.session.void_leases_below(make_stamp(Term(2), 0)); }
  CHECK(f.table.lookup(kRootInode, "a").known == Known::kUnknown);
}

TEST_CASE("NodeTable: the later of two answers wins, in whatever order they arrive",
          "[mountd][fs]") {
  Fixture f;
  f.table.bind(f.file(10, 1), at(9), true);
  f.table.set_entry(kRootInode, "a", InodeId{}, at(9), true, By::kOwnMutation);
  f.table.set_entry(kRootInode, "a", InodeId(10), at(8), true, By::kOwnMutation);
  CHECK(f.table.lookup(kRootInode, "a").known == Known::kAbsent);
  Attr older = f.file(10, 1);
  older.uid = 7;
  f.table.apply(older, at(8), true);
  CHECK(f.table.find(f.table.node_of(InodeId(10)))->attr.uid == 0);
}

TEST_CASE("NodeTable: a newer version takes an idle node and passes by one in use",
          "[mountd][fs]") {
  Fixture f;
  const auto first = f.table.bind(f.file(10, 1), at(1), true);
  SECTION("idle") {
    const auto next = f.table.bind(f.file(10, 2), at(2), true);
    CHECK(next.node == first.node);
    CHECK(next.version == Version(2));
  }
  SECTION("open") {
    f.table.hold(first.node);
    const auto next = f.table.bind(f.file(10, 2), at(2), true);
    CHECK(next.node != first.node);
    CHECK(next.inode == first.inode);
    const auto old = f.table.find(first.node);
    CHECK_FALSE(old->current);
    REQUIRE(old->shown);
    CHECK(old->shown->size_bytes == 100);  // the version that its readers have
    CHECK(old->attr.version == Version(2));
    CHECK(f.table.find(next.node)->attr.size_bytes == 200);
  }
  SECTION("open and dirty") {
    f.table.hold(first.node)->file->sticky = true;
    const auto next = f.table.bind(f.file(10, 2), at(2), true);
    CHECK(next.node == first.node);
    CHECK(next.version == Version(1));
    // Its close replaces the other's version, so it stays the newest.
    f.table.apply(f.file(10, 3), at(3), true);
    CHECK_FALSE(f.table.committed(first.node, Version(3)));
    CHECK(f.table.find(first.node)->current);
  }
}

TEST_CASE("NodeTable: a commit of the old lineage makes it the newest again", "[mountd][fs]") {
  Fixture f;
  const auto old = f.table.bind(f.file(10, 1), at(1), true);
  f.table.hold(old.node);
  const auto other = f.table.bind(f.file(10, 2), at(2), true);
  f.table.set_entry(kRootInode, "a", InodeId(10), at(2), true, By::kRead);
  f.table.apply(f.file(10, 3), at(3), true);
  CHECK(f.table.committed(old.node, Version(3)));
  CHECK(f.table.find(old.node)->current);
  CHECK_FALSE(f.table.find(other.node)->current);
  CHECK(f.table.expire_names(InodeId(10)).items.size() == 1);
}

TEST_CASE("NodeTable: a FIFO that the kernel knows may be open, and is an orphan once forgotten",
          "[mountd][fs]") {
  Fixture f;
  Attr fifo = f.file(10, 0);
  fifo.type = FileType::kFifo;
  const auto view = f.table.bind(fifo, at(1), true);
  CHECK(f.table.in_use(InodeId(10)));
  CHECK_FALSE(f.table.forget_lookup(view.node, 1).orphan);  // it has a name
  CHECK_FALSE(f.table.in_use(InodeId(10)));

  const bool told = GENERATE(true, false);  // unlinked elsewhere, or here
  const auto again = f.table.bind(fifo, at(2), true);
  if (told) {
    CHECK(f.table.call_back(f.callback(3, InodeId(10), {}, true)).open.size() == 1);
  } else {
    fifo.nlink = 0;
    f.table.apply(fifo, at(3), true);
  }
  const auto forgotten = f.table.forget_lookup(again.node, 1);
  REQUIRE(forgotten.orphan);
  CHECK(*forgotten.orphan == InodeId(10));
}

TEST_CASE("NodeTable: closes of a newer lineage are heard of, too, once the inode was locked",
          "[mountd][fs]") {
  Fixture f;
  const auto old = f.table.bind(f.file(10, 1), at(1), true);
  f.table.hold(old.node);
  old.file->locks->asked = true;
  const auto newer = f.table.bind(f.file(10, 2), at(2), true);
  REQUIRE(newer.node != old.node);
  CHECK(newer.file->locks->asked);
  CHECK_FALSE(newer.alone);
}

TEST_CASE("NodeTable: forgotten nodes go, held or dirty ones stay", "[mountd][fs]") {
  Fixture f;
  const auto view = f.table.bind(f.file(10, 1), at(1), true);
  const auto held = f.table.hold(view.node);
  CHECK_FALSE(f.table.forget_lookup(view.node, 1).file);
  held->file->holds = 0;
  held->file->sticky = true;
  CHECK_FALSE(f.table.reap(view.node));
  held->file->sticky = false;
  CHECK(f.table.reap(view.node));
  CHECK_FALSE(f.table.find(view.node));
}

TEST_CASE("NodeTable: a listing read under an unbroken lease also proves absences",
          "[mountd][fs]") {
  Fixture f;
  f.table.bind(f.dir(20), at(1), true);
  const auto token = f.table.begin_listing(InodeId(20));
  auto listing = std::make_shared<Listing>();
  listing->items.push_back({"x", InodeId(21), FileType::kRegular, Cookie(1)});
  listing->stamp = at(2);
  f.table.set_entry(InodeId(20), "x", InodeId(21), at(2), true, By::kRead);
  SECTION("unbroken") {
    f.table.keep_listing(InodeId(20), token, listing);
    CHECK(f.table.lookup(InodeId(20), "y").known == Known::kAbsent);
    CHECK(f.table.listing(InodeId(20)) == listing);
    // An own change keeps what is known of names, but the listing's order is not known any more.
    f.table.set_entry(InodeId(20), "z", InodeId(22), at(3), true, By::kOwnMutation);
    CHECK(f.table.listing(InodeId(20)) == nullptr);
    CHECK(f.table.lookup(InodeId(20), "y").known == Known::kAbsent);
  }
  SECTION("a callback in between") {
    f.table.call_back(f.callback(3, InodeId(20), {"w"}, false));
    f.table.keep_listing(InodeId(20), token, listing);
    CHECK(f.table.lookup(InodeId(20), "y").known == Known::kUnknown);
    CHECK(f.table.listing(InodeId(20)) == nullptr);
  }
}

TEST_CASE("NodeTable: callbacks report open inodes and expire the names of files in use",
          "[mountd][fs]") {
  Fixture f;
  const auto view = f.table.bind(f.file(10, 1), at(1), true);
  f.table.set_entry(kRootInode, "a", InodeId(10), at(1), true, By::kRead);
  CHECK(f.table.call_back(f.callback(2, InodeId(10), {}, true)).open.empty());
  f.table.hold(view.node);
  const auto dropped = f.table.call_back(f.callback(3, InodeId(10), {}, true));
  CHECK(dropped.open == std::vector<InodeId>{InodeId(10)});
  CHECK(dropped.items.size() == 2);  // attributes, and the name that may lead to another node
  CHECK_FALSE(f.table.find(view.node)->attr_valid);
}

TEST_CASE("NodeTable: memory is bounded by what the kernel does not hold", "[mountd][fs]") {
  Fixture f;
  NodeTable::Limits limits;
  limits.inode_count = 500;
  NodeTable table(f.session, limits);
  for (std::uint64_t i = 10; i < 3000; ++i) {
    const auto view = table.bind(f.file(i, 1), at(i), true);
    if (i >= 20) (void)table.forget_lookup(view.node, 1);
  }
  const auto counters = table.counters();
  CHECK(counters.inodes <= 500);
  CHECK(counters.nodes == 11);  // ten held by the kernel, and the root
}

TEST_CASE("NodeTable: cached xattrs follow own changes", "[mountd][fs]") {
  Fixture f;
  f.table.set_xattrs(InodeId(10), {{"user.a", "1"}}, at(1), true);
  f.table.change_xattr(InodeId(10), "user.b", "2", at(2), true);
  REQUIRE(f.table.xattrs(InodeId(10)));
  CHECK(f.table.xattrs(InodeId(10))->size() == 2);
  f.table.change_xattr(InodeId(10), "user.a", std::nullopt, at(3), true);
  CHECK(f.table.xattrs(InodeId(10))->size() == 1);
  // Answers that overtook each other: nothing is known.
  f.table.change_xattr(InodeId(10), "user.c", "3", at(2), true);
  CHECK(f.table.xattrs(InodeId(10)) == nullptr);
}

TEST_CASE("NodeTable: paths for people follow the names that were seen", "[mountd][fs]") {
  Fixture f;
  f.table.apply(f.dir(2), at(1), true);
  f.table.apply(f.dir(3), at(1), true);
  CHECK(f.table.path_of(kRootInode) == "");
  CHECK(f.table.path_of(InodeId(10)) == "");
  f.table.set_entry(kRootInode, "a", InodeId(2), at(2), true, By::kRead);
  f.table.set_entry(InodeId(2), "b", InodeId(3), at(2), true, By::kRead);
  f.table.set_entry(InodeId(3), "file with a long name", InodeId(10), at(2), true, By::kRead);
  CHECK(f.table.path_of(InodeId(10)) == "a/b/file with a long name");
  f.table.set_entry(InodeId(3), "file with a long name", InodeId(), at(3), true, By::kOwnMutation);
  f.table.set_entry(InodeId(2), "moved", InodeId(10), at(3), true, By::kOwnMutation);
  CHECK(f.table.path_of(InodeId(10)) == "a/moved");
  f.table.note_place(InodeId(2), kRootInode, "renamed");
  CHECK(f.table.path_of(InodeId(10)) == "renamed/moved");
  // A name that may not be trusted any more is still the last one that is known.
  f.table.call_back(f.callback(9, InodeId(2), {"moved"}, true));
  CHECK(f.table.path_of(InodeId(10)) == "renamed/moved");
  f.table.set_entry(InodeId(77), "x", InodeId(11), at(10), false, By::kRead);
  CHECK(f.table.path_of(InodeId(11)) == ".../x");
  // Names as of different times may make a ring.
  f.table.note_place(InodeId(2), InodeId(3), "ring");
  f.table.note_place(InodeId(3), InodeId(2), "ring");
  CHECK(f.table.path_of(InodeId(10)).ends_with("/moved"));
}

}  // namespace fermata::mountd
