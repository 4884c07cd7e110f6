// Reading and writing open files on the ordinary path, and what works on their copies.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "mountd/fs/attributes.h"
#include "mountd/fs/file_system.h"

namespace fermata::mountd {
namespace asio = boost::asio;
namespace {
constexpr std::size_t kInlineWriteMax = 64u << 10;  // larger ones may be throttled by the disk
constexpr std::uint64_t kCopyMax = 64u << 20;       // of one request, so that it can be interrupted
constexpr auto kAnswerOk = [](StatusReply& to) { to.ok(); };
constexpr auto kAnswerWritten = [](WriteReply& to, std::size_t size) { to.written(size); };
}  // namespace

Task<void> FileSystem::wait_present(LoopContext& at, std::shared_ptr<Handle> handle,
                                    std::uint64_t offset, std::uint64_t size) {
  static_cast<void>(at);
  if (handle->copy->complete()) co_return fermata::Status{};
  const auto signal = std::make_shared<Signal>(co_await asio::this_coro::executor);
  std::shared_ptr<FillJob> job;
  {
    MutexLock lock(handle->file->mutex);
    job = handle->file->fill;
  }
  if (job && size != 0 && !handle->copy->present(offset, size)) {
    MutexLock lock(job->mutex);
    for (auto i = (offset + size - 1) / kBlockSizeBytes;; --i) {
      job->urgent.push_back(static_cast<std::uint32_t>(i));
      if (i <= offset / kBlockSizeBytes) break;
    }
  }
  handle->copy->when_present(offset, size, [signal](std::error_code error) { signal->set(error); });
  const auto error = co_await signal->wait();
  if (error) co_return error;
  co_return fermata::Status{};
}

void FileSystem::read(Ctx ctx, NodeHandle, std::uint64_t fh, std::uint64_t offset, std::size_t size,
                      ReadReply reply) {
  const auto open = handle(fh);
  if (!open) return reply.error(EBADF);
  if (open->counts_reads && size != 0) {
    // One READ of each open is enough, but for strictatime.
    const bool again = open->read_noted.exchange(true) && options_.atime != AtimeRule::kAlways;
    if (!again) note_read(open->file->inode);
  }
  const bool ready = open->copy->complete() || open->copy->present(offset, size);
  if (ready && reply.try_file(open->reader->get(), offset, size)) return;
  LoopContext& here = at(reply);
  auto task = std::make_shared<RequestTask<ReadReply>>(std::move(reply), ctx.pid);
  task->watch_interrupts();
  asio::co_spawn(here.env->executor(), do_read(here, open, offset, size, task),
                 asio::bind_cancellation_slot(task->cancel.slot(), [task](std::exception_ptr) {
                   task->finish();
                   if (task->reply) task->reply.error(EINTR);
                 }));
}

// The reply itself goes to the blocking pool: it reads the file straight into the answer.
asio::awaitable<void> FileSystem::do_read(LoopContext& at, std::shared_ptr<Handle> handle,
                                          std::uint64_t offset, std::size_t size,
                                          std::shared_ptr<RequestTask<ReadReply>> task) {
  co_await asio::this_coro::throw_if_cancelled(false);
  const auto present = co_await wait_present(at, handle, offset, size);
  if (!present) {
    task->finish();
    if (task->reply) task->reply.error(as_interrupt(present.error()));
    co_return;
  }
  task->finish();
  auto reply = std::make_shared<ReadReply>(std::move(task->reply));
  std::function<void()> job = [reply, handle, offset, size] {
    reply->file(handle->reader->get(), offset, size);
  };
  co_await at.env->run_blocking(std::move(job));
}

void FileSystem::note_kill(const FilePtr& file) {
  const auto view = table_.find(file->node);
  if (view && view->attr_known && (view->attr.mode & (S_ISUID | S_ISGID)) == 0) return;
  MutexLock lock(file->mutex);
  file->kill_privileges = true;
}

void FileSystem::write(Ctx ctx, NodeHandle, const WriteRequest& request, WriteReply reply) {
  const auto open = handle(request.fh);
  if (!open) return reply.error(EBADF);
  if (request.kill_suidgid) note_kill(open->file);
  const bool fits = request.from_page_cache ||
                    fits_quotas(at(reply), open, request.offset_bytes, request.data.size());
  // The kernel does not ask for the size before it appends, and has missed what an update in place
  // brought. Each append is then behind its idea of the end.
  const bool missed = request.at_end && request.offset_bytes != open->copy->size_bytes();
  open->file->writes.fetch_add(1);
  if (!fits) {
    auto task = do_write_if_it_fits(at(reply), open, request.offset_bytes,
                                    Buffer::copy_of(request.data), missed, ctx.pid);
    return run_request(ctx, std::move(reply), std::move(task), kAnswerWritten);
  }
  if (open->sync_writes && !request.from_page_cache) {
    auto task = do_sync_write(at(reply), open, request.offset_bytes, Buffer::copy_of(request.data),
                              missed, ctx.pid);
    return run_request(ctx, std::move(reply), std::move(task), kAnswerWritten);
  }
  if (request.data.size() <= kInlineWriteMax && open->copy->complete()) {
    const auto status = missed ? append(*open->copy, request.data)
                               : open->copy->write_at(request.offset_bytes, request.data);
    if (!status) return reply.error(status.error());
    reply.written(request.data.size());
    if (missed) drop_pages(open->file->node);
    return;
  }
  auto task =
      do_write(at(reply), open, request.offset_bytes, Buffer::copy_of(request.data), missed);
  run_request(ctx, std::move(reply), std::move(task), kAnswerWritten);
}

// By what was known it does not; somebody may have made room since.
Task<std::size_t> FileSystem::do_write_if_it_fits(LoopContext& at, std::shared_ptr<Handle> handle,
                                                  std::uint64_t offset, Buffer data, bool at_end,
                                                  pid_t caller) {
  FM_CO_TRY(const bool fits, co_await surely_fits_quotas(at, handle, offset, data.size()));
  if (!fits) co_return from_errno(EDQUOT);
  if (handle->sync_writes)
    co_return co_await do_sync_write(at, handle, offset, std::move(data), at_end, caller);
  co_return co_await do_write(at, handle, offset, std::move(data), at_end);
}

fermata::Status FileSystem::append(CachedCopy& copy, ByteView data) {
  const auto done = copy.append(data);
  return done ? fermata::Status() : fermata::Status(done.error());
}

// What the kernel has cached of the node's content, and its attributes.
void FileSystem::drop_pages(NodeHandle node) {
  Notifier::Item pages;
  pages.kind = Notifier::Kind::kInvalidateInode;
  pages.node = node;
  pages.offset_bytes = 0;
  NodeTable::Invalidation stale;
  stale.items.push_back(std::move(pages));
  invalidate_later(std::move(stale));
}

Task<std::size_t> FileSystem::do_write(LoopContext& at, std::shared_ptr<Handle> handle,
                                       std::uint64_t offset, Buffer data, bool at_end) {
  const CachePin copy = handle->copy;
  const auto job = [copy, offset, data, at_end] {
    return at_end ? append(*copy, data.view()) : copy->write_at(offset, data.view());
  };
  const auto status = co_await blocking<void>(*at.env, job);
  if (!status) co_return status.error();
  if (at_end) drop_pages(handle->file->node);
  co_return data.size();
}

Task<std::size_t> FileSystem::do_sync_write(LoopContext& at, std::shared_ptr<Handle> handle,
                                            std::uint64_t offset, Buffer data, bool at_end,
                                            pid_t caller) {
  FM_CO_TRY(const auto size, co_await do_write(at, handle, offset, std::move(data), at_end));
  handle->file->syncs.fetch_add(1);
  FM_CO_CHECK(co_await commit(at, handle->file, caller));
  co_return size;
}

Task<void> FileSystem::set_size(LoopContext& at, Credentials who, NodeHandle node,
                                SetAttributes set) {
  const auto view = table_.hold(node);
  if (!view || !view->file) co_return from_errno(ESTALE);
  const FilePtr file = view->file;
  Hold hold(this, file);
  const std::uint64_t size = set.size_bytes;
  if (size > kFileSizeMax) co_return std::errc::file_too_large;
  if (set.has(kSetKillSuidGid)) note_kill(file);
  {
    FM_CO_TRY(const auto pass, co_await file->gate.enter());
    CachePin copy;
    {
      MutexLock lock(file->mutex);
      copy = file->copy;
    }
    const bool written_here =
        (file->writers.load() != 0 || file->sticky.load()) && copy && copy->maybe_dirty();
    if (!written_here) {
      ContentWish content;
      content.bytes = size != 0;
      FM_CO_CHECK(co_await attach_content(at, who, node, file, content));
      OpenWish wish;
      wish.truncate = size == 0;
      note_writer(*file, who, view->attr.change);
      const auto ready = co_await prepare_writer(at, file, wish);
      if (!ready) {
        drop_unfilled(file);
        co_return ready.error();
      }
    }
    {
      MutexLock lock(file->mutex);
      copy = file->copy;
    }
    if (!copy) co_return from_errno(ESTALE);
    const auto job = [copy, size] { return copy->truncate(size); };
    FM_CO_CHECK(co_await blocking<void>(*at.env, job));
  }
  // Through an open file the change is its close's; else nobody would commit it.
  if (set.fh && file->writers.load() != 0) co_return fermata::Status{};
  FM_CO_CHECK(co_await commit(at, file, 0));
  if (file->writers.load() == 0) {
    file->holds.fetch_add(1);
    background(at, "close writer", close_writer(at, file));
  }
  co_return fermata::Status{};
}

void FileSystem::fallocate(Ctx ctx, NodeHandle, std::uint64_t fh, int mode, std::uint64_t offset,
                           std::uint64_t size, StatusReply reply) {
  const auto open = handle(fh);
  if (!open || !open->writable) return reply.error(EBADF);
  auto task = do_fallocate(at(reply), open, mode, offset, size);
  run_request(ctx, std::move(reply), std::move(task), kAnswerOk);
}

Task<void> FileSystem::do_fallocate(LoopContext& at, std::shared_ptr<Handle> handle, int mode,
                                    std::uint64_t offset, std::uint64_t size) {
  const bool keep_size = (mode & FALLOC_FL_KEEP_SIZE) != 0;
  const int what = mode & ~FALLOC_FL_KEEP_SIZE;
  const bool known =
      what == 0 || what == FALLOC_FL_ZERO_RANGE || (what == FALLOC_FL_PUNCH_HOLE && keep_size);
  if (!known) co_return std::errc::operation_not_supported;
  if (offset + size > kFileSizeMax || offset + size < offset) co_return std::errc::file_too_large;
  if (what != FALLOC_FL_PUNCH_HOLE) {
    FM_CO_TRY(const bool fits, co_await surely_fits_quotas(at, handle, offset, size));
    if (!fits) co_return from_errno(EDQUOT);
  }
  const CachePin copy = handle->copy;
  const auto job = [=]() -> fermata::Status {
    if (what != 0) FM_CHECK(copy->punch(offset, size));
    if (what == FALLOC_FL_PUNCH_HOLE) return {};
    return copy->allocate(offset, size, keep_size);
  };
  co_return co_await blocking<void>(*at.env, job);
}

void FileSystem::lseek(Ctx ctx, NodeHandle, std::uint64_t fh, std::uint64_t offset, int whence,
                       LseekReply reply) {
  const auto open = handle(fh);
  if (!open) return reply.error(EBADF);
  if (whence != SEEK_DATA && whence != SEEK_HOLE) return reply.error(EINVAL);
  auto task = do_lseek(at(reply), open, offset, whence);
  run_request(ctx, std::move(reply), std::move(task),
              [](LseekReply& to, std::uint64_t found) { to.offset(found); });
}

Task<std::uint64_t> FileSystem::do_lseek(LoopContext& at, std::shared_ptr<Handle> handle,
                                         std::uint64_t offset, int whence) {
  FM_CO_CHECK(co_await wait_present(at, handle, 0, handle->copy->size_bytes()));
  const off_t found = ::lseek(handle->reader->get(), static_cast<off_t>(offset), whence);
  if (found < 0) co_return last_errno();
  co_return static_cast<std::uint64_t>(found);
}

void FileSystem::copy_file_range(Ctx ctx, const CopyRange& range, WriteReply reply) {
  const auto in = handle(range.in_fh);
  const auto out = handle(range.out_fh);
  if (!in || !out || !out->writable) return reply.error(EBADF);
  auto task = do_copy(at(reply), in, out, range);
  run_request(ctx, std::move(reply), std::move(task), kAnswerWritten);
}

Task<std::size_t> FileSystem::do_copy(LoopContext& at, std::shared_ptr<Handle> in,
                                      std::shared_ptr<Handle> out, CopyRange range) {
  FM_CO_TRY(const bool fits,
            co_await surely_fits_quotas(at, out, range.out_offset_bytes, range.size_bytes));
  if (!fits) co_return from_errno(EDQUOT);
  FM_CO_CHECK(co_await wait_present(at, in, range.in_offset_bytes, range.size_bytes));
  const CachePin from = in->copy;
  const CachePin to = out->copy;
  const auto job = [from, to, range]() -> Result<std::size_t> {
    Buffer piece = Buffer::allocate(kChunkSizeBytes);
    const std::uint64_t want = std::min(range.size_bytes, kCopyMax);
    std::uint64_t done = 0;
    while (done < want) {
      const auto size = std::min<std::uint64_t>(want - done, piece.size());
      auto part = piece.mutable_view().first(size);
      auto got = from->read_at(range.in_offset_bytes + done, part);
      if (!got && done == 0) return got.error();
      if (!got || *got == 0) break;
      const auto status = to->write_at(range.out_offset_bytes + done, part.first(*got));
      if (!status && done == 0) return status.error();
      if (!status) break;
      done += *got;
    }
    return static_cast<std::size_t>(done);
  };
  co_return co_await blocking<std::size_t>(*at.env, job);
}

}  // namespace fermata::mountd
