#include "serverd/lease/lease_table.h"

#include <catch2/catch_test_macros.hpp>

using namespace fermata;
using namespace fermata::serverd;

namespace {

constexpr SessionId kA{1}, kB{2}, kC{3};
constexpr InodeId kDir{10}, kFile{11}, kOther{12};

LeaseTable table_with(std::initializer_list<SessionId> sessions, LeaseTable::Options options = {}) {
  LeaseTable table(options);
  table.start_term(Term(3), {});
  for (const SessionId session : sessions) table.add_session(session);
  return table;
}
Touch file(InodeId inode, bool last_link = false) {
  return {inode, false, true, false, {}, last_link};
}
Touch entry(InodeId dir, std::string name) {
  return {dir, true, true, false, {std::move(name)}, false};
}

void answer_all(LeaseTable& table, const std::map<SessionId, CallbackRequest>& requests) {
  for (const auto& [session, request] : requests) table.answered(session, request, {});
}

}  // namespace

TEST_CASE("LeaseTable: only known sessions get leases", "[lease]") {
  auto table = table_with({kA});
  CHECK(table.grant(kA, kFile));
  CHECK_FALSE(table.grant(kB, kFile));
  CHECK_FALSE(table.grant(SessionId(), kFile));
  CHECK(table.lease_count() == 1);
}

TEST_CASE("LeaseTable: other holders are called back, the caller is not", "[lease]") {
  auto table = table_with({kA, kB, kC});
  REQUIRE(table.grant(kA, kFile));
  REQUIRE(table.grant(kB, kFile));
  const auto requests = table.break_leases({file(kFile)}, kA);
  REQUIRE(requests.size() == 1);
  const auto& request = requests.at(kB);
  CHECK(term_of(request.stamp) == Term(3));
  REQUIRE(request.items.size() == 1);
  CHECK(request.items[0].inode == kFile);
  CHECK(request.items[0].attributes);
  CHECK(request.items[0].asks_open);
}

TEST_CASE("LeaseTable: a holder is asked by every mutation until it has answered", "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant(kB, kFile));
  const auto first = table.break_leases({file(kFile)}, kA);
  CHECK(table.break_leases({file(kFile)}, kA).size() == 1);
  answer_all(table, first);
  CHECK(table.break_leases({file(kFile)}, kA).empty());
  CHECK(table.leases_of(kB) == 0);
}

TEST_CASE("LeaseTable: nothing is granted on what is pending", "[lease]") {
  auto table = table_with({kA, kB});
  const TouchSet touched{entry(kDir, "x"), file(kFile)};
  table.mark(touched);
  table.mark({file(kFile)});
  CHECK_FALSE(table.grant(kB, kFile));
  CHECK_FALSE(table.grant(kB, kDir));
  CHECK_FALSE(table.grant_entry(kB, kDir, "x"));
  CHECK_FALSE(table.grant_entries(kB, kDir));
  CHECK(table.grant_entry(kB, kDir, "y"));
  table.unmark(touched);
  CHECK(table.grant(kB, kDir));
  CHECK(table.grant_entry(kB, kDir, "x"));
  CHECK(table.grant_entries(kB, kDir));
  CHECK_FALSE(table.grant(kB, kFile));  // the other mutation is still there
  table.unmark({file(kFile)});
  CHECK(table.grant(kB, kFile));
}

TEST_CASE("LeaseTable: a directory's holder keeps the rest, unless it is removed", "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant_entry(kB, kDir, "x"));
  answer_all(table, table.break_leases({entry(kDir, "y")}, kA));
  CHECK(table.leases_of(kB) == 1);
  Touch removed{kDir, true, true, true, {}, false};
  const auto requests = table.break_leases({removed}, kA);
  CHECK(requests.at(kB).items[0].all_entries);
  answer_all(table, requests);
  CHECK(table.leases_of(kB) == 0);
}

TEST_CASE("LeaseTable: what one session is asked comes in one request", "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant(kB, kFile));
  REQUIRE(table.grant_entries(kB, kDir));
  const auto requests = table.break_leases({entry(kDir, "x"), file(kFile, true)}, kA);
  REQUIRE(requests.size() == 1);
  CHECK(requests.at(kB).items.size() == 2);
}

TEST_CASE("LeaseTable: a lease granted after the callback was issued survives its answer",
          "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant(kB, kFile));
  const auto requests = table.break_leases({file(kFile)}, kA);  // and the mutation is given up
  table.next_stamp();
  REQUIRE(table.grant(kB, kFile));
  answer_all(table, requests);
  CHECK(table.leases_of(kB) == 1);
}

TEST_CASE("LeaseTable: a wildcard is asked about everything until it has given up", "[lease]") {
  LeaseTable table;
  table.start_term(Term(4), {kA, kB});
  CHECK(table.is_wildcard(kB));
  CHECK(table.break_leases({file(kOther)}, kA).contains(kB));
  answer_all(table, table.break_leases({file(kOther)}, kA));
  CHECK(table.break_leases({file(kOther)}, kA).contains(kB));  // an answer does not change that
  table.given_up(kB);
  CHECK(table.break_leases({file(kOther)}, kA).empty());
  // Of its opens this primary still knows nothing.
  const auto requests = table.break_leases({file(kOther, true)}, kA);
  REQUIRE(requests.contains(kB));
  table.answered(kB, requests.at(kB), {{kOther}});
  CHECK(table.openers(kOther, kA) == std::vector{kB});
}

TEST_CASE("LeaseTable: opens without a lease are remembered until they are denied", "[lease]") {
  auto table = table_with({kA, kB});
  table.opened(kB, kFile, false);
  CHECK(table.break_leases({file(kFile)}, kA).empty());
  auto requests = table.break_leases({file(kFile, true)}, kA);
  REQUIRE(requests.contains(kB));
  table.answered(kB, requests.at(kB), {});
  CHECK(table.openers(kFile, kA).empty());

  SECTION("an open that overtakes the answer counts") {
    requests = table.break_leases({file(kFile, true)}, kA);
    table.opened(kB, kFile, false);
    CallbackRequest late{requests.empty() ? table.next_stamp() : requests.at(kB).stamp, {}};
    late.items.push_back({kFile, true, false, {}, true});
    CHECK(table.openers(kFile, kA) == std::vector{kB});
  }
  SECTION("a broken lease of an open file leaves an opener") {
    REQUIRE(table.grant(kB, kFile));
    requests = table.break_leases({file(kFile)}, kA);
    table.answered(kB, requests.at(kB), {{kFile}});
    CHECK(table.leases_of(kB) == 0);
    CHECK(table.openers(kFile, kA) == std::vector{kB});
    CHECK(table.break_leases({file(kFile, true)}, kA).contains(kB));
    table.forget_inode(kFile);
    CHECK(table.openers(kFile, kA).empty());
  }
}

TEST_CASE("LeaseTable: a last link on its way is known", "[lease]") {
  auto table = table_with({kA});
  const TouchSet touched{file(kFile, true)};
  table.mark(touched);
  CHECK(table.losing_last_link(kFile));
  table.unmark(touched);
  CHECK_FALSE(table.losing_last_link(kFile));
}

TEST_CASE("LeaseTable: a session's end takes its leases along", "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant(kB, kFile));
  table.opened(kB, kOther, false);
  table.remove_session(kB);
  CHECK(table.lease_count() == 0);
  CHECK(table.openers(kOther, kA).empty());
  CHECK(table.break_leases({file(kFile)}, kA).empty());
  CHECK_FALSE(table.grant(kB, kFile));
}

TEST_CASE("LeaseTable: a session over its limit gives back its oldest leases", "[lease]") {
  auto table = table_with({kA, kB}, {.leases_per_session = 100, .items_per_callback = 20});
  std::uint64_t granted = 0;
  for (std::uint64_t i = 1; i <= 200; ++i) granted += table.grant(kB, InodeId(i)) ? 1u : 0u;
  CHECK(granted == 125);
  CHECK(table.evict(kA).items.empty());
  for (int round = 0; round < 10; ++round) {
    const auto request = table.evict(kB);
    if (request.items.empty()) break;
    CHECK(request.items.size() <= 20);
    table.answered(kB, request, {});
  }
  CHECK(table.leases_of(kB) <= 100);
  CHECK(table.leases_of(kB) >= 80);
  CHECK(table.break_leases({file(InodeId(1))}, kA).empty());
  CHECK(table.break_leases({file(InodeId(125))}, kA).size() == 1);
}

TEST_CASE("LeaseTable: a new term forgets marks and leases of the old one", "[lease]") {
  auto table = table_with({kA, kB});
  const TouchSet touched{file(kFile)};
  table.mark(touched);
  REQUIRE(table.grant(kB, kOther));
  table.start_term(Term(5), {kA});
  table.unmark(touched);
  CHECK(table.lease_count() == 0);
  CHECK(table.grant(kA, kFile));
  CHECK_FALSE(table.has_session(kB));
  CHECK(table.next_stamp() > make_stamp(Term(4), (1ULL << kStampCountBits) - 1));
}

// ---------------------------------------------------------------- exclusive leases

namespace {
using namespace std::chrono_literals;
constexpr TimePoint kNow{1000s};
}  // namespace

TEST_CASE("LeaseTable: a directory is one session's alone if no other holds it", "[lease]") {
  auto table = table_with({kA, kB});
  CHECK_FALSE(table.grant_exclusive(kC, kDir, kNow));  // unknown
  REQUIRE(table.grant_entry(kB, kDir, "x"));
  CHECK_FALSE(table.grant_exclusive(kA, kDir, kNow));
  answer_all(table, table.break_leases({{kDir, true, true, true, {}, false}}, kA));
  CHECK(table.grant_exclusive(kA, kDir, kNow));
  CHECK(table.held_elsewhere(kDir, kB));
  CHECK_FALSE(table.held_elsewhere(kDir, kA));
  // Nothing of it is leased to others while it is so.
  CHECK_FALSE(table.grant(kB, kDir));
  CHECK_FALSE(table.grant_entry(kB, kDir, "y"));
  CHECK_FALSE(table.grant_entries(kB, kDir));
  CHECK_FALSE(table.grant_exclusive(kB, kDir, kNow));
}

TEST_CASE("LeaseTable: nobody is granted a directory while others' recalls of it are under way",
          "[lease]") {
  auto table = table_with({kA, kB});
  table.begin_recall({kDir});
  table.begin_recall({kDir, kOther});
  CHECK_FALSE(table.grant_exclusive(kA, kDir, kNow));
  table.end_recall({kDir});
  CHECK_FALSE(table.grant_exclusive(kA, kDir, kNow));
  table.end_recall({kDir, kOther});
  CHECK(table.grant_exclusive(kA, kDir, kNow));
  CHECK(table.grant_exclusive(kB, kOther, kNow));
}

TEST_CASE("LeaseTable: a recall asks for the exclusive lease only, and ends it", "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant_exclusive(kA, kDir, kNow));
  REQUIRE(table.grant_exclusive(kA, kOther, kNow));
  const auto requests = table.recall({kDir, kOther}, kB, kNow);
  REQUIRE(requests.size() == 1);
  const auto& request = requests.at(kA);
  REQUIRE(request.items.size() == 2);
  CHECK_FALSE(request.items[0].attributes);
  CHECK_FALSE(request.items[0].all_entries);
  CHECK(request.items[0].names.empty());
  CHECK(table.held_elsewhere(kDir, kB));  // until it is answered
  answer_all(table, requests);
  CHECK_FALSE(table.held_elsewhere(kDir, kB));
  CHECK_FALSE(table.held_elsewhere(kOther, kB));
  CHECK(table.leases_of(kA) == 2);  // it stays a holder as any other
  CHECK(table.grant(kB, kDir));
}

TEST_CASE("LeaseTable: what others asked about a moment ago is not granted to one alone",
          "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant_exclusive(kA, kDir, kNow));
  answer_all(table, table.recall({kDir}, kB, kNow));
  CHECK_FALSE(table.grant_exclusive(kA, kDir, kNow + 999ms));
  CHECK(table.grant_exclusive(kA, kDir, kNow + 1s));
}

TEST_CASE("LeaseTable: a grant that comes after a recall was sent is not ended by its answer",
          "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant_exclusive(kA, kDir, kNow));
  const auto first = table.recall({kDir}, kB, kNow);
  answer_all(table, first);
  table.next_stamp();
  REQUIRE(table.grant_exclusive(kA, kDir, kNow + 2s));
  answer_all(table, first);  // once more
  CHECK(table.held_elsewhere(kDir, kB));
}

TEST_CASE("LeaseTable: any callback about the directory, or the session's end, frees it",
          "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant_exclusive(kA, kDir, kNow));
  answer_all(table, table.break_leases({entry(kDir, "x")}, kB));
  CHECK_FALSE(table.held_elsewhere(kDir, kB));
  REQUIRE(table.grant_exclusive(kA, kOther, kNow));
  table.remove_session(kA);
  CHECK_FALSE(table.held_elsewhere(kOther, kB));
  CHECK(table.lease_count() == 0);
}

TEST_CASE("LeaseTable: changes on their way keep a directory from being granted, but for one's own",
          "[lease]") {
  auto table = table_with({kA, kB});
  const TouchSet touched{entry(kDir, "x")};
  table.mark(touched, kB);
  CHECK_FALSE(table.grant_exclusive(kA, kDir, kNow));
  table.unmark(touched, kB);
  table.mark(touched, kA);
  CHECK_FALSE(table.grant(kA, kDir));
  REQUIRE(table.grant_exclusive(kA, kDir, kNow));
  CHECK(table.grant(kA, kDir));  // whoever has it alone hears of them by their answers
  CHECK(table.grant_entry(kA, kDir, "x"));
  table.unmark(touched, kA);
}

TEST_CASE("LeaseTable: some creations in a row take others' leases of the directory away",
          "[lease]") {
  auto table = table_with({kA, kB});
  REQUIRE(table.grant(kB, kDir));
  for (int i = 0; i < 3; ++i) CHECK_FALSE(table.wants_alone(kA, kDir, kNow));
  CHECK(table.wants_alone(kA, kDir, kNow));
  table.note_asked(kDir, kB, kNow);  // somebody looks: from the beginning
  for (int i = 0; i < 5; ++i) CHECK_FALSE(table.wants_alone(kA, kDir, kNow + 500ms));
  for (int i = 0; i < 3; ++i) CHECK_FALSE(table.wants_alone(kA, kDir, kNow + 2s));
  CHECK(table.wants_alone(kA, kDir, kNow + 2s));
}

TEST_CASE("LeaseTable: a new primary's reads ask each session that may have made files",
          "[lease]") {
  LeaseTable table;
  table.start_term(Term(4), {kA, kB, kC}, {kA, kB});
  CHECK(table.held_elsewhere(kDir, kC));
  CHECK_FALSE(table.grant_exclusive(kC, kDir, kNow));  // others may hold it
  const auto requests = table.recall({kDir}, kC, kNow);
  CHECK(requests.size() == 2);
  CHECK_FALSE(requests.contains(kC));
  answer_all(table, requests);
  CHECK_FALSE(table.held_elsewhere(kDir, kC));  // once for each directory
  CHECK(table.held_elsewhere(kOther, kC));
  table.given_up(kA);
  CHECK(table.held_elsewhere(kOther, kC));
  table.remove_session(kB);
  CHECK_FALSE(table.held_elsewhere(kOther, kC));
}

TEST_CASE("LeaseTable: ids that come after a failover make a session one that may have made files",
          "[lease]") {
  LeaseTable table;
  table.start_term(Term(4), {kA, kB});
  CHECK_FALSE(table.held_elsewhere(kDir, kB));
  table.note_maker(kA);  // it may still hold the directory by the old term
  CHECK(table.held_elsewhere(kDir, kB));
  table.given_up(kA);
  CHECK_FALSE(table.held_elsewhere(kDir, kB));
  table.note_maker(kA);
  CHECK_FALSE(table.held_elsewhere(kDir, kB));
}
