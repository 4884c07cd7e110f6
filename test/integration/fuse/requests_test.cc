// Every request kind through the real kernel, with and without passthrough.
#include <dirent.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include <catch2/generators/catch_generators.hpp>
#include <set>

#include "test/integration/fuse/fixture.h"

namespace fermata::test {
namespace {

MirrorFs::Options with_passthrough(bool on) {
  MirrorFs::Options options;
  options.passthrough = on;
  return options;
}

std::set<std::string> list(const std::string& path) {
  std::set<std::string> names;
  DIR* stream = ::opendir(path.c_str());
  REQUIRE(stream != nullptr);
  while (const auto* each = ::readdir(stream)) {
    const bool fresh = names.insert(each->d_name).second;
    CHECK(fresh);
  }
  ::closedir(stream);
  return names;
}

}  // namespace

TEST_CASE("fuse: files are created, written, read, mapped and truncated", "[integration][fuse]") {
  skip_without_fuse();
  const bool passthrough = GENERATE(false, true);
  CAPTURE(passthrough);
  Mounted m(with_passthrough(passthrough));
  if (passthrough && !m.session->has_passthrough()) SKIP("this kernel has no passthrough");
  REQUIRE(m.fs.info().kill_privileges);

  const int fd = ::open((m.mnt / "f").c_str(), O_RDWR | O_CREAT | O_EXCL, 0640);
  REQUIRE(fd >= 0);
  std::string big(3 << 20, 'x');
  for (std::size_t i = 0; i < big.size(); ++i) big[i] = static_cast<char>(i * 7919 >> 8);
  REQUIRE(::pwrite(fd, big.data(), big.size(), 0) == static_cast<ssize_t>(big.size()));
  struct stat attr {};
  REQUIRE(::fstat(fd, &attr) == 0);
  CHECK(attr.st_size == static_cast<off_t>(big.size()));
  CHECK((attr.st_mode & 07777) == 0640);
  CHECK(get(m.back / "f") == big);
  std::string again(big.size(), 0);
  REQUIRE(::pread(fd, again.data(), again.size(), 0) == static_cast<ssize_t>(again.size()));
  CHECK(again == big);
  CHECK(::pread(fd, again.data(), 100, static_cast<off_t>(big.size()) - 10) == 10);
  CHECK(::fsync(fd) == 0);
  CHECK(::fdatasync(fd) == 0);
  CHECK(m.fs.count("fsync") == 2);
  CHECK((m.fs.count("write") == 0) == passthrough);
  if (passthrough) CHECK(m.fs.count("read") == 0);

  auto* map = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  REQUIRE(map != MAP_FAILED);
  CHECK(std::memcmp(map, big.data(), 8192) == 0);
  std::memcpy(map + 4000, "mapped", 6);
  CHECK(::msync(map, 8192, MS_SYNC) == 0);
  CHECK(::munmap(map, 8192) == 0);
  CHECK(get(m.back / "f").substr(4000, 6) == "mapped");

  CHECK(::ftruncate(fd, 5000) == 0);
  CHECK(::fallocate(fd, 0, 0, 1 << 20) == 0);
  CHECK(::ftruncate(fd, 4 << 20) == 0);
  CHECK(::lseek(fd, 0, SEEK_DATA) == 0);
  CHECK(::lseek(fd, 2 << 20, SEEK_HOLE) == 2 << 20);
  CHECK(m.fs.count("fallocate") == 1);
  CHECK(m.fs.count("lseek") == 2);
  const int copy = ::open((m.mnt / "copy").c_str(), O_RDWR | O_CREAT, 0600);
  off_t in = 0, out = 0;
  CHECK(::copy_file_range(fd, &in, copy, &out, 4000, 0) == 4000);
  CHECK(m.fs.count("copy_file_range") == 1);
  CHECK(get(m.back / "copy") == big.substr(0, 4000));
  int flags = 0;
  CHECK(::ioctl(fd, FS_IOC_GETFLAGS, &flags) == -1);
  CHECK(errno == ENOTTY);
  CHECK(::close(copy) == 0);
  CHECK(::close(fd) == 0);
  CHECK(m.fs.count("flush") >= 2);

  const int trunc = ::open((m.mnt / "f").c_str(), O_WRONLY | O_TRUNC);
  CHECK(::write(trunc, "short", 5) == 5);
  CHECK(::close(trunc) == 0);
  CHECK(get(m.mnt / "f") == "short");
  const int append = ::open((m.mnt / "f").c_str(), O_WRONLY | O_APPEND);
  CHECK(::write(append, "er", 2) == 2);
  CHECK(::close(append) == 0);
  CHECK(get(m.mnt / "f") == "shorter");
  CHECK(get(m.back / "f") == "shorter");
  CHECK(eventually([&] { return m.fs.count("release") >= 4; }));
}

TEST_CASE("fuse: names are made, moved and removed", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m(with_passthrough(GENERATE(false, true)));
  const auto at = [&](const std::string& name) { return m.mnt / name; };
  struct stat attr {};
  CHECK(::stat(at("none").c_str(), &attr) == -1);
  CHECK(errno == ENOENT);
  REQUIRE(::mkdir(at("d").c_str(), 02775) == 0);
  REQUIRE(::mknod(at("d/fifo").c_str(), S_IFIFO | 0600, 0) == 0);
  put(at("d/a"), "a");
  CHECK(::link(at("d/a").c_str(), at("d/b").c_str()) == 0);
  CHECK(::stat(at("d/b").c_str(), &attr) == 0);
  CHECK(attr.st_nlink == 2);
  CHECK(::symlink("d/a", at("s").c_str()) == 0);
  char target[64];
  CHECK(::readlink(at("s").c_str(), target, sizeof target) == 3);
  CHECK(get(at("s")) == "a");
  CHECK(::rename(at("d/b").c_str(), at("c").c_str()) == 0);
  CHECK(::renameat2(AT_FDCWD, at("c").c_str(), AT_FDCWD, at("d/a").c_str(), RENAME_NOREPLACE) ==
        -1);
  CHECK(errno == EEXIST);
  put(at("x"), "x");
  CHECK(::renameat2(AT_FDCWD, at("x").c_str(), AT_FDCWD, at("d/a").c_str(), RENAME_EXCHANGE) == 0);
  CHECK(get(at("d/a")) == "x");
  CHECK(get(at("x")) == "a");
  CHECK(::rmdir(at("d").c_str()) == -1);
  CHECK(errno == ENOTEMPTY);
  CHECK(list(at("d")) == std::set<std::string>{".", "..", "a", "fifo"});
  CHECK(::unlink(at("d/a").c_str()) == 0);
  CHECK(::unlink(at("d/fifo").c_str()) == 0);
  const int directory = ::open(at("d").c_str(), O_RDONLY | O_DIRECTORY);
  CHECK(::fsync(directory) == 0);
  ::close(directory);
  CHECK(::rmdir(at("d").c_str()) == 0);
  CHECK(::chmod(at("c").c_str(), 0604) == 0);
  CHECK(::lchown(at("s").c_str(), 7, 8) == 0);
  CHECK(::lstat(at("s").c_str(), &attr) == 0);
  CHECK((attr.st_uid == 7 && attr.st_gid == 8));
  const timespec times[2] = {{1000, 1}, {2000, 2}};
  CHECK(::utimensat(AT_FDCWD, at("c").c_str(), times, 0) == 0);
  CHECK(::stat(at("c").c_str(), &attr) == 0);
  CHECK((attr.st_mode & 07777) == 0604);
  CHECK((attr.st_mtim.tv_sec == 2000 && attr.st_mtim.tv_nsec == 2));
  CHECK(::truncate(at("c").c_str(), 10) == 0);
  CHECK(get(at("c")).size() == 10);
  CHECK(::setxattr(at("c").c_str(), "user.k", "value", 5, XATTR_CREATE) == 0);
  CHECK(::setxattr(at("c").c_str(), "user.k", "value", 5, XATTR_CREATE) == -1);
  char value[64];
  CHECK(::getxattr(at("c").c_str(), "user.k", value, sizeof value) == 5);
  CHECK(::getxattr(at("c").c_str(), "user.k", nullptr, 0) == 5);
  CHECK(::getxattr(at("c").c_str(), "user.k", value, 3) == -1);
  CHECK(errno == ERANGE);
  CHECK(::listxattr(at("c").c_str(), value, sizeof value) >= 7);
  CHECK(::removexattr(at("c").c_str(), "user.k") == 0);
  CHECK(::getxattr(at("c").c_str(), "user.k", value, sizeof value) == -1);
  CHECK(errno == ENODATA);
  struct statvfs values {};
  CHECK(::statvfs(m.mnt.path().c_str(), &values) == 0);
  CHECK(values.f_namemax == 255);
  for (const char* kind :
       {"lookup",   "getattr", "setattr",  "readlink", "mknod",     "mkdir",       "symlink",
        "link",     "unlink",  "rmdir",    "rename",   "opendir",   "readdirplus", "releasedir",
        "fsyncdir", "statfs",  "setxattr", "getxattr", "listxattr", "removexattr", "create"}) {
    CAPTURE(kind);
    if (std::string(kind) != "getattr") CHECK(m.fs.count(kind) > 0);
  }
}

TEST_CASE("fuse: a directory of 5,000 names lists, seeks and forgets", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  constexpr int kCount = 5000;
  std::set<std::string> expected{".", ".."};
  for (int i = 0; i < kCount; ++i) {
    const auto name = "file-with-a-longer-name-" + std::to_string(i);
    put(m.back / name, "x");
    expected.insert(name);
  }
  CHECK(list(m.mnt.path()) == expected);
  CHECK(m.fs.count("readdirplus") > 0);
  DIR* stream = ::opendir(m.mnt.path().c_str());
  REQUIRE(stream != nullptr);
  for (int i = 0; i < 1234; ++i) REQUIRE(::readdir(stream) != nullptr);
  const long place = ::telldir(stream);
  const std::string there = ::readdir(stream)->d_name;
  for (int i = 0; i < 2000; ++i) REQUIRE(::readdir(stream) != nullptr);
  ::seekdir(stream, place);
  CHECK(::readdir(stream)->d_name == there);
  ::rewinddir(stream);
  CHECK(::readdir(stream) != nullptr);
  ::closedir(stream);
  struct stat attr {};
  for (int i = 0; i < kCount; i += 50) {
    CHECK(::stat((m.mnt / ("file-with-a-longer-name-" + std::to_string(i))).c_str(), &attr) == 0);
  }
  CHECK(m.fs.lookup_count() >= 100);
  // The kernel gives its lookups back (batches of FORGET) when the names go.
  for (const auto& name : expected) {
    if (name[0] != '.') CHECK(::unlink((m.mnt / name).c_str()) == 0);
  }
  CHECK(eventually([&] { return m.fs.lookup_count() == 0; }));
}

TEST_CASE("fuse: a write by another user clears setuid and setgid", "[integration][fuse]") {
  skip_without_fuse();
  const bool passthrough = GENERATE(false, true);
  const auto how = GENERATE(0, 1, 2);  // write, O_TRUNC, truncate
  CAPTURE(passthrough, how);
  Mounted m(with_passthrough(passthrough));
  ::chmod(m.mnt.path().c_str(), 0755);
  const auto path = m.mnt / "program";
  put(path, "text");
  REQUIRE(::chmod(path.c_str(), 06777) == 0);
  ::chmod(m.back.path().c_str(), 0755);
  const auto child = in_child([&] {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 1;
    if (how == 2) return ::truncate(path.c_str(), 1) == 0 ? 0 : 2;
    const int fd = ::open(path.c_str(), O_WRONLY | (how == 1 ? O_TRUNC : 0));
    if (fd < 0) return 3;
    return how == 1 || ::write(fd, "T", 1) == 1 ? 0 : 4;
  });
  CHECK(wait_child(child) == 0);
  struct stat attr {};
  REQUIRE(::stat((m.back / "program").c_str(), &attr) == 0);
  CHECK((attr.st_mode & 07777) == 0777);
  REQUIRE(::stat(path.c_str(), &attr) == 0);
  CHECK((attr.st_mode & 07777) == 0777);
}

TEST_CASE("fuse: the daemon may answer at once on many threads' behalf", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m(with_passthrough(GENERATE(false, true)));
  std::vector<std::thread> threads;
  std::atomic<int> bad{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 300; ++i) {
        const auto path = m.mnt / (std::to_string(t) + "-" + std::to_string(i));
        const auto text = std::string(static_cast<std::size_t>(i * 17), static_cast<char>('a' + t));
        put(path, text);
        if (get(path) != text) ++bad;
        if (i % 3 == 0 && ::unlink(path.c_str()) != 0) ++bad;
      }
    });
  }
  for (auto& each : threads) each.join();
  CHECK(bad == 0);
  CHECK(m.session->pending().empty());
}

}  // namespace fermata::test
