// What the programs of the group's members can apply.
//
// A command that a member does not know stops it, and a field that it does not know it skips: it
// would apply another command than the others. So what is new (a command level, common/wire/
// commands.h) is proposed only when every member has said that it knows it (NodeStatus), learners
// too. What a member has said holds for this process' life, until it says otherwise: one that is
// down for a while does not take it back.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>

#include "common/base/ids.h"

namespace fermata::serverd {

class CommandLevels {
 public:
  void heard(NodeId member, std::uint32_t level) { levels_[member] = level; }
  /// Each of `others` has answered, and knows the commands of `level`.
  bool all_know(std::span<const NodeId> others, std::uint32_t level) const {
    return std::ranges::all_of(others, [&](NodeId member) {
      const auto found = levels_.find(member);
      return found != levels_.end() && found->second >= level;
    });
  }

 private:
  std::map<NodeId, std::uint32_t> levels_;
};

}  // namespace fermata::serverd
