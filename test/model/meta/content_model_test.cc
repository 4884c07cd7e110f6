// Random commits and folds of one file against its bytes: whatever chunks, patches and folds have
// made of it, each version reads as the bytes that were committed as it.
#include <map>

#include "common/base/checksum.h"
#include "serverd/service/patch_folder.h"
#include "test/unit/serverd/meta/fixture.h"

using namespace fermata;
using namespace fermata::serverd;
using namespace fermata::serverd::test;

namespace {

constexpr std::uint64_t kMiB = kChunkSizeBytes;
constexpr std::uint64_t kSizeMax = 4 * kMiB;

class FileModel {
 public:
  explicit FileModel(std::uint64_t seed) : random_(seed), d_(*memory_.store) {
    d_.bootstrap();
    file_ = d_.create(kRootInode, "f").inode;
  }

  void step() {
    switch (random_.below(12)) {
      case 0:
        return write_whole();
      case 1:
        return write_blocks();
      case 2:
        return cut();
      case 3:
        return grow();
      case 4:
      case 5:
        return plan_folds();
      case 6:
      case 7:
        return fold_some();
      case 8:
        if (random_.chance(1, 8)) write_inline();
        return;
      case 9:
        if (random_.chance(1, 8))
          d_.run(d_.command(PruneHistoryCommand{LogIndex(random_.below(d_.log.size() + 1)), 50}));
        return;
      default:
        return patch();
    }
  }

  void check() {
    CHECK((bytes_of(*d_.ns->content(file_, 0, 100)) == bytes_));
    if (versions_.empty()) return;
    auto at = versions_.begin();
    std::advance(at, random_.below(versions_.size()));
    CAPTURE(at->first.value());
    const auto past = d_.ns->content_at(file_, at->first, 0, 100);
    if (past) {
      CHECK((bytes_of(*past) == at->second));
      ++past_reads_;
    } else {
      CHECK(past.error() == Errc::kTruncatedHistory);
      CHECK(LogIndex(at->first.value()) < d_.ns->history_start());
    }
    while (versions_.size() > 12) versions_.erase(versions_.begin());
  }
  void check_records() { CHECK(d_.problems() == std::vector<std::string>{}); }
  std::uint64_t folded() const { return folded_; }
  std::uint64_t void_folds() const { return void_folds_; }
  std::uint64_t past_reads() const { return past_reads_; }

 private:
  ChunkId store(ByteView bytes) {
    const ChunkId id = chunk_id_of(bytes);
    chunks_.insert_or_assign(id, Buffer::copy_of(bytes));
    return id;
  }
  std::string bytes_of(const Content& content) const {
    std::string out = content.inline_bytes;
    out.resize(content.size_bytes);
    for (const ChunkRef& ref : content.chunks) {
      const ByteView bytes = chunks_.at(ref.id).view();
      const std::uint64_t begin = ref.index * kMiB;
      std::memcpy(out.data() + begin, bytes.data(), std::min(bytes.size(), out.size() - begin));
    }
    for (const PatchRecord& patch : content.patches) {
      REQUIRE(patch.offset_bytes + patch.bytes.size() <= out.size());
      out.replace(patch.offset_bytes, patch.bytes.size(), patch.bytes);
    }
    return out;
  }
  std::string some_bytes(std::size_t size) {
    std::string out(size, static_cast<char>('a' + random_.below(26)));
    if (size > 1) out[random_.below(size)] = '\0';
    return out;
  }
  /// Block `index` of the file, its trailing zeros left out now and then: they need not be stored.
  ChunkRef block(const std::string& bytes, std::uint64_t index) {
    std::string part = bytes.substr(index * kMiB, kMiB);
    if (random_.chance(1, 2)) part.resize(part.find_last_not_of('\0') + 1);
    ChunkRef ref{static_cast<std::uint32_t>(index), {}};
    if (!part.empty()) ref.id = store(as_bytes(part));
    return ref;
  }
  void commit(CommitOp::Kind kind, bool whole, std::string bytes, const std::string& payload,
              std::vector<Patch> patches = {}) {
    CommitOp op;
    op.inode = file_;
    op.base = d_.version(file_);
    op.kind = kind;
    op.whole = whole;
    op.size_bytes = bytes.size();
    op.patches = std::move(patches);
    const auto result = d_.mutate(op, payload);
    if (result.error != 0) return;  // refused: nothing has changed
    bytes_ = std::move(bytes);
    versions_[result.version] = bytes_;
  }

  void write_inline() {
    const std::string bytes = some_bytes(1 + random_.below(100));
    commit(CommitOp::Kind::kInline, true, bytes, bytes);
  }
  void write_whole() {
    std::string bytes(kInlineBytesMax + random_.below(kSizeMax - kInlineBytesMax), '\0');
    std::vector<ChunkRef> refs;
    for (std::uint64_t i = 0; i * kMiB < bytes.size(); ++i) {
      if (random_.chance(1, 3)) continue;
      const std::string some = some_bytes(1 + random_.below(3000));
      const std::uint64_t space = std::min(kMiB, bytes.size() - i * kMiB);
      const std::uint64_t size = std::min<std::uint64_t>(space, some.size());
      bytes.replace(i * kMiB + random_.below(space - size + 1), size, some, 0, size);
      if (const ChunkRef ref = block(bytes, i); ref.id) refs.push_back(ref);
    }
    commit(CommitOp::Kind::kChunks, true, bytes, records(refs));
  }
  void write_blocks() {
    if (bytes_.size() <= kInlineBytesMax) return;
    std::string bytes = bytes_;
    const std::uint64_t index = random_.below((bytes.size() + kMiB - 1) / kMiB);
    const std::uint64_t space = std::min(kMiB, bytes.size() - index * kMiB);
    if (random_.chance(1, 4)) {
      bytes.replace(index * kMiB, space, space, '\0');
    } else {
      bytes[index * kMiB + random_.below(space)] = 'B';
    }
    commit(CommitOp::Kind::kChunks, false, bytes, records({block(bytes, index)}));
  }
  void cut() {
    const std::uint64_t size = 1 + random_.below(bytes_.size() + 1);
    if (size >= bytes_.size() || size <= kInlineBytesMax) return;
    std::string bytes = bytes_.substr(0, size);
    if (random_.chance(1, 4)) return commit(CommitOp::Kind::kPatches, false, bytes, "");
    std::vector<ChunkRef> refs;
    const auto last = static_cast<std::uint32_t>((size - 1) / kMiB);
    if (random_.chance(2, 3)) refs.push_back(block(bytes, last));
    commit(CommitOp::Kind::kChunks, false, bytes, records(refs));
  }
  void grow() {
    if (bytes_.size() <= kInlineBytesMax || bytes_.size() >= kSizeMax) return;
    std::string bytes = bytes_;
    bytes.resize(bytes.size() + random_.below(kSizeMax - bytes.size()));
    commit(CommitOp::Kind::kChunks, false, bytes, "");
  }
  void patch() {
    std::string bytes = bytes_;
    std::string payload;
    std::vector<Patch> patches;
    for (std::uint64_t i = 1 + random_.below(3); i > 0; --i) {
      std::uint64_t offset = random_.below(std::min(bytes.size() + 5000, kSizeMax - 5000));
      if (random_.chance(1, 4)) offset = kMiB - random_.below(100);
      const std::string some = some_bytes(1 + random_.below(4000));
      bytes.resize(std::max<std::size_t>(bytes.size(), offset + some.size()));
      bytes.replace(offset, some.size(), some);
      payload += some;
      patches.push_back({offset, static_cast<std::uint32_t>(some.size())});
    }
    commit(CommitOp::Kind::kPatches, false, bytes, payload, patches);
  }

  /// As the primary does it; what comes of it is proposed at once, later, or never.
  void plan_folds() {
    const auto patches = d_.ns->patches(file_);
    REQUIRE(patches);
    FoldPatchesCommand command{file_, {}};
    for (PatchedChunk& chunk : plan_fold(*patches, false)) {
      if (random_.chance(1, 4)) continue;
      // Some of the oldest will do.
      if (random_.chance(1, 3)) chunk.patches.resize(1 + random_.below(chunk.patches.size()));
      FoldPatchesCommand::Chunk folded;
      folded.index = chunk.index;
      const auto base = *d_.ns->chunk(file_, chunk.index);
      folded.from = base.value_or(ChunkId{});
      folded.to = store(fold_chunk(base ? chunks_.at(*base) : Buffer(), chunk).view());
      for (const StoredPatch& stored : chunk.patches)
        folded.patches.push_back({stored.index, stored.number, stored.since});
      command.chunks.push_back(std::move(folded));
    }
    if (!command.chunks.empty()) folds_.push_back(std::move(command));
  }
  void fold_some() {
    if (folds_.empty()) return;
    const auto which = folds_.begin() + static_cast<std::ptrdiff_t>(random_.below(folds_.size()));
    const std::uint64_t count = d_.run(d_.command(*which)).count;
    folded_ += count;
    void_folds_ += which->chunks.size() - count;
    if (random_.chance(2, 3)) folds_.erase(which);
  }

  SeededRandom random_;
  Memory memory_;
  Driver d_;
  InodeId file_;
  std::string bytes_;
  std::map<Version, std::string> versions_;
  std::map<ChunkId, Buffer> chunks_;
  std::vector<FoldPatchesCommand> folds_;
  std::uint64_t folded_ = 0, void_folds_ = 0, past_reads_ = 0;
};

}  // namespace

TEST_CASE("Namespace: every version reads as it was committed, folded or not", "[model][meta]") {
  std::uint64_t folded = 0, void_folds = 0, past_reads = 0;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    CAPTURE(seed);
    FileModel model(seed);
    for (int i = 1; i <= 700; ++i) {
      CAPTURE(i);
      model.step();
      model.check();
      if (i % 100 == 0) model.check_records();
    }
    folded += model.folded();
    void_folds += model.void_folds();
    past_reads += model.past_reads();
  }
  // It was no idle run.
  CHECK(folded > 100);
  CHECK(void_folds > 100);
  CHECK(past_reads > 500);
}
