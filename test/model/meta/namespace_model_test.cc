// Random operations on the namespace and, the same ones, on a directory of the machine's own file
// system: errno for errno, and at the end entry for entry. After every hundred operations the
// records are checked against each other.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <iostream>

#include "common/env/real_env.h"
#include "serverd/store/rocks_store.h"
#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;
namespace fs = std::filesystem;

namespace {

struct TemporaryDirectory {
  TemporaryDirectory() {
    char name[] = "/tmp/fermata_model_XXXXXX";
    path = ::mkdtemp(name);
  }
  ~TemporaryDirectory() { (void)RealDisk().remove_all(path); }
  std::string path;
};

int errno_of(int result) { return result < 0 ? errno : 0; }

/// A path as both sides go it: components below the root.
using Path = std::vector<std::string>;

class Pair {
 public:
  Pair(Driver& driver, std::string root) : d_(driver), root_(std::move(root)) {}

  /// The directory of a path's last component, as the kernel resolves it; none if that fails.
  struct Place {
    InodeId parent;
    std::string name;
    int error = 0;
  };
  Place resolve(const Path& path) {
    InodeId at = kRootInode;
    for (std::size_t i = 0; i + 1 < path.size(); ++i) {
      const auto entry = d_.ns->lookup(at, path[i]);
      if (!entry) return {{}, {}, to_errno(entry.error())};
      if (!*entry) return {{}, {}, ENOENT};
      at = (*entry)->inode;
    }
    const auto attr = d_.ns->attr(at);
    if (attr->type != FileType::kDirectory) return {{}, {}, ENOTDIR};
    return {at, path.back(), 0};
  }
  InodeId inode_of(const Path& path) {
    const Place place = resolve(path);
    return place.error ? InodeId() : d_.see(place.parent, place.name);
  }
  std::string local(const Path& path) const {
    std::string out = root_;
    for (const auto& part : path) out += "/" + part;
    return out;
  }
  void same(const char* what, const Path& path, int ours, int theirs) {
    INFO(what << " " << local(path));
    CHECK(std::string(std::strerror(ours)) == std::strerror(theirs));
  }
  template <class Op>
  int ours(const Path& path, Op op) {
    const Place place = resolve(path);
    if (place.error) return place.error;
    return to_errno(Driver::code(op(place.parent, place.name)));
  }

  void create(const Path& path) {
    const int fd = ::open(local(path).c_str(), O_CREAT | O_EXCL | O_WRONLY, 0644);
    const int theirs = errno_of(fd);
    if (fd >= 0) ::close(fd);
    same("create", path,
         ours(path, [&](InodeId p, const std::string& n) { return d_.create(p, n); }), theirs);
  }
  void mkdir(const Path& path) {
    const int theirs = errno_of(::mkdir(local(path).c_str(), 0755));
    same("mkdir", path, ours(path, [&](InodeId p, const std::string& n) { return d_.mkdir(p, n); }),
         theirs);
  }
  void unlink(const Path& path) {
    const int theirs = errno_of(::unlink(local(path).c_str()));
    same("unlink", path,
         ours(path, [&](InodeId p, const std::string& n) { return d_.unlink(p, n); }), theirs);
  }
  void rmdir(const Path& path) {
    const int theirs = errno_of(::rmdir(local(path).c_str()));
    same("rmdir", path,
         ours(path,
              [&](InodeId p, const std::string& n) {
                return d_.mutate(RmdirOp{p, n});
              }),
         theirs);
  }
  void link(const Path& from, const Path& to) {
    const int theirs = errno_of(::link(local(from).c_str(), local(to).c_str()));
    const InodeId inode = inode_of(from);
    const Place source = resolve(from), place = resolve(to);
    int mine = source.error ? source.error : inode ? place.error : ENOENT;
    if (!mine) mine = to_errno(Driver::code(d_.mutate(LinkOp{inode, place.parent, place.name})));
    same("link", from, mine, theirs);
  }
  void rename(const Path& from, const Path& to, std::uint32_t flags) {
    const int theirs =
        errno_of(::renameat2(AT_FDCWD, local(from).c_str(), AT_FDCWD, local(to).c_str(), flags));
    const Place source = resolve(from), place = resolve(to);
    const bool mixed = (flags & RENAME_EXCHANGE) != 0 && flags != RENAME_EXCHANGE;
    int mine = mixed ? EINVAL : source.error ? source.error : place.error;
    if (!mine)
      mine = to_errno(
          Driver::code(d_.rename(source.parent, source.name, place.parent, place.name, flags)));
    same(flags == 2 ? "exchange" : "rename", from, mine, theirs);
    INFO("to " << local(to));
    CHECK(mine == theirs);
  }
  void chmod(const Path& path, std::uint32_t mode) {
    const int theirs = errno_of(::chmod(local(path).c_str(), mode));
    same("chmod", path,
         ours(path,
              [&](InodeId p, const std::string& n) {
                SetAttrOp op;
                op.inode = d_.see(p, n);
                op.mode = mode;
                return d_.mutate(op);
              }),
         theirs);
  }

  /// Entries, types, link counts and modes below `directory` are the same.
  void compare(InodeId directory, const fs::path& path) {
    std::map<std::string, InodeId> mine;
    const auto listing = d_.ns->readdir(directory, Cookie(), 10'000);
    REQUIRE(listing);
    for (const auto& entry : listing->entries) mine[entry.name] = entry.inode;
    std::size_t theirs = 0;
    for (const auto& entry : fs::directory_iterator(path)) {
      ++theirs;
      CAPTURE(entry.path().string());
      const auto at = mine.find(entry.path().filename());
      REQUIRE(at != mine.end());
      struct stat status {};
      REQUIRE(::lstat(entry.path().c_str(), &status) == 0);
      const Attr attr = *d_.ns->attr(at->second);
      const bool is_directory = S_ISDIR(status.st_mode);
      CHECK((attr.type == FileType::kDirectory) == is_directory);
      CHECK((attr.type == FileType::kCharDevice) == S_ISCHR(status.st_mode));
      CHECK(attr.mode == (status.st_mode & 07777));
      if (!is_directory) CHECK(attr.nlink == status.st_nlink);
      // Overlay and btrfs do not count subdirectories; the check of the records does.
      if (is_directory) compare(at->second, entry.path());
    }
    CHECK(theirs == mine.size());
  }

 private:
  Driver& d_;
  std::string root_;
};

}  // namespace

TEST_CASE("Namespace: answers as a local file system does", "[model][meta]") {
  ::umask(0);
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    CAPTURE(seed);
    TemporaryDirectory local;
    Memory memory;
    Driver d(*memory.store);
    d.bootstrap();
    Pair pair(d, local.path);
    SeededRandom random(seed);
    const auto path = [&] {
      Path parts(1 + random.below(3));
      for (auto& part : parts) part = std::string(1, static_cast<char>('a' + random.below(4)));
      return parts;
    };
    for (int i = 1; i <= 3000; ++i) {
      CAPTURE(i);
      switch (random.below(12)) {
        case 0:
        case 1:
          pair.create(path());
          break;
        case 2:
        case 3:
        case 4:
          pair.mkdir(path());
          break;
        case 5:
          pair.unlink(path());
          break;
        case 6:
          pair.rmdir(path());
          break;
        case 7:
          pair.link(path(), path());
          break;
        case 8:
        case 9:
          pair.rename(path(), path(), 0);
          break;
        case 10:
          pair.rename(path(), path(), static_cast<std::uint32_t>(random.below(8)));
          break;
        case 11:
          pair.chmod(path(), static_cast<std::uint32_t>(random.below(010000)));
          break;
      }
      if (i % 500 == 0) REQUIRE(d.problems() == std::vector<std::string>{});
    }
    pair.compare(kRootInode, local.path);
    REQUIRE(d.problems() == std::vector<std::string>{});
  }
}

TEST_CASE("Namespace: creates per second on RocksDB", "[model][meta][bench]") {
  constexpr std::size_t kBatch = 64, kCreates = 40'000;
  TemporaryDirectory directory;
  auto store = *RocksStore::open(directory.path + "/meta");
  Driver d(*store);
  d.bootstrap();
  const InodeId parent = d.mkdir(kRootInode, "d").inode;
  std::vector<Namespace::Entry> batch;
  std::size_t made = 0;
  const auto begin = std::chrono::steady_clock::now();
  const std::clock_t cpu_begin = std::clock();
  while (made < kCreates) {
    const LogIndex first = d.ns->applied_index().next();
    batch.clear();
    for (std::size_t i = 0; i < kBatch; ++i, ++made) {
      MutateCommand mutate;
      CreateOp op;
      op.parent = parent;
      op.name = "file-" + std::to_string(made);
      mutate.op = op;
      Command command = d.command(std::move(mutate));
      command.session = d.session;
      command.epoch = Epoch(1);
      command.sequence = d.sequence = d.sequence.next();
      command.answered_below =
          Sequence(command.sequence.value() > 64 ? command.sequence.value() - 64 : 0);
      const LogIndex index(first.value() + i);
      command.time = at(index.value());
      batch.push_back({index, std::move(command)});
    }
    REQUIRE(d.ns->apply_entries(batch, batch.back().index));
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  const double cpu = static_cast<double>(std::clock() - cpu_begin) / CLOCKS_PER_SEC;
  std::cout << "creates: " << made << " in batches of " << kBatch << ", "
            << static_cast<long>(static_cast<double>(made) / seconds) << "/s, "
            << static_cast<long>(static_cast<double>(made) / cpu) << " per CPU second\n";
  const auto flush_begin = std::chrono::steady_clock::now();
  REQUIRE(d.ns->flush());
  std::cout << "flush: "
            << std::chrono::duration<double>(std::chrono::steady_clock::now() - flush_begin).count()
            << " s\n";
  const auto read_begin = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < kCreates; ++i) {
    const auto found = d.ns->lookup(parent, "file-" + std::to_string(i));
    if (!found || !*found || !d.ns->attr((*found)->inode)) FAIL("lost");
  }
  const double read_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - read_begin).count();
  std::cout << "lookup and getattr: "
            << static_cast<long>(static_cast<double>(kCreates) / read_seconds) << "/s\n";
  CHECK(d.ns->attr(parent)->size_bytes == kCreates * 32);
}
