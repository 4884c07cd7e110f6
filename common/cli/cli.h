// The command line of every program of Fermata, by CLI11.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>

namespace fermata {

/// Parses the command line into what was added to `app`. None: go on. Otherwise the program is to
/// end with that code: 0 after --help or --version, `usage_code` after a wrong command line, about
/// which one message went to stderr. An argument that nothing knows is named before options that
/// are missing: it is the likelier cause.
std::optional<int> parse_command_line(CLI::App& app, int argc, char** argv, int usage_code);

}  // namespace fermata
