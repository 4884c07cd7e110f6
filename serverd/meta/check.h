// Finds what the namespace's records say that cannot all be true: an fsck that only looks.
//
// It reads everything, so it is for tests, the simulator and an operator in doubt. An empty answer
// means: every entry leads to an inode of its type and every inode is reached, link counts,
// directory sizes, xattr and content sums are right, unlinked inodes are open somewhere, chunk
// reference counts are what the records name, history and its index agree, and quotas count what is
// theirs.
#pragma once

#include <string>
#include <vector>

#include "serverd/store/kv_store.h"

namespace fermata::serverd {

/// One sentence per problem, at most `problems_max`. Errors: the store's own.
Result<std::vector<std::string>> check(const KvReader& reader, std::size_t problems_max = 100);

}  // namespace fermata::serverd
