// The pieces that several codecs share: attributes, credentials, mutations. Internal to
// common/wire.
//
// write(builder, value) fills a builder; read(reader) -> Result<value> checks every bound.
#pragma once

#include "common/wire/capnp_io.h"
#include "common/wire/messages.h"
#include "schema/namespace.capnp.h"
#include "schema/types.capnp.h"

namespace fermata::wire {

inline constexpr std::size_t kNameMax = 255;
inline constexpr std::size_t kSymlinkMax = 4095;
inline constexpr std::size_t kGroupsMax = 1024;
inline constexpr std::size_t kPatchesMax = 4096;
inline constexpr std::size_t kMembersMax = 64;
inline constexpr std::size_t kXattrValueMax = 65536;
inline constexpr std::size_t kIdsMax = 65536;
inline constexpr std::size_t kTextMax = 4096;
inline constexpr std::size_t kChunkIdsMax = 1024;

/// Builds one message with its first 4 KiB on the stack.
template <class Schema>
class Writer {
 public:
  Writer()
      : builder_(kj::arrayPtr(scratch_.data(), scratch_.size())),
        root_(builder_.initRoot<Schema>()) {}
  typename Schema::Builder root() { return root_; }
  std::string finish() { return encode_message(builder_); }

 private:
  std::array<capnp::word, 512> scratch_{};  // the library wants it zeroed
  capnp::MallocMessageBuilder builder_;
  typename Schema::Builder root_;
};

/// Decodes `bytes` as a Schema by `read_root(Schema::Reader) -> Result<T>`.
template <class Schema, class ReadRoot>
auto decode_message(ByteView bytes, ReadRoot read_root) {
  return fermata::decode_message(bytes, [&read_root](capnp::MessageReader& message) {
    return read_root(message.getRoot<Schema>());
  });
}

inline capnp::Data::Reader blob(std::string_view text) {
  return {reinterpret_cast<const kj::byte*>(text.data()), text.size()};
}
inline capnp::Data::Reader blob(const std::uint8_t* bytes, std::size_t size) {
  return {bytes, size};
}
inline std::string text(capnp::Data::Reader value) {
  return {reinterpret_cast<const char*>(value.begin()), value.size()};
}
inline std::string text(capnp::Text::Reader value) { return {value.cStr(), value.size()}; }

Result<std::string> read_name(capnp::Data::Reader value);
/// At most `size_max` bytes, without NUL.
Result<std::string> read_text(capnp::Text::Reader value, std::size_t size_max = kTextMax);
Result<std::string> read_bytes(capnp::Data::Reader value, std::size_t size_max);
Result<ClusterId> read_cluster(capnp::Data::Reader value);
Result<FileType> read_file_type(std::uint8_t value);
/// kUnsupported for one of a newer version.
Result<QuotaKind> read_quota_kind(std::uint8_t value);
Result<LockSpace> read_lock_space(std::uint8_t value);

void write(schema::Timestamp::Builder out, const Timestamp& value);
Result<Timestamp> read(schema::Timestamp::Reader in);

void write(schema::Attr::Builder out, const Attr& value);
Result<Attr> read(schema::Attr::Reader in);

void write(schema::Credentials::Builder out, const Credentials& value);
Result<Credentials> read(schema::Credentials::Reader in);

void write(schema::Patch::Builder out, const Patch& value);
/// Refuses a range that ends beyond 2^63 - 1.
Result<std::vector<Patch>> read(capnp::List<schema::Patch>::Reader in);

void write(capnp::List<schema::WireMember>::Builder out, const std::vector<Member>& members);
Result<std::vector<Member>> read(capnp::List<schema::WireMember>::Reader in);

void write(schema::Mutation::Builder out, const Mutation& value);
/// kUnsupported for a member of a newer version.
Result<Mutation> read(schema::Mutation::Reader in);

void write(schema::Mutation::Lock::Builder out, const LockOp& value);
/// Refuses what no lock request is: unknown spaces and types, empty ranges.
Result<LockOp> read(schema::Mutation::Lock::Reader in);

std::string pack_chunk_ids(const std::vector<ChunkId>& ids);
Result<std::vector<ChunkId>> unpack_chunk_ids(capnp::Data::Reader in, std::size_t count_max);

template <class Tag, class Rep, class Builder>
void write_ids(Builder out, const std::vector<Id<Tag, Rep>>& ids) {
  for (unsigned i = 0; i < ids.size(); ++i) out.set(i, ids[i].value());
}
template <class IdType, class Reader>
Result<std::vector<IdType>> read_ids(Reader in) {
  if (in.size() > kIdsMax) return Errc::kBadMessage;
  std::vector<IdType> ids;
  ids.reserve(in.size());
  for (const auto value : in) ids.emplace_back(value);
  return ids;
}

}  // namespace fermata::wire
