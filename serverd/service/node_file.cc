#include "serverd/service/node_file.h"

#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <sstream>

namespace fermata::serverd {

Result<ClusterId> parse_cluster_id(const std::string& text) {
  ClusterId id;
  if (text.size() != 2 * id.bytes.size()) return std::errc::invalid_argument;
  for (std::size_t i = 0; i < id.bytes.size(); ++i) {
    const char* const at = text.data() + 2 * i;
    const auto parsed = std::from_chars(at, at + 2, id.bytes[i], 16);
    if (parsed.ec != std::errc() || parsed.ptr != at + 2) return std::errc::invalid_argument;
  }
  if (!id) return std::errc::invalid_argument;
  return id;
}

Result<std::vector<Member>> parse_peers(const std::string& text) {
  std::vector<Member> peers;
  std::istringstream in(text);
  for (std::string item; std::getline(in, item, ',');) {
    const auto equals = item.find('=');
    if (equals == std::string::npos) return std::errc::invalid_argument;
    std::uint32_t id = 0;
    const auto parsed = std::from_chars(item.data(), item.data() + equals, id);
    const std::string address = item.substr(equals + 1);
    if (parsed.ec != std::errc() || parsed.ptr != item.data() + equals || id == 0 ||
        address.find(':') == std::string::npos) {
      return std::errc::invalid_argument;
    }
    peers.push_back({NodeId(id), address, true});
  }
  std::sort(peers.begin(), peers.end(),
            [](const Member& a, const Member& b) { return a.id < b.id; });
  const auto same = [](const Member& a, const Member& b) { return a.id == b.id; };
  if (peers.empty() || std::adjacent_find(peers.begin(), peers.end(), same) != peers.end()) {
    return std::errc::invalid_argument;
  }
  return peers;
}

std::string format_peers(const std::vector<Member>& peers) {
  std::string text;
  for (const auto& peer : peers) {
    text += (text.empty() ? "" : ",") + std::to_string(peer.id.value()) + "=" + peer.address;
  }
  return text;
}

Result<NodeFile> read_node_file(Disk& disk, const std::string& data_dir, std::string& why) {
  const std::string path = data_dir + "/node.toml";
  auto bytes = read_file(disk, path, 64 << 10);
  if (!bytes) {
    why = bytes.error() == std::errc::no_such_file_or_directory
              ? data_dir + " is not a node's directory (it has no node.toml); --init makes it one"
              : path + ": " + bytes.error().message();
    return bytes.error();
  }
  toml::table table;
  try {
    table = toml::parse(as_text(*bytes));
  } catch (const toml::parse_error& error) {
    why = path + " cannot be read: " + std::string(error.description());
    return Errc::kBadMessage;
  }
  const auto format = table["format"].value<std::int64_t>();
  if (format && *format > NodeFile::kFormat) {
    why = path + " has format " + std::to_string(*format) + ", this program knows " +
          std::to_string(NodeFile::kFormat) + ": use a newer fermata-serverd";
    return Errc::kVersionMismatch;
  }
  const auto cluster = parse_cluster_id(table["cluster"].value_or(std::string()));
  const auto node = table["node"].value_or(std::int64_t{0});
  auto peers = parse_peers(table["peers"].value_or(std::string()));
  if (!format || *format < 1 || !cluster || node < 1 || node > 0xffffffff || !peers) {
    why = path + " is damaged: format, cluster, node or peers is missing or malformed";
    return Errc::kBadMessage;
  }
  return NodeFile{*cluster, NodeId(static_cast<std::uint32_t>(node)),
                  table["rejoining"].value_or(false), std::move(*peers)};
}

Status write_node_file(Disk& disk, const std::string& data_dir, const NodeFile& file) {
  std::ostringstream out;
  out << "# Whose directory this is. Written by fermata-serverd --init; do not edit.\n"
      << "format = " << NodeFile::kFormat << "\n"
      << "cluster = \"" << file.cluster.hex() << "\"\n"
      << "node = " << file.node.value() << "\n"
      << "peers = \"" << format_peers(file.peers) << "\"\n";
  if (file.rejoining) out << "rejoining = true\n";  // counts when the log is made
  return write_file_atomically(disk, data_dir + "/node.toml", as_bytes(out.str()));
}

}  // namespace fermata::serverd
