// open(2) with O_APPEND: each write goes to the end as it is at that moment.
#include <set>

#include "test/posix/support/posix.h"

namespace fermata::posix {
namespace {

TEST_CASE("O_APPEND: writes go to the end wherever the offset is, and move it there") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDWR | O_APPEND);
  CHECK(::lseek(fd, 0, SEEK_CUR) == 0);
  OK(::write(fd, "de", 2));
  CHECK(::lseek(fd, 0, SEEK_CUR) == 5);
  OK(::lseek(fd, 0, SEEK_SET));
  OK(::write(fd, "f", 1));
  CHECK(content_of("f") == "abcdef");
}

TEST_CASE("O_APPEND: pwrite appends too, as on Linux") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDWR | O_APPEND);
  OK(::pwrite(fd, "d", 1, 0));
  CHECK(content_of("f") == "abcd");
  CHECK(::lseek(fd, 0, SEEK_CUR) == 0);
}

TEST_CASE("O_APPEND: the end is where others have put it") {
  const Fd one = open_fd("f", O_CREAT | O_WRONLY | O_APPEND);
  const Fd two = open_fd("f", O_WRONLY | O_APPEND);
  const Fd plain = open_fd("f", O_WRONLY);
  OK(::write(one, "a", 1));
  OK(::write(two, "b", 1));
  OK(::write(one, "c", 1));
  CHECK(content_of("f") == "abc");
  OK(::ftruncate(plain, 1));
  OK(::write(two, "d", 1));
  CHECK(content_of("f") == "ad");
  OK(::truncate("f", 4));
  OK(::write(one, "e", 1));
  CHECK(content_of("f") == std::string("ad\0\0e", 5));
}

TEST_CASE("O_APPEND: fcntl switches it on and off") {
  make_file("f", "abc");
  const Fd fd = open_fd("f", O_RDWR);
  OK(::fcntl(fd, F_SETFL, O_APPEND));
  OK(::pwrite(fd, "d", 1, 0));
  OK(::fcntl(fd, F_SETFL, 0));
  OK(::pwrite(fd, "X", 1, 0));
  CHECK(content_of("f") == "Xbcd");
}

TEST_CASE("O_APPEND: many processes lose and tear nothing") {
  constexpr int kProcesses = 4;
  constexpr int kRecords = 250;
  constexpr std::size_t kSize = 100;
  {
    std::vector<std::unique_ptr<Child>> writers;
    for (int i = 0; i < kProcesses; ++i) {
      writers.push_back(std::make_unique<Child>([i](Child& self) {
        const Fd fd = open_fd("log", O_CREAT | O_WRONLY | O_APPEND);
        self.await();
        for (int n = 0; n < kRecords; ++n) {
          std::string record = std::to_string(i) + ":" + std::to_string(n) + ":";
          record.resize(kSize - 1, static_cast<char>('a' + i));
          record += '\n';
          if (::write(fd, record.data(), record.size()) != static_cast<ssize_t>(kSize)) return 1;
        }
        return 0;
      }));
    }
    for (auto& writer : writers) writer->say();
    for (auto& writer : writers) CHECK(writer->join() == 0);
  }
  const std::string all = content_of("log");
  REQUIRE(all.size() == kProcesses * kRecords * kSize);
  std::set<std::string> records;
  for (std::size_t at = 0; at < all.size(); at += kSize) records.insert(all.substr(at, kSize));
  CHECK(records.size() == kProcesses * kRecords);
  for (const auto& record : records) CHECK(record.find('\n') == kSize - 1);
}

TEST_CASE("O_APPEND: a descriptor shared over fork appends in turn") {
  Fd fd = open_fd("f", O_CREAT | O_WRONLY | O_APPEND);
  OK(::write(fd, "parent\n", 7));
  CHECK(in_child([&] { return ::write(fd, "child\n", 6) == 6 ? 0 : 1; }) == 0);
  OK(::write(fd, "parent\n", 7));
  OK(fd.close());
  CHECK(content_of("f") == "parent\nchild\nparent\n");
}

}  // namespace
}  // namespace fermata::posix
