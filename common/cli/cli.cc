#include "common/cli/cli.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>

namespace fermata {
namespace {

bool complain(const CLI::App& app, const std::string& message) {
  const std::string program = std::filesystem::path(app.get_name()).filename().string();
  std::fprintf(stderr, "%s: %s\n", program.c_str(), message.c_str());
  return true;
}

/// `fermata cache foo`: what there is instead. False: it is not that.
bool names_no_verb(const CLI::App& app, int argc, char** argv) {
  const CLI::App* at = &app;
  std::string command = app.get_name();
  while (!at->get_subcommands().empty()) {
    at = at->get_subcommands().front();
    command += " " + at->get_name();
  }
  const auto verbs = at->get_subcommands([](const CLI::App*) { return true; });
  const auto unknown = app.remaining(true);
  const auto first = std::find_if(argv + 1, argv + argc, [&](const char* argument) {
    return argument[0] != '-' && std::ranges::count(unknown, argument) != 0;
  });
  if (verbs.empty() || first == argv + argc) return false;
  std::string known;
  for (const CLI::App* verb : verbs) known += (known.empty() ? "" : ", ") + verb->get_name();
  return complain(app, "`" + command + "` has no verb '" + *first + "'; it has: " + known);
}

/// A key of the configuration file that is no option: where it stands.
bool names_no_option(const CLI::App& app, const std::string& what) {
  static const std::string kExtras = "INI was not able to parse ";  // CLI11's word for all formats
  const CLI::Option* config = app.get_config_ptr();
  if (!what.starts_with(kExtras) || config == nullptr) return false;
  const std::string key = what.substr(kExtras.size());
  const auto path = config->as<std::string>();
  std::string place = path;
  std::ifstream file(path);
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    const auto begin = line.find_first_not_of(" \t\"'");
    if (begin == std::string::npos || line.compare(begin, key.size(), key) != 0) continue;
    place += ":" + std::to_string(number);
    break;
  }
  return complain(app, place + ": '" + key + "' is no option (those of --help are, without --)");
}

}  // namespace

std::optional<int> parse_command_line(CLI::App& app, int argc, char** argv, int usage_code) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& error) {
    const auto unknown = app.remaining(true);
    if (unknown.empty())
      app.exit(error);
    else if (!names_no_verb(app, argc, argv))
      app.exit(CLI::ExtrasError(app.get_name(), unknown));
    return usage_code;
  } catch (const CLI::ConfigError& error) {
    if (!names_no_option(app, error.what())) app.exit(error);
    return usage_code;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : usage_code;
  }
  return std::nullopt;
}

}  // namespace fermata
