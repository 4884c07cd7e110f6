#include "mountd/fs/identity.h"

#include <algorithm>
#include <charconv>

#include "common/access/acl.h"

namespace fermata::mountd {
namespace {

/// The next number of "A:B:C"; false if there is none.
bool take_number(std::string_view& text, std::uint32_t& number) {
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{}) return false;
  text.remove_prefix(static_cast<std::size_t>(at - text.data()));
  if (text.empty()) return true;
  if (text.front() != ':' || text.size() == 1) return false;
  text.remove_prefix(1);
  return true;
}

bool overlap(std::uint32_t a, std::uint32_t b, std::uint32_t count_a, std::uint32_t count_b) {
  return std::uint64_t{a} < std::uint64_t{b} + count_b &&
         std::uint64_t{b} < std::uint64_t{a} + count_a;
}

template <class Convert>
std::string convert_acl(std::string_view bytes, Convert convert) {
  auto acl = parse_acl(bytes);
  if (!acl) return std::string(bytes);
  for (AclEntry& entry : *acl) convert(entry);
  return encode_acl(*acl);
}

}  // namespace

bool IdMap::add(std::string_view text) {
  Range range;
  range.count = 1;
  if (!take_number(text, range.local) || text.empty() || !take_number(text, range.cluster))
    return false;
  if (!text.empty() && !take_number(text, range.count)) return false;
  // The last number stands for "no id" in system calls.
  const std::uint64_t end = std::uint64_t{std::max(range.local, range.cluster)} + range.count;
  if (!text.empty() || range.count == 0 || end > UINT32_MAX) return false;
  for (const Range& other : ranges_) {
    if (overlap(range.local, other.local, range.count, other.count) ||
        overlap(range.cluster, other.cluster, range.count, other.count))
      return false;
  }
  ranges_.push_back(range);
  return true;
}

std::uint32_t IdMap::convert(std::uint32_t id, Side from, Side to, std::uint32_t nobody) const {
  bool taken = false;
  for (const Range& range : ranges_) {
    if (id - range.*from < range.count) return range.*to + (id - range.*from);
    taken = taken || id - range.*to < range.count;
  }
  return taken ? nobody : id;
}

Credentials Identity::in_cluster(std::uint32_t uid, std::uint32_t gid,
                                 std::vector<std::uint32_t> supplementary) const {
  if (squashes(uid)) return {nobody_uid, nobody_gid, {}};
  const auto group = [this](std::uint32_t local) {
    return squash == Squash::kRoot && local == 0 ? nobody_gid : cluster_gid(local);
  };
  Credentials out{cluster_uid(uid), group(gid), std::move(supplementary)};
  for (std::uint32_t& each : out.groups) each = group(each);
  return out;
}

std::string Identity::acl_to_cluster(std::string_view bytes) const {
  return convert_acl(bytes, [this](AclEntry& entry) {
    if (entry.tag == AclEntry::Tag::kUser) entry.id = cluster_uid(entry.id);
    if (entry.tag == AclEntry::Tag::kNamedGroup) entry.id = cluster_gid(entry.id);
  });
}

std::string Identity::acl_to_local(std::string_view bytes) const {
  return convert_acl(bytes, [this](AclEntry& entry) {
    if (entry.tag == AclEntry::Tag::kUser) entry.id = local_uid(entry.id);
    if (entry.tag == AclEntry::Tag::kNamedGroup) entry.id = local_gid(entry.id);
  });
}

}  // namespace fermata::mountd
