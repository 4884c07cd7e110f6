#include "common/access/acl.h"

#include <algorithm>

namespace fermata {
namespace {

using Tag = AclEntry::Tag;

constexpr std::uint32_t kVersion = 2;
constexpr std::size_t kHeaderBytes = 4;
constexpr std::size_t kEntryBytes = 8;
constexpr std::uint32_t kNoId = 0xffffffff;

bool is_named(Tag tag) { return tag == Tag::kUser || tag == Tag::kNamedGroup; }

std::uint32_t number(std::string_view bytes, std::size_t at, std::size_t size) {
  std::uint32_t value = 0;
  for (std::size_t i = size; i-- > 0;) {
    value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  }
  return value;
}

void append(std::string& to, std::uint32_t value, std::size_t size) {
  for (std::size_t i = 0; i < size; ++i) to += static_cast<char>(value >> 8 * i & 0xff);
}

/// Owner, named users, group, named groups, mask, others; each kind but the named ones once.
bool is_well_formed(const Acl& acl) {
  constexpr Tag kOnce[] = {Tag::kOwner, Tag::kGroup, Tag::kOther};
  const auto count = [&](Tag tag) {
    return std::count_if(acl.begin(), acl.end(), [&](const AclEntry& e) { return e.tag == tag; });
  };
  for (const Tag tag : kOnce) {
    if (count(tag) != 1) return false;
  }
  const bool named = std::any_of(acl.begin(), acl.end(),
                                 [](const AclEntry& entry) { return is_named(entry.tag); });
  const auto masks = count(Tag::kMask);
  if (masks > 1 || (named && masks == 0)) return false;
  const auto before = [](const AclEntry& a, const AclEntry& b) { return a.tag < b.tag; };
  return std::is_sorted(acl.begin(), acl.end(), before);
}

/// The entry that the mode's group bits stand for.
template <class AclType>
auto& group_class(AclType& acl) {
  const auto mask =
      std::find_if(acl.begin(), acl.end(), [](const AclEntry& e) { return e.tag == Tag::kMask; });
  if (mask != acl.end()) return *mask;
  return *std::find_if(acl.begin(), acl.end(),
                       [](const AclEntry& e) { return e.tag == Tag::kGroup; });
}

}  // namespace

Result<Acl> parse_acl(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes) return std::errc::invalid_argument;
  if (number(bytes, 0, 4) != kVersion) return std::errc::operation_not_supported;
  if ((bytes.size() - kHeaderBytes) % kEntryBytes != 0) return std::errc::invalid_argument;
  Acl acl;
  for (std::size_t at = kHeaderBytes; at < bytes.size(); at += kEntryBytes) {
    AclEntry entry;
    entry.tag = static_cast<Tag>(number(bytes, at, 2));
    entry.permissions = static_cast<std::uint16_t>(number(bytes, at + 2, 2));
    if (is_named(entry.tag)) entry.id = number(bytes, at + 4, 4);
    switch (entry.tag) {
      case Tag::kOwner:
      case Tag::kUser:
      case Tag::kGroup:
      case Tag::kNamedGroup:
      case Tag::kMask:
      case Tag::kOther:
        break;
      default:
        return std::errc::invalid_argument;
    }
    if (entry.permissions > 7) return std::errc::invalid_argument;
    acl.push_back(entry);
  }
  if (!is_well_formed(acl)) return std::errc::invalid_argument;
  return acl;
}

std::string encode_acl(const Acl& acl) {
  std::string bytes;
  bytes.reserve(kHeaderBytes + acl.size() * kEntryBytes);
  append(bytes, kVersion, 4);
  for (const AclEntry& entry : acl) {
    append(bytes, static_cast<std::uint32_t>(entry.tag), 2);
    append(bytes, entry.permissions, 2);
    append(bytes, is_named(entry.tag) ? entry.id : kNoId, 4);
  }
  return bytes;
}

// Well-formed: the owner is the first entry, others the last.
std::uint32_t mode_of(const Acl& acl) {
  return std::uint32_t{acl.front().permissions} << 6 |
         std::uint32_t{group_class(acl).permissions} << 3 | acl.back().permissions;
}

bool is_only_mode(const Acl& acl) { return acl.size() == 3; }

void set_mode(Acl& acl, std::uint32_t mode) {
  acl.front().permissions = mode >> 6 & 7;
  group_class(acl).permissions = mode >> 3 & 7;
  acl.back().permissions = mode & 7;
}

}  // namespace fermata
