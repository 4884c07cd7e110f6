#include "mountd/cache/session_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>

#include "common/base/bytes.h"
#include "common/base/checksum.h"
#include "mountd/cache/posix_file.h"

namespace fermata::mountd {
namespace {

constexpr std::uint32_t kMagic = 0x4e434d46;  // "FMCN"

struct Record {
  std::uint32_t magic;
  std::uint32_t checksum;  // of the file with this field as zero
  std::uint64_t session, epoch;
  std::uint64_t device, inode;  // the directory's
  std::array<char, 40> boot;    // the kernel's boot id
};
static_assert(sizeof(Record) == 80);

ByteView bytes_of(const Record& record) {
  return {reinterpret_cast<const std::byte*>(&record), sizeof record};
}

/// As this machine and this directory have it now.
Result<Record> record_of(const std::string& directory, const SessionFile::Mark& mark) {
  Record out{kMagic, 0, mark.session.value(), mark.epoch.value(), 0, 0, {}};
  struct stat st {};
  if (::stat(directory.c_str(), &st) != 0) return last_errno();
  out.device = st.st_dev;
  out.inode = st.st_ino;
  FM_TRY(out.boot, posix::boot_id());
  out.checksum = crc32c(bytes_of(out));
  return out;
}

}  // namespace

std::optional<SessionFile::Mark> SessionFile::former() const {
  const auto bytes = posix::read_whole(path(), sizeof(Record));
  if (!bytes || bytes->size() != sizeof(Record)) return std::nullopt;
  const auto read = load_le<Record>(bytes->data());
  const Mark mark{SessionId(read.session), Epoch(read.epoch)};
  const auto now = record_of(directory_, mark);
  if (!now || !mark.session || !std::ranges::equal(bytes_of(*now), ByteView(*bytes)))
    return std::nullopt;
  return mark;
}

Status SessionFile::save(const Mark& mark) const {
  FM_TRY(const Record record, record_of(directory_, mark));
  return posix::replace_file(path(), bytes_of(record), posix::Durability::kNone);
}

}  // namespace fermata::mountd
