// statfs(2), statvfs(3), pathconf(3).
#include <limits.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("statfs: numbers that make sense") {
  struct statvfs found {};
  OK(::statvfs(".", &found));
  CHECK(found.f_bsize >= 512);
  CHECK(found.f_frsize >= 512);
  CHECK(found.f_blocks > 0);
  CHECK(found.f_bfree <= found.f_blocks);
  CHECK(found.f_bavail <= found.f_bfree);
  CHECK(found.f_files > 0);
  CHECK(found.f_ffree <= found.f_files);
  CHECK(found.f_namemax == 255);
  CHECK((found.f_flag & ST_RDONLY) == 0);
}

TEST_CASE("statfs: the same through any file and descriptor of it") {
  make_file("f");
  make_dir("d");
  struct statfs here {};
  struct statfs file {};
  struct statfs open {};
  OK(::statfs(".", &here));
  OK(::statfs("f", &file));
  const Fd fd = open_fd("d", O_RDONLY);
  OK(::fstatfs(fd, &open));
  CHECK(here.f_type == file.f_type);
  CHECK(here.f_type == open.f_type);
  CHECK(here.f_blocks == file.f_blocks);
  CHECK(here.f_blocks == open.f_blocks);
  CHECK(here.f_namelen == 255);
}

TEST_CASE("statfs: files are counted") {
  struct statvfs found {};
  OK(::statvfs(".", &found));
  CHECK(found.f_files - found.f_ffree >= 1);
}

TEST_CASE("statfs: path errors") {
  make_file("f");
  struct statfs found {};
  FAILS(ENOENT, ::statfs("missing", &found));
  FAILS(ENOTDIR, ::statfs("f/x", &found));
  FAILS(EBADF, ::fstatfs(-1, &found));
}

TEST_CASE("pathconf: names of 255 bytes, paths of 4096, symlinks allowed") {
  make_file("f");
  CHECK(::pathconf(".", _PC_NAME_MAX) == 255);
  CHECK(::pathconf(".", _PC_PATH_MAX) == PATH_MAX);
  CHECK(::pathconf(".", _PC_NO_TRUNC) == 1);
  CHECK(::pathconf("f", _PC_CHOWN_RESTRICTED) == 1);
  CHECK(::pathconf("f", _PC_FILESIZEBITS) >= 32);
}

}  // namespace
}  // namespace fermata::posix
