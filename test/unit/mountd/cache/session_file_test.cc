#include "mountd/cache/session_file.h"

#include <catch2/catch_test_macros.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>

using namespace fermata;
using namespace fermata::mountd;

TEST_CASE("session file: what was saved is found, in the same directory only", "[cache]") {
  char name[] = "/tmp/fermata_session_XXXXXX";
  REQUIRE(mkdtemp(name) != nullptr);
  const std::string root = name, here = root + "/here", copy = root + "/copy";
  std::filesystem::create_directory(here);
  std::filesystem::create_directory(copy);
  const SessionFile file(here);
  CHECK_FALSE(file.former());
  const SessionFile::Mark mark{SessionId(7), Epoch(3)};
  REQUIRE(file.save({SessionId(6), Epoch(1)}).has_value());
  REQUIRE(file.save(mark).has_value());
  REQUIRE(SessionFile(here).former());
  CHECK((*SessionFile(here).former() == mark));
  std::filesystem::copy_file(here + "/session", copy + "/session");
  CHECK_FALSE(SessionFile(copy).former());
  const auto size = std::filesystem::file_size(here + "/session");
  for (std::uintmax_t at = 0; at < size; at += 5) {
    std::fstream damaged(here + "/session", std::ios::in | std::ios::out | std::ios::binary);
    damaged.seekg(static_cast<std::streamoff>(at));
    const char byte = static_cast<char>(damaged.get());
    damaged.seekp(static_cast<std::streamoff>(at));
    damaged.put(static_cast<char>(byte ^ 0x10));
    damaged.close();
    CAPTURE(at);
    CHECK_FALSE(file.former());
    REQUIRE(file.save(mark).has_value());
  }
  std::filesystem::resize_file(here + "/session", size - 1);
  CHECK_FALSE(file.former());
  std::filesystem::remove_all(root);
}
