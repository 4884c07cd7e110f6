#include "mountd/fs/options.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>

namespace fermata::mountd {
namespace {

bool parse_seconds(const std::string& text, std::chrono::nanoseconds& to) {
  char* end = nullptr;
  const double seconds = std::strtod(text.c_str(), &end);
  constexpr double kMax = 1e9;
  if (text.empty() || *end != '\0' || !std::isfinite(seconds) || seconds < 0 || seconds > kMax)
    return false;
  to = std::chrono::nanoseconds(static_cast<std::int64_t>(seconds * 1e9));
  return true;
}

bool parse_id(const std::string& text, std::uint32_t& to) {
  std::uint32_t id = 0;
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc{} || at != text.data() + text.size() || id == UINT32_MAX) return false;
  to = id;
  return true;
}

const std::map<std::string, std::function<void(MountdOptions&)>> kFlags = {
    {"ro", [](MountdOptions& o) { o.read_only = true; }},
    {"rw", [](MountdOptions& o) { o.read_only = false; }},
    {"noatime", [](MountdOptions& o) { o.atime = AtimeRule::kNever; }},
    {"atime", [](MountdOptions& o) { o.atime = AtimeRule::kRelative; }},
    {"relatime", [](MountdOptions& o) { o.atime = AtimeRule::kRelative; }},
    {"strictatime", [](MountdOptions& o) { o.atime = AtimeRule::kAlways; }},
    {"suid", [](MountdOptions& o) { o.suid = true; }},
    {"nosuid", [](MountdOptions& o) { o.suid = false; }},
    {"dev", [](MountdOptions& o) { o.dev = true; }},
    {"nodev", [](MountdOptions& o) { o.dev = false; }},
    {"exec", [](MountdOptions& o) { o.exec = true; }},
    {"noexec", [](MountdOptions& o) { o.exec = false; }},
    {"passthrough", [](MountdOptions& o) { o.passthrough = true; }},
    {"nopassthrough", [](MountdOptions& o) { o.passthrough = false; }},
    {"lockdelegation", [](MountdOptions& o) { o.lock_delegation = true; }},
    {"nolockdelegation", [](MountdOptions& o) { o.lock_delegation = false; }},
    {"exclusive", [](MountdOptions& o) { o.exclusive = true; }},
    {"noexclusive", [](MountdOptions& o) { o.exclusive = false; }},
    {"hard", [](MountdOptions& o) { o.soft = false; }},
    {"soft", [](MountdOptions& o) { o.soft = true; }},
    {"no_root_squash", [](MountdOptions& o) { o.identity.squash = Squash::kNone; }},
    {"root_squash", [](MountdOptions& o) { o.identity.squash = Squash::kRoot; }},
    {"all_squash", [](MountdOptions& o) { o.identity.squash = Squash::kAll; }},
    {"allow_other", [](MountdOptions&) {}},          // always so
    {"default_permissions", [](MountdOptions&) {}},  // always so
};
/// Those with a value, and what it is.
constexpr const char* kValued[] = {
    "anonuid=UID",           "anongid=GID",   "attr_timeout=SECONDS", "cache-size=SIZE",
    "entry_timeout=SECONDS", "io_uring=auto", "io_uring=on",          "io_uring=off",
    "map_gid=MAP",           "map_uid=MAP",   "soft_timeout=SECONDS"};

std::string apply_one(MountdOptions& to, const std::string& name, const std::string& value,
                      bool has_value) {
  if (const auto flag = kFlags.find(name); flag != kFlags.end()) {
    if (has_value) return "mount option " + name + " takes no value";
    flag->second(to);
    return {};
  }
  if (name == "anonuid" || name == "anongid") {
    std::uint32_t& id = name == "anonuid" ? to.identity.nobody_uid : to.identity.nobody_gid;
    if (!parse_id(value, id))
      return "mount option " + name + " wants a number, not \"" + value + "\"";
    return {};
  }
  if (name == "map_uid" || name == "map_gid") {
    IdMap& map = name == "map_uid" ? to.identity.users : to.identity.groups;
    if (map.add(value)) return {};
    return "mount option " + name +
           " wants LOCAL:CLUSTER or LOCAL:CLUSTER:COUNT that overlaps with "
           "no other, not \"" +
           value + "\"";
  }
  std::chrono::nanoseconds seconds{};
  if (name == "cache-size") {
    const auto size = parse_size(value);
    if (!size) return "mount option cache-size wants a size such as 10G, not \"" + value + "\"";
    to.cache_size_bytes = *size;
  } else if (name == "io_uring") {
    static const std::map<std::string, IoUring> kWishes = {
        {"auto", IoUring::kAuto}, {"on", IoUring::kOn}, {"off", IoUring::kOff}};
    const auto wish = kWishes.find(value);
    if (wish == kWishes.end())
      return "mount option io_uring wants auto, on or off, not \"" + value + "\"";
    to.io_uring = wish->second;
  } else if (name == "attr_timeout" || name == "entry_timeout" || name == "soft_timeout") {
    if (!parse_seconds(value, seconds))
      return "mount option " + name + " wants seconds, not \"" + value + "\"";
    if (name == "attr_timeout") to.attr_timeout = seconds;
    if (name == "entry_timeout") to.entry_timeout = seconds;
    if (name == "soft_timeout") to.soft_timeout = std::chrono::ceil<std::chrono::seconds>(seconds);
  } else {
    return "unknown mount option \"" + name + "\"";
  }
  return {};
}

}  // namespace

std::string apply_mount_options(MountdOptions& to, const std::string& text) {
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t comma = std::min(text.find(',', begin), text.size());
    const std::string one = text.substr(begin, comma - begin);
    begin = comma + 1;
    if (one.empty()) continue;
    const auto equals = one.find('=');
    const bool has_value = equals != std::string::npos;
    auto error =
        apply_one(to, one.substr(0, equals), has_value ? one.substr(equals + 1) : "", has_value);
    if (!error.empty()) return error;
  }
  return {};
}

std::string mount_option_names() {
  std::string names;
  for (const auto& [name, apply] : kFlags) names += (names.empty() ? "" : ", ") + name;
  for (const char* name : kValued) names += std::string(", ") + name;
  return names;
}

Result<std::uint64_t> parse_size(const std::string& text) {
  std::uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [at, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc{} || at == text.data()) return std::errc::invalid_argument;
  static const std::map<std::string, unsigned> kShifts = {{"", 0},     {"K", 10},   {"M", 20},
                                                          {"G", 30},   {"T", 40},   {"KiB", 10},
                                                          {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
  const auto shift = kShifts.find(std::string(at, end));
  if (shift == kShifts.end()) return std::errc::invalid_argument;
  if (number > (~0ULL >> shift->second)) return std::errc::invalid_argument;
  return number << shift->second;
}

}  // namespace fermata::mountd
