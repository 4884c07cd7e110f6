// fermata cache: what a mount keeps on its local disk. Asked over the daemon's control socket.
#include <boost/json.hpp>
#include <cstdio>
#include <ctime>
#include <map>

#include "ctl/commands.h"
#include "ctl/daemon_reply.h"
#include "ctl/mounting.h"
#include "ctl/table.h"

namespace fermata::ctl {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

std::string date_of(std::uint64_t wall_ns) {
  if (wall_ns == 0) return "-";
  const auto seconds = static_cast<std::time_t>(wall_ns / 1'000'000'000);
  std::tm local{};
  localtime_r(&seconds, &local);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
  return text;
}

int list(const std::string& mount_point, bool as_json) {
  const auto [reply, exit_code] = ask_daemon(mount_point, {{"verb", "cache-ls"}}, 10s);
  if (!reply) return exit_code;
  if (as_json) {
    std::printf("%s\n", json::serialize(*reply).c_str());
    return kExitOk;
  }
  Table table({"FILE", "INODE", "SIZE", "VERSION", "LAST USE", "STATE"});
  for (const json::object& file : objects_of(*reply, "files")) {
    std::string state;
    for (const char* flag : {"open", "dirty", "conflict"})
      if (text_of(file, flag) == "yes") state += (state.empty() ? "" : ",") + std::string(flag);
    table.add({text_of(file, "path"), text_of(file, "inode"),
               human_bytes(number_of(file, "size_bytes")), text_of(file, "version"),
               date_of(number_of(file, "last_use_ns")), state.empty() ? "clean" : state});
  }
  std::printf("%s", table.text().c_str());
  for (const json::object& file : objects_of(*reply, "files"))
    if (text_of(file, "conflict") == "yes")
      std::printf("conflict: %s: what was written here is in %s\n", text_of(file, "path").c_str(),
                  text_of(file, "bytes_at").c_str());
  return kExitOk;
}

int stat(const std::string& mount_point, bool as_json) {
  const auto [reply, exit_code] = ask_daemon(mount_point, {{"verb", "cache-stat"}}, 10s);
  if (!reply) return exit_code;
  if (as_json) {
    std::printf("%s\n", json::serialize(*reply).c_str());
    return kExitOk;
  }
  // What the names do not say.
  static const std::map<std::string, const char*> meanings = {
      {"files", "copies on the local disk"},
      {"bytes", "that they take there"},
      {"hits", "opens that found their version here"},
      {"misses", "opens that had to fetch it"},
      {"evictions", "copies dropped to make room"},
      {"dirty_files", "open for writing, or not committed yet"},
      {"conflict_files", "local changes that were refused: kept here"},
      {"lost_found", "damaged files of the cache set aside at the start"},
      {"open_files", "by programs, through this mount"},
      {"inodes_known", "whose attributes are held in memory"},
      {"entries_known", "names held in memory"},
      {"nodes", "inodes and versions that the kernel knows"},
      {"passthrough", "reads and writes of open files bypass the daemon"},
      {"rpc_total", "requests to the cluster so far (--json: by kind)"}};
  Table table({"WHAT", "VALUE", "MEANING"});
  for (const auto& field : *reply) {
    if (field.value().is_object() || field.value().is_array()) continue;
    const std::string name = field.key();
    const bool bytes = name.find("bytes") != std::string::npos && field.value().is_number();
    const auto meaning = meanings.find(name);
    table.add({name,
               bytes ? human_bytes(number_of(*reply, name.c_str())) : text_of(*reply, name.c_str()),
               meaning == meanings.end() ? "" : meaning->second});
  }
  std::printf("%s", table.text().c_str());
  return kExitOk;
}

int flush(const std::string& mount_point, bool as_json) {
  const auto [reply, exit_code] = ask_daemon(mount_point, {{"verb", "cache-flush"}}, 10min);
  if (!reply) return exit_code;
  if (as_json)
    std::printf("%s\n", json::serialize(*reply).c_str());
  else
    std::printf("%s files committed, %s files dropped from the cache\n",
                text_of(*reply, "committed").c_str(), text_of(*reply, "dropped").c_str());
  const bool left = complain_left(*reply, "by the next close, fsync or `fermata cache flush`");
  return left ? kExitError : kExitOk;
}

int drop(const std::string& mount_point, const std::string& bytes_at) {
  const auto [reply, exit_code] =
      ask_daemon(mount_point, {{"verb", "cache-drop"}, {"bytes_at", bytes_at}}, 10s, bytes_at);
  return exit_code;
}

}  // namespace

void add_cache(CLI::App& app, Context& context) {
  CLI::App* cache = app.add_subcommand("cache", "What a mount keeps on its local disk");
  cache->require_subcommand(1);
  struct Verb {
    const char* name;
    const char* text;
    int (*action)(const std::string&, bool);
  };
  for (const Verb& verb :
       {Verb{"ls", "List the files: size, version, last use, dirty or not", list},
        Verb{"stat", "Counts and bytes, hits, RPCs made", stat},
        Verb{"flush", "Commit what is dirty and drop every file that is not open", flush}}) {
    CLI::App* sub = cache->add_subcommand(verb.name, verb.text);
    auto target = std::make_shared<std::string>();
    auto as_json = std::make_shared<bool>(false);
    sub->add_option("mount-point", *target, "A mounted directory")->required();
    sub->add_flag("--json", *as_json, "For programs");
    sub->callback(
        [=, &context, action = verb.action] { context.exit_code = action(*target, *as_json); });
  }
  CLI::App* forget =
      cache->add_subcommand("drop", "Forget a conflict: its bytes are removed for good");
  auto target = std::make_shared<std::string>();
  auto bytes_at = std::make_shared<std::string>();
  forget->add_option("mount-point", *target, "A mounted directory")->required();
  forget->add_option("bytes-at", *bytes_at, "Where `fermata cache ls` says that they are")
      ->required();
  forget->callback([=, &context] { context.exit_code = drop(*target, *bytes_at); });
}

}  // namespace fermata::ctl
