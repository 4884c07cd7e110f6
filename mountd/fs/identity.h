// Who a local caller is for the cluster, and whom the cluster's ids stand for here.
//
// Squashing is NFS's (exports(5)): who is squashed acts as nobody, whatever the local kernel lets
// that user do. Mapping is for machines whose accounts have other numbers than the cluster's.
//
// Thread-safety: immutable.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/wire/messages.h"

namespace fermata::mountd {

enum class Squash {
  kNone,
  kRoot,  ///< user 0 and group 0
  kAll,
};

/// Ranges of ids, here and in the cluster. Who is in no range has the same number in both.
class IdMap {
 public:
  /// "LOCAL:CLUSTER" or "LOCAL:CLUSTER:COUNT". False, and nothing changes, for anything else and
  /// for ranges that overlap, here or there, with one that was added.
  bool add(std::string_view text);
  bool empty() const { return ranges_.empty(); }
  /// An id that here belongs to nobody the cluster knows, because its number there is another's,
  /// is `nobody`; so for the other direction.
  std::uint32_t to_cluster(std::uint32_t local, std::uint32_t nobody) const {
    return convert(local, &Range::local, &Range::cluster, nobody);
  }
  std::uint32_t to_local(std::uint32_t cluster, std::uint32_t nobody) const {
    return convert(cluster, &Range::cluster, &Range::local, nobody);
  }

 private:
  struct Range {
    std::uint32_t local = 0;
    std::uint32_t cluster = 0;
    std::uint32_t count = 0;
  };
  using Side = std::uint32_t Range::*;
  std::uint32_t convert(std::uint32_t id, Side from, Side to, std::uint32_t nobody) const;
  std::vector<Range> ranges_;
};

struct Identity {
  Squash squash = Squash::kNone;
  std::uint32_t nobody_uid = 65534;
  std::uint32_t nobody_gid = 65534;
  IdMap users;
  IdMap groups;

  bool squashes(std::uint32_t local_uid) const {
    return squash == Squash::kAll || (squash == Squash::kRoot && local_uid == 0);
  }
  /// A caller's credentials; `supplementary` in local numbers.
  Credentials in_cluster(std::uint32_t uid, std::uint32_t gid,
                         std::vector<std::uint32_t> supplementary) const;
  std::uint32_t cluster_uid(std::uint32_t local) const {
    return users.to_cluster(local, nobody_uid);
  }
  std::uint32_t cluster_gid(std::uint32_t local) const {
    return groups.to_cluster(local, nobody_gid);
  }
  std::uint32_t local_uid(std::uint32_t cluster) const {
    return users.to_local(cluster, nobody_uid);
  }
  std::uint32_t local_gid(std::uint32_t cluster) const {
    return groups.to_local(cluster, nobody_gid);
  }
  bool maps() const { return !users.empty() || !groups.empty(); }
  /// An ACL's named users and groups (the xattr's bytes, common/access/acl.h) in the numbers of the
  /// other side. What is no ACL stays as it is: the cluster refuses it.
  std::string acl_to_cluster(std::string_view bytes) const;
  std::string acl_to_local(std::string_view bytes) const;
};

}  // namespace fermata::mountd
