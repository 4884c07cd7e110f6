#include "common/base/assert.h"

#include <spdlog/spdlog.h>

#include <cstdlib>

namespace fermata {

void assert_failed(const char* condition, const char* file, int line) noexcept {
  spdlog::critical(
      "assertion failed: {} at {}:{}; this is a bug, the process stops so that nothing wrong is "
      "stored",
      condition, file, line);
  spdlog::default_logger_raw()->flush();
  std::abort();
}

}  // namespace fermata
