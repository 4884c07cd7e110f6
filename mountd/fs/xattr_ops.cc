// Extended attributes: all of an inode's are fetched and cached together.
#include <sys/xattr.h>

#include "common/access/access.h"
#include "mountd/fs/file_system.h"
#include "mountd/fuse/caller.h"

namespace fermata::mountd {
namespace {

constexpr std::string_view kPrefixes[] = {"user.", "trusted.", "security."};

bool is_acl(std::string_view name) { return name == kAclAccess || name == kAclDefault; }

/// 0, or the errno of a name that no file has. Who may use which namespace is the kernel's to say.
/// An ACL that the kernel does not obey is refused rather than stored.
int error_of(std::string_view name, bool acls) {
  if (is_acl(name)) return acls ? 0 : EOPNOTSUPP;
  for (const auto prefix : kPrefixes) {
    if (name.starts_with(prefix)) return name == prefix ? EINVAL : 0;
  }
  return EOPNOTSUPP;
}

constexpr auto kAnswerText = [](XattrReply& to, const std::string& value) {
  to.value(as_bytes(value));
};
constexpr auto kAnswerOk = [](StatusReply& to) { to.ok(); };

/// As listxattr(2) answers, which shows trusted names only to who may read them (xattr(7)).
std::string names_of(const NodeTable::Xattrs& xattrs, uid_t user, pid_t caller) {
  std::string out;
  for (const auto& [name, value] : xattrs) {
    if (name.starts_with("trusted.") && !may_administrate(user, caller)) continue;
    out += name;
    out += '\0';
  }
  return out;
}

}  // namespace

Task<std::shared_ptr<const NodeTable::Xattrs>> FileSystem::all_xattrs(LoopContext& at,
                                                                      Credentials who,
                                                                      NodeHandle node) {
  const auto inode = table_.inode_of(node);
  if (!inode) co_return from_errno(ESTALE);
  if (auto cached = table_.xattrs(*inode)) co_return cached;
  auto answer = co_await at.client->getxattrs(who, *inode);
  if (!answer) co_return stale_if_gone(*inode, answer.error());
  auto all = std::make_shared<const NodeTable::Xattrs>(answer->xattrs);
  table_.set_xattrs(*inode, std::move(answer->xattrs), answer->stamp, answer->leased);
  co_return all;
}

void FileSystem::getxattr(Ctx ctx, NodeHandle node, std::string_view name, XattrReply reply) {
  if (const int error = error_of(name, acls_)) return reply.error(error);
  const auto inode = table_.inode_of(node);
  if (!inode) return reply.error(ESTALE);
  const bool squashed = options_.identity.squashes(ctx.uid);
  if (squashed && name.starts_with("trusted.")) return reply.error(ENODATA);  // xattr(7)
  const auto cached = table_.xattrs(*inode);
  if (cached && !squashed) {
    const auto found = cached->find(std::string(name));
    if (found == cached->end()) return reply.error(ENODATA);
    return reply.value(as_bytes(shown(name, found->second)));
  }
  auto task = do_getxattr(at(reply), cred(ctx), node, std::string(name), squashed);
  run_request(ctx, std::move(reply), std::move(task), kAnswerText);
}

/// An xattr as it is to be seen here.
std::string FileSystem::shown(std::string_view name, const std::string& value) const {
  return is_acl(name) && options_.identity.maps() ? options_.identity.acl_to_local(value) : value;
}

Task<std::string> FileSystem::do_getxattr(LoopContext& at, Credentials who, NodeHandle node,
                                          std::string name, bool squashed) {
  if (name.starts_with("user."))
    FM_CO_CHECK(co_await check_squashed(at, who, node, kMayRead, squashed));
  FM_CO_TRY(const auto all, co_await all_xattrs(at, who, node));
  const auto found = all->find(name);
  if (found == all->end()) co_return std::errc::no_message_available;
  co_return shown(name, found->second);
}

void FileSystem::listxattr(Ctx ctx, NodeHandle node, XattrReply reply) {
  const auto inode = table_.inode_of(node);
  if (!inode) return reply.error(ESTALE);
  // A squashed root is not asked for the capabilities that it has here.
  const bool squashed = options_.identity.squashes(ctx.uid);
  const pid_t caller = squashed ? 0 : ctx.pid;
  const uid_t user = squashed ? options_.identity.nobody_uid : ctx.uid;
  if (const auto cached = table_.xattrs(*inode)) {
    return reply.value(as_bytes(names_of(*cached, user, caller)));
  }
  auto task = do_listxattr(at(reply), cred(ctx), node, caller);
  run_request(ctx, std::move(reply), std::move(task), kAnswerText);
}

Task<std::string> FileSystem::do_listxattr(LoopContext& at, Credentials who, NodeHandle node,
                                           pid_t caller) {
  FM_CO_TRY(const auto all, co_await all_xattrs(at, who, node));
  co_return names_of(*all, who.uid, caller);
}

// trusted and security attributes are for who has CAP_SYS_ADMIN here, whatever the user
// (xattr(7)): for the cluster that is user 0.
Credentials FileSystem::cred_for(Ctx ctx, std::string_view xattr) const {
  const bool privileged = xattr.starts_with("trusted.") || xattr.starts_with("security.");
  const bool squashed = options_.identity.squashes(ctx.uid);
  if (privileged && !squashed && may_administrate(ctx.uid, ctx.pid)) return {};
  return cred(ctx);
}

void FileSystem::setxattr(Ctx ctx, NodeHandle node, const SetXattr& what, StatusReply reply) {
  if (options_.read_only) return reply.error(EROFS);
  if (const int error = error_of(what.name, acls_)) return reply.error(error);
  if (what.name.size() > kXattrNameMax) return reply.error(ERANGE);
  if (what.value.size() > kXattrValueMax) return reply.error(E2BIG);
  SetXattrOp op;
  op.name = what.name;
  op.value = as_text(what.value);
  if (is_acl(what.name) && options_.identity.maps())
    op.value = options_.identity.acl_to_cluster(op.value);
  if ((what.flags & XATTR_CREATE) != 0) op.flags |= SetXattrOp::kCreate;
  if ((what.flags & XATTR_REPLACE) != 0) op.flags |= SetXattrOp::kReplace;
  op.clear_sgid = what.kill_sgid;
  auto task = do_setxattr(at(reply), cred_for(ctx, what.name), node, std::move(op));
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
}

Task<void> FileSystem::do_setxattr(LoopContext& at, Credentials who, NodeHandle node,
                                   SetXattrOp op) {
  const auto inode = table_.inode_of(node);
  if (!inode) co_return from_errno(ESTALE);
  FM_CO_CHECK(co_await send_below(at, *inode));
  op.inode = *inode;
  const std::string name = op.name;
  std::string value = op.value;
  Mutation mutation = std::move(op);
  const auto answer = co_await at.client->mutate(who, std::move(mutation));
  if (!answer) co_return stale_if_gone(*inode, answer.error());
  const MutationReply& reply = *answer;
  if (reply.attr) table_.apply(*reply.attr, reply.stamp, reply.leased);
  if (is_acl(name)) {
    table_.drop_xattrs(*inode, reply.stamp);  // one that says no more than the mode is not kept
  } else {
    table_.change_xattr(*inode, name, std::move(value), reply.stamp, reply.leased);
  }
  refresh_other_nodes(*inode, node);
  co_return fermata::Status{};
}

void FileSystem::removexattr(Ctx ctx, NodeHandle node, std::string_view name, StatusReply reply) {
  if (options_.read_only) return reply.error(EROFS);
  if (const int error = error_of(name, acls_)) return reply.error(error);
  auto task = do_removexattr(at(reply), cred_for(ctx, name), node, std::string(name));
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
}

Task<void> FileSystem::do_removexattr(LoopContext& at, Credentials who, NodeHandle node,
                                      std::string name) {
  const auto inode = table_.inode_of(node);
  if (!inode) co_return from_errno(ESTALE);
  FM_CO_CHECK(co_await send_below(at, *inode));
  Mutation op = RemoveXattrOp{*inode, name};
  const auto answer = co_await at.client->mutate(who, std::move(op));
  if (!answer) co_return stale_if_gone(*inode, answer.error());
  const MutationReply& reply = *answer;
  if (reply.attr) table_.apply(*reply.attr, reply.stamp, reply.leased);
  table_.change_xattr(*inode, name, std::nullopt, reply.stamp, reply.leased);
  refresh_other_nodes(*inode, node);
  co_return fermata::Status{};
}

}  // namespace fermata::mountd
