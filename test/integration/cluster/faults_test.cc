// Bad input and full disks: one clear message, nothing changed, the cluster goes on.
#include <fcntl.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <catch2/catch_test_macros.hpp>

#include "test/integration/cluster/files.h"
#include "test/support/mini_cluster.h"

namespace fermata::test {
namespace {

/// Every file below `dir` with size and checksum: what "changes nothing" compares.
std::string fingerprint(const std::string& dir) {
  return run("cd " + dir +
             " && find . -type f ! -name '*.log' ! -name '*.pid' -exec sha256sum {} + | sort -k2")
      .out;
}

TEST_CASE("faults: wrong flags and directories are refused with a message and change nothing",
          "[faults]") {
  MiniCluster cluster({3, false, {}});
  const std::string server = cluster.bin("fermata-serverd");
  const std::string node1 = cluster.dir() + "/node1";
  const auto refused = [&](const std::string& command, const std::string& says) {
    const RunResult result = run(command, std::chrono::seconds(30));
    CAPTURE(command, result.out, result.exit_code);
    CHECK(result.exit_code != 0);
    CHECK(result.exit_code < 124);  // it ended by itself
    CHECK(result.out.find(says) != std::string::npos);
  };
  refused(
      server +
          " --data-dir /x --listen 127.0.0.1:0 --node-id 1 --peers 1=127.0.0.1:9 --no-such-flag",
      "no-such-flag");
  refused(cluster.bin("fermata") + " mini start --dir /proc/nothing/here", "cannot make");
  refused(cluster.bin("fermata-mountd") +
              " --servers 127.0.0.1:9 --mount-point /nonexistent --cache-dir /nonexistent "
              "--no-such-flag",
          "no-such-flag");
  refused(
      server + " --data-dir /nonexistent --listen 127.0.0.1:0 --node-id 1 --peers 1=127.0.0.1:9",
      "/nonexistent");
  // An options file with a name that is none.
  write_file(cluster.dir() + "/options.toml",
             "data-dir = \"" + node1 + "\"\nlease_ms = 5000\nbackground = true\n");
  refused(server + " --config " + cluster.dir() + "/options.toml", "lease_ms");

  // What fails to mount has mount(8)'s exit code.
  CHECK(cluster
            .fermata("mount " + cluster.servers() + " " + cluster.dir() + "/m --cache-dir " +
                     cluster.dir() + "/cache -o no_such_option")
            .exit_code == 32);
  CHECK(cluster.fermata("umount " + cluster.dir()).exit_code == 32);

  cluster.kill_node(1);
  const std::string before = fingerprint(node1);
  const RunResult list = run("cat " + cluster.servers());
  const std::string first = list.out.substr(0, list.out.find(','));
  const std::string second =
      list.out.substr(first.size() + 1, list.out.find(',', first.size() + 1) - first.size() - 1);
  const std::string peers = " --peers 1=" + first + ",2=" + second + ",3=127.0.0.1:9";
  // Another cluster's directory, another node's, a port in use.
  refused(server + " --data-dir " + node1 + " --listen " + first + " --node-id 1" + peers +
              " --cluster-id 00112233445566778899aabbccddeeff",
          "cluster");
  refused(server + " --data-dir " + node1 + " --listen " + first + " --node-id 2" + peers, "node");
  refused(server + " --data-dir " + node1 + " --listen " + second + " --node-id 1" + peers,
          "in use");
  CHECK(fingerprint(node1) == before);
  // A newer format.
  REQUIRE(run("cp " + node1 + "/node.toml " + node1 +
              "/kept; sed -i 's/^format *= *.*/format = 9999/' " + node1 + "/node.toml; ! cmp -s " +
              node1 + "/kept " + node1 + "/node.toml")
              .exit_code == 0);
  refused(server + " --data-dir " + node1 + " --listen " + first + " --node-id 1" + peers,
          "format");
  REQUIRE(run("mv " + node1 + "/kept " + node1 + "/node.toml").exit_code == 0);
  cluster.restart_node(1);
  CHECK(cluster.digests_equal());
  // A directory that a daemon uses.
  refused(
      server + " --data-dir " + cluster.dir() + "/node2 --listen 127.0.0.1:0 --node-id 2" + peers,
      "");
}

TEST_CASE("faults: garbage on the RPC port closes that connection and harms nobody", "[faults]") {
  FM_NEEDS_MOUNTS();
  MiniCluster cluster;
  write_file(cluster.mnt() + "/f", "x");
  const std::string list = run("cat " + cluster.servers()).out;
  const std::string port = list.substr(list.find(':') + 1, list.find(',') - list.find(':') - 1);
  for (int i = 0; i < 30; ++i) {
    const std::string send = i % 3 == 0   ? "head -c 300 /dev/urandom"
                             : i % 3 == 1 ? "head -c 7 /dev/zero"
                                          : "yes fermata | head -c 100000";
    (void)run("(" + send + ") > /dev/tcp/127.0.0.1/" + port + " || true", std::chrono::seconds(20));
    write_file(cluster.mnt() + "/f" + std::to_string(i), "y");
  }
  // Each of them was counted, by the node that it came to alone. One that ends before it has said
  // enough to be judged is refused.
  const auto counted = [&](std::size_t node) {
    const RunResult status = cluster.fermata("status --json --no-digest " + cluster.servers());
    CAPTURE(status.out);
    REQUIRE(status.exit_code == 0);
    const auto document = boost::json::parse(status.out);
    const auto& line = document.as_object().at("nodes").as_array().at(node).as_object();
    CHECK(line.at("counters").as_object().at("net_malformed") == line.at("malformed"));
    return std::pair(line.at("malformed").to_number<int>(), line.at("refused").to_number<int>());
  };
  CHECK(eventually([&] { return counted(0).first + counted(0).second >= 30; }));
  CHECK(counted(0).first >= 20);
  CHECK(counted(1).first == 0);
  const RunResult text = cluster.fermata("status " + cluster.servers());
  CAPTURE(text.out);
  CHECK(text.exit_code == 0);
  CHECK(text.out.starts_with("HEALTH_OK"));
  CHECK(text.out.find("MALFORMED") != std::string::npos);
}

}  // namespace
}  // namespace fermata::test
