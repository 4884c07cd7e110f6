#include "common/access/access.h"

#include <algorithm>

namespace fermata {
namespace {

using Tag = AclEntry::Tag;

constexpr std::uint32_t kSticky = 01000;
constexpr std::uint32_t kAnyExecute = 0111;

/// acl(5): the owner's entry, else a named user's, else one group that grants everything, else
/// others; named users and all groups count no more than the mask.
bool acl_grants(const Credentials& who, const Permissions& of, std::uint32_t wanted) {
  const Acl& acl = *of.acl;
  const auto find = [&](Tag tag) {
    return std::find_if(acl.begin(), acl.end(), [&](const AclEntry& e) { return e.tag == tag; });
  };
  if (who.uid == of.uid) return (acl.front().permissions & wanted) == wanted;
  const auto mask = find(Tag::kMask);
  const std::uint32_t most = mask == acl.end() ? 7U : mask->permissions;
  for (const AclEntry& entry : acl) {
    if (entry.tag == Tag::kUser && entry.id == who.uid)
      return (entry.permissions & most & wanted) == wanted;
  }
  bool member = false;
  for (const AclEntry& entry : acl) {
    const bool theirs = (entry.tag == Tag::kGroup && in_group(who, of.gid)) ||
                        (entry.tag == Tag::kNamedGroup && in_group(who, entry.id));
    if (!theirs) continue;
    if ((entry.permissions & most & wanted) == wanted) return true;
    member = true;
  }
  return !member && (acl.back().permissions & wanted) == wanted;
}

}  // namespace

bool in_group(const Credentials& who, std::uint32_t gid) {
  return who.gid == gid || std::find(who.groups.begin(), who.groups.end(), gid) != who.groups.end();
}

bool may(const Credentials& who, const Permissions& of, std::uint32_t wanted) {
  if (is_superuser(who)) {
    // Executes what anybody may execute; searches every directory.
    const bool executes = (wanted & kMayExecute) != 0 && of.type != FileType::kDirectory;
    return !executes || (of.mode & kAnyExecute) != 0;
  }
  // Linux (acl_permission_check() in fs/namei.c) does not look at an ACL whose mask grants nothing:
  // whom it names then has what others have.
  constexpr std::uint32_t kMask = 070;
  if (of.acl && (of.mode & kMask) != 0) return acl_grants(who, of, wanted);
  std::uint32_t bits = of.mode;
  if (who.uid == of.uid) {
    bits >>= 6;
  } else if (in_group(who, of.gid)) {
    bits >>= 3;
  }
  return (bits & wanted) == wanted;
}

bool sticky_forbids(const Credentials& who, std::uint32_t directory_mode,
                    std::uint32_t directory_uid, std::uint32_t entry_uid) {
  return (directory_mode & kSticky) != 0 && !owns(who, directory_uid) && who.uid != entry_uid;
}

}  // namespace fermata
