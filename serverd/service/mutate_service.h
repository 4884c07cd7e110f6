// Mutations at the primary: duplicates found, leases broken, the command proposed, the answer
// built.
//
// Each mutation is a task of its own. The request only waits for it: when the client gives up or
// its connection breaks the mutation goes on to its end, and a retry with the same sequence number
// finds it under way or finds its result in the replicated table (Liskov and Cowling, "Viewstamped
// Replication Revisited", 2012, section 4). A mutation ends when its callbacks are answered or
// their sessions over, and its command is decided or the role lost.
//
// Thread-safety: the node's executor.
#pragma once

#include <map>
#include <memory>
#include <set>

#include "serverd/service/mutation_plan.h"
#include "serverd/service/node_context.h"

namespace fermata::serverd {

class MutateService {
 public:
  explicit MutateService(NodeContext& node) : node_(node), links_freed_(node.env.executor()) {}

  boost::asio::awaitable<Response> mutate(Request request);

 private:
  struct Flight {
    Flight(MutationRequest r, Buffer p, const boost::asio::any_io_executor& executor)
        : request(std::move(r)), payload(std::move(p)), changed(executor) {}
    const MutationRequest request;
    const Buffer payload;
    bool done = false;
    Result<CommandResult> outcome = Errc::kShuttingDown;
    Signal changed;
  };
  class Marks;
  using Key = std::pair<SessionId, Sequence>;

  Response reply(const MutationRequest& request, const CommandResult& result);
  boost::asio::awaitable<void> run(std::shared_ptr<Flight> flight);
  Task<CommandResult> execute(std::shared_ptr<Flight> flight);
  /// One attempt: plan, callbacks, command. kRetry: the state moved, once more.
  Task<CommandResult> attempt(std::shared_ptr<Flight> flight, Term term);

  NodeContext& node_;
  std::map<Key, std::shared_ptr<Flight>> flights_;
  std::set<InodeId> links_locked_;
  Signal links_freed_;
};

}  // namespace fermata::serverd
