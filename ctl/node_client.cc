#include "ctl/node_client.h"

#include <netdb.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <fstream>
#include <map>

#include "common/net/tcp_network.h"

namespace fermata::ctl {
namespace {

namespace asio = boost::asio;

std::string trim(std::string text) {
  const auto is_space = [](unsigned char c) { return std::isspace(c) != 0; };
  while (!text.empty() && is_space(static_cast<unsigned char>(text.back()))) text.pop_back();
  while (!text.empty() && is_space(static_cast<unsigned char>(text.front())))
    text.erase(text.begin());
  return text;
}

}  // namespace

Result<std::vector<std::string>> parse_servers(const std::string& text) {
  std::string list = text;
  // The directory of `fermata mini` has the list in a file of that name.
  std::error_code error;
  if (std::filesystem::is_directory(list, error)) list += "/servers";
  if (list.find('/') == 0 || list.find("./") == 0 || access(list.c_str(), R_OK) == 0) {
    std::ifstream file(list);
    if (!file) return last_errno();
    std::string all, line;
    while (std::getline(file, line)) all += (all.empty() ? "" : ",") + trim(line);
    list = all;
  } else if (const std::size_t path = list.find(":/"); path != std::string::npos) {
    list.resize(path);
  }
  std::vector<std::string> servers;
  for (std::size_t at = 0; at <= list.size();) {
    const std::size_t comma = std::min(list.find(',', at), list.size());
    const std::string address = trim(list.substr(at, comma - at));
    if (!address.empty()) {
      FM_TRY([[maybe_unused]] const HostPort parsed, parse_address(address));
      servers.push_back(address);
    }
    at = comma + 1;
  }
  if (servers.empty()) return std::errc::invalid_argument;
  return servers;
}

std::string unknown_hosts(const std::vector<std::string>& servers) {
  std::string why;
  for (const std::string& server : servers) {
    const auto address = parse_address(server);
    if (!address) continue;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(address->host.c_str(), nullptr, nullptr, &found);
    if (error == 0) freeaddrinfo(found);
    if (error == 0 || error == EAI_AGAIN) return {};
    why += (why.empty() ? "" : "; ") + ("the host " + address->host + " is not known: ") +
           gai_strerror(error);
  }
  return why;
}

struct NodeClient::Impl {
  asio::io_context io;
  TcpNetwork network{io.get_executor()};
  std::map<std::string, std::shared_ptr<Connection>> connections;

  Task<Response> call(std::string address, Request request, Duration timeout) {
    auto& kept = connections[address];
    if (!kept || !kept->is_open()) {
      Hello hello;
      hello.kind = Hello::Kind::kAdmin;
      hello.name = "fermata[" + std::to_string(getpid()) + "]";
      FM_CO_TRY(kept, co_await network.connect(address, hello, nullptr, timeout));
    }
    const auto connection = kept;
    co_return co_await connection->call(std::move(request), timeout);
  }
};

NodeClient::NodeClient() : impl_(std::make_unique<Impl>()) {}
NodeClient::~NodeClient() = default;

Result<Response> NodeClient::call(const std::string& address, Method method, std::string body,
                                  std::chrono::milliseconds timeout) {
  Request request;
  request.method = static_cast<std::uint16_t>(method);
  request.body = std::move(body);
  Result<Response> result = Errc::kDeadlineExceeded;
  bool done = false;
  asio::co_spawn(impl_->io, impl_->call(address, std::move(request), timeout),
                 [&](std::exception_ptr failure, Result<Response> response) {
                   result = failure ? Result<Response>(std::errc::io_error) : std::move(response);
                   done = true;
                 });
  impl_->io.restart();
  while (!done && impl_->io.run_one() != 0) {
  }
  if (result && result->error) return result->error;
  return result;
}

const ClusterView::Node* ClusterView::primary() const {
  const Node* best = nullptr;
  for (const Node& node : nodes) {
    if (!node.status || node.status->role != "primary") continue;
    if (best == nullptr || node.status->term > best->status->term) best = &node;
  }
  return best;
}

ClusterView look(NodeClient& client, const std::vector<std::string>& servers,
                 std::chrono::milliseconds timeout) {
  ClusterView view;
  view.servers = servers;
  for (std::size_t i = 0; i < view.servers.size(); ++i) {
    const std::string address = view.servers[i];
    auto status = client.ask<NodeStatus>(address, Method::kStatus, {}, timeout);
    if (status) {
      for (const Member& member : status->members)
        if (std::find(view.servers.begin(), view.servers.end(), member.address) ==
            view.servers.end())
          view.servers.push_back(member.address);
    }
    view.nodes.push_back({address, std::move(status)});
  }
  return view;
}

}  // namespace fermata::ctl
