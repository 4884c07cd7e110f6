// Life and death of a session: interrupts, late answers, stop, unmounting from outside, bad mount
// points; and what notifications change.
#include <signal.h>

#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <future>
#include <thread>

#include "mountd/fuse/notifier.h"
#include "test/integration/fuse/fixture.h"

namespace fermata::test {
namespace {

using Catch::Matchers::ContainsSubstring;

int stat_error(const std::string& path) {
  struct stat attr {};
  return ::stat(path.c_str(), &attr) == 0 ? 0 : errno;
}
ino_t inode_of(const std::string& path) {
  struct stat attr {};
  return ::stat(path.c_str(), &attr) == 0 ? attr.st_ino : 0;
}

}  // namespace

TEST_CASE("fuse: a process that waits for the daemon can be killed", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  for (const int signal : {SIGKILL, SIGTERM}) {
    const auto before = m.fs.count("hang");
    const auto child = in_child([&] { return stat_error(m.mnt / "hang"); });
    REQUIRE(eventually([&] { return m.fs.count("hang") == before + 1; }));
    REQUIRE(eventually([&] { return m.session->pending().size() == 1; }));
    CHECK(std::string(m.session->pending()[0].operation) == "lookup");
    ::kill(child, signal);
    const int status = wait_child(child);
    CHECK((WIFSIGNALED(status) && WTERMSIG(status) == signal));
  }
  CHECK(m.fs.count("interrupt") == 2);
  CHECK(eventually([&] { return m.session->pending().empty(); }));
}

TEST_CASE("fuse: a hundred interrupts race with their requests", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  for (int i = 0; i < 100; ++i) {
    const auto child = in_child([&] { return stat_error(m.mnt / "hang"); });
    std::this_thread::sleep_for(std::chrono::microseconds(i * 30));
    ::kill(child, SIGKILL);
    REQUIRE(wait_child(child) == SIGKILL);
  }
  CHECK(eventually([&] { return m.session->pending().empty(); }));
}

TEST_CASE("fuse: a reply may come from another thread, and none is EIO", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  put(m.back / "thread", "from afar");
  CHECK(get(m.mnt / "thread") == "from afar");
  CHECK(stat_error(m.mnt / "dropped") == EIO);
}

TEST_CASE("fuse: notifications make the kernel ask again", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  put(m.back / "a", "old");
  put(m.back / "b", "newer");
  const auto old_inode = inode_of(m.mnt / "a");
  const auto asked = m.fs.count("lookup");
  m.fs.bind("a", m.back / "b", old_inode + 1000);
  CHECK(inode_of(m.mnt / "a") == old_inode);  // cached for an hour
  CHECK(m.fs.count("lookup") == asked);

  SECTION("expire_entry") { CHECK(m.session->expire_entry(mountd::kRootNode, "a")); }
  SECTION("invalidate_entry") { CHECK(m.session->invalidate_entry(mountd::kRootNode, "a")); }
  SECTION("delete_entry") {
    CHECK(m.session->delete_entry(mountd::kRootNode, m.fs.node_of("a"), "a"));
  }
  SECTION("epoch") {
    if (!m.session->has_epoch()) SKIP("this kernel has no epoch notification");
    CHECK(m.session->invalidate_all_entries());
  }
  SECTION("notifier") {
    mountd::Notifier notifier(*m.session);
    std::promise<void> done;
    notifier.invalidate(
        {{.kind = mountd::Notifier::Kind::kExpireEntry, .node = mountd::kRootNode, .name = "a"}},
        [&] { done.set_value(); });
    REQUIRE(done.get_future().wait_for(2s) == std::future_status::ready);
  }
  SECTION("notifier with many names") {
    mountd::Notifier notifier(*m.session);
    std::vector<mountd::Notifier::Item> items(100);
    for (auto& item : items) item = {.node = mountd::kRootNode, .name = "a"};
    std::promise<void> done;
    notifier.invalidate(std::move(items), [&] { done.set_value(); });
    REQUIRE(done.get_future().wait_for(2s) == std::future_status::ready);
    if (m.session->has_epoch()) CHECK(notifier.counters().epoch_count == 1);
  }
  CHECK(inode_of(m.mnt / "a") == old_inode + 1000);
  CHECK(get(m.mnt / "a") == "newer");
  // What nobody has heard of is no error.
  CHECK(m.session->expire_entry(mountd::kRootNode, "unheard-of"));
  CHECK(m.session->invalidate_inode(mountd::NodeHandle{4711}, -1, 0).value() == false);
}

TEST_CASE("fuse: the notifier is done with a node when the kernel knows it or has given it back",
          "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  constexpr mountd::NodeHandle kOnItsWay{4711};  // granted in an answer that nobody has taken in
  std::atomic<bool> granted{true};
  std::atomic<int> asked{0};
  mountd::Notifier notifier(*m.session, [&](mountd::NodeHandle node) {
    ++asked;
    return node == kOnItsWay && granted;
  });
  std::promise<void> done;
  mountd::Notifier::Item attributes;
  attributes.kind = mountd::Notifier::Kind::kInvalidateInode;
  attributes.node = kOnItsWay;
  notifier.invalidate({attributes}, [&] { done.set_value(); });
  auto ready = done.get_future();
  while (asked < 10) std::this_thread::sleep_for(1ms);
  CHECK(ready.wait_for(0s) == std::future_status::timeout);
  granted = false;
  CHECK(ready.wait_for(2s) == std::future_status::ready);
}

TEST_CASE("fuse: attributes and pages are dropped on request", "[integration][fuse]") {
  skip_without_fuse();
  MirrorFs::Options options;
  options.open_flags = mountd::kOpenKeepCache;
  Mounted m(options);
  put(m.back / "a", "old!");
  CHECK(get(m.mnt / "a") == "old!");
  put(m.back / "a", "new!");
  CHECK(get(m.mnt / "a") == "old!");
  CHECK(m.session->invalidate_inode(m.fs.node_of("a"), 0, 0));
  CHECK(get(m.mnt / "a") == "new!");
  struct stat attr {};
  ::stat((m.mnt / "a").c_str(), &attr);
  REQUIRE(::chmod((m.back / "a").c_str(), 0600) == 0);
  ::stat((m.mnt / "a").c_str(), &attr);
  CHECK((attr.st_mode & 0777) == 0644);
  CHECK(m.session->invalidate_inode(m.fs.node_of("a"), -1, 0));
  ::stat((m.mnt / "a").c_str(), &attr);
  CHECK((attr.st_mode & 0777) == 0600);
}

TEST_CASE("fuse: a cwd survives the expiry of its name", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  REQUIRE(::mkdir((m.mnt / "d").c_str(), 0755) == 0);
  int ready[2];
  int go[2];
  REQUIRE((::pipe(ready) == 0 && ::pipe(go) == 0));
  const auto child = in_child([&] {
    char byte = 0;
    char path[4096];
    if (::chdir((m.mnt / "d").c_str()) != 0) return 1;
    if (::write(ready[1], "x", 1) != 1 || ::read(go[0], &byte, 1) != 1) return 2;
    return ::getcwd(path, sizeof path) != nullptr ? 0 : 3;
  });
  char byte = 0;
  REQUIRE(::read(ready[0], &byte, 1) == 1);
  CHECK(m.session->expire_entry(mountd::kRootNode, "d"));
  CHECK(stat_error(m.mnt / "d") == 0);
  if (m.session->has_epoch()) {
    CHECK(m.session->invalidate_all_entries());
    CHECK(stat_error(m.mnt / "d") == 0);
  }
  REQUIRE(::write(go[1], "x", 1) == 1);
  CHECK(wait_child(child) == 0);
  for (const int fd : {ready[0], ready[1], go[0], go[1]}) ::close(fd);
}

TEST_CASE("fuse: the notifier is done although a request holds the parent's lock",
          "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  if (!m.session->has_epoch()) SKIP("this kernel has no epoch notification");
  put(m.back / "a", "old");
  put(m.back / "b", "newer");
  const auto old_inode = inode_of(m.mnt / "a");
  mountd::Notifier notifier(*m.session);
  const auto child = in_child([&] { return ::mkdir((m.mnt / "held").c_str(), 0755) ? errno : 0; });
  REQUIRE(eventually([&] { return m.fs.waiting(); }));
  m.fs.bind("a", m.back / "b", old_inode + 1000);
  std::promise<void> done;
  const auto start = std::chrono::steady_clock::now();
  notifier.invalidate({{.node = mountd::kRootNode, .name = "a"}}, [&] { done.set_value(); });
  REQUIRE(done.get_future().wait_for(2s) == std::future_status::ready);
  const auto took = std::chrono::steady_clock::now() - start;
  CHECK(took < 500ms);
  CHECK(notifier.counters().epoch_count == 1);
  CHECK(::waitpid(child, nullptr, WNOHANG) == 0);  // mkdir still waits
  m.fs.let_go();
  CHECK(WEXITSTATUS(wait_child(child)) == EPERM);
  CHECK(inode_of(m.mnt / "a") == old_inode + 1000);
}

TEST_CASE("fuse: stop with requests in flight leaves no mount", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  mountd::Notifier notifier(*m.session);
  const auto hanging = in_child([&] { return stat_error(m.mnt / "hang"); });
  const auto lost = in_child([&] { return stat_error(m.mnt / "forever"); });
  REQUIRE(eventually([&] { return m.fs.waiting() && m.fs.count("hang") == 1; }));
  const int held = ::open(m.mnt.path().c_str(), O_RDONLY | O_DIRECTORY);
  REQUIRE(held >= 0);
  CHECK(m.session->pending().size() == 2);
  const auto start = std::chrono::steady_clock::now();
  m.session->stop(200ms);
  CHECK(std::chrono::steady_clock::now() - start < 2s);
  CHECK_FALSE(m.is_mounted());
  CHECK(m.session->ended());
  CHECK(WEXITSTATUS(wait_child(hanging)) == EINTR);
  CHECK(WEXITSTATUS(wait_child(lost)) == EIO);
  struct stat attr {};
  const int error = ::fstatat(held, "name", &attr, 0) == 0 ? 0 : errno;
  CAPTURE(error);
  // The kernel takes a ring apart in the background: a request may still begin. Before it has an
  // entry of the ring it is aborted, with one it is EIO.
  const bool ended = error == ECONNABORTED || error == EIO;
  CHECK((error == ENOTCONN || (tests_use_io_uring() && ended)));
  ::close(held);
  m.fs.let_go();  // too late, and harmless
  m.session->stop();
  CHECK(m.session->invalidate_entry(mountd::kRootNode, "a"));
}

TEST_CASE("fuse: stop frees a notification that waits for a lock", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  const auto child = in_child([&] { return ::mkdir((m.mnt / "held").c_str(), 0755) ? errno : 0; });
  REQUIRE(eventually([&] { return m.fs.waiting(); }));
  auto blocked = std::async(std::launch::async,
                            [&] { return m.session->expire_entry(mountd::kRootNode, "a"); });
  CHECK(blocked.wait_for(50ms) == std::future_status::timeout);
  m.session->stop(100ms);
  CHECK(blocked.wait_for(2s) == std::future_status::ready);
  CHECK(WEXITSTATUS(wait_child(child)) == EIO);
  CHECK_FALSE(m.is_mounted());
  m.fs.let_go();
}

TEST_CASE("fuse: unmounting from outside ends the session", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  put(m.mnt / "a", "a");
  CHECK_FALSE(m.session->wait_for(10ms));
  REQUIRE(::umount2(m.mnt.path().c_str(), 0) == 0);
  CHECK(m.session->wait_for(3s));
  m.session->stop();
  CHECK_FALSE(m.is_mounted());
  put(m.mnt / "a", "plain");  // the directory below is free again
  CHECK(get(m.mnt / "a") == "plain");
}

TEST_CASE("fuse: sessions start and stop again and again", "[integration][fuse]") {
  skip_without_fuse();
  for (int i = 0; i < 10; ++i) {
    Mounted m({}, i % 2 == 0 ? 1u : 2u);
    put(m.mnt / "a", "a");
    m.session.reset();
    CHECK_FALSE(m.is_mounted());
  }
}

TEST_CASE("fuse: two nodes with one st_ino have backings of their own", "[integration][fuse]") {
  skip_without_fuse();
  MirrorFs::Options options;
  options.passthrough = true;
  Mounted m(options);
  if (!m.session->has_passthrough()) SKIP("this kernel has no passthrough");
  put(m.back / "v1", "version one");
  put(m.back / "v2", "version two");
  m.fs.bind("f", m.back / "v1", 77);
  const int first = ::open((m.mnt / "f").c_str(), O_RDWR);
  REQUIRE(first >= 0);
  const auto first_node = m.fs.node_of("f");
  m.fs.bind("f", m.back / "v2", 77);
  CHECK(m.session->invalidate_entry(mountd::kRootNode, "f"));
  const int second = ::open((m.mnt / "f").c_str(), O_RDWR);
  REQUIRE(second >= 0);
  CHECK(m.fs.node_of("f") != first_node);
  char text[32] = {};
  CHECK(::pread(first, text, sizeof text, 0) == 11);
  CHECK(std::string(text) == "version one");
  CHECK(::pread(second, text, sizeof text, 0) == 11);
  CHECK(std::string(text) == "version two");
  struct stat a {
  }, b{};
  CHECK((::fstat(first, &a) == 0 && ::fstat(second, &b) == 0));
  CHECK((a.st_ino == 77 && b.st_ino == 77 && a.st_dev == b.st_dev));
  CHECK(::pwrite(first, "V", 1, 0) == 1);
  ::close(first);
  ::close(second);
  CHECK(get(m.back / "v1") == "Version one");
  CHECK(get(m.back / "v2") == "version two");
  CHECK(m.fs.count("read") + m.fs.count("write") == 0);
}

TEST_CASE("fuse: a bad mount point is refused with a clear message", "[integration][fuse]") {
  skip_without_fuse();
  Mounted m;
  ScratchDir scratch;
  put(scratch / "file", "x");
  TestFs other(scratch.path(), {});
  const auto refused = [&](mountd::MountOptions options) {
    mountd::MountError error;
    CHECK(mountd::FuseSession::mount(options, m.loops, other, error) == nullptr);
    CHECK(error.code);
    return error.message;
  };
  CHECK_THAT(refused({.mount_point = scratch / "none"}), ContainsSubstring("No such file"));
  CHECK_THAT(refused({.mount_point = scratch / "file"}), ContainsSubstring("not a directory"));
  CHECK_THAT(refused({.mount_point = m.mnt.path()}), ContainsSubstring("already a fermata mount"));
  CHECK_THAT(refused({.mount_point = m.mnt.path() + "/../" +
                                     m.mnt.path().substr(m.mnt.path().rfind('/') + 1)}),
             ContainsSubstring("already a fermata mount"));
  mountd::MountOptions above;
  above.mount_point = scratch.path();
  above.own_directories = {scratch / "cache"};
  CHECK_THAT(refused(above), ContainsSubstring("the daemon itself uses"));
  CHECK_FALSE(mountd::find_mount(scratch.path()));

  // What a killed daemon leaves: a mount whose device is closed.
  mountd::MountError error;
  const int device = mountd::mount_as_root({}, scratch.path(), error);
  REQUIRE(device >= 0);
  ::close(device);
  CHECK_THAT(refused({.mount_point = scratch.path()}), ContainsSubstring("umount -l"));
}

}  // namespace fermata::test
