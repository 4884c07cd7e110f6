// node.toml: whose data directory this is. Written once, by --init; everything else is refused if
// it does not fit.
//
// Blocking; for main.cc.
#pragma once

#include <string>
#include <vector>

#include "common/base/result.h"
#include "common/env/disk.h"
#include "common/wire/raft.h"

namespace fermata::serverd {

struct NodeFile {
  static constexpr int kFormat = 1;
  ClusterId cluster;
  NodeId node;
  bool rejoining = false;     ///< --init found that this node had lost an earlier directory
  std::vector<Member> peers;  ///< of the cluster's first start; later the log knows the members
};

/// ENOENT if there is none; kVersionMismatch; kBadMessage. `why` is then a sentence for the
/// operator.
Result<NodeFile> read_node_file(Disk& disk, const std::string& data_dir, std::string& why);
Status write_node_file(Disk& disk, const std::string& data_dir, const NodeFile& file);

/// 32 hexadecimal digits.
Result<ClusterId> parse_cluster_id(const std::string& text);
/// "1=HOST:PORT,2=HOST:PORT": each id once. EINVAL.
Result<std::vector<Member>> parse_peers(const std::string& text);
std::string format_peers(const std::vector<Member>& peers);

}  // namespace fermata::serverd
