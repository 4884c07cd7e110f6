#include "serverd/service/command_levels.h"

#include <catch2/catch_test_macros.hpp>
#include <vector>

namespace fermata::serverd {
namespace {

TEST_CASE("CommandLevels: every member has to say that it knows a command", "[service]") {
  const std::vector<NodeId> others{NodeId(2), NodeId(3)};
  CommandLevels levels;
  CHECK(levels.all_know({}, 1));  // alone
  CHECK_FALSE(levels.all_know(others, 1));
  levels.heard(NodeId(2), 1);
  CHECK_FALSE(levels.all_know(others, 1));
  levels.heard(NodeId(3), 0);  // it is older, and does not know of levels
  CHECK_FALSE(levels.all_know(others, 1));
  levels.heard(NodeId(3), 2);
  CHECK(levels.all_know(others, 1));
  CHECK_FALSE(levels.all_know(others, 2));
  SECTION("one that joins") {
    const std::vector<NodeId> more{NodeId(2), NodeId(3), NodeId(4)};
    CHECK_FALSE(levels.all_know(more, 1));
    levels.heard(NodeId(4), 1);
    CHECK(levels.all_know(more, 1));
  }
  SECTION("one that comes back with an older program") {
    levels.heard(NodeId(2), 0);
    CHECK_FALSE(levels.all_know(others, 1));
  }
}

}  // namespace
}  // namespace fermata::serverd
