// Names, attributes, sessions and requests.
#include "common/base/limits.h"
#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;

namespace {
std::error_code posix(std::errc e) { return std::make_error_code(e); }
#define REFUSED(result, why) CHECK(Driver::code(result) == posix(std::errc::why))
}  // namespace

TEST_CASE_METHOD(World, "Namespace: create makes an inode, an entry and touches the parent",
                 "[serverd][meta]") {
  const auto made = d.create(kRootInode, "f");
  REQUIRE(made.error == 0);
  const Attr attr = *d.ns->attr(made.inode);
  CHECK(attr.nlink == 1);
  CHECK(attr.mode == 0644);
  const Attr root = *d.ns->attr(kRootInode);
  CHECK(root.mtime == attr.ctime);
  CHECK(root.size_bytes == 32);
  CHECK(root.change == d.ns->applied_index());
  REFUSED(d.create(kRootInode, "f"), file_exists);
  CreateOp again{.parent = kRootInode, .name = "f", .symlink_target = {}, .exclusive = false};
  CHECK(d.mutate(again).inode == made.inode);
  REFUSED(d.create(made.inode, "x"), not_a_directory);
  REFUSED(d.create(InodeId(77), "x"), no_such_file_or_directory);
  REFUSED(d.create(kRootInode, std::string(256, 'n')), filename_too_long);
  CHECK(d.ns->counters().inodes == 2);
}

TEST_CASE_METHOD(World, "Namespace: setgid directories hand down their group", "[serverd][meta]") {
  const InodeId dir = d.mkdir(kRootInode, "d", 02755).inode;
  SetAttrOp chown;
  chown.inode = dir;
  chown.gid = 50;
  REQUIRE(d.mutate(chown).error == 0);
  CHECK(d.ns->attr(d.create(dir, "f").inode)->gid == 50);
  const Attr sub = *d.ns->attr(d.mkdir(dir, "s").inode);
  CHECK(sub.gid == 50);
  CHECK(sub.mode == 02755);
}

TEST_CASE_METHOD(World, "Namespace: link counts of files and directories", "[serverd][meta]") {
  const InodeId f = d.create(kRootInode, "f").inode;
  const InodeId dir = d.mkdir(kRootInode, "d").inode;
  CHECK(d.ns->attr(kRootInode)->nlink == 3);
  REQUIRE(d.mutate(LinkOp{f, dir, "g"}).error == 0);
  CHECK(d.ns->attr(f)->nlink == 2);
  REFUSED(d.mutate(LinkOp{dir, dir, "loop"}), operation_not_permitted);
  REFUSED(d.mutate(LinkOp{f, dir, "g"}), file_exists);
  REFUSED(d.mutate(RmdirOp{kRootInode, "d"}), directory_not_empty);
  REFUSED(d.mutate(RmdirOp{kRootInode, "f"}), not_a_directory);
  REFUSED(d.unlink(kRootInode, "d"), is_a_directory);
  CHECK(d.unlink(kRootInode, "f").removed == f);
  CHECK(d.ns->attr(f)->nlink == 1);
  REQUIRE(d.unlink(dir, "g").error == 0);
  CHECK(d.ns->attr(f).error() == posix(std::errc::no_such_file_or_directory));
  REQUIRE(d.mutate(RmdirOp{kRootInode, "d"}).error == 0);
  CHECK(d.ns->attr(kRootInode)->nlink == 2);
  CHECK(d.ns->counters().inodes == 1);
}

TEST_CASE_METHOD(World, "Namespace: rename", "[serverd][meta]") {
  const InodeId a = d.mkdir(kRootInode, "a").inode;
  const InodeId b = d.mkdir(a, "b").inode;
  const InodeId f = d.create(a, "f").inode, g = d.create(b, "g").inode;
  REFUSED(d.rename(kRootInode, "a", b, "x"), invalid_argument);
  REFUSED(d.rename(kRootInode, "a", a, "x"), invalid_argument);
  REFUSED(d.rename(b, "g", kRootInode, "a"), directory_not_empty);
  REFUSED(d.rename(a, "f", a, "b"), is_a_directory);
  REFUSED(d.rename(a, "b", a, "f"), not_a_directory);
  REFUSED(d.rename(a, "f", b, "g", RenameOp::kNoReplace), file_exists);
  REFUSED(d.rename(a, "f", b, "none", RenameOp::kExchange), no_such_file_or_directory);
  REFUSED(d.rename(a, "f", b, "g", 3), invalid_argument);
  REFUSED(d.rename(a, "f", b, "g", 8), invalid_argument);
  REFUSED(d.rename(kRootInode, "a", b, "g", RenameOp::kExchange), invalid_argument);
  REFUSED(d.rename(b, "g", kRootInode, "a", RenameOp::kExchange), invalid_argument);

  const auto moved = d.rename(a, "f", b, "g");
  CHECK(moved.inode == f);
  CHECK(moved.removed == g);
  CHECK(d.see(b, "g") == f);
  CHECK(!d.ns->attr(g));
  // Exchange of a file and a directory across directories.
  const InodeId c = d.mkdir(kRootInode, "c").inode;
  REQUIRE(d.rename(kRootInode, "c", b, "g", RenameOp::kExchange).error == 0);
  CHECK(d.see(b, "g") == c);
  CHECK(d.see(kRootInode, "c") == f);
  CHECK(d.ns->attr(c)->parent == b);
  CHECK(d.ns->attr(b)->nlink == 3);
  CHECK(d.ns->attr(kRootInode)->nlink == 3);
  // A directory over an empty one; and two names of one file.
  d.mkdir(b, "empty");
  REQUIRE(d.rename(b, "g", b, "empty").error == 0);
  CHECK(d.ns->attr(b)->nlink == 3);
  REQUIRE(d.mutate(LinkOp{f, b, "other"}).error == 0);
  const LogIndex change = d.ns->attr(f)->change;
  CHECK(d.rename(kRootInode, "c", b, "other").error == 0);
  CHECK(d.ns->attr(f)->change == change);
  CHECK(d.see(kRootInode, "c") == f);
}

TEST_CASE_METHOD(World, "Namespace: rename leaves a whiteout when asked to", "[serverd][meta]") {
  const InodeId a = d.mkdir(kRootInode, "a", 02755).inode;
  const InodeId f = d.create(a, "f").inode;
  const InodeId g = d.create(kRootInode, "g").inode;
  REFUSED(d.rename(a, "f", kRootInode, "g", RenameOp::kWhiteout | RenameOp::kNoReplace),
          file_exists);
  REFUSED(d.rename(a, "f", kRootInode, "g", RenameOp::kWhiteout | RenameOp::kExchange),
          invalid_argument);
  const auto before = d.ns->readdir(a, Cookie(), 10)->entries.at(0);
  const auto moved = d.rename(a, "f", kRootInode, "g", RenameOp::kWhiteout);
  CHECK(moved.inode == f);
  CHECK(moved.removed == g);
  CHECK(d.see(kRootInode, "g") == f);
  const auto after = d.ns->readdir(a, Cookie(), 10)->entries.at(0);
  CHECK(after.cookie == before.cookie);  // a listing that goes on meets it where the file was
  CHECK(after.type == FileType::kCharDevice);
  const Attr whiteout = *d.ns->attr(d.see(a, "f"));
  CHECK(whiteout.type == FileType::kCharDevice);
  CHECK(whiteout.rdev == 0);
  CHECK(whiteout.mode == 0);
  CHECK(whiteout.nlink == 1);
  CHECK(whiteout.gid == d.ns->attr(a)->gid);
  CHECK(d.ns->counters().inodes == 4);  // the root, a, f and the whiteout
}

TEST_CASE_METHOD(World, "Namespace: what the primary saw must still be so", "[serverd][meta]") {
  d.create(kRootInode, "f");
  const InodeId g = d.create(kRootInode, "g").inode;
  Command unlink = d.mutation(UnlinkOp{kRootInode, "f", false});
  std::get<MutateCommand>(unlink.body).expected_inode = g;
  CHECK(Driver::code(d.run(unlink)) == Errc::kRetry);
  // The attempt is not the request's answer.
  std::get<MutateCommand>(unlink.body).expected_inode = d.see(kRootInode, "f");
  CHECK(d.run(unlink).error == 0);
  Command rename = d.mutation(RenameOp{kRootInode, "g", kRootInode, "h", 0, false});
  std::get<MutateCommand>(rename.body).expected_target = g;
  CHECK(Driver::code(d.run(rename)) == Errc::kRetry);
}

TEST_CASE_METHOD(World, "Namespace: listing by cookies that stay", "[serverd][meta]") {
  for (int i = 0; i < 20; ++i) d.create(kRootInode, "f" + std::to_string(i));
  const auto first = d.ns->readdir(kRootInode, Cookie(), 10);
  REQUIRE(first);
  CHECK(!first->end);
  d.unlink(kRootInode, "f3");
  d.unlink(kRootInode, "f12");
  d.create(kRootInode, "f3");
  const auto rest = d.ns->readdir(kRootInode, first->entries.back().cookie, 100);
  CHECK(rest->end);
  std::set<std::string> names;
  for (const auto& e : first->entries) names.insert(e.name);
  for (const auto& e : rest->entries) CHECK((names.insert(e.name).second || e.name == "f3"));
  CHECK(!names.contains("f12"));
  CHECK(names.size() == 19);
  CHECK(rest->entries.back().name == "f3");  // a new entry: a cookie of its own
}

TEST_CASE_METHOD(World, "Namespace: xattrs", "[serverd][meta]") {
  const InodeId f = d.create(kRootInode, "f").inode;
  const auto set = [&](std::string name, std::string value, std::uint32_t flags = 0) {
    return d.mutate(SetXattrOp{f, std::move(name), std::move(value), flags});
  };
  REQUIRE(set("user.a", "1").error == 0);
  REFUSED(set("user.a", "2", SetXattrOp::kCreate), file_exists);
  REFUSED(set("user.b", "2", SetXattrOp::kReplace), no_message_available);
  REQUIRE(set("user.a", "22", SetXattrOp::kReplace).error == 0);
  CHECK(d.ns->xattrs(f)->at("user.a") == "22");
  REFUSED(set(std::string(256, 'x'), ""), result_out_of_range);
  REFUSED(set("", ""), result_out_of_range);
  REFUSED(set("user.big", std::string(kXattrValueMax + 1, 'x')), argument_list_too_long);
  for (int i = 0; i < 3; ++i) set("user.b" + std::to_string(i), std::string(kXattrValueMax, 'x'));
  REFUSED(set("user.b9", std::string(kXattrValueMax, 'x')), no_space_on_device);
  REQUIRE(d.mutate(RemoveXattrOp{f, "user.a"}).error == 0);
  REFUSED(d.mutate(RemoveXattrOp{f, "user.a"}), no_message_available);
  CHECK(d.ns->xattrs(f)->size() == 3);
}

TEST_CASE_METHOD(World, "Namespace: setuid and setgid go with chown and writes",
                 "[serverd][meta]") {
  const InodeId f = d.create(kRootInode, "f", FileType::kRegular, 06755).inode;
  SetAttrOp chown;
  chown.inode = f;
  chown.uid = 7;
  REQUIRE(d.mutate(chown).error == 0);
  CHECK(d.ns->attr(f)->mode == 0755);
  const InodeId locked = d.create(kRootInode, "l", FileType::kRegular, 06745).inode;
  SetAttrOp kill;
  kill.inode = locked;
  kill.clear_suid_sgid = true;
  REQUIRE(d.mutate(kill).error == 0);
  CHECK(d.ns->attr(locked)->mode == 02745);  // no group execution: mandatory locking, kept
}

TEST_CASE_METHOD(World, "Namespace: an unlinked file lives while sessions have it open",
                 "[serverd][meta]") {
  const SessionId other = d.open_session("another-client-0");
  const InodeId f = d.create(kRootInode, "f").inode;
  d.write(f, "bytes");
  Command unlink = d.mutation(UnlinkOp{kRootInode, "f", true});
  std::get<MutateCommand>(unlink.body).open_in = {other, SessionId(9999)};
  CHECK(d.run(unlink).error == 0);
  CHECK(d.ns->attr(f)->nlink == 0);
  CHECK(d.ns->orphans()->size() == 2);
  REFUSED(d.mutate(LinkOp{f, kRootInode, "back"}), no_such_file_or_directory);
  REQUIRE(d.write(f, "more bytes").error == 0);
  REQUIRE(d.mutate(ReleaseOrphansOp{{f, InodeId(12345)}}).error == 0);
  CHECK(d.ns->attr(f));
  CHECK(d.run(d.command(EndSessionsCommand{{other}})).count == 1);
  CHECK(!d.ns->attr(f));
  CHECK(d.ns->orphans()->empty());
  CHECK(d.ns->counters().inodes == 1);
}

TEST_CASE_METHOD(World, "Namespace: a file has at most kLinkCountMax names", "[serverd][meta]") {
  const InodeId f = d.create(kRootInode, "0").inode;
  for (std::uint32_t i = 1; i < kLinkCountMax; ++i) {
    if (d.mutate(LinkOp{f, kRootInode, std::to_string(i)}).error != 0) FAIL("at " << i);
    d.log.clear();
  }
  REFUSED(d.mutate(LinkOp{f, kRootInode, "more"}), too_many_links);
  REQUIRE(d.unlink(kRootInode, "1").error == 0);
  CHECK(d.mutate(LinkOp{f, kRootInode, "more"}).error == 0);
}

TEST_CASE_METHOD(World, "Namespace: a file made without a name is its session's until linked",
                 "[serverd][meta]") {
  const SessionId other = d.open_session("another-client-0");
  const InodeId dir = d.mkdir(kRootInode, "d", 02755).inode;
  const Attr before = *d.ns->attr(dir);
  CreateUnnamedOp op;
  op.parent = dir;
  op.mode = 0666;
  op.gid = 7;
  op.umask = 027;
  const InodeId f = d.mutate(op).inode;
  REQUIRE(f);
  CHECK(d.ns->attr(f)->nlink == 0);
  CHECK(d.ns->attr(f)->mode == 0640);
  CHECK(d.ns->attr(f)->gid == before.gid);
  CHECK(d.ns->attr(dir)->mtime == before.mtime);
  REQUIRE(d.write(f, "bytes").error == 0);
  Command foreign = d.mutation(LinkOp{f, dir, "stolen"});
  foreign.session = other;
  foreign.sequence = Sequence(1);
  foreign.answered_below = {};
  REFUSED(d.run(foreign), no_such_file_or_directory);
  REQUIRE(d.mutate(LinkOp{f, dir, "f"}).error == 0);
  CHECK(d.ns->attr(f)->nlink == 1);
  CHECK(d.ns->orphans()->empty());
  // Named and unlinked it is like any other file.
  REQUIRE(d.unlink(dir, "f", true).error == 0);
  REFUSED(d.mutate(LinkOp{f, dir, "again"}), no_such_file_or_directory);

  op.linkable = false;
  const InodeId never = d.mutate(op).inode;
  REFUSED(d.mutate(LinkOp{never, dir, "n"}), no_such_file_or_directory);
  op.linkable = true;
  const InodeId forgotten = d.mutate(op).inode;
  CHECK(d.run(d.command(EndSessionsCommand{{d.session}})).count == 1);
  CHECK(!d.ns->attr(never));
  CHECK(!d.ns->attr(forgotten));
  op.parent = never;
  d.session = other;
  REFUSED(d.mutate(op), no_such_file_or_directory);
}

TEST_CASE_METHOD(World, "Namespace: sessions are one per client and fence when over",
                 "[serverd][meta]") {
  CHECK(d.open_session("client-0123456789") == d.session);
  Command late = d.mutation(UnlinkOp{kRootInode, "f", false});
  late.epoch = Epoch(2);
  CHECK(Driver::code(d.run(late)) == Errc::kStaleEpoch);
  const SessionId first = d.session;
  d.create(kRootInode, "f");
  CHECK(d.run(d.command(EndSessionsCommand{{first}})).count == 1);
  CHECK(!*d.ns->session(first));
  CHECK(Driver::code(d.unlink(kRootInode, "f")) == Errc::kSessionExpired);
  CHECK(d.see(kRootInode, "f"));
  const SessionId second = d.open_session("client-0123456789");
  CHECK(second != first);
  CHECK(d.ns->sessions()->size() == 1);
}

TEST_CASE_METHOD(World, "Namespace: a noted read raises atime, and nothing else",
                 "[serverd][meta]") {
  const InodeId f = d.create(kRootInode, "f").inode;
  const Attr before = *d.ns->attr(f);
  Timestamp later = before.ctime;
  later.seconds += 5;
  const auto note = [&](Timestamp time) {
    REQUIRE(d.mutate(NoteReadsOp{{{f, time}, {InodeId(12345), time}}}).error == 0);
    return *d.ns->attr(f);
  };
  CHECK(note({before.ctime.seconds - 1, 0}).atime == before.atime);  // it has changed since
  const Attr after = note(later);
  CHECK(after.atime == later);
  CHECK(after.mtime == before.mtime);
  CHECK(after.ctime == before.ctime);
  CHECK(note({later.seconds - 1, 0}).atime == later);  // an older read tells nothing new
}

TEST_CASE_METHOD(World, "Namespace: a repeated request is answered, not applied again",
                 "[serverd][meta]") {
  const Command create =
      d.mutation(CreateOp{.parent = kRootInode, .name = "f", .symlink_target = {}});
  const auto first = d.run(create);
  REQUIRE(d.unlink(kRootInode, "f").error == 0);
  CHECK(d.run(create) == first);
  CHECK(!d.see(kRootInode, "f"));
  CHECK(*d.ns->request_result(d.session, create.sequence) == first);
  // A refusal is an answer too.
  const Command refused = d.mutation(UnlinkOp{kRootInode, "f", false});
  CHECK(d.run(refused).error != 0);
  d.create(kRootInode, "f");
  CHECK(d.run(refused).error != 0);
  CHECK(d.see(kRootInode, "f"));
  // Answers that have arrived are forgotten and their requests refused.
  for (int i = 0; i < 10; ++i) d.create(kRootInode, std::to_string(i));
  CHECK(d.ns->request_result(d.session, create.sequence).error() == Errc::kStaleEpoch);
  CHECK(Driver::code(d.run(create)) == Errc::kStaleEpoch);
  CHECK(!*d.ns->request_result(d.session, d.sequence.next()));
}

TEST_CASE_METHOD(World, "Namespace: locks belong to sessions and go with them", "[serverd][meta]") {
  const SessionId mine = d.session;
  const SessionId other = d.open_session("another-client-0");
  const InodeId f = d.create(kRootInode, "f").inode;
  const auto lock_op = [&](LockType type, std::uint64_t first, std::uint64_t last) {
    LockOp op;
    op.inode = f;
    op.type = type;
    op.owner = 7;
    op.range = {first, last};
    return op;
  };
  const auto as = [&](SessionId session, LockOp op) {
    Command c = d.mutation(op);
    c.session = session;
    return d.run(c);
  };
  REQUIRE(as(mine, lock_op(LockType::kExclusive, 0, 9)).error == 0);
  // The same number of another session is another owner.
  REFUSED(as(other, lock_op(LockType::kShared, 9, 9)), resource_unavailable_try_again);
  REQUIRE(as(other, lock_op(LockType::kExclusive, 10, kLockEnd)).error == 0);
  LockOp whole = lock_op(LockType::kExclusive, 0, kLockEnd);
  whole.space = LockSpace::kFlock;
  CHECK(as(other, whole).error == 0);  // flock and fcntl do not see each other
  CHECK(d.ns->locks(f, LockSpace::kPosix)->size() == 2);
  REFUSED(as(mine,
             [&] {
               LockOp gone = lock_op(LockType::kShared, 0, 1);
               gone.inode = InodeId(999);
               return gone;
             }()),
          no_such_file_or_directory);
  CHECK(d.run(d.command(EndSessionsCommand{{other}})).count == 1);
  REQUIRE(d.ns->locks(f, LockSpace::kPosix)->size() == 1);
  CHECK(d.ns->locks(f, LockSpace::kPosix)->front().owner.session == mine);
  CHECK(d.ns->locks(f, LockSpace::kFlock)->empty());
  REQUIRE(d.unlink(kRootInode, "f").error == 0);
  CHECK(d.ns->locks(f, LockSpace::kPosix)->empty());  // with the file
  CHECK(d.problems() == std::vector<std::string>{});
}

TEST_CASE_METHOD(World,
                 "Namespace: a delegated list of locks is its session's until it is returned",
                 "[serverd][meta]") {
  const SessionId mine = d.session;
  const SessionId other = d.open_session("another-client-0");
  const InodeId f = d.create(kRootInode, "f").inode;
  const auto as = [&](SessionId session, const Mutation& op) {
    Command c = d.mutation(op);
    c.session = session;
    return d.run(c);
  };
  const auto lock_op = [&](LockType type, std::uint64_t owner, bool delegate) {
    LockOp op;
    op.inode = f;
    op.type = type;
    op.owner = owner;
    op.range = {owner * 10, owner * 10 + 9};
    op.delegate = delegate;
    return op;
  };
  const auto locks = [&] { return *d.ns->locks(f, LockSpace::kPosix); };
  const auto held = [&](SessionId session, std::uint64_t owner, LockType type) {
    return HeldLock{{session, owner}, {owner * 10, owner * 10 + 9}, type, 0};
  };

  SECTION("only if no other session holds a lock there") {
    REQUIRE(as(other, lock_op(LockType::kShared, 5, false)).error == 0);
    CHECK(as(mine, lock_op(LockType::kShared, 1, true)).count == 0);
    CHECK(delegate_of(locks()) == SessionId());
    REQUIRE(as(other, lock_op(LockType::kUnlock, 5, true)).error == 0);
    CHECK(as(mine, lock_op(LockType::kShared, 2, false)).count == 0);  // not asked for
    CHECK(as(mine, lock_op(LockType::kUnlock, 1, true)).count == 0);   // not with an unlock
    CHECK(as(mine, lock_op(LockType::kShared, 1, true)).count == 1);
    CHECK(locks() == LockList{delegation_to(mine)});
  }
  SECTION("others are refused until it is returned, and the owner need not ask") {
    REQUIRE(as(mine, lock_op(LockType::kExclusive, 1, true)).count == 1);
    CHECK(Driver::code(as(other, lock_op(LockType::kShared, 2, true))) == Errc::kRetry);
    CHECK(as(other, lock_op(LockType::kUnlock, 2, false)).error == 0);
    CHECK(as(mine, lock_op(LockType::kExclusive, 3, false)).count == 1);
    CHECK(as(mine, lock_op(LockType::kUnlock, 3, false)).count == 1);
    CHECK(as(other, ReturnLocksOp{f, LockSpace::kPosix, {}}).error == 0);  // not its own
    CHECK(locks() == LockList{delegation_to(mine)});
    REQUIRE(
        as(mine, ReturnLocksOp{f,
                               LockSpace::kPosix,
                               {held({}, 4, LockType::kShared), held({}, 1, LockType::kExclusive)}})
            .error == 0);
    CHECK(locks() ==
          LockList{held(mine, 1, LockType::kExclusive), held(mine, 4, LockType::kShared)});
    REFUSED(as(other, lock_op(LockType::kShared, 1, true)), resource_unavailable_try_again);
    CHECK(as(other, lock_op(LockType::kShared, 4, true)).count == 0);
    // Late, or twice: what has happened since stays.
    CHECK(as(mine, ReturnLocksOp{f, LockSpace::kPosix, {}}).error == 0);
    CHECK(locks().size() == 3);
  }
  SECTION("fcntl's are not flock's") {
    REQUIRE(as(mine, lock_op(LockType::kExclusive, 1, true)).count == 1);
    LockOp whole = lock_op(LockType::kExclusive, 1, true);
    whole.space = LockSpace::kFlock;
    CHECK(as(other, whole).count == 1);
    CHECK(as(mine, ReturnLocksOp{f, LockSpace::kFlock, {}}).error == 0);
    CHECK(d.ns->locks(f, LockSpace::kFlock) == LockList{delegation_to(other)});
  }
  SECTION("what is returned is a list of locks") {
    REQUIRE(as(mine, lock_op(LockType::kExclusive, 1, true)).count == 1);
    HeldLock first = held({}, 1, LockType::kExclusive);
    HeldLock second = first;
    second.owner.number = 2;
    REFUSED(as(mine, ReturnLocksOp{f, LockSpace::kPosix, {first, second}}), invalid_argument);
    REFUSED(as(mine, ReturnLocksOp{f, LockSpace::kPosix, {delegation_to({})}}), invalid_argument);
    LockOp claims = lock_op(LockType::kExclusive, 1, false);
    claims.owner = kDelegate;
    REFUSED(as(other, claims), invalid_argument);
    CHECK(locks() == LockList{delegation_to(mine)});
  }
  SECTION("many locks come back at once") {
    REQUIRE(as(mine, lock_op(LockType::kExclusive, 1, true)).count == 1);
    ReturnLocksOp back{f, LockSpace::kPosix, {}};
    for (std::uint64_t i = 0; i < kLocksPerFileMax; ++i) {
      back.held.push_back(held({}, i % 3, LockType::kExclusive));
      back.held.back().range = {2 * i, 2 * i};
    }
    REQUIRE(as(mine, back).error == 0);
    const LockList stored = locks();
    CHECK(stored.size() == kLocksPerFileMax);
    CHECK(is_consistent(stored));
  }
  SECTION("it ends with the session") {
    REQUIRE(as(other, lock_op(LockType::kExclusive, 1, true)).count == 1);
    CHECK(d.run(d.command(EndSessionsCommand{{other}})).count == 1);
    CHECK(as(mine, lock_op(LockType::kExclusive, 1, true)).count == 1);
  }
  CHECK(d.problems() == std::vector<std::string>{});
}
