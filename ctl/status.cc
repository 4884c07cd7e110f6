// fermata status, digest, primary transfer, session ls: questions to the nodes.
#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <map>
#include <set>

#include "ctl/commands.h"
#include "ctl/node_client.h"
#include "ctl/process.h"
#include "ctl/table.h"

namespace fermata::ctl {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

struct Health {
  int level = 0;  ///< 0 OK, 1 WARN, 2 ERR, 3 nobody answers
  std::vector<std::string> reasons;
  void raise(int to, std::string reason) {
    level = std::max(level, to);
    reasons.push_back(std::move(reason));
  }
  const char* word() const {
    return level == 0 ? "HEALTH_OK" : level == 1 ? "HEALTH_WARN" : "HEALTH_ERR";
  }
};

/// Entries behind which a backup counts as lagging.
constexpr std::uint64_t kLagWarn = 10'000;
/// Free space under this part of the disk is a warning.
constexpr std::uint64_t kFreePartWarn = 20;

Health judge(const ClusterView& view) {
  Health health;
  std::size_t reached = 0;
  for (const auto& node : view.nodes) {
    if (node.status) {
      ++reached;
    } else {
      health.raise(
          1, "node at " + node.address + " does not answer: " + node.status.error().message());
    }
  }
  const auto* primary = view.primary();
  if (reached == 0) {
    health.level = 3;
    return health;
  }
  if (primary == nullptr) {
    health.raise(2, "no node is primary: changes wait until a majority of the nodes runs");
    return health;
  }
  if (reached * 2 <= view.nodes.size()) health.raise(2, "a majority of the nodes does not answer");
  std::set<ClusterId> clusters;
  for (const auto& node : view.nodes) {
    if (!node.status) continue;
    const NodeStatus& status = *node.status;
    const std::string name = "node " + std::to_string(status.node.value());
    clusters.insert(status.cluster);
    const std::uint64_t last = primary->status->commit.value();
    if (status.applied.value() + kLagWarn < last)
      health.raise(
          1, name + " is " + std::to_string(last - status.applied.value()) + " log entries behind");
    if (status.chunks_missing != 0)
      health.raise(
          1, name + " lacks " + std::to_string(status.chunks_missing) + " chunks and fetches them");
    if (status.chunks_corrupt != 0)
      health.raise(1, name + " found " + std::to_string(status.chunks_corrupt) +
                          " corrupt chunks since its start");
    if (status.disk_full)
      health.raise(1, name + "'s disk is full: it takes nothing new (" +
                          human_bytes(status.disk_free_bytes) + " left)");
    else if (status.disk_low || (status.disk_total_bytes != 0 &&
                                 status.disk_free_bytes < status.disk_total_bytes / kFreePartWarn))
      health.raise(
          1, name + "'s disk is nearly full: " + human_bytes(status.disk_free_bytes) + " left");
  }
  if (clusters.size() > 1) health.raise(2, "the addresses belong to different clusters");
  return health;
}

std::string why_no_primary(const ClusterView& view) {
  const bool any = std::any_of(view.nodes.begin(), view.nodes.end(),
                               [](const auto& node) { return node.status.has_value(); });
  return any ? "no node is primary" : "no node answers at any of the given addresses";
}

std::uint64_t counter(const NodeStatus& status, const char* name) {
  const auto it = status.counters.find(name);
  return it == status.counters.end() ? 0 : it->second;
}

/// Since the node's start: connections closed for bytes that are not the protocol's, messages of
/// the log that could not be read or came under a wrong name.
std::uint64_t malformed(const NodeStatus& status) {
  return counter(status, "net_malformed") + counter(status, "malformed_raft_messages") +
         counter(status, "misdirected_raft_messages");
}

json::object to_json(const ClusterView::Node& node, const ClusterView::Node* primary) {
  json::object out{{"address", node.address}, {"reachable", static_cast<bool>(node.status)}};
  if (!node.status) {
    out["error"] = node.status.error().message();
    return out;
  }
  const NodeStatus& s = *node.status;
  out["node"] = s.node.value();
  out["role"] = s.role;
  out["term"] = s.term.value();
  out["first"] = s.first.value();
  out["last"] = s.last.value();
  out["commit"] = s.commit.value();
  out["applied"] = s.applied.value();
  if (primary != nullptr) {
    const std::uint64_t commit = primary->status->commit.value();
    out["lag"] = commit > s.applied.value() ? commit - s.applied.value() : 0;
  }
  out["chunks"] = s.chunk_count;
  out["chunk_bytes"] = s.chunk_bytes;
  out["chunks_missing"] = s.chunks_missing;
  out["chunks_corrupt"] = s.chunks_corrupt;
  out["sessions"] = s.session_count;
  out["inodes"] = s.inode_count;
  out["disk_total_bytes"] = s.disk_total_bytes;
  out["disk_free_bytes"] = s.disk_free_bytes;
  out["disk_full"] = s.disk_full;
  out["disk_low"] = s.disk_low;
  out["malformed"] = malformed(s);
  out["refused"] = counter(s, "net_refused");
  out["uptime_ms"] = s.uptime_ms;
  out["program"] = s.version;
  out["command_level"] = s.command_level;
  json::object counters;
  for (const auto& [name, value] : s.counters) counters[name] = value;
  out["counters"] = std::move(counters);
  return out;
}

/// Every reachable node's digest of the same log index; empty with a message if the primary gives
/// none.
std::map<std::string, DigestReply> digests(NodeClient& client, const ClusterView& view,
                                           std::string& problem) {
  std::map<std::string, DigestReply> result;
  const auto* primary = view.primary();
  if (primary == nullptr) {
    problem = why_no_primary(view);
    return result;
  }
  const auto first =
      client.ask<DigestReply>(primary->address, Method::kDigest, encode(DigestRequest{}), 60s);
  if (!first) {
    problem = "the primary gave no digest: " + first.error().message();
    return result;
  }
  result[primary->address] = *first;
  for (const auto& node : view.nodes) {
    if (&node == primary || !node.status) continue;
    const auto reply = client.ask<DigestReply>(node.address, Method::kDigest,
                                               encode(DigestRequest{first->at}), 60s);
    if (reply)
      result[node.address] = *reply;
    else
      problem = "node at " + node.address + " gave no digest: " + reply.error().message();
  }
  return result;
}

bool all_equal(const std::map<std::string, DigestReply>& all) {
  for (const auto& [address, reply] : all)
    if (reply.digest != all.begin()->second.digest || reply.at != all.begin()->second.at)
      return false;
  return !all.empty();
}

int status(const std::vector<std::string>& servers, bool as_json, bool with_digest) {
  NodeClient client;
  const ClusterView view = look(client, servers);
  Health health = judge(view);
  std::map<std::string, DigestReply> sums;
  if (with_digest && health.level < 2) {
    std::string problem;
    sums = digests(client, view, problem);
    if (!problem.empty()) health.raise(1, problem);
    if (!sums.empty() && !all_equal(sums))
      health.raise(2, "the nodes' states differ at one log index: see `fermata digest`");
  }
  const auto* primary = view.primary();
  if (as_json) {
    json::array nodes;
    for (const auto& node : view.nodes) {
      json::object object = to_json(node, primary);
      if (const auto sum = sums.find(node.address); sum != sums.end())
        object["digest"] = sum->second.digest;
      nodes.push_back(std::move(object));
    }
    json::array reasons;
    for (const std::string& reason : health.reasons) reasons.emplace_back(reason);
    json::object out{
        {"version", 1}, {"health", health.word()}, {"reasons", reasons}, {"nodes", nodes}};
    if (primary != nullptr) {
      out["cluster"] = primary->status->cluster.hex();
      out["primary"] = primary->status->node.value();
      out["term"] = primary->status->term.value();
    }
    std::printf("%s\n", json::serialize(out).c_str());
    return health.level;
  }
  std::printf("%s\n", health.level == 3 ? "HEALTH_ERR" : health.word());
  for (const std::string& reason : health.reasons) std::printf("  %s\n", reason.c_str());
  if (health.level == 3) std::printf("  no node answers at any of the given addresses\n");
  Table table({"NODE", "ADDRESS", "ROLE", "TERM", "APPLIED", "LAG", "CHUNKS", "SIZE", "FREE",
               "SESSIONS", "MALFORMED", "REFUSED", "DIGEST"});
  for (const auto& node : view.nodes) {
    if (!node.status) {
      table.add({"-", node.address, "unreachable"});
      continue;
    }
    const NodeStatus& s = *node.status;
    const std::uint64_t commit =
        primary != nullptr ? primary->status->commit.value() : s.commit.value();
    const auto sum = sums.find(node.address);
    table.add({std::to_string(s.node.value()), node.address, s.role, std::to_string(s.term.value()),
               std::to_string(s.applied.value()),
               std::to_string(commit > s.applied.value() ? commit - s.applied.value() : 0),
               std::to_string(s.chunk_count), human_bytes(s.chunk_bytes),
               human_bytes(s.disk_free_bytes), std::to_string(s.session_count),
               std::to_string(malformed(s)), std::to_string(counter(s, "net_refused")),
               sum == sums.end() ? "-" : sum->second.digest.substr(0, 12)});
  }
  std::printf("%s", table.text().c_str());
  return health.level;
}

int digest(const std::vector<std::string>& servers, bool as_json) {
  NodeClient client;
  const ClusterView view = look(client, servers);
  std::string problem;
  const auto all = digests(client, view, problem);
  if (all.empty()) {
    complain(problem);
    return kExitUnavailable;
  }
  const bool equal = all_equal(all);
  if (as_json) {
    json::array nodes;
    for (const auto& [address, reply] : all)
      nodes.push_back(json::object{
          {"address", address}, {"index", reply.at.value()}, {"digest", reply.digest}});
    std::printf(
        "%s\n",
        json::serialize(json::object{{"version", 1}, {"equal", equal}, {"nodes", nodes}}).c_str());
  } else {
    for (const auto& [address, reply] : all)
      std::printf("%s  index %llu  %s\n", reply.digest.c_str(),
                  static_cast<unsigned long long>(reply.at.value()), address.c_str());
    std::printf("%s\n", equal ? "equal" : "DIFFERENT");
  }
  if (!problem.empty()) complain(problem);
  return equal && problem.empty() ? kExitOk : kExitError;
}

int transfer(const std::vector<std::string>& servers, std::uint32_t to) {
  NodeClient client;
  const ClusterView view = look(client, servers);
  const auto* primary = view.primary();
  if (primary == nullptr) {
    complain(why_no_primary(view));
    return kExitUnavailable;
  }
  bool to_answers = false;
  std::string known;
  for (const auto& node : view.nodes) {
    if (!node.status) continue;
    if (node.status->node == NodeId(to)) to_answers = true;
    known += (known.empty() ? "" : ", ") + std::to_string(node.status->node.value());
  }
  if (to != 0 && !to_answers) {
    complain("no node " + std::to_string(to) + " answers; those that do: " + known);
    return kExitError;
  }
  const auto done = client.call(primary->address, Method::kTransferPrimary,
                                encode(TransferRequest{NodeId(to)}), 10s);
  if (!done) {
    complain("the role was not handed over: " + done.error().message());
    return kExitError;
  }
  const NodeId before = primary->status->node;
  NodeId now;
  const bool changed = wait_until(10s, [&] {
    const ClusterView after = look(client, view.servers, 1s);
    if (after.primary() == nullptr) return false;
    now = after.primary()->status->node;
    return now != before;
  });
  if (!changed) {
    complain("node " + std::to_string(before.value()) + " is primary still");
    return kExitError;
  }
  std::printf("node %u is primary\n", now.value());
  return kExitOk;
}

int sessions(const std::vector<std::string>& servers, bool as_json) {
  NodeClient client;
  const ClusterView view = look(client, servers);
  const auto* primary = view.primary();
  if (primary == nullptr) {
    complain(why_no_primary(view));
    return kExitUnavailable;
  }
  const auto list = client.ask<SessionList>(primary->address, Method::kSessions, {});
  if (!list) {
    complain("the primary does not list its sessions: " + list.error().message());
    return kExitError;
  }
  if (as_json) {
    json::array out;
    for (const auto& s : list->sessions)
      out.push_back(json::object{{"session", s.session.value()},
                                 {"epoch", s.epoch.value()},
                                 {"host", s.host},
                                 {"mount_point", s.mount_point},
                                 {"lease_left_ms", s.lease_left_ms},
                                 {"leases", s.leases}});
    std::printf("%s\n", json::serialize(json::object{{"version", 1}, {"sessions", out}}).c_str());
    return kExitOk;
  }
  Table table({"SESSION", "HOST", "MOUNT POINT", "LEASE LEFT", "LEASES"});
  for (const auto& s : list->sessions)
    table.add({std::to_string(s.session.value()), s.host, s.mount_point,
               std::to_string(s.lease_left_ms) + " ms", std::to_string(s.leases)});
  std::printf("%s", table.text().c_str());
  return kExitOk;
}

/// A verb about a cluster: its addresses, and what to do with them.
std::shared_ptr<std::string> add_servers(CLI::App* verb) {
  auto text = std::make_shared<std::string>();
  verb->add_option("servers", *text,
                   "HOST:PORT[,HOST:PORT...], or a file with the list (DIR/servers of `mini`)")
      ->required();
  return text;
}
template <class Action>
int with_servers(const std::string& text, Action action) {
  const auto servers = parse_servers(text);
  if (!servers) {
    complain("'" + text + "' names no servers (" + servers.error().message() +
             "): give HOST:PORT[,HOST:PORT...] or a file with such a list");
    return kExitUsage;
  }
  return action(*servers);
}

}  // namespace

void add_status(CLI::App& app, Context& context) {
  CLI::App* verb = app.add_subcommand(
      "status", "The cluster's health: exit code 0 OK, 1 WARN, 2 ERR, 3 unreachable");
  const auto servers = add_servers(verb);
  auto as_json = std::make_shared<bool>(false);
  auto no_digest = std::make_shared<bool>(false);
  verb->add_flag("--json", *as_json, "For programs");
  verb->add_flag("--no-digest", *no_digest,
                 "Do not compare the nodes' states, which reads all metadata on every node");
  verb->callback([=, &context] {
    context.exit_code = with_servers(
        *servers, [&](const auto& list) { return status(list, *as_json, !*no_digest); });
  });
}

void add_digest(CLI::App& app, Context& context) {
  CLI::App* verb = app.add_subcommand(
      "digest", "Digest of every node's whole state at one log index: all must be equal");
  const auto servers = add_servers(verb);
  auto as_json = std::make_shared<bool>(false);
  verb->add_flag("--json", *as_json, "For programs");
  verb->callback([=, &context] {
    context.exit_code =
        with_servers(*servers, [&](const auto& list) { return digest(list, *as_json); });
  });
}

void add_primary(CLI::App& app, Context& context) {
  CLI::App* primary = app.add_subcommand("primary", "The primary's role");
  primary->require_subcommand(1);
  CLI::App* verb = primary->add_subcommand(
      "transfer", "Hand the role to another node, without a pause to speak of");
  const auto servers = add_servers(verb);
  auto to = std::make_shared<std::uint32_t>(0);
  verb->add_option("--to", *to, "Node id; default: the one that is furthest");
  verb->callback([=, &context] {
    context.exit_code =
        with_servers(*servers, [&](const auto& list) { return transfer(list, *to); });
  });
}

void add_session(CLI::App& app, Context& context) {
  CLI::App* session = app.add_subcommand("session", "The mounts that the cluster knows");
  session->require_subcommand(1);
  CLI::App* verb = session->add_subcommand("ls", "List them");
  const auto servers = add_servers(verb);
  auto as_json = std::make_shared<bool>(false);
  verb->add_flag("--json", *as_json, "For programs");
  verb->callback([=, &context] {
    context.exit_code =
        with_servers(*servers, [&](const auto& list) { return sessions(list, *as_json); });
  });
}

}  // namespace fermata::ctl
