// One suite for both disks, then what only the simulated one does.
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <cerrno>
#include <cstdlib>
#include <set>

#include "common/env/real_env.h"
#include "common/env/sim_disk.h"

using namespace fermata;

namespace {

struct OnRealDisk {
  OnRealDisk() {
    char name[] = "/tmp/fermata_disk_XXXXXX";
    root = ::mkdtemp(name);
  }
  ~OnRealDisk() { (void)disk.remove_all(root); }
  RealDisk disk;
  std::string root;
};
struct OnSimDisk {
  OnSimDisk() : disk(1) { (void)disk.make_dirs(root); }
  SimDisk disk;
  std::string root = "/sim";
};

std::string text_of(Disk& disk, const std::string& path) {
  const auto bytes = read_file(disk, path, 1 << 20);
  return bytes ? std::string(as_text(*bytes)) : "error: " + bytes.error().message();
}

std::unique_ptr<File> put(Disk& disk, const std::string& path, std::string_view text) {
  auto file = disk.open(path, Disk::Mode::kCreate);
  REQUIRE(file);
  REQUIRE((*file)->write_at(0, as_bytes(text)));
  return std::move(*file);
}

}  // namespace

TEMPLATE_TEST_CASE("Disk: files and directories behave as POSIX says", "[env][disk]", OnRealDisk,
                   OnSimDisk) {
  TestType world;
  Disk& disk = world.disk;
  const std::string at = world.root + "/a/b";
  REQUIRE(disk.make_dirs(at));
  REQUIRE(disk.make_dirs(at));
  CHECK(disk.open(at + "/none", Disk::Mode::kRead).error() == std::errc::no_such_file_or_directory);
  {
    const auto file = put(disk, at + "/f", "hello");
    CHECK(*file->size_bytes() == 5);
    REQUIRE(file->write_at(8, as_bytes("!")));
    Bytes out(20);
    CHECK(*file->read_at(0, out) == 9);
    CHECK(as_text(out).substr(0, 9) == std::string_view("hello\0\0\0!", 9));
    REQUIRE(file->truncate(3));
    REQUIRE(file->sync());
    CHECK(*file->read_at(5, out) == 0);
  }
  CHECK(disk.open(at + "/f", Disk::Mode::kCreateNew).error() == std::errc::file_exists);
  CHECK(disk.open(at, Disk::Mode::kReadWrite).error() == std::errc::is_a_directory);
  REQUIRE(disk.rename(at + "/f", world.root + "/g"));
  REQUIRE(disk.sync_dir(at));
  REQUIRE(disk.sync_dir(world.root));
  CHECK(text_of(disk, world.root + "/g") == "hel");
  CHECK(*disk.exists(world.root + "/g"));
  CHECK_FALSE(*disk.exists(at + "/f"));
  CHECK(*disk.list(world.root) == std::vector<std::string>{"a", "g"});
  CHECK(disk.remove(world.root + "/a").error() == std::errc::directory_not_empty);
  REQUIRE(disk.remove_all(world.root + "/a"));
  REQUIRE(disk.remove_all(world.root + "/a"));
  REQUIRE(disk.remove(world.root + "/g"));
  CHECK(disk.remove(world.root + "/g").error() == std::errc::no_such_file_or_directory);
  CHECK(disk.list(world.root)->empty());
  REQUIRE(write_file_atomically(disk, world.root + "/w", as_bytes("one")));
  REQUIRE(write_file_atomically(disk, world.root + "/w", as_bytes("2")));
  CHECK(text_of(disk, world.root + "/w") == "2");
  CHECK(*disk.list(world.root) == std::vector<std::string>{"w"});
  CHECK(read_file(disk, world.root + "/w", 0).error() == Errc::kTooLarge);
  CHECK(disk.space(world.root)->total_bytes >= disk.space(world.root)->free_bytes);
}

TEST_CASE("Disk: parent_of", "[env][disk]") {
  CHECK(parent_of("a") == ".");
  CHECK(parent_of("/a") == "/");
  CHECK(parent_of("/a/b/c") == "/a/b");
}

TEST_CASE("SimDisk: a power cut keeps what was synced and may lose the rest", "[env][disk]") {
  std::set<std::string> seen;
  bool entry_lost = false;
  bool entry_kept = false;
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    SimDisk disk(seed);
    SeededRandom random(seed);
    REQUIRE(disk.make_dirs("/d"));
    REQUIRE(disk.sync_dir("/"));
    const auto file = put(disk, "/d/f", "durable");
    REQUIRE(file->sync());
    REQUIRE(disk.sync_dir("/d"));
    REQUIRE(file->write_at(7, as_bytes("PENDING")));
    const auto unnamed = put(disk, "/d/g", "x");
    REQUIRE(unnamed->sync());  // the data is durable, the name is not
    disk.power_cut(random);
    CHECK(file->sync().error() == std::errc::io_error);
    const std::string text = text_of(disk, "/d/f");
    REQUIRE(text.starts_with("durable"));
    seen.insert(text);
    (*disk.exists("/d/g") ? entry_kept : entry_lost) = true;
    if (*disk.exists("/d/g")) CHECK(text_of(disk, "/d/g") == "x");
  }
  CHECK(seen.contains("durable"));
  CHECK(seen.contains("durablePENDING"));
  CHECK(seen.contains("durablePEN"));
  CHECK(seen.contains(std::string("durable\0\0\0\0\0\0\0", 14)));
  CHECK(entry_lost);
  CHECK(entry_kept);
}

TEST_CASE("SimDisk: an atomic write is whole, old or new, whatever operation the power is cut at",
          "[env][disk]") {
  int cuts = 0;
  for (const auto fault :
       {SimDisk::Fault::kPowerCutBefore, SimDisk::Fault::kPowerCutAfter, SimDisk::Fault::kEio,
        SimDisk::Fault::kEnospc, SimDisk::Fault::kShortWrite}) {
    for (std::uint64_t k = 0; k < 12; ++k) {
      for (std::uint64_t seed = 0; seed < 20; ++seed) {
        SimDisk disk(seed);
        REQUIRE(write_file_atomically(disk, "/f", as_bytes("the old text")));
        bool called = false;
        disk.on_power_off([&] { called = true; });
        disk.fail_at(disk.operations() + k, fault);
        const Status status = write_file_atomically(disk, "/f", as_bytes("new"));
        CHECK(called == disk.is_off());
        cuts += called;
        SeededRandom random(seed);
        disk.power_cut(random);
        const std::string text = text_of(disk, "/f");
        if (status) {
          CHECK(text == "new");
        } else {
          CHECK((text == "new" || text == "the old text"));
        }
      }
    }
  }
  CHECK(cuts > 0);
}

TEST_CASE("SimDisk: a failed sync loses the data though it can still be read", "[env][disk]") {
  SimDisk disk(1);
  const auto file = put(disk, "/f", "lost");
  REQUIRE(disk.sync_dir("/"));
  disk.fail_at(disk.operations(), SimDisk::Fault::kEio);
  CHECK(file->sync().error() == std::errc::io_error);
  CHECK(file->sync());  // the second one has nothing to do
  CHECK(text_of(disk, "/f") == "lost");
  SeededRandom random(1);
  disk.power_cut(random);
  CHECK(text_of(disk, "/f").empty());
}

TEST_CASE("SimDisk: capacity, short writes, corruption, killed processes", "[env][disk]") {
  SimDisk disk(1);
  const auto file = put(disk, "/f", "12345678");
  disk.set_capacity(10);
  CHECK(file->write_at(8, as_bytes("abc")).error() == std::errc::no_space_on_device);
  CHECK(file->write_at(8, as_bytes("ab")));
  CHECK(disk.space("/")->free_bytes == 0);
  CHECK(disk.remove("/f"));
  CHECK(disk.space("/")->free_bytes == 0);  // still open
  const auto other = disk.open("/g", Disk::Mode::kCreate);
  disk.set_capacity(100);
  disk.fail_at(disk.operations(), SimDisk::Fault::kShortWrite);
  CHECK((*other)->write_at(0, as_bytes("abcdef")).error() == std::errc::no_space_on_device);
  CHECK(text_of(disk, "/g") == "abc");
  CHECK(disk.corrupt("/g", 1, 0x01));
  CHECK_FALSE(disk.corrupt("/g", 3, 0x01));
  CHECK(text_of(disk, "/g") == "acc");
  disk.close_all();
  CHECK((*other)->write_at(0, as_bytes("x")).error() == std::errc::io_error);
  CHECK(text_of(disk, "/g") == "acc");
}
