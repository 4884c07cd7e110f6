// POSIX access control lists: what acl(5) describes, in the form of the xattrs that carry them.
//
// An inode's ACLs are its xattrs system.posix_acl_access and, for directories,
// system.posix_acl_default, in the kernel's format (include/uapi/linux/posix_acl_xattr.h): a
// version and entries in a fixed order. An access ACL and the mode always agree: the owner's and
// others' bits are the same, and the mode's group bits are the mask's if there is one. An ACL that
// says no more than nine bits is not kept. The rules are those of IEEE 1003.1e draft 17, as Linux
// has them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.h"

namespace fermata {

inline constexpr std::string_view kAclAccess = "system.posix_acl_access";
inline constexpr std::string_view kAclDefault = "system.posix_acl_default";

struct AclEntry {
  enum class Tag : std::uint16_t {
    kOwner = 0x01,
    kUser = 0x02,  ///< the one with `id`
    kGroup = 0x04,
    kNamedGroup = 0x08,  ///< the one with `id`
    kMask = 0x10,
    kOther = 0x20,
  };
  Tag tag = Tag::kOwner;
  std::uint16_t permissions = 0;  ///< 4 read, 2 write, 1 execute
  std::uint32_t id = 0;           ///< of a named user or group
  bool operator==(const AclEntry&) const = default;
};
using Acl = std::vector<AclEntry>;

/// Errors: EOPNOTSUPP for an unknown version; EINVAL for what is no ACL: entries missing, twice,
/// out of order or unknown, or named ones without a mask.
Result<Acl> parse_acl(std::string_view bytes);
std::string encode_acl(const Acl& acl);

/// The nine mode bits that stand for it.
std::uint32_t mode_of(const Acl& acl);
/// Whether mode_of() says it all.
bool is_only_mode(const Acl& acl);
/// As chmod does: owner, others, and the mask or else the group get the mode's bits.
void set_mode(Acl& acl, std::uint32_t mode);

}  // namespace fermata
