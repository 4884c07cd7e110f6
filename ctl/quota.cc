// fermata quota: what a directory's tree, or a user's files, may take. Asked over the control
// socket of a mount; the nodes let only root set one.
#include <sys/stat.h>

#include <boost/json.hpp>
#include <cstdio>
#include <filesystem>
#include <optional>

#include "ctl/commands.h"
#include "ctl/daemon_reply.h"
#include "ctl/mounting.h"
#include "ctl/table.h"

namespace fermata::ctl {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;
using namespace std::chrono_literals;

/// A path on a mount.
struct Place {
  std::string path;         // absolute, without symlinks
  std::string mount_point;  // that it is below
  struct stat status {};
};

std::optional<Place> find_place(const std::string& path) {
  Place place;
  std::error_code error;
  place.path = fs::canonical(path, error).string();
  if (error || ::stat(place.path.c_str(), &place.status) != 0) {
    complain(path + ": " + (error ? error : last_errno()).message());
    return {};
  }
  for (fs::path at = place.path;; at = at.parent_path()) {
    struct stat above {};
    // Another filesystem may be mounted on a directory of the mount.
    if (::stat(at.c_str(), &above) != 0 || above.st_dev != place.status.st_dev) break;
    if (cache_dir_of(at.string())) {
      place.mount_point = at.string();
      return place;
    }
    if (at == at.parent_path()) break;
  }
  complain(path + " is on no mount of Fermata");
  return {};
}

constexpr auto kPatience = 35s;

struct Flags {
  std::string path;
  std::optional<std::uint32_t> user;
  std::optional<std::uint64_t> bytes, inodes;
  bool as_json = false;
};

int change(const Flags& flags, const char* verb) {
  const auto place = find_place(flags.path);
  if (!place) return kExitError;
  json::object request{{"verb", verb}};
  if (flags.user) {
    request["user"] = *flags.user;
  } else if (!S_ISDIR(place->status.st_mode)) {
    complain(flags.path + " is no directory: a quota is a directory's, or (--uid) a user's");
    return kExitError;
  } else {
    request["inode"] = place->status.st_ino;
  }
  if (flags.bytes) request["bytes"] = *flags.bytes;
  if (flags.inodes) request["inodes"] = *flags.inodes;
  return ask_daemon(place->mount_point, request, kPatience, place->path).exit_code;
}

int set(const Flags& flags) {
  if (flags.bytes || flags.inodes) return change(flags, "quota-set");
  complain("say what the limit is: --bytes SIZE, --inodes N, or both");
  return kExitUsage;
}
int remove(const Flags& flags) { return change(flags, "quota-rm"); }

std::string name_of(const json::object& quota, const Place& place) {
  if (text_of(quota, "kind") == "user") return "user " + std::to_string(number_of(quota, "user"));
  const std::string path = text_of(quota, "path");
  if (!path.starts_with('/')) return "inode " + std::to_string(number_of(quota, "inode"));
  return path == "/" ? place.mount_point : place.mount_point + path;
}

int show(const Flags& flags, const Place& place, const json::object& request) {
  const auto [reply, exit_code] = ask_daemon(place.mount_point, request, kPatience, place.path);
  if (!reply) return exit_code;
  if (flags.as_json) {
    std::printf("%s\n", json::serialize(*reply).c_str());
    return kExitOk;
  }
  Table table({"QUOTA", "BYTES", "LIMIT", "INODES", "LIMIT", "STATE"});
  for (const json::object& quota : objects_of(*reply, "quotas")) {
    const std::uint64_t bytes_max = number_of(quota, "bytes_max");
    const std::uint64_t inodes_max = number_of(quota, "inodes_max");
    table.add({name_of(quota, place), human_bytes(number_of(quota, "bytes")),
               bytes_max == 0 ? "-" : human_bytes(bytes_max),
               std::to_string(number_of(quota, "inodes")),
               inodes_max == 0 ? "-" : std::to_string(inodes_max), text_of(quota, "state")});
  }
  std::printf("%s", table.text().c_str());
  return kExitOk;
}

int list(const Flags& flags) {
  const auto place = find_place(flags.path);
  if (!place) return kExitError;
  return show(flags, *place, json::object{{"verb", "quota-ls"}});
}

int get(const Flags& flags) {
  const auto place = find_place(flags.path);
  if (!place) return kExitError;
  return show(flags, *place, json::object{{"verb", "quota-get"}, {"inode", place->status.st_ino}});
}

}  // namespace

void add_quota(CLI::App& app, Context& context) {
  CLI::App* quota =
      app.add_subcommand("quota", "What directories' trees and users' files may take");
  quota->require_subcommand(1);
  struct Verb {
    const char* name;
    const char* text;
    int (*action)(const Flags&);
    bool limits, user, lists;
  };
  for (const Verb& verb :
       {Verb{"set", "Limit the tree below a directory, or a user's files", set, true, true, false},
        Verb{"get", "Show the quotas that count a file or directory", get, false, false, true},
        Verb{"ls", "List all quotas of the volume", list, false, false, true},
        Verb{"rm", "Remove a quota", remove, false, true, false}}) {
    CLI::App* sub = quota->add_subcommand(verb.name, verb.text);
    auto flags = std::make_shared<Flags>();
    sub->add_option("path", flags->path, "A path on a mount")->required();
    if (verb.limits) {
      CLI::Validator size = CLI::AsSizeValue(false);
      size.description("");  // the text says it
      sub->add_option("--bytes", flags->bytes,
                      "Of disk space, as du counts it; K, M, G, T are powers of 1024; 0: no limit")
          ->transform(size)
          ->type_name("SIZE");
      sub->add_option("--inodes", flags->inodes, "Files, directories and the like; 0: no limit");
    }
    if (verb.user)
      sub->add_option("--uid", flags->user,
                      "Of this user's files, wherever they are on the volume, and not of a tree");
    if (verb.lists) sub->add_flag("--json", flags->as_json, "For programs");
    sub->callback([=, &context, action = verb.action] { context.exit_code = action(*flags); });
  }
}

}  // namespace fermata::ctl
