// The verbs of the `fermata` command, one file each. A verb registers itself with its flags; its
// callback leaves an exit code in `exit_code` (docs/OPERATIONS.md has the codes).
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace fermata::ctl {

/// What every verb may need of the command line's head.
struct Context {
  int exit_code = 0;
  std::string bin_dir;  ///< where fermata-serverd and fermata-mountd are: beside this program
};

// Exit codes: sysexits(3) numbers where there is one; `status` has its own (0 OK, 1 WARN, 2 ERR, 3
// unreachable).
inline constexpr int kExitOk = 0;
inline constexpr int kExitError = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitMountFailed = 32;  ///< as mount(8)
inline constexpr int kExitUnavailable = 69;

void add_mini(CLI::App& app, Context& context);
void add_mount(CLI::App& app, Context& context);
void add_umount(CLI::App& app, Context& context);
void add_status(CLI::App& app, Context& context);
void add_digest(CLI::App& app, Context& context);
void add_primary(CLI::App& app, Context& context);
void add_session(CLI::App& app, Context& context);
void add_cache(CLI::App& app, Context& context);
void add_quota(CLI::App& app, Context& context);

/// One line on stderr: "fermata: ...".
void complain(const std::string& message);

}  // namespace fermata::ctl
