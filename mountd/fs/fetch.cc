#include "mountd/fs/fetch.h"

#include <algorithm>

#include "common/io/task_group.h"
#include "mountd/fs/signal.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {

constexpr std::size_t kFetchesParallel = 4;  // each holds one chunk in memory

struct Fetch {
  CachePin copy;
  std::shared_ptr<const FileContent> content;
  std::shared_ptr<FillJob> job;
  std::uint64_t size_bytes = 0;
  std::vector<ChunkId> ids;   // per block; none is a hole
  std::vector<bool> patched;  // per block: patches lie over it
  std::vector<bool> taken;    // per block: fetched or being so
  std::size_t next = 0;
  std::size_t running = 0;
  std::error_code error;
  std::shared_ptr<Signal> finished;

  // The next block to fetch; none when all are taken.
  std::optional<std::uint32_t> take() {
    {
      MutexLock lock(job->mutex);
      while (!job->urgent.empty()) {
        const std::uint32_t index = job->urgent.back();
        job->urgent.pop_back();
        if (index < taken.size() && !taken[index]) {
          taken[index] = true;
          return index;
        }
      }
    }
    while (next < taken.size() && taken[next]) ++next;
    if (next == taken.size()) return std::nullopt;
    taken[next] = true;
    return static_cast<std::uint32_t>(next++);
  }
};

Task<void> fetch_block(Env& env, ClusterClient& client, std::shared_ptr<Fetch> fetch,
                       std::uint32_t index) {
  const std::uint64_t offset = std::uint64_t{index} * kBlockSizeBytes;
  const std::uint64_t size = std::min<std::uint64_t>(kBlockSizeBytes, fetch->size_bytes - offset);
  const CachePin copy = fetch->copy;
  const ChunkId id = fetch->ids[index];
  if (!id && !fetch->patched[index]) co_return copy->fill_hole(offset, size);
  Buffer bytes;
  if (id) {
    FM_CO_TRY(bytes, co_await client.get_chunk(id));
  }
  if (bytes.size() != size || fetch->patched[index]) {
    // A chunk of a file that was cut or grew since it was written; patches need bytes of our own.
    Buffer whole = Buffer::allocate(size);
    const auto to = whole.mutable_view();
    const std::size_t have = std::min<std::size_t>(bytes.size(), size);
    if (have != 0) std::memcpy(to.data(), bytes.view().data(), have);
    std::memset(to.data() + have, 0, size - have);
    apply_patches(to, offset, fetch->content->patches);
    bytes = std::move(whole);
  }
  const auto job = [copy, offset, bytes] { return copy->write_fill(offset, bytes.view()); };
  co_return co_await blocking<void>(env, job);
}

asio::awaitable<void> fetch_worker(Env& env, ClusterClient& client, std::shared_ptr<Fetch> fetch) {
  while (!fetch->error) {
    const auto index = fetch->take();
    if (!index) break;
    auto status = co_await fetch_block(env, client, fetch, *index);
    if (!status && !fetch->error) fetch->error = status.error();
  }
  if (--fetch->running == 0) fetch->finished->set(fetch->error);
}

Task<void> fetch_chunks(Env& env, ClusterClient& client, CachePin copy,
                        std::shared_ptr<const FileContent> content, std::uint64_t size_bytes,
                        std::shared_ptr<FillJob> job) {
  auto fetch = std::make_shared<Fetch>();
  const std::uint64_t count = block_count_of(size_bytes);
  fetch->copy = std::move(copy);
  fetch->content = content;
  fetch->job = std::move(job);
  fetch->size_bytes = size_bytes;
  fetch->ids.resize(count);
  fetch->patched.resize(count);
  fetch->taken.resize(count);
  for (const auto& ref : content->chunks) {
    if (ref.index < count) fetch->ids[ref.index] = ref.id;
  }
  for (const auto& [patch, bytes] : content->patches) {
    if (patch.size_bytes == 0) continue;
    const std::uint64_t last = (patch.offset_bytes + patch.size_bytes - 1) / kBlockSizeBytes;
    for (auto i = patch.offset_bytes / kBlockSizeBytes; i <= last && i < count; ++i) {
      fetch->patched[i] = true;
    }
  }
  const auto executor = co_await asio::this_coro::executor;
  fetch->running = std::min<std::size_t>(kFetchesParallel, count);
  fetch->finished = std::make_shared<Signal>(executor);
  TaskGroup workers(executor);
  for (std::size_t i = fetch->running; i > 0; --i) {
    workers.spawn("fetch", fetch_worker(env, client, fetch));
  }
  if (count == 0) fetch->finished->set({});
  const auto error = co_await fetch->finished->wait();
  if (error) workers.cancel_all();
  co_await workers.join();
  if (error) co_return error;
  const CachePin filled = fetch->copy;
  auto chunks = content->patches.empty() ? fetch->ids : std::vector<ChunkId>{};
  const auto finish = [filled, chunks = std::move(chunks)] { return filled->finish_fill(chunks); };
  co_return co_await blocking<void>(env, finish);
}

}  // namespace

void apply_patches(MutableByteView block, std::uint64_t block_offset_bytes,
                   const std::vector<std::pair<Patch, Buffer>>& patches) {
  const std::uint64_t block_end = block_offset_bytes + block.size();
  for (const auto& [patch, bytes] : patches) {
    const std::uint64_t begin = std::max(patch.offset_bytes, block_offset_bytes);
    const std::uint64_t end = std::min(patch.offset_bytes + bytes.size(), block_end);
    if (begin >= end) continue;
    std::memcpy(block.data() + (begin - block_offset_bytes),
                bytes.view().data() + (begin - patch.offset_bytes), end - begin);
  }
}

Task<void> fetch_content(Env& env, ClusterClient& client, CachePin copy,
                         std::shared_ptr<const FileContent> content, std::uint64_t size_bytes,
                         std::shared_ptr<FillJob> job) {
  Status status;
  if (content->kind == fermata::OpenReply::Content::kInline) {
    const auto fill = [copy, content]() -> Status {
      if (!content->inline_bytes.empty()) {
        FM_CHECK(copy->write_fill(0, content->inline_bytes.view()));
      }
      return copy->finish_fill({});
    };
    status = co_await blocking<void>(env, fill);
  } else {
    status = co_await fetch_chunks(env, client, copy, content, size_bytes, job);
  }
  if (!status) copy->fail_fill(status.error());
  std::vector<std::shared_ptr<Signal>> waiters;
  {
    MutexLock lock(job->mutex);
    job->done = true;
    job->result = status ? std::error_code{} : status.error();
    waiters.swap(job->waiters);
  }
  for (const auto& waiter : waiters) waiter->set(status ? std::error_code{} : status.error());
  co_return status;
}

}  // namespace fermata::mountd
