// Delegations of locks at the primary: called back before anything is decided on them.
#include <catch2/catch_test_macros.hpp>
#include <future>

#include "daemons.h"

using namespace fermata;
using namespace fermata::test;
using namespace std::chrono_literals;

namespace {

InodeId make_file(Client& client) {
  CreateOp op;
  op.parent = kRootInode;
  op.name = "file";
  op.mode = 0644;
  const auto made = client.mutate(op);
  REQUIRE(made.has_value());
  return made->attr->inode;
}

LockOp lock_op(InodeId inode, LockType type) {
  LockOp op;
  op.inode = inode;
  op.type = type;
  op.owner = 1;
  op.range = {0, 9};
  op.delegate = true;
  return op;
}

/// Every node has told the primary by then that it knows what that is.
bool becomes_delegated(Client& holder, InodeId file) {
  const auto until = std::chrono::steady_clock::now() + 15s;
  while (std::chrono::steady_clock::now() < until) {
    const auto reply = holder.mutate(lock_op(file, LockType::kExclusive));
    REQUIRE(reply.has_value());
    if (reply->delegated) return true;
    holder.run_for(20ms);
  }
  return false;
}

/// What `op` of `other` comes to; the holder answers callbacks, and returns `held` once it has been
/// asked so often.
Result<MutationReply> lock_beside(Client& other, Client& holder, const LockOp& op,
                                  const LockList& held, std::size_t asked = 1) {
  const std::size_t before = holder.callbacks.size();
  auto running = std::async(std::launch::async, [&] { return other.mutate(op); });
  bool returned = false;
  while (running.wait_for(0s) != std::future_status::ready) {
    holder.run_for(5ms);
    if (holder.callbacks.size() < before + asked || std::exchange(returned, true)) continue;
    CHECK(holder.callbacks.back().recalls ==
          std::vector<CallbackRequest::Recall>{{op.inode, op.space}});
    CHECK(holder.mutate(ReturnLocksOp{op.inode, op.space, held}).has_value());
  }
  return running.get();
}

struct HolderAndOther {
  explicit HolderAndOther(std::vector<std::string> more = {}) : daemons(std::move(more)) {
    daemons.start_all();
    REQUIRE(holder.open_session().has_value());
    REQUIRE(other.open_session().has_value());
    file = make_file(holder);
  }
  Daemons daemons;
  Client holder{daemons}, other{daemons};
  InodeId file;
};

}  // namespace

TEST_CASE("locks: another session's request is decided when the holder has returned the list",
          "[service]") {
  HolderAndOther sessions;
  auto& [daemons, holder, other, file] = sessions;
  REQUIRE(becomes_delegated(holder, file));
  SECTION("it had released what it held") {
    const auto reply = lock_beside(other, holder, lock_op(file, LockType::kShared), {});
    REQUIRE(reply.has_value());
    CHECK_FALSE(reply->delegated);  // just now two wanted it
  }
  SECTION("it holds it still") {
    const LockList held{{{SessionId(), 1}, {0, 9}, LockType::kExclusive, 5}};
    const auto refused = lock_beside(other, holder, lock_op(file, LockType::kShared), held);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error() == std::errc::resource_unavailable_try_again);
    LockQuery query{other.header(), lock_op(file, LockType::kShared), false, false};
    const auto found = other.ask<FindLockReply>(Method::kFindLock, query);
    REQUIRE(found.has_value());
    REQUIRE(found->held);
    CHECK(found->held->owner.session == holder.session);
    CHECK(found->held->pid == 5);
  }
  SECTION("another primary knows of it") {
    const auto primary = holder.primary();
    REQUIRE(primary);
    daemons.kill(*primary);
    REQUIRE(holder.bind().has_value());
    REQUIRE(other.bind().has_value());
    const auto reply = lock_beside(other, holder, lock_op(file, LockType::kShared), {});
    CHECK(reply.has_value());
  }
}

TEST_CASE("locks: a return may take its time once the callback is answered", "[service]") {
  HolderAndOther sessions;
  auto& [daemons, holder, other, file] = sessions;
  REQUIRE(becomes_delegated(holder, file));
  LockOp waits = lock_op(file, LockType::kShared);
  waits.ticket = 1;
  std::optional<Result<WaitLockReply>> turn;
  auto running = std::async(std::launch::async, [&] {
    turn =
        other.ask<WaitLockReply>(Method::kWaitLock, LockQuery{other.header(), waits, false, false});
    return other.mutate(waits);
  });
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < 4s) {
    holder.run_for(100ms);
    REQUIRE(running.wait_for(0s) == std::future_status::timeout);
  }
  CHECK(holder.callbacks.size() == 2);  // it is asked again, but not all the time
  const LockList held{{{SessionId(), 1}, {0, 9}, LockType::kExclusive, 5}};
  REQUIRE(holder.mutate(ReturnLocksOp{file, LockSpace::kPosix, held}).has_value());
  const auto reply = running.get();
  REQUIRE_FALSE(reply.has_value());
  CHECK(reply.error() == std::errc::resource_unavailable_try_again);
  REQUIRE(turn->has_value());
  CHECK_FALSE((*turn)->free);  // not known in time: it may ask again
}

TEST_CASE("locks: a mount that answers callbacks and never returns its locks loses its session",
          "[service]") {
  HolderAndOther sessions({"--lease-ms", "1500"});
  auto& [daemons, holder, other, file] = sessions;
  REQUIRE(becomes_delegated(holder, file));
  auto running = std::async(std::launch::async, [&] {
    const auto until = std::chrono::steady_clock::now() + 30s;
    while (std::chrono::steady_clock::now() < until) {
      // What becomes of its own session, which it does not renew meanwhile, is of no interest.
      LockOp wanted = lock_op(file, LockType::kExclusive);
      if (other.mutate(wanted).has_value()) return true;
      if (!other.renew().has_value() && !other.open_session().has_value()) return false;
    }
    return false;
  });
  const auto begun = std::chrono::steady_clock::now();
  while (running.wait_for(0s) != std::future_status::ready) {
    (void)holder.renew();
    holder.run_for(50ms);
  }
  CHECK(running.get());
  const Status status = holder.renew();
  REQUIRE_FALSE(status.has_value());
  CHECK(status.error() == Errc::kSessionExpired);
  CHECK_FALSE(holder.callbacks.empty());
  CHECK(std::chrono::steady_clock::now() - begun >= 4500ms);  // it had three leases' time
}

TEST_CASE("locks: a list is delegated when every node has said that it knows what that is",
          "[service]") {
  Daemons daemons;
  daemons.start(1);
  daemons.start(2);
  Client holder(daemons);
  REQUIRE(holder.open_session().has_value());
  const InodeId file = make_file(holder);
  const auto begin = std::chrono::steady_clock::now();
  while (std::chrono::steady_clock::now() - begin < 2s) {  // the two ask each other twice a second
    const auto reply = holder.mutate(lock_op(file, LockType::kExclusive));
    REQUIRE(reply.has_value());
    REQUIRE_FALSE(reply->delegated);
    holder.run_for(20ms);
  }
  const LogIndex last = holder.status(*holder.primary())->last;
  CHECK(holder.mutate(ReturnLocksOp{file, LockSpace::kPosix, {}}).has_value());
  CHECK(holder.status(*holder.primary())->last == last);  // the third might not know that command
  daemons.start(3);
  CHECK(becomes_delegated(holder, file));
  CHECK(holder.mutate(ReturnLocksOp{file, LockSpace::kPosix, {}}).has_value());
  CHECK(holder.status(*holder.primary())->last > last);
}

TEST_CASE("locks: a file that somebody waits for is not delegated", "[service]") {
  HolderAndOther sessions;
  auto& [daemons, holder, other, file] = sessions;
  LockOp op = lock_op(file, LockType::kExclusive);
  op.delegate = false;
  REQUIRE(holder.mutate(op).has_value());
  LockOp waits = lock_op(file, LockType::kExclusive);
  waits.ticket = 1;
  const auto turn =
      other.ask<WaitLockReply>(Method::kWaitLock, LockQuery{other.header(), waits, false, false});
  REQUIRE(turn.has_value());
  CHECK_FALSE(turn->free);
  LockOp more = lock_op(file, LockType::kExclusive);
  more.range = {20, 29};
  const auto reply = holder.mutate(more);
  REQUIRE(reply.has_value());
  CHECK_FALSE(reply->delegated);
}
