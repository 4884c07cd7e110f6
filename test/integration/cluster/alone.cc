#include "test/integration/cluster/alone.h"

#include <dirent.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>

#include "test/integration/cluster/files.h"

namespace fermata::test {

namespace json = boost::json;

long happened(MiniCluster& cluster, const std::string& mnt, const char* what) {
  const RunResult result = cluster.fermata("cache stat --json " + mnt);
  const json::value document = json::parse(result.out);
  const auto& counts = document.as_object().at("commits").as_object();
  const auto found = counts.find(what);
  return found == counts.end() ? 0 : found->value().to_number<long>();
}

long made_here(MiniCluster& cluster, const std::string& mnt) {
  return happened(cluster, mnt, "made here");
}

void have_alone(MiniCluster& cluster, const std::string& mnt, const std::string& directory) {
  int number = 0;
  REQUIRE(eventually([&] {
    const long before = made_here(cluster, mnt);
    const std::string name = directory + "/.warm" + std::to_string(number++);
    write_file(name, "x");
    REQUIRE(unlink(name.c_str()) == 0);
    return made_here(cluster, mnt) > before;
  }));
}

std::set<std::string> names_in(const std::string& directory) {
  std::set<std::string> names;
  DIR* dir = opendir(directory.c_str());
  REQUIRE(dir != nullptr);
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.insert(name);
  }
  closedir(dir);
  return names;
}

}  // namespace fermata::test
