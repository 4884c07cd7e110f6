// Questions to nodes, asked and answered before the next line runs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/net/rpc.h"
#include "common/wire/message_codec.h"
#include "common/wire/methods.h"

namespace fermata::ctl {

/// The addresses that `text` names: "HOST:PORT[,...]" or the path of a file that holds such a list.
/// A ":/path" behind it, as of a mount source, is ignored.
Result<std::vector<std::string>> parse_servers(const std::string& text);

/// What to say if the name of none of `servers` can be resolved: such a list is mistyped. Empty if
/// one can be, now or perhaps later (the resolver is not there yet). Blocks as long as it does.
std::string unknown_hosts(const std::vector<std::string>& servers);

class NodeClient {
 public:
  NodeClient();
  ~NodeClient();
  /// Blocks for at most about `timeout`. The node's own error is an error here.
  Result<Response> call(const std::string& address, Method method, std::string body,
                        std::chrono::milliseconds timeout = std::chrono::seconds(3));

  template <class Reply>
  Result<Reply> ask(const std::string& address, Method method, std::string body,
                    std::chrono::milliseconds timeout = std::chrono::seconds(3)) {
    FM_TRY(const Response response, call(address, method, std::move(body), timeout));
    return decode<Reply>(response.body);
  }

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct ClusterView {
  std::vector<std::string> servers;  ///< all known addresses, asked or learnt
  struct Node {
    std::string address;
    Result<NodeStatus> status;
  };
  std::vector<Node> nodes;
  const Node* primary() const;
};
/// Asks every node that the given ones know of.
ClusterView look(NodeClient& client, const std::vector<std::string>& servers,
                 std::chrono::milliseconds timeout = std::chrono::seconds(2));

}  // namespace fermata::ctl
