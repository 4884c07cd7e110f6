// Names and paths: lengths, bytes, dots and slashes, for every call that takes them.
#include <limits.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

/// Every call that takes one path, with arguments that would do.
struct Call {
  const char* name;
  long (*run)(const char* path);
};
const Call kCalls[] = {
    {"open", [](const char* p) -> long { return ::open(p, O_RDONLY); }},
    {"open O_CREAT", [](const char* p) -> long { return ::open(p, O_CREAT | O_RDWR, 0644); }},
    {"stat",
     [](const char* p) -> long {
       struct stat s {};
       return ::stat(p, &s);
     }},
    {"lstat",
     [](const char* p) -> long {
       struct stat s {};
       return ::lstat(p, &s);
     }},
    {"access", [](const char* p) -> long { return ::access(p, F_OK); }},
    {"chmod", [](const char* p) -> long { return ::chmod(p, 0644); }},
    {"chown", [](const char* p) -> long { return ::chown(p, ::getuid(), ::getgid()); }},
    {"lchown", [](const char* p) -> long { return ::lchown(p, ::getuid(), ::getgid()); }},
    {"truncate", [](const char* p) -> long { return ::truncate(p, 0); }},
    {"utimensat", [](const char* p) -> long { return ::utimensat(AT_FDCWD, p, nullptr, 0); }},
    {"mkdir", [](const char* p) -> long { return ::mkdir(p, 0755); }},
    {"rmdir", [](const char* p) -> long { return ::rmdir(p); }},
    {"unlink", [](const char* p) -> long { return ::unlink(p); }},
    {"mkfifo", [](const char* p) -> long { return ::mkfifo(p, 0644); }},
    {"symlink", [](const char* p) -> long { return ::symlink("x", p); }},
    {"readlink",
     [](const char* p) -> long {
       char buffer[16];
       return ::readlink(p, buffer, sizeof buffer);
     }},
    {"link from", [](const char* p) -> long { return ::link(p, "linked"); }},
    {"link to", [](const char* p) -> long { return ::link("file", p); }},
    {"rename from", [](const char* p) -> long { return ::rename(p, "renamed"); }},
    {"rename to", [](const char* p) -> long { return ::rename("file", p); }},
    {"statvfs",
     [](const char* p) -> long {
       struct statvfs s {};
       return ::statvfs(p, &s);
     }},
    {"setxattr", [](const char* p) -> long { return ::setxattr(p, "user.a", "x", 1, 0); }},
    {"getxattr",
     [](const char* p) -> long {
       char byte = 0;
       return ::getxattr(p, "user.a", &byte, 1);
     }},
    {"listxattr", [](const char* p) -> long { return ::listxattr(p, nullptr, 0); }},
    {"removexattr", [](const char* p) -> long { return ::removexattr(p, "user.a"); }},
    {"chdir", [](const char* p) -> long { return ::chdir(p); }},
};

TEST_CASE("path: a name of 255 bytes works everywhere") {
  const std::string name(255, 'n');
  const std::string other(255, 'o');
  make_file(name, "content");
  OK(::rename(name.c_str(), other.c_str()));
  OK(::link(other.c_str(), name.c_str()));
  CHECK(content_of(name) == "content");
  OK(::chmod(name.c_str(), 0600));
  OK(::unlink(name.c_str()));
  OK(::mkdir(name.c_str(), 0755));
  make_file(name + "/" + other);
  CHECK(names_in(name) == std::vector<std::string>{other});
  OK(::unlink((name + "/" + other).c_str()));
  OK(::rmdir(name.c_str()));
  OK(::symlink("x", name.c_str()));
  CHECK(exists(name));
}

TEST_CASE("path: a name of 256 bytes is ENAMETOOLONG for every call") {
  make_file("file");
  const std::string name(256, 'n');
  for (const Call& call : kCalls) {
    CAPTURE(call.name);
    FAILS(ENAMETOOLONG, call.run(name.c_str()));
    FAILS(ENAMETOOLONG, call.run((name + "/x").c_str()));
  }
  CHECK(names_in(".") == std::vector<std::string>{"file"});
}

TEST_CASE("path: a path of 4095 bytes works, of 4096 it is ENAMETOOLONG for every call") {
  make_file("file");
  std::string path;
  while (path.size() + 2 < PATH_MAX - 1 - 4) path += "./";
  path += std::string(PATH_MAX - 1 - 4 - path.size(), '/') + "file";
  REQUIRE(path.size() == PATH_MAX - 1);
  CHECK(stat_of(path).st_ino == stat_of("file").st_ino);
  OK(::chmod(path.c_str(), 0600));
  const std::string longer = "/" + path;
  for (const Call& call : kCalls) {
    CAPTURE(call.name);
    FAILS(ENAMETOOLONG, call.run(longer.c_str()));
  }
}

TEST_CASE("path: a component that is a file is ENOTDIR for every call") {
  make_file("file");
  for (const Call& call : kCalls) {
    CAPTURE(call.name);
    FAILS(ENOTDIR, call.run("file/x"));
    FAILS(ENOTDIR, call.run("file/x/y"));
    FAILS(ENOTDIR, call.run("file/../file"));
  }
}

TEST_CASE("path: a missing component is ENOENT for every call") {
  make_file("file");
  OK(::symlink("nowhere", "dangling"));
  for (const Call& call : kCalls) {
    CAPTURE(call.name);
    FAILS(ENOENT, call.run("missing/x"));
    FAILS(ENOENT, call.run("missing/../file"));
    FAILS(ENOENT, call.run("dangling/x"));
    FAILS(ENOENT, call.run(""));
  }
}

TEST_CASE("path: a loop of symlinks is ELOOP for every call") {
  make_file("file");
  OK(::symlink("b", "a"));
  OK(::symlink("a", "b"));
  for (const Call& call : kCalls) {
    CAPTURE(call.name);
    FAILS(ELOOP, call.run("a/x"));
  }
}

TEST_CASE("path: a directory that may not be searched is EACCES for every call") {
  NEEDS_ROOT();
  make_dir("closed", 0644);
  make_file("closed/x", {}, 0666);
  make_dir("open", 0777);
  make_file("open/file", {}, 0666);
  make_dir("open/closed", 0644);
  make_file("open/closed/x", {}, 0666);
  OK(::chdir("open"));
  for (const Call& call : kCalls) {
    CAPTURE(call.name);
    CHECK(as(kAlice, [&] { return call.run("closed/x"); }) == Errno{EACCES});
  }
  OK(::chdir(".."));
}

TEST_CASE("path: names may have any byte but zero and slash, and case matters") {
  const std::vector<std::string> names = {"A",      "a",        "\x01\x7f", "\xff\xfe", "new\nline",
                                          "sp ace", "...",      "-r",       "*?[",      "\\",
                                          "~",      "\xc3\xa4", "a\xcc\x88"};
  for (const auto& name : names) {
    CAPTURE(name);
    make_file(name, name);
  }
  CHECK(names_in(".").size() == names.size());
  for (const auto& name : names) {
    CAPTURE(name);
    CHECK(content_of(name) == name);
  }
}

TEST_CASE("path: slashes in a row count once, . not at all") {
  make_dir("d");
  make_file("d/f", "content");
  CHECK(content_of("d//f") == "content");
  CHECK(content_of(".///d/././/f") == "content");
  CHECK(content_of("d/../d/f") == "content");
}

TEST_CASE("path: deeper than PATH_MAX, step by step") {
  const std::string name(250, 'd');
  constexpr int kDepth = 20;  // 5,000 bytes
  const int result = in_child([&] {
    for (int i = 0; i < kDepth; ++i) {
      OK(::mkdir(name.c_str(), 0755));
      OK(::chdir(name.c_str()));
    }
    make_file("f", "deep");
    if (content_of("f") != "deep") return 1;
    if (OK(::open("..", O_RDONLY | O_DIRECTORY)) < 0) return 2;
    OK(::unlink("f"));
    for (int i = 0; i < kDepth; ++i) {
      OK(::chdir(".."));
      OK(::rmdir(name.c_str()));
    }
    return 0;
  });
  CHECK(result == 0);
}

}  // namespace
}  // namespace fermata::posix
