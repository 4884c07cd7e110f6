// fermata: one command to start, mount, watch and administer.
#include <spdlog/sinks/stdout_color_sinks.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "common/cli/cli.h"
#include "ctl/commands.h"

namespace fermata::ctl {

void complain(const std::string& message) {
  std::fprintf(stderr, "fermata: %s\n", message.c_str());
}

namespace {

int run(int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_color_mt("fermata"));
  spdlog::set_level(spdlog::level::warn);
  Context context;
  std::error_code error;
  context.bin_dir = std::filesystem::read_symlink("/proc/self/exe", error).parent_path().string();

  CLI::App app{
      "Fermata: a distributed filesystem that you mount as a directory.\n"
      "Start with: fermata mini start --dir /tmp/fm --mount /tmp/fm/mnt"};
  app.name("fermata");
  app.set_version_flag("--version", std::string("fermata ") + FERMATA_VERSION);
  app.require_subcommand(1);
  add_mini(app, context);
  add_mount(app, context);
  add_umount(app, context);
  add_status(app, context);
  add_digest(app, context);
  add_primary(app, context);
  add_session(app, context);
  add_cache(app, context);
  add_quota(app, context);
  if (const auto code = parse_command_line(app, argc, argv, kExitUsage)) return *code;
  return context.exit_code;
}

}  // namespace
}  // namespace fermata::ctl

int main(int argc, char** argv) { return fermata::ctl::run(argc, argv); }
