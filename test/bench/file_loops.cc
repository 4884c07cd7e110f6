// Times loops of system calls on small files of one directory and prints the microseconds of one
// round of each, as JSON. requests.py runs it on mounts.
//
// usage: file_loops DIRECTORY COUNT: it makes COUNT files, works on them, and removes them.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace {

constexpr std::size_t kSizeBytes = 4096;

void check(bool good, const char* what) {
  if (good) return;
  std::perror(what);
  std::exit(1);
}

void write_file(const std::string& path) {
  static const std::string bytes(kSizeBytes, 'b');
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL, 0644);
  check(fd >= 0, "create");
  check(::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()), "write");
  check(::close(fd) == 0, "close");
}

void read_file(const std::string& path) {
  static char bytes[kSizeBytes];
  const int fd = ::open(path.c_str(), O_RDONLY);
  check(fd >= 0, "open");
  check(::read(fd, bytes, sizeof bytes) == static_cast<ssize_t>(sizeof bytes), "read");
  check(::close(fd) == 0, "close");
}

double microseconds_each(const std::vector<std::string>& paths, int rounds,
                         const std::function<void(const std::string&)>& work) {
  const auto start = std::chrono::steady_clock::now();
  for (int round = 0; round < rounds; ++round) {
    for (const auto& path : paths) work(path);
  }
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
  return took.count() / (rounds * static_cast<double>(paths.size()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 || std::atoi(argv[2]) < 1) {
    std::fprintf(stderr, "usage: file_loops DIRECTORY COUNT\n");
    return 2;
  }
  const int count = std::atoi(argv[2]);
  constexpr int kFilesMax = 200;  // opened again and again
  std::vector<std::string> paths;
  for (int i = 0; i < count; ++i) {
    paths.push_back(std::string(argv[1]) + "/file-" + std::to_string(i));
  }
  const std::vector<std::string> few(paths.begin(), paths.begin() + std::min(count, kFilesMax));
  const int rounds = std::max(1, count / static_cast<int>(few.size())) * 10;

  const double create = microseconds_each(paths, 1, write_file);
  for (const auto& path : few) read_file(path);  // now they are warm
  const double open = microseconds_each(few, rounds, read_file);
  const double stat = microseconds_each(few, rounds, [](const std::string& path) {
    struct stat attr {};
    check(::stat(path.c_str(), &attr) == 0, "stat");
  });
  // A name that is not there: the kernel keeps no such answer of the floor's, so it asks.
  const double absent = microseconds_each(few, rounds, [](const std::string& path) {
    check(::access((path + "-none").c_str(), F_OK) != 0, "access");
  });
  const double unlink = microseconds_each(
      paths, 1, [](const std::string& path) { check(::unlink(path.c_str()) == 0, "unlink"); });
  std::printf(
      "{\"open_read_close\": %.2f, \"create_write_close\": %.2f, \"unlink\": %.2f, "
      "\"stat\": %.3f, \"absent\": %.2f}\n",
      open, create, unlink, stat, absent);
  return 0;
}
