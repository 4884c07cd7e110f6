#include "mountd/fs/quota_verbs.h"

#include <boost/json.hpp>
#include <cerrno>
#include <optional>

namespace fermata::mountd {
namespace {

namespace json = boost::json;

std::string failed(const std::string& why) { return json::serialize(json::object{{"error", why}}); }

std::string failed(std::error_code error) {
  switch (to_errno(error)) {
    case EPERM:
      return failed("only root may see all quotas, and set or remove one");
    case EBUSY:
      return failed("the quota that was here is still being removed; try again in a moment");
    case ENODATA:
      return failed("there is no quota to remove");
    case ENOSPC:
      return failed("this volume has as many quotas as it may have");
    case EINVAL:
      return failed("user 0 has no quota");
    case ETIMEDOUT:
      return failed("no primary answers: does a majority of the nodes run (fermata status)?");
    default:
      return failed(error.message());
  }
}

std::optional<std::uint64_t> number_of(const json::object& request, const char* key) {
  const json::value* value = request.if_contains(key);
  if (value == nullptr || !value->is_number()) return {};
  std::error_code error;
  const auto number = value->to_number<std::uint64_t>(error);
  return error ? std::nullopt : std::optional(number);
}

json::object to_json(const QuotaList::Quota& quota, const Identity& identity) {
  const std::string state = quota.phase == QuotaPhase::kExact      ? "exact"
                            : quota.phase == QuotaPhase::kCounting ? "counting"
                                                                   : "removing";
  json::object out{{"bytes_max", quota.bytes_max},
                   {"bytes", quota.bytes},
                   {"inodes_max", quota.inodes_max},
                   {"inodes", quota.inodes},
                   {"state", state}};
  if (quota.kind == QuotaKind::kTree) {
    out["kind"] = "tree";
    out["inode"] = quota.id;
    out["path"] = quota.path;
  } else {
    out["kind"] = "user";
    out["user"] = identity.local_uid(static_cast<std::uint32_t>(quota.id));
  }
  return out;
}

std::string list(InodeId inode, const Identity& identity, const QuotaCalls& calls) {
  const auto quotas = calls.list(inode);
  if (!quotas) return failed(quotas.error());
  json::array out;
  for (const auto& quota : quotas->quotas) out.push_back(to_json(quota, identity));
  return json::serialize(json::object{{"version", 1}, {"quotas", std::move(out)}});
}

}  // namespace

std::string answer_quota_verb(const std::string& request, const Identity& identity,
                              const QuotaCalls& calls) {
  boost::system::error_code error;
  const json::value parsed = json::parse(request, error);
  if (error || !parsed.is_object()) return failed("want a JSON object");
  const json::object& asked = parsed.as_object();
  const json::value* verb = asked.if_contains("verb");
  if (verb == nullptr || !verb->is_string()) return failed("want a verb");
  const std::string name(verb->as_string());
  if (name == "quota-ls") return list(InodeId(), identity, calls);
  const auto inode = number_of(asked, "inode");
  const auto user = number_of(asked, "user");
  if (name == "quota-get" && inode) return list(InodeId(*inode), identity, calls);
  if ((name != "quota-set" && name != "quota-rm") || inode.has_value() == user.has_value() ||
      user.value_or(0) > UINT32_MAX)
    return failed("want quota-set, quota-rm, quota-get or quota-ls, of an inode or a user");
  SetQuotaOp op;
  op.remove = name == "quota-rm";
  op.kind = inode ? QuotaKind::kTree : QuotaKind::kUser;
  op.id = inode ? *inode : identity.cluster_uid(static_cast<std::uint32_t>(*user));
  op.bytes_max = number_of(asked, "bytes");
  op.inodes_max = number_of(asked, "inodes");
  const Status done = calls.set(op);
  return done ? json::serialize(json::object{{"done", true}}) : failed(done.error());
}

}  // namespace fermata::mountd
