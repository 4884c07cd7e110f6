// Who may do what with an inode: mode bits, access control lists, and who counts as its owner.
//
// The rules are those of acl(5) ("access check algorithm") and of path_resolution(7), as Linux has
// them; user 0 is what capabilities(7) calls CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_CHOWN and the like.
// Nothing here knows of capabilities that other users hold.
#pragma once

#include <cstdint>
#include <optional>

#include "common/access/acl.h"
#include "common/wire/messages.h"

namespace fermata {

inline constexpr std::uint32_t kMayRead = 4;
inline constexpr std::uint32_t kMayWrite = 2;
inline constexpr std::uint32_t kMayExecute = 1;  ///< of a directory: search

/// What decides over access to an inode.
struct Permissions {
  FileType type = FileType::kRegular;
  std::uint32_t mode = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::optional<Acl> acl = {};  ///< its access ACL, if it has one
};

inline bool is_superuser(const Credentials& who) { return who.uid == 0; }
/// It is who's group or among the supplementary ones.
bool in_group(const Credentials& who, std::uint32_t gid);
/// Owner or superuser.
inline bool owns(const Credentials& who, std::uint32_t uid) {
  return is_superuser(who) || who.uid == uid;
}

/// Whether `who` is granted everything in `wanted` (kMayRead, ... or'ed).
bool may(const Credentials& who, const Permissions& of, std::uint32_t wanted);

/// Of the entries of a sticky directory, only the owners of the entry and of the directory may
/// remove or rename one (inode(7)).
bool sticky_forbids(const Credentials& who, std::uint32_t directory_mode,
                    std::uint32_t directory_uid, std::uint32_t entry_uid);

}  // namespace fermata
