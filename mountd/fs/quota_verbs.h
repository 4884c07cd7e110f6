// The control socket's verbs about quotas: JSON to questions to the cluster and back.
//
//   {"verb":"quota-set","inode":N,"bytes":B,"inodes":I}  limits on a directory's tree; 0: none
//   {"verb":"quota-rm","inode":N}
//   {"verb":"quota-get","inode":N}                       the quotas that count the inode
//   {"verb":"quota-ls"}                                  all of the volume
//
// With "user" instead of "inode" a user's, in this machine's numbers.
//
// Thread-safety: any thread; blocks as the calls it is given do.
#pragma once

#include <functional>
#include <string>

#include "common/base/result.h"
#include "mountd/fs/identity.h"

namespace fermata::mountd {

/// The questions to the cluster, as whoever is connected to the socket.
struct QuotaCalls {
  std::function<Status(SetQuotaOp)> set;
  std::function<Result<QuotaList>(InodeId)> list;
};

/// The answer to `request`, a JSON object whose verb begins with "quota-".
std::string answer_quota_verb(const std::string& request, const Identity& identity,
                              const QuotaCalls& calls);

}  // namespace fermata::mountd
