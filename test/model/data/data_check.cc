#include "test/model/data/data_check.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <system_error>
#include <vector>

namespace fermata::test::data {
namespace {

constexpr std::size_t kLogged = 40;  // operations that are told of

/// What a file does not hold.
struct Difference {
  std::string what;
};

template <class T>
T must(T result, const std::string& what) {
  if (result < 0) throw std::system_error(errno, std::generic_category(), what);
  return result;
}

class Mapping {
 public:
  Mapping(int fd, std::size_t size)
      : size_(size), at_(::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) {
    if (at_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(at_, size_); }
  char* data() const { return static_cast<char*>(at_); }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  void* at_;
};

struct File {
  std::string name;
  std::string shadow;
  int fd = -1;
  std::unique_ptr<Mapping> mapping;  ///< may outlive the descriptor
  std::deque<std::string> log;
};

class Check {
 public:
  explicit Check(const Options& options) : options_(options), random_(options.seed) {
    for (int i = 0; i < options.files; ++i) {
      files_.emplace_back();
      files_.back().name = "data" + std::to_string(i);
      if (::unlink(path(files_.back()).c_str()) != 0 && errno != ENOENT) must(-1, "unlink");
    }
  }
  ~Check() {
    for (File& file : files_)
      if (file.fd >= 0) ::close(file.fd);
  }
  Check(const Check&) = delete;
  Check& operator=(const Check&) = delete;

  std::string run() {
    for (std::uint64_t i = 0; i < options_.ops; ++i) {
      File& file = files_[below(files_.size())];
      try {
        step(file);
      } catch (const Difference& difference) {
        return report(file, i, difference.what);
      } catch (const std::system_error& error) {
        return report(file, i, error.what());
      }
    }
    for (File& file : files_) {
      try {
        close(file);
        compare(file, path(file), "at the end");
      } catch (const Difference& difference) {
        return report(file, options_.ops, difference.what);
      }
    }
    return {};
  }

 private:
  static std::string report(const File& file, std::uint64_t op, const std::string& what) {
    std::string out = "operation " + std::to_string(op) + ", " + file.name + ": " + what + "\n";
    for (const std::string& line : file.log) out += "  " + line + "\n";
    return out;
  }

  // ---- random numbers

  std::uint64_t below(std::uint64_t limit) { return limit == 0 ? 0 : random_() % limit; }

  /// Near a page's or a chunk's border as often as not.
  std::uint64_t somewhere(std::uint64_t limit) {
    std::uint64_t at = below(limit + 1);
    if (below(2) == 0) {
      const std::uint64_t unit = below(2) == 0 ? 4096 : 1 << 20;
      at = at / unit * unit + below(3);
      at -= std::min<std::uint64_t>(at, below(3));
    }
    return std::min(at, limit);
  }

  /// Mostly small.
  std::uint64_t some_size(std::uint64_t limit) {
    constexpr std::uint64_t kSmall = 5000;
    return 1 + below(std::min(limit, below(3) == 0 ? limit : kSmall));
  }

  std::string bytes(std::size_t size) {
    std::string out(size, '\0');
    const std::uint64_t salt = random_();
    for (std::size_t i = 0; i < size; ++i)
      out[i] = static_cast<char>((salt + i * 2654435761u) >> 13);
    return out;
  }

  // ---- the file

  std::string path(const File& file) const { return options_.dir + "/" + file.name; }

  static void note(File& file, std::string line) {
    file.log.push_back(std::move(line));
    if (file.log.size() > kLogged) file.log.pop_front();
  }
  static std::string range(std::uint64_t at, std::uint64_t size) {
    return " [" + std::to_string(at) + ", +" + std::to_string(size) + ")";
  }

  /// At most so many are open, so that all of them fit into a cache.
  void close_others(const File& needed, const File& too) {
    std::vector<File*> open;
    for (File& file : files_)
      if (file.fd >= 0 || file.mapping) open.push_back(&file);
    if (open.size() < static_cast<std::size_t>(options_.open_max)) return;
    std::erase_if(open, [&](const File* file) { return file == &needed || file == &too; });
    if (!open.empty()) close(*open[below(open.size())]);
  }

  void open(File& file) { open(file, file); }
  void open(File& file, const File& beside) {
    if (file.fd >= 0) return;
    close_others(file, beside);
    // A descriptor without O_TRUNC: what was there stays.
    file.fd = must(::open(path(file).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644), "open");
    note(file, "open");
  }

  /// Stores through a mapping are committed when it goes.
  void unmap(File& file) {
    if (!file.mapping) return;
    file.mapping.reset();
    note(file, "munmap");
  }

  void close(File& file) {
    unmap(file);
    if (file.fd < 0) return;
    must(::close(std::exchange(file.fd, -1)), "close");
    note(file, "close");
    if (!options_.other.empty())
      compare(file, options_.other + "/" + file.name, "through the other mount");
  }

  void compare(const File& file, const std::string& from, const std::string& how) {
    const int fd = ::open(from.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT && file.shadow.empty()) return;  // not made yet
    must(fd, "open for reading " + how);
    std::string all(file.shadow.size() + 1, '\0');
    std::size_t got = 0;
    ssize_t more = 0;
    do {
      more = ::pread(fd, all.data() + got, all.size() - got, static_cast<off_t>(got));
      got += static_cast<std::size_t>(std::max<ssize_t>(more, 0));
    } while (more > 0 && got < all.size());
    const int error = errno;
    ::close(fd);
    if (more < 0) throw Difference{"read " + how + ": " + std::strerror(error)};
    all.resize(got);
    expect(all, file.shadow, how);
  }

  static void expect(std::string_view got, std::string_view wanted, const std::string& how) {
    if (got == wanted) return;
    const auto at = static_cast<std::size_t>(
        std::mismatch(got.begin(), got.end(), wanted.begin(), wanted.end()).first - got.begin());
    const auto show = [&](std::string_view bytes) {
      return at < bytes.size() ? std::to_string(static_cast<unsigned char>(bytes[at])) : "its end";
    };
    throw Difference{how + ": byte " + std::to_string(at) + " is " + show(got) + " instead of " +
                     show(wanted) + "; " + std::to_string(got.size()) + " bytes instead of " +
                     std::to_string(wanted.size())};
  }

  void put(File& file, std::uint64_t at, std::string_view data) {
    if (file.shadow.size() < at + data.size()) file.shadow.resize(at + data.size());
    file.shadow.replace(at, data.size(), data);
  }

  // ---- operations

  void step(File& file) {
    open(file);
    const std::uint64_t limit = options_.size_max_bytes;
    const std::uint64_t size = file.shadow.size();
    switch (below(20)) {
      case 0:
      case 1:
      case 2:
        return write(file, somewhere(limit - 1), limit);
      case 3:
        return write(file, size, limit);
      case 4:
      case 5:
      case 6:
        return read(file, somewhere(size));
      case 7:
        return cut(file, somewhere(below(3) == 0 ? limit : size));
      case 8:
      case 9:
        return map_write(file);
      case 10:
        return map_read(file);
      case 11:
      case 12:
        return allocate(file, somewhere(limit - 1));
      case 13:
        return copy(file);
      case 14:
        note(file, "fsync");
        must(below(2) == 0 ? ::fsync(file.fd) : ::fdatasync(file.fd), "fsync");
        return;
      case 15:
        return holes(file);
      case 16:
        return replace(file);
      default:
        return close(file);
    }
  }

  void write(File& file, std::uint64_t at, std::uint64_t limit) {
    if (at >= limit) return;
    const std::string data = bytes(some_size(limit - at));
    note(file, "write" + range(at, data.size()));
    const auto done = ::pwrite(file.fd, data.data(), data.size(), static_cast<off_t>(at));
    if (must(done, "write") != static_cast<ssize_t>(data.size())) throw Difference{"short write"};
    put(file, at, data);
  }

  void read(File& file, std::uint64_t at) {
    const std::uint64_t size = some_size(options_.size_max_bytes);
    note(file, "read" + range(at, size));
    std::string got(size, '\0');
    const ssize_t done = must(::pread(file.fd, got.data(), size, static_cast<off_t>(at)), "read");
    got.resize(static_cast<std::size_t>(done));
    expect(got, std::string_view(file.shadow).substr(at, size), "read from " + std::to_string(at));
  }

  void cut(File& file, std::uint64_t size) {
    // A page of a mapping behind the end is no page to touch.
    unmap(file);
    note(file, "truncate to " + std::to_string(size));
    must(below(2) == 0 ? ::ftruncate(file.fd, static_cast<off_t>(size))
                       : ::truncate(path(file).c_str(), static_cast<off_t>(size)),
         "truncate");
    file.shadow.resize(size);
  }

  bool map(File& file) {
    if (file.mapping && file.mapping->size() == file.shadow.size()) return true;
    unmap(file);
    if (file.shadow.empty()) return false;
    file.mapping = std::make_unique<Mapping>(file.fd, file.shadow.size());
    note(file, "mmap");
    return true;
  }

  void map_write(File& file) {
    if (!map(file)) return;
    const std::uint64_t at = somewhere(file.shadow.size() - 1);
    const std::string data = bytes(some_size(file.shadow.size() - at));
    note(file, "store" + range(at, data.size()));
    std::memcpy(file.mapping->data() + at, data.data(), data.size());
    put(file, at, data);
    if (below(2) == 0) {
      note(file, "msync");
      must(::msync(file.mapping->data(), file.mapping->size(), MS_SYNC), "msync");
    }
    if (below(3) == 0) {
      // The mapping lives on, and is written after the close.
      must(::close(std::exchange(file.fd, -1)), "close");
      note(file, "close, mapped");
      const std::uint64_t later = somewhere(file.shadow.size() - 1);
      file.mapping->data()[later] = 'm';
      file.shadow[later] = 'm';
      note(file, "store" + range(later, 1));
    }
  }

  void map_read(File& file) {
    if (!map(file)) return;
    note(file, "look at the mapping");
    expect({file.mapping->data(), file.mapping->size()}, file.shadow, "mapping");
  }

  void allocate(File& file, std::uint64_t at) {
    const std::uint64_t size = some_size(options_.size_max_bytes - at);
    int mode = 0;
    const char* name = "allocate";
    switch (below(4)) {
      case 0:
        mode = FALLOC_FL_KEEP_SIZE;
        name = "allocate, keep size";
        break;
      case 1:
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
        name = "punch";
        break;
      case 2:
        mode = FALLOC_FL_ZERO_RANGE;
        name = "zero";
        break;
      default:
        break;
    }
    note(file, name + range(at, size));
    must(::fallocate(file.fd, mode, static_cast<off_t>(at), static_cast<off_t>(size)), name);
    const bool grows = (mode & FALLOC_FL_KEEP_SIZE) == 0;
    if (grows && file.shadow.size() < at + size) file.shadow.resize(at + size);
    if ((mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0 && at < file.shadow.size()) {
      const std::uint64_t zeros = std::min<std::uint64_t>(size, file.shadow.size() - at);
      file.shadow.replace(at, zeros, zeros, '\0');
    }
  }

  void copy(File& to) {
    File& from = files_[below(files_.size())];
    if (&from == &to || from.shadow.empty()) return;
    open(from, to);
    auto source = static_cast<off_t>(somewhere(from.shadow.size() - 1));
    auto target = static_cast<off_t>(somewhere(options_.size_max_bytes - 1));
    std::uint64_t left = some_size(
        std::min<std::uint64_t>(from.shadow.size() - static_cast<std::uint64_t>(source),
                                options_.size_max_bytes - static_cast<std::uint64_t>(target)));
    note(to, "copy from " + from.name + " at " + std::to_string(source) +
                 range(static_cast<std::uint64_t>(target), left));
    const std::string data = from.shadow.substr(static_cast<std::size_t>(source), left);
    put(to, static_cast<std::uint64_t>(target), data);
    while (left > 0) {
      const ssize_t done =
          must(::copy_file_range(from.fd, &source, to.fd, &target, left, 0), "copy_file_range");
      if (done == 0) throw Difference{"copy_file_range came to an end"};
      left -= static_cast<std::uint64_t>(done);
    }
  }

  /// What is said to be a hole is zeros, and the last hole begins at the end.
  void holes(File& file) {
    note(file, "walk the holes");
    // The kernel does not write stores of a mapping back before it asks a FUSE daemon.
    if (file.mapping) must(::msync(file.mapping->data(), file.mapping->size(), MS_SYNC), "msync");
    const auto size = static_cast<off_t>(file.shadow.size());
    off_t at = 0;
    while (at < size) {
      off_t data = ::lseek(file.fd, at, SEEK_DATA);
      if (data < 0 && errno == ENXIO) data = size;
      must(data, "SEEK_DATA");
      const auto hole =
          std::string_view(file.shadow)
              .substr(static_cast<std::size_t>(at), static_cast<std::size_t>(data - at));
      if (hole.find_first_not_of('\0') != std::string_view::npos)
        throw Difference{"data is told of as a hole at " + std::to_string(at)};
      if (data == size) return;
      at = must(::lseek(file.fd, data, SEEK_HOLE), "SEEK_HOLE");
      if (at <= data) throw Difference{"a hole at " + std::to_string(at) + ", in data"};
    }
    if (at > size) throw Difference{"a hole behind the end"};
  }

  /// A new file in the old one's place, by rename or after unlink.
  void replace(File& file) {
    close(file);
    const std::string fresh = path(file) + ".new";
    const bool rename = below(2) == 0;
    note(file, rename ? "rename a new file over it" : "unlink");
    if (rename) {
      const int fd = must(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644), "open");
      const std::string data = bytes(some_size(options_.size_max_bytes));
      const auto done = ::write(fd, data.data(), data.size());
      if (must(done, "write") != static_cast<ssize_t>(data.size())) throw Difference{"short write"};
      must(::close(fd), "close");
      must(::rename(fresh.c_str(), path(file).c_str()), "rename");
      file.shadow = data;
    } else {
      if (::unlink(path(file).c_str()) != 0 && errno != ENOENT) must(-1, "unlink");
      file.shadow.clear();
    }
  }

  const Options options_;
  std::mt19937_64 random_;
  std::deque<File> files_;
};

}  // namespace

std::string check(const Options& options) { return Check(options).run(); }

}  // namespace fermata::test::data
