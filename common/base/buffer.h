// A block of bytes with shared ownership, filled once and then read-only: payloads travel between
// socket, disk and cache as these, without a copy.
#pragma once

#include <memory>

#include "common/base/bytes.h"

namespace fermata {

class Buffer {
 public:
  Buffer() = default;
  /// Uninitialised; fill it through mutable_view() before sharing it.
  static Buffer allocate(std::size_t size) {
    Buffer buffer;
    buffer.data_ = std::make_shared_for_overwrite<std::byte[]>(size);
    buffer.size_ = size;
    return buffer;
  }
  static Buffer copy_of(ByteView bytes) {
    Buffer buffer = allocate(bytes.size());
    if (!bytes.empty()) std::memcpy(buffer.data_.get(), bytes.data(), bytes.size());
    return buffer;
  }
  ByteView view() const { return {data_.get(), size_}; }
  MutableByteView mutable_view() { return {data_.get(), size_}; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  /// A part of this block that keeps all of it alive.
  Buffer slice(std::size_t offset, std::size_t size) const {
    Buffer part;
    part.data_ = std::shared_ptr<std::byte[]>(data_, data_.get() + offset);
    part.size_ = size;
    return part;
  }

 private:
  std::shared_ptr<std::byte[]> data_;
  std::size_t size_ = 0;
};

}  // namespace fermata
