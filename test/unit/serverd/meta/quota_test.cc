// Quotas: what each operation charges and refunds, counting beside mutations, refusals.
#include <catch2/generators/catch_generators.hpp>
#include <cerrno>

#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;

namespace {

std::error_code posix(std::errc e) { return std::make_error_code(e); }
const std::error_code kQuotaExceeded = from_errno(EDQUOT);
constexpr std::uint64_t kMiB = 1 << 20;
constexpr std::uint32_t kAlice = 1000, kBob = 1001;

struct Quotas : World {
  CommandResult set(QuotaKind kind, std::uint64_t id, std::optional<std::uint64_t> bytes,
                    std::optional<std::uint64_t> inodes) {
    return d.mutate(SetQuotaOp{kind, id, false, bytes, inodes});
  }
  CommandResult limit(InodeId tree, std::optional<std::uint64_t> bytes,
                      std::optional<std::uint64_t> inodes = {}) {
    return set(QuotaKind::kTree, tree.value(), bytes, inodes);
  }
  CommandResult remove(InodeId tree) {
    return d.mutate(SetQuotaOp{QuotaKind::kTree, tree.value(), true, {}, {}});
  }
  /// One part of the counting; false if there was none.
  bool step(std::uint32_t records_max = 100) {
    const auto quota = d.ns->unfinished_quota();
    REQUIRE(quota);
    if (!*quota) return false;
    d.run(d.command(CountQuotaCommand{(*quota)->kind, (*quota)->id, records_max}));
    return true;
  }
  void count(std::uint32_t records_max = 100) {
    while (step(records_max)) CHECK(d.problems() == std::vector<std::string>{});
  }
  std::optional<QuotaRecord> find(QuotaKind kind, std::uint64_t id) {
    const auto all = d.ns->quotas();
    REQUIRE(all);
    for (const QuotaRecord& quota : *all)
      if (quota.kind == kind && quota.id == id) return quota;
    return {};
  }
  std::uint64_t bytes(InodeId tree) { return find(QuotaKind::kTree, tree.value())->bytes; }
  std::uint64_t inodes(InodeId tree) { return find(QuotaKind::kTree, tree.value())->inodes; }
  std::uint64_t bytes_of(std::uint32_t user) { return find(QuotaKind::kUser, user)->bytes; }
  std::uint64_t inodes_of(std::uint32_t user) { return find(QuotaKind::kUser, user)->inodes; }
  InodeId mkdir(InodeId parent, const std::string& name) { return d.mkdir(parent, name).inode; }
  InodeId make(InodeId parent, const std::string& name) { return d.create(parent, name).inode; }
  CommandResult chown(InodeId inode, std::uint32_t user) {
    SetAttrOp op;
    op.inode = inode;
    op.uid = user;
    return d.mutate(op);
  }
  std::error_code code(const CommandResult& result) { return Driver::code(result); }
  /// Found by their names, which are all of `letters`.
  std::uint64_t inodes_below(InodeId directory, const std::string& letters) {
    std::uint64_t found = 1;
    for (const char letter : letters) {
      const InodeId inode = d.see(directory, std::string(1, letter));
      if (!inode) continue;
      const bool deeper = d.ns->attr(inode)->type == FileType::kDirectory;
      found += deeper ? inodes_below(inode, letters) : 1;
    }
    return found;
  }
};

#define OK(result) CHECK(code(result) == std::error_code())
#define REFUSED(result, why) CHECK(code(result) == posix(std::errc::why))
#define FULL(result) CHECK(code(result) == kQuotaExceeded)

}  // namespace

TEST_CASE_METHOD(Quotas, "quota: a tree's inodes are limited at the call that makes one",
                 "[serverd][meta][quota]") {
  const InodeId tree = mkdir(kRootInode, "t");
  OK(limit(tree, {}, 3));
  count();
  CHECK(inodes(tree) == 1);  // the directory itself
  const InodeId f = make(tree, "f");
  const InodeId sub = mkdir(tree, "sub");
  CHECK(inodes(tree) == 3);
  FULL(d.create(tree, "g"));
  FULL(d.create(sub, "g"));
  FULL(d.create(sub, "link", FileType::kSymlink));
  FULL(d.create(sub, "fifo", FileType::kFifo));
  FULL(d.mkdir(sub, "d"));
  CreateUnnamedOp unnamed;
  unnamed.parent = sub;
  FULL(d.mutate(unnamed));
  OK(d.mutate(LinkOp{f, sub, "g"}));  // no new inode
  OK(d.create(kRootInode, "outside"));
  CHECK(inodes(tree) == 3);
  OK(d.unlink(tree, "f"));
  CHECK(inodes(tree) == 3);
  OK(d.unlink(sub, "g"));
  CHECK(inodes(tree) == 2);
  OK(d.create(sub, "g"));
  OK(d.rename(sub, "g", sub, "h"));
  REFUSED(d.create(sub, "h"), file_exists);  // found out before the quota
}

TEST_CASE_METHOD(Quotas, "quota: a commit that grows a full tree is refused, others pass",
                 "[serverd][meta][quota]") {
  const InodeId tree = mkdir(kRootInode, "t");
  OK(limit(tree, 2 * kMiB));
  count();
  const InodeId f = make(tree, "f");
  OK(d.write(f, std::string(5000, 'x')));
  CHECK(bytes(tree) == 8192);  // whole pages, as st_blocks has it
  OK(d.write(f, "x"));
  CHECK(bytes(tree) == 4096);
  OK(d.write_chunks(f, 2 * kMiB, {{0, chunk(1)}, {1, chunk(2)}}, true));
  CHECK(bytes(tree) == 2 * kMiB);
  const InodeId g = make(tree, "g");
  FULL(d.write(g, "x"));
  CHECK(d.version(g) == Version());
  OK(d.write_chunks(f, 2 * kMiB, {{0, chunk(3)}}));                  // another content, as much
  FULL(d.write_chunks(f, 3 * kMiB, {{2, chunk(4)}}));                // grows
  OK(d.write_chunks(f, 64 * kMiB, {}));                              // by a hole
  FULL(d.patch(f, 64 * kMiB, 10 * kMiB, "some bytes"));              // which is filled
  OK(limit(tree, kMiB));                                             // below what it has
  OK(d.write_chunks(f, 64 * kMiB, {{0, chunk(5)}, {1, chunk(6)}}));  // as before
  OK(d.write_chunks(f, 3 * kMiB / 2, {{1, chunk(7)}}));              // shrinks, is still above
  FULL(d.write(g, "x"));
  OK(d.write(f, ""));
  CHECK(bytes(tree) == 0);
  OK(d.write(g, "x"));
}

TEST_CASE_METHOD(Quotas, "quota: what was there is counted part by part beside what happens",
                 "[serverd][meta][quota]") {
  const InodeId tree = mkdir(kRootInode, "t");
  InodeId deep = tree;
  for (int i = 0; i < 5; ++i) {
    deep = mkdir(deep, "d");
    for (int f = 0; f < 10; ++f) OK(d.write(make(deep, "f" + std::to_string(f)), "x"));
  }
  OK(limit(tree, 1 * kMiB, 1000));
  CHECK(find(QuotaKind::kTree, tree.value())->phase == QuotaPhase::kCounting);
  CHECK(inodes(tree) == 1);
  REQUIRE(step(4));
  CHECK(d.problems() == std::vector<std::string>{});
  OK(d.write(make(tree, "new"), "x"));
  OK(d.write(make(deep, "new"), "x"));  // not reached yet: counted later
  const InodeId first = d.see(tree, "d");
  OK(d.unlink(first, "f0"));
  OK(d.unlink(deep, "f0"));
  OK(d.rename(deep, "f1", tree, "moved up"));
  OK(d.rename(first, "f1", deep, "moved down"));
  count(3);
  CHECK(find(QuotaKind::kTree, tree.value())->phase == QuotaPhase::kExact);
  CHECK(inodes(tree) == 1 + 5 + 50 + 2 - 2);
  CHECK(bytes(tree) == (50 + 2 - 2) * 4096);
}

TEST_CASE_METHOD(Quotas, "quota: trees lie within trees, and the tightest decides",
                 "[serverd][meta][quota]") {
  const InodeId outer = mkdir(kRootInode, "o");
  const InodeId inner = mkdir(outer, "i");
  const InodeId leaf = mkdir(inner, "leaf");
  OK(d.write(make(leaf, "f"), "x"));
  const bool inner_first = GENERATE(true, false);
  OK(limit(inner_first ? inner : outer, {}, 100));
  if (GENERATE(true, false)) count(2);
  OK(limit(inner_first ? outer : inner, {}, 100));
  count(2);
  CHECK(find(QuotaKind::kTree, inner.value())->parent == outer);
  CHECK(inodes(inner) == 3);
  CHECK(inodes(outer) == 4);
  CHECK(bytes(outer) == 4096);
  OK(limit(outer, {}, 5));
  OK(d.create(leaf, "g"));
  FULL(d.create(leaf, "h"));
  OK(limit(outer, {}, 100));
  OK(limit(inner, {}, 4));
  FULL(d.create(leaf, "h"));
  OK(d.create(outer, "h"));
  SECTION("the inner one is removed") {
    OK(remove(inner));
    OK(d.create(leaf, "h"));  // binds nobody from then on
    REFUSED(limit(inner, 1), device_or_resource_busy);
    count(2);
    CHECK(!find(QuotaKind::kTree, inner.value()));
    CHECK(inodes(outer) == 7);
  }
  SECTION("the outer one is removed") {
    OK(remove(outer));
    count(2);
    CHECK(!find(QuotaKind::kTree, outer.value()));
    CHECK(!find(QuotaKind::kTree, inner.value())->parent);
    CHECK(inodes(inner) == 4);
    OK(remove(inner));
    count(2);
    CHECK(d.ns->counters().quotas == 0);
  }
  SECTION("a tree is moved as a whole") {
    const InodeId other = mkdir(kRootInode, "other");
    OK(limit(other, {}, 4));
    count();
    FULL(d.rename(outer, "i", other, "i"));
    OK(limit(other, {}, 5));
    OK(d.rename(outer, "i", other, "i"));
    CHECK(inodes(other) == 5);
    CHECK(inodes(outer) == 2);
    CHECK(find(QuotaKind::kTree, inner.value())->parent == other);
  }
  SECTION("a tree goes with its directory") {
    OK(d.unlink(leaf, "f"));
    OK(d.unlink(leaf, "g"));
    OK(d.mutate(RmdirOp{inner, "leaf"}));
    OK(d.mutate(RmdirOp{outer, "i"}));
    count();
    CHECK(!find(QuotaKind::kTree, inner.value()));
    CHECK(inodes(outer) == 2);
  }
}

TEST_CASE_METHOD(Quotas, "quota: rename between trees moves the charge or is refused",
                 "[serverd][meta][quota]") {
  const InodeId a = mkdir(kRootInode, "a"), b = mkdir(kRootInode, "b");
  OK(limit(a, {}, 100));
  OK(limit(b, 8192, 3));
  count();
  const InodeId f = make(a, "f");
  OK(d.write(f, std::string(8192, 'x')));
  OK(d.rename(a, "f", b, "f"));
  CHECK(bytes(a) == 0);
  CHECK(bytes(b) == 8192);
  CHECK(inodes(b) == 2);
  const InodeId g = make(a, "g");
  OK(d.write(g, "x"));
  FULL(d.rename(a, "g", b, "g"));  // bytes
  OK(d.rename(a, "g", b, "f"));    // in the place of what made it full
  CHECK(bytes(b) == 4096);
  const InodeId directory = mkdir(a, "d");
  OK(d.create(directory, "x"));
  FULL(d.rename(a, "d", b, "d"));  // inodes
  OK(limit(b, {}, 4));
  OK(d.rename(a, "d", b, "d"));
  CHECK(inodes(a) == 1);
  CHECK(inodes(b) == 4);
  OK(d.create(a, "back"));
  OK(d.rename(b, "d", a, "back", RenameOp::kExchange));
  CHECK(inodes(a) == 3);
  CHECK(inodes(b) == 3);
  OK(d.rename(b, "f", kRootInode, "out", RenameOp::kWhiteout));
  CHECK(inodes(b) == 3);
  CHECK(bytes(b) == 0);
}

TEST_CASE_METHOD(Quotas, "quota: a rename behind the walk's back is walked again",
                 "[serverd][meta][quota]") {
  const auto exchanged = GENERATE(false, true);
  const auto within = GENERATE(false, true);
  CAPTURE(exchanged, within);
  const std::uint32_t flags = exchanged ? +RenameOp::kExchange : 0;
  const InodeId tree = mkdir(kRootInode, "t");
  make(tree, "f1");
  mkdir(tree, "d1");
  const InodeId other = within ? tree : mkdir(tree, "a");
  for (int i = 0; i < 8; ++i) make(tree, "between" + std::to_string(i));
  make(other, "f2");
  const InodeId directory = mkdir(other, "d2");
  make(directory, "below");
  const std::uint64_t all = 1 + 2 + (within ? 0 : 1) + 8 + 3;
  OK(limit(tree, {}, 1));  // more is there already, and that stands in no rename's way
  REQUIRE(step(2));        // f1 and d1
  CHECK(inodes(tree) == 3);
  OK(d.rename(other, "f2", tree, "f1", flags));
  OK(d.rename(other, "d2", tree, "d1", flags));
  count(3);
  CHECK(inodes(tree) == (exchanged ? all : all - 2));
  FULL(d.create(directory, "more"));
}

TEST_CASE_METHOD(Quotas, "quota: a file's other tree is nothing to a rename outside of it",
                 "[serverd][meta][quota]") {
  const InodeId a = mkdir(kRootInode, "a"), b = mkdir(kRootInode, "b"), c = mkdir(kRootInode, "c");
  const InodeId f = make(a, "f");
  OK(d.mutate(LinkOp{f, b, "f"}));
  OK(limit(a, {}, 100));
  count();
  CHECK(inodes(a) == 2);
  OK(d.rename(b, "f", b, "g"));
  OK(d.rename(b, "g", c, "f"));
  OK(d.rename(c, "f", a, "g"));
  CHECK(inodes(a) == 2);
}

TEST_CASE_METHOD(Quotas, "quota: names of one file stay in one tree", "[serverd][meta][quota]") {
  const InodeId a = mkdir(kRootInode, "a"), b = mkdir(kRootInode, "b");
  OK(limit(a, {}, 100));
  OK(limit(b, {}, 100));
  count();
  const InodeId f = make(a, "f");
  REFUSED(d.mutate(LinkOp{f, b, "f"}), cross_device_link);
  REFUSED(d.mutate(LinkOp{f, kRootInode, "f"}), cross_device_link);
  OK(d.mutate(LinkOp{f, a, "g"}));
  REFUSED(d.rename(a, "f", b, "f"), cross_device_link);
  const InodeId directory = mkdir(a, "d");
  OK(d.rename(a, "f", directory, "f"));
  REFUSED(d.rename(a, "d", b, "d"), cross_device_link);  // the other name would stay behind
  OK(d.rename(a, "g", directory, "g"));
  OK(d.rename(a, "d", b, "d"));
  CHECK(inodes(b) == 3);
  CHECK(inodes(a) == 1);
}

TEST_CASE_METHOD(Quotas, "quota: a directory too large for one command is not renamed elsewhere",
                 "[serverd][meta][quota]") {
  const InodeId a = mkdir(kRootInode, "a");
  OK(limit(a, {}, {}));
  count();
  const InodeId directory = mkdir(kRootInode, "d");
  const std::size_t many = 10'000;
  for (std::size_t i = 0; i < many; ++i) d.create(directory, std::to_string(i));
  OK(d.rename(kRootInode, "d", a, "d"));
  CHECK(inodes(a) == many + 2);
  OK(d.create(directory, "one more"));
  REFUSED(d.rename(a, "d", kRootInode, "d"), cross_device_link);
  CHECK(inodes(a) == many + 3);
  OK(d.rename(a, "d", a, "e"));  // within the tree it may be of any size
}

TEST_CASE_METHOD(Quotas, "quota: what is open without a name stays charged until it goes",
                 "[serverd][meta][quota]") {
  const InodeId tree = mkdir(kRootInode, "t");
  OK(limit(tree, 8192, 3));
  count();
  const InodeId f = make(tree, "f");
  OK(d.write(f, std::string(8192, 'x')));
  OK(d.unlink(tree, "f", true));
  CHECK(bytes(tree) == 8192);
  CHECK(inodes(tree) == 2);
  const InodeId g = make(tree, "g");
  FULL(d.write(g, "x"));
  OK(d.mutate(ReleaseOrphansOp{{f}}));
  CHECK(bytes(tree) == 0);
  OK(d.write(g, "x"));
  CreateUnnamedOp unnamed;
  unnamed.parent = tree;
  const InodeId t = d.mutate(unnamed).inode;
  CHECK(inodes(tree) == 3);
  OK(d.write(t, std::string(4096, 'x')));
  OK(d.mutate(LinkOp{t, kRootInode, "named elsewhere"}));
  CHECK(inodes(tree) == 2);
  CHECK(bytes(tree) == 4096);
  const InodeId other = d.mutate(unnamed).inode;
  const InodeId full = mkdir(kRootInode, "full");
  OK(limit(full, {}, 1));
  FULL(d.mutate(LinkOp{other, full, "x"}));
  OK(d.mutate(LinkOp{other, tree, "x"}));
  CHECK(inodes(tree) == 3);
  EndSessionsCommand end;
  end.sessions = {d.session};
  CHECK(d.run(d.command(end)).count == 1);
}

TEST_CASE_METHOD(Quotas, "quota: a user's files, wherever they are", "[serverd][meta][quota]") {
  for (int i = 0; i < 20; ++i) {
    const InodeId f = make(kRootInode, std::to_string(i));
    OK(d.write(f, "x"));
    if (i % 2 == 0) OK(chown(f, kAlice));
  }
  REFUSED(set(QuotaKind::kUser, 0, 1, 1), invalid_argument);
  OK(set(QuotaKind::kUser, kAlice, 16 * 4096, 14));
  OK(set(QuotaKind::kUser, kBob, {}, 1));
  CHECK(inodes_of(kAlice) == 0);
  REQUIRE(step(7));
  OK(d.unlink(kRootInode, "0"));
  OK(d.unlink(kRootInode, "18"));
  OK(chown(d.see(kRootInode, "2"), 0));
  OK(chown(d.see(kRootInode, "17"), kAlice));
  CHECK(d.problems() == std::vector<std::string>{});
  count(7);
  CHECK(inodes_of(kAlice) == 8);
  CHECK(bytes_of(kAlice) == 8 * 4096);
  OK(chown(make(kRootInode, "bob's"), kBob));
  FULL(chown(make(kRootInode, "root's"), kBob));
  CHECK(inodes_of(kBob) == 1);
  CreateOp op;
  op.parent = kRootInode;
  op.uid = kAlice;
  for (int i = 0; i < 6; ++i) {
    op.name = "more" + std::to_string(i);
    OK(d.mutate(op));
  }
  op.name = "too many";
  FULL(d.mutate(op));
  const InodeId f = d.see(kRootInode, "4");
  OK(d.write(f, std::string(9 * 4096, 'x')));
  FULL(d.write(f, std::string(9 * 4096 + 1, 'x')));
  OK(d.mutate(SetQuotaOp{QuotaKind::kUser, kAlice, true, {}, {}}));
  OK(d.write(f, std::string(10 * 4096, 'x')));
  CHECK(!find(QuotaKind::kUser, kAlice));
}

TEST_CASE_METHOD(Quotas, "quota: only user 0 sets one, and only on what is there",
                 "[serverd][meta][quota]") {
  const InodeId tree = mkdir(kRootInode, "t");
  const InodeId f = make(tree, "f");
  REFUSED(limit(InodeId(99), 1), no_such_file_or_directory);
  REFUSED(limit(f, 1), not_a_directory);
  REFUSED(remove(tree), no_message_available);
  d.cred.uid = kAlice;
  REFUSED(limit(tree, 1), operation_not_permitted);
  REFUSED(set(QuotaKind::kUser, kAlice, 1, 1), operation_not_permitted);
  d.cred.uid = 0;
  CHECK(d.ns->counters().quotas == 0);
  OK(limit(kRootInode, kMiB));
  count(1);
  CHECK(inodes(kRootInode) == d.ns->counters().inodes);
  Namespace::KnownNames known;
  CHECK(*d.ns->path_of(tree, known) == "/t");
  CHECK(*d.ns->path_of(mkdir(tree, "u"), known) == "/t/u");
  CHECK(*d.ns->path_of(kRootInode, known) == "/");
  const auto of = d.ns->quotas_of(f);
  REQUIRE(of);
  REQUIRE(of->size() == 1);
  CHECK(of->front().bytes_max == kMiB);
}

TEST_CASE_METHOD(Quotas, "quota: a volume without one writes what it always wrote",
                 "[serverd][meta][quota]") {
  const InodeId tree = mkdir(kRootInode, "t");
  OK(d.write(make(tree, "f"), "x"));
  const auto size_of_state = [&] { return (*d.store.get(Family::kCounters, "state"))->size(); };
  const std::size_t before = size_of_state();
  OK(limit(tree, kMiB));
  count();
  CHECK(size_of_state() > before);
  OK(remove(tree));
  count();
  CHECK(size_of_state() == before);
}

TEST_CASE("quota: whatever happens, what is counted is what is there", "[serverd][meta][quota]") {
  std::uint64_t refused = 0, moved = 0;
  for (std::uint64_t seed = 1; seed <= 16; ++seed) {
    // With one name for each inode, what a tree has is what is found below its directory.
    const bool one_name = seed % 2 == 0;
    CAPTURE(seed, one_name);
    Quotas world;
    Driver& d = world.d;
    SeededRandom random(seed);
    std::vector<InodeId> directories{kRootInode};
    std::vector<InodeId> unnamed;
    const auto name = [&] { return std::string(1, static_cast<char>('a' + random.below(5))); };
    const auto any = [&] { return directories[random.below(directories.size())]; };
    const auto entry = [&](InodeId& parent) {
      parent = any();
      return d.see(parent, name());
    };
    for (int i = 0; i < 1500; ++i) {
      CAPTURE(i);
      InodeId parent;
      switch (random.below(19)) {
        case 0:
        case 1:
          d.create(any(), name());
          break;
        case 2:
        case 3: {
          const auto made = d.mkdir(any(), name());
          if (made.error == 0 && directories.size() < 40) directories.push_back(made.inode);
          break;
        }
        case 4:
          d.unlink(any(), name(), !one_name && random.below(4) == 0);
          break;
        case 5:
          d.mutate(RmdirOp{any(), name()});
          break;
        case 6:
        case 7:
        case 8: {
          const auto result =
              d.rename(any(), name(), any(), name(), random.below(3) == 0 ? 2u : 0u);
          if (result.error == 0) ++moved;
          break;
        }
        case 9:
          if (const InodeId f = entry(parent); f && !one_name) d.mutate(LinkOp{f, any(), name()});
          break;
        case 10:
        case 11:
          if (const InodeId f = entry(parent); f && d.ns->attr(f)->type == FileType::kRegular) {
            const auto result =
                random.below(3) == 0
                    ? d.write_chunks(f, random.below(4) * kMiB + 70'000,
                                     {{0, chunk(static_cast<std::uint32_t>(random.below(50)))}},
                                     true)
                    : d.write(f, std::string(random.below(20'000), 'x'));
            if (Driver::code(result) == kQuotaExceeded) ++refused;
          }
          break;
        case 12:
          if (const InodeId f = entry(parent))
            world.chown(f, kAlice + static_cast<std::uint32_t>(random.below(2)));
          break;
        case 13: {
          CreateUnnamedOp op;
          op.parent = any();
          const auto made = d.mutate(op);
          if (made.error == 0) unnamed.push_back(made.inode);
          break;
        }
        case 14:
          if (!unnamed.empty()) {
            const InodeId f = unnamed.back();
            unnamed.pop_back();
            if (random.below(2) == 0) d.mutate(LinkOp{f, any(), name()});
            d.mutate(ReleaseOrphansOp{{f}});
          }
          break;
        case 15: {
          const std::uint64_t bytes = random.below(2) == 0 ? 0 : random.below(4) * kMiB;
          world.limit(any(), bytes, random.below(30));
          break;
        }
        case 16:
          if (random.below(2) == 0) {
            world.remove(any());
          } else {
            d.mutate(SetQuotaOp{QuotaKind::kUser, kAlice + random.below(2), random.below(3) == 0,
                                random.below(8) * kMiB, random.below(60)});
          }
          break;
        default:
          world.step(1 + static_cast<std::uint32_t>(random.below(4)));
      }
      REQUIRE(d.problems() == std::vector<std::string>{});
    }
    d.mutate(ReleaseOrphansOp{unnamed});
    world.count(5);
    if (one_name) {
      const auto quotas = d.ns->quotas();
      REQUIRE(quotas);
      for (const QuotaRecord& quota : *quotas)
        if (quota.kind == QuotaKind::kTree)
          CHECK(quota.inodes == world.inodes_below(InodeId(quota.id), "abcde"));
    }
    // Another node that applies the same comes to the same.
    Memory other;
    Driver again(*other.store);
    for (const auto& each : d.log)
      REQUIRE(again.ns->apply_entries(std::span(&each, 1), each.index));
    CHECK(again.digest() == d.digest());
  }
  CHECK(refused > 0);
  CHECK(moved > 0);
}
