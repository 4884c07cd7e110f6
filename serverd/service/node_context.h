// What the services of one node share. Internal to serverd/service: others see node.h.
//
// Everything belongs to the node's executor, so what runs between two co_awaits is atomic; after a
// co_await look again at `serving` and `term`. Members are destroyed in the reverse order of their
// making, coroutines (`tasks`) first of all: see Node::~Node.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "common/env/env.h"
#include "common/io/task_group.h"
#include "common/net/rpc.h"
#include "common/wire/commands.h"
#include "common/wire/messages.h"
#include "common/wire/methods.h"
#include "serverd/lease/lease_table.h"
#include "serverd/lease/session_table.h"
#include "serverd/meta/namespace.h"
#include "serverd/raft/replicated_log.h"
#include "serverd/service/command_levels.h"
#include "serverd/service/node.h"
#include "serverd/service/signal.h"

namespace fermata::serverd {

class ChunkStore;
class Peers;
class Callbacks;
class SpaceGuard;
class ChunkFetcher;
class ChunkDurability;
class LockService;
class PatchFolder;

struct NodeContext {
  NodeContext(Env& environment, Network& net, NodeConfig cfg);

  Env& env;
  Network& network;
  const NodeConfig config;
  const TimePoint started;

  Namespace* ns = nullptr;
  ReplicatedLog* log = nullptr;
  ChunkStore* chunks = nullptr;
  Peers* peers = nullptr;
  Callbacks* callbacks = nullptr;
  SpaceGuard* space = nullptr;
  ChunkFetcher* fetcher = nullptr;
  ChunkDurability* durability = nullptr;
  LockService* locks = nullptr;
  PatchFolder* folder = nullptr;

  // ---- as primary. `serving`: of `term`, with the tables below filled.
  bool serving = false;
  Term term;
  LeaseTable leases;
  SessionTable sessions;
  std::unordered_map<SessionId, Epoch> epochs;  ///< of the live sessions
  CommandLevels command_levels;                 ///< as the other members have told them
  bool no_history = false;                      ///< room is so short that nothing past is kept
  Signal serving_changed;                       ///< serving, term, or a session's end

  std::map<std::string, std::uint64_t> counters;
  bool stopping = false;
  std::function<void(const std::string&)> fatal;
  TaskGroup tasks;

  void count(const std::string& what, std::uint64_t by = 1) { counters[what] += by; }
  bool serves(Term in_term) const { return serving && term == in_term; }
  std::size_t majority() const;
  /// Every member has told this process that it applies what is of that level.
  bool all_know(CommandLevel level) const;
  /// Proposes a command of the primary's own.
  Task<CommandResult> propose_own(decltype(Command::body) body);
  Task<CommandResult> propose(Command command);
};

/// An answer without a message.
Response ok();
Response failed(std::error_code error);
inline Response failed(Errc error) { return failed(make_error_code(error)); }
inline Response failed(std::errc error) { return failed(std::make_error_code(error)); }
/// kNotPrimary, and whom to ask instead as far as known.
Response not_primary(const NodeContext& node);
/// Resumes when reads of the applied state are linearizable and this node serves as primary.
Task<void> readable(NodeContext& node);
/// kSessionExpired or kStaleEpoch, unless this is a live session that may go on; kRetry while its
/// end is on its way.
Status check_session(const NodeContext& node, SessionId session, Epoch epoch);
/// This coroutine was asked to end.
boost::asio::awaitable<bool> cancelled();
/// The wall clock as commands carry it.
Timestamp wall_time(Env& env);

}  // namespace fermata::serverd
