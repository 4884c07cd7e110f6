#include "common/cli/cli.h"

namespace fermata {

std::optional<int> parse_command_line(CLI::App& app, int argc, char** argv, int usage_code) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::RequiredError& error) {
    const auto unknown = app.remaining(true);
    if (unknown.empty())
      app.exit(error);
    else
      app.exit(CLI::ExtrasError(app.get_name(), unknown));
    return usage_code;
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : usage_code;
  }
  return std::nullopt;
}

}  // namespace fermata
