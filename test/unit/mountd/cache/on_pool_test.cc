#include "mountd/cache/on_pool.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <filesystem>

#include "common/env/real_env.h"
#include "mountd/cache/cache_store.h"
#include "test/support/print.h"

namespace fermata::mountd {
namespace {

boost::asio::awaitable<void> scan_once(Env& env, CachePin copy, Result<ChangeScan>& out) {
  out = co_await on_pool<ChangeScan>(env, copy, &CachedCopy::changed_blocks);
}

TEST_CASE("on_pool: runs a method of a pinned copy on the pool", "[mountd][cache]") {
  std::string dir = (std::filesystem::temp_directory_path() / "fermata_cache_XXXXXX").string();
  REQUIRE(::mkdtemp(dir.data()) != nullptr);
  Result<ChangeScan> scan;
  {
    boost::asio::io_context context;
    RealEnv env(context.get_executor(), 1);
    CacheOptions options;
    options.dir = dir;
    auto store = CacheStore::open(options);
    REQUIRE(store);
    auto copy = (*store)->create(InodeId(1), Version(1), CachedCopy::Writes::kTracked, 0, "f");
    REQUIRE(copy);
    REQUIRE((*copy)->write_at(0, as_bytes("abc")));
    boost::asio::co_spawn(context, scan_once(env, *copy, scan), [](std::exception_ptr) {});
    context.run();
  }
  REQUIRE(scan);
  CHECK(scan->changed == std::vector<std::uint64_t>{0});
  std::filesystem::remove_all(dir);
}

}  // namespace
}  // namespace fermata::mountd
