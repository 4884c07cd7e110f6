// readdir(3), telldir(3), seekdir(3), rewinddir(3), getdents64(2).
#include <dirent.h>
#include <sys/syscall.h>

#include <algorithm>
#include <map>
#include <set>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

class Stream {
 public:
  explicit Stream(const char* path) : dir_(OK(::opendir(path))) {}
  ~Stream() { ::closedir(dir_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  /// The next name, empty at the end.
  std::string next() {
    errno = 0;
    const dirent* entry = ::readdir(dir_);
    if (entry == nullptr && errno != 0) OK(-1);
    return entry == nullptr ? "" : entry->d_name;
  }
  std::vector<std::string> rest() {
    std::vector<std::string> names;
    for (std::string name = next(); !name.empty(); name = next()) names.push_back(name);
    return names;
  }
  long tell() { return ::telldir(dir_); }
  void seek(long place) { ::seekdir(dir_, place); }
  void rewind() { ::rewinddir(dir_); }
  DIR* get() { return dir_; }

 private:
  DIR* dir_;
};

std::string numbered(int i) { return "name-" + std::to_string(1000 + i); }

void make_names(const std::string& dir, int count) {
  for (int i = 0; i < count; ++i) make_file(dir + "/" + numbered(i));
}

TEST_CASE("readdir: an empty directory has . and .., with their inodes") {
  make_dir("d");
  make_dir("d/e");
  std::map<std::string, ino_t> found;
  DIR* stream = OK(::opendir("d/e"));
  while (const dirent* entry = ::readdir(stream)) found[entry->d_name] = entry->d_ino;
  ::closedir(stream);
  CHECK(found.size() == 2);
  CHECK(found["."] == stat_of("d/e").st_ino);
  CHECK(found[".."] == stat_of("d").st_ino);
}

TEST_CASE("readdir: .. follows a directory that is moved") {
  make_dir("a");
  make_dir("b");
  make_dir("a/d");
  OK(::rename("a/d", "b/d"));
  ino_t parent = 0;
  DIR* stream = OK(::opendir("b/d"));
  while (const dirent* entry = ::readdir(stream))
    if (std::string(entry->d_name) == "..") parent = entry->d_ino;
  ::closedir(stream);
  CHECK(parent == stat_of("b").st_ino);
}

TEST_CASE("readdir: tells every entry's type and inode") {
  make_file("file");
  make_dir("dir");
  OK(::symlink("x", "link"));
  OK(::mkfifo("fifo", 0644));
  const std::map<std::string, unsigned char> types = {
      {"file", DT_REG}, {"dir", DT_DIR}, {"link", DT_LNK}, {"fifo", DT_FIFO}};
  std::size_t seen = 0;
  DIR* stream = OK(::opendir("."));
  while (const dirent* entry = ::readdir(stream)) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    CAPTURE(name);
    ++seen;
    CHECK(entry->d_ino == lstat_of(name).st_ino);
    CHECK((entry->d_type == types.at(name) || entry->d_type == DT_UNKNOWN));
  }
  ::closedir(stream);
  CHECK(seen == types.size());
}

TEST_CASE("readdir: hundreds of names, each once") {
  make_dir("d");
  make_names("d", 400);
  Stream stream("d");
  const auto names = stream.rest();
  CHECK(names.size() == 402);
  CHECK(std::set<std::string>(names.begin(), names.end()).size() == 402);
}

TEST_CASE("readdir: names of any length and bytes") {
  const std::vector<std::string> made = {
      "a", std::string(255, 'n'), "with space", "\xff\x01\n", "...", ".hidden", "\xc3\xa9"};
  for (const auto& name : made) make_file(name);
  auto expected = made;
  std::sort(expected.begin(), expected.end());
  CHECK(names_in(".") == expected);
}

TEST_CASE("readdir: what telldir gave leads back to the same entry") {
  make_dir("d");
  make_names("d", 150);
  Stream stream("d");
  std::vector<std::pair<long, std::string>> places;
  for (;;) {
    const long place = stream.tell();
    const std::string name = stream.next();
    places.emplace_back(place, name);
    if (name.empty()) break;
  }
  for (std::size_t i = places.size(); i-- > 0;) {
    CAPTURE(i);
    stream.seek(places[i].first);
    CHECK(stream.tell() == places[i].first);
    CHECK(stream.next() == places[i].second);
  }
}

TEST_CASE("readdir: places stay true while others add and remove names") {
  make_dir("d");
  make_names("d", 120);
  Stream stream("d");
  std::vector<std::pair<long, std::string>> places;
  for (int i = 0; i < 60; ++i) {
    const long place = stream.tell();
    places.emplace_back(place, stream.next());
  }
  const long here = stream.tell();
  const std::string following = stream.next();
  for (const auto& [place, name] : places)
    if (name != "." && name != "..") OK(::unlink(("d/" + name).c_str()));
  for (int i = 0; i < 50; ++i) make_file("d/new-" + std::to_string(i));
  stream.seek(here);
  CHECK(stream.next() == following);
  Stream other("d");
  other.seek(here);
  CHECK(other.next() == following);
}

TEST_CASE("readdir: what is neither added nor removed meanwhile comes exactly once") {
  make_dir("d");
  make_names("d", 200);
  Stream stream("d");
  std::map<std::string, int> seen;
  for (int step = 0;; ++step) {
    const std::string name = stream.next();
    if (name.empty()) break;
    ++seen[name];
    if (step % 5 == 0 && step < 500) {
      make_file("d/new-" + std::to_string(step));
      (void)::unlink(("d/" + numbered(199 - step / 5)).c_str());
    }
  }
  for (int i = 0; i < 100; ++i) {
    CAPTURE(i);
    CHECK(seen[numbered(i)] == 1);
  }
  for (const auto& [name, count] : seen) CHECK(count == 1);
}

TEST_CASE("readdir: removing each name as it comes empties the directory") {
  make_dir("d");
  make_names("d", 300);
  Stream stream("d");
  for (std::string name = stream.next(); !name.empty(); name = stream.next()) {
    if (name != "." && name != "..") OK(::unlink(("d/" + name).c_str()));
  }
  OK(::rmdir("d"));
}

TEST_CASE("readdir: rewinddir starts again and sees what is new") {
  make_dir("d");
  make_file("d/a");
  Stream stream("d");
  CHECK(stream.rest().size() == 3);
  make_file("d/b");
  stream.rewind();
  CHECK(stream.rest().size() == 4);
  OK(::unlink("d/a"));
  stream.rewind();
  CHECK(stream.rest().size() == 3);
}

TEST_CASE("readdir: a fresh listing shows every change at once, whoever made it") {
  make_dir("d");
  CHECK(names_in("d").empty());
  make_file("d/a");
  CHECK(names_in("d") == std::vector<std::string>{"a"});
  CHECK(in_child([] {
          make_file("d/b");
          OK(::rename("d/a", "d/c"));
          return 0;
        }) == 0);
  CHECK(names_in("d") == std::vector<std::string>{"b", "c"});
}

TEST_CASE("readdir: lseek to the start of a directory's descriptor rewinds it") {
  make_dir("d");
  make_names("d", 10);
  const Fd fd = open_fd("d", O_RDONLY | O_DIRECTORY);
  const auto count = [&] {
    char buffer[65536];
    long total = 0;
    while (const long size =
               OK(::syscall(SYS_getdents64, fd.operator int(), buffer, sizeof buffer)))
      total += size;
    return total;
  };
  const long first = count();
  CHECK(first > 0);
  CHECK(count() == 0);
  CHECK(OK(::lseek(fd, 0, SEEK_SET)) == 0);
  CHECK(count() == first);
}

TEST_CASE("readdir: two streams of one directory do not disturb each other") {
  make_dir("d");
  make_names("d", 20);
  Stream one("d");
  Stream two("d");
  (void)one.next();
  (void)one.next();
  CHECK(two.rest().size() == 22);
  CHECK(one.rest().size() == 20);
}

TEST_CASE("getdents64: errors") {
  make_file("f");
  char buffer[1024];
  const Fd file = open_fd("f", O_RDONLY);
  const Fd dir = open_fd(".", O_RDONLY);
  FAILS(ENOTDIR, ::syscall(SYS_getdents64, file.operator int(), buffer, sizeof buffer));
  FAILS(EBADF, ::syscall(SYS_getdents64, -1, buffer, sizeof buffer));
  FAILS(EINVAL, ::syscall(SYS_getdents64, dir.operator int(), buffer, 1));
  FAILS(ENOTDIR, ::opendir("f"));
  FAILS(ENOENT, ::opendir("missing"));
  if (is_root()) {
    make_dir("d", 0711);
    CHECK(as(kAlice, [] { return ::opendir("d") == nullptr ? -1 : 0; }) == Errno{EACCES});
  }
}

}  // namespace
}  // namespace fermata::posix
