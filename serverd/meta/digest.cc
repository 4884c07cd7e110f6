#include "serverd/meta/digest.h"

#include <xxhash.h>

#include "common/base/bytes.h"

namespace fermata::serverd {
namespace {

struct StateDeleter {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

class Work final : public DigestWork {
 public:
  template <class Keep>
  Work(LogIndex index, std::unique_ptr<KvReader> reader, Keep keep)
      : index_(index), reader_(std::move(reader)), keep_(std::move(keep)) {}
  LogIndex index() const override { return index_; }
  Status run() override {
    FM_TRY(std::string digest, digest_of(*reader_));
    reader_.reset();  // lets go of the old state
    keep_(index_, std::move(digest));
    return {};
  }

 private:
  LogIndex index_;
  std::unique_ptr<KvReader> reader_;
  std::function<void(LogIndex, std::string)> keep_;
};

}  // namespace

Result<std::string> digest_of(const KvReader& reader) {
  const std::unique_ptr<XXH3_state_t, StateDeleter> hash(XXH3_createState());
  XXH3_128bits_reset(hash.get());
  const auto add = [&](std::string_view bytes) {
    const auto size = static_cast<std::uint32_t>(bytes.size());
    XXH3_128bits_update(hash.get(), &size, sizeof size);
    XXH3_128bits_update(hash.get(), bytes.data(), bytes.size());
  };
  for (const Family family : kFamilies) {
    const auto number = static_cast<std::uint8_t>(family);
    XXH3_128bits_update(hash.get(), &number, sizeof number);
    const auto it = reader.iterate(family, {}, {});
    for (; it->valid(); it->next()) {
      add(it->key());
      add(it->value());
    }
    FM_CHECK(it->status());
  }
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(hash.get()));
  return to_hex(canonical.digest, sizeof canonical.digest);
}

void Namespace::Digests::order(LogIndex index, std::unique_ptr<KvReader> reader) {
  const MutexLock lock(mutex_);
  ordered_.push_back({index, std::move(reader)});
  if (ordered_.size() > kOrderedMax) ordered_.pop_front();
}

std::shared_ptr<DigestWork> Namespace::Digests::next(const std::shared_ptr<Digests>& self) {
  const MutexLock lock(mutex_);
  if (ordered_.empty()) return nullptr;
  Ordered ordered = std::move(ordered_.front());
  ordered_.pop_front();
  return std::make_shared<Work>(
      ordered.index, std::move(ordered.reader),
      [self](LogIndex index, std::string digest) { self->keep(index, std::move(digest)); });
}

void Namespace::Digests::keep(LogIndex index, std::string digest) {
  const MutexLock lock(mutex_);
  kept_[index] = std::move(digest);
  if (kept_.size() > kKeptMax) kept_.erase(kept_.begin());
}

std::optional<std::string> Namespace::Digests::find(LogIndex index) const {
  const MutexLock lock(mutex_);
  const auto at = kept_.find(index);
  if (at == kept_.end()) return std::nullopt;
  return at->second;
}

void Namespace::Digests::clear() {
  const MutexLock lock(mutex_);
  ordered_.clear();
}

}  // namespace fermata::serverd
