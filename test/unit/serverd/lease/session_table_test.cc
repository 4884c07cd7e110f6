#include "serverd/lease/session_table.h"

#include <catch2/catch_test_macros.hpp>

using namespace fermata;
using namespace fermata::serverd;
using namespace std::chrono_literals;

namespace {
constexpr SessionId kA{1}, kB{2};
constexpr TimePoint kStart{1000s};
}  // namespace

TEST_CASE("SessionTable: the primary's lease outlasts the client's by the drift margin",
          "[lease]") {
  SessionTable table;
  REQUIRE(table.opened(kA, kStart));
  CHECK(table.due(kStart + 10s).empty());
  CHECK(table.due(kStart + 10s + 499ms).empty());
  CHECK(table.due(kStart + 10s + 500ms) == std::vector{kA});
}

TEST_CASE("SessionTable: renewing moves the end, never back", "[lease]") {
  SessionTable table;
  REQUIRE(table.opened(kA, kStart + 5s));
  REQUIRE(table.renew(kA, kStart));
  CHECK(table.lease_left(kA, kStart) == 15s + 500ms);
  REQUIRE(table.renew(kA, kStart + 6s));
  CHECK(table.next_due() == kStart + 16s + 500ms);
  CHECK_FALSE(table.renew(kB, kStart));
}

TEST_CASE("SessionTable: an ending session cannot be renewed or opened until its end is applied",
          "[lease]") {
  SessionTable table;
  REQUIRE(table.opened(kA, kStart));
  REQUIRE(table.opened(kB, kStart + 5s));
  REQUIRE(table.due(kStart + 11s) == std::vector{kA});
  CHECK(table.is_ending(kA));
  CHECK_FALSE(table.renew(kA, kStart + 11s));
  CHECK_FALSE(table.opened(kA, kStart + 11s));
  CHECK(table.lease_left(kA, kStart + 11s) == Duration::zero());
  CHECK(table.due(kStart + 11s) == std::vector{kA});  // still: the proposal may have failed
  CHECK(table.next_due() == kStart + 15s + 500ms);
  table.ended(kA);
  CHECK_FALSE(table.knows(kA));
  CHECK(table.due(kStart + 11s).empty());
  table.start_ending(kB);
  CHECK(table.due(kStart + 11s) == std::vector{kB});
}

TEST_CASE("SessionTable: a doomed session is not prolonged, and is due only when its lease is over",
          "[lease]") {
  SessionTable table;
  REQUIRE(table.opened(kA, kStart));
  REQUIRE(table.renew(kA, kStart + 3s));
  table.doom(kA);
  CHECK(table.is_doomed(kA));
  CHECK_FALSE(table.is_ending(kA));
  CHECK_FALSE(table.renew(kA, kStart + 4s));
  CHECK_FALSE(table.opened(kA, kStart + 4s));
  CHECK(
      table.due(kStart + 13s).empty());  // its client, renewed at 3 s, trusts its caches until now
  CHECK(table.lease_left(kA, kStart + 13s) == 500ms);
  CHECK(table.next_due() == kStart + 13s + 500ms);
  CHECK(table.due(kStart + 13s + 500ms) == std::vector{kA});
  CHECK(table.is_ending(kA));
  table.start_term({{kA}}, kStart + 14s);
  CHECK(table.renew(kA, kStart + 15s));
}

TEST_CASE("SessionTable: a new primary gives everybody a full term", "[lease]") {
  SessionTable table;
  REQUIRE(table.opened(kA, kStart));
  REQUIRE(table.due(kStart + 20s) == std::vector{kA});
  table.start_term({{kA}, {kB}}, kStart + 30s);
  CHECK_FALSE(table.is_ending(kA));
  CHECK(table.due(kStart + 40s).empty());
  CHECK(table.due(kStart + 41s) == std::vector{kA, kB});
  CHECK(table.all() == std::vector{kA, kB});
}

TEST_CASE("SessionTable: a session keeps the lease that it was opened with", "[lease]") {
  SessionTable table;  // of a primary that is configured for 10 s
  table.start_term({{kA, 30s}, {kB}}, kStart);
  CHECK(table.lease(kA) == 30s);
  CHECK(table.due(kStart + 31s) == std::vector{kB});  // its client counts on 30 s until then
  REQUIRE(table.renew(kA, kStart + 31s));
  CHECK(table.lease_left(kA, kStart + 31s) == 31500ms);
  SessionTable other;
  REQUIRE(other.opened(kA, kStart, 2s));
  CHECK(other.lease_left(kA, kStart) == 2100ms);
}

TEST_CASE("SessionTable: no sessions, nothing to wait for", "[lease]") {
  SessionTable table;
  CHECK_FALSE(table.next_due());
  CHECK_FALSE(table.bind(kA, nullptr));
  CHECK(table.channel(kA) == nullptr);
  CHECK(table.ended(kA) == nullptr);
}
