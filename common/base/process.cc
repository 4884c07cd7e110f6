#include "common/base/process.h"

#include <signal.h>

#include <cerrno>
#include <fstream>
#include <sstream>
#include <string>

namespace fermata {

bool is_alive(pid_t pid) {
  if (pid <= 0 || (::kill(pid, 0) != 0 && errno != EPERM)) return false;
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  std::getline(stat, line);
  const std::size_t after_name = line.rfind(')');     // the name may hold spaces and brackets
  if (after_name == std::string::npos) return false;  // gone meanwhile
  std::istringstream fields(line.substr(after_name + 1));
  std::string state, field;
  fields >> state;
  for (int i = 4; i <= 20; ++i) fields >> field;
  return state != "Z" || field != "1";
}

}  // namespace fermata
