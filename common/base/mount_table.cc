#include "common/base/mount_table.h"

#include <sys/sysmacros.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace fermata {
namespace {

/// Space, tab, newline and backslash are written as \ooo.
std::string unescape(const std::string& text) {
  const auto digit = [&](std::size_t at) { return static_cast<unsigned>(text[at] - '0'); };
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      out += static_cast<char>(digit(i + 1) * 64 + digit(i + 2) * 8 + digit(i + 3));
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace

std::optional<MountInfo> parse_mountinfo(const std::string& line) {
  // id parent major:minor root mount_point options [optional...] - type source super_options
  std::istringstream in(line);
  std::string id, parent, device, root, point, options, word;
  if (!(in >> id >> parent >> device >> root >> point >> options)) return std::nullopt;
  while (in >> word && word != "-") {
  }
  MountInfo info;
  std::string source;
  if (!(in >> info.type >> source)) return std::nullopt;
  const auto colon = device.find(':');
  if (colon == std::string::npos) return std::nullopt;
  info.device_number =
      makedev(static_cast<unsigned>(std::strtoul(device.c_str(), nullptr, 10)),
              static_cast<unsigned>(std::strtoul(device.c_str() + colon + 1, nullptr, 10)));
  info.mount_point = unescape(point);
  info.source = unescape(source);
  return info;
}

std::vector<MountInfo> mount_table() {
  std::ifstream in("/proc/self/mountinfo");
  std::vector<MountInfo> found;
  for (std::string line; std::getline(in, line);) {
    if (auto info = parse_mountinfo(line)) found.push_back(std::move(*info));
  }
  return found;
}

}  // namespace fermata
