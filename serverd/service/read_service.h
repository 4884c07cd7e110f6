// Reads at the primary: linearizable, with leases for the caller where no mutation is under way.
//
// Every answer's stamp is taken after the last co_await, together with its reading and its leases.
// Thread-safety: the node's executor.
#pragma once

#include "common/access/access.h"
#include "serverd/service/node_context.h"

namespace fermata::serverd {

class ReadService {
 public:
  explicit ReadService(NodeContext& node) : node_(node) {}

  boost::asio::awaitable<Response> lookup(Request request);
  boost::asio::awaitable<Response> getattr(Request request);
  boost::asio::awaitable<Response> readdir(Request request);
  boost::asio::awaitable<Response> open(Request request);
  boost::asio::awaitable<Response> content(Request request);
  boost::asio::awaitable<Response> xattrs(Request request);
  boost::asio::awaitable<Response> statfs(Request request);

 private:
  /// Whom to grant leases: none if the header's session is not live.
  SessionId grantee(const ReadHeader& header) const;
  Response refused(std::error_code error) const;
  /// readable(), and nobody else than `session` may have made files in the directory of which the
  /// state does not know. Nor (`name`) in the one that it leads to there.
  Task<void> readable_directory(InodeId directory, SessionId session, const std::string* name);
  Result<Permissions> permissions(const Attr& attr) const;
  /// Of the caller, by the newest state. Errors: EACCES; ENOENT.
  Status check_search(const Credentials& who, InodeId directory) const;
  Status check_content(const Credentials& who, const Attr& attr) const;
  Status check_list(const Credentials& who, const Attr& directory) const;

  NodeContext& node_;
};

}  // namespace fermata::serverd
