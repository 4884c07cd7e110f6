#include "serverd/meta/past.h"

#include "serverd/meta/codec.h"

namespace fermata::serverd {

Result<std::optional<std::string>> value_at(const KvReader& reader, Family family,
                                            std::string_view key, LogIndex at) {
  if (at != kNow) {
    const std::string first = history_key(family, key, at.next());
    const std::string end = prefix_end(std::string_view(first).substr(0, first.size() - 8));
    const auto it = reader.iterate(Family::kHistory, first, end);
    if (it->valid()) {  // ended after `at`: in force then if it had begun
      FM_TRY(const LogIndex since, since_of(it->value()));
      if (since <= at) return std::optional(std::string(it->value()));
      return std::optional<std::string>();
    }
    FM_CHECK(it->status());
  }
  FM_TRY(auto value, reader.get(family, key));
  if (!value) return std::optional<std::string>();
  FM_TRY(const LogIndex since, since_of(*value));
  if (since > at) return std::optional<std::string>();
  return value;
}

Result<std::map<std::string, std::string>> records_at(const KvReader& reader, Family family,
                                                      std::string_view lower,
                                                      std::string_view upper, LogIndex at,
                                                      std::size_t records_max) {
  // Each of the two walks yields at most one value of a key, and never both: their times do not
  // overlap.
  std::map<std::string, std::string> records;
  const auto current = reader.iterate(family, lower, upper);
  for (; current->valid() && records.size() < records_max; current->next()) {
    FM_TRY(const LogIndex since, since_of(current->value()));
    if (since <= at) records.emplace(current->key(), current->value());
  }
  FM_CHECK(current->status());
  if (at == kNow) return records;
  std::string first(1, static_cast<char>(family)), end(first);
  first += lower;
  end += upper;
  if (upper.empty()) end = prefix_end(end);
  std::size_t taken = 0;
  const auto past = reader.iterate(Family::kHistory, first, end);
  for (; past->valid() && taken < records_max; past->next()) {
    if (past->key().size() < 10) return Errc::kCorruptStore;
    const LogIndex ended(number_in(past->key(), past->key().size() - 8));
    const std::string_view key = past->key().substr(1, past->key().size() - 10);
    if (ended <= at || key < lower) continue;  // "a" then zero sorts above the bound "a\0"
    FM_TRY(const LogIndex since, since_of(past->value()));
    if (since > at) continue;
    records.emplace(key, past->value());
    ++taken;
  }
  FM_CHECK(past->status());
  while (records.size() > records_max) records.erase(std::prev(records.end()));
  return records;
}

}  // namespace fermata::serverd
