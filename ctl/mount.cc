// fermata mount, fermata umount.
#include <boost/json.hpp>
#include <cstdio>
#include <filesystem>

#include "ctl/commands.h"
#include "ctl/daemon_reply.h"
#include "ctl/mounting.h"
#include "ctl/node_client.h"
#include "ctl/process.h"

namespace fermata::ctl {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

int mount(const Context& context, const std::string& source, MountRequest request) {
  const auto servers = parse_servers(source);
  if (!servers) {
    complain("'" + source + "' names no servers (" + servers.error().message() +
             "): give HOST:PORT[,HOST:PORT...]:/ or a file with such a list");
    return kExitUsage;
  }
  request.servers = *servers;
  if (const std::size_t path = source.find(":/"); path != std::string::npos && source[0] != '/')
    request.path = source.substr(path + 1);
  request.mount_point = std::filesystem::absolute(request.mount_point).lexically_normal().string();
  const int code = mount_in_background(context, request);
  if (code == kExitOk && !request.foreground)
    std::printf("mounted on %s\n", request.mount_point.c_str());
  return code;
}

/// Asks the daemon to commit everything; false (with a message) if something could not be
/// committed.
bool flush(const std::string& mount_point) {
  const auto [reply, exit_code] = ask_daemon(mount_point, {{"verb", "commit-all"}}, 10min);
  if (!reply) return false;
  // Older conflicts are said when the mount has ended.
  if (number_of(*reply, "uncommitted") == 0 && number_of(*reply, "refused") == 0) return true;
  return !complain_left(*reply, "by the next close, fsync or `fermata cache flush`");
}

int umount(const std::string& mount_point, bool flush_first, bool force) {
  const std::string target = std::filesystem::absolute(mount_point).lexically_normal().string();
  if (!is_fermata_mount(target)) {
    complain(target + " is no Fermata mount");
    return kExitMountFailed;
  }
  // A program that has just been killed may still be closing its files.
  if (!force && !wait_until(3s, [&] { return !in_use(target); })) {
    complain(
        target + " is in use (fuser -vm " + target +
        " says by whom). --force takes it away from them: what they write then is not committed");
    return kExitMountFailed;
  }
  if (flush_first && !flush(target)) return kExitError;
  const auto cache = cache_dir_of(target);
  if (!cache) {
    // The daemon is gone: what is left is a dead mount.
    return detach(target) ? kExitOk : kExitMountFailed;
  }
  const auto left = end_mount(target, force ? 2s : 60s);
  if (left) return complain_left_in(*cache, *left) ? kExitError : kExitOk;
  if (!is_fermata_mount(target)) {
    complain_ended(target, *cache);
    return kExitError;
  }
  if (!force) {
    complain("the daemon of " + target + " did not end: " + left.error().message() +
             ". --force takes the mount away; what is dirty stays in the cache and is committed at "
             "the next mount");
    return kExitMountFailed;
  }
  return detach(target) ? kExitOk : kExitMountFailed;
}

}  // namespace

void add_mount(CLI::App& app, Context& context) {
  CLI::App* verb = app.add_subcommand("mount", "Mount the tree; returns when it answers");
  auto source = std::make_shared<std::string>();
  auto request = std::make_shared<MountRequest>();
  verb->add_option("source", *source,
                   "HOST:PORT[,HOST:PORT...]:/ or a file with the list (DIR/servers of `mini`)")
      ->required();
  verb->add_option("mount-point", request->mount_point, "Directory; made if it is missing")
      ->required();
  verb->add_option("-o", request->options,
                   "Mount options: ro, noatime, nopassthrough, soft, ... (fermata-mountd --help)")
      ->delimiter(',');
  verb->add_option("--cache-dir", request->cache_dir, "Where copies of open and recent files lie");
  verb->add_option("--pidfile", request->pidfile, "Default: mountd.pid in the cache directory");
  verb->add_option("--log", request->log, "Default: mountd.log in the cache directory");
  verb->add_flag("-f,--foreground", request->foreground,
                 "Stay in the foreground, log to the terminal");
  verb->callback(
      [source, request, &context] { context.exit_code = mount(context, *source, *request); });
}

void add_umount(CLI::App& app, Context& context) {
  CLI::App* verb = app.add_subcommand("umount", "Commit what is dirty and unmount");
  auto target = std::make_shared<std::string>();
  auto flush_first = std::make_shared<bool>(false);
  auto force = std::make_shared<bool>(false);
  verb->add_option("mount-point", *target, "A mounted directory")->required();
  verb->add_flag("--flush", *flush_first, "Refuse to unmount unless everything could be committed");
  verb->add_flag("--force", *force, "Do not wait for servers or users of the mount");
  verb->callback([=, &context] { context.exit_code = umount(*target, *flush_first, *force); });
}

}  // namespace fermata::ctl
