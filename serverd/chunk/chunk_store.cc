#include "serverd/chunk/chunk_store.h"

namespace fermata::serverd {

// None of these is a coroutine: closures with captures may not be temporaries of one (see
// blocking()).

ChunkStore::ChunkStore(Env& env, std::string dir, ClusterId cluster,
                       std::function<void(std::error_code)> fatal)
    : env_(env),
      files_(std::make_shared<ChunkFiles>(env.disk(), std::move(dir), cluster, std::move(fatal))) {}

Task<void> ChunkStore::start() {
  const auto work = [files = files_] { return files->start(); };
  return blocking<void>(env_, work);
}

Task<void> ChunkStore::put(ChunkId id, Buffer bytes) {
  const auto work = [files = files_, id, bytes] { return files->put(id, bytes.view()); };
  return blocking<void>(env_, work);
}

Task<Buffer> ChunkStore::get(ChunkId id) {
  const auto work = [files = files_, id] { return files->get(id); };
  return blocking<Buffer>(env_, work);
}

Task<Buffer> ChunkStore::get_range(ChunkId id, std::uint64_t offset_bytes, std::size_t size_bytes) {
  const auto work = [files = files_, id, offset_bytes, size_bytes] {
    return files->get_range(id, offset_bytes, size_bytes);
  };
  return blocking<Buffer>(env_, work);
}

Task<void> ChunkStore::remove(std::vector<ChunkId> ids) {
  files_->retire(ids);
  const auto work = [files = files_, ids = std::move(ids)] { return files->remove_retired(ids); };
  return blocking<void>(env_, work);
}

}  // namespace fermata::serverd
