// The namespace as of a log index: records with history carry the index that wrote them, and what
// they replaced lies in history under the index that ended it. So of a key's values the one in
// force at an index is found with one seek (transaction time: Snodgrass and Ahn, SIGMOD 1985).
#pragma once

#include <map>
#include <optional>
#include <string>

#include "serverd/meta/records.h"

namespace fermata::serverd {

/// Above every index: the newest state, without a look at history.
inline constexpr LogIndex kNow{UINT64_MAX};

/// The value of `key` after `at` was applied; none if there was none. The caller has checked that
/// history reaches back to `at`.
Result<std::optional<std::string>> value_at(const KvReader& reader, Family family,
                                            std::string_view key, LogIndex at);

/// The records in [lower, upper) then, the first `records_max` of them.
Result<std::map<std::string, std::string>> records_at(const KvReader& reader, Family family,
                                                      std::string_view lower,
                                                      std::string_view upper, LogIndex at,
                                                      std::size_t records_max);

}  // namespace fermata::serverd
