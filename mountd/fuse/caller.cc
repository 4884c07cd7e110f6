#include "mountd/fuse/caller.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

namespace fermata::mountd {
namespace {

// What fits is read by one call, so it is of one moment.
std::string read_proc(pid_t thread, const char* file) {
  const std::string path = "/proc/" + std::to_string(thread) + "/" + file;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  std::string text;
  char buffer[4096];
  for (ssize_t size = 0; (size = ::read(fd, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<std::size_t>(size));
    if (size < static_cast<ssize_t>(sizeof buffer)) break;
  }
  ::close(fd);
  return text;
}

std::uint64_t mask_after(const std::string& text, const char* label) {
  const auto at = text.find(label);
  return at == std::string::npos
             ? 0
             : std::strtoull(text.c_str() + at + std::strlen(label), nullptr, 16);
}

}  // namespace

bool is_being_killed(pid_t thread) {
  // A caller outside our pid namespace has no number here: nothing can be seen of its signals.
  if (thread == 0) return true;
  const std::string status = read_proc(thread, "status");
  if (status.empty()) return true;
  const std::uint64_t kill_bit = 1ULL << (SIGKILL - 1);
  return ((mask_after(status, "\nSigPnd:") | mask_after(status, "\nShdPnd:")) & kill_bit) != 0;
}

std::vector<std::uint32_t> groups_of(pid_t thread) {
  std::vector<std::uint32_t> groups;
  if (thread == 0) return groups;
  constexpr std::string_view kLabel = "\nGroups:";
  const std::string status = read_proc(thread, "status");
  const auto label = status.find(kLabel);
  if (label == std::string::npos) return groups;
  const char* at = status.c_str() + label + kLabel.size();
  while (*at != '\n' && *at != '\0') {
    if (*at < '0' || *at > '9') {
      ++at;
      continue;
    }
    char* end = nullptr;
    groups.push_back(static_cast<std::uint32_t>(std::strtoul(at, &end, 10)));
    at = end;
  }
  constexpr std::size_t kGroupsMax = 1024;  // of Credentials
  if (groups.size() > kGroupsMax) groups.resize(kGroupsMax);
  return groups;
}

bool has_signal(pid_t thread) {
  const std::string status = thread == 0 ? std::string() : read_proc(thread, "status");
  const std::uint64_t pending = mask_after(status, "\nSigPnd:") | mask_after(status, "\nShdPnd:");
  return (pending & ~mask_after(status, "\nSigBlk:")) != 0;
}

bool may_administrate(uid_t user, pid_t thread) {
  constexpr unsigned kSysAdmin = 21;  // CAP_SYS_ADMIN of include/uapi/linux/capability.h
  const std::string status = thread == 0 ? std::string() : read_proc(thread, "status");
  if (status.empty()) return user == 0;
  return (mask_after(status, "\nCapEff:") >> kSysAdmin & 1) != 0;
}

bool is_dying(pid_t thread) {
  if (thread == 0) return false;
  constexpr std::uint64_t kFlagExiting = 0x4;  // PF_EXITING of include/linux/sched.h
  // proc(5), fields after the name, which ends with the last ')': state is the third.
  constexpr int kFlagsField = 9;
  constexpr int kExitCodeField = 52;
  const std::string stat = read_proc(thread, "stat");
  const auto name_end = stat.rfind(')');
  if (name_end == std::string::npos) return true;
  const char* at = stat.c_str() + name_end + 2;
  std::uint64_t flags = 0;
  for (int field = 3; field <= kExitCodeField; ++field) {
    if (field == kFlagsField) flags = std::strtoull(at, nullptr, 10);
    if (field == kExitCodeField) break;
    at = std::strchr(at, ' ');
    if (at == nullptr) return false;
    ++at;
  }
  const std::uint64_t signal = std::strtoull(at, nullptr, 10) & 0x7f;
  return (flags & kFlagExiting) != 0 && signal != 0;
}

bool asks_for_ofd_lock(pid_t thread) {
  const std::string text = read_proc(thread, "syscall");
  long number = 0;
  unsigned long long descriptor = 0;
  unsigned long long command = 0;
  if (std::sscanf(text.c_str(), "%ld %llx %llx", &number, &descriptor, &command) != 3) return false;
  return number == SYS_fcntl && (command == F_OFD_SETLK || command == F_OFD_SETLKW);
}

}  // namespace fermata::mountd
